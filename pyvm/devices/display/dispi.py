"""The Bochs display interface (DISPI): packed-pixel modes of any size in a linear frame buffer.

Bochs VBE display API, version 5.  An index register selects one of the 16-bit registers behind the data register; PCI
adapters show the registers in a memory BAR as well.  Sizes and offsets that do not fit into the memory are corrected
when they are written, so that what is shown always lies within it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.devices.display import registers as r
from pyvm.state import State, StateError, array, uint

_DEPTHS: Final = {4: 4, 8: 8, 15: 16, 16: 16, 24: 24, 32: 32}  # bits of a pixel in memory, by the depth chosen
_DEFAULT_DEPTH: Final = 8
_MODE_REGISTERS: Final = frozenset(
    {r.DISPI_XRES, r.DISPI_YRES, r.DISPI_BPP, r.DISPI_VIRT_WIDTH, r.DISPI_X_OFFSET, r.DISPI_Y_OFFSET}
)
_LIMITS: Final = {r.DISPI_XRES: r.DISPI_MAX_XRES, r.DISPI_YRES: r.DISPI_MAX_YRES, r.DISPI_BPP: r.DISPI_MAX_BPP}


class DispiState(State):
    """The registers by index; `bank_offset` is where the window begins in memory, in bytes."""

    index: int = uint(16)
    registers: list[int] = array(uint(16), r.DISPI_COUNT)
    bank_offset: int = uint(32)


class Dispi:
    """The registers.  `on_change(clear)` hears of each change; `clear`: the memory that is shown is to be zeroed."""

    def __init__(self, memory_size: int, on_change: Callable[[bool], None]) -> None:
        self._memory_size = memory_size
        self._bank_mask = memory_size // r.BANK_SIZE - 1
        self._on_change = on_change
        self._take(_initial())

    def _take(self, state: DispiState) -> None:
        self._index = state.index
        self._registers = list(state.registers)
        self.bank_offset = state.bank_offset
        """Where the banked window begins in memory, in bytes."""

    # -- what the registers say -------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether the interface drives the screen, not the VGA."""
        return bool(self._registers[r.DISPI_ENABLE] & r.DISPI_ENABLED)

    @property
    def wide_dac(self) -> bool:
        """Whether the DAC has eight bits for each component."""
        return bool(self._registers[r.DISPI_ENABLE] & r.DISPI_8BIT_DAC)

    @property
    def width(self) -> int:
        """Pixels in a line."""
        return self._registers[r.DISPI_XRES]

    @property
    def height(self) -> int:
        """Lines."""
        return self._registers[r.DISPI_YRES]

    @property
    def depth(self) -> int:
        """4, 8, 15, 16, 24 or 32, while enabled."""
        return self._registers[r.DISPI_BPP]

    @property
    def pitch(self) -> int:
        """Bytes from one line to the next."""
        return self._registers[r.DISPI_VIRT_WIDTH] * _DEPTHS.get(self.depth, _DEFAULT_DEPTH) // 8

    @property
    def start(self) -> int:
        """Offset in memory of the first pixel shown, in bytes; the adapter counts in words of 32 bits."""
        bits = _DEPTHS.get(self.depth, _DEFAULT_DEPTH)
        x, y = self._registers[r.DISPI_X_OFFSET], self._registers[r.DISPI_Y_OFFSET]
        return (x * bits // 8 + y * self.pitch) & ~3

    # -- access -----------------------------------------------------------------------------------------------------

    def read_index(self) -> int:
        """Read the index register."""
        return self._index

    def write_index(self, value: int) -> None:
        """Write the index register."""
        self._index = value & 0xFFFF

    def read_data(self) -> int:
        """Read the register that the index selects."""
        return self.read(self._index)

    def write_data(self, value: int) -> None:
        """Write the register that the index selects."""
        self.write(self._index, value)

    def read(self, index: int) -> int:
        """Read register `index`; 0 where there is none."""
        if index == r.DISPI_MEMORY_64K:
            return self._memory_size // r.BANK_SIZE
        if index >= r.DISPI_COUNT:
            return 0
        if self._registers[r.DISPI_ENABLE] & r.DISPI_GETCAPS and index in _LIMITS:
            return _LIMITS[index]
        return self._registers[index]

    def write(self, index: int, value: int) -> None:
        """Write register `index`."""
        value &= 0xFFFF
        if index in _MODE_REGISTERS:
            self._registers[index] = value
            if self.enabled:
                self._correct()
                self._on_change(False)
        elif index == r.DISPI_ENABLE:
            self._write_enable(value)
        elif index == r.DISPI_BANK:
            value &= self._bank_mask
            self._registers[r.DISPI_BANK] = value
            self.bank_offset = value * r.BANK_SIZE
            self._on_change(False)
        elif index == r.DISPI_ID and r.DISPI_ID0 <= value <= r.DISPI_ID5:
            self._registers[r.DISPI_ID] = value

    def _write_enable(self, value: int) -> None:
        starting = bool(value & r.DISPI_ENABLED) and not self.enabled
        self._registers[r.DISPI_ENABLE] = value
        if starting:
            for index in (r.DISPI_VIRT_WIDTH, r.DISPI_X_OFFSET, r.DISPI_Y_OFFSET):
                self._registers[index] = 0
            self._correct()
        else:
            self.bank_offset = 0
        self._on_change(starting and not value & r.DISPI_NO_CLEAR)

    def _correct(self) -> None:
        """Make sizes and offsets fit each other and the memory."""
        registers = self._registers
        if registers[r.DISPI_BPP] not in _DEPTHS:
            registers[r.DISPI_BPP] = _DEFAULT_DEPTH
        bits = _DEPTHS[registers[r.DISPI_BPP]]
        width = min(max(registers[r.DISPI_XRES] & ~7, 8), r.DISPI_MAX_XRES)
        virtual = max(min(registers[r.DISPI_VIRT_WIDTH] & ~7, r.DISPI_MAX_XRES), width)
        pitch = virtual * bits // 8
        lines = self._memory_size // pitch
        height = min(max(registers[r.DISPI_YRES], 1), r.DISPI_MAX_YRES, lines)
        x = min(registers[r.DISPI_X_OFFSET], r.DISPI_MAX_XRES)
        y = min(registers[r.DISPI_Y_OFFSET], r.DISPI_MAX_YRES)
        room = self._memory_size - height * pitch
        if x * bits // 8 + y * pitch > room:
            y = 0
            if x * bits // 8 > room:
                x = 0
        registers[r.DISPI_XRES], registers[r.DISPI_YRES] = width, height
        registers[r.DISPI_VIRT_WIDTH], registers[r.DISPI_VIRT_HEIGHT] = virtual, lines & 0xFFFF
        registers[r.DISPI_X_OFFSET], registers[r.DISPI_Y_OFFSET] = x, y

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on: disabled."""
        self._take(_initial())

    def save(self) -> DispiState:
        """Return the registers."""
        return DispiState(self._index, list(self._registers), self.bank_offset)

    def check(self, state: DispiState) -> None:
        """Raise StateError where the registers cannot have come to these values."""
        state.check()
        probe = Dispi(self._memory_size, lambda clear: None)
        probe._take(state)
        if probe.enabled:
            probe._correct()
        mask = self._bank_mask * r.BANK_SIZE
        if probe._registers != state.registers or state.bank_offset & ~mask:
            raise StateError("DispiState: a mode that does not fit the memory")
        if not r.DISPI_ID0 <= state.registers[r.DISPI_ID] <= r.DISPI_ID5:
            raise StateError("DispiState: an unknown version")

    def load(self, state: DispiState) -> None:
        """Take over a saved state; `on_change` is not called."""
        self.check(state)
        self._take(state)


def _initial() -> DispiState:
    state = DispiState()
    state.registers[r.DISPI_ID] = r.DISPI_ID5
    return state
