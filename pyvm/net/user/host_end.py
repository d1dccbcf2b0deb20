"""The host's end of a guest's TCP connection: a socket, or a character device."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pyvm.chardev.base import ChardevEvent
from pyvm.mainloop import MainLoop

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

_NO_LINGER = struct.pack("ii", 1, 0)
_CHARDEV_BUFFER = 64 << 10


class HostEnd(Protocol):
    """What a connection reads from and writes to; it never waits."""

    def receive_into(self, view: memoryview) -> int | None:
        """Read into `view`; return how many bytes came, 0 at the end, None where there are none now.

        Raises OSError where the connection is broken.
        """

    def send(self, data: memoryview) -> int:
        """Write; return how many bytes were taken.  Raises OSError where the connection is broken."""

    def watch(self, *, read: bool, write: bool) -> None:
        """Say which of the two is waited for."""

    def end_output(self) -> None:
        """Nothing more will be written."""

    def close(self, *, abort: bool) -> None:
        """Let go; with `abort` so that the host's side sees that something broke."""

    @property
    def fd(self) -> int:
        """A descriptor for people to see, -1 where there is none."""


class SocketEnd:
    """A socket of the host."""

    def __init__(
        self, loop: MainLoop, connection: socket.socket, readable: Callable[[], None], writable: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._socket = connection
        self._on_readable = readable
        self._on_writable = writable
        self._reads = self._writes = False
        connection.setblocking(False)

    @property
    def fd(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def error(self) -> int:
        """The error number of a connection that could not be made, 0 where it was."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def receive_into(self, view: memoryview) -> int | None:
        """Read what is there."""
        try:
            return self._socket.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: memoryview) -> int:
        """Write what there is room for."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def watch(self, *, read: bool, write: bool) -> None:
        """Wait for bytes, or for room."""
        fd = self._socket.fileno()
        if fd < 0:
            return
        if read != self._reads:
            self._reads = read
            if read:
                self._loop.add_reader(fd, self._on_readable)
            else:
                self._loop.remove_reader(fd)
        if write != self._writes:
            self._writes = write
            if write:
                self._loop.add_writer(fd, self._on_writable)
            else:
                self._loop.remove_writer(fd)

    def end_output(self) -> None:
        """Half-close the socket."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, abort: bool) -> None:
        """Close the socket, by a reset with `abort`."""
        self.watch(read=False, write=False)
        if abort:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._socket.close()


class ChardevEnd:
    """A character device, which serves one connection at a time."""

    fd = -1

    def __init__(
        self, loop: MainLoop, chardev: Chardev, readable: Callable[[], None], writable: Callable[[], None]
    ) -> None:
        """Raises ValueError where somebody else has the device."""
        self._loop = loop
        self._chardev = chardev
        self._readable = readable
        self._writable = writable
        self._buffer = bytearray()
        self._reads = self._writes = False
        self._ended = False
        self._closed = False
        chardev.attach(self)

    # The character device's front end

    def can_receive(self) -> int:
        """Return how much room there is for what the guest has not taken."""
        return _CHARDEV_BUFFER - len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take bytes for the guest."""
        self._buffer += data
        if self._reads:
            self._readable()

    def event(self, event: ChardevEvent) -> None:
        """Hear that the peer came or went."""
        if event is ChardevEvent.OPENED:
            self._ended = False
        if event is ChardevEvent.CLOSED:
            self._ended = True
            if self._reads:
                self._loop.call_soon(self._look)

    def writable(self) -> None:
        """The device takes more."""
        if self._writes:
            self._writable()

    # The connection's end

    def receive_into(self, view: memoryview) -> int | None:
        """Hand over what has come."""
        if not self._buffer:
            return 0 if self._ended else None
        count = min(len(view), len(self._buffer))
        view[:count] = self._buffer[:count]
        del self._buffer[:count]
        self._chardev.accept_input()
        return count

    def send(self, data: memoryview) -> int:
        """Write to the device."""
        return self._chardev.write(data)

    def watch(self, *, read: bool, write: bool) -> None:
        """Wait for bytes, or for room."""
        started = read and not self._reads
        self._reads, self._writes = read, write
        if started and (self._buffer or self._ended):
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self._reads and not self._closed:
            self._readable()

    def end_output(self) -> None:
        """A device knows no half-closed connections."""

    def close(self, *, abort: bool) -> None:
        """Leave the device to the next connection."""
        del abort
        self._closed = True
        self._reads = self._writes = False
        self._chardev.detach()
