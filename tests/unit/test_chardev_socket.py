"""Socket back ends: the life of a connection, flow control, and descriptors that arrive with the bytes."""

from __future__ import annotations

import array
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.address import UnixAddress
from pyvm.chardev.base import ChardevEvent
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_socket_rig import read_exactly, reader, tcp_port, tcp_server, unix_client
from tests.unit.chardev_support import Recorder, is_quiet, run_until, running_loop, settle

OPENED, CLOSED, BREAK = ChardevEvent.OPENED, ChardevEvent.CLOSED, ChardevEvent.BREAK


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s.sock")


@pytest.fixture
def server(loop: MainLoop, path: str) -> Iterator[SocketChardev]:
    device = SocketChardev(SocketOptions(id="s0", address=UnixAddress(path), server=True), loop)
    yield device
    device.close()


# The life of a connection.


def test_client_comes_talks_and_leaves(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    assert server.filename == f"disconnected:unix:{path},server=on"
    assert not server.connected
    assert front.log == []
    with unix_client(path) as client:
        client.sendall(b"ping")
        run_until(loop, lambda: front.data == b"ping")
        assert server.connected
        assert server.filename == f"unix:{path},server=on"
        front.send(b"pong")
        assert client.recv(100) == b"pong"
    run_until(loop, lambda: not server.connected)
    assert front.log == [OPENED, b"ping", CLOSED]


def test_without_a_peer_output_is_dropped(server: SocketChardev) -> None:
    assert server.write(b"x" * 1_000_000) == 1_000_000


def test_bytes_before_a_disconnect_come_before_closed(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    sent = os.urandom(150_000)
    with unix_client(path) as client:
        client.sendall(sent)
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, sent, CLOSED]


def test_a_front_end_that_attaches_late_hears_of_the_peer(loop: MainLoop, server: SocketChardev, path: str) -> None:
    with unix_client(path) as client:
        client.sendall(b"early")
        run_until(loop, lambda: server.connected)
        front = Recorder().attach(server)
        run_until(loop, lambda: front.data == b"early")
        assert front.log == [OPENED, b"early"]
        with pytest.raises(ValueError, match="Device 's0' is in use"):
            Recorder().attach(server)


def test_a_thousand_reconnects_lose_nothing(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    rounds = 1000
    answers: list[bytes] = []

    def clients() -> None:
        for number in range(rounds):
            with unix_client(path) as client:
                client.sendall(b"%06d" % number)
                answers.append(read_exactly(client, 6))

    echoed = 0
    receive = front.receive

    def echo(data: bytes) -> None:
        nonlocal echoed
        receive(data)
        echoed += len(data)
        front.send(data)

    front.receive = echo  # type: ignore[method-assign]
    thread = threading.Thread(target=clients)
    thread.start()
    run_until(loop, lambda: not thread.is_alive() and not server.connected)
    thread.join()
    assert answers == [b"%06d" % number for number in range(rounds)]
    assert front.log == [entry for number in range(rounds) for entry in (OPENED, b"%06d" % number, CLOSED)]


def test_a_thousand_clients_that_send_and_leave(loop: MainLoop, server: SocketChardev, path: str) -> None:
    """The guest reads now and then only, and each client is gone before the next comes."""
    front = Recorder(room=0).attach(server)
    rounds = 1000

    def clients() -> None:
        for number in range(rounds):
            with unix_client(path) as client:
                client.sendall(b"%06d" % number)

    thread = threading.Thread(target=clients)
    thread.start()

    def all_there() -> bool:
        front.grant(50)
        return len(front.data) == rounds * 6 and not server.connected and not thread.is_alive()

    run_until(loop, all_there)
    thread.join()
    assert front.data == b"".join(b"%06d" % number for number in range(rounds))
    assert front.events() == [OPENED, CLOSED] * rounds


def test_a_second_client_waits_until_the_first_leaves(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    first, second = unix_client(path), unix_client(path)
    second.sendall(b"second")
    first.sendall(b"first ")
    run_until(loop, lambda: front.data == b"first ")
    settle(loop)
    assert front.log == [OPENED, b"first "]
    first.close()
    run_until(loop, lambda: front.data.endswith(b"second"))
    second.close()
    run_until(loop, lambda: not server.connected)
    assert front.log == [OPENED, b"first ", CLOSED, OPENED, b"second", CLOSED]


# Flow control.


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_hundred_megabytes_each_way(loop: MainLoop, path: str, kind: str) -> None:
    if kind == "unix":
        device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True), loop)
        client = unix_client(path)
    else:
        device = tcp_server(loop)
        client = socket.create_connection(("127.0.0.1", tcp_port(device)), 30)
    block = os.urandom(1 << 20)
    total = 100 << 20
    seen = {"in": 0, "out": 0}
    sums = {name: hashlib.sha256() for name in ("in", "out", "expected")}

    class Front(Recorder):
        left = total

        def receive(self, data: bytes) -> None:
            seen["in"] += len(data)
            sums["in"].update(data)

        def can_receive(self) -> int:
            return 100_003

        def writable(self) -> None:
            while self.left:
                offset = (total - self.left) % len(block)
                piece = memoryview(block)[offset : offset + 65536]
                taken = device.write(piece)
                self.left -= taken
                if taken < len(piece):
                    return

    def talk() -> None:
        for _ in range(total // len(block)):
            client.sendall(block)

    def listen() -> None:
        buffer = bytearray(1 << 18)
        while seen["out"] < total and (count := client.recv_into(buffer)):
            sums["out"].update(memoryview(buffer)[:count])
            seen["out"] += count

    front = Front()
    front.attach(device)
    run_until(loop, lambda: device.connected)
    threads = [threading.Thread(target=talk), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    loop.call_soon(front.writable)
    run_until(loop, lambda: seen["in"] >= total and seen["out"] >= total)
    for thread in threads:
        thread.join()
    client.close()
    device.close()
    for _ in range(total // len(block)):
        sums["expected"].update(block)
    assert seen == {"in": total, "out": total}
    assert sums["in"].digest() == sums["out"].digest() == sums["expected"].digest()


def test_no_more_is_read_than_the_front_end_takes(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder(room=3).attach(server)
    with unix_client(path) as client:
        client.sendall(b"abcdefgh")
        run_until(loop, lambda: len(front.data) == 3)
        settle(loop)
        assert front.data == b"abc"
        front.grant(2)
        run_until(loop, lambda: front.data == b"abcde")
        front.grant(100)
        run_until(loop, lambda: front.data == b"abcdefgh")


def test_a_peer_that_does_not_read_holds_output_back(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    with unix_client(path) as client:
        run_until(loop, lambda: server.connected)
        sent = os.urandom(3_000_000)
        front.send(sent)
        assert front.waiting
        assert front.writables == 0
        result: list[bytes] = []
        thread = reader(client, len(sent), result)
        run_until(loop, lambda: not thread.is_alive())
        thread.join()
        assert result == [sent]
        assert front.writables > 0


def test_output_that_waits_is_dropped_when_the_peer_leaves(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    client = unix_client(path)
    run_until(loop, lambda: server.connected)
    front.send(bytes(3_000_000))
    assert front.waiting
    client.close()
    run_until(loop, lambda: not server.connected and not front.waiting)
    with unix_client(path) as again:
        run_until(loop, lambda: server.connected)
        front.send(b"fresh")
        assert again.recv(100) == b"fresh"


def test_the_next_client_is_served_though_the_guest_does_not_read(
    loop: MainLoop, server: SocketChardev, path: str
) -> None:
    front = Recorder(room=0).attach(server)
    with unix_client(path) as client:
        client.sendall(b"left behind, ")
    with unix_client(path) as client:
        run_until(loop, lambda: front.events() == [OPENED, CLOSED, OPENED])
        client.sendall(b"and more")
        front.send(b"output")
        assert client.recv(100) == b"output"
        front.grant(4)
        run_until(loop, lambda: front.data == b"left")
        front.grant(1000)
        run_until(loop, lambda: front.data == b"left behind, and more")


def test_closed_waits_for_the_last_byte(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder(room=0).attach(server)
    with unix_client(path) as client:
        client.sendall(b"the end")
    run_until(loop, lambda: front.log == [OPENED] and not server.connected)
    front.grant(3)
    run_until(loop, lambda: len(front.data) == 3)
    assert front.log == [OPENED, b"the"]
    front.grant(4)
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, b"the end", CLOSED]


def test_a_caller_who_hangs_up_on_a_closed_port_is_forgotten(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder(room=0).attach(server)
    server.set_open(False)
    with unix_client(path) as client:
        client.sendall(b"anybody?")
    run_until(loop, lambda: CLOSED in front.log)
    server.set_open(True)
    front.grant(100)
    with unix_client(path) as client:
        client.sendall(b"hello")
        run_until(loop, lambda: bool(front.data))
    assert front.data == b"hello"


def test_a_hung_up_peer_costs_no_time(loop: MainLoop, server: SocketChardev, path: str) -> None:
    """More is left than is kept in memory: the connection stays open, and nothing wakes the loop for it."""
    front = Recorder(room=0).attach(server)
    limit = 1000
    import pyvm.chardev.socket as module

    kept, module.LINGER_LIMIT = module.LINGER_LIMIT, limit
    try:
        with unix_client(path) as client:
            client.sendall(bytes(150_000))
        run_until(loop, lambda: server._peer_gone)
        assert is_quiet(loop)
        front.grant(1 << 20)
        run_until(loop, lambda: CLOSED in front.log)
    finally:
        module.LINGER_LIMIT = kept
    assert len(front.data) == 150_000


def test_waiting_clients_cost_no_time(loop: MainLoop, server: SocketChardev, path: str) -> None:
    Recorder(room=0).attach(server)
    clients = [unix_client(path), unix_client(path)]
    clients[0].sendall(b"x")
    run_until(loop, lambda: server.connected)
    assert is_quiet(loop)
    for client in clients:
        client.close()


def test_a_detached_front_end_leaves_input_where_it_is(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    with unix_client(path) as client:
        client.sendall(b"one")
        run_until(loop, lambda: front.data == b"one")
        server.detach()
        client.sendall(b"two")
        settle(loop)
        again = Recorder().attach(server)
        run_until(loop, lambda: again.data == b"two")
        assert front.data == b"one"
        server.detach()
    run_until(loop, lambda: not server.connected)


def test_calls_from_another_thread_are_not_lost(loop: MainLoop, server: SocketChardev, path: str) -> None:
    """The vCPU thread grants room in small steps and writes, while the main loop sleeps and wakes."""
    front = Recorder(room=0).attach(server)
    client = unix_client(path)
    run_until(loop, lambda: server.connected)
    sent = os.urandom(400_000)
    result: list[bytes] = []
    talker = threading.Thread(target=client.sendall, args=(sent,))
    listener = reader(client, len(sent), result)
    stop = threading.Event()

    def guest() -> None:
        position = 0
        while not stop.is_set():
            with loop.lock:
                if front.room == 0:
                    front.grant(1024)
                if not front.waiting and position < len(sent):
                    front.send(sent[position : position + 4096])
                    position += 4096

    vcpu = threading.Thread(target=guest)
    talker.start()
    vcpu.start()
    try:
        run_until(loop, lambda: len(front.data) == len(sent) and not listener.is_alive())
    finally:
        stop.set()
        vcpu.join()
    talker.join()
    listener.join()
    client.close()
    assert front.data == sent
    assert result == [sent]


# Descriptors that arrive with the bytes.


def pass_fds(client: socket.socket, data: bytes, fds: list[int]) -> None:
    client.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_descriptors_are_received_and_owned_by_who_takes_them(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    reading, writing = os.pipe()
    with unix_client(path) as client:
        pass_fds(client, b"take", [writing])
        run_until(loop, lambda: front.data == b"take")
        (received,) = server.take_fds()
        assert server.take_fds() == []
        assert not os.get_inheritable(received)
        os.write(received, b"through")
        assert os.read(reading, 100) == b"through"
        os.close(received)
        os.close(writing)
        assert os.read(reading, 1) == b""
    os.close(reading)


def test_descriptors_that_nobody_takes_are_closed(loop: MainLoop, server: SocketChardev, path: str) -> None:
    front = Recorder().attach(server)
    before = len(os.listdir("/proc/self/fd"))
    with unix_client(path) as client:
        run_until(loop, lambda: server.connected)
        connected = len(os.listdir("/proc/self/fd"))
        with open("/dev/null") as null:
            for number in range(50):
                pass_fds(client, b"x", [null.fileno()] * 40)
                run_until(loop, lambda number=number: len(front.data) == number + 1)
        assert len(os.listdir("/proc/self/fd")) <= connected + 16
    run_until(loop, lambda: not server.connected)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_leaks_over_many_connections(loop: MainLoop, server: SocketChardev, path: str) -> None:
    Recorder().attach(server)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with unix_client(path):
            run_until(loop, lambda: server.connected)
        run_until(loop, lambda: not server.connected)
    assert len(os.listdir("/proc/self/fd")) == before
