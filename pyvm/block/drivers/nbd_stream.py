"""A socket between an NBD client and a server: whole messages, and nothing waits for longer than it may."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pyvm.block.errors import BlockError
from pyvm.block.vectors import Buffers, Cursor, behind, copy_in, total

_IOV_LIMIT = 1024
"""Most buffers of one recvmsg or sendmsg (IOV_MAX of Linux)."""
_AHEAD = 64 << 10
"""How much is received at a time where headers are expected: data that comes along is copied once more."""
_MICROSECONDS = 1_000_000
_TIMEVAL = struct.Struct("@ll")


class Socket(Protocol):
    """What is needed of a socket, whether it is a plain one or encrypts what it sends."""

    def recvmsg_into(self, buffers: Buffers, ancbufsize: int = 0, flags: int = 0, /) -> tuple[int, Any, int, Any]:
        """Receive into buffers; the first number is how many bytes."""

    def sendmsg(self, buffers: Buffers, ancdata: tuple[()] = (), flags: int = 0, /) -> int:
        """Send some of the buffers' bytes; return how many."""

    def setsockopt(self, level: int, name: int, value: bytes, /) -> None:
        """Set an option of the socket."""

    def shutdown(self, how: int, /) -> None:
        """End the connection."""

    def close(self) -> None:
        """Close the socket."""


class ConnectionLost(OSError):  # noqa: N818 - it is what happened
    """The connection is of no use any more: it was closed, silent for too long, or the protocol was broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))
        self.reason = reason


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens: `path` of a Unix socket, `host` and `port`, or a connection that is there already."""

    host: str = ""
    port: str = ""
    path: str | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    abstract: bool = False
    tight: bool = True
    descriptor: str = ""
    """What the connection that is there is called."""
    connection: socket.socket | None = None

    @property
    def text(self) -> str:
        """How errors show it."""
        if self.connection is not None:
            return self.descriptor
        return self.path if self.path is not None else f"{self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """Return a connected socket.  `timeout` is in seconds.  Raises BlockError."""
        if self.connection is not None:
            return self._take_connection()
        try:
            return self._connect_tcp(timeout) if self.path is None else self._connect_unix(timeout)
        except socket.gaierror as error:
            raise BlockError(f"address resolution failed for {self.text}: {error.strerror}") from None
        except (OSError, ValueError) as error:
            # A path that is too long and a time-out have no errno.
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BlockError(f"Failed to connect to '{self.text}': {reason}") from None

    def _take_connection(self) -> socket.socket:
        assert self.connection is not None
        if self.connection.fileno() < 0:
            raise BlockError(f"Failed to connect to '{self.text}': the connection was used already")
        return socket.socket(fileno=self.connection.detach())

    def _connect_unix(self, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self._unix_name())
        except BaseException:
            sock.close()
            raise
        return sock

    def _unix_name(self) -> bytes:
        path = os.fsencode(self.path or "")
        if not self.abstract:
            if not path:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return path
        name = b"\0" + path
        return name if self.tight else name.ljust(108, b"\0")

    def _connect_tcp(self, timeout: float) -> socket.socket:
        family = socket.AF_UNSPEC
        if self.ipv4 is not self.ipv6:
            only_v4 = self.ipv4 or self.ipv6 is False
            family = socket.AF_INET if only_v4 else socket.AF_INET6
        deadline = time.monotonic() + timeout
        failure: OSError | None = None
        for kind, _, protocol, _, place in socket.getaddrinfo(self.host, self.port, family, socket.SOCK_STREAM):
            sock = socket.socket(kind, socket.SOCK_STREAM, protocol)
            try:
                sock.settimeout(max(0.1, deadline - time.monotonic()))
                sock.connect(place)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


class Stream:
    """Sends and receives whole messages; every failure is a :class:`ConnectionLost`.

    `timeout`, in seconds, is how long the other side may be silent, which errors call `peer`; None: for ever.
    :attr:`deadline`, where it is set, is a time on the monotonic clock by which everything must be done.
    """

    def __init__(self, sock: socket.socket, timeout: float | None, peer: str = "server") -> None:
        self._socket: Socket = sock
        self._timeout = timeout
        self._peer = peer
        self.deadline: float | None = None
        # The kernel keeps the time, so that a call can wait for a whole message.
        sock.settimeout(None)
        self._set_timeout(timeout)

    def encrypt(self, wrap: Callable[[socket.socket], Socket]) -> None:
        """Speak TLS from now on: `wrap` does the handshake, and returns what takes the socket's place.

        Raises ConnectionLost where it fails with an OSError; other errors are the caller's.
        """
        assert isinstance(self._socket, socket.socket)
        self._check_deadline()
        try:
            self._socket = wrap(self._socket)
        except BlockingIOError:
            raise ConnectionLost(f"the {self._peer} is silent") from None

    def _set_timeout(self, seconds: float | None) -> None:
        microseconds = max(1, int(seconds * _MICROSECONDS)) if seconds is not None else 0
        value = _TIMEVAL.pack(*divmod(microseconds, _MICROSECONDS))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def end_deadline(self) -> None:
        """Only silence counts from now on."""
        self.deadline = None
        self._set_timeout(self._timeout)

    def _check_deadline(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise ConnectionLost(f"the {self._peer} took too long")
            self._set_timeout(left if self._timeout is None else min(left, self._timeout))

    def receive(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data = bytearray(count)
        self.receive_into([memoryview(data)])
        return bytes(data)

    def receive_into(self, buffers: Buffers) -> None:
        """Fill all buffers."""
        left = total(buffers)
        while left:
            count = self._receive(buffers[:_IOV_LIMIT], socket.MSG_WAITALL)
            left -= count
            if left:
                buffers = behind(buffers, count)

    def receive_some(self, buffer: memoryview) -> int:
        """Wait for bytes, and put into a buffer what there is; return how many."""
        return self._receive((buffer,))

    def _receive(self, buffers: Buffers, flags: int = 0) -> int:
        """Wait for bytes; return how many were put into the buffers."""
        self._check_deadline()
        try:
            count = self._socket.recvmsg_into(buffers, 0, flags)[0]
        except BlockingIOError:
            raise ConnectionLost(f"the {self._peer} is silent") from None
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None
        if not count:
            raise ConnectionLost(f"the {self._peer} closed the connection")
        return count

    def send(self, *buffers: memoryview | bytes) -> None:
        """Send all buffers."""
        rest: Buffers = [memoryview(buffer) for buffer in buffers]
        left = total(rest)
        while left:
            self._check_deadline()
            try:
                count = self._socket.sendmsg(rest[:_IOV_LIMIT], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                raise ConnectionLost(f"the {self._peer} takes nothing") from None
            except OSError as error:
                raise ConnectionLost(error.strerror or str(error)) from None
            left -= count
            if left:
                rest = behind(rest, count)

    def shut_down(self) -> None:
        """End the connection, from any thread: who waits for it finds it lost."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Receiver:
    """Receives headers, and the data that follows some of them: as few system calls as there can be.

    Failures are those of the stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._view = memoryview(bytearray(_AHEAD))
        self._start = 0
        self._end = 0

    def holds(self, count: int) -> bool:
        """Whether so many bytes are there without waiting."""
        return self._end - self._start >= count

    def take(self, count: int) -> memoryview:
        """Return the next few bytes, which stay until the next call."""
        while self._end - self._start < count:
            if self._start:
                rest = self._end - self._start
                self._view[:rest] = self._view[self._start : self._end]
                self._start, self._end = 0, rest
            self._end += self._stream.receive_some(self._view[self._end :])
        self._start += count
        return self._view[self._start - count : self._start]

    def fill(self, buffers: Buffers) -> None:
        """Fill all buffers."""
        held = self._end - self._start
        if held:
            count = min(held, total(buffers))
            copy_in(Cursor(buffers).take(count), self._view[self._start : self._start + count])
            self._start += count
            buffers = behind(buffers, count)
        self._stream.receive_into(buffers)
