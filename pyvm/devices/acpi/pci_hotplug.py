"""ACPI PCI hot-plug registers: which slots got a device, which are to lose theirs, and the eject register.

QEMU's interface "ACPI PCI hotplug" (docs/specs/acpi_pci_hotplug), 24 ports at 0xae00 of an i440FX board.  The methods
of the DSDT (:mod:`pyvm.firmware.dsdt_pci_slots`) read them when general-purpose event 1 was raised.  A bus is chosen by
its number (BSEL), a slot is a bit.  Plugging and unplugging is the machine's; this block only knows slots.

One register more than QEMU has says that something came or went behind a bridge that was plugged in itself.  The tables
have no numbers for such buses, so all that the system can do is to look at everything again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pyvm.records import record
from pyvm.state import State, StateError, flag, sequence, uint
from pyvm.state import record as nested

# Dword registers, offsets from the base port.
UP: Final = 0x00  # read-only, cleared by reading: slots with a new device
DOWN: Final = 0x04  # read-only: slots whose device is to go
EJECT: Final = 0x08  # write-only: slots whose device the guest lets go
REMOVABLE: Final = 0x0C  # read-only: slots whose device can go
BUS_SELECT: Final = 0x10
ACPI_INDEX: Final = 0x14  # written: a slot; read: the index of the device there, then 0
RESCAN: Final = 0x18  # read-only, cleared by reading: 1 where there is something to find on buses without a number
BLOCK_SIZE: Final = 0x1C

GPE: Final = 1
"""The general-purpose event that says that there is something to read."""
MAX_BUSES: Final = 256
SLOTS: Final = 32
_ALL_ONES: Final = 0xFFFF_FFFF


class PciSlots(Protocol):
    """The buses as the registers see them; `bus` is a BSEL and may be anything the guest wrote."""

    def eject(self, bus: int, slot: int) -> None:
        """Take the device out of a slot, if there is one that can go."""

    def removable(self, bus: int) -> int:
        """Return the slots whose device can go, and those that are empty."""

    def acpi_index(self, bus: int, slot: int) -> int:
        """Return the index that the user gave the device in a slot, 0 for none."""


class BusEventsState(State):
    """What is pending on one bus."""

    bus: int = uint(8)
    up: int = uint(32)
    down: int = uint(32)


class AcpiPciHotplugState(State):
    """All registers; buses without anything pending are left out."""

    buses: list[BusEventsState] = sequence(nested(BusEventsState), MAX_BUSES)
    selected: int = uint(32)
    index: int = uint(32)
    rescan: bool = flag()


@record
class _Pending:
    up: int = 0
    down: int = 0


class AcpiPciHotplug:
    """The registers.  `raise_event` raises their general-purpose event."""

    def __init__(self, slots: PciSlots, raise_event: Callable[[], None]) -> None:
        self._slots = slots
        self._raise = raise_event
        self._pending: dict[int, _Pending] = {}
        self._selected = 0
        self._index = 0
        self._rescan = False

    def _bus(self, bus: int) -> _Pending:
        return self._pending.setdefault(bus, _Pending())

    # -- the machine's side -----------------------------------------------------------------------------------------

    def plugged(self, bus: int, slot: int) -> None:
        """Tell the guest of a new device."""
        self._bus(bus).up |= 1 << slot
        self._raise()

    def request_eject(self, bus: int, slot: int) -> None:
        """Ask the guest to let the device in a slot go."""
        self._bus(bus).down |= 1 << slot
        self._raise()

    def request_rescan(self) -> None:
        """Ask the guest to look at all buses: something came or went on one that it has no number for."""
        self._rescan = True
        self._raise()

    def finish(self) -> None:
        """The machine is being reset: what was asked for goes now."""
        for bus, pending in list(self._pending.items()):
            self._eject(bus, pending.down)

    # -- registers --------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the block; dwords."""
        del size
        if offset == BUS_SELECT:
            return self._selected
        if offset == ACPI_INDEX:
            index, self._index = self._index, 0
            return index
        if offset == RESCAN:
            rescan, self._rescan = self._rescan, False
            return int(rescan)
        bus = self._selected
        if bus >= MAX_BUSES:
            return 0
        if offset == REMOVABLE:
            return self._slots.removable(bus)
        pending = self._bus(bus)
        if offset == UP:
            slots, pending.up = pending.up, 0
            return slots
        return pending.down if offset == DOWN else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the block; dwords."""
        del size
        if offset == BUS_SELECT:
            self._selected = value if value < MAX_BUSES else _ALL_ONES
        elif self._selected >= MAX_BUSES:
            return
        elif offset == EJECT:
            self._eject(self._selected, value)
        elif offset == ACPI_INDEX and value:
            self._index = self._slots.acpi_index(self._selected, _lowest(value))

    def _eject(self, bus: int, slots: int) -> None:
        pending = self._bus(bus)
        while slots:
            slot = _lowest(slots)
            slots &= slots - 1
            pending.up &= ~(1 << slot)
            pending.down &= ~(1 << slot)
            self._slots.eject(bus, slot)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget what is pending; the machine has finished it before."""
        self._pending = {}
        self._selected = self._index = 0
        self._rescan = False

    def save(self) -> AcpiPciHotplugState:
        """Return all registers."""
        pending = [(bus, item) for bus, item in sorted(self._pending.items()) if item.up or item.down]
        buses = [BusEventsState(bus, item.up, item.down) for bus, item in pending]
        return AcpiPciHotplugState(buses, self._selected, self._index, self._rescan)

    def load(self, state: AcpiPciHotplugState) -> None:
        """Take over all registers."""
        state.check()
        if state.selected >= MAX_BUSES and state.selected != _ALL_ONES:
            raise StateError(f"AcpiPciHotplugState.selected: there is no bus {state.selected}")
        self._selected, self._index, self._rescan = state.selected, state.index, state.rescan
        self._pending = {item.bus: _Pending(item.up, item.down) for item in state.buses}


def _lowest(slots: int) -> int:
    """Return the number of the lowest bit that is set."""
    return (slots & -slots).bit_length() - 1
