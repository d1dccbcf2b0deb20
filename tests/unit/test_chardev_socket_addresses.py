"""Socket back ends: how connections come about, by every kind of address, as server and as client."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.address import FdAddress, InetAddress, Listener, UnixAddress, listen
from pyvm.chardev.base import ChardevError, ChardevEvent
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_socket_rig import tcp_port, tcp_server, unix_client
from tests.unit.chardev_support import Recorder, run_until, running_loop, settle

OPENED, CLOSED, BREAK = ChardevEvent.OPENED, ChardevEvent.CLOSED, ChardevEvent.BREAK


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s.sock")


def test_the_socket_file_is_private_and_goes_with_its_owner(loop: MainLoop, path: str) -> None:
    device = SocketChardev(SocketOptions(id="s", address=UnixAddress(path), server=True), loop)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    device.close()
    assert not os.path.exists(path)
    device.close()


def test_the_file_of_the_next_one_stays(path: str) -> None:
    """Who listens there next may have come as soon as this one did not listen any more."""

    class Leaving(socket.socket):
        def close(self) -> None:
            super().close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            successors.append(listen(UnixAddress(path)))

    successors: list[Listener] = []
    listener = listen(UnixAddress(path))
    (old,) = listener.sockets
    listener.sockets[:] = [Leaving(fileno=old.detach())]
    listener.close()
    unix_client(path).close()
    successors[0].close()
    assert not os.path.exists(path)


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
