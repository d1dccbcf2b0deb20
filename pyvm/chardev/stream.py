"""Back ends that move a stream of bytes over file descriptors: the flow control that they share.

Host to guest: at most as much is read as the front end can take; when it can take nothing the descriptor is no longer
watched, until :meth:`accept_input`.  Guest to host: bytes go straight to the kernel; a short count makes the writable
event watched.

Watching begins in any thread that holds the machine lock, but ends only in the main loop: it may be about to tell of a
descriptor, and is not to tell of another one that has got its number meanwhile.
"""

from __future__ import annotations

import os

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.mainloop import MainLoop

READ_SIZE = 65536
"""Most bytes of one read, and so of one call of the front end's `receive`."""

_READS_PER_WAKEUP = 4
"""Full reads before other descriptors get their turn; more saves wake-ups, fewer keeps the machine lock shorter."""


class StreamChardev(Chardev):
    """A back end over one or two non-blocking descriptors; subclasses say what end of input means."""

    def __init__(self, label: str, loop: MainLoop) -> None:
        super().__init__(label)
        self._loop = loop
        self._in_fd = -1
        self._out_fd = -1
        self._reading = False
        self._writing = False
        self._starved = False
        self._pollable = True
        self._read_scheduled = False

    def accept_input(self) -> None:
        """Watch the input again."""
        if self._in_fd >= 0 and not self._reading and self.frontend is not None:
            self._reading = True
            self._watch_input()

    def _watch_input(self) -> None:
        if self._pollable:
            try:
                self._loop.add_reader(self._in_fd, self._readable)
                return
            except PermissionError:
                self._pollable = False  # a regular file or /dev/null: always readable, and epoll takes none of them
        if not self._read_scheduled:
            self._read_scheduled = True
            self._loop.call_soon(self._read_scheduled_now)

    def _read_scheduled_now(self) -> None:
        self._read_scheduled = False
        self._readable()

    def _pause_input(self) -> None:
        if self._reading:
            self._reading = False
            if self._pollable:
                self._loop.remove_reader(self._in_fd)

    def _readable(self) -> None:
        for _ in range(_READS_PER_WAKEUP):
            if not self._reading:
                return
            frontend = self.frontend
            room = frontend.can_receive() if frontend is not None else 0
            if frontend is None or room <= 0:
                self._pause_input()
                self._input_held()
                return
            size = min(room, READ_SIZE)
            try:
                data = self._receive(size)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self._pause_input()
                self._end_of_input()
                return
            self._deliver(data)
            if len(data) < size:
                break
        if self._reading and not self._pollable:
            self._watch_input()

    def _receive(self, size: int) -> bytes:
        """Read up to `size` bytes; b"" or OSError is the end of input."""
        return os.read(self._in_fd, size)

    def _deliver(self, data: bytes) -> None:
        """Hand input to the front end."""
        if self.frontend is not None:
            self.frontend.receive(data)

    def _input_held(self) -> None:
        """The front end takes no more for now."""

    def _end_of_input(self) -> None:
        """The peer is gone; all it sent was delivered."""
        self._in_fd = -1
        self._notify(ChardevEvent.CLOSED)

    def _write(self, data: Buffer) -> int:
        if self._out_fd < 0:
            return len(data)
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # Nobody will ever read this.  The input side ends it, when what the peer had sent is read.
            return len(data)
        if sent < len(data):
            self._starved = True
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._out_fd, self._writable)
        return sent

    def _send(self, data: Buffer) -> int:
        """Write what fits at once; return how much that was."""
        return os.write(self._out_fd, data)

    def _writable(self) -> None:
        self._feed()
        if not self._starved:
            self._pause_output()

    def _feed(self) -> None:
        """Let the front end offer again what it was left with; starved again, it stays so."""
        self._starved = False
        if self.frontend is not None:
            self.frontend.writable()

    def _pause_output(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._out_fd)

    def _stop(self) -> None:
        """Watch nothing and move nothing; output is dropped from now on."""
        self._pause_input()
        self._pause_output()
        self._in_fd = self._out_fd = -1
        self._pollable = True

    def _notify(self, event: ChardevEvent) -> None:
        if self.frontend is not None:
            self.frontend.event(event)
