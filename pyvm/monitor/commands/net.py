"""Commands about networks, of which no machine of pyvm has any yet."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-rx-filter")
def query_rx_filter(context: Context, name: str | None) -> list[dict[str, Any]]:
    """Return what network cards let through: there are no cards."""
    if name is not None:
        raise QmpError(f"invalid net client name: {name}")
    return []
