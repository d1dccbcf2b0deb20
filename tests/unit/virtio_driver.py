"""A small virtio driver for tests: builds rings in guest RAM by hand, as a guest's driver does."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyvm.devices.virtio.constants import (
    F_ANY_LAYOUT,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NOTIFY_ON_EMPTY,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
)
from pyvm.devices.virtio.device import VirtioDevice
from pyvm.memory import GuestMemory, RamBlock
from tests.unit.scratch_ram import scratch_ram

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 0x80, 0x8000
RAM_SIZE = 4 << 20
ALL_COMMON = (
    F_VERSION_1 | F_RING_PACKED | F_RING_RESET | F_EVENT_IDX | F_INDIRECT_DESC | F_ANY_LAYOUT | F_NOTIFY_ON_EMPTY
)


def make_memory(size: int = RAM_SIZE, blocks: list[RamBlock] | None = None) -> GuestMemory:
    """Return RAM, from GPA 0 on unless `blocks` says otherwise."""
    return scratch_ram(size, blocks or [RamBlock(0, size, 0)])


@dataclass
class Buffer:
    """What was made available: its segments as (GPA, length), and what the device said when it was used."""

    token: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    slots: int = 1
    written: int | None = None

    def data(self, memory: GuestMemory) -> bytes:
        """Return what the device wrote."""
        assert self.written is not None
        return b"".join(memory.read(gpa, length) for gpa, length in self.writable)[: self.written]


class Arena:
    """Hands out guest RAM."""

    def __init__(self, memory: GuestMemory, start: int = 0x1000) -> None:
        self.memory = memory
        self.next = start

    def take(self, length: int, align: int = 16) -> int:
        """Return the GPA of `length` unused bytes."""
        gpa = -(-self.next // align) * align
        self.next = gpa + length
        assert self.next <= self.memory.size, "the test needs more RAM"
        return gpa

    def put(self, data: bytes) -> tuple[int, int]:
        """Store `data`; return where, and its length."""
        gpa = self.take(max(len(data), 1))
        self.memory.write(gpa, data)
        return gpa, len(data)


class SplitDriver:
    """The driver's side of a split ring."""

    def __init__(self, arena: Arena, size: int, *, legacy: bool = False) -> None:
        self.arena = arena
        self.memory = arena.memory
        self.size = size
        if legacy:
            self.desc = arena.take(0, 4096)
            self.avail = self.desc + 16 * size
            self.used_ring = -(-(self.avail + 6 + 2 * size) // 4096) * 4096
            arena.next = self.used_ring + 6 + 8 * size
        else:
            self.desc = arena.take(16 * size)
            self.avail = arena.take(6 + 2 * size)
            self.used_ring = arena.take(6 + 8 * size)
        self.avail_idx = 0
        self.last_used = 0
        self.free = list(range(size))
        self.outstanding: dict[int, Buffer] = {}
        self._slots_of: dict[int, list[int]] = {}

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Return the GPAs of the three areas."""
        return self.desc, self.avail, self.used_ring

    def write_desc(self, index: int, gpa: int, length: int, flags: int, following: int = 0) -> None:
        """Fill in one descriptor of the table."""
        self.memory.write(self.desc + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def make_available(self, head: int) -> None:
        """Put a chain into the available ring."""
        self.memory.write_u16(self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write_u16(self.avail + 2, self.avail_idx)

    def add(
        self, readable: Sequence[bytes | tuple[int, int]] = (), writable: Sequence[int] = (), *, indirect: bool = False
    ) -> Buffer:
        """Make a buffer available."""
        given = [item if isinstance(item, tuple) else self.arena.put(item) for item in readable]
        taken = [(self.arena.take(length), length) for length in writable]
        parts = [(gpa, length, 0) for gpa, length in given] + [(gpa, length, WRITE) for gpa, length in taken]
        if indirect:
            table = self.arena.take(16 * len(parts))
            for index, (gpa, length, flags) in enumerate(parts):
                more = NEXT if index + 1 < len(parts) else 0
                self.memory.write(table + 16 * index, struct.pack("<QIHH", gpa, length, flags | more, index + 1))
            slots = [self.free.pop(0)]
            self.write_desc(slots[0], table, 16 * len(parts), INDIRECT)
        else:
            slots = [self.free.pop(0) for _ in parts]
            for position, (gpa, length, flags) in enumerate(parts):
                last = position + 1 == len(parts)
                following = 0 if last else slots[position + 1]
                self.write_desc(slots[position], gpa, length, flags | (0 if last else NEXT), following)
        buffer = Buffer(slots[0], given, taken, len(slots))
        self.outstanding[slots[0]] = buffer
        self._slots_of[slots[0]] = slots
        self.make_available(slots[0])
        return buffer

    def collect(self) -> list[Buffer]:
        """Return the buffers that the device has used since the last call."""
        done = []
        while self.last_used != self.memory.read_u16(self.used_ring + 2):
            element = self.used_ring + 4 + 8 * (self.last_used % self.size)
            buffer = self.outstanding.pop(self.memory.read_u32(element))
            buffer.written = self.memory.read_u32(element + 4)
            self.free += self._slots_of.pop(buffer.token)
            done.append(buffer)
            self.last_used = (self.last_used + 1) & 0xFFFF
        return done

    def suppress_interrupts(self, suppress: bool = True) -> None:
        """Without event index: ask for no interrupts."""
        self.memory.write_u16(self.avail, int(suppress))

    def interrupt_at(self, ahead: int) -> None:
        """With event index: ask for an interrupt when `ahead` + 1 further buffers are used."""
        self.memory.write_u16(self.avail + 4 + 2 * self.size, (self.last_used + ahead) & 0xFFFF)

    def kick_wanted(self, added: int) -> bool:
        """With event index: whether the device wants to hear of the last `added` buffers."""
        event = self.memory.read_u16(self.used_ring + 4 + 8 * self.size)
        return (self.avail_idx - event - 1) & 0xFFFF < added


class PackedDriver:
    """The driver's side of a packed ring."""

    def __init__(self, arena: Arena, size: int) -> None:
        self.arena = arena
        self.memory = arena.memory
        self.size = size
        self.ring = arena.take(16 * size)
        self.driver_event = arena.take(4)
        self.device_event = arena.take(4)
        self.next = 0
        self.wrap = True
        self.used_next = 0
        self.used_wrap = True
        self.outstanding: dict[int, Buffer] = {}
        self.ids = list(range(size))

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Return the GPAs of the three areas."""
        return self.ring, self.driver_event, self.device_event

    def write_slot(self, gpa: int, length: int, buffer_id: int, flags: int) -> None:
        """Make one descriptor available and go on to the next."""
        flags |= AVAIL if self.wrap else USED
        self.memory.write(self.ring + 16 * self.next, struct.pack("<QIHH", gpa, length, buffer_id, flags))
        self.next += 1
        if self.next == self.size:
            self.next = 0
            self.wrap = not self.wrap

    def add(
        self, readable: Sequence[bytes | tuple[int, int]] = (), writable: Sequence[int] = (), *, indirect: bool = False
    ) -> Buffer:
        """Make a buffer available."""
        given = [item if isinstance(item, tuple) else self.arena.put(item) for item in readable]
        taken = [(self.arena.take(length), length) for length in writable]
        parts = [(gpa, length, 0) for gpa, length in given] + [(gpa, length, WRITE) for gpa, length in taken]
        buffer_id = self.ids.pop(0)
        if indirect:
            table = self.arena.take(16 * len(parts))
            for index, (gpa, length, flags) in enumerate(parts):
                self.memory.write(table + 16 * index, struct.pack("<QIHH", gpa, length, 0, flags))
            self.write_slot(table, 16 * len(parts), buffer_id, INDIRECT)
        else:
            for position, (gpa, length, flags) in enumerate(parts):
                more = NEXT if position + 1 < len(parts) else 0
                self.write_slot(gpa, length, buffer_id, flags | more)
        buffer = Buffer(buffer_id, given, taken, 1 if indirect else len(parts))
        self.outstanding[buffer_id] = buffer
        return buffer

    def collect(self) -> list[Buffer]:
        """Return the buffers that the device has used since the last call."""
        done = []
        while True:
            _, length, buffer_id, flags = struct.unpack("<QIHH", self.memory.read(self.ring + 16 * self.used_next, 16))
            if flags & (AVAIL | USED) != (AVAIL | USED if self.used_wrap else 0) or buffer_id not in self.outstanding:
                return done
            buffer = self.outstanding.pop(buffer_id)
            buffer.written = length
            self.ids.append(buffer_id)
            self.used_next += buffer.slots
            if self.used_next >= self.size:
                self.used_next -= self.size
                self.used_wrap = not self.used_wrap
            done.append(buffer)

    def suppress_interrupts(self, suppress: bool = True) -> None:
        """Ask for no interrupts."""
        self.memory.write_u16(self.driver_event + 2, int(suppress))

    def interrupt_at(self, ahead: int) -> None:
        """With event index: ask for an interrupt when the descriptor `ahead` places further on is used."""
        place, wrap = self.used_next + ahead, self.used_wrap
        if place >= self.size:
            place, wrap = place - self.size, not wrap
        self.memory.write_u16(self.driver_event, place | wrap << 15)
        self.memory.write_u16(self.driver_event + 2, 2)

    def kick_wanted(self, added: int) -> bool:
        """Whether the device wants to hear of the last `added` descriptors."""
        position = self.memory.read_u16(self.device_event)
        flags = self.memory.read_u16(self.device_event + 2)
        if flags != 2:
            return flags == 0
        event = position & 0x7FFF
        if bool(position & 0x8000) != self.wrap:
            event -= self.size
        return (self.next - event - 1) & 0xFFFF < added


RingDriver = SplitDriver | PackedDriver


@dataclass
class Harness:
    """A device with a driver that set it up, and what the driver was told."""

    device: Any
    memory: GuestMemory
    arena: Arena
    rings: list[RingDriver]
    interrupts: list[int] = field(default_factory=list)
    config_interrupts: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def kick(self, index: int) -> None:
        """Notify the device."""
        self.device.queue_notify(index)


def start(
    device: VirtioDevice[Any],
    features: int = 0,
    *,
    packed: bool = False,
    event_idx: bool = False,
    indirect: bool = True,
    memory: GuestMemory | None = None,
    rings: int | None = None,
    size: int | None = None,
    driver_ok: bool = True,
) -> Harness:
    """Attach `device` and bring it up as a modern driver does; `features` are the device's own to accept."""
    memory = memory or make_memory()
    arena = Arena(memory)
    harness = Harness(device, memory, arena, [])
    device.attach(
        memory, ALL_COMMON, harness.interrupts.append, lambda: harness.config_interrupts.append(device.generation)
    )
    device.on_error = harness.errors.append
    wanted = features | F_VERSION_1 | F_RING_RESET | (F_RING_PACKED if packed else 0)
    wanted |= (F_EVENT_IDX if event_idx else 0) | (F_INDIRECT_DESC if indirect else 0)
    bring_up(harness, wanted, packed=packed, rings=rings, size=size, driver_ok=driver_ok)
    return harness


def bring_up(
    harness: Harness,
    features: int,
    *,
    packed: bool = False,
    rings: int | None = None,
    size: int | None = None,
    driver_ok: bool = True,
) -> None:
    """Negotiate and enable queues."""
    device = harness.device
    status = STATUS_ACKNOWLEDGE | STATUS_DRIVER
    device.set_status(status)
    device.write_features(features, legacy=False)
    status |= STATUS_FEATURES_OK
    device.set_status(status)
    assert device.status & STATUS_FEATURES_OK, "the device refused the features"
    for queue in device.queues[:rings]:
        entries = size or queue.max_size
        ring = PackedDriver(harness.arena, entries) if packed else SplitDriver(harness.arena, entries)
        harness.rings.append(ring)
        queue.set_size(entries)
        queue.desc, queue.driver, queue.device = ring.addresses
        device.enable_queue(queue.index)
    if driver_ok:
        device.set_status(status | STATUS_DRIVER_OK)
