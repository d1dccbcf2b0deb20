"""Socket addresses of the socket and udp back ends: resolve, connect, bind, describe.

Error texts are QEMU's where it has one, since its clients match them.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from pyvm.chardev.base import ChardevError
from pyvm.records import record

_UNIX_PATH_SIZE = 108
"""sizeof(sun_path); a path needs its terminating zero, an abstract name its leading one."""

BACKLOG = 1
"""Clients that the kernel keeps waiting while one is served."""


@record(frozen=True)
class UnixAddress:
    """A socket in the file system, or an abstract one."""

    path: str
    abstract: bool = False
    tight: bool = True
    """The abstract name ends with its last byte, instead of being filled up with zeros."""

    def encode(self) -> bytes:
        """Return what bind(2) and connect(2) want; raises ChardevError."""
        name = os.fsencode(self.path)
        if not name and not self.abstract:
            raise ChardevError("chardev: socket: no path given")
        if b"\0" in name:
            raise ChardevError("UNIX socket path contains a zero byte")
        if len(name) >= _UNIX_PATH_SIZE:
            raise ChardevError(f"UNIX socket path '{self.path}' is too long: it must be less than 108 bytes")
        if not self.abstract:
            return name
        return b"\0" + (name if self.tight else name.ljust(_UNIX_PATH_SIZE - 1, b"\0"))

    def __str__(self) -> str:
        if not self.abstract:
            return self.path
        return f"{self.path},abstract=on,tight={'on' if self.tight else 'off'}"


@record(frozen=True)
class InetAddress:
    """A host and a port, by name or number."""

    host: str
    port: str
    to: int | None = None
    """For a server: the last port to try."""
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool = False

    def family(self) -> socket.AddressFamily:
        """Return the address family that `ipv4` and `ipv6` leave; raises ChardevError where none."""
        if self.ipv4 is False and self.ipv6 is False:
            raise ChardevError("Cannot disable IPv4 and IPv6 at same time")
        if self.ipv4 and self.ipv6:
            return socket.AF_UNSPEC
        if self.ipv6 or self.ipv4 is False:
            return socket.AF_INET6
        if self.ipv4 or self.ipv6 is False:
            return socket.AF_INET
        return socket.AF_UNSPEC


@record(frozen=True)
class FdAddress:
    """A socket that this process has already: a descriptor's number, or a name given to one by the monitor."""

    name: str


SocketAddress = UnixAddress | InetAddress | FdAddress

Resolved = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
"""Family and address of one result of getaddrinfo."""

FindFd = Callable[[str], int | None]
"""Takes a descriptor's name; returns the descriptor, which the caller owns from then on, or None."""


def resolve(address: InetAddress, kind: socket.SocketKind, *, passive: bool = False) -> list[Resolved]:
    """Look up all addresses that `address` means; raises ChardevError.  May wait for the network."""
    flags = socket.AI_PASSIVE if passive else 0
    if address.port.isdecimal() and (len(address.port) > 5 or int(address.port) > 0xFFFF):
        # getaddrinfo() would cut the number to 16 bits and reach another service.
        raise ChardevError(f"address resolution failed for {address.host}:{address.port}: port out of range")
    if "\0" in address.host or "\0" in address.port:
        raise ChardevError("address resolution failed: zero byte in a host or port name")
    try:
        found = socket.getaddrinfo(address.host or None, address.port, address.family(), kind, 0, flags)
    except (OSError, UnicodeError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "Name or service not known"
        raise ChardevError(f"address resolution failed for {address.host}:{address.port}: {reason}") from error
    return [(entry[0], entry[4]) for entry in found]


def describe_address(name: object) -> str:
    """Return an internet address as getsockname(2) gives it in the form host:port, IPv6 hosts in brackets."""
    if not isinstance(name, tuple) or len(name) < 2:
        return ""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def inherited_socket(address: FdAddress, find_fd: FindFd | None) -> socket.socket:
    """Take over the socket that `address` names; raises ChardevError."""
    found = find_fd(address.name) if find_fd is not None else None
    fd = found if found is not None else _fd_number(address.name)
    try:
        is_socket = fd < 1 << 31 and stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        raise ChardevError(f"File descriptor '{address.name}' is not a socket")
    os.set_inheritable(fd, False)
    taken = socket.socket(fileno=fd)
    if taken.type != socket.SOCK_STREAM:
        taken.detach()
        raise ChardevError(f"File descriptor '{address.name}' is not a stream socket")
    return taken


def _fd_number(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise ChardevError(f"Unable to parse FD number {text}")


def connect(address: UnixAddress | InetAddress) -> socket.socket:
    """Connect and wait until that succeeded; raises ChardevError."""
    if isinstance(address, UnixAddress):
        candidates: list[Resolved] = [(socket.AF_UNIX, address.encode())]  # type: ignore[list-item]
    else:
        candidates = resolve(address, socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, name in candidates:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.connect(name)
        except OSError as error:
            connection.close()
            failure = failure or error
        else:
            return connection
    raise connect_failed(address, failure)


def connect_failed(address: UnixAddress | InetAddress, error: OSError | None) -> ChardevError:
    """Return the one error for a connection that did not come about."""
    target = address.path if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"
    reason = "no address found" if error is None else os.strerror(error.errno or errno.EIO)
    return ChardevError(f"Failed to connect to '{target}': {reason}")


def is_live(address: UnixAddress) -> bool:
    """Say whether a process has the socket at `address` open.

    A connection attempt of the wrong type tells: the kernel finds the owner and refuses the type, or finds none.  The
    owner does not notice.  Raises ChardevError for an impossible address.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address.encode())
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR)
        return True


@record
class Listener:
    """Bound and listening sockets of one server address."""

    sockets: list[socket.socket]
    unlink: str | None = None
    """The socket's file, to be removed with it."""
    identity: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """Stop listening and remove the socket's file, unless somebody else's has replaced it."""
        path, self.unlink = self.unlink, None
        if path is not None:
            # While the socket is open, no other file has the number of its file.
            with suppress(OSError):  # removed already
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == self.identity:
                    os.unlink(path)
        for listening in self.sockets:
            listening.close()
        self.sockets.clear()


def listen(address: UnixAddress | InetAddress) -> Listener:
    """Bind and listen; raises ChardevError."""
    if isinstance(address, UnixAddress):
        return _listen_unix(address)
    if address.keep_alive:
        raise ChardevError("keep-alive option is not supported for passive sockets")
    return _listen_inet(address)


def _listen_unix(address: UnixAddress) -> Listener:
    name = address.encode()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listening.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _remove_stale(address):
                raise
            listening.bind(name)
        if address.abstract:
            listening.listen(BACKLOG)
            return Listener([listening])
        # Nobody can connect before listen(), so nobody can before the permissions are tight.
        path = os.path.abspath(address.path)
        os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
        found = os.lstat(path)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ChardevError(f"Failed to bind socket to {address.path}: {error.strerror}") from error
    return Listener([listening], path, (found.st_dev, found.st_ino))


def _remove_stale(address: UnixAddress) -> bool:
    """Remove a socket's file that no process listens on; false where it is no socket or is in use."""
    if address.abstract or not stat.S_ISSOCK(os.lstat(address.path).st_mode) or is_live(address):
        return False
    os.unlink(address.path)
    return True


def _listen_inet(address: InetAddress) -> Listener:
    candidates = resolve(address, socket.SOCK_STREAM, passive=True)
    first = int(candidates[0][1][1])
    last = first if address.to is None else address.to
    if not first <= last <= 0xFFFF:
        raise ChardevError(f"chardev: socket: 'to' port {last} must be between the first port, {first}, and 65535")
    # An IPv6 address alone, "::" above all, takes what comes by IPv4 as well unless the caller speaks of families.
    both = address.ipv4 == address.ipv6 and all(family == socket.AF_INET6 for family, _ in candidates)
    for port in range(first, last + 1):
        try:
            return Listener(_listen_all(candidates, port, both=both))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ChardevError(f"Failed to bind socket: {error.strerror}") from error
    raise ChardevError("Failed to find an available port: Address already in use")


def _listen_all(candidates: list[Resolved], port: int, *, both: bool) -> list[socket.socket]:
    """Listen at every candidate address; one family that the host lacks does not matter while another works.

    `both` lets IPv6 sockets have connections by IPv4 too.
    """
    opened: list[socket.socket] = []
    failure: OSError | None = None
    for family, name in candidates:
        listening: socket.socket | None = None
        try:
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            listening.bind((name[0], port, *name[2:]))
            listening.listen(BACKLOG)
        except OSError as error:
            if listening is not None:
                listening.close()
            failure = failure or error
            if error.errno == errno.EADDRINUSE:
                break
        else:
            opened.append(listening)
            port = port or listening.getsockname()[1]
    if opened and (failure is None or failure.errno != errno.EADDRINUSE):
        return opened
    for listening in opened:
        listening.close()
    raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
