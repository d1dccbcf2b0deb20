"""ACPI memory hot-plug registers: what is in each memory slot, came or is to go, and what the guest says about it.

QEMU's interface "ACPI memory hotplug" (docs/specs/acpi_mem_hotplug), 24 ports at 0x0a00 of an i440FX board.  The
methods of the DSDT (:mod:`pyvm.firmware.dsdt_memory_slots`) read them when general-purpose event 3 was raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pyvm.records import record
from pyvm.state import State, StateError, flag, sequence, uint
from pyvm.state import record as nested

# Offsets from the base port; dwords but for the flags.
ADDRESS_LOW: Final = 0x00  # read-only
ADDRESS_HIGH: Final = 0x04  # read-only
SIZE_LOW: Final = 0x08  # read-only
SIZE_HIGH: Final = 0x0C  # read-only
PROXIMITY: Final = 0x10  # read-only: the NUMA node
SELECTOR: Final = 0x00  # write-only
OST_EVENT: Final = 0x04  # write-only
OST_STATUS: Final = 0x08  # write-only
FLAGS: Final = 0x14  # byte
BLOCK_SIZE: Final = 0x18

ENABLED: Final = 1 << 0
INSERTED: Final = 1 << 1  # written: the guest has seen it
REMOVING: Final = 1 << 2  # written: the guest has seen it
EJECT: Final = 1 << 3  # write-only

GPE: Final = 3
"""The general-purpose event that says that there is something to read."""
MAX_SLOTS: Final = 256


@record(frozen=True)
class Module:
    """A memory module in a slot; in bytes."""

    gpa: int
    size: int
    node: int


class MemorySlots(Protocol):
    """The slots of the machine."""

    def module(self, slot: int) -> Module | None:
        """Return what is in a slot."""

    def eject(self, slot: int) -> None:
        """Take the module out of a slot, if there is one."""

    def reported(self, slot: int) -> None:
        """The guest has said what became of a request."""


class MemorySlotState(State):
    """One slot."""

    inserted: bool = flag()
    removing: bool = flag()
    ost_event: int = uint(32)
    ost_status: int = uint(32)


class AcpiMemoryHotplugState(State):
    """All registers."""

    slots: list[MemorySlotState] = sequence(nested(MemorySlotState), MAX_SLOTS)
    selector: int = uint(32)


class AcpiMemoryHotplug:
    """The registers.  `raise_event` raises their general-purpose event."""

    def __init__(self, count: int, modules: MemorySlots, raise_event: Callable[[], None]) -> None:
        self._modules = modules
        self._raise = raise_event
        self.slots = [MemorySlotState() for _ in range(count)]
        self._selector = 0

    # -- the machine's side -----------------------------------------------------------------------------------------

    def plugged(self, slot: int) -> None:
        """Tell the guest of a new module."""
        self.slots[slot].inserted = True
        self._raise()

    def request_eject(self, slot: int) -> None:
        """Ask the guest to let a module go."""
        self.slots[slot].removing = True
        self._raise()

    # -- registers --------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the block; bytes or dwords."""
        del size
        if self._selector >= len(self.slots):
            return 0
        slot, module = self.slots[self._selector], self._modules.module(self._selector)
        if offset == FLAGS:
            value = ENABLED if module is not None else 0
            return value | (INSERTED if slot.inserted else 0) | (REMOVING if slot.removing else 0)
        if module is None:
            return 0
        words = {
            ADDRESS_LOW: module.gpa & 0xFFFF_FFFF,
            ADDRESS_HIGH: module.gpa >> 32,
            SIZE_LOW: module.size & 0xFFFF_FFFF,
            SIZE_HIGH: module.size >> 32,
            PROXIMITY: module.node,
        }
        return words.get(offset, 0xFFFF_FFFF)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the block; bytes or dwords."""
        del size
        if offset == SELECTOR:
            self._selector = value
            return
        if self._selector >= len(self.slots):
            return
        slot = self.slots[self._selector]
        if offset == OST_EVENT:
            slot.ost_event = value
        elif offset == OST_STATUS:
            slot.ost_status = value
            self._modules.reported(self._selector)
        elif offset == FLAGS:
            self._write_flags(slot, value)

    def _write_flags(self, slot: MemorySlotState, value: int) -> None:
        if value & INSERTED:
            slot.inserted = False
        elif value & REMOVING:
            slot.removing = False
        elif value & EJECT and self._modules.module(self._selector) is not None:
            slot.inserted = slot.removing = False
            self._modules.eject(self._selector)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Choose the first slot; what is pending stays, as the machine keeps it through a reset."""
        self._selector = 0

    def save(self) -> AcpiMemoryHotplugState:
        """Return all registers."""
        return AcpiMemoryHotplugState([slot.copy() for slot in self.slots], self._selector)

    def load(self, state: AcpiMemoryHotplugState) -> None:
        """Take over all registers."""
        state.check()
        if len(state.slots) != len(self.slots):
            raise StateError(f"AcpiMemoryHotplugState.slots: {len(state.slots)} slots, not {len(self.slots)}")
        self.slots = [slot.copy() for slot in state.slots]
        self._selector = state.selector
