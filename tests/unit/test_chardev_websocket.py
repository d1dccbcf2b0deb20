"""WebSocket servers as back ends; the key and its answer are the example of RFC 6455, section 1.3."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev import websocket as ws
from pyvm.chardev.base import ChardevEvent
from pyvm.chardev.options import parse_chardev, split_options
from pyvm.chardev.registry import open_chardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, run_until, running_loop, settle

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


def masked(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    """Return a frame as a client sends it."""
    size = len(payload)
    head = bytes([opcode | (ws.FINAL if final else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def test_the_request_is_answered() -> None:
    answer = ws.answer_request(REQUEST)
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert ACCEPT in answer
    assert answer.endswith(b"\r\n\r\n")
    assert b"Protocol" not in answer.replace(b"Protocols", b"")
    assert b"Sec-WebSocket-Protocol: binary\r\n" in ws.answer_request(
        REQUEST + b"Sec-WebSocket-Protocol: a, binary\r\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: keep-alive, Upgrade", b"Connection: close"),
        (b"Version: 13", b"Version: 8"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!"),
        (b"Host: x", b"Host x"),
        (b"Host: x", b"Sec-WebSocket-Protocol: chat"),
    ],
)
def test_other_requests_are_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(ws.RequestError):
        ws.answer_request(REQUEST.replace(old, new))


def test_frames_of_all_sizes() -> None:
    for size in (0, 1, 125, 126, 65535, 65536):
        payload = bytes(index % 251 for index in range(size))
        data, answer = ws.FrameDecoder().decode(masked(ws.BINARY, payload))
        assert (b"".join(part or b"" for part in data), answer) == (payload, b"")
        head = ws.frame(ws.BINARY, payload)
        assert head.endswith(payload)
        assert len(head) - size == (2 if size < 126 else 4 if size < 1 << 16 else 10)


def test_fragments_and_control_frames_between_them() -> None:
    decoder = ws.FrameDecoder()
    wire = (
        masked(ws.BINARY, b"ab", final=False)
        + masked(ws.PING, b"?")
        + masked(ws.CONTINUATION, b"cd")
        + masked(ws.PONG, b"")
        + masked(ws.CLOSE, b"\x03\xe8bye")
        + masked(ws.BINARY, b"late")
    )
    data, answer = decoder.decode(wire)
    assert data == [b"abcd"]
    assert answer == ws.frame(ws.PONG, b"?") + ws.frame(ws.CLOSE, b"\x03\xe8")
    assert decoder.closed


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (masked(ws.TEXT, b"x"), ws.UNSUPPORTED_DATA),
        (masked(ws.CONTINUATION, b"x"), ws.PROTOCOL_ERROR),
        (masked(ws.BINARY, b"x", final=False) + masked(ws.BINARY, b"y"), ws.PROTOCOL_ERROR),
        (masked(0x3, b"x"), ws.PROTOCOL_ERROR),
        (masked(0xB, b"x"), ws.PROTOCOL_ERROR),
        (masked(ws.PING, b"x", final=False), ws.PROTOCOL_ERROR),
        (masked(ws.PING, bytes(126)), ws.PROTOCOL_ERROR),
        (b"\x82\x01xxxxx", ws.PROTOCOL_ERROR),
        (b"\xc2\x81xxxxx", ws.PROTOCOL_ERROR),
    ],
)
def test_what_a_client_must_not_send(wire: bytes, status: int) -> None:
    decoder = ws.FrameDecoder()
    _, answer = decoder.decode(wire)
    assert decoder.closed
    assert answer == ws.frame(ws.CLOSE, status.to_bytes(2, "big"))


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_borders_mean_nothing(payloads: list[bytes], steps: list[int]) -> None:
    wire = b"".join(masked(ws.BINARY, payload) for payload in payloads)
    decoder, data, position, turn = ws.FrameDecoder(), b"", 0, 0
    while position < len(wire):
        step = steps[turn % len(steps)]
        parts, _ = decoder.decode(wire[position : position + step])
        data += b"".join(part or b"" for part in parts)
        position, turn = position + step, turn + 1
    assert data == b"".join(payloads)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_input_is_survived(wire: bytes) -> None:
    data, answer = ws.FrameDecoder().decode(wire)
    assert sum(len(part or b"") for part in data) <= len(wire)
    assert len(answer) <= 2 * len(wire) + 4
    try:
        ws.answer_request(wire)
    except ws.RequestError:
        pass


# ---- The back end


def plain_of(wire: bytes | bytearray) -> bytes:
    """Return what a server's frames carry, as far as they are there."""
    plain, position = bytearray(), 0
    while position + 10 <= len(wire):
        size = wire[position + 1] & 0x7F
        extra = {126: 2, 127: 8}.get(size, 0)
        size = int.from_bytes(wire[position + 2 : position + 2 + extra], "big") if extra else size
        start = position + 2 + extra
        plain += wire[start : start + size]
        position = start + size
    return bytes(plain)


class Desk:
    """A server and its front end."""

    def __init__(self, loop: MainLoop, path: str) -> None:
        self.loop = loop
        self.path = path
        options = f"socket,id=w,path={path},server=on,wait=off,websocket=on"
        self.device = open_chardev(parse_chardev(split_options(options)), loop)
        self.guest = Recorder().attach(self.device)

    def connect(self, request: bytes = REQUEST + b"\r\n") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.sendall(request)
        return client

    def answer(self, client: socket.socket) -> bytes:
        """Return what the server sends next."""
        client.setblocking(False)
        got = bytearray()

        def look() -> bool:
            try:
                got.extend(client.recv(1 << 20))
            except BlockingIOError:
                return bool(got)
            return True

        run_until(self.loop, look)
        return bytes(got)


@pytest.fixture
def desk(tmp_path: object) -> Iterator[Desk]:
    with running_loop() as loop:
        made = Desk(loop, f"{tmp_path}/s")
        yield made
        made.device.close()


def test_a_conversation(desk: Desk) -> None:
    client = desk.connect(REQUEST + b"\r\n" + masked(ws.BINARY, b"early"))
    assert ACCEPT in desk.answer(client)
    run_until(desk.loop, lambda: bytes(desk.guest.data) == b"early")
    assert desk.guest.log[0] is ChardevEvent.OPENED
    desk.guest.send(b"to the client")
    assert desk.answer(client) == ws.frame(ws.BINARY, b"to the client")
    client.sendall(masked(ws.PING, b"?"))
    assert desk.answer(client) == ws.frame(ws.PONG, b"?")
    client.sendall(masked(ws.CLOSE, b""))
    assert desk.answer(client) == ws.frame(ws.CLOSE, b"")
    run_until(desk.loop, lambda: desk.guest.log[-1] is ChardevEvent.CLOSED)
    second = desk.connect()
    assert ACCEPT in desk.answer(second)
    client.close()
    second.close()


def test_a_request_in_pieces(desk: Desk) -> None:
    whole = REQUEST + b"\r\n" + masked(ws.BINARY, b"x")
    client = desk.connect(b"")
    for start in range(0, len(whole), 7):
        client.sendall(whole[start : start + 7])
        settle(desk.loop)
    assert ACCEPT in desk.answer(client)
    run_until(desk.loop, lambda: bytes(desk.guest.data) == b"x")
    client.close()


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\n\r\n", b"x" * 10000])
def test_others_are_turned_away(desk: Desk, request_: bytes) -> None:
    client = desk.connect(request_)
    assert desk.answer(client).startswith(b"HTTP/1.1 400")
    client.close()
    assert desk.guest.log == []
    second = desk.connect()
    assert ACCEPT in desk.answer(second)
    second.close()


def test_a_client_that_reads_late_gets_everything(desk: Desk) -> None:
    client = desk.connect()
    assert ACCEPT in desk.answer(client)
    data = bytes(range(256)) * 4096
    desk.guest.send(data)
    got = bytearray()
    client.setblocking(False)

    def all_there() -> bool:
        try:
            got.extend(client.recv(1 << 16))
        except BlockingIOError:
            pass
        return len(plain_of(got)) == len(data)

    run_until(desk.loop, all_there)
    assert plain_of(got) == data
    client.close()


def test_the_names(desk: Desk) -> None:
    assert desk.device.filename == f"disconnected:unix:{desk.path},server=on"
    inet = open_chardev(
        parse_chardev(split_options("socket,id=i,host=127.0.0.1,port=0,server=on,wait=off,websocket=on")), desk.loop
    )
    assert inet.filename.startswith("disconnected:websocket:127.0.0.1:")
    inet.close()
