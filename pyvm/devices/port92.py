"""System control port A, port 0x92: the fast way to the A20 gate and to a reset.

IBM Personal System/2 Hardware Interface Technical Reference, "System control port A".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.state import State, StateError, uint

FAST_RESET: Final = 1 << 0  # a rising edge resets the processor
FAST_A20: Final = 1 << 1
KEPT: Final = 0xFF & ~FAST_RESET


class Port92State(State):
    """The port's latch."""

    value: int = uint(8)


class Port92:
    """One port.  `on_a20(level)` hears each change of the A20 bit; `on_reset` each rising edge of the reset bit."""

    def __init__(self, on_a20: Callable[[bool], None], on_reset: Callable[[], None]) -> None:
        self._on_a20 = on_a20
        self._on_reset = on_reset
        self._value = 0

    @property
    def a20(self) -> bool:
        """The level of the A20 bit."""
        return bool(self._value & FAST_A20)

    def read(self, offset: int, size: int) -> int:
        """Read the port."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the port.  The reset bit falls back with the reset that it makes."""
        self._set(value & KEPT)
        if value & FAST_RESET:
            self._on_reset()

    def _set(self, value: int) -> None:
        changed = (value ^ self._value) & FAST_A20
        self._value = value
        if changed:
            self._on_a20(self.a20)

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._set(0)

    def save(self) -> Port92State:
        """Return the latch."""
        return Port92State(self._value)

    def load(self, state: Port92State) -> None:
        """Take over the latch."""
        state.check()
        if state.value & FAST_RESET:
            raise StateError("Port92State.value: the reset bit is never set")
        self._set(state.value)
