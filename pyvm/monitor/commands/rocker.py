"""Commands about Rocker switches, of which no machine of pyvm has any."""

from __future__ import annotations

from typing import NoReturn

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


def _not_found(name: str) -> NoReturn:
    raise QmpError(f"rocker {name} not found")


@COMMANDS.command("query-rocker")
def query_rocker(context: Context, name: str) -> NoReturn:
    """Return a switch."""
    _not_found(name)


@COMMANDS.command("query-rocker-ports")
def query_rocker_ports(context: Context, name: str) -> NoReturn:
    """Return the ports of a switch."""
    _not_found(name)


@COMMANDS.command("query-rocker-of-dpa-flows")
def query_rocker_of_dpa_flows(context: Context, name: str, tbl_id: int | None) -> NoReturn:
    """Return the flows of a switch."""
    _not_found(name)


@COMMANDS.command("query-rocker-of-dpa-groups")
def query_rocker_of_dpa_groups(
    context: Context,
    name: str,
    type: int | None,  # noqa: A002 - the name that the schema gives it
) -> NoReturn:
    """Return the groups of a switch."""
    _not_found(name)
