"""The telnet protocol of a socket back end: RFC 854 commands, RFC 855 options, RFC 1143 answers.

A pure translator between the wire and the plain bytes of a terminal.  As server it asks for a character-at-a-time,
eight-bit line: WILL ECHO (RFC 857), WILL SUPPRESS-GO-AHEAD (RFC 858), BINARY both ways (RFC 856).
"""

from __future__ import annotations

import enum

from pyvm.chardev.base import Buffer

IAC = 255
DONT = 254
DO = 253
WONT = 252
WILL = 251
SB = 250
BRK = 243
IP = 244
SE = 240

BINARY = 0
ECHO = 1
SUPPRESS_GO_AHEAD = 3

_INTERRUPT = 3
"""Ctrl-C: what Interrupt Process means to a guest's terminal."""

_IAC_BYTE = bytes([IAC])
_IAC_PAIR = bytes([IAC, IAC])


class _Input(enum.Enum):
    DATA = enum.auto()
    COMMAND = enum.auto()
    OPTION = enum.auto()
    SUBNEGOTIATION = enum.auto()
    SUBNEGOTIATION_COMMAND = enum.auto()


class Telnet:
    """One connection's telnet state."""

    def __init__(self, *, server: bool) -> None:
        self._ours = {BINARY, ECHO, SUPPRESS_GO_AHEAD} if server else {BINARY, SUPPRESS_GO_AHEAD}
        self._theirs = {BINARY} if server else {BINARY, ECHO, SUPPRESS_GO_AHEAD}
        # An option that we asked for counts as on, so the peer's consent is not answered and cannot loop.
        self._our_state = set(self._ours) if server else set()
        self._their_state = set(self._theirs) if server else set()
        self._state = _Input.DATA
        self._verb = 0
        self._server = server

    def greeting(self) -> bytes:
        """Return what a server sends first; nothing for a client."""
        if not self._server:
            return b""
        offers = [(WILL, ECHO), (WILL, SUPPRESS_GO_AHEAD), (WILL, BINARY), (DO, BINARY)]
        return b"".join(bytes([IAC, verb, option]) for verb, option in offers)

    def decode(self, wire: bytes) -> tuple[list[bytes | None], bytes]:
        """Translate received bytes; return what they mean, in order, and what must be answered.

        The meaning is a list of plain bytes, and of None where the peer sent a break.
        """
        if self._state is _Input.DATA and _IAC_BYTE not in wire:
            return [wire], b""
        meaning: list[bytes | None] = []
        answer = bytearray()
        plain = bytearray()
        for byte in wire:
            if self._state is _Input.DATA:
                if byte == IAC:
                    self._state = _Input.COMMAND
                else:
                    plain.append(byte)
            elif self._state is _Input.COMMAND:
                if byte == IAC:
                    plain.append(IAC)
                elif byte == IP:
                    plain.append(_INTERRUPT)
                elif byte == BRK:
                    if plain:
                        meaning.append(bytes(plain))
                        plain.clear()
                    meaning.append(None)
                self._command(byte)
            else:
                self._option(byte, answer)
        if plain:
            meaning.append(bytes(plain))
        return meaning, bytes(answer)

    def _command(self, byte: int) -> None:
        if byte in (WILL, WONT, DO, DONT):
            self._verb = byte
            self._state = _Input.OPTION
        else:
            self._state = _Input.SUBNEGOTIATION if byte == SB else _Input.DATA

    def _option(self, byte: int, answer: bytearray) -> None:
        """Take a byte of a negotiation or a sub-negotiation; the content of the latter means nothing to us."""
        if self._state is _Input.OPTION:
            answer += self._negotiate(self._verb, byte)
            self._state = _Input.DATA
        elif self._state is _Input.SUBNEGOTIATION:
            if byte == IAC:
                self._state = _Input.SUBNEGOTIATION_COMMAND
        else:
            self._state = _Input.DATA if byte == SE else _Input.SUBNEGOTIATION

    def _negotiate(self, verb: int, option: int) -> bytes:
        """Return the answer to a negotiation; none where it changes nothing, so two sides never argue for ever."""
        ours = verb in (DO, DONT)
        state, wanted = (self._our_state, self._ours) if ours else (self._their_state, self._theirs)
        agree, refuse = (WILL, WONT) if ours else (DO, DONT)
        if verb in (DO, WILL):
            if option in state:
                return b""
            if option not in wanted:
                return bytes([IAC, refuse, option])
            state.add(option)
            return bytes([IAC, agree, option])
        if option not in state:
            return b""
        state.discard(option)
        wanted.discard(option)  # given up for good: two sides that agree and refuse in turn would never end
        return bytes([IAC, refuse, option])

    @staticmethod
    def encode(data: Buffer) -> Buffer:
        """Translate plain bytes for the wire: a data byte of 255 is doubled."""
        plain = bytes(data)
        return plain.replace(_IAC_BYTE, _IAC_PAIR) if _IAC_BYTE in plain else data

    @staticmethod
    def taken(wire: Buffer, sent: int) -> tuple[int, bool]:
        """Return how many plain bytes the first `sent` bytes of `wire` are, and whether the last pair was cut in two.

        A byte whose pair was cut counts as taken: its second half must be sent before anything else.
        """
        head = bytes(wire[:sent])
        pairs = head.count(_IAC_BYTE)
        return sent - pairs // 2, pairs % 2 == 1
