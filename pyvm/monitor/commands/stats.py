"""Commands about statistics, of which a machine without KVM has none."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

COMMANDS = CommandTable()


@COMMANDS.command("query-stats")
def query_stats(context: Context, arguments: Record) -> list[dict[str, Any]]:
    """Return the statistics of all providers: the only one that the schema knows, KVM, is not here."""
    return []


@COMMANDS.command("query-stats-schemas")
def query_stats_schemas(context: Context, provider: str | None) -> list[dict[str, Any]]:
    """Return what statistics the providers have."""
    return []
