"""The buses that devices are plugged into: by name, and which one it is where nobody names one.

The rule is a client's to rely on, since the disk that it names no bus for has to be where it was: buses are looked at
from the board down, and of the devices and buses that hang on the same thing the youngest comes first.  So a port goes
to the virtio-serial device that came last, and a disk to the second IDE channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.devices.properties import DeviceModel
    from pyvm.machine.plug.plugging import Plugger

_BOARD = {
    "pci.0": "PCI",
    "isa.0": "ISA",
    "ide.1": "IDE",
    "ide.0": "IDE",
    "floppy-bus.0": "floppy-bus",
    "i2c": "i2c-bus",
    "main-system-bus": "System",
}
"""The buses of the board, the one that is looked at first before others of its kind."""


class Buses:
    """The buses of one machine."""

    def __init__(self, plugger: Plugger) -> None:
        self._plugger = plugger
        self._numbers = {"pci": 1}
        """How many buses of a kind have a number in their name; those that are gone count as well."""

    def numbered(self, kind: str) -> str:
        """Return the name of a new bus on a device without an ID."""
        number = self._numbers.get(kind, 0)
        self._numbers[kind] = number + 1
        return f"{kind}.{number}"

    def kinds(self) -> dict[str, str]:
        """Return the kind of each bus by its name."""
        plugged = self._plugger.plugged
        kinds = dict(_BOARD)
        kinds |= dict.fromkeys(plugged.pci_buses, "PCI")
        kinds |= dict.fromkeys(self._plugger.disks.scsi_buses, "SCSI")
        kinds |= dict.fromkeys(plugged.serial_buses, "virtio-serial-bus")
        return kinds

    def choose(self, model: DeviceModel, name: str | None) -> str:
        """Return the bus that a device goes to, `name` being the one that was asked for; raises ConfigError."""
        kinds = self.kinds()
        if name is None:
            found = [bus for bus, kind in kinds.items() if kind == model.bus]
            if not found:
                raise ConfigError(f"No '{model.bus}' bus found for device '{model.name}'")
            # Those of the board are in order, and above all others of their kind.
            return found[0] if found[0] in _BOARD or len(found) == 1 else min(found, key=self._place)
        if name not in kinds:
            raise ConfigError(f"Bus '{name}' not found")
        if kinds[name] != model.bus:
            raise ConfigError(f"Device '{model.name}' can't go on {kinds[name]} bus")
        return name

    def _place(self, name: str) -> tuple[int, ...]:
        """Return what sorts the buses of PCI devices: how young each device on the way there is."""
        plugged = self._plugger.plugged
        behind: Any = plugged.serial_buses.get(name) or self._plugger.disks.scsi_buses.get(name)
        place: list[int] = []
        while behind is not None:
            upper = None
            for number, device in enumerate(plugged.devices):
                if _has(device.made, behind):
                    place.insert(0, -number)
                    upper = getattr(device.made, "bus", None)
            behind = upper
        return tuple(place)


def _has(made: object, bus: object) -> bool:
    """Whether a bus hangs on a device."""
    inner = getattr(made, "device", None)
    return any(bus is found for found in (getattr(made, "secondary_bus", None), inner, getattr(inner, "bus", None)))
