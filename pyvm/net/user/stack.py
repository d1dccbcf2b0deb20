"""The network that the back end `user` shows to a guest: Ethernet, ARP, IPv4 and IPv6, below the services that use it.

Frames come from the guest by :meth:`UserNet.receive` on whichever thread runs the guest, and from host sockets on the
main loop; the machine lock is held in both cases.  While the guest has no room for frames, connections keep their data
on the host's side; single datagrams wait in a short queue, as in any router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pyvm.clock import Clock
from pyvm.mainloop import MainLoop
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.client import ETHERNET_HEADER, ETHERNET_MTU, NEEDS_CSUM, Frame, NetClient, Offload
from pyvm.net.user.config import ANY_ADDRESS, ROUTER6, UserConfig, address_text
from pyvm.net.user.fragments import LARGEST, Reassembler

_MAC_PREFIX = b"\x52\x55"
_MAC_PREFIX6 = b"\x52\x56"
_NEIGHBOURS_LIMIT = 256
_WAITING_LIMIT = 512
"""Most frames that wait for the guest; more are lost."""
_UNRESOLVED_LIMIT = 16
"""Most packets that wait for one address to be resolved."""
_QUOTED = p.IPV4.size + 8
"""How much of a packet an ICMP error quotes, behind the header."""
_QUOTED6 = p6.MINIMUM_MTU - p6.IPV6.size - 8
_EXTENSIONS_LIMIT = 8
_EXTENSIONS = (p6.HOP_BY_HOP, p6.ROUTING, p6.DESTINATION_OPTIONS)


class UserNet(NetClient):
    """The back end: the guest's end of the link to everything.

    `protocols` are filled in by the services: what takes the payload of a packet.
    """

    offloads = True

    def __init__(self, name: str, config: UserConfig, loop: MainLoop, clock: Clock) -> None:
        super().__init__(name, "user")
        self.config = config
        self.loop = loop
        self.clock = clock
        self.info = f"net={address_text(config.net)},restrict={'on' if config.restrict else 'off'}"
        self.mac = _MAC_PREFIX + config.host
        self.mac6 = mac6(ROUTER6)
        self.addresses: set[bytes] = set()
        """Addresses that belong to this side."""
        if config.ipv4:
            self.addresses |= {config.host, config.dns, *(forward.address for forward in config.guest_forwards)}
        if config.ipv6:
            self.addresses |= {config.host6, config.dns6, ROUTER6}
        self.neighbours: dict[bytes, bytes] = {}
        """The guests' MAC addresses by IP address."""
        self.protocols: dict[int, Callable[[bytes, bytes, memoryview, bool], None]] = {}
        """By number, of both versions: source, destination, payload, and whether the checksum is known to be right."""
        self.on_room: list[Callable[[], None]] = []
        """Called when the guest takes frames again."""
        self.on_batch_end: list[Callable[[], None]] = []
        self._waiting: deque[tuple[Frame, Offload | None]] = deque()
        self._unresolved: dict[bytes, list[bytes]] = {}
        self._reassembler = Reassembler(clock)
        self._identity = 0
        self._closers: list[Callable[[], None]] = []

    def add_closer(self, action: Callable[[], None]) -> None:
        """Have `action` called when the network goes away."""
        self._closers.append(action)

    def close(self) -> None:
        """Let go all sockets."""
        while self._closers:
            self._closers.pop()()

    # ---- To the guest

    @property
    def congested(self) -> bool:
        """Whether the guest has no room for frames now."""
        return bool(self._waiting)

    def transmit(self, frame: Frame, offload: Offload | None = None) -> None:
        """Send a frame to the guest, now or when it has room; lost where too many wait."""
        if not self._waiting and self.send(frame, offload):
            return
        if len(self._waiting) < _WAITING_LIMIT:
            self._waiting.append((frame, offload))

    def resume(self) -> None:
        """Send what waits, then let connections go on."""
        waiting = self._waiting
        while waiting and self.send(*waiting[0]):
            waiting.popleft()
        if not waiting:
            for action in self.on_room:
                action()

    def peer_changed(self) -> None:
        """What waits was for another peer."""
        self._waiting.clear()

    def batch_end(self) -> None:
        """The guest has sent all for now: acknowledge it."""
        for action in self.on_batch_end:
            action()

    def next_identity(self) -> int:
        """Return a new IP identification."""
        self._identity = (self._identity + 1) & 0xFFFF
        return self._identity

    def send_ip(self, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        """Send a packet, in fragments where it is longer than a frame."""
        if len(source) == p6.ADDRESS_LENGTH:
            self._send_ip6(source, destination, protocol, payload)
            return
        room = (ETHERNET_MTU - p.IPV4.size) & ~7
        identity = self.next_identity()
        if len(payload) <= ETHERNET_MTU - p.IPV4.size:
            header = p.ipv4_header(source, destination, protocol, len(payload), identity)
            self.send_packet(destination, header + payload)
            return
        for start in range(0, len(payload), room):
            part = payload[start : start + room]
            more = p.IP_MORE_FRAGMENTS if start + room < len(payload) else 0
            header = p.ipv4_header(source, destination, protocol, len(part), identity, more | start // 8)
            self.send_packet(destination, header + part)

    def _send_ip6(self, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        if len(payload) <= ETHERNET_MTU - p6.IPV6.size:
            self.send_packet(destination, p6.ipv6_header(source, destination, protocol, len(payload)) + payload)
            return
        room = (ETHERNET_MTU - p6.IPV6.size - p6.FRAGMENT_HEADER.size) & ~7
        identity = self.next_identity()
        for start in range(0, len(payload), room):
            part = payload[start : start + room]
            more = int(start + room < len(payload))
            head = p6.FRAGMENT_HEADER.pack(protocol, 0, start | more, identity)
            header = p6.ipv6_header(source, destination, p6.FRAGMENT, len(head) + len(part))
            self.send_packet(destination, header + head + part)

    def headers(self, mac: bytes, source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
        """Return the headers of a frame with a packet that must not be cut, for a payload of `length` bytes."""
        if len(source) == p6.ADDRESS_LENGTH:
            ethernet = p.ETHERNET.pack(mac, self.mac6, p.ETHERTYPE_IPV6)
            return ethernet + p6.ipv6_header(source, destination, protocol, length)
        header = p.ipv4_header(source, destination, protocol, length, self.next_identity(), p.IP_DONT_FRAGMENT)
        return p.ETHERNET.pack(mac, self.mac, p.ETHERTYPE_IPV4) + header

    def send_packet(self, destination: bytes, packet: bytes) -> None:
        """Send an IP packet to a guest, once its MAC address is known."""
        mac = self.neighbour(destination)
        if mac is not None:
            if len(destination) == p6.ADDRESS_LENGTH:
                self.transmit(p.ETHERNET.pack(mac, self.mac6, p.ETHERTYPE_IPV6) + packet)
            else:
                self.transmit(p.ETHERNET.pack(mac, self.mac, p.ETHERTYPE_IPV4) + packet)
            return
        waiting = self._unresolved.setdefault(destination, [])
        if len(self._unresolved) > _UNRESOLVED_LIMIT:
            del self._unresolved[next(iter(self._unresolved))]
        if len(waiting) < _UNRESOLVED_LIMIT:
            waiting.append(packet)

    def neighbour(self, address: bytes) -> bytes | None:
        """Return a guest's MAC address; where it is not known the guest is asked."""
        if address in (b"\xff\xff\xff\xff", self.config.broadcast):
            return p.BROADCAST_MAC
        if is_group(address):
            return p6.multicast_mac(address)
        mac = self.neighbours.get(address)
        if mac is None:
            self._ask(address)
        return mac

    def _ask(self, address: bytes) -> None:
        if len(address) == p6.ADDRESS_LENGTH:
            group = p6.solicited_node(address)
            body = bytes(4) + address + p6.mac_option(p6.OPTION_SOURCE_MAC, self.mac6)
            self.send_neighbour_message(ROUTER6, group, p6.multicast_mac(group), p6.NEIGHBOUR_SOLICITATION, body)
            return
        request = p.arp_packet(p.ARP_REQUEST, (self.mac, self.config.host), (bytes(6), address))
        self.transmit(p.ETHERNET.pack(p.BROADCAST_MAC, self.mac, p.ETHERTYPE_ARP) + request)

    def learn(self, address: bytes, mac: bytes) -> None:
        """Take down a guest's MAC address, and send what waited for it."""
        nobodys = address in (ANY_ADDRESS, p6.UNSPECIFIED) or address in self.addresses or mac[0] & 1
        if nobodys or not self.config.contains(address):
            return
        if address not in self.neighbours and len(self.neighbours) >= _NEIGHBOURS_LIMIT:
            del self.neighbours[next(iter(self.neighbours))]
        self.neighbours[address] = mac
        for packet in self._unresolved.pop(address, ()):
            self.send_packet(address, packet)

    def send_neighbour_message(self, source: bytes, destination: bytes, mac: bytes, kind: int, body: bytes) -> None:
        """Send a message of IPv6 neighbour discovery."""
        message = p6.icmp_message(source, destination, kind, 0, body)
        limit = p6.NEIGHBOUR_HOP_LIMIT
        header = p6.ipv6_header(source, destination, p6.PROTO_ICMPV6, len(message), limit)
        self.transmit(p.ETHERNET.pack(mac, mac6(source), p.ETHERTYPE_IPV6) + header + message)

    # ---- From the guest

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame of the guest; whatever makes no sense is dropped."""
        if len(frame) < ETHERNET_HEADER:
            return True
        kind = frame[12] << 8 | frame[13]
        config = self.config
        checked = bool(offload is not None and offload.flags & NEEDS_CSUM)
        if kind == p.ETHERTYPE_IPV4 and config.ipv4:
            self._ipv4(memoryview(frame), checked)
        elif kind == p.ETHERTYPE_IPV6 and config.ipv6:
            self._ipv6(memoryview(frame), checked)
        elif kind == p.ETHERTYPE_ARP and config.ipv4:
            self._arp(memoryview(frame)[ETHERNET_HEADER:])
        return True

    def _arp(self, body: memoryview) -> None:
        if len(body) < p.ARP.size:
            return
        *prefix, operation, sender_mac, sender_ip, _, target_ip = p.ARP.unpack_from(body)
        if tuple(prefix) != p.ARP_PREFIX:
            return
        self.learn(sender_ip, sender_mac)
        if operation == p.ARP_REQUEST and target_ip in self.addresses:
            reply = p.arp_packet(p.ARP_REPLY, (_MAC_PREFIX + target_ip, target_ip), (sender_mac, sender_ip))
            self.transmit(p.ETHERNET.pack(sender_mac, _MAC_PREFIX + target_ip, p.ETHERTYPE_ARP) + reply)

    def _ipv4(self, frame: memoryview, checked: bool) -> None:
        packet = frame[ETHERNET_HEADER:]
        if len(packet) < p.IPV4.size:
            return
        version, _, total, _, fragment, _, protocol, _, source, destination = p.IPV4.unpack_from(packet)
        header = (version & 0x0F) * 4
        if version >> 4 != 4 or header < p.IPV4.size or not header <= total <= len(packet):
            return
        if p.words_sum(packet[:header]):
            return
        handler = self.protocols.get(protocol)
        if handler is None:
            return
        if source not in self.neighbours:
            self.learn(source, bytes(frame[6:12]))
        payload = packet[header:total]
        if fragment & (p.IP_MORE_FRAGMENTS | p.IP_OFFSET_MASK):
            key = (source, destination, int.from_bytes(packet[4:6], "big"), protocol)
            more = bool(fragment & p.IP_MORE_FRAGMENTS)
            offset, limit = (fragment & p.IP_OFFSET_MASK) * 8, LARGEST - p.IPV4.size
            whole = self._reassembler.add(key, offset, more=more, payload=payload, limit=limit)
            if whole is None:
                return
            payload, checked = memoryview(whole), False
        handler(source, destination, payload, checked)

    def _ipv6(self, frame: memoryview, checked: bool) -> None:
        packet = frame[ETHERNET_HEADER:]
        if len(packet) < p6.IPV6.size:
            return
        version, length, protocol, hops, source, destination = p6.IPV6.unpack_from(packet)
        if version >> 28 != 6 or length > len(packet) - p6.IPV6.size or is_group(source):
            return
        if source not in self.neighbours:
            self.learn(source, bytes(frame[6:12]))
        payload = packet[p6.IPV6.size : p6.IPV6.size + length]
        for _ in range(_EXTENSIONS_LIMIT):
            if protocol in _EXTENSIONS and len(payload) >= 8:
                protocol, end = payload[0], (payload[1] + 1) * 8
                payload = payload[end:]
            elif protocol == p6.FRAGMENT and len(payload) >= p6.FRAGMENT_HEADER.size:
                protocol, _, place, identity = p6.FRAGMENT_HEADER.unpack_from(payload)
                payload = payload[p6.FRAGMENT_HEADER.size :]
                key = (source, destination, identity, protocol)
                whole = self._reassembler.add(key, place & ~7, more=bool(place & 1), payload=payload)
                if whole is None:
                    return
                payload, checked = memoryview(whole), False
            else:
                break
        handler = self.protocols.get(protocol)
        if handler is None or (_is_neighbour_message(protocol, payload) and hops != p6.NEIGHBOUR_HOP_LIMIT):
            return
        handler(source, destination, payload, checked)

    def unreachable(self, code: int, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        """Tell a guest that what it sent from `source` to `destination` did not arrive."""
        if len(source) == p6.ADDRESS_LENGTH:
            quoted = (p6.ipv6_header(source, destination, protocol, len(payload)) + payload)[:_QUOTED6]
            sender = self.config.host6
            kind, reason = p6.UNREACHABLE, p6.UNREACHABLE_CODES[code]
            message = p6.icmp_message(sender, source, kind, reason, bytes(4) + quoted)
            self.send_ip(sender, source, p6.PROTO_ICMPV6, message)
            return
        header = p.ipv4_header(source, destination, protocol, len(payload), 0)
        message = p.icmp_message(p.ICMP_UNREACHABLE, code, 0, 0, (header + payload)[:_QUOTED])
        self.send_ip(self.config.host, source, p.PROTO_ICMP, message)


def mac6(address: bytes) -> bytes:
    """Return the MAC address that goes with an IPv6 address of this side."""
    return _MAC_PREFIX6 + address[-4:]


def is_group(address: bytes) -> bool:
    """Whether an address is a group of IPv6's."""
    return len(address) == p6.ADDRESS_LENGTH and address[0] == 0xFF


def _is_neighbour_message(protocol: int, payload: memoryview) -> bool:
    first = payload[0] if payload else 0
    return protocol == p6.PROTO_ICMPV6 and p6.ROUTER_SOLICITATION <= first <= p6.REDIRECT
