"""SCSI disk (SBC-3, with SPC-4): QEMU's scsi-hd.

Reads and writes go straight between the back end and the command's buffers.  A FUA bit or a switched-off write cache
makes a write durable before it is reported.  UNMAP and WRITE SAME give ranges back where the back end lets them.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyvm.block.vectors import behind, total
from pyvm.devices.scsi import constants as c
from pyvm.devices.scsi import inquiry, mode
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.inquiry import BlockLimits
from pyvm.devices.scsi.mode import ModePage, ModeSense
from pyvm.devices.scsi.steps import Step
from pyvm.devices.scsi.target import (
    PRIMARY,
    UNIT,
    Direction,
    Identity,
    Operation,
    ScsiCommand,
    ScsiTarget,
    SenseError,
    clip,
    data_in,
    data_out,
    gather,
)

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_MAX_UNMAP = 1 << 30
_MAX_IO = (1 << 31) - 1
_DEFAULT_GRANULARITY = 4096
_PIECE = 1 << 20
"""Bytes that are compared or repeated at a time."""
_MAX_REPEATS = 1024
"""Most buffers in one request to the back end."""

# CDB bits
_PROTECT = 0xE0
_FUA = 0x08
_BYTCHK_SHIFT = 1
_BYTCHK_OFF, _BYTCHK_ALL, _BYTCHK_ONE = 0, 1, 3
_WS_UNMAP = 0x08
_WS_ANCHOR = 0x10
_WS_LBDATA_PBDATA = 0x06
_WS_NDOB = 0x01
_UNMAP_ANCHOR = 0x01
_FORMAT_LIST = 0x10
_FORMAT_PROTECT_LONG = 0xE0
_FORMAT_HEADER = 4

_UNMAP_HEADER = 8
_UNMAP_RANGE = struct.Struct(">QI4x")
_CAPACITY_16_LENGTH = 32
_LBPME = 0x80

# Mode sense
_WRITE_PROTECT = 0x80
_DPOFUA = 0x10
_AWRE = 0x80
_RPM = 5400
_SIMPLE_HEADS = 16
_SIMPLE_SECTORS = 63
_MAX_CYLINDERS = 16383
_MIN_CYLINDERS = 2


@dataclass(frozen=True)
class DiskLimits:
    """What a disk says of its medium; all in bytes.  The names are those of QEMU's properties."""

    logical_block_size: int = 512
    physical_block_size: int = 512
    min_io_size: int = 0
    opt_io_size: int = 0
    max_io_size: int = _MAX_IO
    max_unmap_size: int = _MAX_UNMAP
    discard_granularity: int | None = None
    """None: that of the physical block, but at least 4 KiB; 0: the disk is not thinly provisioned."""
    rotation_rate: int = 0

    def check(self) -> None:
        """Raise ValueError where this is no disk."""
        for name in ("logical_block_size", "physical_block_size"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"Property .{name} doesn't take value '{value}', it's not a power of 2")
            if not 512 <= value <= 2 << 20:
                raise ValueError(f"Property .{name} doesn't take value {value} (minimum: 512, maximum: 2097152)")
        if self.logical_block_size > self.physical_block_size:
            raise ValueError("logical_block_size > physical_block_size not supported")
        for name in ("min_io_size", "opt_io_size"):
            if getattr(self, name) % self.logical_block_size:
                raise ValueError(f"{name} must be a multiple of logical_block_size")
        if self.discard_granularity and self.discard_granularity % self.logical_block_size:
            raise ValueError("discard_granularity must be a multiple of logical_block_size")

    @property
    def unmap_granularity(self) -> int:
        """Return in what units the disk gives room back; 0: it does not."""
        if self.discard_granularity is None:
            return max(self.physical_block_size, _DEFAULT_GRANULARITY)
        return self.discard_granularity


class ScsiDisk(ScsiTarget):
    """A disk.  `geometry` is (cylinders, heads, sectors) for those who still ask; a guess where None.

    Raises ValueError for properties that cannot be.
    """

    device_type = c.TYPE_DISK
    name = "scsi-hd"
    operations: ClassVar[Mapping[int, Operation]]

    def __init__(
        self,
        backend: BlockBackend,
        *,
        identity: Identity | None = None,
        limits: DiskLimits | None = None,
        removable: bool = False,
        dpofua: bool = False,
        geometry: tuple[int, int, int] | None = None,
    ) -> None:
        limits = limits or DiskLimits()
        limits.check()
        identity = identity or Identity()
        identity.product = identity.product or "QEMU HARDDISK"
        self.limits = limits
        self._dpofua = dpofua
        self._geometry = geometry
        super().__init__(backend, identity, limits.logical_block_size, removable=removable)

    @property
    def blocks(self) -> int:
        """Return the length of the medium in logical blocks."""
        return self.backend.size // self.block_size

    # What it is

    def inquiry(self, command: ScsiCommand) -> None:
        """INQUIRY (SPC-4, 6.6)."""
        cdb = command.cdb
        if not cdb[1] & 1:
            if cdb[2]:
                raise SenseError(s.INVALID_FIELD)
            self.reply(
                command, inquiry.standard(self.device_type, self.identity, removable=self.removable, atapi=False)
            )
            return
        page = inquiry.page(self.device_type, cdb[2], self.identity, self._block_limits())
        if page is None:
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, page)

    def _block_limits(self) -> BlockLimits:
        limits, size = self.limits, self.block_size
        return BlockLimits(
            granularity=limits.min_io_size // size,
            best=limits.opt_io_size // size,
            largest=limits.max_io_size // size,
            largest_unmap=limits.max_unmap_size // size,
            unmap_granularity=limits.unmap_granularity // size,
            rotation_rate=limits.rotation_rate,
        )

    def read_capacity_10(self, command: ScsiCommand) -> None:
        """READ CAPACITY (10) (SBC-3, 5.15)."""
        cdb = command.cdb
        if not cdb[8] & 1 and any(cdb[2:6]):
            raise SenseError(s.INVALID_FIELD)
        last = min(self._last_block(), 0xFFFFFFFF)
        self.reply(command, struct.pack(">II", last, self.block_size))

    def service_action_in(self, command: ScsiCommand) -> None:
        """READ CAPACITY (16) (5.16)."""
        if command.cdb[1] & 0x1F != c.SA_READ_CAPACITY_16:
            raise SenseError(s.INVALID_FIELD)
        limits = self.limits
        data = bytearray(_CAPACITY_16_LENGTH)
        struct.pack_into(">QI", data, 0, self._last_block(), self.block_size)
        data[13] = (limits.physical_block_size // limits.logical_block_size).bit_length() - 1
        data[14] = _LBPME if limits.unmap_granularity else 0
        self.reply(command, data)

    def _last_block(self) -> int:
        blocks = self.blocks
        if not blocks:
            raise SenseError(s.NO_MEDIUM)
        return blocks - 1

    # Reading and writing

    def _range(self, cdb: bytes) -> tuple[int, int]:
        """Return first block and number of blocks; refuse what is not all on the disk."""
        opcode = cdb[0]
        group = opcode >> 5
        if group in {1, 2}:
            lba, count = int.from_bytes(cdb[2:6], "big"), cdb[7] << 8 | cdb[8]
        elif group == 4:
            lba, count = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
        elif group == 5:
            lba, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
        else:
            return self._on_disk((cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3], cdb[4] or 256)
        if cdb[1] & _PROTECT:
            raise SenseError(s.INVALID_FIELD)  # no protection information
        return self._on_disk(lba, count)

    def _on_disk(self, lba: int, count: int) -> tuple[int, int]:
        if lba + count > self.blocks:
            raise SenseError(s.LBA_OUT_OF_RANGE)
        return lba, count

    def read(self, command: ScsiCommand) -> None:
        """READ (6) to (16) (5.10 to 5.13)."""
        lba, count = self._range(command.cdb)
        buffers = clip(command.data_in, count * self.block_size)
        length = total(buffers)
        if not length:
            self.finish(command)
            return
        self.backend.read(lba * self.block_size, buffers, lambda error: self.finish_io(command, error, length))

    def write(self, command: ScsiCommand) -> None:
        """WRITE (6) to (16), WRITE AND VERIFY (5.32 to 5.40)."""
        cdb = command.cdb
        lba, count = self._range(cdb)
        self._writable()
        buffers = clip(command.data_out, count * self.block_size)
        length = total(buffers)
        if length < count * self.block_size:
            raise SenseError(s.INVALID_FIELD)
        if not length:
            self.finish(command)
            return
        opcode = cdb[0]
        durable = opcode in _WRITE_AND_VERIFY or (opcode != c.WRITE_6 and cdb[1] & _FUA)

        def written(error: int) -> None:
            if error or not durable or not self.backend.write_cache:
                self.finish_io(command, error, length)
            else:
                self.backend.flush(lambda error: self.finish_io(command, error, length))

        self.backend.write(lba * self.block_size, buffers, written)

    def _writable(self) -> None:
        if self.backend.read_only:
            raise SenseError(s.WRITE_PROTECTED)

    def synchronize_cache(self, command: ScsiCommand) -> None:
        """SYNCHRONIZE CACHE (10) and (16) (5.28, 5.29): of the whole disk, whatever the range."""
        self._range_of_cache(command.cdb)
        self.backend.flush(lambda error: self.finish_io(command, error))

    def _range_of_cache(self, cdb: bytes) -> None:
        wide = cdb[0] == c.SYNCHRONIZE_CACHE_16
        lba = int.from_bytes(cdb[2:10] if wide else cdb[2:6], "big")
        count = int.from_bytes(cdb[10:14] if wide else cdb[7:9], "big")
        self._on_disk(lba, count)

    def seek(self, command: ScsiCommand) -> None:
        """SEEK (SCSI-2, 9.2.17) and REZERO UNIT: nothing moves."""
        cdb = command.cdb
        lba = 0
        if cdb[0] == c.SEEK_10:
            lba = int.from_bytes(cdb[2:6], "big")
        elif cdb[0] == c.SEEK_6:
            lba = (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3]
        self._on_disk(lba, 1)
        self.finish(command)

    def format_unit(self, command: ScsiCommand) -> None:
        """FORMAT UNIT (5.3) with the formatting that the disk has anyway; the contents may stay."""
        cdb = command.cdb
        self._writable()
        if cdb[1] & _FORMAT_PROTECT_LONG:
            raise SenseError(s.INVALID_FIELD)
        if cdb[1] & _FORMAT_LIST:
            header = gather(command.data_out, _FORMAT_HEADER)
            if len(header) < _FORMAT_HEADER:
                raise SenseError(s.PARAMETER_LIST_LENGTH)
            if header[2] or header[3]:
                raise SenseError(s.INVALID_PARAMETER)  # there are no defects
        self.backend.flush(lambda error: self.finish_io(command, error))

    # Comparing

    def verify(self, command: ScsiCommand) -> None:
        """VERIFY (5.30): that the blocks are there, or that they are what was sent, all or one for each."""
        cdb = command.cdb
        lba, count = self._range(cdb)
        check = cdb[1] >> _BYTCHK_SHIFT & 3
        if check == _BYTCHK_OFF or not count:
            self.finish(command)
            return
        if check not in (_BYTCHK_ALL, _BYTCHK_ONE):
            raise SenseError(s.INVALID_FIELD)
        needed = self.block_size * (count if check == _BYTCHK_ALL else 1)
        if total(command.data_out) < needed:
            raise SenseError(s.INVALID_FIELD)
        self.run_steps(
            self._compare(command, lba * self.block_size, count * self.block_size, needed),
            lambda error: self.finish_io(command, error, needed),
        )

    def _compare(self, command: ScsiCommand, offset: int, length: int, given: int) -> Iterator[Step]:
        """Read piece by piece; each is compared before the next is read."""
        at = 0
        one_block = gather(command.data_out, given) if given < length else b""
        while at < length:
            size = min(_PIECE, length - at)
            piece = memoryview(bytearray(size))
            start = offset + at
            yield lambda done, start=start, piece=piece: self.backend.read(start, (piece,), done)  # type: ignore[misc]
            if one_block:
                expected: bytes = one_block * (size // given)
            else:
                expected = gather(behind(command.data_out, at), size)
            if piece != expected:
                yield lambda done: done(errno.EILSEQ)
            at += size

    # Unmapping, and the same block many times

    def unmap(self, command: ScsiCommand) -> None:
        """UNMAP (5.31): a list of ranges to give back."""
        if command.cdb[1] & _UNMAP_ANCHOR:
            raise SenseError(s.INVALID_FIELD)
        data = self.parameters(command)
        if not data:
            self.finish(command)
            return
        if len(data) < _UNMAP_HEADER:
            raise SenseError(s.PARAMETER_LIST_LENGTH)
        listed = int.from_bytes(data[2:4], "big")
        if int.from_bytes(data[:2], "big") + 2 > len(data) or listed + _UNMAP_HEADER > len(data) or listed % 16:
            raise SenseError(s.PARAMETER_LIST_LENGTH)
        self._writable()
        ranges = [
            self._on_disk(lba, count)
            for lba, count in _UNMAP_RANGE.iter_unpack(data[_UNMAP_HEADER : _UNMAP_HEADER + listed])
        ]
        size = self.block_size
        steps: Iterator[Step] = (
            lambda done, lba=lba, count=count: self.backend.discard(lba * size, count * size, done)  # type: ignore[misc]
            for lba, count in ranges
            if count
        )
        self.run_steps(steps, lambda error: self.finish_io(command, error, len(data)))

    def write_same(self, command: ScsiCommand) -> None:
        """WRITE SAME (10) and (16) (5.43, 5.44)."""
        cdb = command.cdb
        flags = cdb[1]
        without_data = cdb[0] == c.WRITE_SAME_16 and flags & _WS_NDOB
        if flags & _PROTECT or flags & _WS_LBDATA_PBDATA or flags & _WS_ANCHOR:
            raise SenseError(s.INVALID_FIELD)
        if flags & _WS_NDOB and not without_data:
            raise SenseError(s.INVALID_FIELD)
        lba, count = self._range(cdb)
        size = self.block_size
        if not count or count * size > max(self.limits.max_io_size, size):
            raise SenseError(s.INVALID_FIELD)
        self._writable()
        block = bytes(size) if without_data else gather(command.data_out, size)
        if len(block) < size:
            raise SenseError(s.INVALID_FIELD)
        taken = 0 if without_data else size

        def finished(error: int) -> None:
            self.finish_io(command, error, taken)

        if not any(block):
            self.backend.write_zeroes(lba * size, count * size, bool(flags & _WS_UNMAP), finished)
        else:
            self.run_steps(self._repeat(block, lba * size, count), finished)

    def _repeat(self, block: bytes, offset: int, count: int) -> Iterator[Step]:
        """Write `block` so many times."""
        each = max(_PIECE // len(block) // _MAX_REPEATS, 1)
        buffer = memoryview(block * each)
        while count:
            blocks = min(count, each * _MAX_REPEATS, max(_PIECE // len(block), 1))
            whole, rest = divmod(blocks, each)
            buffers = [buffer] * whole + ([buffer[: rest * len(block)]] if rest else [])
            yield lambda done, at=offset, data=buffers: self.backend.write(at, data, done)  # type: ignore[misc]
            offset += blocks * len(block)
            count -= blocks

    # Modes

    def mode_sense(self, command: ScsiCommand) -> None:
        """MODE SENSE (6) and (10) (SPC-4, 6.11, 6.12)."""
        asked = ModeSense.parse(command.cdb)
        specific = (_WRITE_PROTECT if self.backend.read_only else 0) | (_DPOFUA if self._dpofua else 0)
        pages = self._mode_pages(default=asked.control == c.PC_DEFAULT)
        self.reply(command, mode.answer(asked, pages, specific, self.blocks or None, self.block_size))

    def mode_select(self, command: ScsiCommand) -> None:
        """MODE SELECT (6) and (10) (6.9, 6.10): the write cache can be switched; what it held is safe before."""
        pages = mode.select(command.cdb, self.parameters(command), self._mode_pages(), self._same_blocks)
        taken = self.length_of(command.cdb, self.operations[command.cdb[0]])
        wanted = self.backend.write_cache
        for page in pages:
            if page.code == c.PAGE_CACHING:
                wanted = bool(page.body[0] & mode.WCE)
        if wanted or not self.backend.write_cache:
            self.backend.write_cache = wanted
            self.finish(command, None, taken)
            return

        def flushed(error: int) -> None:
            if not error:
                self.backend.write_cache = False
            self.finish_io(command, error, taken)

        self.backend.flush(flushed)

    def _same_blocks(self, count: int, size: int) -> bool:
        blocks = self.blocks
        return size == self.block_size and count in (0, 0xFFFFFF, 0xFFFFFFFF, blocks)

    def _mode_pages(self, *, default: bool = False) -> list[ModePage]:
        """Return all pages with what they hold now, or at power-on, in order of their codes."""
        recovery = bytearray(10)
        recovery[0] = 0 if self.removable else _AWRE
        caching = bytearray(18)
        write_cache = self._initial_write_cache if default else self.backend.write_cache
        caching[0] = mode.WCE if write_cache else 0
        return [
            ModePage(c.PAGE_ERROR_RECOVERY, bytes(recovery)),
            *self._geometry_pages(),
            ModePage(c.PAGE_CACHING, bytes(caching), bytes((mode.WCE,)).ljust(18, b"\0")),
        ]

    def _geometry_pages(self) -> list[ModePage]:
        cylinders, heads, sectors = self._geometry or self._guess()
        rigid = bytearray(22)
        rigid[0:3] = min(cylinders, 0xFFFFFF).to_bytes(3, "big")
        rigid[3] = heads & 0xFF
        rigid[4:7] = rigid[7:10] = rigid[0:3]  # no write precompensation, no reduced write current
        rigid[11] = 200  # step rate, 100 ns
        rigid[12:15] = b"\xff\xff\xff"  # landing zone
        rigid[18:20] = _RPM.to_bytes(2, "big")
        flexible = bytearray(30)
        flexible[0:2] = (5000).to_bytes(2, "big")  # transfer rate, kbit/s
        flexible[2:4] = (heads & 0xFF, sectors & 0xFF)
        flexible[4:6] = min(self.block_size, 0xFFFF).to_bytes(2, "big")
        flexible[6:8] = min(cylinders, 0xFFFF).to_bytes(2, "big")
        flexible[8:10] = flexible[10:12] = flexible[6:8]
        flexible[13] = 1  # step rate, 100 us
        flexible[14] = 1  # step pulse width, us
        flexible[16] = 1  # head settle delay, 100 us
        flexible[17] = 1  # motor on delay, 0.1 s
        flexible[18] = 1  # motor off delay, 0.1 s
        flexible[26:28] = _RPM.to_bytes(2, "big")
        return [ModePage(c.PAGE_GEOMETRY, bytes(rigid)), ModePage(c.PAGE_FLEXIBLE, bytes(flexible))]

    def _guess(self) -> tuple[int, int, int]:
        cylinders = self.backend.size // 512 // (_SIMPLE_HEADS * _SIMPLE_SECTORS)
        return min(max(cylinders, _MIN_CYLINDERS), _MAX_CYLINDERS), _SIMPLE_HEADS, _SIMPLE_SECTORS

    # How much data there is

    def length_of(self, cdb: bytes, operation: Operation) -> int:
        """Return the bytes of data; VERIFY and WRITE SAME do not follow the rule."""
        opcode = cdb[0]
        if opcode in _VERIFIES:
            check = cdb[1] >> _BYTCHK_SHIFT & 3
            if check == _BYTCHK_ALL:
                return super().length_of(cdb, operation)
            return self.block_size if check == _BYTCHK_ONE else 0
        if opcode == c.FORMAT_UNIT:
            return operation.fixed if cdb[1] & _FORMAT_LIST else 0
        if opcode in (c.WRITE_SAME_10, c.WRITE_SAME_16):
            return 0 if opcode == c.WRITE_SAME_16 and cdb[1] & _WS_NDOB else self.block_size
        return super().length_of(cdb, operation)


_WRITE_AND_VERIFY = frozenset({c.WRITE_VERIFY_10, c.WRITE_VERIFY_12, c.WRITE_VERIFY_16})
_VERIFIES = frozenset({c.VERIFY_10, c.VERIFY_12, c.VERIFY_16})

_LENGTHS = {0: (4, 1), 1: (7, 2), 2: (7, 2), 4: (10, 4), 5: (6, 4)}
"""Offset and size of the transfer length, by group of operation codes."""


def _transfer(handler: object, direction: Direction, *opcodes: int) -> dict[int, Operation]:
    return {
        opcode: Operation(handler, direction, *_LENGTHS[opcode >> 5], blocks=True, medium=True)  # type: ignore[arg-type]
        for opcode in opcodes
    }


ScsiDisk.operations = {
    **PRIMARY,
    **UNIT,
    c.INQUIRY: data_in(ScsiDisk.inquiry, 3, 2, before_attention=True),
    c.MODE_SENSE_6: data_in(ScsiDisk.mode_sense, 4, 1),
    c.MODE_SENSE_10: data_in(ScsiDisk.mode_sense, 7, 2),
    c.MODE_SELECT_6: data_out(ScsiDisk.mode_select, 4, 1),
    c.MODE_SELECT_10: data_out(ScsiDisk.mode_select, 7, 2),
    c.READ_CAPACITY_10: Operation(ScsiDisk.read_capacity_10, Direction.IN, fixed=8, medium=True),
    c.SERVICE_ACTION_IN_16: data_in(ScsiDisk.service_action_in, 10, 4, medium=True),
    **_transfer(ScsiDisk.read, Direction.IN, c.READ_6, c.READ_10, c.READ_12, c.READ_16),
    **_transfer(ScsiDisk.write, Direction.OUT, c.WRITE_6, c.WRITE_10, c.WRITE_12, c.WRITE_16, *_WRITE_AND_VERIFY),
    **_transfer(ScsiDisk.verify, Direction.OUT, *_VERIFIES),
    **_transfer(ScsiDisk.write_same, Direction.OUT, c.WRITE_SAME_10, c.WRITE_SAME_16),
    c.UNMAP: data_out(ScsiDisk.unmap, 7, 2, medium=True),
    c.SYNCHRONIZE_CACHE_10: Operation(ScsiDisk.synchronize_cache, medium=True),
    c.SYNCHRONIZE_CACHE_16: Operation(ScsiDisk.synchronize_cache, medium=True),
    c.SEEK_6: Operation(ScsiDisk.seek, medium=True),
    c.SEEK_10: Operation(ScsiDisk.seek, medium=True),
    c.REZERO_UNIT: Operation(ScsiDisk.seek, medium=True),
    c.FORMAT_UNIT: Operation(ScsiDisk.format_unit, Direction.OUT, fixed=_FORMAT_HEADER, medium=True),
}
