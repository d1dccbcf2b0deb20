"""The back end `user`: datagrams, with real sockets on the host's side."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net.user.resolver import HostResolver
from tests.unit.net_support import (
    DNS,
    GATEWAY,
    GUEST_IP,
    GUEST_MAC,
    LOOPBACK,
    PATIENCE,
    options,
    user_network,
)


def test_datagrams_reach_the_host_and_come_back() -> None:
    with user_network() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.settimeout(PATIENCE)
        port = server.getsockname()[1]
        guest.udp(GATEWAY, port, b"question", 5353)
        data, sender = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", sender)
        guest.loop.until(lambda: guest.frames)
        assert guest.datagrams() == [(GATEWAY, port, 5353, b"answer")]


def test_long_datagrams_come_in_fragments_both_ways() -> None:
    with user_network() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.settimeout(PATIENCE)
        long = bytes(range(256)) * 16
        datagram = p.udp_datagram(GUEST_IP, 1, GATEWAY, server.getsockname()[1], long)
        for offset in (1480, 0, 2960):
            part = datagram[offset : offset + 1480]
            more = p.IP_MORE_FRAGMENTS if offset + 1480 < len(datagram) else 0
            header = p.ipv4_header(GUEST_IP, GATEWAY, p.PROTO_UDP, len(part), 9, more | offset // 8)
            guest.send(p.ETHERNET.pack(guest.network.mac, GUEST_MAC, p.ETHERTYPE_IPV4) + header + part)
        data, sender = server.recvfrom(10000)
        assert data == long
        server.sendto(long, sender)
        guest.loop.until(lambda: len(guest.frames) == 3)
        parts = [payload for _, _, payload in guest.packets(p.PROTO_UDP)]
        assert b"".join(parts)[p.UDP.size :] == long


def test_a_stranger_does_not_reach_a_guests_port() -> None:
    with user_network() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.settimeout(PATIENCE)
        guest.udp(GATEWAY, server.getsockname()[1], b"x", 5353)
        _, (_, port) = server.recvfrom(100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            stranger.sendto(b"intruder", (LOOPBACK, port))
        guest.loop.settle()
        assert guest.frames == []


def test_a_port_where_nobody_listens_is_reported() -> None:
    with user_network() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind((LOOPBACK, 0))
        port = gone.getsockname()[1]
        gone.close()
        guest.udp(GATEWAY, port, b"x", 5353)
        guest.loop.until(lambda: guest.frames)
        ((source, _, message),) = guest.packets(p.PROTO_ICMP)
        assert (source, message[0], message[1]) == (GATEWAY, p.ICMP_UNREACHABLE, p.UNREACHABLE_PORT)
        assert message[28:32] == struct.pack("!HH", 5353, port)


def test_names_are_resolved_by_the_hosts_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.settimeout(PATIENCE)
        path = tmp_path / "resolv.conf"
        path.write_text("# comment\nnameserver ::1\nnameserver 127.0.0.1\n")
        assert HostResolver(str(path)).server == LOOPBACK
        with user_network(resolver=HostResolver(str(path))) as guest:
            guest.udp(DNS, server.getsockname()[1], b"who is?", 5353)
            _, sender = server.recvfrom(100)
            server.sendto(b"nobody", sender)
            guest.loop.until(lambda: guest.frames)
            assert guest.datagrams()[0][0] == DNS


def test_idle_ports_are_given_back() -> None:
    with user_network() as guest:
        guest.udp(GATEWAY, 9, b"x", 5353)
        assert any(row[0].startswith("UDP[") for row in guest.network.udp.rows())
        guest.clock.advance(300 * NANOSECONDS)
        assert guest.network.udp.rows() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.2.9"])
def test_some_addresses_lead_nowhere(address: str) -> None:
    with user_network() as guest:
        guest.udp(socket.inet_aton(address), 53, b"x")
        assert guest.network.udp.rows() == []


def test_a_forward_leads_datagrams_to_the_guest_and_back() -> None:
    with user_network(options(hostfwd=[{"str": "udp:127.0.0.1:0-:53"}])) as guest:
        ((kind, _, (_, port), target, _, _),) = guest.network.udp.rows()
        assert (kind, target) == ("UDP[HOST_FORWARD]", (GUEST_IP, 53))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(b"question", (LOOPBACK, port))
            guest.loop.until(lambda: guest.frames)
            ((source, source_port, own, data),) = guest.datagrams()
            assert (source, own, data) == (GATEWAY, 53, b"question")
            guest.udp(GATEWAY, source_port, b"answer", 53)
            assert client.recvfrom(100) == (b"answer", (LOOPBACK, port))
