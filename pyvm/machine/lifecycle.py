"""The life of a machine: running, stopped, reset, suspended, shut down; and what follows from each for events.

Devices only say what the guest did; monitors only say what a client wants.  What that means, with `-no-reboot`,
`-no-shutdown` and `-action`, is decided here.  Requests may come from the vCPU thread, which cannot stop itself and
wait: they stop the guest at once and are carried out by the main loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.devices.acpi.pm import WakeReason
from pyvm.runstate import RunState, RunStateHolder, ShutdownCause

if TYPE_CHECKING:
    from pyvm.clock import RunningClock
    from pyvm.config import ActionConfig
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.mainloop import MainLoop


class Hardware(Protocol):
    """What the machine consists of, as far as its life depends on it."""

    def reset_hardware(self) -> None:
        """Reset all devices and vCPUs and load what the guest starts from."""

    def fall_asleep(self) -> None:
        """The guest is suspended to RAM: what can wake it watches."""

    def resume_from_ram(self, reason: WakeReason) -> None:
        """Wake from suspend-to-RAM: reset, and enter the guest where it wants to wake."""

    def press_power_button(self) -> None:
        """Press the power button."""

    def inject_nmi(self) -> None:
        """Press the NMI button."""

    def pause(self) -> None:
        """The guest has stopped: devices leave its memory alone, and what they hold back is passed on."""

    def stand_still(self) -> None:
        """Whatever works on disks beside the guest pauses for a moment."""

    def resume(self) -> None:
        """The guest is about to run: devices go on with what waits."""


EmitEvent = Callable[[str, dict[str, Any] | None], None]


class Lifecycle:
    """Starts and stops the guest.  All methods are called with the machine lock held."""

    def __init__(
        self,
        mainloop: MainLoop,
        clock: RunningClock,
        vcpus: VcpuSet,
        hardware: Hardware,
        actions: ActionConfig,
        emit: EmitEvent,
    ) -> None:
        self.states = RunStateHolder()
        self.states.listen(self._state_changed)
        self.exit_status = 0
        self.ended = False
        self._mainloop = mainloop
        self._clock = clock
        self._vcpus = vcpus
        self._hardware = hardware
        self._actions = actions
        self._emit = emit

    def _state_changed(self, old: RunState, new: RunState) -> None:
        """However a machine came to sleep, by itself or as one that was loaded: it can be woken."""
        del old
        if new is RunState.SUSPENDED:
            self._hardware.fall_asleep()

    # ---- Running and stopped

    def vm_start(self) -> None:
        """Let the guest run; RESUME is sent.  Nothing happens where it runs."""
        if not self.states.running and not self.ended:
            self.states.set(RunState.RUNNING)
            self._emit("RESUME", None)
            self._go()

    def vm_stop(self, state: RunState) -> None:
        """Stop the guest and enter `state`; STOP is sent.  Where the guest does not run, only its disks stand still."""
        if self.states.running:
            self._halt()
            self.states.set(state)
            self._emit("STOP", None)
        self._hardware.stand_still()

    def _go(self) -> None:
        self._hardware.resume()
        self._clock.start()
        self._vcpus.start(self._clock.offset)
        self._mainloop.arm_timers()

    def _halt(self) -> None:
        self._vcpus.stop()
        self._clock.stop()
        self._mainloop.arm_timers()
        self._hardware.pause()

    def _soon(self, action: Callable[[], None]) -> None:
        """Stop the guest where it is, and let the main loop act."""
        self._vcpus.stop_soon()
        self._mainloop.call_soon(self._act, action)

    def _act(self, action: Callable[[], None]) -> None:
        if not self.ended:
            action()

    # ---- Reset

    def request_reset(self, cause: ShutdownCause = ShutdownCause.GUEST_RESET) -> None:
        """Reset soon; from any thread."""
        self._soon(lambda: self.reset(cause))

    def reset(self, cause: ShutdownCause) -> None:
        """Reset the machine; RESET is sent, or the machine ends where a reset is to end it (`-no-reboot`)."""
        if self._actions.reboot == "shutdown" and not cause.silent:
            self.shutdown(cause)
            return
        was_running = self.states.running
        self._halt()
        self._hardware.reset_hardware()
        if not cause.silent:
            self._emit("RESET", {"guest": cause.by_guest, "reason": cause.value})
        if was_running:
            self._go()
        elif self.states.state is not RunState.INMIGRATE and self.states.allowed(RunState.PRELAUNCH):
            self.states.set(RunState.PRELAUNCH)

    # ---- The end

    def request_shutdown(self, cause: ShutdownCause) -> None:
        """Shut down soon; from any thread."""
        self._soon(lambda: self.shutdown(cause))

    def shutdown(self, cause: ShutdownCause) -> None:
        """The guest is off: SHUTDOWN is sent, and the machine ends or, with `-no-shutdown`, stays stopped."""
        self._emit("SHUTDOWN", {"guest": cause.by_guest, "reason": cause.value})
        if self._actions.shutdown == "pause":
            self.vm_stop(RunState.SHUTDOWN)
        else:
            self.end()

    def quit(self, cause: ShutdownCause) -> None:
        """End the process whatever `-no-shutdown` says; SHUTDOWN is sent."""
        if not self.ended:
            self._emit("SHUTDOWN", {"guest": cause.by_guest, "reason": cause.value})
            self.end()

    def request_exit(self, status: int) -> None:
        """End the process soon with an exit status that the guest chose; from any thread, and without an event."""
        if not self.ended:
            self.exit_status = status
            self._soon(self.end)

    def end(self) -> None:
        """Leave the main loop once what is to be sent has been."""
        if not self.ended:
            self.ended = True
            self._halt()
            self._mainloop.call_soon(self._mainloop.stop)

    # ---- Power

    def powerdown(self) -> None:
        """Press the power button; POWERDOWN is sent."""
        self._emit("POWERDOWN", None)
        self._hardware.press_power_button()

    def request_suspend(self) -> None:
        """The guest suspended itself to RAM."""
        self._soon(self._suspend)

    def _suspend(self) -> None:
        if self.states.running:
            self._halt()
            self.states.set(RunState.SUSPENDED)
            self._emit("SUSPEND", None)

    def request_suspend_to_disk(self) -> None:
        """The guest wrote itself to disk and switched the machine off."""
        self._soon(self._suspend_to_disk)

    def _suspend_to_disk(self) -> None:
        self._emit("SUSPEND_DISK", None)
        self.shutdown(ShutdownCause.GUEST_SHUTDOWN)

    def wakeup(self, reason: WakeReason = WakeReason.OTHER) -> None:
        """Wake the guest from suspend-to-RAM; WAKEUP is sent.  Nothing happens where it is not suspended."""
        if self.states.state is RunState.SUSPENDED:
            self._hardware.resume_from_ram(reason)
            self.states.set(RunState.RUNNING)
            self._emit("WAKEUP", None)
            self._go()

    # ---- Watchdog and panic

    def watchdog_expired(self) -> None:
        """The guest's watchdog fired: WATCHDOG is sent, and what `-watchdog-action` says is done."""
        action = self._actions.watchdog
        self._emit("WATCHDOG", {"action": action})
        if action == "reset":
            self.request_reset(ShutdownCause.GUEST_RESET)
        elif action == "shutdown":
            self._mainloop.call_soon(self._act, self.powerdown)
        elif action == "poweroff":
            self.request_exit(0)
        elif action == "pause":
            self._soon(lambda: self.vm_stop(RunState.WATCHDOG))
        elif action == "debug":
            print("watchdog: timer fired", file=sys.stderr)
        elif action == "inject-nmi":
            self._hardware.inject_nmi()

    def guest_panicked(self) -> None:
        """The guest says that it has crashed: GUEST_PANICKED is sent, and what `-action panic=` says is done."""
        action, stays = self._actions.panic, self._actions.shutdown == "pause"
        if action == "none":
            self._emit("GUEST_PANICKED", {"action": "run"})
        elif action == "pause" or (action == "shutdown" and stays):
            self._emit("GUEST_PANICKED", {"action": "pause"})
            self._soon(lambda: self.vm_stop(RunState.GUEST_PANICKED))
        else:
            self._emit("GUEST_PANICKED", {"action": "poweroff"})
            self._soon(self._end_after_panic)

    def _end_after_panic(self) -> None:
        if self._actions.panic == "exit-failure":
            self.exit_status = 1
        self.shutdown(ShutdownCause.GUEST_PANIC)

    def crash_kernel_started(self) -> None:
        """The guest says that a kernel which saves a dump has taken over; GUEST_CRASHLOADED is sent."""
        self._emit("GUEST_CRASHLOADED", {"action": "run"})

    # ---- Faults

    def request_internal_error(self) -> None:
        """The emulator cannot go on with this guest; from any thread."""
        self._soon(lambda: self.vm_stop(RunState.INTERNAL_ERROR))

    def request_debug_stop(self) -> None:
        """Guest code has come to where a debugger wants it to stop; from any thread."""
        self._soon(lambda: self.vm_stop(RunState.DEBUG))

    def request_io_error(self) -> None:
        """A disk request cannot go on until somebody has helped; from any thread."""
        self._soon(lambda: self.vm_stop(RunState.IO_ERROR))
