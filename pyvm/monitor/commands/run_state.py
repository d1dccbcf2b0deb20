"""Commands about the run state."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState

COMMANDS = CommandTable()


@COMMANDS.command("query-status")
def query_status(context: Context) -> dict[str, Any]:
    """Return the run state."""
    machine = context.machine
    state = machine.run_state
    return {"running": state is RunState.RUNNING, "singlestep": machine.single_step, "status": state.value}


@runtime_checkable
class ActionOwner(Protocol):
    """A machine that can be told what is to follow certain events."""

    def set_actions(self, **actions: str) -> None:
        """Set what follows `reboot`, `shutdown`, `panic` and `watchdog`."""


def _set_actions(context: Context, **actions: str | None) -> None:
    machine = context.machine
    if not isinstance(machine, ActionOwner):
        raise unsupported()
    machine.set_actions(**{name: action for name, action in actions.items() if action is not None})


@COMMANDS.command("watchdog-set-action")
def watchdog_set_action(context: Context, action: str) -> None:
    """Say what follows when the guest's watchdog fires."""
    _set_actions(context, watchdog=action)


@COMMANDS.command("set-action")
def set_action(
    context: Context, reboot: str | None, shutdown: str | None, panic: str | None, watchdog: str | None
) -> None:
    """Say what follows when the guest reboots, shuts down or panics, or its watchdog fires."""
    _set_actions(context, reboot=reboot, shutdown=shutdown, panic=panic, watchdog=watchdog)
