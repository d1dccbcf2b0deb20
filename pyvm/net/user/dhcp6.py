"""The DHCPv6 server (RFC 8415, section 18.3.6; options of RFC 3646 and 5970): name server, domains and boot file.

Addresses are not given here; guests make theirs of the prefix that the router advertises.
"""

from __future__ import annotations

from pyvm.net import packets6 as p6
from pyvm.net.user.config import ROUTER6, UserConfig, address_text
from pyvm.net.user.dhcp import search_list
from pyvm.net.user.stack import UserNet, mac6
from pyvm.net.user.udp import UdpService

SERVER_PORT = 547
CLIENT_PORT = 546

_INFORMATION_REQUEST, _REPLY = 11, 7
_HEADER = 4
_CLIENT_ID, _SERVER_ID, _WANTED, _DNS, _DOMAINS, _BOOT_FILE = 1, 2, 6, 23, 24, 59
_DUID_LINK_LAYER, _ETHERNET = 3, 1
_LONGEST_DUID = 130


class Dhcp6Server:
    """The server of one network."""

    def __init__(self, net: UserNet, udp: UdpService) -> None:
        self._net = net
        self._udp = udp
        udp.handlers[SERVER_PORT] = self.receive

    def receive(self, source: bytes, port: int, destination: bytes, data: bytes) -> None:
        """Take a message of a guest."""
        del destination
        if len(source) != p6.ADDRESS_LENGTH or port != CLIENT_PORT or len(data) < _HEADER:
            return
        options = _parse_options(data[_HEADER:])
        client, own = options.get(_CLIENT_ID, b""), self._duid()
        if data[0] != _INFORMATION_REQUEST or options.get(_SERVER_ID, own) != own or len(client) > _LONGEST_DUID:
            return
        answer = [(_CLIENT_ID, client)] if client else []
        answer.append((_SERVER_ID, own))
        wanted = options.get(_WANTED, b"")
        asked = {int.from_bytes(wanted[at : at + 2], "big") for at in range(0, len(wanted), 2)}
        answer += [(number, value) for number, value in _values(self._net.config) if number in asked and value]
        body = bytes((_REPLY,)) + data[1:_HEADER]
        for number, value in answer:
            body += number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
        self._udp.send(ROUTER6, SERVER_PORT, (source, CLIENT_PORT), body)

    def _duid(self) -> bytes:
        """Return the server's identifier, made of its MAC address."""
        return _DUID_LINK_LAYER.to_bytes(2, "big") + _ETHERNET.to_bytes(2, "big") + mac6(ROUTER6)


def _values(config: UserConfig) -> list[tuple[int, bytes]]:
    boot = f"tftp://[{address_text(config.host6)}]/{config.bootfile}" if config.bootfile else ""
    dns = b"" if config.restrict else config.dns6
    return [(_DNS, dns), (_DOMAINS, search_list(config.dns_search)), (_BOOT_FILE, boot.encode())]


def _parse_options(data: bytes) -> dict[int, bytes]:
    """Return options by their number; what is behind something malformed is not seen."""
    options: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        number, length = (int.from_bytes(data[at : at + 2], "big") for at in (position, position + 2))
        value = data[position + 4 : position + 4 + length]
        if len(value) < length:
            break
        options[number] = value
        position += 4 + length
    return options
