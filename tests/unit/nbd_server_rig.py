"""What the tests of the NBD server share: a machine with disks and a server, and a client that speaks in bytes."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pyvm.block.export.exports import ExportOptions
from pyvm.block.export.nbd import NbdExport, NbdOptions
from pyvm.block.export.starting import ServerOptions, open_listener, start_server
from pyvm.block.node import Node
from pyvm.chardev.address import UnixAddress
from pyvm.clock import ManualClock
from pyvm.config import MachineConfig
from pyvm.machine.storage import Storage, StorageEvents

SIZE = 1 << 20
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 3, 5, 6, 7, 8, 9, 10
ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN = (1 << 31 | it for it in (1, 2, 3, 5, 6))
ERR_TOO_BIG = 1 << 31 | 9
PATIENCE = 60.0


class Serving:
    """Disks of a machine, exported by its NBD server."""

    def __init__(self, folder: Path, objects: dict[str, Any] | None = None, **options: Any) -> None:
        self.path = folder / "nbd.sock"
        self.lock = threading.RLock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        found = objects or {}
        self.storage = Storage(
            MachineConfig(),
            self.lock,
            ManualClock(),
            StorageEvents(lambda name, data: self.events.append((name, data)), lambda: None, lambda *call: None),
            find_object=found.get,
        )
        self.exports = self.storage.exports
        self.left: list[bool] = []
        """For each client that has gone, whether it was served."""
        with self.lock:
            start_server(
                self.exports,
                lambda: open_listener(UnixAddress(str(self.path))),
                ServerOptions(**options),
                found.get,
                self.left.append,
            )

    def node(self, name: str, **options: Any) -> Node:
        """Open a node for the monitor."""
        with self.lock:
            return self.storage.add_node({"node-name": name, **options})

    def disk(self, name: str, folder: Path, content: bytes = b"", size: int = SIZE, **options: Any) -> Node:
        """Open a raw image with some content."""
        path = folder / f"{name}.raw"
        path.write_bytes(content)
        with path.open("r+b") as file:
            file.truncate(size)
        tree = {"driver": "file", "filename": str(path), "discard": "unmap"}
        return self.node(name, driver="raw", file=tree, discard="unmap", **options)

    def export(self, name: str, node: str, *, writable: bool = True, **options: Any) -> NbdExport:
        """Export a node."""
        with self.lock:
            general = ExportOptions(name, node, writable)
            export = NbdExport(self.exports, general, NbdOptions(**{"name": name, **options}))
            self.exports.add(export)
            return export

    def client(self, **options: Any) -> NbdClient:
        """Connect, and greet."""
        return NbdClient(self.path, **options)

    def ready(self, export: str, **options: Any) -> NbdClient:
        """Return a client that may make requests."""
        client = self.client()
        client.go(export, **options)
        return client

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for other threads."""
        end = time.monotonic() + PATIENCE
        while True:
            with self.lock:
                if condition():
                    return
            assert time.monotonic() < end
            time.sleep(0.001)

    def close(self) -> None:
        """End everything; nothing of it must be left."""
        with self.lock:
            server = self.exports.server
            self.storage.close()
        if server is not None:
            self.wait(lambda: not server.client_count)


class NbdClient:
    """A client that sends what it is told to send."""

    def __init__(self, path: Path, flags: int = 3) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.structured = False
        self.cookie = 0
        self.greeting = self.receive(18)
        self.send(struct.pack(">I", flags))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, f"the server hung up, {count - len(data)} bytes early"
            data += part
        return data

    def receive_peek(self) -> int:
        """Return the first four bytes of what comes next, which stay there."""
        number: int = struct.unpack(">I", self.socket.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL))[0]
        return number

    def is_closed(self) -> bool:
        """Whether the server has hung up; it must not have said anything more."""
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True

    # ---- Options

    def option(self, option: int, data: bytes = b"") -> None:
        self.send(struct.pack(">QII", 0x49484156454F5054, option, len(data)) + data)

    def reply(self) -> tuple[int, int, bytes]:
        """Return option, kind and data of a reply."""
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.receive(length)

    def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return all replies, the last of which is an acknowledgement or an error."""
        self.option(option, data)
        replies = []
        while True:
            answered, kind, reply = self.reply()
            assert answered == option
            replies.append((kind, reply))
            if kind == ACK or kind & 1 << 31:
                return replies

    def go(self, export: str, *, structured: bool = True, contexts: tuple[str, ...] = ()) -> dict[int, bytes]:
        """Choose an export; return what the server tells about it."""
        if structured:
            assert self.ask(STRUCTURED) == [(ACK, b"")]
            self.structured = True
        if contexts:
            self.contexts = dict(self.meta(SET_META, export, *contexts))
        replies = self.ask(GO, text(export) + struct.pack(">H", 0))
        assert replies[-1] == (ACK, b""), replies
        return {struct.unpack(">H", data[:2])[0]: data[2:] for kind, data in replies if kind == REP_INFO}

    def meta(self, option: int, export: str, *queries: str) -> list[tuple[str, int]]:
        """Ask for kinds of block status; return their names and numbers."""
        data = text(export) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
        replies = self.ask(option, data)
        assert replies.pop() == (ACK, b"")
        assert all(kind == REP_META for kind, _ in replies)
        return [(data[4:].decode(), struct.unpack(">I", data[:4])[0]) for _, data in replies]

    # ---- Requests

    def request(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> int:
        """Send a request; return its cookie."""
        self.cookie += 1
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, command, self.cookie, offset, length) + data)
        return self.cookie

    def simple(self, length: int = 0) -> tuple[int, int, bytes]:
        """Return error, cookie and data of a simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698
        return error, cookie, b"" if error else self.receive(length)

    def chunks(self) -> tuple[int, list[tuple[int, bytes]]]:
        """Return the cookie, and types and payloads of all chunks of a structured reply."""
        found = []
        while True:
            magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
            assert magic == 0x668E33EF
            found.append((kind, self.receive(length)))
            if flags & 1:
                return cookie, found

    def do(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> int:
        """Make a request without data in its reply; return the error."""
        cookie = self.request(command, offset, length, flags, data)
        if self.receive_peek() == 0x67446698:
            error, answered, _ = self.simple()
            assert answered == cookie
            return error
        answered, found = self.chunks()
        assert answered == cookie
        ((kind, payload),) = found
        assert kind == 0x8001
        number, size = struct.unpack(">IH", payload[:6])
        assert len(payload) == 6 + size
        self.told = payload[6:].decode()
        return int(number)

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return self.do(WRITE, offset, len(data), flags, data)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """Read; zeros that are not sent are filled in."""
        cookie = self.request(READ, offset, length, flags)
        if not self.structured:
            error, answered, data = self.simple(length)
            assert (error, answered) == (0, cookie)
            return data
        answered, found = self.chunks()
        assert answered == cookie
        data = bytearray(b"?" * length)
        for kind, payload in found:
            (start,) = struct.unpack(">Q", payload[:8]) if payload else (0,)
            if kind == 1:
                data[start - offset : start - offset + len(payload) - 8] = payload[8:]
            elif kind == 2:
                (count,) = struct.unpack(">I", payload[8:])
                data[start - offset : start - offset + count] = bytes(count)
            else:
                assert (kind, payload) == (0, b"")
        assert len(data) == length
        return bytes(data)

    def status(self, offset: int, length: int, flags: int = 0) -> dict[str, list[tuple[int, int]]]:
        """Ask what is where; return lengths and flags by the kind of block status."""
        names = {number: name for name, number in self.contexts.items()}
        cookie = self.request(STATUS, offset, length, flags)
        answered, found = self.chunks()
        assert answered == cookie
        told = {}
        for kind, payload in found:
            assert kind == 5
            number = struct.unpack(">I", payload[:4])[0]
            told[names[number]] = list(struct.iter_unpack(">II", payload[4:]))
        return told


def wait_until_listening(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for a server that was just started."""
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(path))
            return
        time.sleep(0.01)


def text(name: str) -> bytes:
    """Return a text with its length before it."""
    data = name.encode()
    return struct.pack(">I", len(data)) + data
