"""Commands about trusted platform modules, of which no machine of pyvm has any."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-tpm-models")
def query_tpm_models(context: Context) -> list[str]:
    """Return the models that can be plugged in: none."""
    return []


@COMMANDS.command("query-tpm-types")
def query_tpm_types(context: Context) -> list[str]:
    """Return the back ends that there are: none."""
    return []


@COMMANDS.command("query-tpm")
def query_tpm(context: Context) -> list[dict[str, Any]]:
    """Return the modules of the machine: none."""
    return []
