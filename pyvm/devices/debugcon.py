"""The debug console: one port whose writes go to a character device.

A convention of virtual machines (Bochs port 0xe9, SeaBIOS at 0x402); reading the port gives 0xe9, by which firmware
finds out that somebody listens.
"""

from __future__ import annotations

from typing import Final

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.state import State, blob

READBACK: Final = 0xE9
BACKLOG_LIMIT: Final = 65536


class DebugConsoleState(State):
    """Bytes that the back end has not taken yet."""

    unsent: bytes = blob(BACKLOG_LIMIT)


class DebugConsole:
    """One port, accesses of one byte.  A guest cannot see whether the back end keeps up, so there is a backlog."""

    def __init__(self, chardev: Chardev, readback: int = READBACK) -> None:
        self._chardev = chardev
        self._readback = readback
        self._unsent = bytearray()
        self._blocked = False
        chardev.attach(self)

    def read(self, offset: int, size: int) -> int:
        """Read the port."""
        return self._readback

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one byte; beyond the backlog's bound the newest are lost."""
        if len(self._unsent) < BACKLOG_LIMIT:
            self._unsent.append(value & 0xFF)
        if not self._blocked:
            self._send()

    def _send(self) -> None:
        while self._unsent:
            taken = self._chardev.write(bytes(self._unsent))
            if taken <= 0:
                self._blocked = True
                return
            del self._unsent[:taken]

    def can_receive(self) -> int:
        """Return 0: the port has no input."""
        return 0

    def receive(self, data: bytes) -> None:
        """Ignore input, which is never asked for."""

    def event(self, event: ChardevEvent) -> None:
        """Ignore the peer's coming and going."""

    def writable(self) -> None:
        """The back end takes bytes again."""
        self._blocked = False
        self._send()

    def reset(self) -> None:
        """Nothing to do: what was written is on its way."""

    def save(self) -> DebugConsoleState:
        """Return what is unsent."""
        return DebugConsoleState(bytes(self._unsent))

    def load(self, state: DebugConsoleState) -> None:
        """Take over what is unsent, and send it."""
        state.check()
        self._unsent = bytearray(state.unsent)
        self._blocked = False
        self._send()
