"""Virtio block device (virtio 1.2, section 5.2).

A request is a header the driver gives (u32 type, u32 reserved, u64 sector), data either way, and a status byte the
device writes last.  Data is moved straight between guest RAM and the back end.  Sectors are 512 bytes everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, Protocol

from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.constants import ID_BLOCK, MAX_QUEUE_SIZE, MAX_QUEUES
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.ring import Chain
from pyvm.state import flag

SECTOR = 512

# Feature bits (5.2.3)
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

# Configuration space (5.2.4): u64 capacity, u32 size_max, u32 seg_max, geometry {u16 cylinders, u8 heads, u8 sectors},
# u32 blk_size, topology {u8 physical_block_exp, u8 alignment_offset, u16 min_io_size, u32 opt_io_size}, u8 writeback,
# u8 unused, u16 num_queues, u32 max_discard_sectors, u32 max_discard_seg, u32 discard_sector_alignment,
# u32 max_write_zeroes_sectors, u32 max_write_zeroes_seg, u8 write_zeroes_may_unmap, 3 unused
_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
_CONFIG_WCE = 32

# Request header, and segment of discard and write zeroes (5.2.6)
_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_RANGE_F_UNMAP = 1
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
_SERIAL_LENGTH = 20

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

_MAX_RANGE_SECTORS = (1 << 22) - 1
"""Most sectors of one discard or write-zeroes request: 2 GiB."""
_RANGES_PER_REQUEST = 1
_MAX_BLOCK_SIZE = 2 << 20

# Geometry for those who still ask: QEMU's translation-free guess
_HEADS = 16
_SECTORS_PER_TRACK = 63
_MAX_CYLINDERS = 16383
_MIN_CYLINDERS = 2


class BlockBackend(Protocol):
    """What a disk is to the device.  All offsets and lengths are bytes; failures are raised as OSError."""

    read_only: bool
    serial: str
    """Serial number, empty where there is none."""

    @property
    def size(self) -> int:
        """Length of the disk."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill all buffers from `offset` on."""

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write all buffers from `offset` on."""

    def flush(self) -> None:
        """Return when everything written is safe from loss of power."""

    def discard(self, offset: int, length: int) -> None:
        """The contents of the range are no longer needed."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it need take no room."""


class _RequestError(Exception):
    """A request ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class BlkState(VirtioState):
    """Migratable state."""

    writeback: bool = flag(True)


def check_block_size(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a block size: a power of two of 512 B to 2 MiB."""
    if value & (value - 1):
        raise ValueError(f"Property .{name} doesn't take value '{value}', it's not a power of 2")
    if not SECTOR <= value <= _MAX_BLOCK_SIZE:
        limits = f"minimum: {SECTOR}, maximum: {_MAX_BLOCK_SIZE}"
        raise ValueError(f"Property .{name} doesn't take value {value} ({limits})")


class VirtioBlk(VirtioDevice[BlkState]):
    """A disk.  `write_cache` is the cache mode at power-on; raises ValueError for properties that cannot be."""

    device_id = ID_BLOCK
    name = "virtio-blk"
    state_type = BlkState
    PROPERTIES: ClassVar[Properties] = {
        "drive": Property("drive", None, "node name or ID of the block device to use as a backend"),
        "serial": Property("str", None, "serial number, at most 20 bytes"),
        "num-queues": Property("uint16", 65535, "request queues; 65535: one for each vCPU"),
        "queue-size": Property("uint16", 256, "entries of each queue, a power of two"),
        "config-wce": Property("bool", True, "the driver may switch the write cache"),
        "write-cache": Property("OnOffAuto", "auto", "whether the disk has a write cache at first; auto: on"),
        "discard": Property("bool", True, "offer discard"),
        "write-zeroes": Property("bool", True, "offer write zeroes"),
        "logical_block_size": Property("size", 0, "smallest unit the driver may address; 0: 512"),
        "physical_block_size": Property("size", 0, "unit in which the disk works best; 0: 512"),
        "min_io_size": Property("size", 0, "smallest transfer that is not slow, in bytes"),
        "opt_io_size": Property("size", 0, "best transfer, in bytes"),
        "max-discard-sectors": Property("uint32", _MAX_RANGE_SECTORS, "most sectors of one discard"),
        "max-write-zeroes-sectors": Property("uint32", _MAX_RANGE_SECTORS, "most sectors of one write zeroes"),
    }

    def __init__(
        self,
        backend: BlockBackend,
        *,
        serial: str | None = None,
        num_queues: int = 1,
        queue_size: int = 256,
        config_wce: bool = True,
        write_cache: bool = True,
        discard: bool = True,
        write_zeroes: bool = True,
        logical_block_size: int = 0,
        physical_block_size: int = 0,
        min_io_size: int = 0,
        opt_io_size: int = 0,
        max_discard_sectors: int = _MAX_RANGE_SECTORS,
        max_write_zeroes_sectors: int = _MAX_RANGE_SECTORS,
    ) -> None:
        _check_queues(num_queues, queue_size)
        logical_block_size = logical_block_size or SECTOR
        physical_block_size = physical_block_size or SECTOR
        check_block_size("logical_block_size", logical_block_size)
        check_block_size("physical_block_size", physical_block_size)
        if logical_block_size > physical_block_size:
            raise ValueError("logical_block_size > physical_block_size not supported")
        _check_io_size("min_io_size", min_io_size, logical_block_size, 0xFFFF)
        _check_io_size("opt_io_size", opt_io_size, logical_block_size, 0xFFFFFFFF)
        _check_sectors("max-discard-sectors", max_discard_sectors)
        _check_sectors("max-write-zeroes-sectors", max_write_zeroes_sectors)
        features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH
        features |= F_CONFIG_WCE if config_wce else 0
        features |= F_RO if backend.read_only else 0
        features |= F_MQ if num_queues > 1 else 0
        features |= F_DISCARD if discard else 0
        features |= F_WRITE_ZEROES if write_zeroes else 0
        super().__init__([queue_size] * num_queues, features, _CONFIG.size)
        self.backend = backend
        self._serial = (backend.serial if serial is None else serial).encode()[:_SERIAL_LENGTH]
        self._initial_writeback = write_cache
        self._writeback = write_cache
        self._logical = logical_block_size
        self._physical = physical_block_size
        self._min_io = min_io_size
        self._opt_io = opt_io_size
        self._max_discard = max_discard_sectors
        self._max_write_zeroes = max_write_zeroes_sectors

    def handle_queue(self, queue: VirtQueue) -> None:
        """Carry out all requests in `queue`."""
        while (chain := queue.pop()) is not None:
            room = chain.writable_bytes
            if not room or chain.readable_bytes < _HEADER.size:
                self.fail("request without a whole header or without a status byte")
                return
            status = self._request(chain, room - 1)
            chain.writable[-1][-1] = status
            queue.push(chain, room)
        queue.flush()

    def _request(self, chain: Chain, room: int) -> int:
        """Carry out one request with `room` bytes for data; return its status."""
        kind, _, sector = _HEADER.unpack(chain.gather(_HEADER.size))
        try:
            if kind == T_IN:
                buffers = _data_in(chain)
                self.backend.readv(self._checked_offset(sector, room), buffers)
            elif kind == T_OUT:
                buffers, length = _data_out(chain)
                self._write(sector, buffers, length)
            elif kind == T_FLUSH:
                self.backend.flush()
            elif kind == T_GET_ID:
                chain.scatter(self._serial.ljust(_SERIAL_LENGTH, b"\0")[:room].ljust(min(room, 4096), b"\0"))
            elif kind in (T_DISCARD, T_WRITE_ZEROES) and self.offered_features & _RANGE_FEATURES[kind]:
                buffers, length = _data_out(chain)
                self._ranges(kind, buffers, length)
            else:
                return S_UNSUPP
        except _RequestError as refused:
            return refused.status
        except OSError:
            return S_IOERR
        return S_OK

    def _checked_offset(self, sector: int, length: int) -> int:
        """Return the byte offset of a request; refuse one that is not whole blocks or not on the disk."""
        offset = sector * SECTOR
        if offset % self._logical or length % self._logical or offset + length > self.backend.size:
            raise _RequestError(S_IOERR)
        return offset

    def _write(self, sector: int, buffers: Sequence[memoryview], length: int) -> None:
        if self.backend.read_only:
            raise _RequestError(S_IOERR)
        self.backend.writev(self._checked_offset(sector, length), buffers)
        self._write_through()

    def _write_through(self) -> None:
        """Without a write cache, what is reported as written is safe."""
        if not self._writeback:
            self.backend.flush()

    def _ranges(self, kind: int, buffers: Sequence[memoryview], length: int) -> None:
        """Discard, or write zeroes to, the range given as data (5.2.6.2)."""
        if self.backend.read_only:
            raise _RequestError(S_IOERR)
        if not length or length > _RANGES_PER_REQUEST * _RANGE.size or length % _RANGE.size:
            raise _RequestError(S_UNSUPP)
        sector, sectors, flags = _RANGE.unpack(b"".join(buffers))
        allowed = _RANGE_F_UNMAP if kind == T_WRITE_ZEROES else 0
        if flags & ~allowed:
            raise _RequestError(S_UNSUPP)
        if sectors > (self._max_discard if kind == T_DISCARD else self._max_write_zeroes):
            raise _RequestError(S_IOERR)
        offset = self._checked_offset(sector, sectors * SECTOR)
        if not sectors:
            return
        if kind == T_DISCARD:
            self.backend.discard(offset, sectors * SECTOR)
        else:
            self.backend.write_zeroes(offset, sectors * SECTOR, bool(flags & _RANGE_F_UNMAP))
            self._write_through()

    # Configuration and life

    def capacity_changed(self) -> None:
        """The back end has a new size: tell the driver."""
        self.config_changed()

    def config(self) -> bytes:
        """Return the configuration space."""
        sectors = self.backend.size // SECTOR
        cylinders = min(max(sectors // (_HEADS * _SECTORS_PER_TRACK), _MIN_CYLINDERS), _MAX_CYLINDERS)
        return _CONFIG.pack(
            sectors,
            0,
            self.queues[0].max_size - 2,
            cylinders,
            _HEADS,
            _SECTORS_PER_TRACK,
            self._logical,
            (self._physical // self._logical).bit_length() - 1,
            0,
            self._min_io // self._logical,
            self._opt_io // self._logical,
            int(self._writeback),
            len(self.queues),
            self._max_discard,
            _RANGES_PER_REQUEST,
            self._logical // SECTOR,
            self._max_write_zeroes,
            _RANGES_PER_REQUEST,
            1,
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Let the driver switch the write cache; what it held is safe before it is off."""
        if offset != _CONFIG_WCE or not self.has(F_CONFIG_WCE):
            return
        was_on, self._writeback = self._writeback, bool(data[0])
        if was_on and not self._writeback:
            try:
                self.backend.flush()
            except OSError as error:
                self.on_error(f"{self.name}: flush: {error.strerror}")

    def features_changed(self) -> None:
        """A driver that cannot flush gets no write cache (5.2.6.2)."""
        if not self.has(F_CONFIG_WCE):
            self._writeback = self._initial_writeback and (not self.status or self.has(F_FLUSH))

    def reset_device(self) -> None:
        """Return to the cache mode of power-on."""
        self._writeback = self._initial_writeback

    def save_device(self) -> BlkState:
        """Return the cache mode."""
        return BlkState(writeback=self._writeback)

    def load_device(self, state: BlkState) -> None:
        """Take over the cache mode."""
        self._writeback = state.writeback


_RANGE_FEATURES = {T_DISCARD: F_DISCARD, T_WRITE_ZEROES: F_WRITE_ZEROES}


def _data_in(chain: Chain) -> Sequence[memoryview]:
    """Return the writable segments without the status byte at their end."""
    last = chain.writable[-1]
    return (*chain.writable[:-1], last[:-1]) if len(last) > 1 else chain.writable[:-1]


def _data_out(chain: Chain) -> tuple[Sequence[memoryview], int]:
    """Return the readable segments behind the header, and their length in bytes."""
    skip = _HEADER.size
    buffers = []
    for segment in chain.readable:
        if skip < len(segment):
            buffers.append(segment[skip:])
        skip = max(skip - len(segment), 0)
    return buffers, chain.readable_bytes - _HEADER.size


def _check_queues(num_queues: int, queue_size: int) -> None:
    if num_queues <= 0:
        raise ValueError("num-queues property must be larger than 0")
    if num_queues > MAX_QUEUES:
        raise ValueError(f"num-queues property must be at most {MAX_QUEUES}")
    if queue_size <= 2:
        raise ValueError(f"invalid queue-size property ({queue_size}), must be > 2")
    if queue_size & (queue_size - 1) or queue_size > MAX_QUEUE_SIZE:
        raise ValueError(f"invalid queue-size property ({queue_size}), must be a power of 2 (max {MAX_QUEUE_SIZE})")


def _check_io_size(name: str, value: int, block: int, limit: int) -> None:
    if value % block:
        raise ValueError(f"{name} must be a multiple of logical_block_size")
    if not 0 <= value // block <= limit:
        raise ValueError(f"{name} must not exceed {limit} logical blocks")


def _check_sectors(name: str, value: int) -> None:
    if not 0 < value <= _MAX_RANGE_SECTORS:
        raise ValueError(f"invalid {name} property ({value}), must be between 1 and {_MAX_RANGE_SECTORS}")
