"""virtio-balloon: memory that goes back to the host, statistics, free page reporting."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import NANOSECONDS, ManualClock
from pyvm.devices.virtio.balloon import (
    F_DEFLATE_ON_OOM,
    F_MUST_TELL_HOST,
    F_PAGE_POISON,
    F_REPORTING,
    F_STATS_VQ,
    BalloonState,
    VirtioBalloon,
)
from pyvm.memory import GuestMemory, pc_ram_blocks
from pyvm.state import StateError
from tests.unit.virtio_driver import Harness, make_memory, start

PAGE = 4096
INFLATE, DEFLATE, STATS, REPORTING = range(4)


def begin(clock: ManualClock | None = None, features: int = F_STATS_VQ, **options: bool) -> Harness:
    device = VirtioBalloon(clock or ManualClock(), wall_time=lambda: 1234, **options)
    return start(device, features, size=32)


def resident(memory: GuestMemory) -> int:
    """Return how many pages of the host the memory takes."""
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory.mapping))
    found = (ctypes.c_ubyte * (memory.size // PAGE))()
    assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(place), ctypes.c_size_t(memory.size), found)
    return sum(present & 1 for present in found)


def discards(h: Harness) -> list[tuple[int, int]]:
    """Record (first page, pages) of each discard from now on."""
    seen: list[tuple[int, int]] = []
    real = h.memory.discard

    def discard(gpa: int, length: int) -> None:
        seen.append((gpa // PAGE, length // PAGE))
        real(gpa, length)

    h.memory.discard = discard  # type: ignore[method-assign]
    return seen


def pages(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def test_inflated_pages_go_back_to_the_host() -> None:
    h = begin()
    h.memory.write(512 * PAGE, b"x" * (16 * PAGE))
    before = resident(h.memory)
    h.rings[INFLATE].add([pages(*range(512, 528))])
    h.kick(INFLATE)
    assert len(h.rings[INFLATE].collect()) == 1
    assert resident(h.memory) <= before - 15, "16 pages less, and up to one for the request itself"
    assert h.memory.read(512 * PAGE, 16 * PAGE) == bytes(16 * PAGE)


def test_adjacent_pages_go_together_in_whatever_order() -> None:
    h = begin()
    seen = discards(h)
    h.rings[INFLATE].add([pages(512, 511, 510, 600, 514, 513), pages(602, 601, 601)])
    h.kick(INFLATE)
    assert seen == [(510, 5), (600, 3)]


def test_page_zero() -> None:
    h = begin()
    seen = discards(h)
    h.rings[INFLATE].add([pages(1, 0)])
    h.kick(INFLATE)
    assert seen == [(0, 2)]


def test_page_numbers_may_be_split_anywhere() -> None:
    h = begin()
    seen = discards(h)
    data = pages(512, 600)
    h.rings[INFLATE].add([data[:3], data[3:5], data[5:] + b"!"])
    h.kick(INFLATE)
    assert seen == [(512, 1), (600, 1)]


def test_pages_that_are_not_ram_are_ignored() -> None:
    h = begin()
    h.rings[INFLATE].add([pages(0xFFFFFFFF, 1024, 512)])
    h.kick(INFLATE)
    assert len(h.rings[INFLATE].collect()) == 1
    assert h.device.running


def test_endless_page_list_breaks_the_device() -> None:
    h = begin()
    h.rings[INFLATE].add([(0x100000, 64 * 1024 * 4 + 4)])
    h.kick(INFLATE)
    assert h.device.broken


def test_much_work_is_done_in_turns() -> None:
    clock = ManualClock()
    h = begin(clock)
    seen = discards(h)
    request = h.arena.put(pages(*range(512, 1024, 2)))
    for _ in range(20):
        h.rings[INFLATE].add([request])
    h.kick(INFLATE)
    assert len(h.rings[INFLATE].collect()) == 16
    assert len(seen) == 4096
    clock.advance(0)
    assert len(h.rings[INFLATE].collect()) == 4
    assert clock.queue.next_deadline() is None


def test_deflate_needs_nothing_done() -> None:
    h = begin()
    seen = discards(h)
    h.rings[DEFLATE].add([pages(512)])
    h.kick(DEFLATE)
    assert len(h.rings[DEFLATE].collect()) == 1
    assert seen == []


def test_target_and_actual() -> None:
    h = begin()
    changes: list[int] = []
    h.device.on_change = changes.append
    h.device.set_target(h.memory.size - 10 * PAGE)
    assert h.device.config_read(0, 4) == 10
    assert h.config_interrupts == [1]
    h.device.config_write(4, 4, 6)
    h.device.config_write(4, 4, 6)
    assert changes == [h.memory.size - 6 * PAGE] == [h.device.actual]
    for target, expected in ((0, 1024), (-5, 1024), (1 << 50, 0), (h.memory.size - 1, 0)):
        h.device.set_target(target)
        assert h.device.config_read(0, 4) == expected
    h.device.config_write(4, 4, 0xFFFFFFFF)
    assert h.device.actual == 0


def test_legacy_driver_writes_actual_byte_by_byte() -> None:
    h = begin()
    for place, value in enumerate((0x34, 0x02, 0, 0)):
        h.device.config_write(4 + place, 1, value)
    assert h.device.actual == h.memory.size - 0x234 * PAGE


def test_target_and_poison_cannot_be_written_by_a_guest_without_leave() -> None:
    h = begin()
    h.device.config_write(0, 4, 7)
    h.device.config_write(12, 4, 7)
    assert (h.device.config_read(0, 4), h.device.config_read(12, 4)) == (0, 0)


def test_reset_deflates_and_keeps_the_target() -> None:
    h = begin()
    h.device.set_target(h.memory.size - 10 * PAGE)
    h.device.config_write(4, 4, 10)
    h.device.set_status(0)
    assert h.device.actual == h.memory.size
    assert h.device.config_read(0, 4) == 10


def statistics(**values: int) -> bytes:
    tags = {"swap_in": 0, "free": 4, "total": 5, "available": 6, "future": 99}
    return b"".join(struct.pack("<HQ", tags[name], value) for name, value in values.items())


def test_statistics() -> None:
    clock = ManualClock()
    h = begin(clock)
    h.rings[STATS].add([statistics(swap_in=1, free=2, future=3) + b"partial"])
    h.kick(STATS)
    stats = h.device.guest_stats()
    assert stats["last-update"] == 1234
    assert stats["stats"]["stat-swap-in"] == 1
    assert stats["stats"]["stat-free-memory"] == 2
    assert stats["stats"]["stat-total-memory"] == -1
    assert len(stats["stats"]) == 10
    assert h.rings[STATS].collect() == [], "the device keeps the buffer"


def test_statistics_are_polled() -> None:
    clock = ManualClock()
    h = begin(clock)
    h.rings[STATS].add([statistics(free=1)])
    h.kick(STATS)
    h.device.set_polling_interval(10)
    assert h.device.polling_interval == 10
    clock.advance(0)
    for free in (2, 3, 4):
        assert len(h.rings[STATS].collect()) == 1
        h.rings[STATS].add([statistics(free=free)])
        h.kick(STATS)
        assert h.device.guest_stats()["stats"]["stat-free-memory"] == free
        clock.advance(10 * NANOSECONDS - 1)
        assert h.rings[STATS].collect() == []
        clock.advance(1)
    h.device.set_polling_interval(0)
    assert clock.queue.next_deadline() is None


def test_polling_waits_for_a_driver() -> None:
    clock = ManualClock()
    device = VirtioBalloon(clock)
    device.set_polling_interval(1)
    clock.advance(3 * NANOSECONDS)
    h = start(device, F_STATS_VQ)
    h.rings[STATS].add([statistics(free=1)])
    h.kick(STATS)
    clock.advance(2 * NANOSECONDS)
    assert len(h.rings[STATS].collect()) == 1


@pytest.mark.parametrize(
    ("seconds", "message"), [(-1, "timer value must be greater than zero"), (1 << 32, "timer value is too big")]
)
def test_impossible_intervals(seconds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtioBalloon(ManualClock()).set_polling_interval(seconds)


def test_second_statistics_buffer_gives_the_first_back() -> None:
    h = begin()
    first = h.rings[STATS].add([statistics(free=1)])
    h.rings[STATS].add([statistics(free=2)])
    h.kick(STATS)
    assert h.rings[STATS].collect() == [first]


def test_reported_pages_go_back_to_the_host() -> None:
    h = begin(features=F_REPORTING, free_page_reporting=True)
    seen = discards(h)
    h.arena.next = 0x200000
    h.rings[REPORTING].add(writable=[2 * PAGE, PAGE])
    h.arena.next += PAGE
    h.rings[REPORTING].add(writable=[PAGE + 100])
    h.kick(REPORTING)
    assert seen == [(512, 3), (516, 1)]
    assert [buffer.written for buffer in h.rings[REPORTING].collect()] == [0, 0]


def test_reported_pages_stay_where_the_guest_poisons_them() -> None:
    h = begin(features=F_REPORTING | F_PAGE_POISON, free_page_reporting=True)
    seen = discards(h)
    h.device.config_write(12, 4, 0xAAAAAAAA)
    assert h.device.config_read(12, 4) == 0xAAAAAAAA
    h.arena.next = 0x200000
    h.rings[REPORTING].add(writable=[PAGE])
    h.kick(REPORTING)
    assert seen == []
    assert len(h.rings[REPORTING].collect()) == 1


def test_offered_features_and_queues() -> None:
    clock = ManualClock()
    device = VirtioBalloon(clock)
    assert device.offered_features == F_STATS_VQ | F_PAGE_POISON
    assert (len(device.queues), device.config_size) == (3, 16)
    device = VirtioBalloon(clock, deflate_on_oom=True, free_page_reporting=True, page_poison=False, must_tell_host=True)
    assert device.offered_features == F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING | F_MUST_TELL_HOST
    assert (len(device.queues), device.queues[REPORTING].max_size, device.config_size) == (4, 32, 8)


@pytest.mark.parametrize("packed", [False, True])
def test_state(packed: bool) -> None:
    clock = ManualClock()
    device = VirtioBalloon(clock, wall_time=lambda: 99)
    h = start(device, F_STATS_VQ, packed=packed)
    device.set_target(0)
    device.config_write(4, 4, 3)
    device.set_polling_interval(5)
    clock.advance(0)
    waiting = h.rings[STATS].add([statistics(free=7)])
    h.kick(STATS)
    state = BalloonState.from_dict(device.save().to_dict())
    device.set_polling_interval(0)
    other = VirtioBalloon(clock)
    other.attach(h.memory, device.offered_features, h.interrupts.append, lambda: None)
    other.load(state)
    assert other.actual == h.memory.size - 3 * PAGE
    assert other.config_read(0, 4) == 1024
    assert other.guest_stats()["stats"]["stat-free-memory"] == 7  # type: ignore[index,call-overload]
    clock.advance(5 * NANOSECONDS)
    assert h.rings[STATS].collect() == [waiting]


def test_inconsistent_states_are_refused() -> None:
    h = begin()
    state = h.device.save()
    state.interval = 3
    with pytest.raises(StateError, match="poll"):
        h.device.load(state)
    state = h.device.save()
    state.num_pages = 1025
    with pytest.raises(StateError, match="memory"):
        h.device.load(state)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.booleans())
def test_hostile_buffers(queue: int, data: list[bytes], poison: bool) -> None:
    memory = make_memory(4 << 20, pc_ram_blocks(4 << 20))
    device = VirtioBalloon(ManualClock(), free_page_reporting=True)
    h = start(device, F_STATS_VQ | F_REPORTING | F_PAGE_POISON, memory=memory, size=8)
    h.device.config_write(12, 4, poison)
    for item in data:
        h.rings[queue].add([item], [len(item)])
        # The rings themselves lie in memory that may be given away; only the device must come to no harm.
        h.kick(queue)
        if not h.device.running:
            return
    assert not h.device.broken
