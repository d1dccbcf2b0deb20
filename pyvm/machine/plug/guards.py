"""Devices that watch over the guest, or over what becomes of it: watchdogs, panic devices, the generation identifier.

Their code is loaded only by machines that have one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvm.devices.i6300esb import I6300Esb
from pyvm.devices.ib700 import PORTS, START_PORT, STOP_PORT, Ib700
from pyvm.devices.properties import DeviceModel
from pyvm.devices.pvpanic import PORT_FILE, PvPanic, PvPanicPci
from pyvm.devices.vmgenid import ADDRESS_FILE, ADDRESS_SIZE, GPE, VmGenId
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import DeviceConfig
    from pyvm.devices.pci.function import PciFunction
    from pyvm.machine.board import Board, Component
    from pyvm.machine.plug.plugging import PlugEvents, Plugged

_MODELS = {
    "i6300esb": DeviceModel("i6300esb", "PCI", "Watchdog", I6300Esb.PROPERTIES, "Intel 6300ESB"),
    "ib700": DeviceModel("ib700", "ISA", "Watchdog", Ib700.PROPERTIES, "iBASE 700"),
    "pvpanic": DeviceModel("pvpanic", "ISA", "Misc", PvPanic.PROPERTIES),
    "pvpanic-pci": DeviceModel("pvpanic-pci", "PCI", "Misc", PvPanicPci.PROPERTIES),
    "vmgenid": DeviceModel("vmgenid", None, "Misc", VmGenId.PROPERTIES),
}


def device_model(name: str) -> DeviceModel:
    """Return the model of that name."""
    return _MODELS[name]


class Guards:
    """Plugs such devices in.  Errors are ConfigErrors and ValueErrors."""

    def __init__(
        self, board: Board, events: PlugEvents, plugged: Plugged, install: Callable[[PciFunction], object]
    ) -> None:
        """`install` puts a function on the PCI bus that it is to go on, and among the board's components."""
        self._board = board
        self._events = events
        self._plugged = plugged
        self._install = install

    def plug(self, model: str, device: DeviceConfig, values: dict[str, Any]) -> object:
        """Plug in a device of a `model` of this module."""
        if model == "i6300esb":
            return self._plug_pci(I6300Esb(self._board.clock, self._events.watchdog_expired))
        if model == "ib700":
            return self._plug_ib700(device)
        if model == "vmgenid":
            return self._plug_generation_id(device, values["guid"])
        heard = (values["events"], self._events.guest_panicked, self._events.crash_kernel_started)
        if model == "pvpanic-pci":
            return self._plug_pci(PvPanicPci(*heard))
        return self._plug_panic_port(PvPanic(*heard), device, values["ioport"])

    def _keep(self, device: DeviceConfig, place: str, component: Component) -> None:
        name = place if device.id is None else self._board.name_for(device.id)
        self._board.components[name] = component

    def _plug_pci(self, function: PciFunction) -> PciFunction:
        self._install(function)
        return function

    def _plug_ib700(self, device: DeviceConfig) -> Ib700:
        watchdog = Ib700(self._board.clock, self._events.watchdog_expired)
        self._board.ports.add(STOP_PORT, PORTS, watchdog.read, watchdog.stop, "ib700 stop", max_access=1)
        self._board.ports.add(START_PORT, PORTS, watchdog.read, watchdog.start, "ib700 start", max_access=1)
        self._keep(device, "ib700", watchdog)
        return watchdog

    def _plug_panic_port(self, panic: PvPanic, device: DeviceConfig, port: int) -> PvPanic:
        self._board.fw_cfg.add_file(PORT_FILE, struct.pack("<H", port))
        self._board.ports.add(port, 1, panic.read, panic.write, "pvpanic", max_access=1)
        self._plugged.panic_port = port
        self._keep(device, "pvpanic", panic)
        return panic

    def _plug_generation_id(self, device: DeviceConfig, guid: str) -> VmGenId:
        if self._plugged.generation_id is not None:
            raise ConfigError("at most one vmgenid device is permitted")
        board = self._board
        try:
            made = VmGenId(board.memory, guid, lambda: board.acpi.raise_gpe(GPE))
        except ValueError:
            raise ConfigError(f"Property 'vmgenid.guid' doesn't take value '{guid}'") from None
        board.fw_cfg.add_file(
            ADDRESS_FILE,
            bytes(ADDRESS_SIZE),
            writable=True,
            on_write=lambda offset, length: made.address_written(board.fw_cfg.file_data(ADDRESS_FILE)),
        )
        self._plugged.generation_id = made
        self._keep(device, "vmgenid", made)
        return made
