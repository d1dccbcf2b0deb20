"""The SMBus host controller of the PIIX4, on a bus without slaves.

Intel 82371AB PCI-to-ISA/IDE Xcelerator (PIIX4) (order number 290562), section 8.5.  Every transaction ends at once
with a device error, as on a board whose memory modules carry no SPD EEPROM.
"""

from __future__ import annotations

from typing import Final

from pyvm.state import State, StateError, blob, integer, uint

HOST_STATUS: Final = 0x00  # cleared by writing ones
HOST_CONTROL: Final = 0x02
HOST_COMMAND: Final = 0x03
HOST_ADDRESS: Final = 0x04
HOST_DATA0: Final = 0x05
HOST_DATA1: Final = 0x06
HOST_BLOCK: Final = 0x07  # a window on 32 bytes, restarted by reading HOST_CONTROL
SMBUS_BLOCK_SIZE: Final = 16

STATUS_DEVICE_ERROR: Final = 1 << 2
STATUS_FAILED: Final = 1 << 4
STATUS_CLEARABLE: Final = 0x1E

CONTROL_KILL: Final = 1 << 1
CONTROL_START: Final = 1 << 6  # write-only
BLOCK_LENGTH: Final = 32


class SmbusState(State):
    """The host registers."""

    status: int = uint(8)
    control: int = uint(8)
    command: int = uint(8)
    address: int = uint(8)
    data0: int = uint(8)
    data1: int = uint(8)
    block: bytes = blob(BLOCK_LENGTH, exact=True)
    index: int = integer(0, BLOCK_LENGTH - 1)


class SmbusHost:
    """Host registers: 16 ports, accesses of one byte."""

    def __init__(self) -> None:
        self._state = SmbusState()

    def read(self, offset: int, size: int) -> int:
        """Read a register; those of the slave side, which nobody addresses, read 0."""
        state = self._state
        if offset == HOST_CONTROL:
            state.index = 0
        if offset == HOST_BLOCK:
            value = state.block[state.index]
            state.index = (state.index + 1) % BLOCK_LENGTH
            return value
        registers = {
            HOST_STATUS: state.status,
            HOST_CONTROL: state.control,
            HOST_COMMAND: state.command,
            HOST_ADDRESS: state.address,
            HOST_DATA0: state.data0,
            HOST_DATA1: state.data1,
        }
        return registers.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        state = self._state
        if offset == HOST_STATUS:
            state.status &= ~value & 0xFF
        elif offset == HOST_CONTROL:
            state.control = value & ~CONTROL_START & 0xFF
            if value & CONTROL_KILL:
                state.status |= STATUS_FAILED
            elif value & CONTROL_START:
                state.status |= STATUS_DEVICE_ERROR
        elif offset == HOST_COMMAND:
            state.command = value & 0xFF
        elif offset == HOST_ADDRESS:
            state.address = value & 0xFF
        elif offset == HOST_DATA0:
            state.data0 = value & 0xFF
        elif offset == HOST_DATA1:
            state.data1 = value & 0xFF
        elif offset == HOST_BLOCK:
            block = bytearray(state.block)
            block[state.index] = value & 0xFF
            state.block = bytes(block)
            state.index = (state.index + 1) % BLOCK_LENGTH

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._state = SmbusState()

    def save(self) -> SmbusState:
        """Return the host registers."""
        return self._state.copy()

    def load(self, state: SmbusState) -> None:
        """Take over the host registers."""
        state.check()
        if state.status & ~STATUS_CLEARABLE or state.control & CONTROL_START:
            raise StateError("SmbusState: bits that are never set")
        self._state = state.copy()
