"""Introspection: the schema, and the options of the command line."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-qmp-schema")
def query_qmp_schema(context: Context) -> list[dict[str, Any]]:
    """Return all commands and events, and the types that they use."""
    from pyvm.monitor.schema.introspect import introspect

    return introspect(context.schema)


@COMMANDS.command("query-command-line-options")
def query_command_line_options(context: Context, option: str | None) -> list[dict[str, Any]]:
    """Return the options of the command line with their parameters, or one of them."""
    from pyvm.commandline.introspect import option_infos

    infos = option_infos()
    if option is None:
        return infos
    found = [info for info in infos if info["option"] == option]
    if not found:
        raise QmpError(f"invalid option name: {option}")
    return found
