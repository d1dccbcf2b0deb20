"""ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861, 8106): the router of a guest's network, and its echo.

The router tells guests the prefix that they make their addresses of, and the name server; where the network leads
nowhere, it says that it is no way out.
"""

from __future__ import annotations

from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.user.config import ROUTER6
from pyvm.net.user.echo import EchoRelay
from pyvm.net.user.stack import UserNet, mac6

_INTERVAL = 400 * NANOSECONDS
"""Between advertisements that nobody asked for: the middle of what RFC 4861 has for default."""
_ROUTER_SECONDS = 1800
_PREFIX_SECONDS, _PREFERRED_SECONDS = 86400, 14400
_DNS_SECONDS = 1200
_TARGET = slice(8, 24)
"""Where solicitations and advertisements name the neighbour that they are about."""
_ADVERTISED_BY = {p6.NEIGHBOUR_SOLICITATION: p6.OPTION_SOURCE_MAC, p6.NEIGHBOUR_ADVERTISEMENT: p6.OPTION_TARGET_MAC}


class Icmp6Service:
    """All ICMPv6 of one network."""

    def __init__(self, net: UserNet, echo: EchoRelay) -> None:
        self._net = net
        self._echo = echo
        self._timer = net.clock.timer(self._advertise_again)
        self._timer.arm(net.clock.now() + _INTERVAL)
        net.protocols[p6.PROTO_ICMPV6] = self.receive
        net.add_closer(self._timer.cancel)

    def receive(self, source: bytes, destination: bytes, payload: memoryview, checked: bool) -> None:
        """Take a message of a guest."""
        del checked
        if len(source) != p6.ADDRESS_LENGTH or len(payload) < p.ICMP.size:
            return
        if (p.pseudo_sum(source, destination, p6.PROTO_ICMPV6, len(payload)) + p.words_sum(payload)) % 0xFFFF:
            return
        kind = payload[0]
        if kind == p6.ECHO:
            self._echo.request(source, destination, bytes(payload))
        elif kind == p6.ROUTER_SOLICITATION:
            self.advertise()
        elif kind in _ADVERTISED_BY and len(payload) >= _TARGET.stop:
            self._neighbour(kind, source, bytes(payload))

    def _neighbour(self, kind: int, source: bytes, message: bytes) -> None:
        target = message[_TARGET]
        mac = _option(message[_TARGET.stop :], _ADVERTISED_BY[kind])
        who = source if kind == p6.NEIGHBOUR_SOLICITATION else target
        if mac is not None:
            self._net.learn(who, mac)
        if kind == p6.NEIGHBOUR_SOLICITATION and target in self._net.addresses:
            self._answer(target, source, mac)

    def _answer(self, target: bytes, source: bytes, mac: bytes | None) -> None:
        """Say where one of this side's addresses is."""
        flags = p6.ROUTER_FLAG | p6.OVERRIDE_FLAG
        if source == p6.UNSPECIFIED:  # somebody wants that address, and hears that it is taken
            source, mac = p6.ALL_NODES, p6.multicast_mac(p6.ALL_NODES)
        else:
            flags |= p6.SOLICITED_FLAG
            mac = mac or self._net.neighbour(source)
        if mac is None:
            return
        body = flags.to_bytes(4, "big") + target + p6.mac_option(p6.OPTION_TARGET_MAC, mac6(target))
        self._net.send_neighbour_message(target, source, mac, p6.NEIGHBOUR_ADVERTISEMENT, body)

    def advertise(self) -> None:
        """Tell all guests of the router, the prefix and the name server."""
        config = self._net.config
        lifetime = 0 if config.restrict else _ROUTER_SECONDS
        flags = p6.PREFIX_ON_LINK | p6.PREFIX_AUTONOMOUS
        body = p6.ADVERTISEMENT.pack(p6.HOP_LIMIT, p6.OTHER_CONFIGURATION, lifetime, 0, 0)
        body += p6.mac_option(p6.OPTION_SOURCE_MAC, self._net.mac6)
        times = (_PREFIX_SECONDS, _PREFERRED_SECONDS)
        body += p6.PREFIX.pack(p6.OPTION_PREFIX, 4, config.prefix_length, flags, *times, 0, config.prefix)
        if not config.restrict:
            body += bytes((p6.OPTION_DNS, 3, 0, 0)) + _DNS_SECONDS.to_bytes(4, "big") + config.dns6
        group = p6.ALL_NODES
        self._net.send_neighbour_message(ROUTER6, group, p6.multicast_mac(group), p6.ROUTER_ADVERTISEMENT, body)

    def _advertise_again(self) -> None:
        self._timer.arm(self._net.clock.now() + _INTERVAL)
        self.advertise()
        self._net.send_end()


def _option(options: bytes, kind: int) -> bytes | None:
    """Return the MAC address in an option."""
    while len(options) >= 8 and options[1]:
        if options[0] == kind and options[1] == 1:
            return options[2:8]
        options = options[8 * options[1] :]
    return None
