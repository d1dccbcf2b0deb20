"""What PS/2 keyboard and mouse have in common: the two queues of a device on a PS/2 port.

IBM Personal System/2 Hardware Interface Technical Reference, keyboard and auxiliary device sections.  The device hangs
on a port of the keyboard controller, which takes one byte after the other with :meth:`Ps2Device.take`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

ACK: Final = 0xFA
RESEND: Final = 0xFE
SELF_TEST_PASSED: Final = 0xAA

EVENT_LIMIT: Final = 16  # bytes; what a keyboard of the time could store
REPLY_LIMIT: Final = 16


class Ps2Device:
    """Base of keyboard and mouse: replies to commands go before events."""

    def __init__(self) -> None:
        self._replies: deque[int] = deque()
        self._events: deque[int] = deque()
        self._last = 0
        self.on_output: Callable[[], None] = lambda: None
        """Called when there is something to take: the controller's port."""

    def take(self) -> int | None:
        """Return the next byte for the host, None where there is none."""
        if self._replies:
            self._last = self._replies.popleft()
        elif self._events:
            self._last = self._events.popleft()
        else:
            return None
        return self._last

    def _reply(self, *data: int) -> None:
        self._replies.extend(data)
        self.on_output()

    def _event(self, data: Sequence[int]) -> bool:
        """Queue an event as a whole; return False where there is no room for it."""
        if len(self._events) + len(data) > EVENT_LIMIT:
            return False
        self._events.extend(data)
        self.on_output()
        return True

    def write(self, value: int) -> None:
        """Take a byte from the host: a command, or the argument of one.  Drops replies that were not taken."""
        raise NotImplementedError
