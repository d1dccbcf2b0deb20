"""Ethernet, ARP, IPv4, ICMP, UDP and TCP headers (RFC 826, 791, 792, 768, 9293), and their checksum.

The Internet checksum is the sum of 16-bit words in ones' complement, which is the number that the bytes make, modulo
65535: one division instead of a loop over words.
"""

from __future__ import annotations

import struct

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_RARP = 0x8035
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD

BROADCAST_MAC = b"\xff" * 6

PROTO_ICMP = 1
PROTO_TCP = 6
PROTO_UDP = 17

ETHERNET = struct.Struct("!6s6sH")
"""Destination, source, type."""
ARP = struct.Struct("!HHBBH6s4s6s4s")
"""Hardware and protocol types and address lengths, operation, sender and target as MAC and IP address."""
ARP_REQUEST = 1
ARP_REPLY = 2
ARP_PREFIX = (1, ETHERTYPE_IPV4, 6, 4)

IPV4 = struct.Struct("!BBHHHBBH4s4s")
"""Version and length, service, total length, ID, flags and offset, TTL, protocol, checksum, source, destination."""
IP_DONT_FRAGMENT = 0x4000
IP_MORE_FRAGMENTS = 0x2000
IP_OFFSET_MASK = 0x1FFF
_TTL = 64

UDP = struct.Struct("!HHHH")
"""Ports of source and destination, length, checksum."""
ICMP = struct.Struct("!BBHHH")
"""Type, code, checksum, ID, sequence number."""
ICMP_ECHO_REPLY = 0
ICMP_UNREACHABLE = 3
ICMP_ECHO = 8
UNREACHABLE_NET = 0
UNREACHABLE_HOST = 1
UNREACHABLE_PORT = 3
UNREACHABLE_PROHIBITED = 13

TCP = struct.Struct("!HHIIBBHHH")
"""Ports, sequence, acknowledgement, length, flags, window, checksum, urgent pointer."""
TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_PSH = 0x08
TCP_ACK = 0x10


def words_sum(data: bytes | bytearray | memoryview) -> int:
    """Return the ones' complement sum of the 16-bit words in `data`, 0 to 65534; 0 stands for 65535 as well."""
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return value % 0xFFFF


def checksum(total: int) -> int:
    """Return the checksum for a sum of words: never 0, which in UDP means that there is none."""
    return 0xFFFF - total % 0xFFFF


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Return the sum of the pseudo header that UDP and TCP checksums include."""
    return (int.from_bytes(source + destination, "big") + protocol + length) % 0xFFFF


def ipv4_header(
    source: bytes, destination: bytes, protocol: int, length: int, identity: int, fragment: int = 0
) -> bytes:
    """Return an IPv4 header for a payload of `length` bytes."""
    head = IPV4.pack(0x45, 0, IPV4.size + length, identity, fragment, _TTL, protocol, 0, source, destination)
    return head[:10] + checksum(words_sum(head)).to_bytes(2, "big") + head[12:]


def udp_datagram(source: bytes, source_port: int, destination: bytes, port: int, payload: bytes) -> bytes:
    """Return a UDP header and its payload."""
    length = UDP.size + len(payload)
    total = pseudo_sum(source, destination, PROTO_UDP, length) + source_port + port + length + words_sum(payload)
    return UDP.pack(source_port, port, length, checksum(total)) + payload


def icmp_message(kind: int, code: int, identity: int, sequence: int, payload: bytes) -> bytes:
    """Return an ICMP message."""
    head = ICMP.pack(kind, code, 0, identity, sequence)
    return ICMP.pack(kind, code, checksum(words_sum(head) + words_sum(payload)), identity, sequence) + payload


def arp_packet(operation: int, sender: tuple[bytes, bytes], target: tuple[bytes, bytes]) -> bytes:
    """Return an ARP packet; sender and target are MAC and IP address."""
    return ARP.pack(*ARP_PREFIX, operation, *sender, *target)
