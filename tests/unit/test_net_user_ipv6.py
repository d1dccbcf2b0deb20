"""The back end `user` by IPv6: router, neighbours, DHCPv6, echo, datagrams and connections."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from pyvm.clock import NANOSECONDS
from pyvm.errors import ConfigError
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.client import GSO_TCPV6, NEEDS_CSUM, Offloads
from pyvm.net.user.config import ROUTER6, UserConfig, user_config
from pyvm.net.user.resolver import HostResolver
from pyvm.net.user.translation import Translation
from tests.unit.net_support import (
    DNS6,
    GATEWAY,
    GATEWAY6,
    GUEST_IP6,
    GUEST_MAC,
    PATIENCE,
    Guest,
    TcpClient,
    listener,
    options,
    user_network,
)

LOOPBACK6 = "::1"
LINK_LOCAL = bytes.fromhex("fe80000000000000505400fffe123456")
ROUTER_MAC = bytes.fromhex("525600000002")


def has_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((LOOPBACK6, 0))
    except OSError:
        return False
    return True


needs_loopback = pytest.mark.skipif(not has_loopback(), reason="the host has no IPv6")


def icmp(guest: Guest, destination: bytes, kind: int, body: bytes, source: bytes = GUEST_IP6) -> None:
    guest.ip(destination, p6.PROTO_ICMPV6, p6.icmp_message(source, destination, kind, 0, body), source)


def messages(guest: Guest) -> list[tuple[bytes, bytes, bytes]]:
    found = list(guest.packets(p6.PROTO_ICMPV6))
    guest.take()
    return found


# ---- Options


def test_addresses_follow_the_prefix() -> None:
    config = options(ipv6_prefix="fd00:1::", ipv6_prefixlen=48)
    assert (config.host6, config.dns6) == tuple(socket.inet_pton(socket.AF_INET6, f"fd00:1::{n}") for n in (2, 3))
    assert config.contains(socket.inet_pton(socket.AF_INET6, "fd00:1:0:ffff::9"))
    assert not config.contains(socket.inet_pton(socket.AF_INET6, "fd00:2::9"))


@pytest.mark.parametrize(
    ("given", "families"),
    [
        ({}, (True, True)),
        ({"ipv4": True}, (True, False)),
        ({"ipv6": True}, (False, True)),
        ({"ipv4": False}, (False, True)),
        ({"ipv6": False}, (True, False)),
        ({"ipv4": True, "ipv6": True}, (True, True)),
    ],
)
def test_to_switch_one_version_on_is_to_switch_the_other_off(
    given: dict[str, object], families: tuple[bool, bool]
) -> None:
    config = user_config(given)
    assert (config.ipv4, config.ipv6) == families


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipv6-prefix": "zz"}, "Failed to parse IPv6 prefix"),
        ({"ipv6-prefixlen": 127}, "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"),
        ({"ipv6-prefixlen": -1}, "Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)"),
        ({"ipv6-host": "zz"}, "Failed to parse IPv6 host"),
        ({"ipv6-host": "1::2"}, "IPv6 Host doesn't belong to network"),
        ({"ipv6-dns": "zz"}, "Failed to parse IPv6 DNS"),
        ({"ipv4": False, "ipv6": False}, "IPv4 and IPv6 disabled"),
        ({"ipv6": False, "ipv6-host": "fec0::9"}, "IPv6 disabled but prefix/host6/dns6 provided"),
        ({"ipv6": True, "host": "10.0.2.9"}, "IPv4 disabled but netmask/host/dns provided"),
    ],
)
def test_refused_options(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        user_config(given)
    assert str(caught.value) == message


def test_a_network_without_a_version_is_deaf_to_it() -> None:
    for config, destination in ((options(ipv4=False), GATEWAY), (options(ipv6=False), GATEWAY6)):
        with user_network(config) as guest:
            guest.udp(destination, 69, b"\0\2file\0octet\0")
            assert guest.take() == []


# ---- Router and neighbours


@pytest.mark.parametrize("restrict", [False, True])
def test_a_router_advertises_prefix_and_name_server(restrict: bool) -> None:
    with user_network(options(restrict=restrict)) as guest:
        icmp(guest, p6.ALL_NODES, p6.ROUTER_SOLICITATION, bytes(4), LINK_LOCAL)
        ((source, target, message),) = messages(guest)
        assert (source, target, message[0]) == (ROUTER6, p6.ALL_NODES, p6.ROUTER_ADVERTISEMENT)
        hops, flags, lifetime, _, _ = p6.ADVERTISEMENT.unpack_from(message, 4)
        assert (hops, flags, bool(lifetime)) == (64, 0x40, not restrict)
        assert message[16:24] == b"\x01\x01" + ROUTER_MAC
        prefix = p6.PREFIX.unpack_from(message, 24)
        assert (prefix[2], prefix[3], prefix[-1]) == (64, 0xC0, GATEWAY6[:15] + b"\0")
        assert message[56:].endswith(b"" if restrict else DNS6)
        guest.clock.advance(600 * NANOSECONDS)
        assert [message[0] for _, _, message in messages(guest)] == [p6.ROUTER_ADVERTISEMENT]


@pytest.mark.parametrize("target", [GATEWAY6, DNS6, ROUTER6])
def test_neighbours_are_found(target: bytes) -> None:
    with user_network(known=False) as guest:
        body = bytes(4) + target + p6.mac_option(p6.OPTION_SOURCE_MAC, GUEST_MAC)
        icmp(guest, p6.solicited_node(target), p6.NEIGHBOUR_SOLICITATION, body)
        ((source, destination, message),) = messages(guest)
        assert (source, destination, message[0]) == (target, GUEST_IP6, p6.NEIGHBOUR_ADVERTISEMENT)
        assert message[4] == 0xE0
        assert message[8:24] == target
        assert message[26:32] == b"\x52\x56" + target[-4:]


def test_an_address_that_is_taken_is_defended_and_others_are_not() -> None:
    with user_network() as guest:
        for target, count in ((GATEWAY6, 1), (GUEST_IP6, 0)):
            body = bytes(4) + target
            icmp(guest, p6.solicited_node(target), p6.NEIGHBOUR_SOLICITATION, body, p6.UNSPECIFIED)
            answers = messages(guest)
            assert len(answers) == count
            assert all(destination == p6.ALL_NODES for _, destination, _ in answers)


def test_what_passed_a_router_is_no_neighbours_message() -> None:
    with user_network() as guest:
        message = p6.icmp_message(GUEST_IP6, GATEWAY6, p6.NEIGHBOUR_SOLICITATION, 0, bytes(4) + GATEWAY6)
        header = p6.ipv6_header(GUEST_IP6, GATEWAY6, p6.PROTO_ICMPV6, len(message), 254)
        guest.send(p.ETHERNET.pack(ROUTER_MAC, GUEST_MAC, p.ETHERTYPE_IPV6) + header + message)
        assert guest.take() == []


def test_a_guest_is_asked_where_it_is_before_the_first_packet() -> None:
    with user_network(known=False) as guest:
        guest.network.send_ip(GATEWAY6, GUEST_IP6, p.PROTO_UDP, p.udp_datagram(GATEWAY6, 1, GUEST_IP6, 2, b"x"))
        ((_, destination, question),) = messages(guest)
        assert (destination, question[0]) == (p6.solicited_node(GUEST_IP6), p6.NEIGHBOUR_SOLICITATION)
        body = struct.pack("!I", 0x60000000) + GUEST_IP6 + p6.mac_option(p6.OPTION_TARGET_MAC, GUEST_MAC)
        icmp(guest, ROUTER6, p6.NEIGHBOUR_ADVERTISEMENT, body, LINK_LOCAL)
        assert [data for _, _, _, data in guest.datagrams()] == [b"x"]
        assert guest.frames[0][:12] == GUEST_MAC + ROUTER_MAC


# ---- Echo


@pytest.mark.parametrize("size", [8, 4000])
def test_the_gateway_answers_pings(size: int) -> None:
    with user_network() as guest:
        data = bytes(range(200)) * (size // 200) or b"12345678"
        message = p6.icmp_message(GUEST_IP6, GATEWAY6, p6.ECHO, 0, b"\0\7\0\1" + data)
        for offset in range(0, len(message), 1000):
            part = message[offset : offset + 1000]
            more = offset + 1000 < len(message)
            head = p6.FRAGMENT_HEADER.pack(p6.PROTO_ICMPV6, 0, offset | more, 5)
            guest.ip(GATEWAY6, p6.FRAGMENT, head + part)
        if size > 1400:
            parts = [payload for _, _, payload in _fragments(guest)]
            assert len(parts) == 3
            answer = b"".join(part[8:] for part in parts)
        else:
            ((_, _, answer),) = messages(guest)
        assert answer[0] == p6.ECHO_REPLY
        assert answer[4:] == b"\0\7\0\1" + data


def _fragments(guest: Guest) -> list[tuple[bytes, bytes, bytes]]:
    found = []
    for frame in guest.take():
        assert frame[20] == p6.FRAGMENT
        assert len(frame) <= 1514
        found.append((frame[22:38], frame[38:54], frame[54:]))
    return found


def test_extension_headers_are_passed_over() -> None:
    with user_network() as guest:
        message = p6.icmp_message(GUEST_IP6, GATEWAY6, p6.ECHO, 0, b"\0\7\0\1")
        guest.ip(GATEWAY6, p6.HOP_BY_HOP, bytes((p6.DESTINATION_OPTIONS, 0)) + bytes(6)
                 + bytes((p6.PROTO_ICMPV6, 0)) + bytes(6) + message)  # fmt: skip
        assert len(messages(guest)) == 1


# ---- DHCPv6


def dhcp6(guest: Guest, kind: int, *given: tuple[int, bytes]) -> list[dict[int, bytes]]:
    body = bytes((kind, 1, 2, 3))
    for number, value in given:
        body += struct.pack("!HH", number, len(value)) + value
    guest.udp(p6.ALL_DHCP_AGENTS, 547, body, 546, LINK_LOCAL)
    found = []
    for source, source_port, port, data in guest.datagrams():
        assert (source, source_port, port, data[:4]) == (ROUTER6, 547, 546, b"\x07\1\2\3")
        position, values = 4, {}
        while position < len(data):
            number, length = struct.unpack_from("!HH", data, position)
            values[number] = data[position + 4 : position + 4 + length]
            position += 4 + length
        found.append(values)
    guest.take()
    return found


def test_a_guest_asks_for_name_server_domains_and_boot_file() -> None:
    config = options(dnssearch=[{"str": "a.example"}], bootfile="grub")
    with user_network(config) as guest:
        wanted = struct.pack("!HHH", 23, 24, 59)
        (answer,) = dhcp6(guest, 11, (1, b"duid"), (6, wanted))
        assert answer[1] == b"duid"
        assert answer[2].endswith(ROUTER_MAC)
        assert answer[23] == DNS6
        assert answer[24] == b"\1a\7example\0"
        assert answer[59] == b"tftp://[fec0::2]/grub"
        assert dhcp6(guest, 11)[0].keys() == {2}
        assert dhcp6(guest, 11, (2, b"another server")) == []
        assert dhcp6(guest, 1, (1, b"duid")) == []


# ---- Datagrams and connections


@needs_loopback
def test_datagrams_reach_the_host_and_come_back() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server, user_network() as guest:
        server.bind((LOOPBACK6, 0))
        server.settimeout(PATIENCE)
        port = server.getsockname()[1]
        guest.udp(GATEWAY6, port, b"question", 5353)
        data, sender = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", sender)
        guest.loop.until(lambda: guest.frames)
        assert guest.datagrams() == [(GATEWAY6, port, 5353, b"answer")]


def test_the_name_server_stands_for_the_hosts_whatever_version_that_has(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver fe80::1%eth0\nnameserver 2001:db8::53\n")
    assert HostResolver(str(path)).server == "2001:db8::53"
    path.write_text("nameserver 127.0.0.1\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        with user_network(resolver=HostResolver(str(path))) as guest:
            guest.udp(DNS6, server.getsockname()[1], b"who is?", 5353)
            _, sender = server.recvfrom(100)
            server.sendto(b"nobody", sender)
            guest.loop.until(lambda: guest.frames)
            assert guest.datagrams()[0][0] == DNS6


def test_a_datagram_without_a_checksum_is_dropped() -> None:
    with user_network(options(tftp="/nonexistent")) as guest:
        guest.ip(GATEWAY6, p.PROTO_UDP, p.UDP.pack(2000, 69, 8 + 14, 0) + b"\0\2file\0octet\0\0")
        assert guest.take() == []


@pytest.mark.parametrize(
    "address",
    ["::", "::1", "::7f00:1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::9", "febf::1", "ff02::1", "fec0::9"],
)
def test_some_addresses_lead_nowhere(address: str) -> None:
    assert Translation(UserConfig()).to_host(socket.inet_pton(socket.AF_INET6, address)) is None


def test_other_addresses_lead_out() -> None:
    assert Translation(UserConfig()).to_host(socket.inet_pton(socket.AF_INET6, "2001:db8::1")) == "2001:db8::1"


@needs_loopback
@pytest.mark.parametrize("offloads", [Offloads(), Offloads(checksum=True, tso4=True, tso6=True)])
def test_a_guest_connects_sends_and_receives(offloads: Offloads) -> None:
    with listener(LOOPBACK6) as server, user_network(offloads=offloads) as guest:
        client = TcpClient(guest, GATEWAY6, server.getsockname()[1])
        client.open(b"\x02\x04\x05\xa0\x01\x03\x03\x07")
        connection, _ = server.accept()
        with connection:
            client.write(b"hello")
            guest.loop.settle()
            assert connection.recv(100) == b"hello"
            content = bytes(range(256)) * 32
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            large = []

            def check() -> object:
                large.extend(offload for offload in guest.offload if offload is not None and offload.gso_type)
                client.poll()
                client.emit(p.TCP_ACK)
                return client.ended

            guest.loop.until(check)
            assert client.data == content
            assert bool(large) == offloads.tso6
            assert all((item.gso_type, item.flags, item.header) == (GSO_TCPV6, NEEDS_CSUM, 74) for item in large)


def test_a_restricted_guest_reaches_nobody() -> None:
    with user_network(options(restrict=True)) as guest:
        client = TcpClient(guest, GATEWAY6, 9)
        client.emit(p.TCP_SYN)
        client.poll()
        assert client.flags & p.TCP_RST
