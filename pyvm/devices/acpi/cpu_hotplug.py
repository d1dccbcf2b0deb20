"""ACPI CPU hot-plug registers: which processors are there, came or are to go, and what the guest says about it.

QEMU's interface "ACPI CPU hotplug" (docs/specs/acpi_cpu_hotplug), 32 ports at 0xaf00 of an i440FX board.  The block
starts as the older interface, a read-only bitmap of the processors by APIC ID; the first write to its selector switches
to the newer one, which the DSDT uses (:mod:`pyvm.firmware.dsdt_processors`).  Processors are counted by their index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pyvm.state import State, StateError, flag, sequence, uint
from pyvm.state import record as nested

# Offsets from the base port.
COMMAND_DATA_2: Final = 0x0  # dword, read-only: high half of the architecture's ID
SELECTOR: Final = 0x0  # dword, write-only
FLAGS: Final = 0x4  # byte
COMMAND: Final = 0x5  # byte, write-only
COMMAND_DATA: Final = 0x8  # dword
BLOCK_SIZE: Final = 0x0C
LEGACY_SIZE: Final = 0x20

ENABLED: Final = 1 << 0
INSERTED: Final = 1 << 1  # written: the guest has seen it
REMOVING: Final = 1 << 2  # written: the guest has seen it
EJECT: Final = 1 << 3  # write-only
FIRMWARE_EJECT: Final = 1 << 4  # ejecting is left to firmware: the guest only notes it

NEXT_WITH_EVENT: Final = 0
OST_EVENT: Final = 1
OST_STATUS: Final = 2
ARCHITECTURE_ID: Final = 3

GPE: Final = 2
"""The general-purpose event that says that there is something to read."""
MAX_CPUS: Final = 255


class CpuSlotState(State):
    """One processor's place."""

    inserted: bool = flag()
    removing: bool = flag()
    firmware_eject: bool = flag()
    ost_event: int = uint(32)
    ost_status: int = uint(32)


class AcpiCpuHotplugState(State):
    """All registers."""

    slots: list[CpuSlotState] = sequence(nested(CpuSlotState), MAX_CPUS)
    selector: int = uint(32)
    command: int = uint(8)
    legacy: bool = flag(True)


class Processors(Protocol):
    """The processors of the machine."""

    def is_present(self, index: int) -> bool:
        """Whether there is a processor in a place."""

    def eject(self, index: int) -> None:
        """Take a processor out; the first one stays."""

    def reported(self, index: int) -> None:
        """The guest has said what became of a request."""


class AcpiCpuHotplug:
    """The registers.  `apic_ids` are those of all places; `raise_event` raises their general-purpose event."""

    def __init__(self, apic_ids: Sequence[int], processors: Processors, raise_event: Callable[[], None]) -> None:
        self._apic_ids = tuple(apic_ids)
        self._processors = processors
        self._raise = raise_event
        self.slots = [CpuSlotState() for _ in apic_ids]
        self._selector = 0
        self._command = NEXT_WITH_EVENT
        self._legacy = True

    # -- the machine's side -----------------------------------------------------------------------------------------

    @property
    def legacy(self) -> bool:
        """Whether the guest has not shown yet that it knows the newer interface."""
        return self._legacy

    def plugged(self, index: int) -> None:
        """Tell the guest of a new processor, which the older interface shows by itself."""
        self.slots[index].inserted = not self._legacy
        self._raise()

    def request_eject(self, index: int) -> None:
        """Ask the guest to let a processor go."""
        self.slots[index].removing = True
        self._raise()

    # -- registers --------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read the block; bytes or dwords."""
        if self._legacy:
            return sum(self._present_byte(offset + place) << 8 * place for place in range(size))
        if self._selector >= len(self.slots):
            return 0
        if offset == FLAGS:
            return self._flags()
        if offset == COMMAND_DATA and self._command == NEXT_WITH_EVENT:
            return self._selector
        if offset == COMMAND_DATA and self._command == ARCHITECTURE_ID:
            return self._apic_ids[self._selector]
        return 0

    def _present_byte(self, place: int) -> int:
        ids = [apic_id for index, apic_id in enumerate(self._apic_ids) if self._processors.is_present(index)]
        return sum(1 << apic_id % 8 for apic_id in ids if apic_id // 8 == place)

    def _flags(self) -> int:
        slot = self.slots[self._selector]
        value = ENABLED if self._processors.is_present(self._selector) else 0
        value |= INSERTED if slot.inserted else 0
        value |= REMOVING if slot.removing else 0
        return value | (FIRMWARE_EJECT if slot.firmware_eject else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the block; bytes or dwords."""
        del size
        if self._legacy:
            if offset == SELECTOR:
                self._legacy = False
            else:
                return
        if offset == SELECTOR:
            self._selector = value
        elif self._selector >= len(self.slots):
            return
        elif offset == FLAGS:
            self._write_flags(value)
        elif offset == COMMAND:
            self._write_command(value & 0xFF)
        elif offset == COMMAND_DATA:
            self._write_data(value)

    def _write_flags(self, value: int) -> None:
        index = self._selector
        slot = self.slots[index]
        if value & INSERTED:
            slot.inserted = False
        elif value & REMOVING:
            slot.removing = False
        elif value & EJECT:
            if index:
                self.slots[index] = CpuSlotState(ost_event=slot.ost_event, ost_status=slot.ost_status)
                self._processors.eject(index)
        elif value & FIRMWARE_EJECT:
            slot.firmware_eject = not slot.firmware_eject

    def _write_command(self, command: int) -> None:
        if command > ARCHITECTURE_ID:
            return
        self._command = command
        if command == NEXT_WITH_EVENT:
            count = len(self.slots)
            for step in range(count):
                index = (self._selector + step) % count
                if self.slots[index].inserted or self.slots[index].removing:
                    self._selector = index
                    return

    def _write_data(self, value: int) -> None:
        slot = self.slots[self._selector]
        if self._command == OST_EVENT:
            slot.ost_event = value
        elif self._command == OST_STATUS:
            slot.ost_status = value
            self._processors.reported(self._selector)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Choose the first processor; what is pending stays through a reset, and so does the newer interface."""
        self._selector = 0
        self._command = NEXT_WITH_EVENT

    def save(self) -> AcpiCpuHotplugState:
        """Return all registers."""
        slots = [slot.copy() for slot in self.slots]
        return AcpiCpuHotplugState(slots, self._selector, self._command, self._legacy)

    def load(self, state: AcpiCpuHotplugState) -> None:
        """Take over all registers."""
        state.check()
        if len(state.slots) != len(self.slots):
            raise StateError(f"AcpiCpuHotplugState.slots: {len(state.slots)} places, not {len(self.slots)}")
        if state.command > ARCHITECTURE_ID:
            raise StateError(f"AcpiCpuHotplugState.command: there is no command {state.command}")
        self.slots = [slot.copy() for slot in state.slots]
        self._selector, self._command, self._legacy = state.selector, state.command, state.legacy
