"""Packets of GDB's remote serial protocol, to and from bytes.

GDB manual, appendix E.1: ``$DATA#XX``, where XX is the sum of the bytes of DATA, each answered by ``+`` or ``-`` until
both sides have agreed to do without.  Between packets, the byte 3 is the debugger's interrupt.
"""

from __future__ import annotations

from enum import Enum

PACKET_SIZE = 0x1000
"""Most bytes between ``$`` and ``#``."""

_START, _END, _ESCAPE, _REPEAT = b"$#}*"
_INTERRUPT = 3
_ESCAPED = 0x20
_DIGITS = b"0123456789abcdefABCDEF"


class Signal(Enum):
    """What the peer sends beside packets."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "interrupt"
    DAMAGED = "damaged"
    """A packet came whose checksum is wrong."""
    TOO_LONG = "too long"
    """A packet came that is longer than agreed."""


_SIGNALS = {ord("+"): Signal.ACK, ord("-"): Signal.NACK, _INTERRUPT: Signal.INTERRUPT}


def frame(data: bytes) -> bytes:
    """Return a packet; what must not stand in one is escaped already."""
    return b"$%b#%02x" % (data, sum(data) & 0xFF)


def escaped(data: bytes) -> bytes:
    """Return binary data as packets carry it."""
    return b"".join(
        bytes((_ESCAPE, byte ^ _ESCAPED)) if byte in (_START, _END, _ESCAPE, _REPEAT) else bytes((byte,))
        for byte in data
    )


def unescaped(data: bytes) -> bytes | None:
    """Return what packets carry as binary data; None where it ends in the middle of an escape."""
    first, *rest = data.split(bytes((_ESCAPE,)))
    result = bytearray(first)
    for part in rest:
        if not part:
            return None
        result.append(part[0] ^ _ESCAPED)
        result += part[1:]
    return bytes(result)


class PacketReader:
    """Takes packets out of a stream of bytes that may be anything."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._checksum = bytearray()
        self._in_data = False
        self._in_checksum = False
        self._too_long = False

    @property
    def idle(self) -> bool:
        """Whether no packet has begun."""
        return not self._in_data and not self._in_checksum

    def feed(self, data: bytes) -> list[bytes | Signal]:
        """Return the packets and signals that `data` completes."""
        found: list[bytes | Signal] = []
        for byte in data:
            if self._in_checksum:
                self._take_checksum(byte, found)
            elif byte == _START:
                self._begin()
            elif not self._in_data:
                if byte in _SIGNALS:
                    found.append(_SIGNALS[byte])
            elif byte == _END:
                self._in_data, self._in_checksum = False, True
            elif len(self._data) == PACKET_SIZE:
                self._too_long = True
            else:
                self._data.append(byte)
        return found

    def _begin(self) -> None:
        self._data.clear()
        self._checksum.clear()
        self._in_data, self._in_checksum, self._too_long = True, False, False

    def _take_checksum(self, byte: int, found: list[bytes | Signal]) -> None:
        self._checksum.append(byte)
        if len(self._checksum) < 2:
            return
        self._in_checksum = False
        if self._too_long:
            found.append(Signal.TOO_LONG)
        elif unsigned(bytes(self._checksum), 8) == sum(self._data) & 0xFF:
            found.append(bytes(self._data))
        else:
            found.append(Signal.DAMAGED)


def unsigned(text: bytes, bits: int = 64) -> int | None:
    """Return a hexadecimal number; None where `text` is none, or it has more bits."""
    if not text or len(text) > bits // 4 or any(digit not in _DIGITS for digit in text):
        return None
    return int(text, 16)


def from_hex(text: bytes) -> bytes | None:
    """Return the bytes that pairs of hexadecimal digits stand for; None where they are none."""
    if len(text) % 2 or any(digit not in _DIGITS for digit in text):
        return None
    return bytes.fromhex(text.decode("ascii"))
