"""The network of a guest: a card on the back end `user`, one TCP connection at a time to a program on the host.

With each card 1 GiB goes in either direction.  What arrives must have the checksum of what was sent; the download is
timed a second time, in which the guest throws the data away.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Guest, booted
from images.build import Image, build

MEMORY = 512
BLOCK = 64 << 20
"""What is sent again and again."""
TIMES = 16
PIECE = 1 << 20
GATEWAY = "10.0.2.2"
FOLDER = "/tmp/files"
HTTP_PORT = 8080
ROUTE_SECONDS = 30
TRANSFER_SECONDS = 600
TARGET = 0.5


class Digest(Protocol):
    """A checksum that grows."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


def _rate(name: str, title: str) -> Metric:
    return Metric(name, title, "MB/s", scale=1e-6, more_is_better=True, relative=TARGET)


METRICS = (
    _rate("net_download", "user network, host to guest"),
    _rate("net_upload", "user network, guest to host"),
    _rate("net_download.e1000", "the same with e1000, host to guest"),
    _rate("net_upload.e1000", "the same with e1000, guest to host"),
)


def digest(block: bytes) -> str:
    """Return the checksum of all that is sent in one direction."""
    found = hashlib.md5(usedforsecurity=False)
    for _ in range(TIMES):
        found.update(block)
    return found.hexdigest()


class Server:
    """The program on the host: each connection gets the block as often as it asks for."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError, ValueError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        for _ in range(int(connection.recv(PIECE))):
            connection.sendall(self.block)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


@contextmanager
def serving(block: bytes) -> Iterator[Server]:
    """Have the server as long as it is needed."""
    server = Server(block)
    try:
        yield server
    finally:
        server.close()


def _wait_for_route(guest: Guest) -> None:
    end = time.monotonic() + ROUTE_SECONDS
    while "default" not in guest.run("ip route"):
        if time.monotonic() > end:
            raise BenchmarkError(f"the guest has no network after {ROUTE_SECONDS} s")
        time.sleep(0.2)


def _get(server: Server, times: int) -> str:
    """Return the guest's command that gets the block so many times."""
    return f"echo {times} | nc {GATEWAY} {server.port}"


def _download(guest: Guest, server: Server) -> float:
    """Return the seconds that the guest takes to get all; once more, it looks at what it got."""
    printed = guest.finish(guest.start(f"{_get(server, TIMES)} | md5sum"), TRANSFER_SECONDS)
    if printed.split()[0] != digest(server.block):
        raise BenchmarkError("what the guest got is not what was sent")
    start = time.monotonic()
    guest.finish(guest.start(f"{_get(server, TIMES)} > /dev/null"), TRANSFER_SECONDS, interval=0.01)
    return time.monotonic() - start


def _fetch(port: int, found: Digest) -> int:
    """Read the file that the guest serves; return its length."""
    count = 0
    with socket.create_connection(("127.0.0.1", port), TRANSFER_SECONDS) as connection:
        connection.sendall(b"GET /block HTTP/1.0\r\n\r\n")
        reader = connection.makefile("rb", PIECE)
        while reader.readline().strip():
            pass  # headers
        while piece := reader.read(PIECE):
            count += len(piece)
            found.update(piece)
    return count


def _upload(guest: Guest, server: Server, port: int) -> float:
    """Return the seconds that the guest takes to send all, by its HTTP server."""
    guest.run(f"mkdir -p {FOLDER}; {_get(server, 1)} > {FOLDER}/block; httpd -p {HTTP_PORT} -h {FOLDER}")
    found = hashlib.md5(usedforsecurity=False)
    start = time.monotonic()
    count = sum(_fetch(port, found) for _ in range(TIMES))
    taken = time.monotonic() - start
    if (count, found.hexdigest()) != (TIMES * len(server.block), digest(server.block)):
        raise BenchmarkError("what the host got is not what was sent")
    return taken


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _transfers(emulator: Emulator, image: Image, directory: Path, block: bytes, card: str) -> tuple[float, float]:
    """Return how many bytes a second come to the guest, and from there."""
    port = _free_port()
    options = (
        *("-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:{HTTP_PORT}"),
        *("-device", f"{card},netdev=n0"),
    )
    with (
        serving(block) as server,
        booted(emulator, image, directory, MEMORY, seconds=TRANSFER_SECONDS, options=options) as guest,
    ):
        _wait_for_route(guest)
        size = TIMES * len(block)
        return size / _download(guest, server), size / _upload(guest, server, port)


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "network"
    directory.mkdir()
    block = random.Random(3).randbytes(BLOCK)
    # Debian's kernel for machines in a cloud has no driver for e1000.
    cards = (("", "virtio-net-pci", setting.image), (".e1000", "e1000", build("generic")))

    def measure(emulator: Emulator) -> Sample:
        sample: Sample = {}
        for suffix, card, image in cards:
            down, up = _transfers(emulator, image, directory, block, card)
            sample |= {f"net_download{suffix}": down, f"net_upload{suffix}": up}
        return sample

    return measure


CHAPTER = Chapter("network", "the network of a guest: virtio-net and e1000, user", METRICS, _prepare)
