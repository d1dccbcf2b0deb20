"""Introspection of the schema."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-qmp-schema")
def query_qmp_schema(context: Context) -> list[dict[str, Any]]:
    """Return all commands and events, and the types that they use."""
    from pyvm.monitor.schema.introspect import introspect

    return introspect(context.schema)
