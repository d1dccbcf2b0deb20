"""Commands about what the guest's operating system said of devices that were plugged in."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import unsupported
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


class SlotModel(Protocol):
    """The places of a machine for memory and CPUs."""

    def ospm_status(self) -> list[dict[str, Any]]:
        """Return the ACPIOSTInfo of each place; raises QmpError where the machine has no ACPI."""


@runtime_checkable
class SlotOwner(Protocol):
    """A machine with such places."""

    @property
    def model(self) -> SlotModel:
        """Its parts."""


@COMMANDS.command("query-acpi-ospm-status")
def query_acpi_ospm_status(context: Context) -> list[dict[str, Any]]:
    """Return what the guest reported of each place."""
    if not isinstance(context.machine, SlotOwner):
        raise unsupported()
    return context.machine.model.ospm_status()
