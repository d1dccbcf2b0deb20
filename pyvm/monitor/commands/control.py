"""Commands about the monitor itself."""

from __future__ import annotations

from typing import Any

import pyvm
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.version import EMULATED_VERSION
from pyvm.runstate import ShutdownCause

COMMANDS = CommandTable()


def version_info() -> dict[str, Any]:
    """Return a VersionInfo."""
    return {
        "qemu": dict(zip(("major", "minor", "micro"), EMULATED_VERSION, strict=True)),
        "package": f"pyvm {pyvm.__version__}",
    }


@COMMANDS.command("qmp_capabilities")
def qmp_capabilities(context: Context, enable: list[str] | None) -> None:
    """End capabilities negotiation."""
    context.session.enable_capabilities(enable or ())


@COMMANDS.command("query-version")
def query_version(context: Context) -> dict[str, Any]:
    """Return the version."""
    return version_info()


@COMMANDS.command("query-commands")
def query_commands(context: Context) -> list[dict[str, str]]:
    """Return the names of all commands, the last defined first."""
    return [{"name": name} for name in reversed(list(context.schema.command_names))]


@COMMANDS.command("query-events")
def query_events(context: Context) -> list[dict[str, str]]:
    """Return the names of all events, the last defined first."""
    return [{"name": name} for name in reversed(list(context.schema.event_names))]


@COMMANDS.command("quit")
def quit_machine(context: Context) -> None:
    """End the process."""
    context.machine.quit(ShutdownCause.HOST_QMP_QUIT)
