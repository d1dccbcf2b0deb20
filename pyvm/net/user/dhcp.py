"""The DHCP server (RFC 2131, options of RFC 2132 and 3397): it gives each MAC address an address of the network."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyvm.net.user.config import ANY_ADDRESS, UserConfig
from pyvm.net.user.stack import UserNet
from pyvm.net.user.udp import UdpService

SERVER_PORT = 67
CLIENT_PORT = 68

_MESSAGE = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
"""op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file"""
_REQUEST = 1
_REPLY = 2
_ETHERNET = 1
_MAC_LENGTH = 6
_COOKIE = b"\x63\x82\x53\x63"
_SMALLEST = 300
"""Clients of BOOTP expect a message of that length."""
_FILE_LIMIT = 127

_PAD, _END = 0, 255
_MASK, _ROUTER, _DNS, _HOSTNAME, _DOMAIN = 1, 3, 6, 12, 15
_REQUESTED, _LEASE, _TYPE, _SERVER, _MESSAGE_TEXT = 50, 51, 53, 54, 56
_TFTP_SERVER, _BOOTFILE, _SEARCH = 66, 67, 119
_OPTION_LIMIT = 255

_DISCOVER, _OFFER, _REQUEST_TYPE, _DECLINE, _ACK, _NAK, _RELEASE, _INFORM = range(1, 9)
_LEASE_SECONDS = 86400
_LEASES_LIMIT = 256
_BROADCAST = b"\xff\xff\xff\xff"


class DhcpServer:
    """The leases of one network; they are for ever, the lowest free address first."""

    def __init__(self, net: UserNet, udp: UdpService) -> None:
        self._net = net
        self._udp = udp
        self._leases: dict[bytes, bytes] = {}
        """Addresses by MAC address."""
        udp.handlers[SERVER_PORT] = self.receive

    def receive(self, source: bytes, port: int, destination: bytes, data: bytes) -> None:
        """Take a message of a guest."""
        del destination
        if len(source) != len(ANY_ADDRESS):
            return
        if port != CLIENT_PORT or len(data) < _MESSAGE.size:
            return
        operation, kind, length, _, transaction, _, flags, current, _, _, _, hardware, _, _ = _MESSAGE.unpack_from(data)
        if operation != _REQUEST or kind != _ETHERNET or length != _MAC_LENGTH:
            return
        options = _parse_options(data[_MESSAGE.size :])
        given = options.get(_TYPE, b"")
        message = given[0] if given else (0 if not options else _DISCOVER)
        mac = hardware[:_MAC_LENGTH]
        config = self._net.config
        if message in (_DISCOVER, 0):
            lease = self._lease(mac)
            answer = _OFFER if message else 0
        elif message in (_REQUEST_TYPE, _INFORM):
            if options.get(_SERVER, config.host) != config.host:
                return  # the guest has chosen another server
            lease, answer = self._requested(mac, options.get(_REQUESTED, current), inform=message == _INFORM)
        elif message == _RELEASE:
            self._leases.pop(mac, None)
            return
        else:
            return
        if lease is None:
            return
        self._answer(answer, mac, transaction, flags, lease)

    def _requested(self, mac: bytes, wanted: bytes, *, inform: bool) -> tuple[bytes | None, int]:
        """Return the address that a guest may use, and what to answer."""
        if inform:
            return ANY_ADDRESS, _ACK
        lease = self._leases.get(mac)
        free = self._is_free(wanted)
        if lease != wanted and free:
            self._remember(mac, wanted)
            lease = wanted
        return (lease, _ACK) if lease == wanted else (ANY_ADDRESS, _NAK)

    def _pool(self) -> Iterator[bytes]:
        config = self._net.config
        first = int.from_bytes(config.dhcp_start, "big")
        last = int.from_bytes(config.broadcast, "big")
        for number in range(first, min(last, first + _LEASES_LIMIT)):
            yield number.to_bytes(4, "big")

    def _is_free(self, address: bytes) -> bool:
        return address in self._pool() and address not in self._net.addresses and address not in self._leases.values()

    def _remember(self, mac: bytes, address: bytes) -> None:
        self._leases.pop(mac, None)
        self._leases[mac] = address

    def _lease(self, mac: bytes) -> bytes | None:
        """Return the address of a MAC address, a new one where it has none; None where there are no more."""
        if mac not in self._leases:
            found = next((address for address in self._pool() if self._is_free(address)), None)
            if found is None:
                return None
            self._remember(mac, found)
        return self._leases[mac]

    def _answer(self, answer: int, mac: bytes, transaction: int, flags: int, lease: bytes) -> None:
        config = self._net.config
        refused = answer == _NAK
        bootfile = (config.bootfile or "").encode()[:_FILE_LIMIT] if not refused else b""
        head = _MESSAGE.pack(
            *(_REPLY, _ETHERNET, _MAC_LENGTH, 0, transaction, 0, flags, ANY_ADDRESS),
            *(lease, config.host, ANY_ADDRESS, mac, b"", bootfile),
        )
        body = head + _COOKIE + _options(config, answer)
        if lease != ANY_ADDRESS:
            self._net.learn(lease, mac)
        self._udp.send(config.host, SERVER_PORT, (_BROADCAST, CLIENT_PORT), body.ljust(_SMALLEST, b"\0"))


def _parse_options(data: bytes) -> dict[int, bytes]:
    """Return options by their number; what is behind something malformed is not seen."""
    if data[: len(_COOKIE)] != _COOKIE:
        return {}
    options: dict[int, bytes] = {}
    position = len(_COOKIE)
    while position < len(data) and data[position] != _END:
        if data[position] == _PAD:
            position += 1
            continue
        length = data[position + 1] if position + 1 < len(data) else 0
        value = data[position + 2 : position + 2 + length]
        if len(value) < length or not length:
            break
        options[data[position]] = value
        position += 2 + length
    return options


def _options(config: UserConfig, answer: int) -> bytes:
    found: list[tuple[int, bytes]] = []
    if answer:
        found += [(_TYPE, bytes((answer,))), (_SERVER, config.host)]
    if answer == _NAK:
        found.append((_MESSAGE_TEXT, b"requested address not available"))
    else:
        found.append((_MASK, config.mask))
        if not config.restrict:
            found += [(_ROUTER, config.host), (_DNS, config.dns)]
        found.append((_LEASE, _LEASE_SECONDS.to_bytes(4, "big")))
        texts = ((_HOSTNAME, config.hostname), (_DOMAIN, config.domain_name), (_TFTP_SERVER, config.tftp_server_name))
        found += [(number, text.encode()) for number, text in (*texts, (_BOOTFILE, config.bootfile)) if text]
        search = search_list(config.dns_search)
        found += [(_SEARCH, search[at : at + _OPTION_LIMIT]) for at in range(0, len(search), _OPTION_LIMIT)]
    return b"".join(bytes((number, len(value))) + value for number, value in found) + bytes((_END,))


def search_list(domains: list[str]) -> bytes:
    """Return domains as names of DNS, one after the other; names that cannot be are left out."""
    data = b""
    for domain in domains:
        labels = [label.encode() for label in domain.strip(".").split(".")]
        if all(0 < len(label) < 64 for label in labels):
            data += b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return data
