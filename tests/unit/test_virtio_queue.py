"""Split and packed virtqueues, driven through a device that copies what it reads to what it writes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.virtio.constants import F_EVENT_IDX, F_NOTIFY_ON_EMPTY, STATUS_DRIVER_OK, STATUS_NEEDS_RESET
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.split import legacy_layout
from pyvm.memory import RamBlock
from pyvm.state import StateError
from tests.unit.virtio_driver import (
    INDIRECT,
    NEXT,
    WRITE,
    Arena,
    Harness,
    PackedDriver,
    SplitDriver,
    bring_up,
    make_memory,
    start,
)

SIZE = 8


class Copier(VirtioDevice[VirtioState]):
    """Copies the readable part of each chain to its writable part; stops after `limit` chains a notification."""

    device_id = 42
    name = "copier"
    state_type = VirtioState

    def __init__(self, queues: int = 1, size: int = SIZE) -> None:
        super().__init__([size] * queues, 0, 4)
        self.limit = 1 << 30
        self.seen: list[bytes] = []

    def handle_queue(self, queue: VirtQueue) -> None:
        for _ in range(self.limit):
            chain = queue.pop()
            if chain is None:
                break
            data = b"".join(chain.readable)
            self.seen.append(data)
            queue.push(chain, chain.scatter(data))
        queue.flush()


def begin(packed: bool, **options: bool) -> Harness:
    return start(Copier(), packed=packed, **options)  # type: ignore[arg-type]


both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@both
@pytest.mark.parametrize("indirect", [False, True])
def test_chain_is_read_in_order_and_written_back(packed: bool, indirect: bool) -> None:
    h = begin(packed)
    buffer = h.rings[0].add([b"abc", b"defg"], [2, 10], indirect=indirect)
    h.kick(0)
    assert h.rings[0].collect() == [buffer]
    assert buffer.data(h.memory) == b"abcdefg"
    assert h.interrupts == [0]


@both
def test_many_rounds_go_around_the_ring(packed: bool) -> None:
    h = begin(packed)
    for number in range(50):
        parts = [bytes([number])] * (number % 3 + 1)
        buffers = [h.rings[0].add(parts, [4], indirect=number % 2 == 0) for _ in range(2)]
        h.kick(0)
        assert h.rings[0].collect() == buffers
        assert all(buffer.data(h.memory) == b"".join(parts) for buffer in buffers)
    assert not h.device.broken


def test_split_index_wraps_at_16_bits() -> None:
    h = begin(False, event_idx=True)
    ring = h.rings[0]
    assert isinstance(ring, SplitDriver)
    for index in (ring.avail + 2, ring.used_ring + 2):
        h.memory.write_u16(index, 0xFFFE)
    ring.avail_idx = ring.last_used = 0xFFFE
    state = h.device.save()
    state.queues[0].next_avail = state.queues[0].next_used = 0xFFFE
    h.device.load(state)
    for _ in range(3):
        ring.interrupt_at(0)
        buffer = ring.add([b"x"], [1])
        h.kick(0)
        assert ring.collect() == [buffer]
    assert h.interrupts == [0, 0, 0]


@both
def test_one_interrupt_for_a_batch(packed: bool) -> None:
    h = begin(packed)
    for _ in range(4):
        h.rings[0].add([b"x"], [1])
    h.kick(0)
    assert len(h.rings[0].collect()) == 4
    assert h.interrupts == [0]


@both
def test_driver_can_ask_for_no_interrupts(packed: bool) -> None:
    h = begin(packed)
    h.rings[0].suppress_interrupts()
    h.rings[0].add([b"x"], [1])
    h.kick(0)
    assert len(h.rings[0].collect()) == 1
    assert h.interrupts == []


@both
def test_event_index_delays_the_interrupt(packed: bool) -> None:
    h = begin(packed, event_idx=True)
    ring = h.rings[0]
    for _ in range(5):
        ring.interrupt_at(2)
        heard = len(h.interrupts)
        for count in (1, 2):
            ring.add([b"x"], [], indirect=True)
            h.kick(0)
            assert len(h.interrupts) == heard, count
        ring.add([b"x"], [], indirect=True)
        h.kick(0)
        assert len(h.interrupts) == heard + 1
        assert len(ring.collect()) == 3
        ring.add([b"x"], [], indirect=True)
        h.kick(0)
        assert len(h.interrupts) == heard + 1, "the event lies behind"
        assert len(ring.collect()) == 1


@both
def test_event_index_inside_a_batch(packed: bool) -> None:
    h = begin(packed, event_idx=True)
    ring = h.rings[0]
    for turn in range(10):
        ring.interrupt_at(turn % 3)
        for _ in range(3):
            ring.add([b"x"], [], indirect=True)
        h.kick(0)
        assert len(h.interrupts) == turn + 1
        assert len(ring.collect()) == 3


def test_packed_used_descriptor_says_whether_anything_was_written() -> None:
    h = begin(True)
    ring = h.rings[0]
    assert isinstance(ring, PackedDriver)
    ring.add([b"x"], [1])
    ring.add([b"x"])
    h.kick(0)
    flags = [h.memory.read_u16(ring.ring + 16 * slot + 14) for slot in (0, 2)]
    assert flags == [0x8082, 0x8080]


@both
def test_more_chains_than_the_queue_has(packed: bool) -> None:
    h = begin(packed)
    ring = h.rings[0]
    queue = h.device.queues[0]
    for _ in range(SIZE):
        ring.add([b"x"])
        assert queue.pop() is not None
    if isinstance(ring, PackedDriver):
        ring.write_slot(BUFFER, 1, 0, 0)
    else:
        ring.make_available(0)
    assert queue.pop() is None
    assert h.device.broken


@both
def test_device_wants_a_kick_only_after_it_found_the_ring_empty(packed: bool) -> None:
    h = begin(packed, event_idx=True)
    ring = h.rings[0]
    ring.add([b"x"])
    assert ring.kick_wanted(1)
    h.kick(0)
    ring.add([b"y"])
    assert ring.kick_wanted(1)
    ring.add([b"z"])
    assert not ring.kick_wanted(1)
    assert ring.kick_wanted(2)
    h.device.limit = 1
    h.kick(0)
    ring.add([b"!"])
    assert not ring.kick_wanted(1), "the device knows that there is more"


@both
def test_without_event_index_every_kick_is_wanted(packed: bool) -> None:
    h = begin(packed)
    h.kick(0)
    if packed:
        h.rings[0].add([b"x"])
        assert h.rings[0].kick_wanted(1)
    else:
        assert h.memory.read_u16(h.rings[0].used_ring) == 0  # type: ignore[union-attr]


@both
def test_writes_into_ram_are_reported(packed: bool) -> None:
    h = begin(packed)
    buffer = h.rings[0].add([b"abcdef"], [4, 4, 4])
    written: list[tuple[int, int]] = []
    h.memory.on_write = lambda gpa, length: written.append((gpa, length))
    h.kick(0)
    (first, _), (second, _), (third, _) = buffer.writable
    assert (first, 4) in written
    assert (second, 2) in written
    assert not any(gpa == third for gpa, _ in written)
    covered = h.rings[0].ring + 8 if isinstance(h.rings[0], PackedDriver) else h.rings[0].used_ring + 2
    assert any(gpa <= covered < gpa + length for gpa, length in written)


@both
def test_chain_as_long_as_the_queue_is_accepted(packed: bool) -> None:
    h = begin(packed)
    h.rings[0].add([b"a"] * SIZE)
    h.kick(0)
    assert h.device.seen == [b"a" * SIZE]


@both
def test_indirect_table_may_be_longer_than_the_queue(packed: bool) -> None:
    h = begin(packed)
    h.rings[0].add([b"a"] * (3 * SIZE), indirect=True)
    h.kick(0)
    assert h.device.seen == [b"a" * 3 * SIZE]


def test_split_chain_may_end_in_an_indirect_table() -> None:
    h = begin(False)
    ring = h.rings[0]
    assert isinstance(ring, SplitDriver)
    gpa, _ = h.arena.put(b"head")
    tail, _ = h.arena.put(b"tail")
    table = h.arena.take(16)
    h.memory.write(table, struct.pack("<QIHH", tail, 4, 0, 0))
    ring.write_desc(0, gpa, 4, NEXT, 1)
    ring.write_desc(1, table, 16, INDIRECT)
    ring.make_available(0)
    h.kick(0)
    assert h.device.seen == [b"headtail"]


# Hostile drivers


def broken(h: Harness) -> str:
    """Assert that the device is broken, as it should be, and return why."""
    assert h.device.broken
    assert h.device.status & STATUS_NEEDS_RESET
    assert h.config_interrupts
    assert len(h.errors) == 1
    h.kick(0)
    assert not h.device.running
    return str(h.device.failure)


def split_with(*descriptors: tuple[int, int, int, int], head: int = 0, indirect: bool = True) -> Harness:
    h = begin(False, indirect=indirect)
    ring = h.rings[0]
    assert isinstance(ring, SplitDriver)
    for index, descriptor in enumerate(descriptors):
        ring.write_desc(index, *descriptor)
    ring.make_available(head)
    h.kick(0)
    return h


BUFFER = 0x100000
"""GPA where hostile descriptors point when the address itself is fine."""


def test_split_available_index_jumps() -> None:
    h = begin(False)
    h.memory.write_u16(h.rings[0].avail + 2, SIZE + 1)  # type: ignore[union-attr]
    h.kick(0)
    assert "index moved" in broken(h)


def test_split_head_out_of_range() -> None:
    assert "head 8 is outside" in broken(split_with(head=SIZE))


def test_split_next_out_of_range() -> None:
    assert "next descriptor 8" in broken(split_with((BUFFER, 1, NEXT, SIZE)))


def test_split_descriptor_loop() -> None:
    assert "looped" in broken(split_with((BUFFER, 1, NEXT, 1), (BUFFER, 1, NEXT, 0)))


def test_split_indirect_loop() -> None:
    h = begin(False)
    table = h.arena.take(32)
    h.memory.write(table, struct.pack("<QIHHQIHH", BUFFER, 1, NEXT, 1, BUFFER, 1, NEXT, 0))
    ring = h.rings[0]
    assert isinstance(ring, SplitDriver)
    ring.write_desc(0, table, 32, INDIRECT)
    ring.make_available(0)
    h.kick(0)
    assert "looped" in broken(h)


@pytest.mark.parametrize("length", [0, 15, 17, 16 * 1025])
def test_indirect_table_of_impossible_size(length: int) -> None:
    assert "size for indirect" in broken(split_with((BUFFER, length, INDIRECT, 0)))
    h = begin(True)
    h.rings[0].write_slot(BUFFER, length, 0, INDIRECT)  # type: ignore[union-attr]
    h.kick(0)
    assert "size for indirect" in broken(h)


@both
def test_nested_indirect_table(packed: bool) -> None:
    h = begin(packed)
    table = h.arena.take(16)
    ring = h.rings[0]
    if isinstance(ring, PackedDriver):
        h.memory.write(table, struct.pack("<QIHH", table, 16, 0, INDIRECT))
        ring.write_slot(table, 16, 0, INDIRECT)
    else:
        h.memory.write(table, struct.pack("<QIHH", table, 16, INDIRECT, 0))
        ring.write_desc(0, table, 16, INDIRECT)
        ring.make_available(0)
    h.kick(0)
    assert "inside an indirect table" in broken(h)


@both
def test_indirect_that_was_not_negotiated(packed: bool) -> None:
    h = begin(packed, indirect=False)
    h.rings[0].add([b"x"], indirect=True)
    h.kick(0)
    assert "without VIRTIO_F_INDIRECT_DESC" in broken(h)


@both
def test_indirect_with_next(packed: bool) -> None:
    h = begin(packed)
    ring = h.rings[0]
    if isinstance(ring, PackedDriver):
        ring.write_slot(BUFFER, 16, 0, INDIRECT | NEXT)
    else:
        ring.write_desc(0, BUFFER, 16, INDIRECT | NEXT, 1)
        ring.make_available(0)
    h.kick(0)
    assert "with a next one" in broken(h)


@both
def test_zero_sized_buffer(packed: bool) -> None:
    h = begin(packed)
    h.rings[0].add([(BUFFER, 0)])
    h.kick(0)
    assert "zero sized" in broken(h)


@both
@pytest.mark.parametrize("gpa", [4 << 20, (4 << 20) - 1, (1 << 64) - 1, 1 << 63])
def test_buffer_outside_ram(packed: bool, gpa: int) -> None:
    for parts in ([(gpa, 2)], [b"x", (gpa, 2)]):
        h = begin(packed)
        h.rings[0].add(parts)  # type: ignore[arg-type]
        h.kick(0)
        assert "no guest RAM" in broken(h)


@both
def test_chain_longer_than_memory(packed: bool) -> None:
    h = begin(packed)
    h.rings[0].add([(0, 1 << 20)] * 5)
    h.kick(0)
    assert "longer than memory" in broken(h)


@both
def test_writable_before_readable(packed: bool) -> None:
    h = begin(packed)
    ring = h.rings[0]
    if isinstance(ring, PackedDriver):
        ring.write_slot(BUFFER, 1, 0, WRITE | NEXT)
        ring.next, ring.wrap = 1, True
        ring.write_slot(BUFFER, 1, 0, 0)
    else:
        ring.write_desc(0, BUFFER, 1, WRITE | NEXT, 1)
        ring.write_desc(1, BUFFER, 1, 0)
        ring.make_available(0)
    h.kick(0)
    assert "incorrect order" in broken(h)


def test_packed_chain_longer_than_the_ring() -> None:
    h = begin(True)
    for _ in range(SIZE):
        h.rings[0].write_slot(BUFFER, 1, 0, NEXT)  # type: ignore[union-attr]
    h.kick(0)
    assert "looped" in broken(h)


@both
def test_ring_outside_ram_breaks_the_device(packed: bool) -> None:
    h = start(Copier(), packed=packed, rings=0)
    h.device.queues[0].desc = h.memory.size - 16
    h.device.enable_queue(0)
    assert "no guest RAM" in broken(h)


def test_reset_repairs_a_broken_device() -> None:
    h = split_with(head=SIZE)
    broken(h)
    h.device.set_status(0)
    assert (h.device.status, h.device.broken, h.device.features) == (0, False, 0)
    h.rings.clear()
    bring_up(h, 1 << 32)
    h.rings[0].add([b"again"])
    h.kick(0)
    assert h.device.seen == [b"again"]


words = st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=40)
interesting = st.sampled_from([0, 1, 2, 16, 0x1000, 0x1010, BUFFER, (4 << 20) - 1, (1 << 64) - 1])
lengths = st.sampled_from([0, 1, 16, 32, 160, 0xFFFFFFFF])
descriptors = st.lists(
    st.tuples(
        interesting | st.integers(0, (1 << 64) - 1), lengths, st.integers(0, 15), st.integers(0, 9) | st.just(0xFFFF)
    ),
    min_size=1,
    max_size=SIZE,
)


@settings(max_examples=150, deadline=None)
@given(descriptors, st.lists(st.integers(0, 9), max_size=12), st.booleans(), words)
def test_hostile_split_ring(
    table: list[tuple[int, int, int, int]], heads: list[int], event: bool, junk: list[int]
) -> None:
    h = begin(False, event_idx=event)
    ring = h.rings[0]
    assert isinstance(ring, SplitDriver)
    h.memory.write(BUFFER, struct.pack(f"<{len(junk)}H", *junk))
    for index, descriptor in enumerate(table):
        ring.write_desc(index, *descriptor)
    for head in heads:
        ring.make_available(head)
        h.kick(0)
    if not h.device.broken:
        h.memory.write_u16(ring.avail + 2, junk[0])
        h.kick(0)
    assert h.device.broken or h.device.running


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(interesting, lengths, st.integers(0, 0xFFFF), st.sampled_from([0, 0x80, 0x8000, 0x8080])),
        min_size=SIZE,
        max_size=SIZE,
    ),
    st.lists(st.integers(0, 15), min_size=SIZE, max_size=SIZE),
    st.integers(0, 0xFFFFFFFF),
)
def test_hostile_packed_ring(slots: list[tuple[int, int, int, int]], flags: list[int], event: int) -> None:
    h = begin(True, event_idx=True)
    ring = h.rings[0]
    assert isinstance(ring, PackedDriver)
    h.memory.write_u32(ring.driver_event, event)
    for index, ((gpa, length, buffer_id, owner), low) in enumerate(zip(slots, flags, strict=True)):
        h.memory.write(ring.ring + 16 * index, struct.pack("<QIHH", gpa, length, buffer_id, owner | low))
    for _ in range(3):
        h.kick(0)
    assert h.device.broken or h.device.running
    assert len(h.device.seen) <= 3 * SIZE


# State


@both
def test_state_moves_to_another_device(packed: bool) -> None:
    h = begin(packed, event_idx=True)
    for _ in range(5):
        h.rings[0].add([b"a", b"b"], [2])
        h.kick(0)
        h.rings[0].collect()
    waiting = h.rings[0].add([b"late"], [4])
    other = Copier()
    other.attach(h.memory, h.device.offered_features, h.interrupts.append, lambda: None)
    other.pause()
    other.load(VirtioState.from_dict(h.device.save().to_dict()))
    assert other.seen == []
    other.resume()
    assert other.seen == [b"late"]
    assert h.rings[0].collect() == [waiting]


@both
def test_state_is_checked(packed: bool) -> None:
    h = begin(packed)
    good = h.device.save()

    def refused(**fields: int) -> None:
        bad = good.copy()
        for name, value in fields.items():
            setattr(bad.queues[0], name, value)
        with pytest.raises(StateError):
            h.device.load(bad)

    refused(size=SIZE + 1)
    refused(size=0)
    refused(desc=h.memory.size)
    refused(next_avail=SIZE + 1)
    refused(next_used=0x8005)
    bad = good.copy()
    bad.features |= 1 << 60
    with pytest.raises(StateError):
        h.device.load(bad)
    bad = good.copy()
    bad.queues = []
    with pytest.raises(StateError):
        h.device.load(bad)
    h.device.load(good)


def test_rewound_chains_come_again() -> None:
    for packed in (False, True):
        h = begin(packed)
        for text in (b"1", b"2", b"3"):
            h.rings[0].add([text, text])
        queue = h.device.queues[0]
        first = queue.pop()
        assert first is not None
        queue.push(first, 0)
        second = queue.pop()
        third = queue.pop()
        assert second is not None
        assert third is not None
        queue.rewind(second)
        h.kick(0)
        assert h.device.seen == [b"22", b"33"]
        assert len(h.rings[0].collect()) == 3


# Device basics


def test_queue_is_left_alone_until_driver_ok() -> None:
    h = start(Copier(), driver_ok=False)
    h.rings[0].add([b"early"])
    h.kick(0)
    assert h.device.seen == []
    h.device.set_status(h.device.status | STATUS_DRIVER_OK)
    assert h.device.seen == [b"early"]


def test_pause_and_dma_hold_the_device_back() -> None:
    h = begin(False)
    for hold, release in (
        (h.device.pause, h.device.resume),
        (lambda: h.device.set_dma(False), lambda: h.device.set_dma(True)),
    ):
        hold()
        h.rings[0].add([b"x"])
        h.kick(0)
        assert h.device.seen == []
        release()
        assert h.device.seen == [b"x"]
        h.device.seen.clear()


def test_legacy_driver_may_begin_before_driver_ok_and_renegotiate() -> None:
    device = Copier()
    memory = make_memory()
    interrupts: list[int] = []
    device.attach(memory, F_EVENT_IDX | F_NOTIFY_ON_EMPTY, interrupts.append, lambda: None)
    device.set_status(3)
    ring = SplitDriver(Arena(memory), SIZE, legacy=True)
    queue = device.queues[0]
    queue.desc, queue.driver, queue.device = legacy_layout(ring.desc, SIZE)
    assert (queue.desc, queue.driver, queue.device) == ring.addresses
    device.enable_queue(0)
    device.write_features(F_NOTIFY_ON_EMPTY | 1 << 5, legacy=True)
    assert device.features == F_NOTIFY_ON_EMPTY, "what was not offered is not accepted"
    ring.suppress_interrupts()
    ring.add([b"early"])
    device.queue_notify(0)
    assert device.seen == [b"early"]
    assert interrupts == [0], "all buffers used: notified although suppressed"
    ring.add([b"x"])
    ring.add([b"y"])
    device.limit = 1
    device.queue_notify(0)
    assert interrupts == [0], "one is left"


def test_features_must_be_offered_and_include_version_1() -> None:
    for features in (0, 1 << 32 | 1 << 50, 1 << 32 | F_NOTIFY_ON_EMPTY):
        device = Copier()
        device.attach(make_memory(), 1 << 32 | F_NOTIFY_ON_EMPTY, lambda index: None, lambda: None)
        device.set_status(3)
        device.write_features(features, legacy=False)
        device.set_status(11)
        assert device.status == 3
        assert device.features == 0


def test_single_queue_reset() -> None:
    h = start(Copier(queues=2))
    h.device.disable_queue(1)
    h.rings[1].add([b"lost"])
    h.kick(1)
    assert h.device.seen == []
    ring = SplitDriver(h.arena, SIZE)
    queue = h.device.queues[1]
    queue.desc, queue.driver, queue.device = ring.addresses
    ring.add([b"back"])
    h.device.enable_queue(1)
    assert h.device.seen == [b"back"]


def test_ring_in_high_ram() -> None:
    block = 1 << 20
    memory = make_memory(2 * block, [RamBlock(0, block, 0), RamBlock(1 << 32, block, block)])
    h = Harness(Copier(), memory, Arena(memory), [])
    h.device.attach(memory, 1 << 32, h.interrupts.append, lambda: None)
    bring_up(h, 1 << 32)
    memory.write(1 << 32, b"high")
    h.rings[0].add([((1 << 32), 4)], [4])
    h.kick(0)
    assert h.device.seen == [b"high"]
    h.rings[0].add([(block - 2, 4)])
    h.kick(0)
    assert h.device.broken
