"""Sockets that browsers can reach: the server's side of WebSocket (RFC 6455) in front of a socket back end.

A client begins with an HTTP request; from then on both sides send frames.  Data comes and goes in binary frames, whose
borders mean nothing: the back end is a stream.  Only what a frame carries is delivered, so what was received always
finds room in the front end.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from typing import Any

from pyvm.chardev.address import FindFd
from pyvm.chardev.base import Buffer
from pyvm.chardev.options import SocketOptions
from pyvm.chardev.socket import SocketChardev
from pyvm.mainloop import MainLoop

REQUEST_LIMIT = 8192
"""Most bytes of the request that a client begins with."""
HANDSHAKE_SECONDS = 10.0
"""How long a client may take for it, while others wait."""
FRAME_LIMIT = 1 << 16
"""Most bytes that are sent in one frame."""
CONTROL_LIMIT = 125

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FINAL = 0x80
MASKED = 0x80
PROTOCOL_ERROR, UNSUPPORTED_DATA = 1002, 1003

_KEY_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEADER_END = b"\r\n\r\n"
_PROTOCOL = "binary"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\n\r\n"
_KEY_LENGTH = 16


class RequestError(Exception):
    """A client's request is none for a WebSocket."""


def answer_request(request: bytes) -> bytes:
    """Return the answer to the HTTP request that a client begins with; raises RequestError."""
    lines = request.decode("latin-1").split("\r\n")
    words = lines[0].split()
    if len(words) != 3 or words[0] != "GET" or words[2] != "HTTP/1.1":
        raise RequestError("not a GET request of HTTP 1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if line and not colon:
            raise RequestError("a header without a value")
        headers[name.strip().lower()] = value.strip()
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in _tokens(headers.get("connection", "")):
        raise RequestError("no upgrade to a WebSocket")
    if headers.get("sec-websocket-version") != "13":
        raise RequestError("not version 13 of the protocol")
    key = headers.get("sec-websocket-key", "")
    try:
        if len(base64.b64decode(key, validate=True)) != _KEY_LENGTH:
            raise ValueError(key)
    except ValueError:
        raise RequestError("not a key of 16 bytes") from None
    accept = base64.b64encode(hashlib.sha1(key.encode() + _KEY_SUFFIX, usedforsecurity=False).digest()).decode()
    answer = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{_accepted(accept)}"
    if "sec-websocket-protocol" in headers:
        if _PROTOCOL not in _tokens(headers["sec-websocket-protocol"]):
            raise RequestError("no binary protocol")
        answer += f"Sec-WebSocket-Protocol: {_PROTOCOL}\r\n"
    return f"{answer}\r\n".encode("latin-1")


def _accepted(value: str) -> str:
    return f"Sec-WebSocket-Accept: {value}\r\n"


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]


def frame(opcode: int, payload: Buffer) -> bytes:
    """Return one whole frame as a server sends it."""
    size = len(payload)
    if size <= CONTROL_LIMIT:
        head = struct.pack(">BB", FINAL | opcode, size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", FINAL | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", FINAL | opcode, 127, size)
    return head + bytes(payload)


class FrameDecoder:
    """Takes frames of a client apart, however they arrive."""

    def __init__(self) -> None:
        self.closed = False
        """Whether the client said goodbye, or sent what it must not: nothing after that is looked at."""
        self._head = bytearray()
        self._left = 0
        self._mask = b""
        self._place = 0
        self._opcode = BINARY
        self._control = bytearray()
        self._continues = False

    def decode(self, wire: bytes) -> tuple[list[bytes | None], bytes]:
        """Return the data in received bytes, and what must be answered."""
        data = bytearray()
        answer = bytearray()
        position = 0
        while position < len(wire) and not self.closed:
            if not self._mask:
                self._head.append(wire[position])
                position += 1
                self._look_at_head(answer)
                continue
            part = wire[position : position + self._left]
            position += len(part)
            self._left -= len(part)
            plain = self._unmask(part)
            if self._opcode < CLOSE:
                data += plain
            else:
                self._control += plain
            if not self._left:
                self._end_frame(answer)
        return ([bytes(data)] if data else []), bytes(answer)

    def _unmask(self, part: bytes) -> bytes:
        turned = self._mask[self._place :] + self._mask[: self._place]
        self._place = (self._place + len(part)) % 4
        key = (turned * (len(part) // 4 + 1))[: len(part)]
        return (int.from_bytes(part, "big") ^ int.from_bytes(key, "big")).to_bytes(len(part), "big")

    def _look_at_head(self, answer: bytearray) -> None:
        """Begin a frame, once its head is complete."""
        head = self._head
        if len(head) < 2:
            return
        length = head[1] & 0x7F
        extra = {126: 2, 127: 8}.get(length, 0)
        if len(head) < 2 + extra + 4:
            return
        self._opcode = head[0] & 0x0F
        status = self._wrong(head[0], head[1], length)
        if status:
            self._fail(status, answer)
            return
        self._left = int.from_bytes(head[2 : 2 + extra], "big") if extra else length
        self._mask, self._place = bytes(head[2 + extra :]), 0
        self._head.clear()
        if not self._left:
            self._end_frame(answer)

    def _wrong(self, first: int, second: int, length: int) -> int:
        """Return the status with which to close the connection because of this head, 0 where it is right."""
        opcode, final = first & 0x0F, bool(first & FINAL)
        if first & 0x70 or not second & MASKED:
            return PROTOCOL_ERROR
        if opcode >= CLOSE:
            known = opcode in (CLOSE, PING, PONG)
            return 0 if known and final and length <= CONTROL_LIMIT else PROTOCOL_ERROR
        if opcode == TEXT:
            return UNSUPPORTED_DATA
        if opcode not in (CONTINUATION, BINARY) or (opcode == CONTINUATION) != self._continues:
            return PROTOCOL_ERROR
        self._continues = not final
        return 0

    def _fail(self, status: int, answer: bytearray) -> None:
        self.closed = True
        answer += frame(CLOSE, status.to_bytes(2, "big"))

    def _end_frame(self, answer: bytearray) -> None:
        self._mask = b""
        if self._opcode == PING:
            answer += frame(PONG, self._control)
        elif self._opcode == CLOSE:
            self.closed = True
            answer += frame(CLOSE, self._control[:2])
        self._control.clear()


class WebSocketChardev(SocketChardev):
    """A server for one WebSocket client at a time."""

    def __init__(self, options: SocketOptions, loop: MainLoop, find_fd: FindFd | None = None) -> None:
        """Listen as `options` say; raises ChardevError."""
        self._asking: socket.socket | None = None
        self._request = bytearray()
        self._patience: Any = None
        self._frames = FrameDecoder()
        self._pending = b""
        """The rest of a frame that the socket did not take."""
        super().__init__(options, loop, find_fd)

    @property
    def _kind(self) -> str:
        return "websocket"

    # ---- The request

    def _begin(self, connection: socket.socket) -> None:
        """Wait for the client's request; the front end hears of the client when that was answered."""
        connection.setblocking(False)
        self._asking = connection
        self._request.clear()
        self._patience = self._loop.call_later(HANDSHAKE_SECONDS, self._turn_away, b"")
        self._loop.add_reader(connection.fileno(), self._read_request)

    def _read_request(self) -> None:
        asking = self._asking
        assert asking is not None
        try:
            # Frames may follow the request: they stay where they are.
            seen = asking.recv(REQUEST_LIMIT, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            seen = b""
        before = len(self._request)
        end = (self._request + seen).find(_HEADER_END)
        self._request += asking.recv(len(seen) if end < 0 else end + len(_HEADER_END) - before) if seen else b""
        if not seen or (end < 0 and len(self._request) > REQUEST_LIMIT):
            self._turn_away(_BAD_REQUEST if seen else b"")
        elif end >= 0:
            self._answer_request(bytes(self._request[:end]))

    def _answer_request(self, request: bytes) -> None:
        try:
            answer = answer_request(request)
        except RequestError:
            self._turn_away(_BAD_REQUEST)
            return
        connection = self._stop_asking()
        assert connection is not None
        try:
            whole = connection.send(answer) == len(answer)
        except OSError:
            whole = False
        if not whole:
            connection.close()
            self._resume_accepting()
            return
        self._frames, self._pending = FrameDecoder(), b""
        self._telnet = self._frames
        super()._begin(connection)

    def _turn_away(self, answer: bytes) -> None:
        """Part with a client that does not ask as it should."""
        connection = self._stop_asking()
        if connection is None:
            return
        try:
            connection.send(answer)
        except OSError:
            pass  # gone
        connection.close()
        self._resume_accepting()

    def _stop_asking(self) -> socket.socket | None:
        connection, self._asking = self._asking, None
        if connection is not None:
            self._loop.remove_reader(connection.fileno())
            self._patience.cancel()
        return connection

    # ---- Frames

    def _deliver(self, data: bytes) -> None:
        super()._deliver(data)
        if self._frames.closed and self._socket is not None:
            self._disconnect()

    def _answer(self, answer: bytes) -> None:
        if answer and self._socket is not None and len(self._pending) < FRAME_LIMIT:
            self._pending += answer
            self._flush()
            self._watch_pending()

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._pending:
                self._pending = self._pending[self._socket.send(self._pending) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._pending = b""  # nobody will ever read it

    def _watch_pending(self) -> None:
        if self._pending and not self._writing and self._out_fd >= 0:
            self._writing = True
            self._loop.add_writer(self._out_fd, self._writable)

    def send_fd(self) -> int:
        """Return -1: bytes go into frames."""
        return -1

    def _send(self, data: Buffer) -> int:
        self._flush()
        if self._pending:
            raise BlockingIOError
        part = data[:FRAME_LIMIT]
        self._pending = frame(BINARY, part)
        self._flush()
        return len(part)

    def _write(self, data: Buffer) -> int:
        taken = super()._write(data)
        self._watch_pending()
        return taken

    def _writable(self) -> None:
        self._flush()
        if not self._pending:
            super()._writable()
            self._watch_pending()

    def close(self) -> None:
        """End connection and server, and turn a client away that has not asked yet."""
        super().close()
        connection = self._stop_asking()
        if connection is not None:
            connection.close()
