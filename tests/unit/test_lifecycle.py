"""The life of a machine: what happens in which order, and which events a monitor sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyvm.config import ActionConfig
from pyvm.devices.acpi.pm import WakeReason
from pyvm.machine.lifecycle import Lifecycle
from pyvm.runstate import RunState, ShutdownCause


class Machine:
    """All that a lifecycle drives, in one log: main loop, clock, vCPUs, hardware and events."""

    def __init__(self, **actions: Any) -> None:
        self.log: list[str] = []
        self.events: list[tuple[str, dict[str, Any] | None]] = []
        self.queue: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.running = False
        self.offset = 42
        self.life = Lifecycle(self, _Clock(self), _Vcpus(self), self, ActionConfig(**actions), self._emit)  # type: ignore[arg-type]

    def _emit(self, name: str, data: dict[str, Any] | None) -> None:
        self.log.append(name)
        self.events.append((name, data))

    def take(self) -> list[str]:
        """Return the log since the last time."""
        log, self.log = self.log, []
        return log

    def turn(self) -> None:
        """Run what waits in the main loop."""
        while self.queue:
            callback, arguments = self.queue.pop(0)
            callback(*arguments)

    @property
    def state(self) -> RunState:
        return self.life.states.state

    # Main loop

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self.queue.append((callback, arguments))

    def stop(self) -> None:
        self.log.append("loop ends")

    def arm_timers(self) -> None:
        self.log.append("timers")

    # Hardware

    def reset_hardware(self) -> None:
        assert not self.running
        self.log.append("reset")

    def fall_asleep(self) -> None:
        assert not self.running
        self.log.append("asleep")

    def resume_from_ram(self, reason: WakeReason) -> None:
        assert not self.running
        self.log.append(f"wake {reason.name}")

    def inject_nmi(self) -> None:
        self.log.append("nmi")

    def press_power_button(self) -> None:
        self.log.append("button")

    def pause(self) -> None:
        assert not self.running
        self.log.append("pause")

    def stand_still(self) -> None:
        assert not self.running
        self.log.append("still")

    def resume(self) -> None:
        assert not self.running
        self.log.append("resume")


class _Clock:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.offset = 42

    def start(self) -> None:
        self.machine.log.append("clock on")

    def stop(self) -> None:
        assert not self.machine.running  # time stands still only after the guest does
        self.machine.log.append("clock off")


class _Vcpus:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self, offset: int) -> None:
        assert offset == 42
        assert "clock on" in self.machine.log
        self.machine.running = True
        self.machine.log.append("go")

    def stop(self) -> None:
        self.machine.running = False
        self.machine.log.append("halt")

    def stop_soon(self) -> None:
        self.machine.running = False
        self.machine.log.append("halt soon")


GO = ["resume", "clock on", "go", "timers"]
HALT = ["halt", "clock off", "timers", "pause"]


def running(**actions: Any) -> Machine:
    machine = Machine(**actions)
    machine.life.vm_start()
    machine.take()
    machine.events.clear()
    return machine


def test_start_and_stop() -> None:
    machine = Machine()
    assert machine.state is RunState.PRELAUNCH
    machine.life.vm_start()
    assert machine.take() == ["RESUME", *GO]
    assert machine.state is RunState.RUNNING
    machine.life.vm_start()
    assert machine.take() == []
    machine.life.vm_stop(RunState.PAUSED)
    assert machine.take() == [*HALT, "STOP", "still"]
    assert machine.state is RunState.PAUSED
    machine.life.vm_stop(RunState.PAUSED)
    assert machine.take() == ["still"]
    machine.life.vm_start()
    assert machine.take() == ["RESUME", *GO]


@pytest.mark.parametrize(
    ("cause", "data"),
    [
        (ShutdownCause.GUEST_RESET, {"guest": True, "reason": "guest-reset"}),
        (ShutdownCause.HOST_QMP_SYSTEM_RESET, {"guest": False, "reason": "host-qmp-system-reset"}),
        (ShutdownCause.SUBSYSTEM_RESET, None),
    ],
)
def test_reset_of_a_running_machine(cause: ShutdownCause, data: dict[str, Any] | None) -> None:
    machine = running()
    machine.life.reset(cause)
    events = [] if data is None else [("RESET", data)]
    assert machine.take() == [*HALT, "reset", *[name for name, _ in events], *GO]
    assert machine.events == events
    assert machine.state is RunState.RUNNING


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.SHUTDOWN, RunState.INTERNAL_ERROR])
def test_reset_of_a_stopped_machine(state: RunState) -> None:
    machine = running()
    machine.life.vm_stop(state)
    machine.take()
    machine.life.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert machine.take() == [*HALT, "reset", "RESET"]
    assert machine.state is RunState.PRELAUNCH
    assert not machine.life.states.needs_reset
    machine.life.vm_start()
    assert machine.state is RunState.RUNNING


def test_the_guest_asks_for_a_reset_on_its_own_thread() -> None:
    """It is stopped at once; the rest is done by the main loop."""
    machine = running()
    machine.life.request_reset()
    assert machine.take() == ["halt soon"]
    assert machine.state is RunState.RUNNING
    machine.turn()
    assert machine.take() == [*HALT, "reset", "RESET", *GO]


def test_no_reboot() -> None:
    machine = running(reboot="shutdown")
    machine.life.request_reset()
    machine.turn()
    assert [name for name in machine.take() if name.isupper()] == ["SHUTDOWN"]
    assert machine.events == [("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]
    assert machine.life.ended


def test_no_reboot_does_not_concern_silent_resets() -> None:
    machine = running(reboot="shutdown")
    machine.life.reset(ShutdownCause.SUBSYSTEM_RESET)
    assert not machine.life.ended
    assert "reset" in machine.take()


def test_no_reboot_and_no_shutdown() -> None:
    machine = running(reboot="shutdown", shutdown="pause")
    machine.life.request_reset()
    machine.turn()
    assert [name for name in machine.take() if name.isupper()] == ["SHUTDOWN", "STOP"]
    assert machine.state is RunState.SHUTDOWN
    assert not machine.life.ended


def test_shutdown_by_the_guest() -> None:
    machine = running()
    machine.life.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)
    assert machine.take() == ["halt soon"]
    machine.turn()
    assert machine.take() == ["SHUTDOWN", *HALT, "loop ends"]
    assert machine.events == [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})]
    assert machine.life.ended
    assert machine.life.exit_status == 0


def test_no_shutdown() -> None:
    machine = running(shutdown="pause")
    machine.life.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)
    machine.turn()
    assert machine.take() == ["halt soon", "SHUTDOWN", *HALT, "STOP", "still"]
    assert machine.state is RunState.SHUTDOWN
    assert machine.life.states.needs_reset
    machine.life.quit(ShutdownCause.HOST_QMP_QUIT)
    assert machine.events[-1] == ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    assert machine.life.ended


@pytest.mark.parametrize("actions", [{}, {"shutdown": "pause"}, {"reboot": "shutdown"}])
def test_quit_ends_the_machine_in_every_case_and_once(actions: dict[str, str]) -> None:
    machine = running(**actions)
    machine.life.quit(ShutdownCause.HOST_QMP_QUIT)
    machine.life.quit(ShutdownCause.HOST_SIGNAL)
    machine.turn()
    assert machine.events == [("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})]
    assert machine.take().count("loop ends") == 1


def test_events_are_sent_before_the_loop_ends() -> None:
    machine = running()
    machine.life.quit(ShutdownCause.HOST_QMP_QUIT)
    assert "loop ends" not in machine.log
    machine.turn()
    assert machine.log[-1] == "loop ends"


def test_nothing_happens_after_the_end() -> None:
    """What was asked for by a dying guest, or by a client, before the loop has ended."""
    machine = running()
    machine.life.request_reset()
    machine.life.request_suspend()
    machine.life.quit(ShutdownCause.HOST_QMP_QUIT)
    machine.take()
    machine.life.request_shutdown(ShutdownCause.GUEST_SHUTDOWN)
    machine.life.request_internal_error()
    machine.life.vm_start()
    machine.turn()
    assert set(machine.take()) <= {"halt soon", "loop ends"}
    assert not machine.running


def test_exit_status_of_the_guest() -> None:
    machine = running(shutdown="pause")
    machine.life.request_exit(33)
    machine.turn()
    machine.life.request_exit(5)
    machine.turn()
    assert machine.events == []
    assert machine.life.exit_status == 33
    assert machine.life.ended


def test_power_button() -> None:
    machine = running()
    machine.life.powerdown()
    assert machine.take() == ["POWERDOWN", "button"]
    assert machine.state is RunState.RUNNING


def test_suspend_and_wake() -> None:
    machine = running()
    machine.life.wakeup()
    assert machine.take() == []
    machine.life.request_suspend()
    machine.turn()
    assert machine.take() == ["halt soon", *HALT, "asleep", "SUSPEND"]
    assert machine.state is RunState.SUSPENDED
    machine.life.wakeup(WakeReason.RTC)
    assert machine.take() == ["wake RTC", "WAKEUP", *GO]
    assert machine.state is RunState.RUNNING
    assert [name for name, _ in machine.events] == ["SUSPEND", "WAKEUP"]


def test_a_machine_that_was_loaded_asleep_can_be_woken() -> None:
    machine = Machine()
    machine.life.states.set(RunState.INMIGRATE)
    machine.life.states.set(RunState.SUSPENDED)
    assert machine.take() == ["asleep"]
    machine.life.wakeup()
    assert machine.take() == ["wake OTHER", "WAKEUP", *GO]


def test_a_suspended_machine_is_not_stopped_but_can_be_reset() -> None:
    machine = running()
    machine.life.request_suspend()
    machine.turn()
    machine.life.vm_stop(RunState.PAUSED)
    assert machine.state is RunState.SUSPENDED
    machine.life.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert machine.state is RunState.PRELAUNCH


def test_suspending_a_machine_that_was_stopped_meanwhile() -> None:
    machine = running()
    machine.life.request_suspend()
    machine.life.vm_stop(RunState.PAUSED)
    machine.turn()
    assert machine.state is RunState.PAUSED
    assert ("SUSPEND", None) not in machine.events


def test_suspend_to_disk() -> None:
    machine = running()
    machine.life.request_suspend_to_disk()
    machine.turn()
    assert [name for name, _ in machine.events] == ["SUSPEND_DISK", "SHUTDOWN"]
    assert machine.life.ended


@pytest.mark.parametrize(
    ("action", "log", "state"),
    [
        ("reset", ["WATCHDOG", "halt soon", *HALT, "reset", "RESET", *GO], RunState.RUNNING),
        ("shutdown", ["WATCHDOG", "POWERDOWN", "button"], RunState.RUNNING),
        ("poweroff", ["WATCHDOG", "halt soon", *HALT, "loop ends"], RunState.RUNNING),
        ("pause", ["WATCHDOG", "halt soon", *HALT, "STOP", "still"], RunState.WATCHDOG),
        ("debug", ["WATCHDOG"], RunState.RUNNING),
        ("none", ["WATCHDOG"], RunState.RUNNING),
        ("inject-nmi", ["WATCHDOG", "nmi"], RunState.RUNNING),
    ],
)
def test_watchdog(action: str, log: list[str], state: RunState, capsys: pytest.CaptureFixture[str]) -> None:
    machine = running(watchdog=action)
    machine.life.watchdog_expired()
    machine.turn()
    assert machine.take() == log
    assert machine.state is state
    assert machine.events[0] == ("WATCHDOG", {"action": action})
    assert machine.life.exit_status == 0
    assert capsys.readouterr().err == ("watchdog: timer fired\n" if action == "debug" else "")


def test_watchdog_with_no_reboot() -> None:
    machine = running(reboot="shutdown")
    machine.life.watchdog_expired()
    machine.turn()
    assert machine.events[1:] == [("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]


@pytest.mark.parametrize(
    ("panic", "shutdown", "told", "log", "status"),
    [
        ("pause", "poweroff", "pause", ["GUEST_PANICKED", "halt soon", *HALT, "STOP", "still"], 0),
        ("shutdown", "pause", "pause", ["GUEST_PANICKED", "halt soon", *HALT, "STOP", "still"], 0),
        ("shutdown", "poweroff", "poweroff", ["GUEST_PANICKED", "halt soon", "SHUTDOWN", *HALT, "loop ends"], 0),
        ("exit-failure", "poweroff", "poweroff", ["GUEST_PANICKED", "halt soon", "SHUTDOWN", *HALT, "loop ends"], 1),
        ("exit-failure", "pause", "poweroff", ["GUEST_PANICKED", "halt soon", "SHUTDOWN", *HALT, "STOP", "still"], 1),
        ("none", "poweroff", "run", ["GUEST_PANICKED"], 0),
    ],
)
def test_panic(panic: str, shutdown: str, told: str, log: list[str], status: int) -> None:
    machine = running(panic=panic, shutdown=shutdown)
    machine.life.guest_panicked()
    machine.turn()
    assert machine.take() == log
    assert machine.events[0] == ("GUEST_PANICKED", {"action": told})
    assert machine.life.exit_status == status
    if told == "pause":
        assert machine.state is RunState.GUEST_PANICKED
    elif told == "poweroff":
        assert ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}) in machine.events


def test_a_crash_kernel() -> None:
    machine = running()
    machine.life.crash_kernel_started()
    machine.turn()
    assert machine.events == [("GUEST_CRASHLOADED", {"action": "run"})]
    assert machine.state is RunState.RUNNING


def test_internal_error() -> None:
    machine = running()
    machine.life.request_internal_error()
    machine.turn()
    assert machine.take() == ["halt soon", *HALT, "STOP", "still"]
    assert machine.state is RunState.INTERNAL_ERROR
    assert machine.life.states.needs_reset
    machine.life.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert machine.state is RunState.PRELAUNCH


def test_every_request_of_the_guest_may_come_with_every_other() -> None:
    """The order in which devices ask within one instruction never breaks the run state's rules."""
    requests: list[Callable[[Lifecycle], None]] = [
        Lifecycle.request_reset,
        Lifecycle.request_suspend,
        Lifecycle.request_suspend_to_disk,
        Lifecycle.request_internal_error,
        lambda life: life.request_shutdown(ShutdownCause.GUEST_SHUTDOWN),
        lambda life: life.request_exit(1),
        lambda life: life.vm_stop(RunState.PAUSED),
        lambda life: life.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET),
        Lifecycle.wakeup,
    ]
    for actions in ({}, {"shutdown": "pause"}, {"reboot": "shutdown"}, {"reboot": "shutdown", "shutdown": "pause"}):
        for first in requests:
            for second in requests:
                for third in requests:
                    machine = running(**actions)
                    for request in (first, second, third):
                        request(machine.life)
                    machine.turn()
                    assert machine.running is (machine.state is RunState.RUNNING and not machine.life.ended)
