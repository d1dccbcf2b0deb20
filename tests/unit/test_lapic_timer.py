"""The timer of the local APIC: one-shot, periodic and TSC-deadline mode, divider, mask, and late hosts."""

import pytest

from tests.unit.lapic_rig import LVT_TIMER, MASKED, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_timer_divider(rig: Rig, code: int, divisor: int) -> None:
    rig.lapic.write(0x3E0, 4, code)
    rig.lapic.write(0x380, 4, 1_000_000)
    rig.clock.advance(1000 * divisor)
    assert rig.lapic.read(0x390, 4) == 999_000
    assert rig.lapic.read(0x3E0, 4) == code


def test_one_shot_timer(rig: Rig) -> None:
    rig.lapic.write(0x3E0, 4, 11)
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    rig.lapic.write(0x380, 4, 1000)
    rig.clock.advance(999)
    assert not rig.cpu.pending
    rig.clock.advance(1)
    assert rig.lapic.acknowledge() == 0x30
    assert rig.lapic.read(0x390, 4) == 0
    rig.lapic.write(0xB0, 4, 0)
    rig.clock.advance(10_000)
    assert not rig.cpu.pending


def test_periodic_timer_keeps_its_grid_and_loses_missed_ticks(rig: Rig) -> None:
    rig.lapic.write(0x3E0, 4, 11)
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.lapic.write(0x380, 4, 100_000)
    for tick in range(1, 4):
        rig.clock.advance(100_000 * tick - rig.clock.now())
        assert rig.lapic.acknowledge() == 0x30
        rig.lapic.write(0xB0, 4, 0)
    assert rig.lapic.read(0x390, 4) == 100_000
    rig.clock.stall(730_000)
    rig.clock.wake()
    assert rig.lapic.acknowledge() == 0x30
    rig.lapic.write(0xB0, 4, 0)
    assert rig.lapic.read(0x390, 4) == 70_000
    rig.clock.advance(69_999)
    assert not rig.cpu.pending
    rig.clock.advance(1)
    assert rig.cpu.pending


def test_absurd_period_is_thinned_out(rig: Rig) -> None:
    rig.lapic.write(0x3E0, 4, 11)
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.lapic.write(0x380, 4, 1)
    taken = 0
    for _ in range(100):
        rig.clock.advance(10_000)
        if rig.cpu.pending:
            taken += 1
            rig.lapic.acknowledge()
            rig.lapic.write(0xB0, 4, 0)
    assert 0 < taken <= 50


def test_timer_expiring_while_masked_is_lost(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x30 | MASKED)
    rig.lapic.write(0x380, 4, 1000)
    rig.clock.advance(10_000)
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    rig.clock.advance(10_000)
    assert not rig.cpu.pending


def test_timer_unmasked_in_time_interrupts(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x30 | MASKED)
    rig.lapic.write(0x380, 4, 1000)
    rig.clock.advance(1000)
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    rig.clock.advance(1000)
    assert rig.lapic.acknowledge() == 0x30


def test_expiry_that_is_due_is_not_lost_by_programming(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    rig.lapic.write(0x380, 4, 1000)
    rig.clock.stall(5000)
    rig.lapic.write(0x380, 4, 1000)
    assert rig.lapic.acknowledge() == 0x30
    rig.lapic.write(0xB0, 4, 0)
    rig.clock.advance(2000)
    assert rig.lapic.acknowledge() == 0x30


def test_stopped_timer_does_not_interrupt(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    rig.lapic.write(0x380, 4, 1000)
    rig.clock.advance(500)
    rig.lapic.write(0x380, 4, 0)
    rig.clock.advance(10_000)
    assert not rig.cpu.pending
    assert rig.lapic.read(0x390, 4) == 0


def test_divider_and_mode_change_while_counting(rig: Rig) -> None:
    rig.lapic.write(0x3E0, 4, 11)
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.lapic.write(0x380, 4, 100_000)
    rig.clock.advance(250_000)
    rig.lapic.acknowledge()
    rig.lapic.write(0xB0, 4, 0)
    assert rig.lapic.read(0x390, 4) == 50_000
    rig.lapic.write(0x3E0, 4, 0)
    assert rig.lapic.read(0x390, 4) == 50_000
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    assert rig.lapic.read(0x390, 4) == 50_000
    rig.clock.advance(99_999)
    assert not rig.cpu.pending
    rig.clock.advance(1)
    assert rig.lapic.acknowledge() == 0x30
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.clock.advance(1_000_000)
    assert rig.lapic.read(0x390, 4) == 0, "what has expired does not start again by itself"


@pytest.mark.parametrize("tsc_hz", [1_000_000_000, 2_500_000_000])
def test_tsc_deadline(tsc_hz: int) -> None:
    rig = Rig(tsc_hz=tsc_hz)
    rig.lapic.write(LVT_TIMER, 4, 0x40030)
    rig.lapic.tsc_offset = 777
    deadline = 777 + tsc_hz // 1000
    rig.lapic.write_tsc_deadline(deadline)
    assert rig.lapic.read_tsc_deadline() == deadline
    rig.lapic.write(0x380, 4, 5)
    assert (rig.lapic.read(0x380, 4), rig.lapic.read(0x390, 4)) == (0, 0)
    rig.clock.advance(999_999)
    assert not rig.cpu.pending
    rig.clock.advance(1)
    assert rig.lapic.acknowledge() == 0x30
    assert rig.lapic.read_tsc_deadline() == 0


def test_tsc_deadline_in_the_past_fires_at_once_and_zero_disarms(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x40030)
    rig.clock.advance(1000)
    rig.lapic.write_tsc_deadline(999)
    assert rig.lapic.acknowledge() == 0x30
    rig.lapic.write(0xB0, 4, 0)
    rig.lapic.write_tsc_deadline(2000)
    rig.lapic.write_tsc_deadline(0)
    rig.clock.advance(10_000)
    assert not rig.cpu.pending


def test_tsc_deadline_needs_its_mode_and_ends_with_it(rig: Rig) -> None:
    rig.lapic.write_tsc_deadline(1000)
    assert rig.lapic.read_tsc_deadline() == 0
    rig.lapic.write(LVT_TIMER, 4, 0x40030)
    rig.lapic.write_tsc_deadline(1000)
    rig.lapic.write(LVT_TIMER, 4, 0x00030)
    rig.lapic.write(LVT_TIMER, 4, 0x40030)
    assert rig.lapic.read_tsc_deadline() == 0
    rig.clock.advance(10_000)
    assert not rig.cpu.pending


def test_masked_tsc_deadline_passes_silently_and_offset_moves_it(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x40030 | MASKED)
    rig.lapic.write_tsc_deadline(1000)
    rig.clock.advance(1000)
    assert rig.lapic.read_tsc_deadline() == 0
    rig.lapic.write(LVT_TIMER, 4, 0x40030)
    rig.lapic.write_tsc_deadline(5000)
    rig.lapic.tsc_offset = 3000
    rig.clock.advance(999)
    assert not rig.cpu.pending
    rig.clock.advance(1)
    assert rig.cpu.pending
