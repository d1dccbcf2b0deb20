"""The run state of a machine, and the causes for which it stops, resets and ends.

Names and allowed transitions are those that management tools know from QEMU: `query-status` and the run-state events
show them.  The holder only keeps the state and tells listeners; what follows from a state is decided by the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class RunState(StrEnum):
    """What the machine is doing, by the name that `query-status` gives it."""

    DEBUG = "debug"
    """Stopped by a debugger."""
    INMIGRATE = "inmigrate"
    """Waiting for an incoming migration."""
    INTERNAL_ERROR = "internal-error"
    """An error of the emulator prevents further execution until a reset."""
    IO_ERROR = "io-error"
    """Stopped by a failed disk request whose error policy is to stop."""
    PAUSED = "paused"
    """Stopped on request."""
    POSTMIGRATE = "postmigrate"
    """Stopped since its state went to another process."""
    PRELAUNCH = "prelaunch"
    """Not started yet, or reset while it did not run."""
    FINISH_MIGRATE = "finish-migrate"
    """Stopped for the last part of a migration."""
    RESTORE_VM = "restore-vm"
    """A snapshot is being loaded."""
    RUNNING = "running"
    """The guest runs."""
    SAVE_VM = "save-vm"
    """A snapshot is being saved."""
    SHUTDOWN = "shutdown"
    """The guest has shut down and the process stays (`-no-shutdown`)."""
    SUSPENDED = "suspended"
    """The guest suspended itself to RAM."""
    WATCHDOG = "watchdog"
    """Stopped by the watchdog's action."""
    GUEST_PANICKED = "guest-panicked"
    """The guest reported that it has crashed."""
    COLO = "colo"
    """Stopped for the lockstep of two machines."""


class ShutdownCause(StrEnum):
    """Why a machine ends or resets, by the name that SHUTDOWN and RESET events give as their reason."""

    NONE = "none"
    HOST_ERROR = "host-error"
    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_QMP_SYSTEM_RESET = "host-qmp-system-reset"
    HOST_SIGNAL = "host-signal"
    HOST_UI = "host-ui"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    SUBSYSTEM_RESET = "subsystem-reset"
    """A part of the machine resets it for its own purposes; no event is sent."""
    SNAPSHOT_LOAD = "snapshot-load"
    """The reset before a snapshot is loaded; no event is sent."""

    @property
    def by_guest(self) -> bool:
        """Whether the guest asked for it: the member `guest` of SHUTDOWN and RESET."""
        return self in _GUEST_CAUSES

    @property
    def silent(self) -> bool:
        """Whether a reset for this cause sends no RESET event."""
        return self in _SILENT_CAUSES


_GUEST_CAUSES = frozenset({ShutdownCause.GUEST_SHUTDOWN, ShutdownCause.GUEST_RESET, ShutdownCause.GUEST_PANIC})
_SILENT_CAUSES = frozenset({ShutdownCause.NONE, ShutdownCause.SUBSYSTEM_RESET, ShutdownCause.SNAPSHOT_LOAD})

# State -> the states that may follow it, by their names; each may also follow itself, where nothing happens.
TRANSITIONS: dict[RunState, str] = {
    RunState.DEBUG: "running finish-migrate prelaunch suspended",
    RunState.INMIGRATE: "internal-error io-error paused running shutdown suspended watchdog guest-panicked "
    "finish-migrate prelaunch postmigrate colo",
    RunState.INTERNAL_ERROR: "paused finish-migrate prelaunch",
    RunState.IO_ERROR: "running finish-migrate prelaunch",
    RunState.PAUSED: "running finish-migrate postmigrate prelaunch colo",
    RunState.POSTMIGRATE: "running finish-migrate prelaunch",
    RunState.PRELAUNCH: "running finish-migrate inmigrate",
    RunState.FINISH_MIGRATE: "running paused postmigrate prelaunch colo",
    RunState.RESTORE_VM: "running prelaunch",
    RunState.RUNNING: "debug internal-error io-error paused finish-migrate restore-vm save-vm shutdown watchdog "
    "guest-panicked colo suspended",
    RunState.SAVE_VM: "running",
    RunState.SHUTDOWN: "paused finish-migrate prelaunch colo",
    RunState.SUSPENDED: "running finish-migrate prelaunch colo",
    RunState.WATCHDOG: "running finish-migrate prelaunch colo",
    RunState.GUEST_PANICKED: "running finish-migrate prelaunch",
    RunState.COLO: "running prelaunch shutdown",
}

RunStateListener = Callable[[RunState, RunState], None]
"""Told the old and the new state after each change."""


class RunStateError(RuntimeError):
    """A change of run state that the table does not allow: an error of pyvm, not of its user."""


class RunStateHolder:
    """The run state of one machine, and those who want to know of its changes."""

    def __init__(self, state: RunState = RunState.PRELAUNCH) -> None:
        self._state = state
        self._listeners: list[RunStateListener] = []

    @property
    def state(self) -> RunState:
        """The present state."""
        return self._state

    @property
    def running(self) -> bool:
        """Whether the guest runs."""
        return self._state is RunState.RUNNING

    @property
    def needs_reset(self) -> bool:
        """Whether only a reset leads back to running."""
        return self._state in (RunState.INTERNAL_ERROR, RunState.SHUTDOWN)

    def allowed(self, state: RunState) -> bool:
        """Return whether `state` may follow the present one; staying is always allowed."""
        return state is self._state or state.value in TRANSITIONS[self._state].split()

    def set(self, state: RunState) -> None:
        """Change to `state` and tell the listeners; nothing happens where it is the present one.

        Raises :class:`RunStateError` where the table does not allow the change.
        """
        old = self._state
        if state is old:
            return
        if not self.allowed(state):
            raise RunStateError(f"invalid run state transition: {old.value} -> {state.value}")
        self._state = state
        for listener in tuple(self._listeners):
            listener(old, state)

    def listen(self, listener: RunStateListener) -> Callable[[], None]:
        """Call `listener` after each change, in the order of registration; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
