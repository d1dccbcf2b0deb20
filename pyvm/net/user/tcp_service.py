"""All TCP of one network: the table of connections, and how those begin, from the guest and from forwards."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.errors import ConfigError
from pyvm.net import packets as p
from pyvm.net.user.config import HostForward, address_text
from pyvm.net.user.host_end import SocketEnd
from pyvm.net.user.limits import descriptor_limit
from pyvm.net.user.stack import UserNet
from pyvm.net.user.tcp import TcpConnection, TcpState
from pyvm.net.user.translation import Translation, family_of

if TYPE_CHECKING:
    from pyvm.net.user.host_end import HostEnd

_CONNECTIONS_LIMIT = 2048
_BACKLOG = 64
_ACCEPT_BATCH = 16
_ACCEPT_RETRY_SECONDS = 1.0

Place = tuple[bytes, int]
"""An address and a port."""
Opener = Callable[[TcpConnection], "HostEnd | None"]
"""Makes the host's end of a guest forward; None where it is in use."""


class TcpService:
    """The connections, by the guest's place and the other one."""

    def __init__(self, net: UserNet, translation: Translation) -> None:
        self._net = net
        self._translation = translation
        self._connections: dict[tuple[Place, Place], TcpConnection] = {}
        self._connecting: dict[TcpConnection, SocketEnd] = {}
        self._listeners: list[tuple[HostForward, socket.socket]] = []
        self._limit = min(_CONNECTIONS_LIMIT, descriptor_limit() // 2)
        self._owing: list[TcpConnection] = []
        self._blocked: dict[TcpConnection, None] = {}
        self.openers: dict[Place, Opener] = {}
        """What makes the host's end of connections to places inside the network."""
        net.protocols[p.PROTO_TCP] = self.receive
        net.on_room.append(self._room)
        net.on_batch_end.append(self._acknowledge)
        net.add_closer(self.close)

    def close(self) -> None:
        """Close all sockets."""
        for _, listener in self._listeners:
            self._net.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections.values()):
            connection.close()

    # ---- For connections

    @property
    def net(self) -> UserNet:
        """The network."""
        return self._net

    def owe(self, connection: TcpConnection) -> None:
        """Let a connection acknowledge when the guest has sent all for now."""
        self._owing.append(connection)

    def _acknowledge(self) -> None:
        owing, self._owing = self._owing, []
        for connection in owing:
            connection.acknowledge()

    def wait_for_room(self, connection: TcpConnection) -> None:
        """Let a connection go on when the guest takes frames again."""
        self._blocked[connection] = None

    def _room(self) -> None:
        blocked, self._blocked = self._blocked, {}
        for connection in blocked:
            connection.pump()

    def forget(self, connection: TcpConnection) -> None:
        """A connection has ended."""
        key = (connection.guest, connection.other)
        if self._connections.get(key) is connection:
            del self._connections[key]
        self._blocked.pop(connection, None)
        pending = self._connecting.pop(connection, None)
        if pending is not None:
            self._net.loop.remove_writer(pending.fd)
            pending.close(abort=True)

    # ---- From the guest

    def receive(self, source: bytes, destination: bytes, payload: memoryview, checked: bool) -> None:
        """Take a segment of a guest."""
        if len(payload) < p.TCP.size:
            return
        port, target, sequence, acknowledged, length, flags, window, _, _ = p.TCP.unpack_from(payload)
        start = (length >> 4) * 4
        if not p.TCP.size <= start <= len(payload):
            return
        if not checked:
            total = p.pseudo_sum(source, destination, p.PROTO_TCP, len(payload)) + p.words_sum(payload)
            if total % 0xFFFF:
                return
        guest, other = (source, port), (destination, target)
        connection = self._connections.get((guest, other))
        if connection is not None and connection.state is TcpState.TIME_WAIT and flags & p.TCP_SYN:
            connection.close()
            connection = None
        rest = payload[p.TCP.size :]
        options = start - p.TCP.size
        if connection is not None:
            connection.segment(flags, sequence, acknowledged, window, rest, options)
        elif flags & (p.TCP_SYN | p.TCP_ACK | p.TCP_RST) == p.TCP_SYN:
            self._open(guest, other, sequence, rest[:options], window, payload)
        elif not flags & p.TCP_RST:
            self._reject(guest, other, flags, sequence, acknowledged, len(payload) - start)

    def _reject(self, guest: Place, other: Place, flags: int, sequence: int, acknowledged: int, length: int) -> None:
        """Reset what is no connection."""
        if flags & p.TCP_ACK:
            fields = (acknowledged, 0, p.TCP.size << 2, p.TCP_RST)
        else:
            behind = sequence + length + bool(flags & p.TCP_SYN) + bool(flags & p.TCP_FIN)
            fields = (0, behind & 0xFFFFFFFF, p.TCP.size << 2, p.TCP_RST | p.TCP_ACK)
        header = p.TCP.pack(other[1], guest[1], *fields, 0, 0, 0)
        total = p.pseudo_sum(other[0], guest[0], p.PROTO_TCP, len(header)) + p.words_sum(header)
        header = p.TCP.pack(other[1], guest[1], *fields, 0, p.checksum(total), 0)
        self._net.send_ip(other[0], guest[0], p.PROTO_TCP, header)

    def _open(
        self, guest: Place, other: Place, sequence: int, options: memoryview, window: int, segment: memoryview
    ) -> None:
        """The guest asks for a connection."""
        opener = self.openers.get(other)
        host = None if self._net.config.restrict else self._translation.to_host(other[0])
        if not self._net.config.contains(guest[0]) or (opener is None and host is None) or not other[1]:
            self._reject(guest, other, p.TCP_SYN, sequence, 0, 0)
            return
        if len(self._connections) >= self._limit and not self._make_room():
            self._reject(guest, other, p.TCP_SYN, sequence, 0, 0)
            return
        connection = TcpConnection(self, guest, other, secrets.randbits(32))
        self._connections[guest, other] = connection
        connection.open_passive(sequence, options, window)
        if opener is not None:
            end = opener(connection)
            if end is None:
                connection.refuse()
            else:
                connection.host_connected(end)
            return
        assert host is not None
        self._connect(connection, host, bytes(segment[:8]))

    def _make_room(self) -> bool:
        """End a connection that only waits; return whether there was one."""
        for connection in self._connections.values():
            if connection.state is TcpState.TIME_WAIT:
                connection.close()
                return True
        return False

    def _connect(self, connection: TcpConnection, host: str, start: bytes) -> None:
        try:
            made = socket.socket(family_of(host), socket.SOCK_STREAM)
        except OSError:
            connection.refuse()
            return
        end = self._make_end(connection, made)
        self._connecting[connection] = end
        try:
            code = made.connect_ex((host, connection.other[1]))
        except OSError as error:
            code = error.errno or errno.EINVAL
        if code == errno.EINPROGRESS:
            self._net.loop.add_writer(made.fileno(), self._connected, connection, start)
        else:
            self._connect_ended(connection, code, start)

    def _make_end(self, connection: TcpConnection, made: socket.socket) -> SocketEnd:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return SocketEnd(self._net.loop, made, connection.host_readable, connection.host_writable)

    def _connected(self, connection: TcpConnection, start: bytes) -> None:
        end = self._connecting.get(connection)
        if end is not None:
            self._net.loop.remove_writer(end.fd)
            self._connect_ended(connection, end.error, start)
            self._net.send_end()

    def _connect_ended(self, connection: TcpConnection, code: int, start: bytes) -> None:
        if code == 0:
            connection.host_connected(self._connecting.pop(connection))
        elif code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            unreachable = p.UNREACHABLE_NET if code == errno.ENETUNREACH else p.UNREACHABLE_HOST
            guest, other = connection.guest, connection.other
            connection.close()
            self._net.unreachable(unreachable, guest[0], other[0], p.PROTO_TCP, start)
        else:
            connection.refuse()

    # ---- Forwards

    def add_forward(self, forward: HostForward) -> None:
        """Listen where a forward says; raises ConfigError."""
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address_text(forward.address), forward.port))
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                raise
        except OSError:
            raise ConfigError(f"Could not set up host forwarding rule '{forward.text}'") from None
        self._listeners.append((forward, listener))
        self._net.loop.add_reader(listener.fileno(), self._accept, forward, listener)

    def remove_forward(self, address: bytes, port: int) -> bool:
        """Listen no more; return whether there was such a forward.  Connections that there are go on."""
        for item in self._listeners:
            forward, listener = item
            if (forward.address, listener.getsockname()[1]) == (address, port):
                self._listeners.remove(item)
                self._net.loop.remove_reader(listener.fileno())
                listener.close()
                return True
        return False

    def _accept(self, forward: HostForward, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                made, (host, port) = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError:
                # Out of descriptors: those who wait, wait on.
                self._net.loop.remove_reader(listener.fileno())
                self._net.loop.call_later(_ACCEPT_RETRY_SECONDS, self._accept_again, forward, listener)
                break
            self._accepted(forward, made, (self._translation.to_guest(host), port))
        self._net.send_end()

    def _accept_again(self, forward: HostForward, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._net.loop.add_reader(listener.fileno(), self._accept, forward, listener)

    def _accepted(self, forward: HostForward, made: socket.socket, other: Place) -> None:
        guest = (forward.guest, forward.guest_port)
        old = self._connections.get((guest, other))
        if old is not None and old.state is TcpState.TIME_WAIT:
            old.close()
            old = None
        if old is not None or len(self._connections) >= self._limit:
            made.close()
            return
        connection = TcpConnection(self, guest, other, secrets.randbits(32))
        self._connections[guest, other] = connection
        connection.open_active(self._make_end(connection, made))

    def rows(self) -> list[tuple[str, int, tuple[str, int], Place, int, int]]:
        """Return what `info usernet` shows: kind, descriptor, source, destination, and bytes that wait."""
        rows: list[tuple[str, int, tuple[str, int], Place, int, int]] = []
        for forward, listener in self._listeners:
            host, port = listener.getsockname()
            shown = ("*" if host == "0.0.0.0" else host, port)
            rows.append(("TCP[HOST_FORWARD]", listener.fileno(), shown, (forward.guest, forward.guest_port), 0, 0))
        for connection in self._connections.values():
            pending = self._connecting.get(connection)
            end = connection.host or pending
            source = (address_text(connection.guest[0]), connection.guest[1])
            kind = f"TCP[{connection.state.value}]"
            rows.append((kind, -1 if end is None else end.fd, source, connection.other, *connection.waiting))
        return rows
