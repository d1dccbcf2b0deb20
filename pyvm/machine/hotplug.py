"""Plugging devices in and out when the machine exists already: `device_add` and `device_del`.

What the guest finds out by itself is done at any time: ports of a virtio-serial device, units of a virtio SCSI host.
For PCI the guest would have to be told by ACPI, which pyvm's board does not do yet: there devices come and go only
before the guest runs, and firmware finds them when it starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.config import DeviceConfig
from pyvm.devices.properties import DeviceModel, find_model
from pyvm.errors import ConfigError, MissingError
from pyvm.machine.backend_paths import name_backends
from pyvm.machine.cpu_plug import refuse_cpu
from pyvm.machine.models import DEVICE_MODELS
from pyvm.machine.unplugging import unplug
from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError, device_not_found
from pyvm.options import is_identifier
from pyvm.qom.types import CPU_SUFFIX, load
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.machine.plugging import PluggedDevice
    from pyvm.qom.tree import QomObject

_OWN = ("driver", "bus", "id")
_AT_ANY_TIME = ("virtio-serial-bus", "SCSI")
_BUS_NAMES = {"PCI": "pci.0", "ISA": "isa.0", "floppy-bus": "floppy-bus.0", "IDE": "ide.1"}
"""The bus of each kind that the board has; of two IDE buses the one that is looked at first."""
_BACKEND = "virtio-backend"
_ON_BOARD = {"isa-device": "ISA", "virtio-device": "virtio-bus"}
"""Types of devices that only the board makes, and the kind of bus that they would be on."""


def no_hotplug(bus: str) -> QmpError:
    """Return the error for a bus on which devices cannot come and go now."""
    return QmpError(f"Bus '{bus}' does not support hotplugging")


def _text(value: Any) -> str | None:
    """Return an argument as `-device` would have it, None for what cannot be given there."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if isinstance(value, str | int | float) else None


class Hotplug:
    """What comes and goes on one machine."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        self._leaving: list[PluggedDevice] = []
        """Devices that go at the next reset: no guest runs that could let them go."""
        self._stale = False
        """Whether firmware does not know yet what is on the PCI bus."""

    # ---- In

    def add(self, arguments: Mapping[str, Any]) -> None:
        """Plug in the device that the arguments of `device_add` describe; raises QmpError."""
        given = {name: text for name, value in arguments.items() if (text := _text(value)) is not None}
        identifier = given.get("id")
        if identifier is not None and not is_identifier(identifier):
            raise QmpError("Parameter 'id' expects an identifier")
        if "driver" not in given:
            raise QmpError("Parameter 'driver' is missing")
        bus = given.get("bus")
        properties: dict[str, Any] = {name: value for name, value in given.items() if name not in _OWN}
        model = self._model(given["driver"], properties)
        self._check_bus(model, bus)
        if identifier is not None and identifier in self._pc.model.qom.plugged.named():
            raise QmpError(f"Duplicate device ID '{identifier}'")
        try:
            self._pc.plugger.plug(DeviceConfig(model.name, identifier, bus, properties), hotplugged=True)
        except MissingError as error:
            raise QmpError(str(error), DEVICE_NOT_FOUND) from None
        except ConfigError as error:
            raise QmpError(str(error)) from None
        name_backends(self._pc)
        if model.bus == "PCI":
            self._stale = True

    def _model(self, driver: str, properties: Mapping[str, str]) -> DeviceModel:
        kind = load().get(driver)
        try:
            model = find_model(DEVICE_MODELS, driver)
        except ConfigError as error:
            if kind is None or not kind.implements("device"):
                raise QmpError(str(error)) from None
            if kind.abstract:
                raise QmpError("Parameter 'driver' expects a non-abstract device type") from None
            if driver.endswith(CPU_SUFFIX):
                refuse_cpu(self._pc, driver, properties)
            for parent, bus in _ON_BOARD.items():
                if kind.implements(parent):
                    raise (
                        no_hotplug(_BUS_NAMES[bus])
                        if bus in _BUS_NAMES
                        else QmpError(f"No '{bus}' bus found for device '{driver}'")
                    ) from None
            raise QmpError("Parameter 'driver' expects a pluggable device type") from None
        if model.name == "VGA":
            raise QmpError("Parameter 'driver' expects a pluggable device type")
        return model

    def _check_bus(self, model: DeviceModel, bus: str | None) -> None:
        """Raise QmpError where the bus does not exist, or nothing can be plugged in there now."""
        plugger = self._pc.plugger
        kinds = {name: kind for kind, name in _BUS_NAMES.items()} | {"ide.0": "IDE"}
        kinds |= dict.fromkeys(plugger.plugged.pci_buses, "PCI")
        kinds |= dict.fromkeys(plugger.disks.scsi_buses, "SCSI")
        kinds |= dict.fromkeys(plugger.plugged.serial_buses, "virtio-serial-bus")
        wanted = model.bus or "ISA"
        if bus is None:
            bus = next((name for name, kind in kinds.items() if kind == wanted), None)
            if bus is None:
                raise QmpError(f"No '{wanted}' bus found for device '{model.name}'")
        elif bus not in kinds:
            raise QmpError(f"Bus '{bus}' not found")
        elif kinds[bus] != wanted:
            raise QmpError(f"Device '{model.name}' can't go on {kinds[bus]} bus")
        now = self._pc.run_state is RunState.PRELAUNCH if wanted == "PCI" else wanted in _AT_ANY_TIME
        if not now or not self._pc.model.qom.plugged.is_realized(bus):
            raise no_hotplug(bus)

    # ---- Out

    def remove(self, name: str) -> None:
        """Take out the device with an ID or at a path; raises QmpError."""
        device = self._find(name)
        if device in self._leaving:
            raise QmpError(f"Device {name} is already in the process of unplug")
        if device.model.bus in _AT_ANY_TIME:
            # The reply to the client comes first.
            self._pc.mainloop.call_soon(self._tell, self._take_out(device))
            return
        self._check_pci(device)
        self._leaving.append(device)

    def _check_pci(self, device: PluggedDevice) -> None:
        """Raise QmpError where a device cannot leave its bus now."""
        if device.model.bus != "PCI" or device.built_in or self._pc.run_state is not RunState.PRELAUNCH:
            raise no_hotplug(self._pc.model.qom.plugged.bus_name(device) or _BUS_NAMES["PCI"])

    def _find(self, name: str) -> PluggedDevice:
        tree = self._pc.model.qom
        found: QomObject | None
        if name.startswith("/"):
            try:
                found = tree.resolve(name)
            except QmpError:
                raise device_not_found(name) from None
        else:
            found = tree.plugged.named().get(name)
        if found is None:
            raise device_not_found(name)
        for device in self._pc.plugger.plugged.devices:
            if tree.plugged.object_of(device) is found:
                return device
        kind = load().get(found.type)
        if kind is None or not kind.implements("device"):
            raise QmpError(f"{name} is not a hotpluggable device")
        if found.type.endswith(CPU_SUFFIX):
            raise QmpError("Boot CPU is unpluggable" if found is tree.boot_cpu else "CPUs cannot be taken out")
        bus = getattr(found, "bus", None)
        raise no_hotplug("main-system-bus" if bus is None or bus.name == "sysbus" else bus.name)

    def _take_out(self, device: PluggedDevice) -> list[dict[str, Any]]:
        """Unplug a device; return the data of the events that say so, of what came with it first."""
        found = self._pc.model.qom.plugged.object_of(device)
        path, inner = found.path, found.children().get(_BACKEND)
        gone: list[dict[str, Any]] = [{"path": inner.path}] if inner is not None else []
        gone.append({"path": path} if device.config.id is None else {"device": device.config.id, "path": path})
        unplug(self._pc, device)
        return gone

    def _tell(self, gone: Iterable[dict[str, Any]]) -> None:
        for data in gone:
            self._pc.events.emit("DEVICE_DELETED", data)

    def set_realized(self, device: PluggedDevice, value: bool) -> None:
        """Take a device off its bus, or put it back there; raises QmpError."""
        if value == device.realized:
            return
        self._check_pci(device)
        function: Any = device.made
        bus = self._pc.plugger.plugged.pci_buses.get(device.config.bus or "", self._pc.board.pci)
        if value:
            try:
                bus.attach(function, function.slot, function.fn)
            except ValueError as error:
                raise QmpError(str(error)) from None
        else:
            bus.detach(function)
        device.realized = value
        self._stale = True

    # ---- Life

    def finish(self) -> None:
        """The machine is being reset: what was to leave goes."""
        leaving, self._leaving = self._leaving, []
        for device in leaving:
            self._tell(self._take_out(device))
        self._stale = False

    def settle(self) -> None:
        """The guest is about to run for the first time: let firmware find what was plugged in and out."""
        if self._stale or self._leaving:
            self._pc.devices_changed()
