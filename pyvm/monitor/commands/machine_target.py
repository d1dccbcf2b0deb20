"""Commands about CPU models."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

COMMANDS = CommandTable()


@COMMANDS.command("query-cpu-definitions")
def query_cpu_definitions(context: Context) -> list[dict[str, Any]]:
    """Return the CPU models, and what each of them lacks here."""
    from pyvm.machine.cpu_models import definitions

    return definitions()


@COMMANDS.command("query-cpu-model-expansion")
def query_cpu_model_expansion(context: Context, type: str, model: Record) -> dict[str, Any]:  # noqa: A002 - as in the schema
    """Return the properties that a CPU model with some changes leads to."""
    from pyvm.machine.cpu_models import STATIC_MODEL, expand, full_properties, static_properties

    changes = {} if model.props is None else model.props
    found = expand(model.name, changes if isinstance(changes, dict) else {})
    if type == "static":
        return {"model": {"name": STATIC_MODEL, "props": static_properties(found)}}
    return {"model": {"name": model.name, "props": full_properties(found)}}
