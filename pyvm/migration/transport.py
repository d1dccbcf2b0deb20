"""Where a migration goes to and comes from: the URIs ``tcp:``, ``unix:``, ``exec:``, ``fd:`` and ``file:``.

What is wrong with a URI itself is found when it is parsed; :func:`connect` and :class:`Listening` meet the host.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pyvm.errors import ConfigError
from pyvm.migration.channel import Channel

if TYPE_CHECKING:
    from pyvm.chardev.address import InetAddress, Listener, UnixAddress

TakeFd = Callable[[str], int]
"""Gives away the descriptor of a name; raises an error that says that there is none."""

SOCKETS = ("tcp", "unix")
_SCHEMES = ("tcp", "unix", "exec", "fd", "file")
_BACKLOG = 255
_SOCKET_BUFFER = 1 << 20
"""Bytes: room for a record of pages, so that the two sides need not take turns."""


class Target(NamedTuple):
    """One end of a migration."""

    scheme: str
    rest: str

    @property
    def uri(self) -> str:
        """The target as it was given."""
        return f"{self.scheme}:{self.rest}"

    @property
    def can_have_channels(self) -> bool:
        """Whether more than one connection can be made."""
        return self.scheme in SOCKETS


class UnknownProtocolError(ConfigError):
    """A URI whose protocol is none that there is."""


def parse_uri(uri: str) -> Target:
    """Return what a URI means.  Raises UnknownProtocolError."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _SCHEMES:
        raise UnknownProtocolError("Parameter 'uri' expects a valid migration protocol")
    return Target(scheme, rest)


def _address(target: Target) -> InetAddress | UnixAddress:
    from pyvm.chardev.address import InetAddress, UnixAddress

    if target.scheme == "unix":
        return UnixAddress(target.rest)
    text, *options = target.rest.split(",")
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ConfigError(f"error parsing address '{target.rest}'")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    wanted: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name == "to" and value.isdecimal():
            wanted["to"] = int(value)
        elif name in ("ipv4", "ipv6") and value in ("", "on", "off"):
            wanted[name] = value != "off"
        else:
            raise ConfigError(f"error parsing address '{target.rest}'")
    return InetAddress(host, port, **wanted)


# ---- Going out


def connect(target: Target, take_fd: TakeFd) -> Callable[[], Channel]:
    """Return what makes the connection, which may take its time and raises OSError or ConfigError.

    What belongs to the caller's session is taken now.
    """
    if target.scheme in SOCKETS:
        address = _address(target)
        return lambda: _connected(address)
    if target.scheme == "exec":
        return lambda: _command(target.rest, "stdin")
    if target.scheme == "fd":
        channel = from_descriptor(take_fd(target.rest))
        return lambda: channel
    return lambda: _to_file(target.rest)


def _connected(address: InetAddress | UnixAddress) -> Channel:
    from pyvm.chardev import address as sockets
    from pyvm.chardev.base import ChardevError

    try:
        connection = sockets.connect(address)
    except ChardevError as error:
        raise ConfigError(str(error)) from None
    _prepare(connection)
    return Channel(connection.detach(), "socket", two_way=True)


def _prepare(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _command(command: str, end: Literal["stdin", "stdout"]) -> Channel:
    """Return the connection to an end of a command, which is started."""
    import subprocess

    plumbing: dict[str, Any] = {end: subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True, **plumbing)
    with getattr(process, end) as pipe:
        return Channel(os.dup(pipe.fileno()), "command", process=process)


def _to_file(path: str) -> Channel:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
    except OSError as error:
        raise ConfigError(f"Failed to open '{path}': {error.strerror}") from None
    return Channel(descriptor, "file")


def from_descriptor(descriptor: int) -> Channel:
    """Return the connection that a descriptor is, whatever it is of."""
    os.set_inheritable(descriptor, False)
    is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return Channel(descriptor, "socket" if is_socket else "file", two_way=is_socket)


# ---- Coming in


class Listening:
    """Waits for a migration to come in; :meth:`accept` returns its connections, one after the other."""

    def __init__(self, target: Target, take_fd: TakeFd) -> None:
        """Raises ConfigError, and OSError, where nothing can come in from there."""
        self._listener: Listener | None = None
        self._made: Channel | None = None
        self._path = target.rest
        self._wake = -1
        self._aborted = False
        self._lock = threading.Lock()
        """Keeps what wakes it from being closed while it is used, and a connection from being made behind that."""
        if target.scheme in SOCKETS:
            self._listener = _listen(target)
            for one in self._listener.sockets:
                one.listen(_BACKLOG)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        elif target.scheme == "exec":
            self._made = _command(target.rest, "stdout")
        elif target.scheme == "fd":
            self._made = from_descriptor(take_fd(target.rest))
        else:
            self._made = _from_file(target.rest)

    @property
    def addresses(self) -> list[dict[str, Any]]:
        """Where connections can be made, as SocketAddress shows it."""
        found: list[dict[str, Any]] = []
        for one in self._listener.sockets if self._listener is not None else []:
            name = one.getsockname()
            if isinstance(name, tuple):
                family = "ipv6" if one.family == socket.AF_INET6 else "ipv4"
                found.append({"type": "inet", "host": name[0], "port": str(name[1]), family: True})
            else:
                found.append({"type": "unix", "path": os.fsdecode(name)})
        return found

    def filenos(self) -> list[int]:
        """Return the descriptors of the sockets that connections come from."""
        return [one.fileno() for one in self._listener.sockets] if self._listener is not None else []

    def accept(self) -> Channel:
        """Return the next connection, which is waited for.  Raises OSError where there is none any more."""
        with self._lock:
            if self._aborted:
                raise _nobody_waits()
            made, self._made = self._made, None
        if made is not None:
            return made
        if self._listener is None:
            raise OSError("there are no more connections")
        import select

        poll = select.poll()
        sockets = {one.fileno(): one for one in self._listener.sockets}
        for number in (*sockets, self._wake):
            poll.register(number, select.POLLIN)
        while True:
            ready = [number for number, _ in poll.poll()]
            if self._wake in ready:
                raise _nobody_waits()
            connection, _ = sockets[ready[0]].accept()
            _prepare(connection)
            return Channel(connection.detach(), "socket", two_way=True)

    def abort(self) -> None:
        """Let nobody wait any more; from any thread."""
        with self._lock:
            self._aborted = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Accept nothing any more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        if self._made is not None:
            self._made.close()
            self._made = None


def _nobody_waits() -> OSError:
    return OSError("nobody waits for a migration any more")


def _listen(target: Target) -> Listener:
    from pyvm.chardev import address as sockets
    from pyvm.chardev.base import ChardevError

    try:
        return sockets.listen(_address(target))
    except ChardevError as error:
        raise ConfigError(str(error)) from None


def _from_file(path: str) -> Channel:
    try:
        return Channel(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "file")
    except OSError as error:
        raise ConfigError(f"Failed to open '{path}': {error.strerror}") from None
