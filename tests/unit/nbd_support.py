"""NBD for tests: the bytes that servers say, and a small server with one export in RAM."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvm.block.drivers.nbd_protocol import TransmissionFlag

FLAGS = TransmissionFlag(0xED)  # flags, flush, FUA, trim, write zeroes, DF
NEWSTYLE = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def export_info(size: int = 4096, flags: int = FLAGS) -> bytes:
    return reply(7, 3, struct.pack(">HQH", 0, size, flags))


def block_sizes(least: int, preferred: int, most: int) -> bytes:
    return reply(7, 3, struct.pack(">HIII", 3, least, preferred, most))


STRUCTURED = reply(8, 1)
CONTEXT = reply(10, 4, struct.pack(">I", 9) + b"base:allocation") + reply(10, 1)
ACK = reply(7, 1)
UNSUPPORTED = 0x80000001


def simple(error: int = 0, cookie: int = 1) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


def chunk(kind: int, payload: bytes = b"", *, done: bool = False, cookie: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(payload)) + payload


def error_chunk(error: int, *, done: bool = False, kind: int = 0x8001, text: bytes = b"", more: bytes = b"") -> bytes:
    return chunk(kind, struct.pack(">IH", error, len(text)) + text + more, done=done)


class Server:
    """A server with one export in RAM.  `fail` says which requests fail."""

    def __init__(
        self, path: Path, size: int, *, flags: int = FLAGS, structured: bool = True, least: int = 1, most: int = 1 << 20
    ) -> None:
        self.path = path
        self.data = bytearray(size)
        self.size = size
        self.flags = flags
        self.structured = structured
        self.sizes = (least, max(512, least), most)
        self.requests: list[tuple[int, int, int, int]] = []
        self.fail: Callable[[int], int] = lambda command: 0
        """Given a command, returns an error; -1 closes the connection."""
        self.connections: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        self.path.unlink(missing_ok=True)
        self.kill()

    def kill(self) -> None:
        while self.connections:
            it = self.connections.pop()
            it.shutdown(socket.SHUT_RDWR) if it.fileno() >= 0 else None

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            try:
                connection.sendall(NEWSTYLE)
                file.read(4)
                while self.option(connection, file):
                    pass
                while self.request(connection, file):
                    pass
            except (OSError, struct.error):
                return

    def option(self, connection: socket.socket, file: Any) -> bool:
        _, option, length = struct.unpack(">QII", file.read(16))
        data = file.read(length)
        if option == 8:
            connection.sendall(reply(8, 1 if self.structured else UNSUPPORTED))
        elif option == 10:
            connection.sendall(CONTEXT)
        elif option == 7 and data[4:-4] == b"disk":
            connection.sendall(block_sizes(*self.sizes) + export_info(self.size, self.flags) + ACK)
            return False
        else:
            connection.sendall(reply(option, 0x80000006))
        return True

    def request(self, connection: socket.socket, file: Any) -> bool:
        _, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", file.read(28))
        payload = file.read(length) if command == 1 else b""
        if command != 2:
            self.requests.append((command, flags, offset, length))
        error = self.fail(command)
        if command == 2 or error < 0:
            return False
        least, _, most = self.sizes
        if offset % least or length % least or offset + length > self.size or (command < 2 and length > most):
            error = error or 22
        if error:
            answer = error_chunk(error, done=True) if self.structured else simple(error)
            answer = answer.replace(struct.pack(">Q", 1), struct.pack(">Q", cookie), 1)
            connection.sendall(answer)
            return True
        connection.sendall(self.perform(command, cookie, offset, length, payload))
        return True

    def perform(self, command: int, cookie: int, offset: int, length: int, payload: bytes) -> bytes:
        if command == 1:
            self.data[offset : offset + length] = payload
        elif command in (4, 6):
            self.data[offset : offset + length] = bytes(length)
        if command == 0 and self.structured:
            half = length // 2
            parts = [
                (offset + half, self.data[offset + half : offset + length]),
                (offset, self.data[offset : offset + half]),
            ]
            return b"".join(
                chunk(1, struct.pack(">Q", at) + part, cookie=cookie) for at, part in parts if part
            ) + chunk(0, done=True, cookie=cookie)
        if command == 7:
            first = self.data[offset]
            end = offset
            while end < offset + length and bool(self.data[end]) == bool(first):
                end += 1
            return chunk(5, struct.pack(">III", 9, end - offset, 0 if first else 3), cookie=cookie, done=True)
        return simple(0, cookie) + (self.data[offset : offset + length] if command == 0 else b"")
