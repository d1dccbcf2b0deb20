"""No guest does harm to the back end `user`, whatever it sends."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.user.config import ROUTER6, UserConfig
from pyvm.net.user.translation import Translation
from tests.unit.net_support import (
    DNS,
    DNS6,
    GATEWAY,
    GATEWAY6,
    GUEST_IP,
    GUEST_IP6,
    GUEST_MAC,
    TcpClient,
    options,
    own_address,
    user_network,
)

_FRAGMENT = 1480
MACS = p.ETHERNET.pack(b"\x52\x55\x0a\0\2\2", GUEST_MAC, 0)[:12]


def hostile_packets() -> st.SearchStrategy[bytes]:
    """Frames that look like something for most of their length."""
    addresses = st.sampled_from([GATEWAY, DNS, b"\xff" * 4, b"\x0a\0\2\x64", GUEST_IP])
    sources = st.sampled_from([GUEST_IP, bytes(4), b"\x0a\0\2\x10"])
    fragments = st.sampled_from([0, p.IP_MORE_FRAGMENTS, 1, 0x1FFF, p.IP_MORE_FRAGMENTS | 7])

    @st.composite
    def frames(draw: st.DrawFn) -> bytes:
        payload = draw(st.binary(max_size=120))
        protocol = draw(st.sampled_from([p.PROTO_UDP, p.PROTO_ICMP, p.PROTO_TCP]))
        source, destination = draw(sources), draw(addresses)
        if protocol == p.PROTO_UDP:
            port = draw(st.sampled_from([67, 69]))
            payload = p.udp_datagram(source, draw(st.sampled_from([68, 2000])), destination, port, payload)
        elif protocol == p.PROTO_TCP and len(payload) >= p.TCP.size:
            total = p.pseudo_sum(source, destination, protocol, len(payload)) + p.words_sum(
                payload[:16] + b"\0\0" + payload[18:]
            )
            payload = payload[:16] + p.checksum(total).to_bytes(2, "big") + payload[18:]
        header = p.ipv4_header(source, destination, protocol, len(payload), 1, draw(fragments))
        return MACS + b"\x08\x00" + header + payload

    return frames()


def hostile_packets6() -> st.SearchStrategy[bytes]:
    """The same by IPv6, with headers between."""
    link_local, unknown = ROUTER6[:15] + b"\x33", b"\xfe\xc0" + bytes(13) + b"\x10"
    addresses = st.sampled_from([GATEWAY6, DNS6, ROUTER6, p6.ALL_NODES, p6.ALL_DHCP_AGENTS, GUEST_IP6])
    sources = st.sampled_from([GUEST_IP6, link_local, unknown, p6.UNSPECIFIED, p6.ALL_NODES, GATEWAY6])
    kinds = st.sampled_from([p6.ECHO, p6.ROUTER_SOLICITATION, p6.NEIGHBOUR_SOLICITATION, p6.NEIGHBOUR_ADVERTISEMENT])
    headers = st.sampled_from([p6.HOP_BY_HOP, p6.ROUTING, p6.FRAGMENT, p6.DESTINATION_OPTIONS])

    @st.composite
    def frames(draw: st.DrawFn) -> bytes:
        source, destination = draw(sources), draw(addresses)
        payload = draw(st.binary(max_size=120))
        protocol = draw(st.sampled_from([p6.PROTO_ICMPV6, p.PROTO_UDP, p.PROTO_TCP]))
        if protocol == p6.PROTO_ICMPV6:
            target = draw(st.sampled_from([b"", bytes(4) + GATEWAY6, bytes(4) + GUEST_IP6]))
            payload = p6.icmp_message(source, destination, draw(kinds), 0, target + payload)
        elif protocol == p.PROTO_UDP:
            payload = p.udp_datagram(source, 546, destination, draw(st.sampled_from([67, 69, 547])), payload)
        for kind in draw(st.lists(headers, max_size=3)):
            length = 0 if kind == p6.FRAGMENT else draw(st.integers(0, 2))
            payload = bytes((protocol, length)) + draw(st.binary(min_size=6, max_size=6)) + payload
            protocol = kind
        header = p6.ipv6_header(source, destination, protocol, len(payload), 255)
        return MACS + b"\x86\xdd" + header + payload

    return frames()


STARTS = st.sampled_from([b"\x08\x06", b"\x08\x00\x45", b"\x86\xdd\x60"])
NOISE = st.builds(lambda start, tail: MACS + start + tail, STARTS, st.binary(max_size=60))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), NOISE, hostile_packets(), hostile_packets6()), max_size=8))
def test_no_frame_does_harm(frames: list[bytes]) -> None:
    with user_network(options(tftp="/nonexistent", guestfwd=[{"str": "tcp:10.0.2.100:7000-cmd:true"}])) as guest:
        for frame in frames:
            guest.send(frame)
        guest.send_end()
        guest.clock.advance(NANOSECONDS)
        guest.take()
        for gateway, protocol in ((GATEWAY, p.PROTO_ICMP), (GATEWAY6, p6.PROTO_ICMPV6)):
            guest.network.learn(own_address(gateway), GUEST_MAC)
            if protocol == p.PROTO_ICMP:
                message = p.icmp_message(p.ICMP_ECHO, 0, 1, 1, b"")
            else:
                message = p6.icmp_message(GUEST_IP6, gateway, p6.ECHO, 0, bytes(4))
            guest.ip(gateway, protocol, message)
            assert [source for source, _, _ in guest.packets(protocol)] == [gateway]
        assert not any(address in guest.network.neighbours for address in guest.network.addresses)


NUMBERS = st.integers(-3000, 3000)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 63), st.binary(max_size=40)), max_size=12))
def test_no_segment_breaks_a_connection_for_others(segments: list[tuple[int, int, int, bytes]]) -> None:
    config = options(guestfwd=[{"str": "tcp:10.0.2.100:7000-chardev:ring"}])
    with user_network(config, find_chardev=lambda text, label: RingbufChardev("ring", 64)) as guest:
        client = TcpClient(guest, bytes((10, 0, 2, 100)), 7000)
        client.open()
        client.poll()
        for sequence, acknowledged, flags, data in segments:
            before = client.acknowledged
            client.acknowledged = (before + acknowledged) & 0xFFFFFFFF
            client.emit(flags, data, sequence=client.sequence + sequence)
            client.acknowledged = before
        guest.clock.advance(NANOSECONDS)
        guest.take()
        guest.ip(GATEWAY, p.PROTO_ICMP, p.icmp_message(p.ICMP_ECHO, 0, 1, 1, b""))
        assert len(list(guest.packets(p.PROTO_ICMP))) == 1


HEADS = (b"", b"\xfe\x80", b"\xfe\xc0", b"\xff\x02", bytes(10) + b"\xff\xff", b"\0\x64\xff\x9b", b"\x20\x01")
TAILS = (b"\x7f\0\0\1", b"\1", b"\2", b"\x0a\0\2\2", b"")
LIKELY = st.builds(lambda head, tail: head.ljust(16 - len(tail), b"\0") + tail, *map(st.sampled_from, (HEADS, TAILS)))
ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), LIKELY, st.binary(min_size=16, max_size=16))


@settings(max_examples=200, deadline=None)
@given(ADDRESSES)
def test_no_address_leads_to_the_host_itself_or_its_link(address: bytes) -> None:
    found = Translation(UserConfig()).to_host(address)
    if address in (GATEWAY, GATEWAY6, ROUTER6):
        assert found in ("127.0.0.1", "::1")
    elif found is not None and address not in (DNS, DNS6):
        plain = ip_address(found)
        assert plain.packed == address
        here = plain.is_loopback or (plain.is_link_local and plain.version == 6)
        group = plain.is_multicast or plain.is_unspecified
        assert (here, group, getattr(plain, "ipv4_mapped", None)) == (False, False, None)


@pytest.mark.parametrize("length", [65507, 65515, 65516, 65535])
def test_requests_too_long_to_be_quoted(length: int) -> None:
    with user_network() as guest:
        guest.network.learn(GUEST_IP, GUEST_MAC)
        message = p.icmp_message(p.ICMP_ECHO, 0, 1, 1, bytes(length - p.ICMP.size))
        for start in range(0, length, _FRAGMENT):
            part = message[start : start + _FRAGMENT]
            more = p.IP_MORE_FRAGMENTS if start + len(part) < length else 0
            header = p.ipv4_header(GUEST_IP, b"\x0b\0\0\1", p.PROTO_ICMP, len(part), 1, more | start // 8)
            guest.send(MACS + b"\x08\x00" + header + part)
        assert [payload[0] for _, _, payload in guest.packets(p.PROTO_ICMP)] in ([], [p.ICMP_UNREACHABLE])


def sockets() -> int:
    return sum(os.readlink(f"/proc/self/fd/{name}").startswith("socket:") for name in os.listdir("/proc/self/fd")
               if os.path.lexists(f"/proc/self/fd/{name}"))  # fmt: skip


def test_nothing_listens_that_nobody_named() -> None:
    with user_network() as guest:
        before = sockets()
        with user_network():
            assert sockets() - before <= 2  # those of the test's own main loop
        assert guest.network.tcp.rows() == guest.network.udp.rows() == []
