"""IPv6, ICMPv6 and neighbour discovery headers (RFC 8200, 4443, 4861), beside those of :mod:`pyvm.net.packets`."""

from __future__ import annotations

import struct

from pyvm.net import packets as p

ADDRESS_LENGTH = 16
UNSPECIFIED = bytes(ADDRESS_LENGTH)
LINK_LOCAL_PREFIX = b"\xfe\x80"
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")
ALL_DHCP_AGENTS = bytes.fromhex("ff02" + "00" * 10 + "00010002")
_SOLICITED_NODE = bytes.fromhex("ff02" + "00" * 9 + "01ff")
_MULTICAST_MAC = b"\x33\x33"

IPV6 = struct.Struct("!IHBB16s16s")
"""Version, class and flow; payload length; next header; hop limit; source; destination."""
_VERSION = 6 << 28
HOP_LIMIT = 64
NEIGHBOUR_HOP_LIMIT = 255
"""What packets of neighbour discovery must have: they have not passed a router."""
MINIMUM_MTU = 1280

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
FRAGMENT_HEADER = struct.Struct("!BBHI")
"""Next header, reserved, offset in eights and whether more follow, ID."""
PROTO_ICMPV6 = 58

ICMP = struct.Struct("!BBH")
"""Type, code, checksum."""
ICMP_CHECKSUM = 2
UNREACHABLE, ECHO, ECHO_REPLY = 1, 128, 129
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, REDIRECT = range(133, 138)
UNREACHABLE_CODES = {
    p.UNREACHABLE_NET: 0,
    p.UNREACHABLE_PROHIBITED: 1,
    p.UNREACHABLE_HOST: 3,
    p.UNREACHABLE_PORT: 4,
}
"""What the reasons of IPv4 are called here."""

# Options of neighbour discovery; lengths are in eights
OPTION_SOURCE_MAC, OPTION_TARGET_MAC, OPTION_PREFIX, OPTION_DNS = 1, 2, 3, 25
ADVERTISEMENT = struct.Struct("!BBHII")
"""Hop limit, flags, lifetime of the router in seconds, reachable time, retransmission time."""
OTHER_CONFIGURATION = 0x40
PREFIX = struct.Struct("!BBBBIII16s")
"""Type, length, bits of the prefix, flags, valid and preferred lifetime in seconds, reserved, prefix."""
PREFIX_ON_LINK, PREFIX_AUTONOMOUS = 0x80, 0x40
ROUTER_FLAG, SOLICITED_FLAG, OVERRIDE_FLAG = 1 << 31, 1 << 30, 1 << 29


def ipv6_header(source: bytes, destination: bytes, protocol: int, length: int, hop_limit: int = HOP_LIMIT) -> bytes:
    """Return an IPv6 header for a payload of `length` bytes."""
    return IPV6.pack(_VERSION, length, protocol, hop_limit, source, destination)


def icmp_message(source: bytes, destination: bytes, kind: int, code: int, body: bytes) -> bytes:
    """Return an ICMPv6 message."""
    message = ICMP.pack(kind, code, 0) + body
    total = p.pseudo_sum(source, destination, PROTO_ICMPV6, len(message)) + p.words_sum(message)
    return ICMP.pack(kind, code, p.checksum(total)) + body


def solicited_node(address: bytes) -> bytes:
    """Return the group that whoever has `address` listens to."""
    return _SOLICITED_NODE + address[-3:]


def multicast_mac(group: bytes) -> bytes:
    """Return the MAC address of a group."""
    return _MULTICAST_MAC + group[-4:]


def mac_option(kind: int, mac: bytes) -> bytes:
    """Return an option that says a MAC address."""
    return bytes((kind, 1)) + mac
