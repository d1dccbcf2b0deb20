"""Commands about the run state."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState

COMMANDS = CommandTable()


@COMMANDS.command("query-status")
def query_status(context: Context) -> dict[str, Any]:
    """Return the run state."""
    machine = context.machine
    state = machine.run_state
    return {"running": state is RunState.RUNNING, "singlestep": machine.single_step, "status": state.value}
