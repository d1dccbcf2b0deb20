"""Commands about SPICE, which is not in use."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-spice")
def query_spice(context: Context) -> dict[str, Any]:
    """Return that there is no SPICE server."""
    return {"enabled": False, "migrated": False, "mouse-mode": "client"}
