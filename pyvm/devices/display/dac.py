"""The video DAC: 256 colours, the mask on their index, and the ports that load them.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Digital-to-Analog Converter".  A colour has six
bits for each of red, green and blue, or eight where the Bochs display interface chose so.
"""

from __future__ import annotations

from typing import Final

from pyvm.devices.display.registers import PEL_DATA, PEL_MASK, PEL_READ_INDEX, PEL_WRITE_INDEX
from pyvm.state import State, blob, flag, integer, uint

COLOURS: Final = 256
PALETTE_SIZE: Final = 3 * COLOURS
STATE_READING: Final = 3  # what port 0x3c7 reads after a write of the read index; 0 after one of the write index


class DacState(State):
    """`component` counts the bytes of a colour that were read or written; `colour` holds those written so far."""

    palette: bytes = blob(PALETTE_SIZE, exact=True)
    mask: int = uint(8, 0xFF)
    read_index: int = uint(8)
    write_index: int = uint(8)
    component: int = integer(0, 2)
    reading: bool = flag()
    colour: bytes = blob(3, exact=True)
    wide: bool = flag()


class Dac:
    """The DAC behind ports 0x3c6-0x3c9."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on: all colours black."""
        self._take(DacState())

    def _take(self, state: DacState) -> None:
        self.palette = bytearray(state.palette)
        self.mask = state.mask
        self._read_index = state.read_index
        self._write_index = state.write_index
        self._component = state.component
        self._reading = state.reading
        self._colour = bytearray(state.colour)
        self.wide = state.wide
        """Whether colours have eight bits for each component."""

    def read(self, port: int) -> int:
        """Read one of the four ports."""
        if port == PEL_DATA:
            return self._read_data()
        if port == PEL_MASK:
            return self.mask
        if port == PEL_WRITE_INDEX:
            return self._write_index
        return STATE_READING if self._reading else 0

    def _read_data(self) -> int:
        value = self.palette[3 * self._read_index + self._component]
        self._component += 1
        if self._component == 3:
            self._component = 0
            self._read_index = (self._read_index + 1) % COLOURS
        return value

    def write(self, port: int, value: int) -> None:
        """Write one of the four ports."""
        if port == PEL_DATA:
            self._write_data(value)
        elif port == PEL_MASK:
            self.mask = value
        else:
            self._reading = port == PEL_READ_INDEX
            self._component = 0
            if self._reading:
                self._read_index = value
            else:
                self._write_index = value

    def _write_data(self, value: int) -> None:
        """Take a component; the colour changes with its last one."""
        self._colour[self._component] = value if self.wide else value & 0x3F
        self._component += 1
        if self._component == 3:
            self._component = 0
            place = 3 * self._write_index
            self.palette[place : place + 3] = self._colour
            self._write_index = (self._write_index + 1) % COLOURS

    def save(self) -> DacState:
        """Return the registers."""
        return DacState(
            palette=bytes(self.palette),
            mask=self.mask,
            read_index=self._read_index,
            write_index=self._write_index,
            component=self._component,
            reading=self._reading,
            colour=bytes(self._colour),
            wide=self.wide,
        )

    def load(self, state: DacState) -> None:
        """Take over a saved state; any values of it go together."""
        state.check()
        self._take(state)
