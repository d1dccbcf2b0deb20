"""Virtio block device (virtio 1.2, section 5.2).

A request is a header the driver gives (u32 type, u32 reserved, u64 sector), data either way, and a status byte the
device writes last.  Data is moved straight between guest RAM and the back end.  Sectors are 512 bytes everywhere.

Requests are carried out by the back end while the guest goes on, and end in any order.  Those that come together are
submitted together, neighbouring reads and writes as one.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.vectors import Buffers, join
from pyvm.devices.properties import Properties
from pyvm.devices.virtio.blk_options import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_RO,
    F_WRITE_ZEROES,
    PROPERTIES,
    SECTOR,
    BlkOptions,
)
from pyvm.devices.virtio.constants import ID_BLOCK, MAX_QUEUE_SIZE, MAX_QUEUES
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import ChainState, VirtQueue, check_chains
from pyvm.devices.virtio.ring import Chain
from pyvm.state import StateError, flag, record, sequence

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.node import Node

# Configuration space (5.2.4): u64 capacity, u32 size_max, u32 seg_max, geometry {u16 cylinders, u8 heads, u8 sectors},
# u32 blk_size, topology {u8 physical_block_exp, u8 alignment_offset, u16 min_io_size, u32 opt_io_size}, u8 writeback,
# u8 unused, u16 num_queues, u32 max_discard_sectors, u32 max_discard_seg, u32 discard_sector_alignment,
# u32 max_write_zeroes_sectors, u32 max_write_zeroes_seg, u8 write_zeroes_may_unmap, 3 unused
_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
_CONFIG_WCE = 32

# Request header, and segment of discard and write zeroes (5.2.6)
_HEADER = struct.Struct("<IIQ")
_HEADER_SIZE = _HEADER.size
_RANGE = struct.Struct("<QII")
_RANGE_F_UNMAP = 1
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
_T_BARRIER = 1 << 31
"""Legacy drivers set it to keep order; what they want is there without it, as they wait before a flush."""
_SERIAL_LENGTH = 20

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

_RANGES_PER_REQUEST = 1
_FIXED_SEG_MAX = 126
"""What `seg-max-adjust=off` tells the driver, whatever the size of the queue."""
_REQUESTS_LIMIT = MAX_QUEUES * MAX_QUEUE_SIZE

# Merging: one request to the back end has at most so many buffers (the host's IOV_MAX) and bytes; merging spares work
# that each request takes, which does not matter for larger ones.
_MERGE_BUFFERS = 1024
_MERGE_BYTES = 1 << 20

# Geometry for those who still ask: QEMU's translation-free guess
_HEADS = 16
_SECTORS_PER_TRACK = 63
_MAX_CYLINDERS = 16383
_MIN_CYLINDERS = 2


class _RequestError(Exception):
    """A request ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Request:
    """A request that the back end has, or is about to get."""

    __slots__ = ("buffers", "chain", "end", "offset", "queue", "written")

    def __init__(self, queue: VirtQueue, chain: Chain, written: int) -> None:
        self.queue = queue
        self.chain = chain
        self.written = written
        """Bytes of writable segments, which the driver gets back."""
        self.offset = 0
        self.end = 0
        self.buffers: Buffers = ()


_offset = attrgetter("offset")


class BlkState(VirtioState):
    """Migratable state; `requests` are those in flight, in the order in which the driver made them."""

    writeback: bool = flag(True)
    requests: list[ChainState] = sequence(record(ChainState), _REQUESTS_LIMIT)


class VirtioBlk(VirtioDevice[BlkState]):
    """A disk.  The keywords are the fields of :class:`BlkOptions`.

    A node in place of a back end is used as it is: its requests end before the call returns.
    """

    device_id = ID_BLOCK
    name = "virtio-blk"
    state_type = BlkState
    PROPERTIES: ClassVar[Properties] = PROPERTIES
    tray_open = False
    medium_locked = False

    def __init__(self, disk: BlockBackend | Node, **keywords: Any) -> None:
        from pyvm.block.backend import BlockBackend

        options = self.options = BlkOptions(**keywords)
        backend = self.backend = disk if isinstance(disk, BlockBackend) else BlockBackend(disk)
        self._initial_writeback = backend.write_cache if options.write_cache is None else options.write_cache
        backend.write_cache = self._initial_writeback
        features = options.features
        features |= F_RO if backend.read_only else 0
        features |= F_FLUSH if options.config_wce or self._initial_writeback else 0
        super().__init__([options.queue_size] * options.num_queues, features, options.config_size)
        self._serial = (backend.serial if options.serial is None else options.serial).encode()[:_SERIAL_LENGTH]
        self._block_mask = options.logical - 1
        self._in_flight: dict[_Request, None] = {}
        """What the back end has; requests that are no longer here when they end are nobody's business."""
        self._waiting: list[_Request] = []
        """Requests of a loaded state, to be carried out when the device runs."""
        self._submitting = False
        self._ended: set[VirtQueue] = set()
        """Queues with requests that ended while others were submitted."""
        backend.attach(self)
        backend.io_status_enabled = True

    # Requests

    def handle_queue(self, queue: VirtQueue) -> None:
        """Take all requests in `queue`."""
        self._submitting = True
        try:
            if self._waiting:
                self._restart()
            batch = _Batch(self)
            while (chain := queue.pop()) is not None:
                if not self._take(queue, chain, batch):
                    break
            batch.submit()
        finally:
            self._submitting = False
        queue.flush()
        if self._ended:
            self._flush_ended()

    def _flush_ended(self) -> None:
        ended, self._ended = self._ended, set()
        for queue in ended:
            queue.flush()

    def _take(self, queue: VirtQueue, chain: Chain, batch: _Batch) -> bool:
        """Start one request; return False where it is none, which breaks the device."""
        readable, writable = chain.readable, chain.writable
        room = writable.nbytes
        if readable and len(readable[0]) >= _HEADER_SIZE:
            kind, _, sector = _HEADER.unpack_from(readable[0])
        elif chain.readable_bytes >= _HEADER_SIZE:
            kind, _, sector = _HEADER.unpack(chain.gather(_HEADER_SIZE))
        else:
            room = 0
        if not room:
            self.fail("request without a whole header or without a status byte")
            return False
        request = _Request(queue, chain, room)
        self._in_flight[request] = None
        try:
            if kind == T_IN:
                request.buffers = writable.span(0, room - 1)
                self._place(request, sector, room - 1)
                batch.add(request, is_write=False)
            elif kind == T_OUT:
                self._write(request, sector, batch)
            else:
                batch.submit()
                self._other(request, kind & ~_T_BARRIER, sector, batch)
        except _RequestError as refused:
            self._end(request, refused.status)
        return True

    def _other(self, request: _Request, kind: int, sector: int, batch: _Batch) -> None:
        """Start a request that is no plain read or write."""
        if kind == T_FLUSH:
            self.backend.flush(lambda error: self._done(request, error))
        elif kind == T_GET_ID:
            room = request.written - 1
            request.chain.scatter(self._serial.ljust(_SERIAL_LENGTH, b"\0")[:room].ljust(min(room, 4096), b"\0"))
            self._end(request, S_OK)
        elif kind in _RANGE_FEATURES and self.offered_features & _RANGE_FEATURES[kind]:
            self._ranges(request, kind)
        elif kind == T_IN:
            request.buffers = request.chain.writable.span(0, request.written - 1)
            self._place(request, sector, request.written - 1)
            batch.add(request, is_write=False)
        elif kind == T_OUT:
            self._write(request, sector, batch)
        else:
            self._end(request, S_UNSUPP)

    def _write(self, request: _Request, sector: int, batch: _Batch) -> None:
        request.buffers, length = _data_out(request.chain)
        self._place(request, sector, length)
        batch.add(request, is_write=True)

    def _place(self, request: _Request, sector: int, length: int) -> None:
        """Set where the request is on the disk; refuse one that is not whole blocks or not on the disk."""
        request.offset = offset = sector * SECTOR
        request.end = end = offset + length
        if (offset | length) & self._block_mask or end > self.backend.size:
            raise _RequestError(S_IOERR)

    def _ranges(self, request: _Request, kind: int) -> None:
        """Discard, or write zeroes to, the range given as data (5.2.6.2)."""
        backend = self.backend
        buffers, length = _data_out(request.chain)
        if backend.read_only:
            raise _RequestError(S_IOERR)
        if not length or length > _RANGES_PER_REQUEST * _RANGE.size or length % _RANGE.size:
            raise _RequestError(S_UNSUPP)
        sector, sectors, flags = _RANGE.unpack(b"".join(buffers))
        allowed = _RANGE_F_UNMAP if kind == T_WRITE_ZEROES else 0
        if flags & ~allowed:
            raise _RequestError(S_UNSUPP)
        options = self.options
        if sectors > (options.max_discard_sectors if kind == T_DISCARD else options.max_write_zeroes_sectors):
            raise _RequestError(S_IOERR)
        length = sectors * SECTOR
        self._place(request, sector, length)
        if not length:
            self._end(request, S_OK)
        elif kind == T_DISCARD:
            backend.discard(request.offset, length, lambda error: self._done(request, error))
        else:
            unmap = bool(flags & _RANGE_F_UNMAP)
            backend.write_zeroes(request.offset, length, unmap, lambda error: self._done(request, error))

    def _done(self, request: _Request, error: int) -> None:
        """The back end is done with `request`."""
        self._end(request, S_IOERR if error else S_OK)
        if not self._submitting:
            request.queue.flush()

    def group_done(self, group: Sequence[_Request], error: int) -> None:
        """The back end is done with requests that were carried out as one."""
        status = S_IOERR if error else S_OK
        for request in group:
            self._end(request, status)
        if not self._submitting:
            for queue in {request.queue for request in group}:
                queue.flush()

    def _end(self, request: _Request, status: int) -> None:
        """Give the request back to the driver, unless it was forgotten by a reset; the interrupt is the caller's."""
        if request not in self._in_flight:
            return
        del self._in_flight[request]
        chain, queue = request.chain, request.queue
        chain.writable[-1][-1] = status
        queue.push(chain, request.written)
        if self._submitting:
            self._ended.add(queue)

    def _restart(self) -> None:
        """Carry out the requests of a loaded state."""
        waiting, self._waiting = self._waiting, []
        batch = _Batch(self)
        for request in waiting:
            if not self._take(request.queue, request.chain, batch):
                return
        batch.submit()

    # What the back end tells

    def media_changed(self, loaded: bool) -> None:
        """A disk of this kind is not removable; its length may be another one now."""
        del loaded
        self.config_changed()

    def eject_requested(self, force: bool) -> None:
        """There is nothing to eject."""

    def resized(self) -> None:
        """The back end has a new size: tell the driver."""
        self.config_changed()

    # Configuration and life

    def config(self) -> bytes:
        """Return the configuration space."""
        options = self.options
        sectors = self.backend.size // SECTOR
        logical = options.logical
        cylinders = min(max(sectors // (_HEADS * _SECTORS_PER_TRACK), _MIN_CYLINDERS), _MAX_CYLINDERS)
        geometry = (options.cyls, options.heads, options.secs) if options.cyls else None
        return _CONFIG.pack(
            sectors,
            0,
            self.queues[0].max_size - 2 if options.seg_max_adjust else _FIXED_SEG_MAX,
            *(geometry or (cylinders, _HEADS, _SECTORS_PER_TRACK)),
            logical,
            (options.physical // logical).bit_length() - 1,
            0,
            options.min_io_size // logical,
            options.opt_io_size // logical,
            int(self.backend.write_cache),
            len(self.queues),
            options.max_discard_sectors,
            _RANGES_PER_REQUEST,
            options.discard_alignment // SECTOR,
            options.max_write_zeroes_sectors,
            _RANGES_PER_REQUEST,
            1,
        )[: self.config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Let the driver switch the write cache; what it held is made safe when it goes off."""
        if offset != _CONFIG_WCE or not self.has(F_CONFIG_WCE):
            return
        was_on, self.backend.write_cache = self.backend.write_cache, bool(data[0])
        if was_on and not data[0]:
            self.backend.flush(self._cache_flushed)

    def _cache_flushed(self, error: int) -> None:
        if error and error != errno.ECANCELED:
            self.on_error(f"{self.name}: flush: {os.strerror(error)}")

    def features_changed(self) -> None:
        """A driver that cannot flush gets no write cache (5.2.6.2)."""
        if not self.has(F_CONFIG_WCE):
            self.backend.write_cache = self._initial_writeback and (not self.status or self.has(F_FLUSH))

    def resume(self) -> None:
        """Go on after :meth:`pause`, or with a loaded state."""
        super().resume()
        if self._waiting and self.running:
            for queue in self.queues:
                self.handle_queue(queue)

    def reset_device(self) -> None:
        """Forget all requests, and return to the cache mode of power-on."""
        self._in_flight.clear()
        self._waiting.clear()
        self.backend.drain(cancel=True)
        self.backend.write_cache = self._initial_writeback

    def reset_queue(self, queue: VirtQueue) -> None:
        """Let requests end that came through `queue`, which is about to go away."""
        self.backend.drain(cancel=True)
        self._waiting = [request for request in self._waiting if request.queue is not queue]

    # State

    def save_device(self) -> BlkState:
        """Return the cache mode and the requests in flight."""
        requests = [*self._in_flight, *self._waiting]
        return BlkState(
            writeback=self.backend.write_cache,
            requests=[request.queue.save_chain(request.chain) for request in requests if request.queue.ready],
        )

    def check_device(self, state: BlkState) -> None:
        """Verify that the requests in flight are those that the rings say."""
        check_chains(state.queues, state.features, state.requests)

    def load_device(self, state: BlkState) -> None:
        """Take over the cache mode; the requests wait for :meth:`resume`."""
        self.backend.write_cache = state.writeback
        for saved in state.requests:
            queue = self.queues[saved.queue]
            chain = queue.load_chain(saved)
            room = chain.writable_bytes
            if not room or chain.readable_bytes < _HEADER_SIZE:
                raise StateError(f"{self.name}: a request in flight that is none")
            self._waiting.append(_Request(queue, chain, room))


class _Batch:
    """Reads, or writes, that were made together."""

    __slots__ = ("_device", "_is_write", "_requests")

    def __init__(self, device: VirtioBlk) -> None:
        self._device = device
        self._requests: list[_Request] = []
        self._is_write = False

    def add(self, request: _Request, *, is_write: bool) -> None:
        """Take up a request; those of the other kind are submitted before."""
        if is_write != self._is_write:
            self.submit()
            self._is_write = is_write
        self._requests.append(request)

    def submit(self) -> None:
        """Hand all requests to the back end, those that meet as one."""
        requests = self._requests
        if not requests:
            return
        self._requests = []
        device = self._device
        if len(requests) == 1 or not device.options.request_merging:
            for request in requests:
                self._start(request.offset, request.buffers, (request,))
            return
        requests.sort(key=_offset)
        first = 0
        while first < len(requests):
            last = self._run_end(requests, first)
            group = requests[first:last]
            buffers = group[0].buffers
            if len(group) > 1:
                buffers = join([request.buffers for request in group])
                device.backend.stats.merge(int(self._is_write), len(group) - 1)
            self._start(group[0].offset, buffers, group)
            first = last

    @staticmethod
    def _run_end(requests: list[_Request], first: int) -> int:
        """Return the index behind the requests that meet, from `first` on."""
        request = requests[first]
        end, count, index = request.end, len(request.buffers), first + 1
        limit = request.offset + _MERGE_BYTES
        while index < len(requests):
            request = requests[index]
            count += len(request.buffers)
            if request.offset != end or request.end > limit or count > _MERGE_BUFFERS:
                break
            end = request.end
            index += 1
        return index

    def _start(self, offset: int, buffers: Buffers, group: Sequence[_Request]) -> None:
        device = self._device
        done: Callable[[int], None]
        if len(group) == 1:
            only = group[0]
            done = lambda error: device._done(only, error)  # noqa: E731 - the batch is a part of the device
        else:
            done = lambda error: device.group_done(group, error)  # noqa: E731
        if self._is_write:
            device.backend.write(offset, buffers, done)
        else:
            device.backend.read(offset, buffers, done)


_RANGE_FEATURES = {T_DISCARD: F_DISCARD, T_WRITE_ZEROES: F_WRITE_ZEROES}


def _data_out(chain: Chain) -> tuple[Buffers, int]:
    """Return the readable segments behind the header, and their length in bytes."""
    data = chain.readable.span(_HEADER_SIZE, chain.readable.nbytes)
    return data, data.nbytes
