"""Commands about the PCI bus."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


class PciModel(Protocol):
    """The PCI bus of a machine."""

    def pci_buses(self) -> list[dict[str, Any]]:
        """Return a PciInfo for each bus below a host bridge."""


@runtime_checkable
class PciOwner(Protocol):
    """A machine that may have PCI."""

    @property
    def model(self) -> PciModel:
        """Its parts."""


@COMMANDS.command("query-pci")
def query_pci(context: Context) -> list[dict[str, Any]]:
    """Return the PCI functions, their identifiers and regions."""
    machine = context.machine
    return machine.model.pci_buses() if isinstance(machine, PciOwner) else []
