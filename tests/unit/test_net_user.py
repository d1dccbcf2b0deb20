"""The back end `user`: its protocols by plain packets, with real sockets on the host's side."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Chardev
from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.clock import NANOSECONDS
from pyvm.errors import ConfigError
from pyvm.net import packets as p
from pyvm.net.client import GSO_TCPV4, NEEDS_CSUM, Offload, Offloads
from pyvm.net.user.config import UserConfig, user_config
from pyvm.net.user.dhcp import search_list
from pyvm.net.user.resolver import HostResolver
from tests.unit.net_support import DNS, GATEWAY, GUEST_IP, GUEST_MAC, Guest, TcpClient, user_network

LOOPBACK = "127.0.0.1"


def options(**values: object) -> UserConfig:
    return user_config({name.replace("_", "-"): value for name, value in values.items()})


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        made.bind((LOOPBACK, 0))
        made.listen()
        made.settimeout(5)
        yield made


# ---- Options


def test_addresses_follow_the_network() -> None:
    config = options(net="192.168.7.0/24")
    assert (config.host, config.dns, config.dhcp_start) == tuple(bytes((192, 168, 7, n)) for n in (2, 3, 15))
    config = options(net="10.1.0.0/255.255.0.0", host="10.1.0.9", dns="10.1.0.10", dhcpstart="10.1.2.3")
    assert config.mask == b"\xff\xff\0\0"
    assert (config.host, config.dns, config.dhcp_start) == (b"\x0a\x01\0\x09", b"\x0a\x01\0\x0a", b"\x0a\x01\x02\x03")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("net", "zz", "Failed to parse netmask"),
        ("net", "10.0.2.0/33", "Invalid netmask provided (must be in range 4-32)"),
        ("net", "10.0.2.0/255.0.255.0", "Failed to parse netmask"),
        ("host", "1.2.3.4", "Host doesn't belong to network"),
        ("host", "zz", "Failed to parse host"),
        ("dhcpstart", "1.2.3.4", "DHCP doesn't belong to network"),
        ("dns", "10.0.2.2", "DNS must be different from host and DHCP"),
        ("hostname", "x" * 256, "hostname cannot be longer than 255 bytes"),
        ("ipv4", False, "IPv4 and IPv6 disabled"),
        ("ipv6", True, "ipv6 is not supported by pyvm yet"),
        ("smb", "/tmp", "smb is not supported by pyvm yet"),
    ],
)
def test_refused_options(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        user_config({name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("zz", "No : separators"),
        ("sctp::1-:2", "Bad protocol name"),
        ("tcp:a", "Missing : separator"),
        ("tcp:a:1-:2", "Bad host address"),
        ("tcp::1", "Bad host port separator"),
        ("tcp::99999-:22", "Bad host port"),
        ("tcp::1-22", "Missing guest address"),
        ("tcp::1-x:22", "Bad guest address"),
        ("tcp::22-:", "Bad guest port"),
    ],
)
def test_refused_host_forwards(rule: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(hostfwd=[{"str": rule}])
    assert str(caught.value) == f"Invalid host forwarding rule '{rule}' ({reason})"


@pytest.mark.parametrize("rule", ["zz", "tcp:10.0.2.100:99999-zz", "udp:10.0.2.100:9-null", "tcp:10.0.2.100:9-"])
def test_refused_guest_forwards(rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(guestfwd=[{"str": rule}])
    assert str(caught.value) == f"Invalid guest forwarding rule '{rule}'"


@pytest.mark.parametrize("place", ["1.2.3.4:99", "10.0.2.2:99"])
def test_guest_forwards_are_inside_the_network_and_not_at_the_gateway(place: str) -> None:
    with pytest.raises(ConfigError, match="Conflicting/invalid host:port in guest forwarding rule"):
        options(guestfwd=[{"str": f"tcp:{place}-null"}])


# ---- ARP and ICMP


def arp_request(target: bytes) -> bytes:
    packet = p.arp_packet(p.ARP_REQUEST, (GUEST_MAC, GUEST_IP), (bytes(6), target))
    return p.ETHERNET.pack(p.BROADCAST_MAC, GUEST_MAC, p.ETHERTYPE_ARP) + packet


@pytest.mark.parametrize(
    ("target", "answered"), [(GATEWAY, True), (DNS, True), (GUEST_IP, False), (b"\x0a\0\2\5", False)]
)
def test_arp_is_answered_for_what_is_here(target: bytes, answered: bool) -> None:
    with user_network(known=False) as guest:
        guest.send(arp_request(target))
        assert len(guest.frames) == answered
        if answered:
            fields = p.ARP.unpack_from(guest.frames[0], 14)
            assert fields[4:] == (p.ARP_REPLY, b"\x52\x55" + target, target, GUEST_MAC, GUEST_IP)
        assert guest.network.neighbours == {GUEST_IP: GUEST_MAC}


def test_the_gateway_answers_pings() -> None:
    with user_network() as guest:
        guest.ip(GATEWAY, p.PROTO_ICMP, p.icmp_message(p.ICMP_ECHO, 0, 7, 3, b"hello there"))
        ((source, destination, message),) = guest.packets(p.PROTO_ICMP)
        assert (source, destination) == (GATEWAY, GUEST_IP)
        assert p.words_sum(message) == 0
        assert p.ICMP.unpack_from(message)[0:2] == (p.ICMP_ECHO_REPLY, 0)
        assert p.ICMP.unpack_from(message)[3:] == (7, 3)
        assert message[p.ICMP.size :] == b"hello there"


def test_a_damaged_ping_is_not_answered() -> None:
    with user_network() as guest:
        message = bytearray(p.icmp_message(p.ICMP_ECHO, 0, 7, 3, b"hello"))
        message[-1] ^= 1
        guest.ip(GATEWAY, p.PROTO_ICMP, bytes(message))
        assert guest.frames == []


def test_an_address_is_asked_for_before_the_first_packet() -> None:
    with user_network(known=False) as guest:
        guest.network.send_ip(GATEWAY, GUEST_IP, p.PROTO_ICMP, b"12345678")
        (question,) = guest.take()
        assert p.ARP.unpack_from(question, 14)[4] == p.ARP_REQUEST
        answer = p.arp_packet(p.ARP_REPLY, (GUEST_MAC, GUEST_IP), (guest.network.mac, GATEWAY))
        guest.send(p.ETHERNET.pack(guest.network.mac, GUEST_MAC, p.ETHERTYPE_ARP) + answer)
        assert [payload for _, _, payload in guest.packets(p.PROTO_ICMP)] == [b"12345678"]


# ---- DHCP


def dhcp(kind: int, mac: bytes = GUEST_MAC, extra: bytes = b"") -> bytes:
    head = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 77, 0, 0, *([bytes(4)] * 4), mac, b"", b"")
    return head + b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + extra + b"\xff"


def answers(guest: Guest) -> list[tuple[bytes, dict[int, bytes]]]:
    """Return the addresses and options that the server gave."""
    found = []
    for _, source_port, port, data in guest.datagrams():
        assert (source_port, port) == (67, 68)
        position, given = 240, {}
        while data[position] != 255:
            length = data[position + 1]
            given[data[position]] = data[position + 2 : position + 2 + length]
            position += 2 + length
        found.append((data[16:20], given))
    guest.take()
    return found


def ask(guest: Guest, message: bytes) -> list[tuple[bytes, dict[int, bytes]]]:
    guest.udp(b"\xff" * 4, 67, message, 68, bytes(4))
    return answers(guest)


def test_a_guest_gets_an_address_and_all_that_belongs_to_it() -> None:
    config = options(
        hostname="box",
        domainname="example.org",
        dnssearch=[{"str": "a.example"}, {"str": "b"}],
        bootfile="/boot",
        tftp_server_name="server",
    )
    with user_network(config, known=False) as guest:
        ((address, given),) = ask(guest, dhcp(1))
        assert (address, given[53]) == (GUEST_IP, b"\x02")
        ((address, given),) = ask(guest, dhcp(3, extra=bytes((50, 4)) + address + bytes((54, 4)) + GATEWAY))
        assert (address, given[53]) == (GUEST_IP, b"\x05")
        assert (given[1], given[3], given[6]) == (b"\xff\xff\xff\0", GATEWAY, DNS)
        assert (given[12], given[15], given[66], given[67]) == (b"box", b"example.org", b"server", b"/boot")
        assert given[119] == b"\x01a\x07example\0\x01b\0"
        assert guest.network.neighbours[GUEST_IP] == GUEST_MAC


def test_each_card_has_an_address_of_its_own() -> None:
    with user_network(known=False) as guest:
        seen = [ask(guest, dhcp(1, bytes((2, 0, 0, 0, 0, n))))[0][0] for n in (1, 2, 1, 3)]
        assert [address[3] for address in seen] == [15, 16, 15, 17]


def test_an_address_that_another_card_has_is_refused() -> None:
    with user_network(known=False) as guest:
        ask(guest, dhcp(1))
        ((_, given),) = ask(guest, dhcp(3, b"\2\0\0\0\0\1", bytes((50, 4)) + GUEST_IP))
        assert given[53] == b"\x06"
        ((_, given),) = ask(guest, dhcp(3, b"\2\0\0\0\0\1", bytes((50, 4)) + b"\xc0\xa8\0\1"))
        assert given[53] == b"\x06"


def test_a_restricted_network_names_no_router() -> None:
    with user_network(options(restrict=True), known=False) as guest:
        ((_, given),) = ask(guest, dhcp(1))
        assert 3 not in given
        assert 6 not in given


def test_names_that_cannot_be_are_left_out_of_the_search_list() -> None:
    assert search_list(["ok.example", "x" * 64, "a..b"]) == b"\x02ok\x07example\0"


# ---- UDP


def test_datagrams_reach_the_host_and_come_back() -> None:
    with user_network() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        server.settimeout(5)
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
        server.settimeout(5)
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
        server.settimeout(5)
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
        server.settimeout(5)
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
            client.settimeout(5)
            client.sendto(b"question", (LOOPBACK, port))
            guest.loop.until(lambda: guest.frames)
            ((source, source_port, own, data),) = guest.datagrams()
            assert (source, own, data) == (GATEWAY, 53, b"question")
            guest.udp(GATEWAY, source_port, b"answer", 53)
            assert client.recvfrom(100) == (b"answer", (LOOPBACK, port))


# ---- TCP


def test_a_guest_connects_sends_and_receives() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.settimeout(5)
        with connection:
            client.write(b"GET /")
            assert connection.recv(100) == b"GET /"
            client.wait(lambda: client.peer_acknowledged == client.sequence)
            connection.sendall(b"x" * 5000)
            client.wait(lambda: len(client.data) == 5000)
            client.emit(p.TCP_ACK)
            connection.shutdown(socket.SHUT_WR)
            client.wait(lambda: client.ended)
            client.emit(p.TCP_ACK)
            client.write(b"still here")
            assert connection.recv(100) == b"still here"
            client.finish()
            assert connection.recv(100) == b""
        client.wait(lambda: client.peer_acknowledged == client.sequence)
        assert client.data == b"x" * 5000


def test_segments_without_offloads_fit_the_wire() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open(b"\x02\x04\x02\x18")
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"y" * 3000)
            guest.loop.until(lambda: len(guest.frames) >= 6)
            assert max(map(len, guest.frames)) == 14 + 40 + 536
            client.wait(lambda: len(client.data) == 3000)


def test_large_segments_say_what_is_left_to_do() -> None:
    offloads = Offloads(checksum=True, tso4=True)
    with user_network(offloads=offloads) as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open(b"\x02\x04\x05\xb4\x01\x03\x03\x07")
        client.poll()
        guest.offload.clear()
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"z" * 20000)
            guest.loop.until(lambda: sum(map(len, guest.frames)) > 20000)
            assert guest.offload[0] == Offload(NEEDS_CSUM, GSO_TCPV4, 54, 1460, 34, 16)
            assert len(guest.frames[0]) > 10000
            client.wait(lambda: len(client.data) == 20000)


def test_a_refused_connection_is_reset() -> None:
    with user_network() as guest, listener() as server:
        port = server.getsockname()[1]
        server.close()
        client = TcpClient(guest, GATEWAY, port)
        client.emit(p.TCP_SYN)
        client.wait(lambda: client.flags & p.TCP_RST)
        assert guest.network.tcp.rows() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.2.77", "224.0.0.1"])
def test_connections_to_nowhere_are_reset(address: str) -> None:
    with user_network() as guest:
        client = TcpClient(guest, socket.inet_aton(address), 80)
        client.emit(p.TCP_SYN)
        client.poll()
        assert client.flags & p.TCP_RST


def test_a_restricted_guest_reaches_nobody() -> None:
    with user_network(options(restrict=True)) as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.emit(p.TCP_SYN)
        client.poll()
        assert client.flags & p.TCP_RST
        guest.udp(GATEWAY, 53, b"x")
        assert guest.network.udp.rows() == []


def test_a_segment_of_no_connection_is_reset() -> None:
    with user_network() as guest:
        client = TcpClient(guest, GATEWAY, 80)
        client.emit(p.TCP_ACK, b"data")
        client.poll()
        assert client.flags == p.TCP_RST


def test_a_damaged_segment_is_dropped() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        client.poll()
        fields = (client.own_port, client.port, client.sequence, client.acknowledged)
        damaged = p.TCP.pack(*fields, 0x50, p.TCP_ACK, 0xFFFF, 1, 0)
        guest.ip(GATEWAY, p.PROTO_TCP, damaged + b"data")
        client.poll()
        assert client.peer_acknowledged == client.sequence


def test_what_comes_twice_or_too_early_is_not_taken() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.settimeout(5)
        with connection:
            client.emit(p.TCP_ACK, b"late", sequence=client.sequence + 4)
            client.poll()
            assert client.peer_acknowledged == client.sequence
            client.write(b"abcd")
            client.emit(p.TCP_ACK, b"abcdef", sequence=client.sequence - 4)
            client.sequence += 2
            client.wait(lambda: client.peer_acknowledged == client.sequence)
            assert connection.recv(6, socket.MSG_WAITALL) == b"abcdef"


def test_a_closed_window_holds_the_host_back_and_an_open_one_lets_it_go_on() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1], window=1000)
        client.open()
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"w" * 2500)
            client.wait(lambda: len(client.data) == 1000)
            client.window = 0
            client.emit(p.TCP_ACK)
            guest.loop.settle()
            client.poll()
            assert len(client.data) == 1000
            segments = client.segments
            guest.clock.advance(2 * NANOSECONDS)
            client.poll()
            assert client.segments > segments  # a probe
            client.window = 60000
            client.emit(p.TCP_ACK)
            client.wait(lambda: len(client.data) == 2500)


def test_a_slow_host_closes_the_window_toward_the_guest() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open(b"\x02\x04\x05\xb4\x01\x03\x03\x07")
        connection, _ = server.accept()
        connection.settimeout(5)
        sent = b""
        with connection:
            client.poll()
            while client.peer_window << 7 >= 32000:
                client.write(b"q" * 32000)
                sent += b"q" * 32000
                client.poll()
                assert len(sent) < 64 << 20
            received = b""
            while len(received) < len(sent):
                received += connection.recv(1 << 20)
                guest.loop.settle()
            client.wait(lambda: client.peer_window << 7 > 500_000)
            assert received == sent


def test_lost_segments_are_sent_again() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        client.poll()
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"m" * 4000)
            guest.loop.until(lambda: len(guest.frames) >= 3)
            del guest.frames[0]  # the wire lost it
            client.poll()
            assert client.data == b""
            for _ in range(3):
                client.emit(p.TCP_ACK)
            client.poll()
            assert len(client.data) == 1460
            client.emit(p.TCP_ACK)  # a partial one asks for the next
            client.wait(lambda: len(client.data) == 2920)
            guest.clock.advance(2 * NANOSECONDS)
            client.poll()
            client.emit(p.TCP_ACK)
            guest.clock.advance(2 * NANOSECONDS)
            client.wait(lambda: len(client.data) == 4000)


def test_a_guest_that_never_answers_is_given_up() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.settimeout(5)
        with connection:
            connection.sendall(b"m" * 100)
            client.wait(lambda: client.data)
            guest.clock.advance(1000 * NANOSECONDS)
            assert guest.network.tcp.rows() == []
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_a_reset_of_the_guest_reaches_the_host() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.settimeout(5)
        with connection:
            client.emit(p.TCP_RST, sequence=client.sequence - 70000)  # not in the window: forged
            assert len(guest.network.tcp.rows()) == 1
            client.emit(p.TCP_RST)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert guest.network.tcp.rows() == []


def test_a_reset_of_the_host_reaches_the_guest() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        client.wait(lambda: client.flags & p.TCP_RST)


def test_a_guest_without_room_for_frames_gets_all_later() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        client.poll()
        connection, _ = server.accept()
        with connection:
            guest.room = False
            connection.sendall(b"r" * 30000)
            guest.loop.settle()
            assert guest.frames == []
            guest.make_room()
            client.wait(lambda: len(client.data) == 30000)


def test_a_forward_connects_the_host_to_the_guest() -> None:
    with user_network(options(hostfwd=[{"str": "tcp:127.0.0.1:0-:22"}])) as guest:
        ((_, _, (_, port), target, _, _),) = guest.network.tcp.rows()
        assert target == (GUEST_IP, 22)
        with socket.create_connection((LOOPBACK, port), 5) as connection:
            guest.loop.until(lambda: guest.frames)
            ((source, _, segment),) = guest.packets(p.PROTO_TCP)
            assert source == GATEWAY
            client = TcpClient(guest, GATEWAY, int.from_bytes(segment[:2], "big"), 22)
            client.poll()
            client.emit(p.TCP_SYN | p.TCP_ACK, options=b"\x02\x04\x05\xb4")
            client.sequence += 1
            connection.sendall(b"hello")
            client.wait(lambda: client.data == b"hello")
            client.write(b"welcome")
            assert connection.recv(100) == b"welcome"


def test_a_guest_that_is_not_there_is_asked_again() -> None:
    with user_network(options(hostfwd=[{"str": "tcp:127.0.0.1:0-:22"}]), known=False) as guest:
        port = guest.network.tcp.rows()[0][2][1]
        with socket.create_connection((LOOPBACK, port), 5):
            guest.loop.until(lambda: guest.frames)
            guest.network.learn(GUEST_IP, GUEST_MAC)
            guest.clock.advance(2 * NANOSECONDS)
            segments = [segment for _, _, segment in guest.packets(p.PROTO_TCP)]
            assert segments
            assert segments[0][13] == p.TCP_SYN


def test_forwards_come_and_go() -> None:
    with user_network() as guest:
        network = guest.network
        network.add_forward("tcp:127.0.0.1:0-:80")
        port = network.tcp.rows()[0][2][1]
        assert f"TCP[HOST_FORWARD] {network.tcp.rows()[0][1]:3}       127.0.0.1 {port:5}" in network.connections_text()
        with pytest.raises(ConfigError) as caught:
            network.add_forward(f"tcp:127.0.0.1:{port}-:80")
        assert str(caught.value) == f"Could not set up host forwarding rule 'tcp:127.0.0.1:{port}-:80'"
        assert network.remove_forward(f"tcp:127.0.0.1:{port}") is True
        assert network.remove_forward(f"tcp:127.0.0.1:{port}") is False
        assert network.remove_forward("nonsense") is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port), 5)


def test_a_guest_forward_leads_to_a_character_device() -> None:
    ring = RingbufChardev("ring", 4096)

    def find(text: str, label: str) -> Chardev:
        assert (text, label) == ("chardev:ring", "guestfwd.tcp.7000")
        return ring

    config = options(guestfwd=[{"str": "tcp:10.0.2.100:7000-chardev:ring"}], restrict=True)
    with user_network(config, find_chardev=find) as guest:
        client = TcpClient(guest, bytes((10, 0, 2, 100)), 7000)
        client.open()
        client.write(b"to the ring")
        client.wait(lambda: client.peer_acknowledged == client.sequence)
        assert ring.read(100) == b"to the ring"
        second = TcpClient(guest, client.other, 7000, 40001)
        second.emit(p.TCP_SYN)
        second.poll()
        assert second.flags & p.TCP_RST


def test_a_guest_forward_runs_a_program_for_each_connection() -> None:
    with user_network(options(guestfwd=[{"str": "tcp:10.0.2.100:7000-cmd:tr a-z A-Z"}])) as guest:
        for own in (40000, 40001):
            client = TcpClient(guest, bytes((10, 0, 2, 100)), 7000, own)
            client.open()
            client.write(b"hello")
            client.finish()
            client.wait(lambda: client.ended)  # noqa: B023 - called before the loop goes on
            assert client.data == b"HELLO"


# ---- TFTP


def blocks(guest: Guest) -> list[bytes]:
    found = [data for _, _, _, data in guest.datagrams()]
    guest.take()
    return found


def test_files_are_read_by_tftp(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    (tmp_path / "kernel").write_bytes(content)
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1/kernel\0octet\0", 2000)
        received = b""
        for number in range(1, 4):
            (block,) = blocks(guest)
            assert block[:4] == struct.pack("!HH", 3, number)
            received += block[4:]
            guest.udp(GATEWAY, 69, struct.pack("!HH", 4, number), 2000)
        assert blocks(guest) == []
        assert received == content


def test_tftp_options_are_agreed_on(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"k" * 3000)
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1kernel\0octet\0tsize\x000\0blksize\x009000\0unknown\x001\0", 2000)
        assert blocks(guest) == [b"\0\6tsize\x003000\0blksize\x001428\0"]
        guest.udp(GATEWAY, 69, b"\0\4\0\0", 2000)
        (block,) = blocks(guest)
        assert len(block) == 4 + 1428


@pytest.mark.parametrize("name", [b"../secret", b"/../secret", b"link", b"a/../../secret", b"", b"missing", b"."])
def test_tftp_does_not_leave_its_directory(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with user_network(options(tftp=str(root))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1" + name + b"\0octet\0", 2000)
        assert blocks(guest) == [b"\0\5\0\1file not found\0"]


def test_nothing_is_written_by_tftp(tmp_path: Path) -> None:
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\2file\0octet\0", 2000)
        assert blocks(guest) == [b"\0\5\0\2access violation\0"]
        assert list(tmp_path.iterdir()) == []


# ---- Hostile guests

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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda tail: MACS + b"\x08\x06" + tail),
                          st.binary(max_size=60).map(lambda tail: MACS + b"\x08\x00\x45" + tail), hostile_packets()),
                max_size=8))  # fmt: skip
def test_no_frame_does_harm(frames: list[bytes]) -> None:
    with user_network(options(tftp="/nonexistent", guestfwd=[{"str": "tcp:10.0.2.100:7000-cmd:true"}])) as guest:
        for frame in frames:
            guest.send(frame)
        guest.send_end()
        guest.clock.advance(NANOSECONDS)
        guest.take()
        guest.ip(GATEWAY, p.PROTO_ICMP, p.icmp_message(p.ICMP_ECHO, 0, 1, 1, b""))
        assert guest.network.neighbours.keys() <= {GUEST_IP, b"\x0a\0\2\x10"} or guest.frames


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
