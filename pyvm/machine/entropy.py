"""Where random bytes for the guest come from: the `rng-builtin`, `rng-random` and `rng-egd` objects.

A source is drawn from by any number of devices, and stays as long as one of them has it, even when its object is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.chardev.base import ChardevEvent
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

# Entropy Gathering Daemon: a command byte and how many bytes are wanted; it answers with those.
_EGD_READ_BLOCKING = 0x02
_EGD_MOST = 255
_EGD_BUFFER = 1 << 16


class Entropy:
    """A source of random bytes; it is made with one holder."""

    def __init__(self) -> None:
        self._holders = 1
        self.waiting: list[Callable[[], None]] = []
        """Called when there are bytes again after there were none."""

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, none where there are none now."""
        raise NotImplementedError

    def hold(self) -> None:
        """One more needs the source."""
        self._holders += 1

    def release(self) -> None:
        """One fewer needs the source; the last one closes it."""
        self._holders -= 1
        if not self._holders:
            self.close()

    def close(self) -> None:
        """Give back what the source consists of."""


class BuiltinEntropy(Entropy):
    """The generator of the host's kernel."""

    def read(self, count: int) -> bytes:
        """Return `count` bytes."""
        return os.urandom(count)


class FileEntropy(Entropy):
    """A device such as `/dev/random`, or any file.  Raises QmpError where it cannot be opened."""

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise QmpError(f"Could not open '{path}': {reason}") from None

    def read(self, count: int) -> bytes:
        """Return what the file has at once."""
        try:
            return os.read(self._fd, count)
        except OSError:
            return b""

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class EgdEntropy(Entropy):
    """An entropy daemon at the other end of a character device."""

    def __init__(self, chardev: Chardev) -> None:
        super().__init__()
        self._chardev = chardev
        self._bytes = bytearray()
        self._expected = 0
        self._unsent = bytearray()
        chardev.attach(self)

    def read(self, count: int) -> bytes:
        """Return what the daemon has sent; ask for the rest."""
        data = bytes(self._bytes[:count])
        del self._bytes[:count]
        missing = min(count - len(data), _EGD_BUFFER) - self._expected
        while missing > 0:
            wanted = min(missing, _EGD_MOST)
            self._unsent += bytes((_EGD_READ_BLOCKING, wanted))
            self._expected += wanted
            missing -= wanted
        self.writable()
        return data

    def can_receive(self) -> int:
        """Return how much was asked for."""
        return self._expected

    def receive(self, data: bytes) -> None:
        """Keep what the daemon sends, and tell those who wait for it."""
        self._expected -= len(data)
        self._bytes += data
        for ready in list(self.waiting):
            ready()

    def event(self, event: ChardevEvent) -> None:
        """A daemon that went away will not answer; what is still needed is asked for again."""
        if event is ChardevEvent.CLOSED:
            self._expected = 0
            self._unsent.clear()
        elif event is ChardevEvent.OPENED:
            for ready in list(self.waiting):
                ready()

    def writable(self) -> None:
        """Send what waits."""
        if self._unsent:
            del self._unsent[: self._chardev.write(bytes(self._unsent))]

    def close(self) -> None:
        """Leave the character device to others."""
        self._chardev.detach()
