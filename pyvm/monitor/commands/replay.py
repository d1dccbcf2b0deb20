"""Commands about record and replay, which pyvm does not have."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-replay")
def query_replay(context: Context) -> dict[str, Any]:
    """Return that nothing is recorded or replayed."""
    return {"mode": "none", "icount": 0}


@COMMANDS.command("replay-break")
def replay_break(context: Context, icount: int) -> None:
    """Refuse: nothing is replayed."""
    raise QmpError("setting the breakpoint is allowed only in play mode")


@COMMANDS.command("replay-delete-break")
def replay_delete_break(context: Context) -> None:
    """Refuse: nothing is replayed."""
    raise QmpError("replay breakpoints are allowed only in play mode")


@COMMANDS.command("replay-seek")
def replay_seek(context: Context, icount: int) -> None:
    """Refuse: nothing is replayed."""
    raise QmpError("replay must be enabled to seek")
