"""The NBD protocol as the client has it: handshake and replies, byte by byte, from servers good and bad."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.nbd_connection import Connection
from pyvm.block.drivers.nbd_handshake import ExportInfo, negotiate
from pyvm.block.drivers.nbd_stream import ConnectionLost, Stream
from pyvm.block.errors import BlockError
from tests.unit.nbd_support import (
    ACK,
    CONTEXT,
    FLAGS,
    NEWSTYLE,
    STRUCTURED,
    UNSUPPORTED,
    block_sizes,
    chunk,
    error_chunk,
    export_info,
    reply,
    simple,
)


class Peer:
    """The other end of a connection, which has said everything before it is asked."""

    def __init__(self, said: bytes) -> None:
        ours, self.socket = socket.socketpair()
        for it in (ours, self.socket):
            it.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.sendall(said)
        self.socket.shutdown(socket.SHUT_WR)
        self.stream = Stream(ours, 10)

    def heard(self) -> bytes:
        self.stream.close()
        data = b""
        while part := self.socket.recv(1 << 20):
            data += part
        self.close()
        return data

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def shake_hands(said: bytes, export: str = "disk") -> ExportInfo:
    peer = Peer(said)
    try:
        return negotiate(peer.stream, export)
    finally:
        peer.close()


# ---- The handshake


def test_fixed_newstyle() -> None:
    peer = Peer(NEWSTYLE + STRUCTURED + CONTEXT + block_sizes(512, 4096, 1 << 20) + export_info(1 << 20) + ACK)
    info = negotiate(peer.stream, "disk")
    assert (info.size, info.flags, info.structured, info.context) == (1 << 20, FLAGS, True, 9)
    assert (info.min_block, info.max_block) == (512, 1 << 20)
    option = b"IHAVEOPT"
    name = struct.pack(">I", 4) + b"disk"
    assert peer.heard() == b"".join(
        [
            struct.pack(">I", 3),
            option + struct.pack(">II", 8, 0),
            option + struct.pack(">II", 10, 31) + name + struct.pack(">II", 1, 15) + b"base:allocation",
            option + struct.pack(">II", 7, 12) + name + struct.pack(">HH", 1, 3),
        ]
    )


def test_server_without_structured_replies_is_not_asked_for_a_context() -> None:
    info = shake_hands(NEWSTYLE + reply(8, UNSUPPORTED) + export_info() + ACK)
    assert (info.size, info.structured, info.context) == (4096, False, None)


def test_server_without_the_context() -> None:
    info = shake_hands(NEWSTYLE + STRUCTURED + reply(10, 1) + export_info() + ACK)
    assert (info.structured, info.context) == (True, None)


def test_server_without_go_is_asked_the_old_way() -> None:
    said = NEWSTYLE + reply(8, UNSUPPORTED) + reply(7, UNSUPPORTED) + struct.pack(">QH", 8192, 1)
    assert shake_hands(said).size == 8192


def test_newstyle_that_is_not_fixed() -> None:
    said = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 0) + struct.pack(">QH", 8192, 3) + bytes(124)
    info = shake_hands(said)
    assert info.size == 8192
    assert info.read_only


def test_oldstyle() -> None:
    said = b"NBDMAGIC" + struct.pack(">QQHH", 0x00420281861253, 8192, 0, 1) + bytes(124)
    assert shake_hands(said, "").size == 8192
    with pytest.raises(BlockError, match="non-empty export names"):
        shake_hands(said)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (0x80000002, "Denied by server for option 7 (go)"),
        (0x80000003, "Invalid parameters for option 7 (go)"),
        (0x80000005, "Server requires TLS for option 7 (go)\nDid you forget a valid tls-creds?"),
        (0x80000006, "Requested export not available"),
        (0x80000077, "Unknown error code when asking for option 7 (go)"),
    ],
)
def test_refusals(kind: int, text: str) -> None:
    with pytest.raises(BlockError) as caught:
        shake_hands(NEWSTYLE + reply(8, UNSUPPORTED) + reply(7, kind, b"no\x1b such"))
    assert str(caught.value) == f"{text}\nserver reported: no? such"


def test_server_that_wants_tls_at_once() -> None:
    with pytest.raises(BlockError, match=r"Server requires TLS for option 8 \(structured reply\)"):
        shake_hands(NEWSTYLE + reply(8, 0x80000005))


GO = NEWSTYLE + STRUCTURED + CONTEXT


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad",
        b"NBDMAGICNOTMAGIC",
        NEWSTYLE + reply(7, 1),
        NEWSTYLE + STRUCTURED[:4] + b"\xff" + STRUCTURED[5:],
        NEWSTYLE + reply(8, 1, b"surprise"),
        NEWSTYLE + reply(8, 3),
        NEWSTYLE + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 31),
        NEWSTYLE + STRUCTURED + reply(10, 4, b"abc"),
        NEWSTYLE + STRUCTURED + reply(10, 4, struct.pack(">I", 1) + b"other"),
        NEWSTYLE + STRUCTURED + reply(10, 4, struct.pack(">I", 1) + b"base:allocation") * 2,
        GO + ACK,
        GO + reply(7, 3),
        GO + reply(7, 3, bytes(3)),
        GO + reply(7, 2),
        GO + reply(7, 3, struct.pack(">HQ", 0, 1)),
        GO + block_sizes(3, 4096, 1 << 20) + export_info() + ACK,
        GO + block_sizes(0, 4096, 1 << 20) + export_info() + ACK,
        GO + block_sizes(1 << 20, 1 << 20, 1 << 20) + export_info() + ACK,
        GO + block_sizes(512, 256, 1 << 20) + export_info() + ACK,
        GO + block_sizes(512, 512, 100) + export_info() + ACK,
        GO + block_sizes(4096, 4096, 1 << 20) + export_info(4097) + ACK,
        GO + export_info(1 << 63) + ACK,
        GO + reply(7, 3, struct.pack(">H", 77)) * 300 + export_info() + ACK,
        NEWSTYLE + STRUCTURED + reply(10, 77) * 300,
    ],
    ids=itertools.count(),
)
def test_hostile_handshakes(said: bytes) -> None:
    with pytest.raises(BlockError):
        shake_hands(said)


@pytest.mark.parametrize("length", [0, 5, 17, 20, 40, 60])
def test_server_that_goes_away(length: int) -> None:
    with pytest.raises(ConnectionLost):
        shake_hands((GO + export_info())[:length])


def test_largest_request_is_bounded_and_aligned() -> None:
    assert shake_hands(GO + block_sizes(1, 4096, 0xFFFFFFFF) + export_info() + ACK).max_block == 32 << 20
    assert shake_hands(GO + block_sizes(512, 4096, 1000) + export_info() + ACK).max_block == 512


@settings(max_examples=150)
@given(data=st.data())
def test_no_handshake_does_harm(data: st.DataObject) -> None:
    said = bytearray(GO + block_sizes(512, 4096, 1 << 20) + export_info() + ACK)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(said) - 1))
        said[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        info = shake_hands(bytes(said))
    except (BlockError, ConnectionLost):
        return
    assert 0 <= info.size < 1 << 63
    assert 0 < info.min_block <= info.max_block <= 32 << 20


def test_silent_server() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream(ours, 0.01)
    with pytest.raises(ConnectionLost) as caught:
        stream.receive(1)
    assert caught.value.reason == "the server is silent"
    assert caught.value.errno == errno.EIO
    stream.close()
    theirs.close()


# ---- Replies


def data_chunk(offset: int, data: bytes, *, done: bool = False) -> bytes:
    return chunk(1, struct.pack(">Q", offset) + data, done=done)


def hole_chunk(offset: int, length: int, *, done: bool = False) -> bytes:
    return chunk(2, struct.pack(">QI", offset, length), done=done)


DONE = chunk(0, done=True)


def connect(said: bytes, *, structured: bool = True) -> tuple[Peer, Connection]:
    peer = Peer(said)
    return peer, Connection(peer.stream, ExportInfo(1 << 20, FLAGS, structured=structured, context=9))


def read(said: bytes, *, structured: bool = True) -> bytes:
    """Read 16 bytes at 0x100, into buffers of several sizes."""
    peer, connection = connect(said, structured=structured)
    data = memoryview(bytearray(b"?" * 16))
    try:
        connection.read(0x100, [data[:3], data[3:3], data[3:10], data[10:]]).wait()
    finally:
        peer.close()
    return bytes(data)


TEXT = b"0123456789abcdef"


def test_requests_on_the_wire() -> None:
    peer, connection = connect(simple() + simple(0, 2) + simple(0, 3) + simple(0, 4) + simple(0, 5), structured=False)
    connection.write(0x1000, [memoryview(b"ab"), memoryview(b"c")], fua=True).wait()
    connection.flush().wait()
    connection.trim(0x2000, 0x3000).wait()
    connection.write_zeroes(0x4000, 0x5000, unmap=False).wait()
    connection.write_zeroes(0x4000, 0x5000, unmap=True).wait()
    connection.close()
    pack = struct.Struct(">IHHQQI").pack
    magic = 0x25609513
    assert peer.heard() == b"".join(
        [
            pack(magic, 1, 1, 1, 0x1000, 3) + b"abc",
            pack(magic, 0, 3, 2, 0, 0),
            pack(magic, 0, 4, 3, 0x2000, 0x3000),
            pack(magic, 2, 6, 4, 0x4000, 0x5000),
            pack(magic, 0, 6, 5, 0x4000, 0x5000),
            pack(magic, 0, 2, 6, 0, 0),
        ]
    )


def test_simple_read() -> None:
    assert read(simple() + TEXT, structured=False) == TEXT


@pytest.mark.parametrize(
    "said",
    [
        data_chunk(0x100, TEXT, done=True),
        data_chunk(0x100, TEXT) + DONE,
        data_chunk(0x108, TEXT[8:]) + data_chunk(0x100, TEXT[:8]) + DONE,
        b"".join(
            data_chunk(0x100 + it, TEXT[it : it + 1]) for it in (3, 1, 0, 2, 15, 5, 4, 7, 14, 9, 8, 13, 12, 11, 10, 6)
        )
        + DONE,
    ],
    ids=itertools.count(),
)
def test_chunks(said: bytes) -> None:
    assert read(said) == TEXT


def test_holes() -> None:
    assert read(hole_chunk(0x104, 4) + data_chunk(0x100, TEXT[:4]) + data_chunk(0x108, TEXT[8:], done=True)) == (
        TEXT[:4] + bytes(4) + TEXT[8:]
    )


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (error_chunk(5, done=True), errno.EIO),
        (error_chunk(28, text=b"full") + DONE, errno.ENOSPC),
        (data_chunk(0x100, TEXT) + error_chunk(1, kind=0x8002, more=bytes(8), done=True), errno.EPERM),
        (error_chunk(12) + error_chunk(5) + DONE, errno.ENOMEM),
        (error_chunk(95, kind=0x8123, more=b"whatever", done=True), errno.ENOTSUP),
        (error_chunk(9999, done=True), errno.EINVAL),
        (error_chunk(75, done=True), errno.EOVERFLOW),
        (error_chunk(108, done=True), errno.ESHUTDOWN),
    ],
    ids=itertools.count(),
)
def test_errors_of_the_server(said: bytes, error: int) -> None:
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        read(said)
    assert caught.value.errno == error
    assert not isinstance(caught.value, ConnectionLost)


def test_error_in_a_simple_reply() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        read(simple(28), structured=False)
    assert not isinstance(caught.value, ConnectionLost)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        simple() + TEXT,  # not structured
        b"garbage garbage garbage",
        data_chunk(0x100, TEXT)[:25],
        chunk(1, struct.pack(">Q", 0x100) + TEXT, done=True, cookie=2),
        data_chunk(0x100, TEXT[:15], done=True),  # too little
        DONE,
        data_chunk(0xFF, TEXT, done=True),
        data_chunk(0x101, TEXT, done=True),
        data_chunk(0x100, TEXT + b"!", done=True),
        data_chunk(0x100, TEXT) + data_chunk(0x100, TEXT[:1]) + DONE,
        data_chunk(0x108, TEXT[8:]) + data_chunk(0x100, TEXT[:9]) + DONE,
        data_chunk(0x100, TEXT[:8]) + data_chunk(0x107, TEXT[7:]) + DONE,
        data_chunk(0x100, b"", done=True),
        hole_chunk(0x100, 0) + data_chunk(0x100, TEXT, done=True),
        hole_chunk(0x100, 0xFFFFFFFF, done=True),
        hole_chunk(0xFFFFFFFFFFFFFFFF, 1, done=True),
        chunk(2, bytes(11), done=True),
        chunk(0, b"x", done=True),
        chunk(0),
        chunk(5, bytes(12), done=True),
        chunk(77, done=True),
        data_chunk(0x100, TEXT) + simple(),
        chunk(0x8001, b"", done=True),
        chunk(0x8001, bytes(6), done=True),
        error_chunk(5, more=b"x", done=True),
        chunk(0x8001, struct.pack(">IH", 5, 100), done=True),
        struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, 1, 1 << 31),
        error_chunk(5) * 100 + DONE,
    ],
    ids=itertools.count(),
)
def test_hostile_replies(said: bytes) -> None:
    with pytest.raises(ConnectionLost):
        read(said)


@settings(max_examples=150)
@given(data=st.data())
def test_no_reply_does_harm(data: st.DataObject) -> None:
    said = bytearray(
        data_chunk(0x100, TEXT[:8]) + hole_chunk(0x108, 4) + data_chunk(0x10C, TEXT[12:]) + error_chunk(5) + DONE
    )
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(said) - 1))
        said[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        assert len(read(bytes(said))) == 16
    except OSError:
        return


def status(said: bytes, length: int = 0x10000) -> tuple[int, int]:
    peer, connection = connect(said)
    try:
        status = connection.block_status(0, length)
        status.wait()
        return status.length, status.flags
    finally:
        peer.close()


def status_chunk(*extents: tuple[int, int], context: int = 9, done: bool = True) -> bytes:
    return chunk(5, struct.pack(">I", context) + b"".join(struct.pack(">II", *it) for it in extents), done=done)


def test_block_status() -> None:
    assert status(status_chunk((0x8000, 3))) == (0x8000, 3)
    assert status(status_chunk((0x8000, 3), (0x8000, 0))) == (0x8000, 3)
    assert status(status_chunk((0xFFFFFFFF, 1))) == (0x10000, 1)


@pytest.mark.parametrize(
    "said",
    [
        status_chunk(),
        status_chunk((0, 0)),
        status_chunk((512, 0), context=8),
        status_chunk((512, 0), done=False) + status_chunk((512, 0)),
        status_chunk((512, 0))[:-1] + b"",
        chunk(5, bytes(13), done=True),
        chunk(5, bytes(2), done=True),
        struct.pack(">IHHQI", 0x668E33EF, 1, 5, 1, 4 + 8 * (1 << 24)),
        DONE,
        simple(),
    ],
    ids=itertools.count(),
)
def test_hostile_block_status(said: bytes) -> None:
    with pytest.raises(ConnectionLost):
        status(said)
