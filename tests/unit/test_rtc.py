"""The MC146818: time and formats, setting the clock, alarms, periodic and update interrupts, memory."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import NANOSECONDS
from pyvm.devices.rtc import Rtc, RtcState, civil_from_days, days_from_civil
from pyvm.irq import IrqLine
from pyvm.state import StateError
from tests.unit.late_clock import LateClock

A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, PIE, AIE, UIE, BINARY, HOURS_24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LEAP_NIGHT = datetime(2024, 2, 29, 23, 59, 50, tzinfo=UTC)


class Rig:
    """A clock whose interrupts are noted by their times in ns."""

    def __init__(self, start: datetime = LEAP_NIGHT) -> None:
        self.clock = LateClock()
        self.edges: list[int] = []
        self.irq = IrqLine(self._irq)
        self.base = int((start - EPOCH).total_seconds())
        self.rtc = Rtc(self.clock, self.irq, lambda: self.base)
        self.changes: list[int] = []
        self.alarms: list[int] = []
        self.rtc.on_change = self.changes.append
        self.rtc.on_alarm = lambda: self.alarms.append(self.clock.now())

    def _irq(self, level: bool) -> None:
        if level:
            self.edges.append(self.clock.now())

    def get(self, index: int) -> int:
        """Read a byte as a guest does."""
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        """Write a byte as a guest does."""
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> list[int]:
        """Return century, year, month, day, hours, minutes, seconds and day of the week, as the bytes are."""
        return [self.get(index) for index in (CENTURY, 9, 8, 7, 4, 2, 0, 6)]

    def linux_sets(self, moment: datetime) -> None:
        """Set the clock as Linux's mc146818_set_time does: halted, divider reset, BCD."""
        control, divider = self.get(B), self.get(A)
        self.put(B, control | SET)
        self.put(A, divider & 0x8F | 0x70)
        for index, value in (
            *((9, moment.year % 100), (8, moment.month), (7, moment.day), (4, moment.hour), (2, moment.minute)),
            *((0, moment.second), (CENTURY, moment.year // 100)),
        ):
            self.put(index, value // 10 << 4 | value % 10)
        self.put(B, control)
        self.put(A, divider)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_power_on(rig: Rig) -> None:
    assert [rig.get(index) for index in (A, B, C, D)] == [0x26, 0x02, 0x00, 0x80]
    assert rig.rtc.read(0, 1) == 0xFF, "the index cannot be read"


def test_time_in_bcd_passes_a_leap_day(rig: Rig) -> None:
    assert rig.time() == [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x50, 5]
    rig.clock.advance(10 * NANOSECONDS - 1)
    assert rig.time() == [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x59, 5]
    rig.clock.advance(1)
    assert rig.time() == [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6]


@pytest.mark.parametrize(
    ("hour", "plain", "binary"), [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (23, 0x91, 0x8B)]
)
def test_12_hour_format(hour: int, plain: int, binary: int) -> None:
    rig = Rig(datetime(2024, 1, 31, hour, 30, tzinfo=UTC))
    rig.put(B, 0)
    assert rig.get(4) == plain
    rig.put(B, BINARY)
    assert rig.get(4) == binary
    assert rig.get(7) == 31
    rig.put(4, binary)
    rig.put(B, BINARY | HOURS_24)
    assert rig.get(4) == hour
    assert rig.changes == []


@given(st.integers(-719_162, 3_000_000))
def test_calendar_agrees_with_pythons(days: int) -> None:
    if days > (datetime(9999, 12, 31, tzinfo=UTC) - EPOCH).days:
        days -= 365 * 4000
    date = EPOCH + timedelta(days=days)
    assert civil_from_days(days) == (date.year, date.month, date.day)
    assert days_from_civil(date.year, date.month, date.day) == days


@pytest.mark.parametrize(
    ("date", "normal"),
    [((2023, 2, 29), (2023, 3, 1)), ((2024, 13, 1), (2025, 1, 1)), ((2024, 0, 0), (2023, 11, 30))],
)
def test_impossible_dates_are_carried_over(date: tuple[int, int, int], normal: tuple[int, int, int]) -> None:
    assert civil_from_days(days_from_civil(*date)) == normal


def test_century_is_found_at_its_ps2_place_too(rig: Rig) -> None:
    assert rig.get(0x37) == 0x20
    rig.put(0x37, 0x19)
    assert rig.get(CENTURY) == 0x19


def test_set_bit_freezes_the_time(rig: Rig) -> None:
    rig.put(B, SET | HOURS_24)
    rig.clock.advance(100 * NANOSECONDS)
    assert rig.time()[:7] == [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x50]
    rig.put(2, 0x10)
    assert rig.get(2) == 0x10
    rig.put(B, HOURS_24)
    assert rig.time()[:7] == [0x20, 0x24, 0x02, 0x29, 0x23, 0x10, 0x50]
    assert rig.changes == [-49 * 60 - 100]


def test_linux_sets_the_clock_and_the_first_update_is_half_a_second_later(rig: Rig) -> None:
    rig.clock.advance(200_000_000)
    rig.linux_sets(datetime(2031, 12, 31, 23, 59, 59, tzinfo=UTC))
    rig.clock.advance(499_999_999)
    assert rig.time() == [0x20, 0x31, 0x12, 0x31, 0x23, 0x59, 0x59, 4]
    rig.clock.advance(1)
    assert rig.time() == [0x20, 0x32, 0x01, 0x01, 0x00, 0x00, 0x00, 5]
    moved = datetime(2031, 12, 31, 23, 59, 59, tzinfo=UTC) - LEAP_NIGHT
    assert rig.changes == [int(moved.total_seconds())]


def test_write_to_the_running_clock(rig: Rig) -> None:
    rig.put(0, 0x05)
    rig.clock.advance(NANOSECONDS)
    assert rig.get(0) == 0x06
    assert rig.changes == [-45]


def test_update_in_progress_announces_the_next_second(rig: Rig) -> None:
    rig.clock.advance(NANOSECONDS - 244_141)
    assert rig.get(A) == 0x26
    rig.clock.advance(1)
    assert rig.get(A) == 0xA6
    rig.put(B, SET | HOURS_24)
    assert rig.get(A) == 0x26
    rig.put(B, HOURS_24)
    rig.clock.advance(244_140)
    assert rig.get(A) == 0x26


def test_flags_are_set_without_their_interrupts(rig: Rig) -> None:
    assert rig.get(C) == 0
    rig.clock.advance(NANOSECONDS)
    assert rig.get(C) == PF | UF
    assert rig.get(C) == 0
    assert rig.edges == []


def test_update_interrupt_each_second_once_c_was_read(rig: Rig) -> None:
    rig.put(B, HOURS_24 | UIE)
    rig.clock.advance(3 * NANOSECONDS)
    assert rig.edges == [NANOSECONDS], "the line stays up"
    assert rig.get(C) == IRQF | PF | UF
    assert not rig.irq.level
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == [NANOSECONDS, 4 * NANOSECONDS]


def test_set_bit_clears_the_update_interrupt_enable(rig: Rig) -> None:
    rig.put(B, SET | HOURS_24 | UIE)
    assert rig.get(B) == SET | HOURS_24


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(rig: Rig, rate: int, hertz: int) -> None:
    rig.put(A, 0x20 | rate)
    rig.get(C)
    rig.put(B, HOURS_24 | PIE)
    for tick in range(1, 5):
        rig.clock.advance(-(-tick * NANOSECONDS // hertz) - rig.clock.now())
        assert len(rig.edges) == tick
        assert rig.get(C) & (IRQF | PF) == IRQF | PF
    assert rig.edges == [-(-tick * NANOSECONDS // hertz) for tick in range(1, 5)]


def test_no_periodic_interrupt_without_a_rate_or_divider(rig: Rig) -> None:
    rig.put(B, HOURS_24 | PIE)
    rig.put(A, 0x20)
    rig.clock.advance(NANOSECONDS)
    rig.put(A, 0x76)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == []


def test_missed_periodic_ticks_make_one_interrupt(rig: Rig) -> None:
    rig.put(B, HOURS_24 | PIE)
    rig.clock.stall(NANOSECONDS // 10)
    rig.clock.wake()
    assert len(rig.edges) == 1
    rig.get(C)
    rig.clock.advance(NANOSECONDS // 1024 + 1)
    assert len(rig.edges) == 2


def test_enabling_a_flagged_interrupt_raises_it(rig: Rig) -> None:
    rig.clock.advance(NANOSECONDS)
    rig.put(B, HOURS_24 | UIE)
    assert rig.edges == [NANOSECONDS]


def test_alarm(rig: Rig) -> None:
    for index, value in ((5, 0x00), (3, 0x01), (1, 0x30)):
        rig.put(index, value)
    rig.put(B, HOURS_24 | AIE)
    rig.clock.advance(3600 * NANOSECONDS)
    assert rig.edges == rig.alarms == [100 * NANOSECONDS]
    assert rig.get(C) & (IRQF | AF) == IRQF | AF
    rig.clock.advance(86_400 * NANOSECONDS)
    assert rig.edges == [100 * NANOSECONDS, 86_500 * NANOSECONDS]


@pytest.mark.parametrize(
    ("bytes_", "seconds"),
    [
        ((0xC0, 0xFF, 0xC1), [1, 2, 3]),
        ((0xFF, 0xFF, 0x00), [10, 70, 130]),
        ((0xFF, 0x05, 0x00), [310, 3910, 7510]),
        ((0x23, 0xFF, 0xFF), [1, 2, 3]),
        ((0x23, 0x59, 0x50), [86_400, 172_800]),
        ((0x23, 0x59, 0x4A), []),
        ((0x45, 0xFF, 0xFF), []),
    ],
)
def test_alarm_wildcards(rig: Rig, bytes_: tuple[int, int, int], seconds: list[int]) -> None:
    for index, value in zip((5, 3, 1), bytes_, strict=True):
        rig.put(index, value)
    rig.put(B, HOURS_24 | AIE)
    for second in seconds or [200_000]:
        rig.clock.advance(second * NANOSECONDS - rig.clock.now())
        rig.get(C)
    assert rig.edges == [second * NANOSECONDS for second in seconds]


def test_alarm_in_12_hour_format() -> None:
    rig = Rig(datetime(2024, 1, 1, 11, 59, 59, tzinfo=UTC))
    rig.put(B, AIE)
    for index, value in ((5, 0x92), (3, 0x00), (1, 0x00)):
        rig.put(index, value)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == [NANOSECONDS]


def test_alarm_waits_while_the_clock_is_set(rig: Rig) -> None:
    for index in (1, 3, 5):
        rig.put(index, 0xFF)
    rig.put(B, HOURS_24 | AIE | SET)
    rig.clock.advance(5 * NANOSECONDS)
    assert rig.edges == []
    rig.put(B, HOURS_24 | AIE)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == [6 * NANOSECONDS]


def test_hpet_takes_irq_8_away(rig: Rig) -> None:
    rig.put(B, HOURS_24 | UIE)
    rig.rtc.set_irq_disabled(True)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == []
    rig.rtc.set_irq_disabled(False)
    assert rig.edges == [NANOSECONDS]


def test_registers_c_and_d_are_read_only_and_bit_7_of_a(rig: Rig) -> None:
    for index in (C, D):
        rig.put(index, 0xFF)
    rig.put(A, 0xA6)
    assert [rig.get(index) for index in (A, C, D)] == [0x26, 0, 0x80]


def test_memory_keeps_what_firmware_and_guest_write(rig: Rig) -> None:
    rig.rtc.set_cmos(0x15, 0x80)
    rig.put(0x8F, 0xA5)
    assert (rig.get(0x15), rig.get(0x0F), rig.rtc.cmos(0x0F)) == (0x80, 0xA5, 0xA5)
    assert rig.rtc.cmos(0) == 0x50


def test_reset_disables_interrupts_and_keeps_time_and_memory(rig: Rig) -> None:
    rig.put(0x40, 0x77)
    rig.put(0, 0x10)
    rig.put(B, BINARY | HOURS_24 | UIE | PIE | AIE)
    rig.clock.advance(NANOSECONDS)
    assert rig.irq.level
    rig.rtc.reset()
    assert not rig.irq.level
    assert (rig.get(B), rig.get(C), rig.get(0x40), rig.get(0)) == (BINARY | HOURS_24, 0, 0x77, 11)


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.linux_sets(datetime(2030, 5, 17, 12, 0, 0, tzinfo=UTC))
    rig.put(B, HOURS_24 | UIE)
    rig.clock.advance(NANOSECONDS)
    other = Rig()
    other.clock.stall(NANOSECONDS)
    other.rtc.load(RtcState.from_dict(rig.rtc.save().to_dict()))
    assert other.irq.level
    assert other.time() == rig.time()
    other.get(C)
    other.clock.advance(NANOSECONDS)
    assert other.edges == [NANOSECONDS, 1_500_000_000]


@pytest.mark.parametrize(("index", "value"), [(A, 0xA6), (D, 0), (C, 0x80), (C, 0x90)])
def test_impossible_state_is_refused(rig: Rig, index: int, value: int) -> None:
    state = rig.rtc.save()
    cmos = bytearray(state.cmos)
    cmos[index] = value
    state.cmos = bytes(cmos)
    with pytest.raises(StateError):
        rig.rtc.load(state)


INDEXES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, A, B, B, C, D, CENTURY]))
ACTIONS = st.one_of(
    st.tuples(st.just("put"), INDEXES, st.integers(0, 255)),
    st.tuples(st.just("get"), INDEXES, st.just(0)),
    st.tuples(st.just("advance"), st.just(0), st.integers(0, 3 * NANOSECONDS)),
    st.tuples(st.just("stall"), st.just(0), st.integers(0, 3_600 * NANOSECONDS)),
    st.tuples(st.just("base"), st.just(0), st.integers(-100, 100)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=50))
def test_no_sequence_of_accesses_breaks_it(actions: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for kind, where, value in actions:
        if kind == "put":
            rig.put(where, value)
        elif kind == "get":
            assert 0 <= rig.get(where) <= 255
        elif kind == "advance":
            rig.clock.advance(value)
        elif kind == "stall":
            rig.clock.stall(value)
            rig.clock.wake()
        else:
            rig.base += value
        state = rig.rtc.save()
        state.check()
        assert rig.irq.level == bool(state.cmos[C] & IRQF)
    other = Rig()
    other.base = rig.base
    other.clock.stall(rig.clock.now())
    other.rtc.load(rig.rtc.save())
    assert other.time() == rig.time()
    assert other.irq.level == rig.irq.level


class TestMissedTicks:
    """Ticks that a guest was too slow for, where the machine makes up for them."""

    PERIOD = NANOSECONDS // 64  # rate 10

    @staticmethod
    def rig(make_up: bool = True) -> Rig:
        rig = Rig()
        rig.rtc = Rtc(rig.clock, rig.irq, lambda: rig.base, make_up=make_up)
        rig.put(A, 0x2A)
        rig.put(B, 0x42)
        rig.get(C)
        return rig

    @staticmethod
    def acknowledged(rig: Rig) -> int:
        """Read register C until it has nothing to tell; return how many ticks there were."""
        count = 0
        while rig.get(C) & 0x40:
            count += 1
        return count

    def test_they_follow_when_the_register_was_read(self) -> None:
        rig = self.rig()
        rig.clock.advance(5 * self.PERIOD)
        edges = len(rig.edges)
        assert self.acknowledged(rig) == 5
        assert len(rig.edges) == edges + 4

    def test_none_is_made_up_for_otherwise(self) -> None:
        rig = self.rig(make_up=False)
        rig.clock.advance(5 * self.PERIOD)
        assert self.acknowledged(rig) == 1

    def test_not_too_many_come_in_a_row_and_none_is_lost(self) -> None:
        rig = self.rig()
        rig.clock.advance(100 * self.PERIOD)
        counts = [self.acknowledged(rig)]
        while counts[-1] != 1:
            rig.clock.advance(self.PERIOD)
            counts.append(self.acknowledged(rig))
        assert counts[0] == 21
        assert max(counts) == 21
        assert sum(counts) == 100 + len(counts) - 1

    def test_another_rate_keeps_the_time_that_was_missed(self) -> None:
        rig = self.rig()
        rig.clock.advance(5 * self.PERIOD)
        rig.put(A, 0x29)  # twice as fast
        assert self.acknowledged(rig) == 1 + 8

    def test_they_can_be_forgotten(self) -> None:
        rig = self.rig()
        rig.clock.advance(5 * self.PERIOD)
        rig.rtc.save()
        rig.get(A)
        rig.rtc._sync()
        rig.rtc.forget_missed()
        assert self.acknowledged(rig) == 1

    @pytest.mark.parametrize("turn_off", [lambda rig: rig.put(B, 0x02), lambda rig: rig.rtc.reset()])
    def test_they_end_with_periodic_interrupts(self, turn_off: Callable[[Rig], None]) -> None:
        rig = self.rig()
        rig.clock.advance(5 * self.PERIOD)
        turn_off(rig)
        rig.put(B, 0x42)
        assert self.acknowledged(rig) <= 1

    def test_they_are_part_of_the_state(self) -> None:
        rig = self.rig()
        rig.clock.advance(5 * self.PERIOD)
        rig.get(C)
        state = rig.rtc.save()
        assert (state.missed, state.made_up) == (3, 1)
        other = self.rig()
        other.clock.advance(5 * self.PERIOD)
        other.rtc.load(state)
        assert self.acknowledged(other) == 4
        with pytest.raises(StateError, match="missed"):
            Rig().rtc.load(state)
