"""Forwards of the back end `user`, from the host to the guest and from the guest to devices and programs."""

from __future__ import annotations

import socket

import pytest

from pyvm.chardev.base import Chardev
from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.clock import NANOSECONDS
from pyvm.errors import ConfigError
from pyvm.net import packets as p
from tests.unit.net_support import (
    GATEWAY,
    GUEST_IP,
    GUEST_MAC,
    LOOPBACK,
    TcpClient,
    options,
    user_network,
)


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
