"""Devices that were plugged in as objects of the tree, with the buses and back ends that they bring along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pyvm.devices.pci.constants import CLASS_CODE
from pyvm.machine.plug.cpu import PluggedCpu
from pyvm.machine.plug.memory import MemoryModule
from pyvm.machine.qom import drive_property
from pyvm.machine.qom.cpu import CpuObject
from pyvm.machine.qom.devices import BusObject, DeviceObject, check_kind
from pyvm.machine.qom.regions import add_pci_regions, add_virtio_regions
from pyvm.machine.qom.settled import disk_values
from pyvm.monitor.errors import QmpError
from pyvm.qom.tree import Property, QomObject, container
from pyvm.qom.types import load

if TYPE_CHECKING:
    from pyvm.devices.pci.function import PciFunction
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice

_BACKEND, _TRANSPORT_BUS = "virtio-backend", "virtio-bus"
_OF_ALL = frozenset({"realized", "hotplugged", "hotpluggable", "parent_bus"})
_UNKNOWN_STATISTIC = (1 << 64) - 1
_HOTPLUGGABLE_BUSES = ("PCI", "SCSI", "virtio-serial-bus", None)
_DEFAULT_ENTROPY = "default-backend"
_SCSI_CONTROL_QUEUES = 2
_CLASS = CLASS_CODE + 1
"""Where base class and subclass stand in configuration space."""


class PluggedObjects:
    """The objects of all plugged devices; one is made for each when somebody first looks at it."""

    def __init__(self, pc: Pc, bus: Callable[[str], BusObject | None]) -> None:
        """`bus` returns a bus of the board by its name."""
        self.with_id = container(self.named)
        """The object `/machine/peripheral`."""
        self.without_id = container(self.anonymous)
        """The object `/machine/peripheral-anon`."""
        self._pc = pc
        self._board_bus = bus
        self._objects: dict[int, tuple[PluggedDevice, DeviceObject]] = {}
        self._buses: dict[str, BusObject] = {}

    def _devices(self) -> list[PluggedDevice]:
        return self._pc.plugger.plugged.devices if self._pc.initialized else []

    def object_of(self, device: PluggedDevice) -> DeviceObject:
        """Return the object of a device."""
        known = self._objects.get(id(device))
        if known is None:
            self._objects = {key: item for key, item in self._objects.items() if item[0] in self._devices()}
            known = self._objects[id(device)] = (device, self._make(device))
            made = known[1]
            made.bus = self._bus_of(device)
            if device.config.id is not None:
                made.parent, made.name = self.with_id, device.config.id
            elif not device.built_in:
                made.parent, made.name = self.without_id, f"device[{device.number}]"
        return known[1]

    def of(self, made: object) -> DeviceObject | None:
        """Return the object of a device by what it was made into."""
        for device in self._devices():
            if device.made is made:
                return self.object_of(device)
        return None

    def named(self) -> Mapping[str, QomObject]:
        """Return the devices that have an ID."""
        return {device.config.id: self.object_of(device) for device in self._devices() if device.config.id is not None}

    def anonymous(self) -> Mapping[str, QomObject]:
        """Return the other devices of the user, by their number."""
        found = [device for device in self._devices() if device.config.id is None and not device.built_in]
        return {f"device[{device.number}]": self.object_of(device) for device in found}

    def built_in(self, *models: str) -> list[tuple[str, DeviceObject]]:
        """Return the devices of these models that the board has by itself."""
        found = [device for device in self._devices() if device.built_in and device.model.name in models]
        return [(device.model.name.lower(), self.object_of(device)) for device in found]

    def on_bus(self, name: str) -> list[QomObject]:
        """Return the devices on the bus of that name, in the order in which they came."""
        return [self.object_of(device) for device in self._devices() if self.bus_name(device) == name]

    def _numbered(self, name: str) -> Callable[[], Mapping[int, QomObject]]:
        return lambda: dict(enumerate(self.on_bus(name)))

    def bus_name(self, device: PluggedDevice) -> str:
        """Return the name of the bus that a device is on."""
        kind = device.model.bus
        if kind is None:
            return ""
        if kind == "PCI":
            return "" if device.built_in else self._pci_bus_name(device)
        if kind == "IDE":
            channels = self._pc.board.ide.channels
            return next(f"ide.{n}" for n, channel in enumerate(channels) if device.made in channel.drives)
        if kind == "SCSI":
            buses = self._pc.plugger.disks.scsi_buses
            return next(name for name, bus in buses.items() if device.made in bus.units.values())
        if kind == "virtio-serial-bus":
            consoles = self._pc.plugger.plugged.serial_buses
            return next(name for name, console in consoles.items() if device.made in console.ports.values())
        return "floppy-bus.0" if kind == "floppy-bus" else "isa.0"

    def _pci_bus_name(self, device: PluggedDevice) -> str:
        """Return the name of the PCI bus that a device is on, or was on last."""
        place: Any = getattr(device.made, "bus", None)
        buses = self._pc.plugger.plugged.pci_buses
        return next((name for name, bus in buses.items() if bus is place), "pci.0")

    def _bus_of(self, device: PluggedDevice) -> BusObject | None:
        name = self._pci_bus_name(device) if device.model.bus == "PCI" else self.bus_name(device)
        found = self._board_bus(name)
        if found is not None:
            return found
        for host in self._devices():
            if name in self._own_buses(host):
                self.object_of(host)
                return self._buses[name]
        return None

    def is_realized(self, bus: str) -> bool:
        """Whether the device that brings a bus along is on a bus itself."""
        return all(device.realized for device in self._devices() if bus in self._own_buses(device))

    # ---- Making objects

    def _own_buses(self, device: PluggedDevice) -> list[str]:
        """Return the names of the buses that a device brings along."""
        plugger = self._pc.plugger
        buses: Mapping[str, Any] = {**plugger.plugged.serial_buses, **plugger.disks.scsi_buses}
        inner = getattr(device.made, "device", None)
        if hasattr(device.made, "secondary_bus"):
            behind = device.made.secondary_bus
            return [name for name, bus in plugger.plugged.pci_buses.items() if bus is behind]
        return [name for name, bus in buses.items() if bus is inner or bus is getattr(inner, "bus", None)]

    def _make(self, device: PluggedDevice) -> DeviceObject:
        if isinstance(device.made, PluggedCpu):
            return CpuObject(self._pc, device.made.index, device.config.id, hotplugged=device.hotplugged)
        getters: dict[str, Callable[[], Any]] = {}
        if device.model.bus == "PCI":
            from pyvm.machine.qom.chips import pci_address

            function: Any = device.made
            getters |= pci_address(function)
            if device.values["romfile"] is not None:
                del getters["romfile"]
        setters = self._special(device, getters)
        made = DeviceObject(
            device.model.name,
            device.values,
            identifier=device.config.id,
            getters=getters,
            setters=setters,
            hotplugged=device.hotplugged,
            hotpluggable=device.model.bus in _HOTPLUGGABLE_BUSES and not device.built_in,
        )
        if device.model.bus == "PCI":
            add_pci_regions(made, function, device.model.name)
        if hasattr(device.made, "secondary_bus"):
            for name in self._own_buses(device):
                self._buses[name] = BusObject("PCI", self._numbered(name), hotplug=lambda: made.path)
                made.add(name, self._buses[name])
        if _BACKEND in load()[device.model.name].properties:
            self._add_backend(made, device, getters, setters)
        return made

    def _special(
        self, device: PluggedDevice, getters: dict[str, Callable[[], Any]]
    ) -> dict[str, Callable[[Any], None]]:
        """Add what is fetched from the device itself; return what can be set while it works."""
        inner: Any = getattr(device.made, "device", None)
        setters: dict[str, Callable[[Any], None]] = {
            "realized": lambda value: self._pc.model.hotplug.set_realized(device, value)
        }
        if device.model.bus == "PCI" and not device.built_in:
            getters["realized"] = lambda: device.realized
        if inner is not None:
            getters.update(_settled(device))
        getters.update(disk_values(self._pc, device))
        backend = drive_property.backend_of(device)
        if backend is not None:
            getters["drive"] = drive_property.getter(backend)
            setters["drive"] = drive_property.setter(self._pc, backend)
        if device.model.name.startswith("virtio-balloon"):
            getters["guest-stats"] = lambda: _statistics(inner.guest_stats())
            getters["guest-stats-polling-interval"] = lambda: inner.polling_interval
            setters["guest-stats-polling-interval"] = lambda value: _set_interval(inner, value)
        if isinstance(device.made, MemoryModule):
            getters |= _module_values(device.made)
        if device.model.bus == "virtio-serial-bus":
            getters["nr"] = lambda: getattr(device.made, "nr")  # noqa: B009 - devices share no type that has it
        return setters

    def _add_backend(
        self,
        transport: DeviceObject,
        device: PluggedDevice,
        getters: Mapping[str, Callable[[], Any]],
        setters: Mapping[str, Callable[[Any], None]],
    ) -> None:
        """Add the virtio device behind a PCI function, and the bus between them."""
        kind = load()[device.model.name].properties[_BACKEND].kind.removeprefix("child<").removesuffix(">")
        known = load()[kind].properties
        backend = DeviceObject(
            kind,
            {name: value for name, value in device.values.items() if name in known},
            getters={name: getters[name] for name in getters if name in known and name not in _OF_ALL},
            setters=setters,
        )
        add_virtio_regions(transport, cast("PciFunction", device.made), device.model.name, kind)
        backend.bus = BusObject("virtio-pci-bus", lambda: {0: backend})
        transport.add(_TRANSPORT_BUS, backend.bus)
        transport.add(_BACKEND, backend)
        for name in self._own_buses(device):
            bus_kind = "SCSI" if name in self._pc.plugger.disks.scsi_buses else "virtio-serial-bus"
            bus = BusObject(bus_kind, self._numbered(name), hotplug=lambda: backend.path)
            self._buses[name] = bus
            backend.add(name, bus)
        if kind == "virtio-rng-device" and device.values.get("rng") is None:
            source = backend.add(
                _DEFAULT_ENTROPY, QomObject("rng-builtin", (Property("opened", "bool", lambda: True),))
            )
            for holder in (backend, transport):
                holder.fetch("rng", lambda: source.path)


def _module_values(module: MemoryModule) -> dict[str, Callable[[], Any]]:
    """Return where a memory module is."""
    return {
        "addr": lambda: module.block.gpa,
        "slot": lambda: module.slot,
        "size": lambda: module.block.size,
    }


def _settled(device: PluggedDevice) -> dict[str, Callable[[], Any]]:
    """Return what a virtio device on PCI chose where its properties left it open."""
    function: Any = device.made
    values, inner = device.values, function.device
    getters: dict[str, Callable[[], Any]] = {}
    if device.model.name.startswith("virtio-serial-pci"):
        getters["class"] = lambda: int.from_bytes(function.config[_CLASS : _CLASS + 2], "little")
    if "vectors" in values:
        getters["vectors"] = lambda: 0 if function.msix is None else function.msix.vectors
    if values.get("disable-legacy") == "auto":
        getters["disable-legacy"] = lambda: "off"
    if "num-queues" in values:
        getters["num-queues"] = lambda: len(inner.queues)
    if "num_queues" in values:
        getters["num_queues"] = lambda: len(inner.queues) - _SCSI_CONTROL_QUEUES
    return getters


def _statistics(found: Mapping[str, Any]) -> dict[str, Any]:
    stats = {name: _UNKNOWN_STATISTIC if value < 0 else value for name, value in found["stats"].items()}
    return {"stats": stats, "last-update": found["last-update"]}


def _set_interval(balloon: Any, value: int) -> None:
    check_kind("int", "guest-stats-polling-interval", value)
    try:
        balloon.set_polling_interval(value)
    except ValueError as error:
        raise QmpError(str(error)) from None
