"""Echo requests to hosts: the kernel sends them, where it lets ordinary users do that, and brings the replies.

One relay serves both versions; what a guest asks by IPv6 is asked by IPv6.
"""

from __future__ import annotations

import socket

from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.user.stack import UserNet
from pyvm.net.user.translation import Translation

_SESSIONS_LIMIT = 64
_LIFETIME = 10 * NANOSECONDS
_LARGEST = 65535
_BATCH = 16

# Both versions' messages have an ID and a sequence number behind type, code and checksum.
_REQUESTS = {4: p.ICMP_ECHO, 16: p6.ECHO}
_REPLIES = {4: p.ICMP_ECHO_REPLY, 16: p6.ECHO_REPLY}


def reply(source: bytes, destination: bytes, identity: int, sequence: int, data: bytes) -> tuple[int, bytes]:
    """Return protocol and message of the answer to a request, from `source` to `destination`."""
    if len(source) == p6.ADDRESS_LENGTH:
        body = identity.to_bytes(2, "big") + sequence.to_bytes(2, "big") + data
        return p6.PROTO_ICMPV6, p6.icmp_message(source, destination, p6.ECHO_REPLY, 0, body)
    return p.PROTO_ICMP, p.icmp_message(p.ICMP_ECHO_REPLY, 0, identity, sequence, data)


class _Session:
    """A ping socket: one guest's requests with one ID to one host."""

    def __init__(self, guest: bytes, destination: bytes, identity: int, connection: socket.socket) -> None:
        self.guest = guest
        self.destination = destination
        self.identity = identity
        self.socket = connection
        self.deadline = 0


class EchoRelay:
    """The sessions of one network."""

    def __init__(self, net: UserNet, translation: Translation) -> None:
        self._net = net
        self._translation = translation
        self._sessions: dict[tuple[bytes, bytes, int], _Session] = {}
        self._timer = net.clock.timer(self._sweep)
        net.add_closer(self.close)

    def close(self) -> None:
        """Close all sockets."""
        self._timer.cancel()
        while self._sessions:
            self._close(self._sessions.popitem()[1])

    def _close(self, session: _Session) -> None:
        self._net.loop.remove_reader(session.socket.fileno())
        session.socket.close()

    def request(self, source: bytes, destination: bytes, message: bytes) -> None:
        """Take a whole request of a guest: answer it, or have it answered by whom it is for."""
        kind, _, _, identity, sequence = p.ICMP.unpack_from(message)
        if kind != _REQUESTS[len(source)]:
            return
        if destination in self._net.addresses:
            protocol, answer = reply(destination, source, identity, sequence, message[p.ICMP.size :])
            self._net.send_ip(destination, source, protocol, answer)
        elif not self._net.config.restrict and self._net.config.contains(source):
            self._to_host(source, destination, identity, message)

    def _to_host(self, source: bytes, destination: bytes, identity: int, message: bytes) -> None:
        host = self._translation.to_host(destination)
        if host is None:
            return
        session = self._session(source, destination, identity)
        protocol = p6.PROTO_ICMPV6 if len(source) == p6.ADDRESS_LENGTH else p.PROTO_ICMP
        try:
            if session is None:
                raise PermissionError
            session.socket.sendto(message, (host, 0))
            session.deadline = self._net.clock.now() + _LIFETIME
        except (BlockingIOError, InterruptedError):
            return
        except PermissionError:
            self._net.unreachable(p.UNREACHABLE_PROHIBITED, source, destination, protocol, message)
        except OSError:
            self._net.unreachable(p.UNREACHABLE_NET, source, destination, protocol, message)

    def _session(self, source: bytes, destination: bytes, identity: int) -> _Session | None:
        key = (source, destination, identity)
        session = self._sessions.get(key)
        if session is not None:
            return session
        if len(self._sessions) >= _SESSIONS_LIMIT:
            self._close(self._sessions.pop(next(iter(self._sessions))))
        try:
            if len(source) == p6.ADDRESS_LENGTH:
                made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
            else:
                made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        except OSError:
            return None  # the host does not let this user ping
        made.setblocking(False)
        session = self._sessions[key] = _Session(source, destination, identity, made)
        self._net.loop.add_reader(made.fileno(), self._readable, session)
        if self._timer.deadline is None:
            self._timer.arm(self._net.clock.now() + _LIFETIME)
        return session

    def _readable(self, session: _Session) -> None:
        for _ in range(_BATCH):
            try:
                data = session.socket.recv(_LARGEST)
            except OSError:
                break
            if len(data) < p.ICMP.size or data[0] != _REPLIES[len(session.guest)]:
                continue
            # The host has put an ID of its own in the request.
            _, _, _, _, sequence = p.ICMP.unpack_from(data)
            destination, guest = session.destination, session.guest
            protocol, answer = reply(destination, guest, session.identity, sequence, data[p.ICMP.size :])
            self._net.send_ip(destination, guest, protocol, answer)
        self._net.send_end()

    def _sweep(self) -> None:
        now = self._net.clock.now()
        for key in [key for key, session in self._sessions.items() if session.deadline <= now]:
            self._close(self._sessions.pop(key))
        if self._sessions:
            self._timer.arm(now + _LIFETIME)
