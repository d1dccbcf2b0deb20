"""The back end `user`: connections of a guest, with real sockets on the host's side."""

from __future__ import annotations

import socket
import struct

import pytest

from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net.client import GSO_TCPV4, NEEDS_CSUM, Offload, Offloads
from tests.unit.net_support import (
    GATEWAY,
    PATIENCE,
    TcpClient,
    listener,
    options,
    user_network,
)


def test_a_guest_connects_sends_and_receives() -> None:
    with user_network() as guest, listener() as server:
        client = TcpClient(guest, GATEWAY, server.getsockname()[1])
        client.open()
        connection, _ = server.accept()
        connection.settimeout(PATIENCE)
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
        connection.settimeout(PATIENCE)
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
        connection.settimeout(PATIENCE)
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
        connection.settimeout(PATIENCE)
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
        connection.settimeout(PATIENCE)
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
