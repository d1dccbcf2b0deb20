"""Commands about drives and what is in them; the handlers are in several modules."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.commands import block_limits, block_media
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()

for _module in (block_media, block_limits):
    COMMANDS.handlers.update(_module.COMMANDS.handlers)


@COMMANDS.command("query-pr-managers")
def query_pr_managers(context: Context) -> list[dict[str, Any]]:
    """Return that there are no helpers for persistent reservations."""
    return []
