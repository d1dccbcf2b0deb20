"""isa-debug-exit: a port by which a guest ends the emulator with an exit status, as test programs do.

A convention of virtual machines; writing `value` asks for the exit status `value * 2 + 1`, which is never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.state import State

DEFAULT_IOBASE: Final = 0x501
DEFAULT_IOSIZE: Final = 2
MAX_IOSIZE: Final = 4


class IsaDebugExitState(State):
    """Nothing: the device has no memory."""


class IsaDebugExit:
    """`iosize` ports (1 to 4), to be mapped at `iobase`; `on_exit` is asked for the exit status (0 to 255)."""

    def __init__(
        self, on_exit: Callable[[int], None], *, iobase: int = DEFAULT_IOBASE, iosize: int = DEFAULT_IOSIZE
    ) -> None:
        if not 1 <= iosize <= MAX_IOSIZE:
            raise ValueError(f"isa-debug-exit: iosize {iosize} is not between 1 and {MAX_IOSIZE}")
        if not 0 <= iobase <= 0x10000 - iosize:
            raise ValueError(f"isa-debug-exit: iobase {iobase:#x} is not a port")
        self.iobase = iobase
        self.iosize = iosize
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        """Read 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Ask for the end; a process's exit status has eight bits."""
        self._on_exit((value << 1 | 1) & 0xFF)

    def reset(self) -> None:
        """Nothing to do."""

    def save(self) -> IsaDebugExitState:
        """Return the empty record."""
        return IsaDebugExitState()

    def load(self, state: IsaDebugExitState) -> None:
        """Check the empty record."""
        state.check()
