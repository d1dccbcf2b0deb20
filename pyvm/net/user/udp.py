"""UDP through the host: a socket for each port of a guest, and services of the network itself.

A guest's port is reached from hosts that the guest has sent to from there, and from others only by a forward.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from pyvm.clock import NANOSECONDS
from pyvm.errors import ConfigError
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.user.config import ROUTER6, HostForward, address_text
from pyvm.net.user.limits import descriptor_limit
from pyvm.net.user.stack import UserNet
from pyvm.net.user.translation import Translation, family_of

_BINDINGS_LIMIT = 512
_HOSTS_LIMIT = 64
_IDLE = 240 * NANOSECONDS
_SWEEP = 30 * NANOSECONDS
_BATCH = 32
_LARGEST = 65535
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ALL_ON_THE_LINK = (p6.ALL_NODES, p6.ALL_DHCP_AGENTS)

Guest = tuple[bytes, int]
"""A guest's address and port."""
Handler = Callable[[bytes, int, bytes, bytes], None]
"""Takes a datagram for the network itself: the guest's address and port, the destination, the payload."""


class _Binding:
    """A socket of the host that stands for a port of a guest."""

    def __init__(self, guest: Guest, connection: socket.socket, forward: HostForward | None = None) -> None:
        self.guest = guest
        self.socket = connection
        self.forward = forward
        self.deadline = 0
        self.known: dict[str, bytes] = {}
        """Hosts that were sent to, and how the guest knows them."""
        self.known_ports: dict[tuple[str, int], bytes] = {}
        self.last: tuple[bytes, bytes, bytes] | None = None
        """Source, destination and start of the datagram that was sent last."""


class UdpService:
    """All UDP of one network."""

    def __init__(self, net: UserNet, translation: Translation) -> None:
        self._net = net
        self._translation = translation
        self._bindings: dict[tuple[Guest, int], _Binding] = {}
        """By the guest's place, and the family of the hosts that it sends to."""
        self._forwards: list[_Binding] = []
        self._limit = min(_BINDINGS_LIMIT, descriptor_limit() // 8)
        self._timer = net.clock.timer(self._sweep)
        self.handlers: dict[int, Handler] = {}
        """Services by their port."""
        net.protocols[p.PROTO_UDP] = self.receive
        net.add_closer(self.close)

    def close(self) -> None:
        """Close all sockets."""
        self._timer.cancel()
        for binding in [*self._bindings.values(), *self._forwards]:
            self._close(binding)
        self._bindings.clear()
        self._forwards.clear()

    def _close(self, binding: _Binding) -> None:
        self._net.loop.remove_reader(binding.socket.fileno())
        binding.socket.close()

    # ---- From the guest

    def receive(self, source: bytes, destination: bytes, payload: memoryview, checked: bool) -> None:
        """Take a datagram of a guest."""
        if len(payload) < p.UDP.size:
            return
        port, target, length, checksum = p.UDP.unpack_from(payload)
        if not p.UDP.size <= length <= len(payload):
            return
        datagram = payload[:length]
        if not checksum and len(source) == p6.ADDRESS_LENGTH:
            return
        if checksum and not checked:
            total = p.pseudo_sum(source, destination, p.PROTO_UDP, length) + p.words_sum(datagram)
            if total % 0xFFFF:
                return
        data = bytes(datagram[p.UDP.size :])
        handler = self.handlers.get(target)
        if handler is not None and self._is_service(destination):
            handler(source, port, destination, data)
            return
        if self._net.config.contains(source):
            self._to_host((source, port), destination, target, data)

    def _is_service(self, destination: bytes) -> bool:
        config = self._net.config
        if len(destination) == p6.ADDRESS_LENGTH:
            return destination in (config.host6, ROUTER6, *_ALL_ON_THE_LINK)
        return destination in (config.host, b"\xff\xff\xff\xff", config.broadcast)

    def _to_host(self, guest: Guest, destination: bytes, port: int, data: bytes) -> None:
        host = self._translation.to_host(destination)
        if host is None or not port:
            return
        binding = self._forward_to(guest, host, port)
        if binding is None:
            if self._net.config.restrict:
                return
            binding = self._binding(guest, family_of(host))
        if binding is None:
            return
        binding.deadline = self._net.clock.now() + _IDLE
        if len(binding.known) >= _HOSTS_LIMIT and host not in binding.known:
            del binding.known[next(iter(binding.known))]
            binding.known_ports.clear()
        binding.known[host] = binding.known_ports[host, port] = destination
        binding.last = (guest[0], destination, p.UDP.pack(guest[1], port, p.UDP.size + len(data), 0))
        try:
            binding.socket.sendto(data, (host, port))
        except (BlockingIOError, InterruptedError):
            pass  # the host is busy: lost, as datagrams are
        except OSError as error:
            self._failed(binding, error)

    def _forward_to(self, guest: Guest, host: str, port: int) -> _Binding | None:
        """Return the forward through which a host has sent to this port of a guest."""
        for binding in self._forwards:
            if binding.guest == guest and (host, port) in binding.known_ports:
                return binding
        return None

    def _binding(self, guest: Guest, family: int) -> _Binding | None:
        binding = self._bindings.get((guest, family))
        if binding is not None:
            return binding
        if len(self._bindings) >= self._limit:
            oldest = min(self._bindings, key=lambda key: self._bindings[key].deadline)
            self._close(self._bindings.pop(oldest))
        try:
            made = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            return None  # the host has no more: the datagram is lost
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        binding = self._bindings[guest, family] = _Binding(guest, made)
        self._net.loop.add_reader(made.fileno(), self._readable, binding)
        if self._timer.deadline is None:
            self._timer.arm(self._net.clock.now() + _SWEEP)
        return binding

    def _sweep(self) -> None:
        now = self._net.clock.now()
        for key in [key for key, binding in self._bindings.items() if binding.deadline <= now]:
            self._close(self._bindings.pop(key))
        if self._bindings:
            self._timer.arm(now + _SWEEP)

    # ---- From the host

    def _readable(self, binding: _Binding) -> None:
        for _ in range(_BATCH):
            if binding.socket.fileno() < 0:
                return
            try:
                data, (host, port, *_) = binding.socket.recvfrom(_LARGEST)
            except (BlockingIOError, InterruptedError):
                self._drain_errors(binding)  # an error that sending has told of already wakes up readers, too
                break
            except OSError as error:
                self._drain_errors(binding)
                self._failed(binding, error)
                break
            source = self._known_as(binding, host, port)
            if source is not None:
                self.send(source, port, binding.guest, data)
        self._net.send_end()

    def _known_as(self, binding: _Binding, host: str, port: int) -> bytes | None:
        """Return what the guest knows a sender by; None where it is nobody that it has sent to."""
        known = binding.known_ports.get((host, port)) or binding.known.get(host)
        if known is None and binding.forward is not None:
            known = self._translation.to_guest(host)
            if len(binding.known_ports) >= _HOSTS_LIMIT:
                del binding.known_ports[next(iter(binding.known_ports))]
            binding.known_ports[host, port] = known
        return known

    def _drain_errors(self, binding: _Binding) -> None:
        for _ in range(_BATCH):
            try:
                binding.socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return

    def _failed(self, binding: _Binding, error: OSError) -> None:
        codes = {
            errno.ECONNREFUSED: p.UNREACHABLE_PORT,
            errno.EHOSTUNREACH: p.UNREACHABLE_HOST,
            errno.ENETUNREACH: p.UNREACHABLE_NET,
        }
        if binding.last is not None and error.errno in codes:
            source, destination, start = binding.last
            self._net.unreachable(codes[error.errno], source, destination, p.PROTO_UDP, start)

    def send(self, source: bytes, port: int, guest: Guest, data: bytes) -> None:
        """Send a datagram to a guest."""
        datagram = p.udp_datagram(source, port, guest[0], guest[1], data)
        if len(datagram) <= _LARGEST - p.IPV4.size:
            self._net.send_ip(source, guest[0], p.PROTO_UDP, datagram)

    # ---- Forwards

    def add_forward(self, forward: HostForward) -> None:
        """Listen where a forward says; raises ConfigError."""
        try:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                made.setblocking(False)
                made.bind((address_text(forward.address), forward.port))
            except BaseException:
                made.close()
                raise
        except OSError:
            raise ConfigError(f"Could not set up host forwarding rule '{forward.text}'") from None
        binding = _Binding((forward.guest, forward.guest_port), made, forward)
        self._forwards.append(binding)
        self._net.loop.add_reader(made.fileno(), self._readable, binding)

    def remove_forward(self, address: bytes, port: int) -> bool:
        """Listen no more; return whether there was such a forward."""
        for binding in self._forwards:
            bound = binding.socket.getsockname()[1]
            if binding.forward is not None and (binding.forward.address, bound) == (address, port):
                self._forwards.remove(binding)
                self._close(binding)
                return True
        return False

    def rows(self) -> list[tuple[str, int, tuple[str, int], Guest, int, int]]:
        """Return what `info usernet` shows: kind, descriptor, source, destination, and bytes that wait."""
        rows: list[tuple[str, int, tuple[str, int], Guest, int, int]] = []
        for binding in self._forwards:
            rows.append(("UDP[HOST_FORWARD]", binding.socket.fileno(), _bound(binding), binding.guest, 0, 0))
        for binding in self._bindings.values():
            source = (address_text(binding.guest[0]), binding.guest[1])
            for (_, port), known in list(binding.known_ports.items())[-1:]:
                seconds = max(binding.deadline - self._net.clock.now(), 0) // NANOSECONDS
                rows.append((f"UDP[{seconds} sec]", binding.socket.fileno(), source, (known, port), 0, 0))
        return rows


def _bound(binding: _Binding) -> tuple[str, int]:
    host, port = binding.socket.getsockname()
    return ("*" if host == "0.0.0.0" else host), port
