"""ACPI fixed hardware: PM1, timer, GPE0 and the command port."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.acpi.pm import (
    ACPI_DISABLE,
    ACPI_ENABLE,
    PM1_POWER_BUTTON,
    PM1_RTC,
    PM1_TIMER,
    PM1_WAKE,
    TIMER_HALF,
    TIMER_HZ,
    AcpiPm,
    AcpiPmState,
    SleepKind,
    WakeReason,
)
from pyvm.irq import IrqLine
from pyvm.state import StateError

SECOND = 1_000_000_000


class Board:
    """The device with SCI and sleep requests recorded, ACPI switched on."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.sleeps: list[SleepKind] = []
        self.sci = IrqLine(lambda level: None)
        self.pm = AcpiPm(self.clock, self.sci, self.sleeps.append)
        self.pm.apm_write(0, 1, ACPI_ENABLE)


@pytest.fixture
def board() -> Board:
    return Board()


def test_timer_counts_in_24_bits(board: Board) -> None:
    board.clock.advance(SECOND)
    assert board.pm.pm_read(8, 4) == TIMER_HZ
    board.clock.advance(4 * SECOND)
    assert board.pm.pm_read(8, 4) == 5 * TIMER_HZ & 0xFFFFFF
    assert board.pm.pm_read(10, 1) == (5 * TIMER_HZ >> 16) & 0xFF
    board.pm.pm_write(8, 4, 0)
    assert board.pm.pm_read(8, 4) == 5 * TIMER_HZ & 0xFFFFFF


def test_timer_overflow(board: Board) -> None:
    half = -(-TIMER_HALF * SECOND // TIMER_HZ)
    board.pm.pm_write(2, 2, PM1_TIMER)
    board.clock.advance(half - 1)
    assert not board.sci.level
    assert board.pm.pm_read(0, 2) == 0
    board.clock.advance(1)
    assert board.sci.level
    assert board.pm.pm_read(0, 2) == PM1_TIMER
    board.pm.pm_write(0, 2, PM1_TIMER)
    assert not board.sci.level
    board.clock.advance(half)
    assert board.sci.level


def test_timer_status_without_interrupt(board: Board) -> None:
    assert board.clock.queue.next_deadline() is None
    board.clock.advance(10 * SECOND)
    assert board.pm.pm_read(0, 1) == PM1_TIMER
    board.pm.pm_write(0, 1, PM1_TIMER)
    assert board.pm.pm_read(0, 1) == 0


def test_power_button(board: Board) -> None:
    board.pm.press_power_button()
    assert not board.sci.level
    board.pm.pm_write(3, 1, PM1_POWER_BUTTON >> 8)
    assert board.sci.level
    board.pm.apm_write(0, 1, ACPI_DISABLE)
    assert not board.sci.level
    board.pm.apm_write(0, 1, ACPI_ENABLE)
    assert board.sci.level
    board.pm.pm_write(0, 4, PM1_POWER_BUTTON | PM1_POWER_BUTTON << 16)
    assert not board.sci.level
    assert board.pm.pm_read(0, 4) == PM1_POWER_BUTTON << 16


def test_command_port(board: Board) -> None:
    assert board.pm.pm_read(4, 2) == 1
    board.pm.apm_write(0, 1, ACPI_DISABLE)
    assert board.pm.pm_read(4, 2) == 0
    board.pm.apm_write(1, 1, 0x5A)
    board.pm.apm_write(0, 1, 0x17)
    assert (board.pm.apm_read(0, 1), board.pm.apm_read(1, 1)) == (0x17, 0x5A)
    assert board.pm.apm_read(0, 2) == 0x5A17
    board.pm.apm_write(0, 2, 0x01F1)
    assert board.pm.pm_read(4, 2) == 1


@pytest.mark.parametrize(
    ("kind", "value"), [(SleepKind.SOFT_OFF, 0), (SleepKind.SUSPEND_TO_RAM, 1), (SleepKind.SUSPEND_TO_DISK, 2)]
)
def test_sleep(board: Board, kind: SleepKind, value: int) -> None:
    board.pm.pm_write(4, 2, value << 10 | 1)
    assert board.sleeps == []
    board.pm.pm_write(4, 2, value << 10 | 1 << 13 | 1)
    assert board.sleeps == [kind]
    assert board.pm.pm_read(4, 2) == value << 10 | 1


def test_sleep_by_bytes_and_unknown_type(board: Board) -> None:
    board.pm.pm_write(5, 1, 0x24)
    assert board.sleeps == [SleepKind.SUSPEND_TO_RAM]
    board.pm.pm_write(5, 1, 0x3C)
    assert len(board.sleeps) == 1


def test_wake(board: Board) -> None:
    assert board.pm.wake_enabled(WakeReason.OTHER)
    assert not board.pm.wake_enabled(WakeReason.RTC)
    board.pm.pm_write(2, 2, PM1_RTC)
    assert board.pm.wake_enabled(WakeReason.RTC)
    board.pm.wake(WakeReason.RTC)
    assert board.pm.pm_read(0, 2) == PM1_WAKE | PM1_RTC
    assert board.sci.level
    board.pm.pm_write(0, 2, 0xFFFF)
    assert board.pm.pm_read(0, 2) == 0
    board.pm.rtc_alarm()
    assert board.sci.level


def test_general_purpose_events(board: Board) -> None:
    board.pm.raise_gpe(2)
    assert not board.sci.level
    board.pm.gpe_write(2, 1, 0x06)
    assert board.sci.level
    assert board.pm.gpe_read(0, 4) == 0x0006_0004
    board.pm.gpe_write(0, 1, 0x02)
    assert board.sci.level
    board.pm.gpe_write(0, 1, 0x04)
    assert not board.sci.level
    board.pm.gpe_write(0, 4, 0xFFFF_FFFF)
    assert [board.pm.gpe_read(offset, 1) for offset in range(4)] == [0, 0, 0xFF, 0xFF]
    with pytest.raises(ValueError, match="event 16"):
        board.pm.raise_gpe(16)


def test_other_ports_read_ones(board: Board) -> None:
    assert board.pm.pm_read(4, 4) == 0xFFFF_0001
    assert board.pm.pm_read(0x0C, 4) == 0xFFFF_FFFF
    assert board.pm.pm_read(3, 4) == 0xFF_0001_00


def test_save_and_load(board: Board) -> None:
    board.clock.advance(SECOND)
    board.pm.pm_write(2, 2, PM1_TIMER | PM1_POWER_BUTTON)
    board.pm.press_power_button()
    board.pm.raise_gpe(1)
    other = Board(ManualClock(SECOND))
    other.pm.load(AcpiPmState.from_dict(board.pm.save().to_dict()))
    assert other.sci.level
    assert other.pm.save() == board.pm.save()
    assert other.clock.queue.next_deadline() == board.clock.queue.next_deadline() is not None
    other.pm.load(AcpiPmState(overflow=(1 << 64) - 1))
    assert other.pm.save().overflow == TIMER_HALF
    with pytest.raises(StateError):
        other.pm.load(AcpiPmState(status=1 << 16))


def test_reset(board: Board) -> None:
    board.pm.pm_write(2, 2, PM1_POWER_BUTTON)
    board.pm.press_power_button()
    board.pm.reset()
    assert not board.sci.level
    assert board.pm.pm_read(0, 8) == 0xFFFF_0000_0000_0000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pm", "gpe", "apm"]), st.integers(0, 63), st.sampled_from([1, 2, 4]),
            st.integers(0, 0xFFFF_FFFF), st.integers(0, 5 * SECOND),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_hostile_accesses(steps: list[tuple[str, int, int, int, int]]) -> None:
    board = Board()
    limits = {"pm": 64, "gpe": 4, "apm": 2}
    for name, place, wanted, value, pause in steps:
        offset = place % limits[name]
        size = wanted if offset + wanted <= limits[name] else 1
        getattr(board.pm, f"{name}_write")(offset, size, value & ((1 << (8 * size)) - 1))
        assert getattr(board.pm, f"{name}_read")(offset, size) >> (8 * size) == 0
        board.clock.advance(pause)
    board.pm.load(board.pm.save())
