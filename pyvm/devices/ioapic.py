"""The I/O APIC of a PC: an 82093AA with 24 inputs that calls itself version 0x20.

Specification: Intel 82093AA I/O APIC datasheet (order number 290566), section 3; the EOI register of version 0x20 is
described with the ICH and PCH families ("EOIR").  Its window of 4 KiB is at 0xfec00000.  The machine routes lines to
inputs: ISA interrupts 1-15 to the input of the same number, ISA interrupt 0 to input 2, and PCI interrupts to
inputs 5, 9, 10 and 11 or wherever the PIIX routes them.

A level-triggered input sets its remote IRR when a local APIC accepted the message, and sends no other until the EOI for
its vector has come back, be that the broadcast of a local APIC or a write to the EOI register.
"""

from __future__ import annotations

from pyvm.devices.apic_bus import DELIVERY_MODES, ApicBus, DeliveryMode, widen_destination
from pyvm.state import State, StateError, array, uint

PINS = 24

# The memory-mapped window.
IOREGSEL = 0x00
IOWIN = 0x10
EOI = 0x40  # write only

# Registers behind IOREGSEL.
REG_ID = 0x00
REG_VERSION = 0x01  # read only
REG_ARBITRATION = 0x02  # read only
REG_REDIRECTION = 0x10  # two for each pin, the low half first
VERSION = (PINS - 1) << 16 | 0x20
ID_MASK = 0x0F000000

# A redirection entry.
ENTRY_MODE_SHIFT = 8
ENTRY_LOGICAL = 1 << 11
ENTRY_STATUS = 1 << 12  # read only; reads 0, as messages are delivered at once
ENTRY_LOW_ACTIVE = 1 << 13  # kept and not looked at: a line's level is True where it is active
ENTRY_REMOTE_IRR = 1 << 14  # read only
ENTRY_LEVEL = 1 << 15
ENTRY_MASKED = 1 << 16
ENTRY_DESTINATION_SHIFT = 56
ENTRY_WRITABLE_LOW = 0x1AFFF
ENTRY_WRITABLE_HIGH = 0xFF000000
ENTRY_RESET = ENTRY_MASKED

_UNDEFINED_BITS = ~(ENTRY_WRITABLE_LOW | ENTRY_REMOTE_IRR | ENTRY_WRITABLE_HIGH << 32)


def _is_level(entry: int) -> bool:
    """Return whether an entry waits for an EOI; only two delivery modes have one, the others go by edges."""
    return bool(entry & ENTRY_LEVEL) and entry >> ENTRY_MODE_SHIFT & 7 <= DeliveryMode.LOWEST_PRIORITY


class IoApicState(State):
    """All registers, and the levels of the input lines."""

    ioregsel: int = uint(8)
    id: int = uint(4)
    lines: int = uint(PINS)
    entries: list[int] = array(uint(64, ENTRY_RESET), PINS)


class IoApic:
    """The I/O APIC.  The machine makes `bus.on_eoi` call :meth:`eoi`."""

    def __init__(self, bus: ApicBus) -> None:
        self._bus = bus
        self._s = IoApicState()

    def reset(self) -> None:
        """Mask all inputs; the lines stay as their devices drive them."""
        self._s = IoApicState(lines=self._s.lines)

    def save(self) -> IoApicState:
        """Return a copy of the state."""
        return self._s.copy()

    def load(self, state: IoApicState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        state.check()
        for pin, entry in enumerate(state.entries):
            if entry & _UNDEFINED_BITS or (entry & ENTRY_REMOTE_IRR and not entry & ENTRY_LEVEL):
                raise StateError(f"IoApicState.entries[{pin}]: {entry:#x} is no redirection entry")
        self._s = state.copy()

    def set_irq(self, pin: int, level: bool) -> None:
        """Drive input `pin`, 0..23."""
        s = self._s
        bit = 1 << pin
        if not level:
            s.lines &= ~bit
        elif not s.lines & bit:
            s.lines |= bit
            entry = s.entries[pin]
            # An edge at a masked input is lost; a masked level is looked at again when it is unmasked.
            if not entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR):
                self._send(pin, entry)

    def _send(self, pin: int, entry: int) -> None:
        mode = DELIVERY_MODES[entry >> ENTRY_MODE_SHIFT & 7]
        level = _is_level(entry)
        if level:
            # Set before the message goes out, as its receiver may end the interrupt within the call.
            self._s.entries[pin] = entry | ENTRY_REMOTE_IRR
        destination = widen_destination(entry >> ENTRY_DESTINATION_SHIFT)
        accepted = self._bus.deliver(destination, bool(entry & ENTRY_LOGICAL), mode, entry & 0xFF, level)
        if level and not accepted:
            self._s.entries[pin] &= ~ENTRY_REMOTE_IRR

    def _reconsider_level(self, pin: int) -> None:
        """Send the interrupt of a level-triggered input that is active, not masked and not in service."""
        entry = self._s.entries[pin]
        if self._s.lines >> pin & 1 and not entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) and _is_level(entry):
            self._send(pin, entry)

    def eoi(self, vector: int) -> None:
        """Hear that the level-triggered interrupt `vector` was ended; inputs still active send it again."""
        entries = self._s.entries
        for pin in range(PINS):
            entry = entries[pin]
            if entry & ENTRY_REMOTE_IRR and entry & 0xFF == vector:
                entries[pin] = entry & ~ENTRY_REMOTE_IRR
                self._reconsider_level(pin)

    def read(self, offset: int, size: int) -> int:
        """Read the window; IOWIN takes accesses of 4 bytes only."""
        if offset == IOREGSEL:
            return self._s.ioregsel
        if offset == IOWIN and size == 4:
            return self._read_register(self._s.ioregsel)
        return 0

    def _read_register(self, index: int) -> int:
        s = self._s
        if index in (REG_ID, REG_ARBITRATION):
            return s.id << 24
        if index == REG_VERSION:
            return VERSION
        pin = index - REG_REDIRECTION >> 1
        if 0 <= pin < PINS:
            return s.entries[pin] >> 32 if index & 1 else s.entries[pin] & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the window; IOWIN and EOI take accesses of 4 bytes only."""
        if offset == IOREGSEL:
            self._s.ioregsel = value & 0xFF
        elif size != 4:
            return
        elif offset == IOWIN:
            self._write_register(self._s.ioregsel, value)
        elif offset == EOI:
            self.eoi(value & 0xFF)

    def _write_register(self, index: int, value: int) -> None:
        pin = index - REG_REDIRECTION >> 1
        if index == REG_ID:
            self._s.id = (value & ID_MASK) >> 24
        elif 0 <= pin < PINS:
            self._write_entry(pin, bool(index & 1), value)

    def _write_entry(self, pin: int, high: bool, value: int) -> None:
        entries = self._s.entries
        entry = entries[pin]
        if high:
            entries[pin] = (value & ENTRY_WRITABLE_HIGH) << 32 | entry & 0xFFFF_FFFF
            return
        keep = ENTRY_REMOTE_IRR | 0xFFFF_FFFF << 32
        if not value & ENTRY_LEVEL:
            keep &= ~ENTRY_REMOTE_IRR  # guests turn to edge and back where they have no EOI register
        entries[pin] = entry & keep | value & ENTRY_WRITABLE_LOW
        self._reconsider_level(pin)
