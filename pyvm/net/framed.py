"""Frames over a byte stream, as QEMU's socket back ends carry them: each behind its length in four bytes."""

from __future__ import annotations

import socket
from collections.abc import Callable

from pyvm.mainloop import MainLoop
from pyvm.net.client import MAX_FRAME, Frame

_LENGTH = 4
_LARGEST = MAX_FRAME
_READ_SIZE = 256 << 10
_UNSENT_LIMIT = 1 << 20
"""With so many bytes waiting for the other side, no further frame is taken."""


class FramedConnection:
    """One connection.  `deliver` takes a frame, or returns False; then it waits for :meth:`resume`."""

    def __init__(
        self,
        loop: MainLoop,
        connection: socket.socket,
        deliver: Callable[[bytes], bool],
        delivered: Callable[[], None],
        writable: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self.socket = connection
        self._loop = loop
        self._deliver = deliver
        self._delivered = delivered
        self._writable = writable
        self._closed = closed
        self._input = bytearray()
        self._output = bytearray()
        self._full = False
        """Whether a frame was refused since the other side was slow."""
        self._held = False
        """Whether a frame waits for the peer."""
        connection.setblocking(False)
        loop.add_reader(connection.fileno(), self._readable)

    def close(self) -> None:
        """Close the connection; nobody is told."""
        fd = self.socket.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self.socket.close()

    def _fail(self) -> None:
        self.close()
        self._closed()

    # ---- Out

    def send(self, frame: Frame) -> bool:
        """Take a frame for the other side; return False where too much waits already."""
        if len(self._output) >= _UNSENT_LIMIT:
            self._full = True
            return False
        data = len(frame).to_bytes(_LENGTH, "big") + frame
        if not self._output:
            try:
                data = data[self.socket.send(data) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._loop.call_soon(self._fail_later)
                return True
            if not data:
                return True
            self._loop.add_writer(self.socket.fileno(), self._flush)
        self._output += data
        return True

    def _fail_later(self) -> None:
        if self.socket.fileno() >= 0:
            self._fail()

    def _flush(self) -> None:
        try:
            del self._output[: self.socket.send(self._output)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail()
            return
        if not self._output:
            self._loop.remove_writer(self.socket.fileno())
        if self._full and len(self._output) < _UNSENT_LIMIT // 2:
            self._full = False
            self._writable()

    # ---- In

    def _readable(self) -> None:
        try:
            data = self.socket.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._fail()
            return
        self._input += data
        self._pass_on()

    def _pass_on(self) -> None:
        """Deliver all whole frames, as long as they are taken."""
        data = self._input
        position = 0
        while len(data) - position >= _LENGTH:
            length = int.from_bytes(data[position : position + _LENGTH], "big")
            end = position + _LENGTH + length
            if length > _LARGEST:
                self._fail()  # that is no frame: the two sides do not speak the same language
                return
            if end > len(data):
                break
            if not self._deliver(bytes(data[position + _LENGTH : end])):
                self._hold(True)
                break
            position = end
        del data[:position]
        if position:
            self._delivered()

    def _hold(self, held: bool) -> None:
        fd = self.socket.fileno()
        if held != self._held and fd >= 0:
            self._held = held
            if held:
                self._loop.remove_reader(fd)
            else:
                self._loop.add_reader(fd, self._readable)

    def resume(self) -> None:
        """The peer takes frames again."""
        if self._held:
            self._hold(False)
            self._pass_on()
