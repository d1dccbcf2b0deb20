"""A vhost-user front end's session: the memory that it shares, its rings, and a virtio device that works on them.

Specification: "Vhost-user Protocol".  A thread waits for messages and kicks; the device is touched with the machine
lock held.  The front end shares its guest's RAM, which it must not make shorter meanwhile: who may connect is trusted
that far, as with every back end.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import POLLIN, poll
from struct import error as struct_error
from typing import Any

from pyvm.block.export.vhost_user_protocol import (
    CONFIG,
    F_PROTOCOL_FEATURES,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FLAG_VERSION_MASK,
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    PROTOCOL_F_CONFIG,
    PROTOCOL_F_MQ,
    PROTOCOL_F_REPLY_ACK,
    REGION,
    REGIONS,
    RING,
    RING_ADDRESS,
    RING_INDEX_MASK,
    RING_NO_FD,
    U64,
    VERSION,
    Message,
)
from pyvm.devices.virtio.constants import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
)
from pyvm.devices.virtio.device import VirtioDevice
from pyvm.devices.virtio.queue import QueueState
from pyvm.memory import GuestMemory, RamBlock, map_fixed
from pyvm.state import StateError

_RING_FEATURES = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
_PROTOCOL_FEATURES = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIG
_PAGE = mmap.PAGESIZE
_MOST_MEMORY = 1 << 46
"""More does not fit into the half of the address space that a process has."""
_MAP_NORESERVE = 0x4000
_ONE = U64.pack(1)


class SessionError(Exception):
    """The front end broke the protocol, or wants what there is not."""


class SharedMemory:
    """The RAM of another program's guest, region after region in one mapping.  Raises SessionError."""

    def __init__(self, regions: Sequence[tuple[int, int, int, int]], fds: Sequence[int]) -> None:
        self._regions = regions
        places, total = [], 0
        for (gpa, size, address, offset), fd in zip(regions, fds, strict=True):
            if not size or max(gpa + size, address + size, offset + size) >= 1 << 63:
                raise SessionError("a memory region of an impossible size")
            if os.fstat(fd).st_size < offset + size:
                raise SessionError("a memory region behind the end of its file")
            slack = offset % _PAGE
            places.append(total + slack)
            total += -(-(size + slack) // _PAGE) * _PAGE
        if total > _MOST_MEMORY:
            raise SessionError("more memory than there are addresses for")
        self.mapping = mmap.mmap(-1, total, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        blocks = []
        for (gpa, size, _, offset), place, fd in zip(regions, places, fds, strict=True):
            slack = offset % _PAGE
            map_fixed(base + place - slack, size + slack, mmap.MAP_SHARED, fd, offset - slack)
            blocks.append(RamBlock(gpa, size, place))
        self.guest = GuestMemory(total, sorted(blocks, key=lambda block: block.gpa), self)

    def discard(self, offset: int, length: int) -> None:
        """Nobody gives memory back here."""

    def gpa(self, address: int) -> int:
        """Return the GPA of an address in the front end."""
        for gpa, size, start, _ in self._regions:
            if start <= address < start + size:
                return address - start + gpa
        raise SessionError(f"address {address:#x} is in no memory region")


class _RingSetup:
    """What the front end has said about one ring."""

    def __init__(self) -> None:
        self.size = 0
        self.addresses: tuple[int, int, int] | None = None
        """In the front end: descriptors, available ring, used ring."""
        self.base = 0
        self.enabled = False
        self.kick = -1
        self.call = -1


class VhostSession:
    """One front end.  `make_device` returns the device that it drives; `lock` is the machine lock."""

    def __init__(self, sock: socket.socket, device: VirtioDevice[Any], drain: Callable[[], None], lock: Any) -> None:
        self._socket = sock
        self._device = device
        self._drain = drain
        self._lock = lock
        self._memory: SharedMemory | None = None
        self._features = 0
        self._acknowledges = False
        self._rings = [_RingSetup() for _ in device.queues]
        self._poll = poll()
        self._kicks: dict[int, int] = {}
        """Rings by the descriptors that tell of requests in them."""
        self._handlers: dict[int, Callable[[bytes, list[int]], bytes | None]] = {
            Message.GET_FEATURES: self._get_features,
            Message.SET_FEATURES: self._set_features,
            Message.SET_OWNER: lambda payload, fds: None,
            Message.RESET_OWNER: lambda payload, fds: None,
            Message.SET_MEM_TABLE: self._set_memory,
            Message.SET_VRING_NUM: self._set_size,
            Message.SET_VRING_ADDR: self._set_addresses,
            Message.SET_VRING_BASE: self._set_base,
            Message.GET_VRING_BASE: self._get_base,
            Message.SET_VRING_KICK: self._set_kick,
            Message.SET_VRING_CALL: self._set_call,
            Message.SET_VRING_ERR: lambda payload, fds: None,
            Message.GET_PROTOCOL_FEATURES: lambda payload, fds: U64.pack(_PROTOCOL_FEATURES),
            Message.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Message.GET_QUEUE_NUM: lambda payload, fds: U64.pack(len(self._rings)),
            Message.SET_VRING_ENABLE: self._enable,
            Message.GET_CONFIG: self._get_config,
            Message.SET_CONFIG: self._set_config,
        }

    def run(self) -> None:
        """Serve the front end until it leaves, breaks the protocol, or the socket is shut down."""
        self._poll.register(self._socket, POLLIN)
        try:
            while True:
                for descriptor, _ in self._poll.poll():
                    if descriptor in self._kicks:
                        self._kicked(descriptor)
                    elif descriptor == self._socket.fileno():
                        self._take_message()
        except (SessionError, struct_error, StateError, ValueError, OSError, EOFError):
            pass  # the front end's business
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._drain()
            self._device.reset()
        for ring in self._rings:
            for fd in (ring.kick, ring.call):
                if fd >= 0:
                    os.close(fd)
        self._socket.close()

    def _kicked(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            os.read(descriptor, 8)
        with self._lock:
            self._device.queue_notify(self._kicks[descriptor])

    # ---- Messages

    def _take_message(self) -> None:
        header, fds = self._receive_header()
        try:
            request, flags, length = HEADER.unpack(header)
            if flags & FLAG_VERSION_MASK != VERSION or length > MAX_PAYLOAD:
                raise SessionError("a message of another protocol")
            payload = self._receive(length)
            handler = self._handlers.get(request)
            if handler is None:
                raise SessionError(f"message {request} was not agreed on")
            with self._lock:
                reply = handler(payload, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if reply is None and flags & FLAG_NEED_REPLY and self._acknowledges:
            reply = U64.pack(0)
        if reply is not None:
            self._socket.sendall(HEADER.pack(request, VERSION | FLAG_REPLY, len(reply)) + reply)

    def _receive_header(self) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(MAX_FDS * 4)
        data, ancillary, _, _ = self._socket.recvmsg(HEADER.size, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
        numbers = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(content[: len(content) // 4 * 4])
        if len(data) < HEADER.size:
            for fd in numbers:
                os.close(fd)
            raise EOFError
        return data, list(numbers)

    def _receive(self, length: int) -> bytes:
        data = self._socket.recv(length, socket.MSG_WAITALL) if length else b""
        if len(data) < length:
            raise EOFError
        return data

    # ---- Features and configuration

    def _get_features(self, payload: bytes, fds: list[int]) -> bytes:
        del payload, fds
        return U64.pack(self._device.modern_features | _RING_FEATURES | F_PROTOCOL_FEATURES)

    def _set_features(self, payload: bytes, fds: list[int]) -> None:
        del fds
        (self._features,) = U64.unpack(payload)

    def _set_protocol_features(self, payload: bytes, fds: list[int]) -> None:
        del fds
        (features,) = U64.unpack(payload)
        if features & ~_PROTOCOL_FEATURES:
            raise SessionError("protocol features that were not offered")
        self._acknowledges = bool(features & PROTOCOL_F_REPLY_ACK)

    def _get_config(self, payload: bytes, fds: list[int]) -> bytes:
        del fds
        offset, size, flags = CONFIG.unpack_from(payload)
        content = self._device.config()[offset : offset + size].ljust(min(size, MAX_PAYLOAD - CONFIG.size), b"\0")
        return CONFIG.pack(offset, len(content), flags) + content

    def _set_config(self, payload: bytes, fds: list[int]) -> None:
        del fds
        offset, size, _ = CONFIG.unpack_from(payload)
        content = payload[CONFIG.size :]
        if len(content) != size or offset + size > self._device.config_size:
            raise SessionError("configuration that does not exist")
        self._device.write_config(offset, content)

    # ---- Memory and rings

    def _set_memory(self, payload: bytes, fds: list[int]) -> None:
        count, _ = REGIONS.unpack_from(payload)
        if not count or count != len(fds) or len(payload) != REGIONS.size + count * REGION.size:
            raise SessionError("not as many memory regions as descriptors")
        regions = list(REGION.iter_unpack(payload[REGIONS.size :]))
        running = [index for index, queue in enumerate(self._device.queues) if queue.ready]
        for index in running:
            self._stop(index)
        memory = SharedMemory(regions, fds)
        if self._memory is None:
            self._device.attach(memory.guest, _RING_FEATURES, self._interrupt, lambda: None)
        else:
            self._device.memory = memory.guest
            for queue in self._device.queues:
                queue.attach(memory.guest)
        self._memory = memory
        for index in running:
            self._update(index)

    def _ring(self, index: int) -> _RingSetup:
        if index >= len(self._rings):
            raise SessionError(f"there is no ring {index}")
        return self._rings[index]

    def _set_size(self, payload: bytes, fds: list[int]) -> None:
        del fds
        index, size = RING.unpack(payload)
        self._ring(index).size = size

    def _set_addresses(self, payload: bytes, fds: list[int]) -> None:
        del fds
        index, _, table, used, available, _ = RING_ADDRESS.unpack(payload)
        self._ring(index).addresses = (table, available, used)

    def _set_base(self, payload: bytes, fds: list[int]) -> None:
        del fds
        index, base = RING.unpack(payload)
        self._ring(index).base = base & 0xFFFF

    def _get_base(self, payload: bytes, fds: list[int]) -> bytes:
        """Stop a ring, and tell where it is."""
        del fds
        index, _ = RING.unpack(payload)
        ring = self._ring(index)
        self._stop(index)
        self._drop_kick(ring)
        return RING.pack(index, ring.base)

    def _set_kick(self, payload: bytes, fds: list[int]) -> None:
        index = self._with_descriptor(payload, fds)
        ring = self._ring(index)
        self._drop_kick(ring)
        if not fds:
            raise SessionError("a ring that has to be polled")
        ring.kick = fds.pop(0)
        os.set_blocking(ring.kick, False)
        self._kicks[ring.kick] = index
        self._poll.register(ring.kick, POLLIN)
        if not self._features & F_PROTOCOL_FEATURES:
            ring.enabled = True
        self._update(index)

    def _drop_kick(self, ring: _RingSetup) -> None:
        if ring.kick >= 0:
            self._poll.unregister(ring.kick)
            del self._kicks[ring.kick]
            os.close(ring.kick)
            ring.kick = -1

    def _set_call(self, payload: bytes, fds: list[int]) -> None:
        ring = self._ring(self._with_descriptor(payload, fds))
        if ring.call >= 0:
            os.close(ring.call)
        ring.call = fds.pop(0) if fds else -1
        if ring.call >= 0:
            os.set_blocking(ring.call, False)

    def _with_descriptor(self, payload: bytes, fds: list[int]) -> int:
        (value,) = U64.unpack(payload)
        if bool(value & RING_NO_FD) is bool(fds):
            raise SessionError("a descriptor is missing, or too much")
        return int(value & RING_INDEX_MASK)

    def _enable(self, payload: bytes, fds: list[int]) -> None:
        del fds
        index, enabled = RING.unpack(payload)
        self._ring(index).enabled = bool(enabled)
        self._update(index)

    # ---- Work

    def _interrupt(self, index: int) -> None:
        call = self._rings[index].call
        if call >= 0:
            with suppress(OSError):
                os.write(call, _ONE)

    def _update(self, index: int) -> None:
        """Begin or cease to work on a ring."""
        ring, queue = self._rings[index], self._device.queues[index]
        wanted = ring.enabled and ring.kick >= 0 and ring.addresses is not None and self._memory is not None
        if wanted and not queue.ready:
            self._start(index)
        elif not wanted and queue.ready:
            self._stop(index)

    def _start(self, index: int) -> None:
        ring, queue, device, memory = self._rings[index], self._device.queues[index], self._device, self._memory
        assert ring.addresses is not None
        assert memory is not None
        if not any(queue.ready for queue in device.queues):
            self._negotiate()
        table, available, used = (memory.gpa(address) for address in ring.addresses)
        # What was taken and not given back by somebody before us is taken again.
        base = memory.guest.read_u16(used + 2)
        state = QueueState(ring.size, True, table, available, used, base, base)
        queue.check(state, device.features)
        queue.load(state, device.features)
        device.queue_notify(index)

    def _negotiate(self) -> None:
        """Bring the device to where a driver has it when it begins to work."""
        device = self._device
        features = self._features & (device.modern_features | _RING_FEATURES)
        device.reset()
        modern = bool(features & F_VERSION_1)
        device.write_features(features, legacy=not modern)
        started = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK
        device.set_status(started | STATUS_FEATURES_OK if modern else started)

    def _stop(self, index: int) -> None:
        queue = self._device.queues[index]
        if queue.ready:
            self._drain()
            self._rings[index].base = queue.save().next_avail
            queue.disable()
