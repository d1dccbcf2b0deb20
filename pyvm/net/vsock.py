"""The host's side of a virtio socket device: unix sockets, so no kernel module and no privilege is needed.

A program connects to the socket at PATH, sends ``CONNECT PORT`` and a line feed, and reads ``OK HOSTPORT`` and a line
feed; from then on it talks to what listens at PORT in the guest.  Where nothing does, the connection is closed.  A
program that serves a port of the host listens at ``PATH_PORT``; when a guest connects to the port, it gets a connection
there.  Firecracker has the same convention, so its clients work.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import Protocol

from pyvm.chardev.address import Listener, UnixAddress, listen
from pyvm.devices.virtio.vsock_connection import VsockConnection
from pyvm.mainloop import MainLoop
from pyvm.native import Vector

_BACKLOG = 64
_ACCEPT_RETRY_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
"""How long a program that connects waits for the guest's answer, and we for the program's first line."""
_GREETING_LIMIT = 32
_PIECES = 1024
"""As many as readv() and writev() take."""
_LAST_PORT = (1 << 32) - 1


class VsockDevice(Protocol):
    """The device, as its host side knows it."""

    def connect(self, stream: VsockStream, guest_port: int) -> VsockConnection | None:
        """Ask the guest for a connection; None where nobody is there to be asked."""

    def abort(self, connection: VsockConnection) -> None:
        """End a connection."""

    def host_readable(self, connection: VsockConnection) -> bool:
        """There is something to read, or the end; return whether to call again when there is more."""

    def host_writable(self, connection: VsockConnection) -> None:
        """More can be written."""


class VsockStream:
    """One connection of a program on the host.

    Descriptors are watched from any thread, but left alone again in the main loop only: the loop looks callbacks up
    before it has the machine lock.
    """

    def __init__(self, host: VsockHost, loop: MainLoop, connection: socket.socket, *, asked: bool) -> None:
        connection.setblocking(False)
        host.streams.add(self)
        self.broken = False
        self._host = host
        self._loop = loop
        self._device = host.device
        self._socket = connection
        self._fd = connection.fileno()
        self._asked = asked
        """Whether the program waits to hear that the guest took the connection."""
        self._connection: VsockConnection | None = None
        self._reading = False
        self._writing = False
        self._closed = False

    def attach(self, connection: VsockConnection) -> None:
        """Hear which connection this is the end of."""
        self._connection = connection

    # ---- Data

    def write(self, data: Vector) -> int:
        """Send what can be sent at once."""
        try:
            done = os.writev(self._fd, data[:_PIECES]) if data.nbytes else 0
        except (BlockingIOError, InterruptedError):
            done = 0
        except OSError:
            self.broken = True
            return data.nbytes
        self._starved(done < data.nbytes)
        return done

    def write_bytes(self, data: bytes) -> int:
        """Send what can be sent at once."""
        try:
            done = os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            done = 0
        except OSError:
            self.broken = True
            return len(data)
        self._starved(done < len(data))
        return done

    def _starved(self, starved: bool) -> None:
        if starved and not self._writing and not self._closed:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._fd)
        if self._connection is not None and not self._closed:
            self._device.host_writable(self._connection)

    def read_into(self, buffers: Vector) -> int | None:
        """Return how many bytes were received."""
        try:
            return os.readv(self._fd, buffers[:_PIECES])
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            self.broken = True
            return 0

    def wait_readable(self) -> None:
        """Call the device when there is something to receive."""
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        connection = self._connection
        if self._closed or connection is None or not self._device.host_readable(connection):
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    # ---- The beginning and the end

    def accepted(self, host_port: int) -> None:
        """Tell the program that it is connected."""
        if self._asked:
            with suppress(OSError):
                self._socket.send(b"OK %d\n" % host_port)

    def hung_up(self) -> bool:
        """Return whether the program has closed its end altogether."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return self.broken or any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def finish(self) -> None:
        """Tell the program that no more will be written."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the stream."""
        if not self._closed:
            self._closed = True
            self._connection = None
            # The program hears of it now, also while the main loop is busy or ends.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._loop.call_soon(self.let_go)

    def let_go(self) -> None:
        """Give the descriptor back; in the main loop or after it."""
        self._host.streams.discard(self)
        self._stop_reading()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        self._socket.close()


class _Greeting:
    """A program that has connected and not said yet to which port."""

    def __init__(self, host: VsockHost, loop: MainLoop, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._host = host
        self._loop = loop
        self._line = b""
        loop.add_reader(connection.fileno(), self._readable)
        self._timeout = loop.call_later(_ANSWER_SECONDS, self.close)

    def _readable(self) -> None:
        """Take the first line, and nothing of what may follow it."""
        try:
            seen = self.socket.recv(_GREETING_LIMIT, socket.MSG_PEEK)
            line, end, _ = seen.partition(b"\n")
            taken = self.socket.recv(len(line) + len(end)) if seen else b""
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            taken = b""
        self._line += taken
        word, _, number = self._line.rstrip(b"\r\n").partition(b" ")
        if not taken or len(self._line) > _GREETING_LIMIT:
            self.close()
        elif taken.endswith(b"\n"):
            if word == b"CONNECT" and number.isdigit() and int(number) <= _LAST_PORT:
                self._release()
                self._host.greeted(self.socket, int(number))
            else:
                self.close()

    def _release(self) -> None:
        self._timeout.cancel()
        self._loop.remove_reader(self.socket.fileno())
        self._host.greetings.discard(self)

    def close(self) -> None:
        """Give the program up."""
        self._release()
        self.socket.close()


class VsockHost:
    """Serves the socket at `path` for a device.  Raises ChardevError where it cannot."""

    def __init__(self, loop: MainLoop, path: str, device: VsockDevice) -> None:
        self.device = device
        self.greetings: set[_Greeting] = set()
        self._loop = loop
        self._path = os.path.abspath(path)
        self._listener: Listener | None = listen(UnixAddress(path))
        self.streams: set[VsockStream] = set()
        self._accept_more()

    def _accept_more(self) -> None:
        for item in self._listener.sockets if self._listener is not None else ():
            item.listen(_BACKLOG)
            item.setblocking(False)
            self._loop.add_reader(item.fileno(), self._accept, item)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            self._loop.remove_reader(listener.fileno())  # out of descriptors: the program waits
            self._loop.call_later(_ACCEPT_RETRY_SECONDS, self._accept_more)
            return
        self.greetings.add(_Greeting(self, self._loop, connection))

    def greeted(self, program: socket.socket, port: int) -> None:
        """A program wants to talk to `port` of the guest."""
        device = self.device
        stream = VsockStream(self, self._loop, program, asked=True)
        connection = device.connect(stream, port)
        if connection is None:
            stream.close()
        else:
            self._loop.call_later(_ANSWER_SECONDS, self._give_up, device, connection)

    @staticmethod
    def _give_up(device: VsockDevice, connection: VsockConnection) -> None:
        """End a connection that the guest has not answered."""
        if connection.requested:
            device.abort(connection)

    def connect(self, port: int) -> VsockStream | None:
        """Return a connection to the program that serves `port` of the host; None where there is none."""
        try:
            program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return None  # out of descriptors
        try:
            # A local connection comes about at once or, where too many wait already, not at all.
            program.setblocking(False)
            program.connect(f"{self._path}_{port}")
        except OSError:
            program.close()
            return None
        return VsockStream(self, self._loop, program, asked=False)

    def close(self) -> None:
        """Stop listening, and remove the socket's file; in the main loop or after it.  The device ends its own."""
        listener, self._listener = self._listener, None
        if listener is not None:
            for item in listener.sockets:
                self._loop.remove_reader(item.fileno())
            listener.close()
        for greeting in list(self.greetings):
            greeting.close()
        for stream in list(self.streams):
            stream.let_go()
