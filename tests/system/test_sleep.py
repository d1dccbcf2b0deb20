"""Suspend-to-RAM of a whole machine: what wakes it, and what it finds when it wakes."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from pyvm.clock import NANOSECONDS, ManualClock
from pyvm.devices.acpi.pm import PM1_POWER_BUTTON, PM1_RTC, PM1_WAKE, WakeReason
from pyvm.devices.ide.piix3 import IDETIM
from pyvm.devices.pci.i440fx import PAM0
from pyvm.devices.rtc import B_24_HOUR, B_ALARM, HOURS_ALARM, MINUTES_ALARM, REGISTER_B, SECONDS_ALARM, Rtc
from pyvm.firmware.acpi import FACS_WAKING_VECTOR
from pyvm.firmware.machine_info import PM_BASE
from pyvm.irq import IrqLine
from pyvm.machine.cmos import RESUME_FROM_RAM, SHUTDOWN_STATUS
from pyvm.runstate import RunState
from tests.system.machine_rig import Machine

ANY = 0xC0
HALTED = 0x8000


def set_alarm(rtc: Rtc, *, hour: int = ANY, minute: int = ANY, second: int = ANY, interrupt: bool = True) -> None:
    settings = {HOURS_ALARM: hour, MINUTES_ALARM: minute, SECONDS_ALARM: second}
    settings[REGISTER_B] = B_24_HOUR | (B_ALARM if interrupt else 0)
    for index, value in settings.items():
        rtc.write(0, 1, index)
        rtc.write(1, 1, value)


def test_how_long_until_the_alarm() -> None:
    clock = ManualClock(NANOSECONDS // 2)
    rtc = Rtc(clock, IrqLine(lambda level: None), lambda: 12 * 3600)
    assert rtc.until_alarm() is None
    set_alarm(rtc, second=0x10)
    assert rtc.until_alarm() == 9 * NANOSECONDS + NANOSECONDS // 2
    set_alarm(rtc, hour=0x11, minute=0, second=0)
    assert rtc.until_alarm() == 23 * 3600 * NANOSECONDS - NANOSECONDS // 2
    set_alarm(rtc, second=0x77)  # no second is called so
    assert rtc.until_alarm() is None
    set_alarm(rtc, interrupt=False)
    assert rtc.until_alarm() is None


def wake_at(machine: Machine, address: int) -> None:
    """Set the address at which the guest is to be entered."""
    installed = machine.pc._boot.installed
    assert installed is not None
    machine.pc.memory.write(installed.facs + FACS_WAKING_VECTOR, struct.pack("<I", address))


def fall_asleep(machine: Machine) -> None:
    """Be in the state that a guest enters by its power management."""
    life = machine.pc.lifecycle
    life.states.set(RunState.RUNNING)
    life.request_suspend()
    machine.run()
    assert machine.take_events() == [("SUSPEND", {})]
    assert machine.pc.run_state is RunState.SUSPENDED


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_alarm_wakes_a_guest_that_wants_it(machine: Machine) -> None:
    with machine:
        pc = machine.pc
        pc.ports.write(PM_BASE + 2, 2, PM1_RTC)
        set_alarm(pc.board.rtc)  # each second
        wake_at(machine, HALTED)
        pc.memory.write(HALTED, b"\xfa\xf4\xeb\xfc")
        before = pc.clock.now()
        fall_asleep(machine)
        end = time.monotonic() + 60
        while pc.run_state is RunState.SUSPENDED and time.monotonic() < end:
            machine.run()
        with pc.lock:
            pc.lifecycle.vm_stop(RunState.PAUSED)
        assert machine.take_events()[0] == ("WAKEUP", {})
        status = pc.ports.read(PM_BASE, 2)
        assert status & (PM1_WAKE | PM1_RTC | PM1_POWER_BUTTON) == PM1_WAKE | PM1_RTC
        assert pc.clock.now() > before


@pytest.mark.parametrize("enabled", [0, PM1_POWER_BUTTON])
def test_an_alarm_that_is_not_to_wake(machine: Machine, enabled: int) -> None:
    with machine:
        machine.pc.ports.write(PM_BASE + 2, 2, enabled)
        set_alarm(machine.pc.board.rtc)
        fall_asleep(machine)
        assert machine.pc._sleep._alarm is None


def test_a_later_sleep_is_not_ended_by_an_earlier_alarm(machine: Machine) -> None:
    with machine:
        pc = machine.pc
        pc.ports.write(PM_BASE + 2, 2, PM1_RTC)
        set_alarm(pc.board.rtc)
        fall_asleep(machine)
        first = pc._sleep._alarm
        assert first is not None
        pc.fall_asleep()
        assert first.cancelled()
        pc._sleep.end()
        assert pc._sleep._alarm is None


def test_guest_time_goes_on_by_the_length_of_the_sleep(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine:
        pc = machine.pc
        now = time.monotonic_ns()
        monkeypatch.setattr("pyvm.machine.sleep.time.monotonic_ns", lambda: now)
        pc.fall_asleep()
        before = pc.clock.now()
        now += 3600 * NANOSECONDS
        assert pc.clock.now() == before
        pc._sleep.end()
        assert pc.clock.now() == before + 3600 * NANOSECONDS


def test_the_guest_wakes_where_it_wants_to(machine: Machine) -> None:
    with machine:
        pc = machine.pc
        wake_at(machine, 0x12345)
        pc.fall_asleep()
        pc.resume_from_ram(WakeReason.OTHER)
        state = pc.cpus.save()[0]
        assert (state.cs.base, state.rip) == (0x12340, 5)
        assert pc.ports.read(PM_BASE, 2) & (PM1_WAKE | PM1_POWER_BUTTON) == PM1_WAKE | PM1_POWER_BUTTON


def test_firmware_in_the_guest_finds_what_it_had_set_up(tmp_path: Path) -> None:
    """It looks at its own copy in RAM, and sets up but a part of the board a second time."""
    firmware = tmp_path / "bios"
    firmware.write_bytes(bytes(0x10000))
    with Machine("-bios", str(firmware)) as machine:
        pc = machine.pc
        pc.board.host_bridge.config_write(PAM0, 1, 0x30)
        pc.board.ide.config_write(IDETIM, 4, 0x8000_8000)
        pc.fall_asleep()
        pc.resume_from_ram(WakeReason.OTHER)
        assert pc.board.host_bridge.config_read(PAM0, 1) == 0x30
        assert pc.board.ide.config_read(IDETIM, 4) == 0x8000_8000
        assert pc.board.rtc.cmos(SHUTDOWN_STATUS) == RESUME_FROM_RAM
        pc.reset_hardware()
        assert pc.board.host_bridge.config_read(PAM0, 1) == 0


def test_a_guest_that_did_not_say_where_starts_anew(machine: Machine) -> None:
    with machine:
        pc = machine.pc
        fall_asleep(machine)
        machine.execute("system_wakeup")
        machine.run()
        with pc.lock:
            pc.lifecycle.vm_stop(RunState.PAUSED)
        assert [name for name, _ in machine.take_events()][:2] == ["WAKEUP", "RESET"]
