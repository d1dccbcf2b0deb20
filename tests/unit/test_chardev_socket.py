"""Socket back ends: flow control, coming and going, and how connections come about."""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.address import FdAddress, InetAddress, UnixAddress
from pyvm.chardev.base import ChardevError, ChardevEvent
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop
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


def unix_client(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(path)  # without a time-out: it waits for room in the backlog instead of failing
    except OSError:
        client.close()
        raise
    client.settimeout(30)
    return client


def tcp_port(device: SocketChardev) -> int:
    return int(device.filename.split(",")[0].rsplit(":", 1)[1])


def tcp_server(loop: MainLoop, **extra: object) -> SocketChardev:
    options = SocketOptions(id="t0", address=InetAddress("127.0.0.1", "0"), server=True, **extra)  # type: ignore[arg-type]
    return SocketChardev(options, loop)


def read_exactly(client: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = client.recv(length - len(data))
        assert piece, "the connection ended early"
        data += piece
    return bytes(data)


def reader(client: socket.socket, length: int, result: list[bytes]) -> threading.Thread:
    thread = threading.Thread(target=lambda: result.append(read_exactly(client, length)))
    thread.start()
    return thread


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


# How connections come about.


def test_the_socket_file_is_private_and_goes_with_its_owner(loop: MainLoop, path: str) -> None:
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True), loop)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    device.close()
    assert not os.path.exists(path)
    device.close()


def test_a_stale_file_is_replaced_and_a_live_one_is_not(loop: MainLoop, path: str) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    options = SocketOptions(id="s", address=UnixAddress(path), server=True)
    first = SocketChardev(options, loop)
    front = Recorder().attach(first)
    with pytest.raises(ChardevError, match=rf"^Failed to bind socket to {path}: Address already in use$"):
        SocketChardev(options, loop)
    settle(loop)
    assert front.log == [], "the owner must not notice"
    assert os.path.exists(path)
    first.close()


def test_what_is_no_socket_is_not_replaced(loop: MainLoop, path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ChardevError, match="Address already in use"):
        SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True), loop)
    assert Path(path).read_text() == "precious"


def test_a_file_that_replaced_ours_is_left(loop: MainLoop, path: str) -> None:
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True), loop)
    os.unlink(path)
    other = socket.socket(socket.AF_UNIX)
    other.bind(path)
    device.close()
    assert os.path.exists(path)
    other.close()


def test_abstract_names(loop: MainLoop) -> None:
    name = f"pyvm-test-{os.getpid()}"
    for tight, wire in ((True, f"\0{name}"), (False, f"\0{name}".ljust(108, "\0"))):
        address = UnixAddress(name, abstract=True, tight=tight)
        device = SocketChardev(SocketOptions(id="s", address=address, server=True), loop)
        assert device.filename == f"disconnected:unix:{name},abstract=on,tight={'on' if tight else 'off'},server=on"
        with unix_client(wire):
            run_until(loop, lambda device=device: device.connected)
        device.close()


def test_tcp_server_names_itself_and_its_peer(loop: MainLoop) -> None:
    device = tcp_server(loop, nodelay=True)
    port = tcp_port(device)
    assert device.filename == f"disconnected:tcp:127.0.0.1:{port},server=on"
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        run_until(loop, lambda: device.connected)
        peer = client.getsockname()[1]
        assert device.filename == f"tcp:127.0.0.1:{port},server=on <-> 127.0.0.1:{peer}"
        assert device._socket is not None
        assert device._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    device.close()


def test_tcp_port_range(loop: MainLoop) -> None:
    first = tcp_server(loop)
    port = tcp_port(first)
    with pytest.raises(ChardevError, match=r"^Failed to find an available port: Address already in use$"):
        SocketChardev(SocketOptions(id="b", address=InetAddress("127.0.0.1", str(port)), server=True), loop)
    address = InetAddress("127.0.0.1", str(port), to=min(port + 50, 65535))
    second = SocketChardev(SocketOptions(id="b", address=address, server=True), loop)
    assert port < tcp_port(second) <= port + 50
    with pytest.raises(ChardevError, match="'to' port"):
        SocketChardev(SocketOptions(id="c", address=InetAddress("127.0.0.1", "9", to=3), server=True), loop)
    second.close()
    first.close()


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6_server(loop: MainLoop) -> None:
    try:
        address = InetAddress("::1", "0", ipv6=True)
        device = SocketChardev(SocketOptions(id="s", address=address, server=True), loop)
    except ChardevError:
        pytest.skip("no IPv6 loopback here")
    port = tcp_port(device)
    assert device.filename == f"disconnected:tcp:[::1]:{port},server=on"
    with socket.create_connection(("::1", port), 30):
        run_until(loop, lambda: device.connected)
    device.close()


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("family", "both"), [({}, True), ({"ipv4": True, "ipv6": True}, True), ({"ipv6": True}, False)]
)
def test_any_address_of_ipv6_is_one_of_ipv4_too(family: dict[str, bool], both: bool, loop: MainLoop) -> None:
    """Unless only one family is asked for."""
    try:
        device = SocketChardev(SocketOptions(id="s", address=InetAddress("::", "0", **family), server=True), loop)
    except ChardevError:
        pytest.skip("no IPv6 here")
    with socket.socket() as client:
        assert (client.connect_ex(("127.0.0.1", tcp_port(device))) == 0) == both
    device.close()


def test_client_connects_and_does_not_come_back(loop: MainLoop, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        device = SocketChardev(SocketOptions(id="c", address=UnixAddress(path)), loop)
        front = Recorder().attach(device)
        peer, _ = listener.accept()
        peer.sendall(b"hi")
        run_until(loop, lambda: front.data == b"hi")
        peer.close()
        run_until(loop, lambda: not device.connected)
        assert front.log == [OPENED, b"hi", CLOSED]
        assert device.filename == f"disconnected:unix:{path}"
        device.close()


def test_a_connection_refused_is_one_line(loop: MainLoop, tmp_path: Path) -> None:
    with pytest.raises(ChardevError, match=r"^Failed to connect to '/nonexist/s': No such file or directory$"):
        SocketChardev(SocketOptions(id="c", address=UnixAddress("/nonexist/s")), loop)
    with pytest.raises(ChardevError, match=r"^Failed to connect to 'localhost:1': Connection refused$"):
        SocketChardev(SocketOptions(id="c", address=InetAddress("localhost", "1")), loop)
    with pytest.raises(ChardevError, match=r"^Failed to bind socket to /nonexist/s: No such file or directory$"):
        SocketChardev(SocketOptions(id="c", address=UnixAddress("/nonexist/s"), server=True), loop)
    for path in ("x" * 108, "a\0b", ""):
        with pytest.raises(ChardevError, match="path"):
            SocketChardev(SocketOptions(id="c", address=UnixAddress(path), server=True), loop)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_reconnecting_client(
    loop: MainLoop, path: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    delays: list[float] = []
    call_later = loop.call_later

    def hastened(seconds: float, callback: object, *args: object) -> object:
        if seconds >= 1:
            delays.append(seconds)
            seconds = 0.001
        return call_later(seconds, callback, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", hastened)
    if kind == "unix":
        address: UnixAddress | InetAddress = UnixAddress(path)
    else:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = InetAddress("127.0.0.1", str(probe.getsockname()[1]))
    device = SocketChardev(SocketOptions(id="r", address=address, reconnect=7), loop)
    front = Recorder().attach(device)
    run_until(loop, lambda: len(delays) >= 3)
    assert set(delays) == {7}
    assert capsys.readouterr().err.count("Unable to connect character device r: Failed to connect to '") == 1
    for _ in range(2):
        if kind == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
        else:
            assert isinstance(address, InetAddress)
            listener = socket.create_server(("127.0.0.1", int(address.port)))
        run_until(loop, lambda: device.connected)
        peer, _ = listener.accept()
        listener.close()
        if kind == "unix":
            os.unlink(path)
        peer.close()
        run_until(loop, lambda: not device.connected)
    assert front.log == [OPENED, CLOSED] * 2
    device.close()


def test_implicit_server_listens_or_connects(loop: MainLoop, path: str) -> None:
    options = SocketOptions(id="q", address=UnixAddress(path), server=True, connect_if_live=True)
    device = SocketChardev(options, loop)
    assert device.filename == f"disconnected:unix:{path},server=on"
    front = Recorder().attach(device)
    other = SocketChardev(options, loop)
    assert other.connected
    run_until(loop, lambda: front.log == [OPENED])
    other.close()
    device.close()


def test_waiting_for_a_client(loop: MainLoop, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    clients: list[socket.socket] = []

    def connect_soon() -> None:
        while not clients and not stop.is_set():
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                clients.append(unix_client(path))

    thread = threading.Thread(target=connect_soon)
    thread.start()
    options = SocketOptions(id="w", address=UnixAddress(path), server=True, wait=True)
    device = SocketChardev(options, loop)
    stop.set()
    thread.join()
    assert device.connected
    assert f"QEMU waiting for connection on: disconnected:unix:{path},server=on\n" in capsys.readouterr().err
    clients[0].close()
    run_until(loop, lambda: not device.connected)
    with unix_client(path):
        run_until(loop, lambda: device.connected)
    device.close()


def test_inherited_connection(loop: MainLoop) -> None:
    ours, theirs = socket.socketpair()
    device = SocketChardev(SocketOptions(id="f", address=FdAddress(str(ours.detach()))), loop)
    front = Recorder().attach(device)
    theirs.sendall(b"hi")
    run_until(loop, lambda: front.data == b"hi")
    assert device.filename == "unix:"
    theirs.close()
    run_until(loop, lambda: not device.connected)
    device.close()


def test_inherited_listener(loop: MainLoop, path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    options = SocketOptions(id="f", address=FdAddress(str(listener.detach())), server=True)
    device = SocketChardev(options, loop)
    assert device.filename == f"disconnected:unix:{path},server=on"
    with unix_client(path):
        run_until(loop, lambda: device.connected)
    device.close()
    assert os.path.exists(path), "whoever made the file removes it"


def test_named_descriptor(loop: MainLoop) -> None:
    ours, theirs = socket.socketpair()
    named = {"mine": ours.detach()}
    device = SocketChardev(SocketOptions(id="f", address=FdAddress("mine")), loop, find_fd=named.get)
    assert device.connected
    device.close()
    theirs.close()


def test_wrong_descriptors(loop: MainLoop, tmp_path: Path) -> None:
    def attempt(name: str) -> str:
        with pytest.raises(ChardevError) as caught:
            SocketChardev(SocketOptions(id="f", address=FdAddress(name)), loop)
        return str(caught.value)

    with (tmp_path / "f").open("w") as file:
        assert attempt(str(file.fileno())) == f"File descriptor '{file.fileno()}' is not a socket"
    assert attempt("999999") == "File descriptor '999999' is not a socket"
    assert attempt("9" * 30) == f"File descriptor '{'9' * 30}' is not a socket"
    assert attempt("abc") == "Unable to parse FD number abc"
    assert attempt("-1") == "Unable to parse FD number -1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert "is not a stream socket" in attempt(str(datagrams.fileno()))


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


# Telnet on the wire.


def test_telnet_server(loop: MainLoop) -> None:
    device = tcp_server(loop, telnet=True)
    port = tcp_port(device)
    assert device.filename == f"disconnected:telnet:127.0.0.1:{port},server=on"
    front = Recorder().attach(device)
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        run_until(loop, lambda: device.connected)
        assert read_exactly(client, 12) == b"\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00"
        client.sendall(b"a\xff\xffb\xff\xf3c\xff\xfd\x18")
        run_until(loop, lambda: len(front.data) == 4)
        assert front.log == [OPENED, b"a\xffb", BREAK, b"c"]
        assert read_exactly(client, 3) == b"\xff\xfc\x18"
        front.send(b"x\xffy")
        assert read_exactly(client, 4) == b"x\xff\xffy"
    device.close()


def test_telnet_doubles_under_back_pressure(loop: MainLoop, path: str) -> None:
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True, telnet=True), loop)
    front = Recorder().attach(device)
    with unix_client(path) as client:
        run_until(loop, lambda: device.connected)
        read_exactly(client, 12)
        sent = bytes([255, 255, 1, 255, 2]) * 100_000
        front.send(sent)
        result: list[bytes] = []
        thread = reader(client, len(sent) * 8 // 5, result)
        run_until(loop, lambda: not thread.is_alive())
        thread.join()
        assert result[0].replace(b"\xff\xff", b"\xff") == sent
    device.close()


def test_what_a_telnet_client_left_behind_is_translated(loop: MainLoop, path: str) -> None:
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True, telnet=True), loop)
    front = Recorder(room=0).attach(device)
    with unix_client(path) as client:
        client.sendall(b"one\xff\xf3t\xff\xffwo")
    run_until(loop, lambda: device._closing)
    front.grant(100)
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, b"one", BREAK, b"t\xffwo", CLOSED]
    device.close()


def test_telnet_pair_that_the_kernel_cut_in_two_is_completed(loop: MainLoop, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as meter_end, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.meter")
        listener.listen()
        meter_end.connect(f"{path}.meter")
        meter_end.setblocking(False)
        meter_end.send(bytes(12))
        capacity = meter_end.send(bytes(1 << 22))
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True, telnet=True), loop)
    front = Recorder().attach(device)
    with unix_client(path) as client:
        run_until(loop, lambda: device.connected)
        text = b"a" * (capacity - 1) + b"\xff"
        assert device.write(text) == len(text)
        assert device._half_pair
        settle(loop)
        assert front.writables == 0
        result: list[bytes] = []
        thread = reader(client, 12 + len(text) + 1, result)
        run_until(loop, lambda: not thread.is_alive())
        thread.join()
        assert result[0][12:] == text + b"\xff"
        front.send(b"next")
        assert read_exactly(client, 4) == b"next"
    device.close()
