"""Plugging devices in and out when the machine exists already: `device_add` and `device_del`.

Ports of a virtio-serial device and units of a virtio SCSI host come and go at once: the guest finds out by itself.  Of
the rest the guest is told by ACPI, and it lets go what is to leave (:mod:`pyvm.machine.plug.pci`).  Before the guest
has run, firmware finds PCI devices when it starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.config import DeviceConfig
from pyvm.devices.properties import DeviceModel, find_model
from pyvm.errors import ConfigError, MissingError
from pyvm.machine.backend_paths import name_backends
from pyvm.machine.plug.models import DEVICE_MODELS
from pyvm.machine.plug.pci import PciHotplug
from pyvm.machine.plug.unplugging import unplug
from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError, device_not_found
from pyvm.options import is_identifier
from pyvm.qom.types import load
from pyvm.records import replace
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.firmware.machine_info import MachineInfo
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice
    from pyvm.qom.tree import QomObject

_OWN = ("driver", "bus", "id")
_MILLISECOND = 1_000_000
_AT_ANY_TIME = ("virtio-serial-bus", "SCSI")
_BUS_NAMES = {"PCI": "pci.0", "ISA": "isa.0", "floppy-bus": "floppy-bus.0", "IDE": "ide.1"}
"""The bus of each kind that the board has; of two IDE buses the one that is looked at first."""
_WITH_EVENT = ("virtio-backend", "lapic")
"""Parts of devices that are devices themselves, and are told of when they go."""
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
        """Devices that the guest was asked for before it ran at all: it hears of them in any case."""
        self._pci: PciHotplug | None = None
        """The slots that the guest knows of; none before the machine is made."""
        self._resetting = False
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
        self._check_stays("device_add")
        if identifier is not None and identifier in self._pc.model.qom.plugged.named():
            raise QmpError(f"Duplicate device ID '{identifier}'")
        try:
            device = self._pc.plugger.plug(DeviceConfig(model.name, identifier, bus, properties), hotplugged=True)
        except MissingError as error:
            raise QmpError(str(error), DEVICE_NOT_FOUND) from None
        except ConfigError as error:
            raise QmpError(str(error)) from None
        name_backends(self._pc)
        if model.bus is None:
            self._pc.model.sockets.announce(device)
        elif model.bus == "PCI":
            self._stale = self._pc.run_state is RunState.PRELAUNCH
            self.slots.announce(device)

    def _model(self, driver: str, properties: Mapping[str, str]) -> DeviceModel:
        kind = load().get(driver)
        try:
            model = find_model(DEVICE_MODELS, driver)
        except ConfigError as error:
            if kind is None or not kind.implements("device"):
                raise QmpError(str(error)) from None
            if kind.abstract:
                raise QmpError("Parameter 'driver' expects a non-abstract device type") from None
            for parent, bus in _ON_BOARD.items():
                if kind.implements(parent):
                    raise (
                        no_hotplug(_BUS_NAMES[bus])
                        if bus in _BUS_NAMES
                        else QmpError(f"No '{bus}' bus found for device '{driver}'")
                    ) from None
            raise QmpError("Parameter 'driver' expects a pluggable device type") from None
        if model.name in ("VGA", "vmgenid"):
            raise QmpError("Parameter 'driver' expects a pluggable device type")
        return model

    def _check_bus(self, model: DeviceModel, bus: str | None) -> None:
        """Raise QmpError where the bus does not exist, or nothing can be plugged in there now."""
        wanted = model.bus
        if wanted is None and bus is None:
            return
        try:
            bus = self._pc.plugger.buses.choose(model, bus)
        except ConfigError as error:
            raise QmpError(str(error)) from None
        now = wanted == "PCI" or wanted in _AT_ANY_TIME
        if not now or not self._pc.model.qom.plugged.is_realized(bus):
            raise no_hotplug(bus)

    def _check_stays(self, command: str) -> None:
        """Raise QmpError while the machine moves: its other self is made of the devices that it had at first."""
        if self._pc.moving:
            raise QmpError(f"{command} not allowed while migrating")

    # ---- Out

    def remove(self, name: str) -> None:
        """Take out the device with an ID or at a path; raises QmpError."""
        from pyvm.machine.qom.cpu import CpuObject

        found = self._find(name)
        if isinstance(found, CpuObject):
            self._check_stays("device_del")
            self._pc.model.sockets.cpus.request_eject(found.index, found.type)
            return
        device = self._device_of(found, name)
        if device in self._leaving:
            raise QmpError(f"Device {name} is already in the process of unplug")
        if device.model.bus in _AT_ANY_TIME:
            self._check_stays("device_del")
            # The reply to the client comes first.
            self._pc.mainloop.call_soon(self._tell, self._take_out(device))
            return
        if device.model.name == "vmgenid":
            raise QmpError(f"Device '{device.model.name}' does not support hotplugging")
        if device.model.bus is None:
            self._check_stays("device_del")
            self._pc.model.sockets.request_eject(device)
            return
        self._check_pci(device)
        self._check_stays("device_del")
        if self._is_beyond(device):
            self._check_idle(device, name)
            self._pc.mainloop.call_soon(self._pull_out, device)
            return
        if not self._pc.clock.now() // _MILLISECOND:
            self._leaving.append(device)
        if device.realized:
            self.slots.request_eject(device)

    def _check_pci(self, device: PluggedDevice) -> None:
        """Raise QmpError where a device cannot leave its bus now."""
        if device.model.bus != "PCI" or device.built_in:
            raise no_hotplug(self._pc.model.qom.plugged.bus_name(device) or _BUS_NAMES["PCI"])

    def _is_beyond(self, device: PluggedDevice) -> bool:
        """Whether a device is behind a bridge that came later: the guest cannot be asked to let it go."""
        function: Any = device.made
        return device.realized and self.slots.number_of(function.bus) is None

    def _check_idle(self, device: PluggedDevice, name: str) -> None:
        """Raise QmpError where the guest's driver has a device: some drivers never get over losing it at once."""
        function: Any = device.made
        if function.bus_master:
            bus = self._pc.model.qom.plugged.bus_name(device)
            raise QmpError(f"Device '{name}' is in use, and the guest cannot be asked to free it on bus '{bus}'")

    def _pull_out(self, device: PluggedDevice) -> None:
        """Take a device out that the guest does not use, and tell it to see what is still there."""
        if device in self._pc.plugger.plugged.devices:
            self._forget(device)
            self.slots.registers.request_rescan()

    def _find(self, name: str) -> QomObject:
        tree = self._pc.model.qom
        found: QomObject | None
        if name.startswith("/"):
            try:
                found = tree.resolve(name)
            except QmpError:
                raise device_not_found(name) from None
        elif name:
            found = tree.plugged.named().get(name)
        else:
            found = tree.plugged.with_id  # a path without a name
        if found is None:
            raise device_not_found(name)
        return found

    def _device_of(self, found: QomObject, name: str) -> PluggedDevice:
        """Return the device that an object stands for; raises QmpError where that is none that can go."""
        for device in self._pc.plugger.plugged.devices:
            if self._pc.model.qom.plugged.object_of(device) is found:
                return device
        kind = load().get(found.type)
        if kind is None or not kind.implements("device"):
            raise QmpError(f"{name} is not a hotpluggable device")
        bus = getattr(found, "bus", None)
        raise no_hotplug("main-system-bus" if bus is None or bus.name == "sysbus" else bus.name)

    def _take_out(self, device: PluggedDevice) -> list[dict[str, Any]]:
        """Unplug a device; return the data of the events that say so, of what came with it first."""
        found = self._pc.model.qom.plugged.object_of(device)
        path, children = found.path, found.children()
        gone: list[dict[str, Any]] = [data for other in self._behind(device) for data in self._take_out(other)]
        gone += [{"path": children[name].path} for name in _WITH_EVENT if name in children]
        gone.append({"path": path} if device.config.id is None else {"device": device.config.id, "path": path})
        unplug(self._pc, device)
        return gone

    def _behind(self, device: PluggedDevice) -> list[PluggedDevice]:
        """Return the devices on the bus behind a bridge."""
        bus = getattr(device.made, "secondary_bus", None)
        devices = self._pc.plugger.plugged.devices
        return [other for other in devices if bus is not None and getattr(other.made, "bus", None) is bus]

    def _tell(self, gone: Iterable[dict[str, Any]]) -> None:
        for data in gone:
            self._pc.events.emit("DEVICE_DELETED", data)

    def set_realized(self, device: PluggedDevice, value: bool) -> None:
        """Take a device off its bus, or put it back there, before the guest runs; raises QmpError."""
        if value == device.realized:
            return
        function: Any = device.made
        if device.model.bus != "PCI" or device.built_in or self._pc.run_state is not RunState.PRELAUNCH:
            raise no_hotplug(self._pc.model.qom.plugged.bus_name(device) or _BUS_NAMES["PCI"])
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

    def machine_made(self) -> None:
        """All that the machine starts with is there: from now on the guest is told what comes and goes."""
        self._pci = PciHotplug(self._pc.board, self._pc.plugger.plugged, self._let_go)
        self._pc.model.sockets.connect()

    def describe(self, info: MachineInfo) -> MachineInfo:
        """Return what firmware tells the guest of the machine, with all that can come and go."""
        return self._pc.model.sockets.describe(replace(info, pci_bus=self.slots.described))

    @property
    def slots(self) -> PciHotplug:
        """The PCI slots of a machine that was made."""
        assert self._pci is not None, "the machine was made"
        return self._pci

    def _let_go(self, device: PluggedDevice) -> None:
        """The guest has let a device go: it is off its bus at once, and the main loop does the rest."""
        if self._resetting:
            self._forget(device)
            return
        function: Any = device.made
        if device.realized:
            function.bus.detach(function)
            device.realized = False
        self._pc.mainloop.call_soon(self._forget, device)

    def _forget(self, device: PluggedDevice) -> None:
        if device in self._pc.plugger.plugged.devices:
            self._tell(self._take_out(device))

    def cpu_gone(self, index: int) -> None:
        """The guest has let a CPU go, which does nothing any more."""
        device = self._pc.model.plugged_cpu(index)
        if device is not None:
            self._forget(device)
        elif index not in self._pc.cpus.present:
            path = self._pc.model.cpu_path(index)
            self._pc.model.qom.drop_cpu(index)
            self._tell([{"path": f"{path}/lapic"}, {"path": path}])

    def cpu_identifier(self, index: int) -> str | None:
        """Return the ID that the user gave the CPU in a place."""
        device = self._pc.model.plugged_cpu(index)
        return None if device is None or index not in self._pc.cpus.present else device.config.id

    def module_gone(self, module: object) -> None:
        """The guest has let a memory module go, which nobody uses any more."""
        for device in self._pc.plugger.plugged.devices:
            if device.made is module:
                self._forget(device)
                return

    def finish(self) -> None:
        """The machine is being reset: what was to leave goes, and firmware hears of what came."""
        if self._pci is not None:
            self._resetting = True
            self._pci.registers.finish()
            self._resetting = False
        for device in self._leaving:
            if not device.realized:
                self._forget(device)
        self._leaving = []
        self._stale = False
        if self._pc.initialized:
            info = self.describe(self._pc.tables.info)
            if info != self._pc.tables.info:
                self._pc.tables.rebuild(info)

    def settle(self) -> None:
        """The guest is about to run for the first time: let firmware find what was plugged in and out."""
        if self._stale or self._leaving:
            self._pc.devices_changed()
