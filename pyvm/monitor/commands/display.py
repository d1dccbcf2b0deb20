"""Commands about displays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, device_not_found
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.devices.display.vga import Vga
    from pyvm.monitor.machine import MachineControl

COMMANDS = CommandTable()


@runtime_checkable
class DisplayOwner(Protocol):
    """A machine whose screen can be looked at."""

    def displays(self) -> Sequence[Vga]:
        """Return the display adapters, the primary one first."""

    def find_device(self, name: str) -> object | None:
        """Return the device that the user gave the ID `name`, None where there is none."""


def _display(machine: MachineControl, device: str | None, head: int | None) -> Vga:
    """Return the adapter that is meant; raises QmpError where there is none."""
    displays = machine.displays() if isinstance(machine, DisplayOwner) else ()
    if device is None:
        if head is not None:
            raise QmpError("'head' must be specified together with 'device'")
        if not displays:
            raise QmpError("There is no console to take a screendump from")
        return displays[0]
    found = machine.find_device(device) if isinstance(machine, DisplayOwner) else None
    if found is None:
        raise device_not_found(device)
    for display in displays:
        if display is found and not head:
            return display
    raise QmpError(f"Device {device} (head {head or 0}) is not bound to a QemuConsole")


@COMMANDS.command("screendump")
def screendump(
    context: Context,
    filename: str,
    device: str | None,
    head: int | None,
    format: str | None,  # noqa: A002 - the name that the schema gives it
) -> None:
    """Write what a display shows to a file."""
    from pyvm.devices.display.screendump import encode, picture, write_all

    data = encode(picture(_display(context.machine, device, head)), format or "ppm")
    try:
        file = open(filename, "wb", buffering=0)  # noqa: SIM115 - an error of this tells something else than one below
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise QmpError(f"failed to open file '{filename}': {reason}") from None
    with file:
        try:
            write_all(file, data)
        except OSError as error:
            raise QmpError(f"Unable to write to file: {error.strerror}") from None


@COMMANDS.command("query-display-options")
def query_display_options(context: Context) -> dict[str, Any]:
    """Return the options of the display on the host's screen: there is none."""
    return {"type": "none"}
