"""PCI devices that come and go while the guest runs: the board's slots, and the ACPI registers that tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyvm.devices.acpi.pci_hotplug import BLOCK_SIZE, GPE, AcpiPciHotplug
from pyvm.devices.pci.constants import SLOTS
from pyvm.firmware.machine_info import PCI_HOTPLUG_BASE, PM_SLOT, HotplugBus

if TYPE_CHECKING:
    from pyvm.devices.pci.bus import PciBus
    from pyvm.machine.board import Board
    from pyvm.machine.plug.plugging import Plugged, PluggedDevice

_ALL = (1 << SLOTS) - 1


class PciHotplug:
    """The slots of the buses that the machine was made with.

    Buses behind bridges that came later have no number: the tables that the guest reads know nothing of these.  It is
    told to look for what came there, and cannot be asked to let it go: that goes while no driver has it, or with its
    bridge.
    """

    def __init__(self, board: Board, plugged: Plugged, take_out: Callable[[PluggedDevice], None]) -> None:
        """`take_out` unplugs a device that the guest has let go."""
        self._plugged = plugged
        self._take_out = take_out
        self._buses: list[PciBus] = []
        self.described = self._describe(board.pci)
        """The buses, as firmware tells the guest of them."""
        self.registers = AcpiPciHotplug(self, lambda: board.acpi.raise_gpe(GPE))
        board.components["pci_hotplug"] = self.registers
        board.ports.add(
            PCI_HOTPLUG_BASE,
            BLOCK_SIZE,
            self.registers.read,
            self.registers.write,
            "acpi-pci-hotplug",
            min_access=4,
            max_access=4,
        )

    def _describe(self, bus: PciBus) -> HotplugBus:
        """Number a bus, and those behind it, in the order of their slots."""
        number = len(self._buses)
        self._buses.append(bus)
        bridges, fixed = [], {0, PM_SLOT} if not number else set()
        for function in bus.functions():
            if hasattr(function, "secondary_bus"):
                bridges.append((function.slot, self._describe(function.secondary_bus)))
            elif not self._can_go(function):
                fixed.add(function.slot)
        return HotplugBus(number, tuple(sorted(fixed)), tuple(bridges))

    def _device(self, function: object) -> PluggedDevice | None:
        return next((device for device in self._plugged.devices if device.made is function), None)

    def _can_go(self, function: object) -> bool:
        device = self._device(function)
        if device is None or device.built_in:
            return False
        return device.hotplugged or not hasattr(function, "secondary_bus")

    def number_of(self, bus: object) -> int | None:
        """Return by which number the guest knows a bus; None where it does not."""
        return next((number for number, known in enumerate(self._buses) if known is bus), None)

    # ---- What the machine asks for

    def announce(self, device: PluggedDevice) -> None:
        """Tell the guest of a device that was plugged in."""
        function: Any = device.made
        number = self.number_of(function.bus)
        if number is not None:
            self.registers.plugged(number, function.slot)
        else:
            self.registers.request_rescan()

    def request_eject(self, device: PluggedDevice) -> None:
        """Ask the guest to let a device go."""
        function: Any = device.made
        number = self.number_of(function.bus)
        assert number is not None, "the bus is one that devices can leave"
        self.registers.request_eject(number, function.slot)

    # ---- What the registers ask for

    def _in_slot(self, bus: int, slot: int) -> Iterator[PluggedDevice]:
        if bus < len(self._buses):
            for function in self._buses[bus].functions():
                device = self._device(function)
                if function.slot == slot and device is not None:
                    yield device

    def eject(self, bus: int, slot: int) -> None:
        """The guest lets go what is in a slot."""
        for device in list(self._in_slot(bus, slot)):
            if self._can_go(device.made):
                self._take_out(device)

    def removable(self, bus: int) -> int:
        """Return the slots whose device can go, and those that are empty."""
        if bus >= len(self._buses):
            return 0
        stay = {function.slot for function in self._buses[bus].functions() if not self._can_go(function)}
        return _ALL & ~sum(1 << slot for slot in stay)

    def acpi_index(self, bus: int, slot: int) -> int:
        """Return the index that the user gave the device in a slot, 0 for none."""
        return next((int(device.values.get("acpi-index", 0)) for device in self._in_slot(bus, slot)), 0)
