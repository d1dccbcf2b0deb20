"""Socket back ends that speak telnet."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.address import UnixAddress
from pyvm.chardev.base import ChardevEvent
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_socket_rig import read_exactly, reader, tcp_port, tcp_server, unix_client
from tests.unit.chardev_support import Recorder, run_until, running_loop, settle

OPENED, CLOSED, BREAK = ChardevEvent.OPENED, ChardevEvent.CLOSED, ChardevEvent.BREAK


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s.sock")


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
