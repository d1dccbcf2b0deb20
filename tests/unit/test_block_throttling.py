"""I/O limits in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.errors import BlockError
from pyvm.block.limit_names import LIMIT_NAMES
from pyvm.block.throttling import Limits, ThrottleGroup, ThrottleGroups, ThrottleMember
from pyvm.clock import NANOSECONDS, ManualClock


class Load:
    """A disk that wants to make requests all the time, and notes when it may."""

    def __init__(self, group: ThrottleGroup, clock: ManualClock) -> None:
        self.member = ThrottleMember(group)
        self.clock = clock
        self.admitted: list[int] = []

    def ask(self, length: int = 512, *, write: bool = False) -> None:
        def note() -> None:
            self.admitted.append(self.clock.now())

        if self.member.enter(write, length, note):
            note()


def test_requests_go_at_the_average_rate() -> None:
    clock = ManualClock()
    load = Load(ThrottleGroup("g", clock, Limits({"iops-total": 100})), clock)
    for _ in range(300):
        load.ask()
    clock.advance(NANOSECONDS)
    # A tenth of a second may be used at once, and the one that makes it overflow.
    assert load.admitted[10] == 0
    assert load.admitted[11] > 0
    assert len(load.admitted) in (110, 111)
    steps = {later - earlier for earlier, later in zip(load.admitted[11:], load.admitted[12:], strict=False)}
    assert all(abs(step - NANOSECONDS // 100) <= 2 for step in steps)


def test_bytes_count_for_their_direction_alone() -> None:
    clock = ManualClock()
    load = Load(ThrottleGroup("g", clock, Limits({"bps-write": 1 << 20})), clock)
    for _ in range(100):
        load.ask(1 << 20)
    assert len(load.admitted) == 100
    load.admitted.clear()
    for _ in range(10):
        load.ask(1 << 20, write=True)
    clock.advance(5 * NANOSECONDS)
    assert len(load.admitted) in (5, 6)


def test_a_burst_lasts_for_its_length() -> None:
    clock = ManualClock()
    limits = Limits({"iops-total": 10, "iops-total-max": 100, "iops-total-max-length": 4})
    load = Load(ThrottleGroup("g", clock, limits), clock)
    for _ in range(1000):
        load.ask()
    clock.advance(4 * NANOSECONDS)
    # 100 a second until 400 were above the average, and the burst's own bucket holds 10.
    assert 400 <= len(load.admitted) <= 412
    clock.advance(20 * NANOSECONDS)
    before = len(load.admitted)
    clock.advance(10 * NANOSECONDS)
    assert len(load.admitted) - before in (99, 100, 101)


def test_big_requests_count_as_several() -> None:
    clock = ManualClock()
    load = Load(ThrottleGroup("g", clock, Limits({"iops-total": 10, "iops-size": 4096})), clock)
    for _ in range(50):
        load.ask(8192)
    clock.advance(10 * NANOSECONDS)
    assert 50 <= 2 * len(load.admitted) <= 2 * 53
    load = Load(ThrottleGroup("g", clock, Limits({"iops-total": 10, "iops-size": 8192})), clock)
    for _ in range(200):
        load.ask(4096)
    clock.advance(10 * NANOSECONDS)
    assert 100 <= len(load.admitted) <= 103


def test_members_take_turns() -> None:
    clock = ManualClock()
    group = ThrottleGroup("g", clock, Limits({"iops-total": 100}))
    loads = [Load(group, clock) for _ in range(3)]
    for load in loads:
        for _ in range(1000):
            load.ask(write=True)
    clock.advance(3 * NANOSECONDS)
    for load in loads:
        load.admitted = [time for time in load.admitted if time]
    counts = [len(load.admitted) for load in loads]
    assert max(counts) - min(counts) <= 1
    assert 298 <= sum(counts) <= 302


def test_waiting_requests_can_be_let_go() -> None:
    clock = ManualClock()
    group = ThrottleGroup("g", clock, Limits({"iops-total": 10}))
    first, second = Load(group, clock), Load(group, clock)
    for load in (first, second):
        for _ in range(10):
            load.ask()
    first.member.release()
    assert len(first.admitted) == 10
    assert len(second.admitted) < 10
    # What was let go counts all the same.
    clock.advance(NANOSECONDS // 2)
    assert not [time for time in second.admitted if time]
    clock.advance(5 * NANOSECONDS)
    assert len(second.admitted) == 10


def test_other_limits_hold_at_once() -> None:
    clock = ManualClock()
    group = ThrottleGroup("g", clock, Limits({"iops-total": 1}))
    load = Load(group, clock)
    for _ in range(20):
        load.ask()
    group.configure(Limits())
    assert len(load.admitted) == 20
    assert not any(load.admitted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bps-total": 1, "bps-read": 1}, "total values and read/write values cannot be used at the same time"),
        ({"iops-total": 9, "iops-write-max": 9, "iops-total-max": 9}, "cannot be used at the same time"),
        ({"iops-read-max": 10}, "^bps_max/iops_max require corresponding bps/iops values$"),
        ({"iops-total": 10, "iops-total-max": 5}, "^bps_max/iops_max cannot be lower than bps/iops$"),
        ({"iops-total": 10, "iops-total-max-length": 5}, "^burst length set without burst rate$"),
        ({"iops-total": 10, "iops-total-max": 50, "iops-total-max-length": 0}, "^the burst length cannot be 0$"),
        ({"iops-total": 1, "iops-total-max": 10**9, "iops-total-max-length": 10**9}, "^burst length too high"),
        ({"iops-size": 5}, "^iops size requires an iops value to be set$"),
        ({"bps-total": 10**16}, r"^bps/iops/max values must be within \[0, 1000000000000000\]$"),
    ],
)
def test_limits_that_make_no_sense(values: dict[str, int], message: str) -> None:
    """The texts are those of QEMU 7.2."""
    with pytest.raises(BlockError, match=message):
        Limits(values).check()


def test_groups_by_name() -> None:
    groups = ThrottleGroups(ManualClock())
    kept = groups.add("kept", Limits({"bps-read": 5}))
    first = groups.join("shared", Limits({"iops-total": 5}))
    second = groups.join("shared", Limits({"iops-total": 7}))
    assert first.group is second.group
    assert first.group.limits.get("iops-total") == 7
    groups.leave(first)
    assert groups.find("shared") is second.group
    groups.leave(second)
    assert groups.find("shared") is None
    assert groups.find("kept") is kept
    with pytest.raises(BlockError):
        groups.add("kept", Limits())


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(LIMIT_NAMES), st.sampled_from([0, 1, 2, 50, 1000, 10**7, 10**15])),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 31), st.integers(0, 10**10)), max_size=30),
)
def test_every_request_goes_in_the_end(values: dict[str, int], requests: list[tuple[bool, int, int]]) -> None:
    limits = Limits(values)
    try:
        limits.check()
    except BlockError:
        return
    clock = ManualClock()
    load = Load(ThrottleGroup("g", clock, limits), clock)
    for is_write, length, pause in requests:
        load.ask(length, write=is_write)
        clock.advance(pause)
    clock.advance(10**22)
    assert len(load.admitted) == len(requests)
