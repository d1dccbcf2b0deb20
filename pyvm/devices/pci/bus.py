"""A PCI bus: configuration mechanism #1, the mapping of BARs, and the way of interrupts out of the bus.

PCI Local Bus Specification 3.0, section 3.2.2.3 (configuration cycles).  The bus owns the slots of the machine's one
bus 0; the host bridge's ports 0xcf8 and 0xcfc lead here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.function import PciFunction, Window
from pyvm.memory import IoSpace, OverlapError
from pyvm.state import State, StateError, uint


class PciBusState(State):
    """The configuration address register."""

    address: int = uint(32)


class ByteRegister(Protocol):
    """A register of one byte that shares its port with the configuration address register."""

    def read(self, offset: int, size: int) -> int:
        """Read the register."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register."""


class PciBus:
    """Bus 0.

    `route_intx(slot, pin, level)` hears each change of a function's INTx pin, pin 0 being INTA; functions share pins,
    so the router counts.  `msi(address, data)` delivers messages.
    """

    def __init__(
        self,
        ports: IoSpace,
        mmio: IoSpace,
        route_intx: Callable[[int, int, bool], None],
        msi: Callable[[int, int], None],
    ) -> None:
        self._ports = ports
        self._mmio = mmio
        self.route_intx = route_intx
        self._msi = msi
        self._slots: dict[tuple[int, int], PciFunction] = {}
        self._address = 0
        self.reset_control: ByteRegister | None = None
        """The byte at port 0xcf9, which lies inside the address register and belongs to the ISA bridge."""

    # -- functions --------------------------------------------------------------------------------------------------

    def attach(self, function: PciFunction, slot: int | None, fn: int = 0) -> None:
        """Plug `function` in; without a slot, into the first that is free.

        Raises ValueError where that place is taken, does not exist, or no slot is free.
        """
        if slot is None:
            slot = self._free_slot(function)
        if not 0 <= slot < c.SLOTS or not 0 <= fn < c.FUNCTIONS:
            raise ValueError(f"PCI: slot {slot} function {fn} does not exist, wanted for {function.name}")
        holder = self._slots.get((slot, fn))
        if holder is not None:
            name = f"{holder.name},id={holder.identifier}" if holder.identifier else holder.name
            message = f"PCI: slot {slot} function {fn} not available for {function.name}, in use by {name}"
            raise ValueError(message)
        self._slots[slot, fn] = function
        function.bus, function.slot, function.fn = self, slot, fn
        self._mark_multifunction(slot)
        self.update_mappings(function)
        if function.intx_asserted:
            self.intx_changed(function, True)

    def _free_slot(self, function: PciFunction) -> int:
        used = {slot for slot, _ in self._slots}
        for slot in range(c.SLOTS):
            if slot not in used:
                return slot
        raise ValueError(f"PCI: no slot/function available for {function.name}, all in use or reserved")

    def _mark_multifunction(self, slot: int) -> None:
        first = self._slots.get((slot, 0))
        if first is not None and any(other == slot and fn for other, fn in self._slots):
            first.config[c.HEADER_TYPE] |= c.HEADER_MULTIFUNCTION

    def detach(self, function: PciFunction) -> None:
        """Unplug `function`: its BARs vanish and its interrupt ends."""
        if self._slots.get((function.slot, function.fn)) is not function:
            raise ValueError(f"PCI: {function.name} is not plugged in")
        del self._slots[function.slot, function.fn]
        if function.intx_asserted:
            self.intx_changed(function, False)
        for window in function.windows:
            self._unmap(window)
        function.bus = None
        self._map_waiting()

    def functions(self) -> list[PciFunction]:
        """Return all functions by slot and function number."""
        return [self._slots[place] for place in sorted(self._slots)]

    def function_at(self, slot: int, fn: int = 0) -> PciFunction | None:
        """Return the function at that place."""
        return self._slots.get((slot, fn))

    def function_on(self, number: int, slot: int, fn: int = 0) -> PciFunction | None:
        """Return the function at a place of the bus of that number: 0 is this one, others are behind bridges."""
        if not number:
            return self._slots.get((slot, fn))
        for bridge in self._slots.values():
            if hasattr(bridge, "secondary_bus"):
                _, secondary, last = bridge.numbers  # type: ignore[attr-defined]
                if 0 < secondary <= number <= last:
                    behind: PciBus = bridge.secondary_bus
                    found = behind.function_on(0 if number == secondary else number, slot, fn)
                    if found is not None:
                        return found
        return None

    # -- what functions need ----------------------------------------------------------------------------------------

    def place(self, window: Window) -> int | None:
        """Return where a window is; a bus behind a bridge may be shut off from there."""
        return window.locate()

    def update_mappings(self, function: PciFunction) -> None:
        """Map the function's windows where its configuration space says now.

        A window over registers that are mapped already, or over addresses that no register can have, is left out; it
        appears as soon as its place is free.
        """
        changed = False
        for window in function.windows:
            address = self.place(window)
            if (None if window.region is None else window.region.base) != address:
                self._unmap(window)
                changed = True
        if changed:
            self._map_waiting()

    def _map_waiting(self) -> None:
        for function in self._slots.values():
            for window in function.windows:
                address = self.place(window) if window.region is None else None
                if address is not None:
                    self._map(window, address)

    def _map(self, window: Window, address: int) -> None:
        space = self._ports if window.io else self._mmio
        try:
            window.region = space.add(
                address,
                window.size,
                window.read,
                window.write,
                window.name,
                min_access=window.min_access,
                max_access=window.max_access,
                ram=window.ram,
            )
        except OverlapError:
            window.region = None

    def _unmap(self, window: Window) -> None:
        if window.region is not None:
            (self._ports if window.io else self._mmio).remove(window.region)
            window.region = None

    def intx_changed(self, function: PciFunction, level: bool) -> None:
        """Pass a change of a function's pin on to the router."""
        pin = function.config[c.INTERRUPT_PIN]
        if pin:
            self.route_intx(function.slot, pin - 1, level)

    def send_msi(self, address: int, data: int) -> None:
        """Deliver a message."""
        self._msi(address, data)

    # -- configuration mechanism #1 ---------------------------------------------------------------------------------

    def address_read(self, offset: int, size: int) -> int:
        """Read the four ports at 0xcf8: the address register as a dword, the reset control register as a byte."""
        if offset == 0 and size == 4:
            return self._address
        if offset == 1 and size == 1 and self.reset_control is not None:
            return self.reset_control.read(0, 1)
        return (1 << (8 * size)) - 1

    def address_write(self, offset: int, size: int, value: int) -> None:
        """Write the four ports at 0xcf8; the address register takes dwords only."""
        if offset == 0 and size == 4:
            self._address = value & c.CONFIG_ADDRESS_WRITABLE
        elif offset == 1 and size == 1 and self.reset_control is not None:
            self.reset_control.write(0, 1, value)

    def _addressed(self) -> PciFunction | None:
        address = self._address
        if not address & c.CONFIG_ENABLE:
            return None
        return self.function_on((address >> 16) & 0xFF, (address >> 11) & 0x1F, (address >> 8) & 7)

    def data_read(self, offset: int, size: int) -> int:
        """Read the four ports at 0xcfc: the addressed function's configuration space, ones where nobody answers."""
        function = self._addressed()
        if function is None:
            return (1 << (8 * size)) - 1
        return function.config_read((self._address & 0xFC) + offset, size)

    def data_write(self, offset: int, size: int, value: int) -> None:
        """Write the four ports at 0xcfc."""
        function = self._addressed()
        if function is not None:
            function.config_write((self._address & 0xFC) + offset, size, value)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the bus and every function on it."""
        self._address = 0
        for function in self.functions():
            function.reset()

    def save(self) -> PciBusState:
        """Return the address register; functions are saved by their owners."""
        return PciBusState(self._address)

    def load(self, state: PciBusState) -> None:
        """Take over the address register."""
        state.check()
        if state.address & ~c.CONFIG_ADDRESS_WRITABLE:
            raise StateError("PciBusState.address: reserved bits are set")
        self._address = state.address
