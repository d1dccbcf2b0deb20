"""The 8254: modes, counts, latches, read-back, gate, port 61, and the interrupts of channel 0."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import NANOSECONDS
from pyvm.devices.pit import FREQUENCY, Pit, PitState
from pyvm.irq import IrqLine
from pyvm.state import StateError
from tests.unit.late_clock import LateClock


def ns(ticks: int) -> int:
    """Return the first guest time at which the PIT clock has made `ticks` ticks."""
    return -(-ticks * NANOSECONDS // FREQUENCY)


class Rig:
    """A timer whose IRQ 0 edges are counted."""

    def __init__(self) -> None:
        self.clock = LateClock()
        self.edges: list[int] = []
        self.irq = IrqLine(self._irq)
        self.pit = Pit(self.clock, self.irq)

    def _irq(self, level: bool) -> None:
        if level:
            self.edges.append(self.clock.now())

    def at(self, tick: int) -> None:
        """Go to a tick of the PIT clock."""
        self.clock.advance(ns(tick) - self.clock.now())

    def program(self, channel: int, mode: int, count: int, bcd: bool = False) -> None:
        """Write control word and count."""
        self.pit.write(3, 1, channel << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(channel, 1, count & 0xFF)
        self.pit.write(channel, 1, count >> 8)

    def count(self, channel: int) -> int:
        """Latch and read a count of two bytes."""
        self.pit.write(3, 1, channel << 6)
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def status(self, channel: int) -> int:
        """Read the status byte."""
        self.pit.write(3, 1, 0xE0 | 2 << channel)
        return self.pit.read(channel, 1)

    def out(self, channel: int) -> bool:
        """Read a channel's output from its status."""
        return bool(self.status(channel) & 0x80)

    def gate2(self, level: bool) -> None:
        """Drive the gate of channel 2."""
        self.pit.port61_write(0, 1, level)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def waveform(rig: Rig, channel: int, ticks: int) -> str:
    """Return the output over that many ticks from the next on."""
    start = rig.clock.now() * FREQUENCY // NANOSECONDS
    levels = []
    for tick in range(start + 1, start + 1 + ticks):
        rig.at(tick)
        levels.append("1" if rig.out(channel) else "0")
    return "".join(levels)


@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [
        (0, 3, "00011111"),
        (2, 3, "1101101101"),
        (3, 4, "1100110011"),
        (3, 5, "1110011100"),
        (4, 3, "11101111"),
        (6, 3, "1101101101"),
        (7, 4, "1100110011"),
    ],
)
def test_output_waveform(rig: Rig, mode: int, count: int, expected: str) -> None:
    rig.program(1, mode, count)
    assert waveform(rig, 1, len(expected)) == expected


@pytest.mark.parametrize(("mode", "expected"), [(1, "00011111"), (5, "11101111")])
def test_triggered_modes_wait_for_the_gate_and_trigger_again(rig: Rig, mode: int, expected: str) -> None:
    rig.program(2, mode, 3)
    assert waveform(rig, 2, 5) == "11111"
    for _ in range(2):
        rig.gate2(True)
        assert waveform(rig, 2, len(expected)) == expected
        rig.gate2(False)
        assert waveform(rig, 2, 2) == "11"


def test_one_shot_is_prolonged_by_a_second_trigger(rig: Rig) -> None:
    rig.program(2, 1, 4)
    rig.gate2(True)
    assert waveform(rig, 2, 3) == "000"
    rig.gate2(False)
    rig.gate2(True)
    assert waveform(rig, 2, 6) == "000011"


def test_one_shot_takes_a_new_count_with_the_next_trigger(rig: Rig) -> None:
    rig.program(2, 1, 4)
    rig.gate2(True)
    assert waveform(rig, 2, 2) == "00"
    rig.pit.write(2, 1, 2)
    rig.pit.write(2, 1, 0)
    assert waveform(rig, 2, 4) == "0011"
    assert rig.status(2) & 0x40
    rig.gate2(False)
    rig.gate2(True)
    assert waveform(rig, 2, 4) == "0011"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0, [5, 4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]),
        (2, [5, 4, 3, 2, 1, 5, 4, 3]),
        (3, [4, 2, 0, 4, 2, 4, 2, 0]),
        (4, [5, 4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]),
    ],
)
def test_counting_element(rig: Rig, mode: int, expected: list[int]) -> None:
    rig.program(1, mode, 5)
    seen = []
    for tick in range(1, 9):
        rig.at(tick)
        seen.append(rig.count(1))
    assert seen == expected


def test_bcd_counts_in_decimal(rig: Rig) -> None:
    rig.program(1, 0, 0x1000, bcd=True)
    rig.at(2)
    assert rig.count(1) == 0x0999
    rig.at(1002)
    assert rig.count(1) == 0x9999, "and wraps in decimal"
    rig.program(1, 2, 0, bcd=True)
    rig.at(1003)
    assert rig.count(1) == 0x0000, "0 stands for 10000"
    rig.at(1004)
    assert rig.count(1) == 0x9999


def test_zero_stands_for_65536(rig: Rig) -> None:
    rig.program(0, 2, 0)
    rig.at(1 + 65535)
    assert rig.count(0) == 1
    assert rig.edges == []
    rig.at(1 + 65536)
    assert len(rig.edges) == 1


def test_latched_count_stays_until_it_is_read(rig: Rig) -> None:
    rig.program(1, 2, 1000)
    rig.at(101)
    rig.pit.write(3, 1, 0x40)
    rig.at(201)
    rig.pit.write(3, 1, 0x40)
    assert rig.pit.read(1, 1) | rig.pit.read(1, 1) << 8 == 900
    assert rig.pit.read(1, 1) | rig.pit.read(1, 1) << 8 == 800


def test_single_byte_access(rig: Rig) -> None:
    rig.pit.write(3, 1, 0x54)  # channel 1, low byte, mode 2
    rig.pit.write(1, 1, 0x40)
    rig.at(11)
    assert [rig.pit.read(1, 1) for _ in range(2)] == [0x36, 0x36]
    rig.pit.write(3, 1, 0x64)  # high byte
    rig.pit.write(1, 1, 0x40)
    rig.at(12)
    assert rig.pit.read(1, 1) == 0x40
    rig.at(13)
    assert rig.pit.read(1, 1) == 0x3F


def test_read_back_gives_status_then_count(rig: Rig) -> None:
    rig.program(1, 3, 100)
    rig.at(1)
    rig.pit.write(3, 1, 0xC4)
    assert rig.pit.read(1, 1) == 0x80 | 0x30 | 3 << 1
    assert rig.pit.read(1, 1) | rig.pit.read(1, 1) << 8 == 100


def test_read_back_of_several_channels_and_of_nothing(rig: Rig) -> None:
    rig.pit.write(3, 1, 0xEE)
    statuses = [rig.pit.read(index, 1) for index in range(3)]
    assert statuses == [0xB6, 0xB6, 0xB6]
    rig.at(50)
    rig.pit.write(3, 1, 0xFE)
    assert rig.count(0) == 65536 - 2 * 50


def test_null_count_until_the_count_is_loaded(rig: Rig) -> None:
    rig.pit.write(3, 1, 0x74)
    assert rig.status(1) & 0x40
    rig.pit.write(1, 1, 10)
    rig.pit.write(1, 1, 0)
    assert rig.status(1) & 0x40, "loaded by the next clock pulse"
    rig.at(1)
    assert not rig.status(1) & 0x40


def test_periodic_modes_finish_the_period_before_a_new_count(rig: Rig) -> None:
    rig.program(1, 2, 5)
    rig.at(3)
    rig.pit.write(1, 1, 3)
    rig.pit.write(1, 1, 0)
    assert rig.status(1) & 0x40
    assert waveform(rig, 1, 9) == "101101101"
    rig.program(1, 3, 6)
    start = rig.clock.now() * FREQUENCY // NANOSECONDS
    rig.at(start + 2)
    rig.pit.write(1, 1, 4)
    rig.pit.write(1, 1, 0)
    assert waveform(rig, 1, 9) == "100110011", "a square wave finishes its half"


def test_mode_0_stops_with_the_first_byte_of_a_new_count(rig: Rig) -> None:
    rig.program(1, 0, 2)
    rig.at(10)
    assert rig.out(1)
    rig.pit.write(1, 1, 2)
    assert not rig.out(1)
    rig.at(100)
    assert not rig.out(1)
    rig.pit.write(1, 1, 0)
    assert waveform(rig, 1, 4) == "0011"


@pytest.mark.parametrize("mode", [0, 4])
def test_gate_suspends_counting(rig: Rig, mode: int) -> None:
    rig.gate2(True)
    rig.program(2, mode, 100)
    rig.at(31)
    rig.gate2(False)
    assert rig.count(2) == 70
    rig.at(500)
    assert rig.count(2) == 70
    rig.gate2(True)
    rig.at(510)
    assert rig.count(2) == 60


@pytest.mark.parametrize("mode", [2, 3])
def test_gate_restarts_a_period(rig: Rig, mode: int) -> None:
    rig.gate2(True)
    rig.program(2, mode, 100)
    rig.at(96)
    assert rig.out(2) == (mode == 2)
    rig.gate2(False)
    assert rig.out(2), "without the gate the output is high"
    rig.at(500)
    rig.gate2(True)
    rig.at(501)
    assert rig.count(2) == 100


def test_channel_2_polled_through_port_61_as_linux_calibrates(rig: Rig) -> None:
    rig.pit.port61_write(0, 1, 0x01)
    rig.program(2, 0, 0xFFFF)
    last = 0x10000
    for _ in range(200):
        rig.clock.advance(3_000)
        value = rig.pit.read(2, 1) | rig.pit.read(2, 1) << 8
        assert value < last
        last = value
    elapsed = rig.clock.now() * FREQUENCY // NANOSECONDS
    assert last == 0xFFFF - (elapsed - 1)
    assert not rig.pit.port61_read(0, 1) & 0x20
    rig.at(0x10000 - 1)
    assert not rig.pit.port61_read(0, 1) & 0x20
    rig.at(0x10000)
    assert rig.pit.port61_read(0, 1) & 0x20


def test_port_61_keeps_four_bits_and_toggles_refresh(rig: Rig) -> None:
    rig.pit.port61_write(0, 1, 0xFF)
    assert rig.pit.port61_read(0, 1) & 0xCF == 0x0F
    toggles = set()
    for _ in range(4):
        toggles.add(rig.pit.port61_read(0, 1) & 0x10)
        rig.clock.advance(15_086)
    assert toggles == {0, 0x10}


def test_reset_gives_18_interrupts_a_second(rig: Rig) -> None:
    assert rig.pit.port61_read(0, 1) == 0x20
    rig.clock.advance(NANOSECONDS)
    assert len(rig.edges) == 18


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_interrupts_do_not_drift(rig: Rig, mode: int) -> None:
    rig.program(0, mode, 1193)
    rig.clock.advance(10 * NANOSECONDS)
    ticks = (10 * FREQUENCY - 1) // 1193
    assert rig.edges == [ns(1 + 1193 * k) for k in range(1, ticks + 1)]


def test_terminal_count_interrupts_once(rig: Rig) -> None:
    rig.program(0, 0, 1000)
    assert not rig.irq.level
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == [ns(1001)]
    assert rig.irq.level


def test_software_strobe_interrupts_after_the_strobe(rig: Rig) -> None:
    rig.program(0, 4, 1000)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == [ns(1002)]


@pytest.mark.parametrize("mode", [1, 5])
def test_channel_0_has_no_trigger(rig: Rig, mode: int) -> None:
    rig.program(0, mode, 1000)
    rig.clock.advance(NANOSECONDS)
    assert rig.edges == []


def test_output_that_rises_with_the_control_word_interrupts(rig: Rig) -> None:
    rig.program(0, 0, 1000)
    rig.pit.write(3, 1, 0x34)
    assert rig.edges == [0]


def test_new_count_of_channel_0_takes_effect_after_the_period(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.at(500)
    rig.pit.write(0, 1, 100)
    rig.pit.write(0, 1, 0)
    rig.at(1301)
    assert rig.edges == [ns(tick) for tick in (1001, 1101, 1201, 1301)]
    rig.program(0, 3, 1000)
    rig.at(1301 + 200)
    del rig.edges[:]
    rig.pit.write(0, 1, 100)
    rig.pit.write(0, 1, 0)
    rig.at(1302 + 500 + 50 + 100)
    assert rig.edges == [ns(1302 + 500 + 50), ns(1302 + 500 + 150)]


def test_missed_ticks_make_one_interrupt_and_keep_the_grid(rig: Rig) -> None:
    rig.program(0, 2, 1193)
    rig.clock.stall(ns(1 + 1193 * 50 + 7))
    rig.clock.wake()
    assert len(rig.edges) == 1
    rig.at(1 + 1193 * 51)
    assert rig.edges[1:] == [ns(1 + 1193 * 51)]


def test_interrupt_that_is_due_is_not_lost_by_programming(rig: Rig) -> None:
    rig.program(0, 0, 1000)
    rig.clock.stall(ns(5000))
    rig.pit.write(3, 1, 0x34)
    assert len(rig.edges) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("mode", [2, 3])
def test_absurd_rates_are_thinned_out(rig: Rig, mode: int, count: int) -> None:
    rig.program(0, mode, count)
    rig.clock.advance(NANOSECONDS // 100)
    assert len(rig.edges) <= 500
    assert (count == 1) == (rig.edges == [])


def test_hpet_takes_irq_0_away_and_gives_it_back(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.pit.set_irq0_disabled(True)
    rig.at(5500)
    assert rig.edges == []
    rig.pit.set_irq0_disabled(False)
    rig.at(6001)
    assert rig.edges == [ns(6001)]


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.gate2(True)
    rig.program(2, 0, 50_000)
    rig.at(20_500)
    rig.pit.write(3, 1, 0x80)
    state = PitState.from_dict(rig.pit.save().to_dict())
    other = Rig()
    other.at(20_500)
    del other.edges[:]
    other.pit.load(state)
    del other.edges[:]
    for each in (rig, other):
        del each.edges[:]
        each.at(21_001)
        assert each.edges == [ns(21_001)]
        assert each.pit.read(2, 1) | each.pit.read(2, 1) << 8 == 50_000 - 20_499
    assert other.pit.save() == rig.pit.save()


@pytest.mark.parametrize(("field", "value"), [("mode", 6), ("access", 0), ("count", 0), ("gate", False), ("held", -1)])
def test_impossible_state_is_refused(rig: Rig, field: str, value: object) -> None:
    state = rig.pit.save()
    setattr(state.channels[0], field, value)
    with pytest.raises(StateError):
        rig.pit.load(state)


def test_gate_of_channel_2_must_fit_port_61(rig: Rig) -> None:
    state = rig.pit.save()
    state.port61 = 1
    with pytest.raises(StateError):
        rig.pit.load(state)


ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 255)),
    st.tuples(st.just("read"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("port61"), st.just(0), st.integers(0, 255)),
    st.tuples(st.just("hpet"), st.just(0), st.integers(0, 1)),
    st.tuples(st.just("advance"), st.just(0), st.integers(0, 2_000_000)),
    st.tuples(st.just("late"), st.just(0), st.integers(0, 2_000_000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=50))
def test_no_sequence_of_accesses_breaks_the_timer(actions: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for kind, where, value in actions:
        if kind == "write":
            rig.pit.write(where, 1, value)
        elif kind == "read":
            assert 0 <= rig.pit.read(where, 1) <= 255
        elif kind == "port61":
            rig.pit.port61_write(0, 1, value)
            assert rig.pit.port61_read(0, 1) & 0x0F == value & 0x0F
        elif kind == "hpet":
            rig.pit.set_irq0_disabled(bool(value))
        elif kind == "advance":
            rig.clock.advance(value)
        else:
            rig.clock.stall(value)
            rig.clock.wake()
        state = rig.pit.save()
        state.check()
    assert len(rig.edges) <= 60 + rig.clock.now() // 20_000
    other = Rig()
    other.clock.stall(rig.clock.now())
    other.pit.load(rig.pit.save())
    assert other.pit.save() == rig.pit.save()
    assert [other.pit.read(index, 1) for index in range(3)] == [rig.pit.read(index, 1) for index in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(1, 0x10000),
    st.integers(-(1 << 63), 1 << 63) | st.none(),
    st.integers(1, 0x10000) | st.none(),
    st.integers(-(1 << 63), 1 << 63),
)
def test_any_checked_state_runs(mode: int, count: int, start: int | None, pending: int | None, pending_at: int) -> None:
    rig = Rig()
    state = rig.pit.save()
    channel = state.channels[0]
    channel.mode, channel.count, channel.start = mode, count, start
    channel.pending, channel.pending_at = pending, pending_at
    rig.pit.load(state)
    rig.clock.advance(1_000_000)
    assert 0 <= rig.count(0) <= 0xFFFF
    rig.status(0)
