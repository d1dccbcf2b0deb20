"""What the tests of socket back ends share: servers and clients."""

from __future__ import annotations

import socket
import threading

from pyvm.chardev.address import InetAddress
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop


def unix_client(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(path)  # without a time-out: it waits for room in the backlog instead of failing
    except OSError:
        client.close()
        raise
    client.settimeout(60)
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
