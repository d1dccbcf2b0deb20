"""Commands that belong to no other chapter."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState

COMMANDS = CommandTable()


@COMMANDS.command("query-name")
def query_name(context: Context) -> dict[str, Any]:
    """Return the machine's name, where it has one."""
    name = context.machine.name
    return {} if name is None else {"name": name}


@COMMANDS.command("stop")
def stop(context: Context) -> None:
    """Stop the guest; while a migration comes in, do not start it afterwards."""
    machine = context.machine
    if machine.run_state is RunState.INMIGRATE:
        machine.autostart = False
    else:
        machine.vm_stop(RunState.PAUSED)


@COMMANDS.command("cont")
def cont(context: Context) -> None:
    """Let the guest run; while a migration comes in, start it afterwards."""
    machine = context.machine
    state = machine.run_state
    if machine.needs_reset:
        raise QmpError("Resetting the Virtual Machine is required")
    if state is RunState.SUSPENDED:
        return
    if state is RunState.FINISH_MIGRATE:
        raise QmpError("Migration is not finalized yet")
    if state is RunState.INMIGRATE:
        machine.autostart = True
    else:
        machine.vm_start()


@COMMANDS.command("human-monitor-command")
def human_monitor_command(context: Context, command_line: str, cpu_index: int | None) -> str | Coroutine[Any, Any, str]:
    """Execute a line of the human monitor; return the text that it leads to."""
    from pyvm.monitor.hmp.shell import execute

    return execute(context, command_line, cpu_index)
