"""Sockets as back ends: unix, tcp or inherited, as client or as server of one client at a time, plain or telnet.

A server lets further clients wait in the kernel's backlog until the one it serves has gone.  A client that sends and
leaves is heard to its end: while the guest does not read, what the client sent moves to memory, so that the next client
is served at once, and is delivered before anything of that client.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.chardev.address import (
    FdAddress,
    FindFd,
    InetAddress,
    Listener,
    Resolved,
    UnixAddress,
    connect,
    connect_failed,
    describe_address,
    inherited_socket,
    is_live,
    listen,
    resolve,
)
from pyvm.chardev.base import Buffer, ChardevError, ChardevEvent, report
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.stream import READ_SIZE, StreamChardev
from pyvm.chardev.telnet import Telnet
from pyvm.mainloop import MainLoop

if TYPE_CHECKING:
    from asyncio import Future

MAX_FDS = 16
"""Most descriptors taken from one message; the kernel drops further ones."""

LINGER_LIMIT = 4 << 20
"""Most bytes kept of peers that have gone; a peer with more stays connected until the guest has read some."""

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_ACCEPT_RETRY_SECONDS = 1.0


class Translator(Protocol):
    """What is between the wire and the plain bytes of a connection."""

    def decode(self, wire: bytes) -> tuple[list[bytes | None], bytes]:
        """Return what received bytes mean, None for a break, and what must be answered."""


class _HangupWatch:
    """Hears that the peer of a connection has gone, also while nobody reads from the connection.

    An epoll of its own, edge-triggered, which the main loop watches: so a peer that is gone wakes the loop just once.
    """

    def __init__(self, loop: MainLoop, fd: int, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._epoll = select.epoll(1)
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        loop.add_reader(self._epoll.fileno(), self._fired)

    def _fired(self) -> None:
        if self._epoll.poll(0):
            self._callback()

    def close(self) -> None:
        """End connection and server, and remove the file of a unix socket."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class SocketChardev(StreamChardev):
    """A connection, and how it comes about: accepted, made, made again, or inherited."""

    def __init__(
        self,
        options: SocketOptions,
        loop: MainLoop,
        find_fd: FindFd | None = None,
        connection: socket.socket | None = None,
    ) -> None:
        """Listen or connect as `options` say, where they say so waiting for a client; raises ChardevError.

        `find_fd` knows descriptors by the names that the monitor gave them; `connection` is the one that `options` ask
        for, where somebody made it before.
        """
        super().__init__(options.id, loop)
        self._options = options
        self._server = options.server
        self._listener: Listener | None = None
        self._accepting = False
        self._closed = False
        self._socket: socket.socket | None = None
        self._passes_fds = False
        self._fds: list[int] = []
        self._telnet: Translator | None = None
        self._half_pair = False
        self._hangup: _HangupWatch | None = None
        self._peer_gone = False
        self._left: deque[bytes | None] = deque()
        self._left_size = 0
        self._left_scheduled = False
        self._closing = False
        self._timer: Any = None
        self._attempt: socket.socket | None = None
        self._failure_reported = False
        self._name = ""
        if connection is None:
            self._open(find_fd)
        else:
            self._begin(connection)

    # How the connection comes about.

    def _open(self, find_fd: FindFd | None) -> None:
        address = self._options.address
        if isinstance(address, FdAddress):
            inherited = inherited_socket(address, find_fd)
            if self._server:
                self._serve(Listener([inherited]))
            else:
                self._begin(inherited)
            return
        if self._options.connect_if_live and isinstance(address, UnixAddress):
            self._server = not is_live(address)
        if self._server:
            self._serve(listen(address))
        elif self._options.reconnect:
            self._try_connect()
        else:
            self._begin(connect(address))

    def _serve(self, listener: Listener) -> None:
        self._listener = listener
        for listening in listener.sockets:
            listening.setblocking(False)
        if not self._options.wait:
            self._resume_accepting()
            return
        report(f"info: QEMU waiting for connection on: {self.filename}")
        poll = select.poll()
        for listening in listener.sockets:
            poll.register(listening, select.POLLIN)
        try:
            while not self._accept_one():
                poll.poll()
        except OSError as error:
            self.close()
            raise ChardevError(f"Failed to accept a client: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _resume_accepting(self) -> None:
        if self._listener is not None and not self._accepting and self._socket is None:
            self._accepting = True
            for listening in self._listener.sockets:
                self._loop.add_reader(listening.fileno(), self._accept)

    def _pause_accepting(self) -> None:
        if self._listener is not None and self._accepting:
            self._accepting = False
            for listening in self._listener.sockets:
                self._loop.remove_reader(listening.fileno())

    def shut_down(self) -> None:
        """Break the connection, where there is one, as if the peer had: whoever waits for it goes on."""
        if self._socket is not None:
            with suppress(OSError):  # the peer may be gone
                self._socket.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        try:
            self._accept_one()
        except OSError:
            # Out of descriptors or memory.  The client waits on; asking again at once would only burn time.
            self._pause_accepting()
            self._later(_ACCEPT_RETRY_SECONDS, self._resume_accepting)

    def _accept_one(self) -> bool:
        """Take a client that waits, if one does; raises OSError where there are no resources for it."""
        for listening in self._listener.sockets if self._listener is not None else []:
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            self._pause_accepting()
            self._begin(connection)
            return True
        return False

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def _try_connect(self) -> None:
        address = self._options.address
        if isinstance(address, InetAddress):
            # The name service may take its time, so it is asked in another thread.
            found = self._loop.loop.run_in_executor(None, resolve, address, socket.SOCK_STREAM)
            found.add_done_callback(self._resolved)
        elif isinstance(address, UnixAddress):
            self._connect_first([(socket.AF_UNIX, address.encode())], None)  # type: ignore[list-item]

    def _resolved(self, found: Future[list[Resolved]]) -> None:
        if self._closed or found.cancelled():
            return
        try:
            candidates = found.result()
        except ChardevError as error:
            self._attempt_failed(error)
        else:
            self._connect_first(candidates, None)

    def _connect_first(self, candidates: list[Resolved], failure: OSError | None) -> None:
        """Begin to connect to the first candidate that lets us begin."""
        for index, (family, name) in enumerate(candidates):
            attempt = socket.socket(family, socket.SOCK_STREAM)
            attempt.setblocking(False)
            code = attempt.connect_ex(name)
            if code == 0:
                self._begin(attempt)
                return
            if code == errno.EINPROGRESS:
                self._attempt = attempt
                self._loop.add_writer(attempt.fileno(), self._attempt_ended, candidates[index + 1 :])
                return
            attempt.close()
            failure = failure or OSError(code, "")
        address = self._options.address
        assert not isinstance(address, FdAddress)
        self._attempt_failed(connect_failed(address, failure))

    def _attempt_ended(self, others: list[Resolved]) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        self._loop.remove_writer(attempt.fileno())
        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._begin(attempt)
        else:
            attempt.close()
            self._connect_first(others, OSError(code, ""))

    def _attempt_failed(self, error: ChardevError) -> None:
        if not self._failure_reported:
            self._failure_reported = True
            report(f"Unable to connect character device {self.label}: {error}")
        self._later(self._options.reconnect, self._try_connect)

    # The connection.

    def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        address = self._options.address
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self._options.nodelay)
            if isinstance(address, InetAddress) and address.keep_alive:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = connection
        self._passes_fds = connection.family == socket.AF_UNIX
        self._failure_reported = self._peer_gone = False
        self._in_fd = self._out_fd = connection.fileno()
        self._name = self._connection_name(connection)
        self._hangup = _HangupWatch(self._loop, connection.fileno(), self._hung_up)
        if self._options.telnet:
            telnet = self._telnet = Telnet(server=self._server)
            self._answer(telnet.greeting())
        if self._closing:
            self._closing = False
            self._notify(ChardevEvent.CLOSED)
        self._notify(ChardevEvent.OPENED)
        self.accept_input()

    def _connection_name(self, connection: socket.socket) -> str:
        server = ",server=on" if self._server else ""
        if connection.family == socket.AF_UNIX:
            address = self._options.address
            local = address if isinstance(address, UnixAddress) and self._server else connection.getsockname()
            return f"unix:{local if not isinstance(local, bytes) else ''}{server}"
        try:
            peer = describe_address(connection.getpeername())
        except OSError:
            peer = ""  # gone already
        return f"{self._kind}:{describe_address(connection.getsockname())}{server} <-> {peer}"

    @property
    def _kind(self) -> str:
        return "telnet" if self._options.telnet else "tcp"

    @property
    def filename(self) -> str:
        """Return address and role, and the peer of a TCP connection."""
        if self._socket is not None:
            return self._name
        server = ",server=on" if self._server else ""
        address = self._options.address
        if isinstance(address, UnixAddress):
            return f"disconnected:unix:{address}{server}"
        if self._listener is not None and self._listener.sockets:
            bound = self._listener.sockets[0]
            if bound.family == socket.AF_UNIX:
                name = bound.getsockname()
                return f"disconnected:unix:{name if isinstance(name, str) else ''}{server}"
            return f"disconnected:{self._kind}:{describe_address(bound.getsockname())}{server}"
        if isinstance(address, InetAddress):
            return f"disconnected:{self._kind}:{address.host}:{address.port}{server}"
        return f"disconnected:fd:{address.name}{server}"

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._socket is not None

    def _receive(self, size: int) -> bytes:
        assert self._socket is not None
        if not self._passes_fds:
            return self._socket.recv(size)
        data, ancillary, _, _ = self._socket.recvmsg(size, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        if ancillary:
            self._store_fds(ancillary)
        return data

    def _store_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Keep the descriptors of the newest message that has some; what nobody took before is closed."""
        received = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        if received:
            self._close_fds()
            self._fds = received.tolist()

    def take_fds(self) -> list[int]:
        """Return the descriptors that the peer passed last."""
        taken, self._fds = self._fds, []
        return taken

    def _close_fds(self) -> None:
        for fd in self.take_fds():
            os.close(fd)

    def _write(self, data: Buffer) -> int:
        taken = super()._write(data)
        if self._half_pair and not self._writing:
            self._writing = True
            self._loop.add_writer(self._out_fd, self._writable)
        return taken

    def _writable(self) -> None:
        if self._half_pair:
            self._write(b"")
        if not self._half_pair:
            super()._writable()

    def send_fd(self) -> int:
        """Return the connection, where bytes go through it as they are and nothing waits to be sent before."""
        return -1 if self._telnet is not None or self._writing or self._log_fd >= 0 else self._out_fd

    def _send(self, data: Buffer) -> int:
        assert self._socket is not None
        if self._telnet is None:
            return self._socket.send(data)
        if self._half_pair:
            self._half_pair = self._socket.send(b"\xff") == 0
        wire = Telnet.encode(data)
        taken, self._half_pair = Telnet.taken(wire, self._socket.send(wire))
        return taken

    def _deliver(self, data: bytes) -> None:
        if self._telnet is None:
            super()._deliver(data)
            return
        meaning, answer = self._telnet.decode(data)
        self._answer(answer)
        for part in meaning:
            if part is None:
                self._notify(ChardevEvent.BREAK)
            else:
                super()._deliver(part)

    def _answer(self, answer: bytes) -> None:
        if answer and self._socket is not None:
            try:
                self._socket.send(answer)
            except OSError:
                pass  # gone, or it asks without end and never reads: it does without this answer

    # How the connection ends.

    def _end_of_input(self) -> None:
        self._disconnect()

    def _hung_up(self) -> None:
        self._peer_gone = True
        if self._socket is not None and not self._reading:
            self._keep_rest()

    def _input_held(self) -> None:
        if self._peer_gone:
            self._keep_rest()

    def _keep_rest(self) -> None:
        """The peer is gone, and the front end does not read now: keep what the peer sent, free the connection."""
        wanted = self.frontend is not None and self.frontend_open
        while self._left_size < LINGER_LIMIT:
            try:
                data = self._receive(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                return
            if wanted:
                parts: list[bytes | None] = [data] if self._telnet is None else self._telnet.decode(data)[0]
                self._left.extend(parts)
                self._left_size += len(data)

    def _disconnect(self) -> None:
        """Give the connection up; CLOSED comes when all that the peer sent was delivered."""
        connection = self._drop_connection()
        if connection is None:
            return
        if self._left:
            self._closing = True
        else:
            self._notify(ChardevEvent.CLOSED)
        if self._starved:
            self._feed()
        if self._closed:
            return
        self._resume_accepting()
        if self._options.reconnect and not self._server:
            self._later(self._options.reconnect, self._try_connect)

    def _drop_connection(self) -> socket.socket | None:
        connection, self._socket = self._socket, None
        self._stop()
        if self._hangup is not None:
            self._hangup.close()
            self._hangup = None
        if connection is not None:
            connection.close()
        self._telnet = None
        self._half_pair = False
        self._close_fds()
        return connection

    def accept_input(self) -> None:
        """Read on: first what peers that have gone left behind."""
        if not self._left:
            super().accept_input()
        elif not self._left_scheduled and self.frontend is not None:
            self._left_scheduled = True
            self._loop.call_soon(self._deliver_left)

    def _deliver_left(self) -> None:
        """Deliver what peers that have gone had sent."""
        self._left_scheduled = False
        while self._left and (frontend := self.frontend) is not None:
            part = self._left[0]
            if part is None:
                self._left.popleft()
                frontend.event(ChardevEvent.BREAK)
                continue
            room = frontend.can_receive()
            if room <= 0:
                return
            self._forget_left(part, room)
            frontend.receive(part[:room])
        if self._closing and not self._left:
            self._closing = False
            self._notify(ChardevEvent.CLOSED)
        super().accept_input()

    def _forget_left(self, part: bytes, length: int) -> None:
        if length < len(part):
            self._left[0] = part[length:]
        else:
            self._left.popleft()
        self._left_size -= min(length, len(part))

    def detach(self) -> None:
        """Disconnect the front end; what peers that have gone left behind was for it."""
        super().detach()
        self._left.clear()
        self._left_size = 0
        self._closing = False
        if self._peer_gone:
            self._loop.call_soon(self._hung_up)

    def close(self) -> None:
        """End connection and server, and remove the file of a unix socket."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._attempt is not None:
            self._loop.remove_writer(self._attempt.fileno())
            self._attempt.close()
            self._attempt = None
        self._pause_accepting()
        if self._listener is not None:
            self._listener.close()
        self._drop_connection()
        self._left.clear()
        super().close()
