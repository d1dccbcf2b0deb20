"""The HPET: main counter, one-shot and periodic timers, level and edge, legacy replacement, partial accesses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.hpet import Hpet, HpetState
from pyvm.state import StateError
from tests.unit.late_clock import LateClock

CONFIG, STATUS, COUNTER = 0x10, 0x20, 0xF0
LEVEL, INTERRUPT, PERIODIC, SET_VALUE, WIDTH_32 = 0x2, 0x4, 0x8, 0x40, 0x100
ROUTE_2 = 2 << 9
MS = 100_000
"""Ticks in a millisecond."""


def t(index: int, register: int) -> int:
    """Return the offset of a timer's register."""
    return 0x100 + 0x20 * index + register


class Rig:
    """A block whose interrupts are noted as (ns, GSI) on rising edges."""

    def __init__(self) -> None:
        self.clock = LateClock()
        self.edges: list[tuple[int, int]] = []
        self.levels: dict[int, bool] = {}
        self.legacy: list[bool] = []
        self.hpet = Hpet(self.clock, self._irq, self.legacy.append)

    def _irq(self, gsi: int, level: bool) -> None:
        assert level != self.levels.get(gsi, False), "told of changes only"
        self.levels[gsi] = level
        if level:
            self.edges.append((self.clock.now(), gsi))

    def read(self, offset: int, size: int = 8) -> int:
        """Read a register."""
        return self.hpet.read(offset, size) & (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int = 8) -> None:
        """Write a register."""
        self.hpet.write(offset, size, value)

    def times(self) -> list[int]:
        """Return the times of the edges so far in ticks, and forget them."""
        times = [time // 10 for time, _ in self.edges]
        self.edges.clear()
        return times


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_reset_are_those_of_qemu(rig: Rig) -> None:
    assert rig.read(0) == 0x0098_9680_8086_A201
    assert [rig.read(offset) for offset in (CONFIG, STATUS, COUNTER, 8, 0x160, 0x3F8)] == [0] * 6
    for index in range(3):
        assert rig.read(t(index, 0)) == 0x4_0000_0030
        assert rig.read(t(index, 8)) == 0xFFFF_FFFF_FFFF_FFFF
        assert rig.read(t(index, 16)) == 0


def test_counter_counts_only_while_enabled(rig: Rig) -> None:
    rig.clock.advance(12_345)
    assert rig.read(COUNTER) == 0
    rig.write(CONFIG, 1)
    rig.clock.advance(1000)
    assert rig.read(COUNTER) == 100
    rig.write(CONFIG, 0)
    rig.clock.advance(1000)
    assert rig.read(COUNTER) == 100
    rig.write(COUNTER, 0xFFFF_FFFF_FFFF_FFFE)
    rig.write(CONFIG, 1)
    rig.clock.advance(30)
    assert rig.read(COUNTER) == 1


def test_halves_and_odd_pieces(rig: Rig) -> None:
    rig.write(COUNTER, 0x1122_3344, 4)
    rig.write(COUNTER + 4, 0x5566_7788, 4)
    assert rig.read(COUNTER) == 0x5566_7788_1122_3344
    assert (rig.read(COUNTER, 4), rig.read(COUNTER + 4, 4)) == (0x1122_3344, 0x5566_7788)
    assert (rig.read(COUNTER + 2, 2), rig.read(COUNTER + 7, 1)) == (0x1122, 0x55)
    for offset, size in ((COUNTER, 1), (COUNTER, 2), (COUNTER + 2, 4), (COUNTER + 4, 8)):
        rig.write(offset, 0, size)
    assert rig.read(COUNTER) == 0x5566_7788_1122_3344
    assert rig.read(4, 4) == 10_000_000


def test_read_only_bits_of_a_timer_configuration(rig: Rig) -> None:
    rig.write(t(1, 0), 0xFFFF_FFFF_FFFF_FFFF)
    assert rig.read(t(1, 0)) == 0x4_0000_3F7E


def test_one_shot(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(2, 0), INTERRUPT | ROUTE_2)
    rig.write(t(2, 8), MS)
    rig.clock.advance(100_000_000)
    assert rig.edges == [(1_000_000, 2)]
    assert rig.read(STATUS) == 0
    assert rig.levels == {2: False}


def test_comparator_a_little_behind_matches_at_once_as_qemu_does(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.clock.advance(1_000_000)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2 | WIDTH_32)
    rig.write(t(0, 8), MS - 5, 4)
    rig.clock.advance(0)
    assert rig.times() == [MS]


def test_comparator_far_behind_waits_for_the_counter_to_come_round(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.clock.advance(20_000_000_000)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2 | WIDTH_32)
    rig.write(t(0, 8), MS, 4)
    rig.clock.advance(50_000_000_000)
    assert rig.times() == [(1 << 32) + MS]


def test_enabling_a_timer_does_not_make_an_old_comparator_match(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 8), MS)
    rig.clock.advance(2_000_000)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2)
    rig.clock.advance(1_000_000_000)
    assert rig.times() == []


def test_32_bit_one_shot_matches_each_time_round(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2 | WIDTH_32)
    rig.write(t(0, 8), MS)
    rig.clock.advance(100_000_000_000)
    assert rig.times() == [MS, (1 << 32) + MS, (2 << 32) + MS]


def linux_periodic(rig: Rig, period: int, flags: int = 0) -> None:
    """Program timer 0 as Linux does: first match, then period."""
    rig.write(t(0, 0), INTERRUPT | PERIODIC | SET_VALUE | WIDTH_32 | flags, 4)
    rig.write(t(0, 8), rig.read(COUNTER, 4) + period, 4)
    rig.write(t(0, 8), period, 4)


def test_periodic(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    rig.clock.advance(5_000_000)
    linux_periodic(rig, MS)
    assert not rig.read(t(0, 0)) & SET_VALUE
    rig.clock.advance(10_000_000)
    assert rig.times() == [MS * tick for tick in range(6, 16)]
    assert rig.read(t(0, 8)) == 16 * MS, "the comparator shows the next match"


def test_one_write_sets_first_match_and_period(rig: Rig) -> None:
    rig.write(t(0, 0), INTERRUPT | PERIODIC | SET_VALUE | ROUTE_2)
    rig.write(t(0, 8), MS)
    rig.write(CONFIG, 1)
    rig.clock.advance(3_000_000)
    assert rig.times() == [MS, 2 * MS, 3 * MS]


def test_host_that_stalls_between_first_match_and_period(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    rig.clock.advance(5_000_000)
    rig.write(t(0, 0), INTERRUPT | PERIODIC | SET_VALUE | WIDTH_32, 4)
    rig.write(t(0, 8), 6 * MS, 4)
    rig.clock.stall(3_500_000)
    rig.clock.wake()
    rig.write(t(0, 8), MS, 4)
    rig.times()
    rig.clock.advance(2_000_000)
    assert rig.times() == [9 * MS, 10 * MS]


def test_missed_periods_make_one_interrupt(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    linux_periodic(rig, MS)
    rig.clock.stall(50_300_000)
    rig.clock.wake()
    assert len(rig.times()) == 1
    rig.clock.advance(1_000_000)
    assert rig.times() == [51 * MS]


def test_absurd_period_is_thinned_out(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    linux_periodic(rig, 1)
    rig.clock.advance(10_000_000)
    assert 0 < len(rig.times()) <= 501


def test_due_match_is_not_lost_by_programming(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2)
    rig.write(t(0, 8), MS)
    rig.clock.stall(2_000_000)
    rig.write(t(0, 8), 5 * MS)
    assert len(rig.times()) == 1
    rig.clock.advance(3_000_000)
    assert rig.times() == [5 * MS]


def test_level_stays_until_status_is_cleared(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(1, 0), INTERRUPT | LEVEL | ROUTE_2)
    rig.write(t(1, 8), MS)
    rig.clock.advance(2_000_000)
    assert rig.levels == {2: True}
    assert rig.read(STATUS) == 0x2
    rig.write(STATUS, 0x5)
    assert rig.levels == {2: True}
    rig.write(STATUS, 0x2)
    assert rig.levels == {2: False}
    assert rig.read(STATUS) == 0


def test_level_timers_share_a_line(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    for index in (1, 2):
        rig.write(t(index, 0), INTERRUPT | LEVEL | ROUTE_2)
        rig.write(t(index, 8), MS)
    rig.clock.advance(1_000_000)
    rig.write(STATUS, 0x2)
    assert rig.levels == {2: True}
    rig.write(t(2, 0), LEVEL | ROUTE_2)
    assert rig.levels == {2: False}


def test_route_that_does_not_exist_interrupts_nobody(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 0), INTERRUPT | 3 << 9)
    rig.write(t(0, 8), MS)
    rig.clock.advance(2_000_000)
    assert rig.edges == []


def test_timer_without_interrupt_enable_is_silent(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    rig.write(t(0, 0), PERIODIC | SET_VALUE)
    rig.write(t(0, 8), MS)
    rig.clock.advance(2_500_000)
    assert rig.edges == []
    assert rig.read(t(0, 8)) == 3 * MS


def test_halt_holds_timers(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2)
    rig.write(t(0, 8), MS)
    rig.clock.advance(400_000)
    rig.write(CONFIG, 0)
    rig.clock.advance(10_000_000)
    assert rig.edges == []
    rig.write(CONFIG, 1)
    rig.clock.advance(600_000)
    assert rig.times() == [1_100_000]


def test_new_counter_value_moves_the_match(rig: Rig) -> None:
    rig.write(CONFIG, 1)
    rig.write(t(0, 0), INTERRUPT | ROUTE_2)
    rig.write(t(0, 8), 10 * MS)
    rig.write(COUNTER, 9 * MS)
    rig.clock.advance(5_000_000)
    assert rig.times() == [MS]


def test_legacy_replacement_routes(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    assert rig.legacy == [True]
    for index in range(3):
        rig.write(t(index, 0), INTERRUPT | ROUTE_2)
        rig.write(t(index, 8), MS)
    rig.clock.advance(1_000_000)
    assert sorted(gsi for _, gsi in rig.edges) == [0, 2, 8]
    rig.write(CONFIG, 1)
    assert rig.legacy == [True, False]


def test_reset_ends_legacy_replacement_and_lowers_lines(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    rig.write(t(0, 0), INTERRUPT | LEVEL)
    rig.write(t(0, 8), MS)
    rig.clock.advance(1_000_000)
    assert rig.levels == {0: True}
    rig.hpet.reset()
    assert rig.levels == {0: False}
    assert rig.legacy == [True, False]
    assert rig.hpet.save() == HpetState()


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.write(CONFIG, 3)
    linux_periodic(rig, MS)
    rig.write(t(1, 0), INTERRUPT | LEVEL)
    rig.write(t(1, 8), MS)
    rig.clock.advance(2_500_000)
    other = Rig()
    other.clock.stall(2_500_000)
    other.hpet.load(HpetState.from_dict(rig.hpet.save().to_dict()))
    assert other.levels == {8: True}
    assert other.legacy == [True]
    assert other.hpet.save() == rig.hpet.save()
    other.clock.advance(1_000_000)
    assert (3_000_000, 0) in other.edges
    assert other.read(COUNTER) == 350_000


@pytest.mark.parametrize(
    ("field", "value"),
    [("config", 0x30), ("config", 0x4_0000_0031), ("period", 1 << 63), ("comparator", -1), ("deadline", -1)],
)
def test_impossible_timer_state_is_refused(rig: Rig, field: str, value: int) -> None:
    state = rig.hpet.save()
    setattr(state.timers[0], field, value)
    with pytest.raises(StateError):
        rig.hpet.load(state)


def test_status_of_an_edge_triggered_timer_is_refused(rig: Rig) -> None:
    state = rig.hpet.save()
    state.status = 1
    with pytest.raises(StateError):
        rig.hpet.load(state)


OFFSETS = st.one_of(
    st.integers(0, 0x3FF), st.sampled_from([CONFIG, STATUS, COUNTER, *(t(i, r) for i in range(3) for r in (0, 8))])
)
VALUES = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF))
ACTIONS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, VALUES),
    st.tuples(st.just("read"), OFFSETS, st.just(0)),
    st.tuples(st.just("advance"), st.just(0), st.integers(0, 500_000)),
    st.tuples(st.just("stall"), st.just(0), st.integers(0, 500_000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=50), st.sampled_from([1, 2, 4, 8]))
def test_no_sequence_of_accesses_breaks_it(actions: list[tuple[str, int, int]], size: int) -> None:
    rig = Rig()
    for kind, where, value in actions:
        if kind == "write":
            rig.write(where, value & (1 << 8 * size) - 1, size)
        elif kind == "read":
            rig.read(where, size)
        elif kind == "advance":
            rig.clock.advance(value)
        else:
            rig.clock.stall(value)
            rig.clock.wake()
        rig.hpet.save().check()
    assert len(rig.edges) <= 200 + rig.clock.now() // 5_000
    other = Rig()
    other.clock.stall(rig.clock.now())
    other.hpet.load(rig.hpet.save())
    assert other.hpet.save() == rig.hpet.save()
    assert {gsi for gsi, level in other.levels.items() if level} == {gsi for gsi, level in rig.levels.items() if level}
