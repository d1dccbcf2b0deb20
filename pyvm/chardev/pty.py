"""A pseudo-terminal as a back end: `pty`.  A person runs a terminal program on its slave, `/dev/pts/N`."""

from __future__ import annotations

import os
import select
import sys

from pyvm.chardev.base import Buffer, ChardevError, ChardevEvent
from pyvm.chardev.file import FdChardev
from pyvm.chardev.terminal import make_raw
from pyvm.mainloop import MainLoop

_POLL_SECONDS = 0.25
"""How often to look for somebody on the slave: its opening wakes no poll on the master."""


class PtyChardev(FdChardev):
    """The master of a pseudo-terminal; connected while somebody has the slave open."""

    def __init__(self, label: str, loop: MainLoop) -> None:
        """Make the pseudo-terminal and tell the person at the prompt where it is; raises ChardevError."""
        try:
            master, slave = os.openpty()
        except OSError as error:
            raise ChardevError(f"Failed to create PTY: {error.strerror}") from error
        self.path = os.ttyname(slave)
        make_raw(slave, signals=False)
        os.close(slave)
        super().__init__(label, loop, master, master)
        self._connected = False
        self._slave_closed = True
        self._poll = select.poll()
        self._poll.register(master, select.POLLIN)
        self._timer = loop.call_later(_POLL_SECONDS, self._look)
        sys.stdout.write(f"char device redirected to {self.path} (label {label})\n")
        sys.stdout.flush()

    @property
    def filename(self) -> str:
        """Return where the slave is."""
        return f"pty:{self.path}"

    @property
    def connected(self) -> bool:
        """Whether somebody has the slave open."""
        return self._connected

    def accept_input(self) -> None:
        """Read on, while there is somebody to read from."""
        if self._connected:
            super().accept_input()

    def _look(self) -> None:
        if not self._owned:
            return
        events = self._events()
        if events & select.POLLHUP and not events & select.POLLIN:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._look)
            return
        # Somebody has come, or came and went between two looks and left input.
        self._connected = True
        self._slave_closed = False
        self._notify(ChardevEvent.OPENED)
        self.accept_input()

    def _events(self) -> int:
        return next((events for _, events in self._poll.poll(0)), 0)

    def _end_of_input(self) -> None:
        self._connected = False
        self._pause_output()
        self._notify(ChardevEvent.CLOSED)
        if self._starved:
            self._feed()
        if self._owned:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._look)

    def _write(self, data: Buffer) -> int:
        # Somebody may have come since the last look.  A slave that nobody has open would keep what is written.
        if (self._slave_closed or not self._connected) and self._events() & select.POLLHUP:
            return len(data)
        return super()._write(data)

    def _writable(self) -> None:
        # The front end may hold input back, so that its end is not seen yet; a hung-up terminal is always "writable".
        self._slave_closed = bool(self._events() & select.POLLHUP)
        super()._writable()

    def close(self) -> None:
        """Close the master; the slave is gone with it."""
        self._timer.cancel()
        super().close()
