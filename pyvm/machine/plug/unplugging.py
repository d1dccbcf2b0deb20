"""Taking devices out of the board: everything that :mod:`pyvm.machine.plug.plugging` did, undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice


def unplug(pc: Pc, device: PluggedDevice) -> None:
    """Take a device out that is on the PCI bus, on a SCSI bus, in a virtio-serial device or in a socket.

    Units of a SCSI host, and ports of a virtio-serial device, go with it.
    """
    plugger = pc.plugger
    kind = device.model.bus
    if kind == "PCI":
        _unplug_function(pc, device)
    elif kind == "SCSI":
        _unplug_unit(pc, device)
    elif kind is None:
        pc.model.sockets.unplug(device)
    else:
        _unplug_port(pc, device)
    plugged = plugger.plugged
    plugged.devices.remove(device)
    if device.config.id is not None:
        plugged.identifiers.pop(device.config.id, None)
    if device.entropy is not None:
        device.entropy.release()


def _unplug_function(pc: Pc, device: PluggedDevice) -> None:
    plugger = pc.plugger
    function: Any = device.made
    if hasattr(function, "secondary_bus"):
        _unplug_bridge(pc, device)
        return
    if not hasattr(function, "device"):
        _unplug_plain(pc, device)
        return
    inner = function.device
    for other in list(plugger.plugged.devices):
        units = inner.bus.units if hasattr(inner, "bus") else getattr(inner, "ports", {})
        if other.made in units.values():
            unplug(pc, other)
    if device.realized:
        function.bus.detach(function)
    for name in [name for name, part in pc.board.components.items() if part in (function, inner)]:
        del pc.board.components[name]
    for known in (plugger.plugged.virtio, plugger.plugged.cards):
        if inner in known:
            known.remove(inner)
    inner.reset()
    plugger.forget(inner)
    if device.entropy is not None:
        device.entropy.waiting.remove(inner.source_ready)
    if "drive" in device.values:
        _give_back(pc, inner.backend)
    if inner in plugger.plugged.vsock_hosts:
        # The guest may have let go of the device from within its own instructions; sockets belong to the main loop.
        pc.mainloop.call_soon(plugger.plugged.vsock_hosts.pop(inner).close)


def _unplug_plain(pc: Pc, device: PluggedDevice) -> None:
    """Take out a function that is all there is of its device."""
    function: Any = device.made
    if device.realized:
        function.bus.detach(function)
    for name in [name for name, part in pc.board.components.items() if part is function]:
        del pc.board.components[name]
    function.reset()


def _unplug_bridge(pc: Pc, device: PluggedDevice) -> None:
    """Take out a bridge, and before it all that is behind it."""
    plugged, bridge = pc.plugger.plugged, device.made
    behind = getattr(bridge, "secondary_bus", None)
    for other in list(plugged.devices):
        if behind is not None and getattr(other.made, "bus", None) is behind:
            unplug(pc, other)
    plugged.pci_buses = {name: bus for name, bus in plugged.pci_buses.items() if bus is not behind}
    function: Any = bridge
    if device.realized:
        function.bus.detach(function)
    for name in [name for name, part in pc.board.components.items() if part is bridge]:
        del pc.board.components[name]


def _unplug_unit(pc: Pc, device: PluggedDevice) -> None:
    unit: Any = device.made
    for bus in pc.plugger.disks.scsi_buses.values():
        if unit in bus.units.values():
            bus.unplug(unit)
    for name in [name for name, part in pc.board.components.items() if part is unit]:
        del pc.board.components[name]
    _give_back(pc, unit.backend, detached=True)


def _unplug_port(pc: Pc, device: PluggedDevice) -> None:
    port: Any = device.made
    for console in pc.plugger.plugged.serial_buses.values():
        if port in console.ports.values():
            console.remove_port(port)


def _give_back(pc: Pc, backend: BlockBackend, *, detached: bool = False) -> None:
    pc.plugger.disks.not_bootable(backend)
    pc.storage.give_back(backend, detached=detached)
