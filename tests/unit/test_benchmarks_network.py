"""The network chapter of the benchmarks: the program on the host that guests get their data of."""

from __future__ import annotations

import hashlib
import socket

from benchmarks import network_chapter


def get(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_the_block_comes_as_often_as_it_is_asked_for() -> None:
    block = bytes(range(256)) * 10
    with network_chapter.serving(block) as server:
        assert get(server.port, b"1\n") == block
        assert get(server.port, b"nonsense\n") == b""
        whole = get(server.port, b"%d\n" % network_chapter.TIMES)
    assert hashlib.md5(whole, usedforsecurity=False).hexdigest() == network_chapter.digest(block)
