"""Commands about character devices."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-chardev")
def query_chardev(context: Context) -> list[dict[str, Any]]:
    """Return all character devices."""
    return [
        {"label": chardev.label, "filename": chardev.filename, "frontend-open": chardev.frontend_open}
        for chardev in context.machine.chardevs()
    ]
