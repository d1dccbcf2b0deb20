"""What an 8254x does to a frame before it sends it: checksums, and long frames cut into short ones (8254x manual, 3.3.6
to 3.6).

Where the other end of the link takes long frames itself, they go there whole, with a note of what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvm.devices.e1000 import registers as r
from pyvm.net import packets as p
from pyvm.net.client import GSO_TCPV4, GSO_TCPV6, MAX_FRAME, NEEDS_CSUM, Offload
from pyvm.records import record

_TCP_SEQUENCE, _TCP_FLAGS, _TCP_CHECKSUM = 4, 13, 16
_UDP_LENGTH = 4
_LAST_ONLY = p.TCP_FIN | p.TCP_PSH
_IPV4_LENGTH, _IPV4_IDENTITY, _IPV4_CHECKSUM = 2, 4, 10
_IPV6_LENGTH = 4
_IPV6_HEADER = 40
_MOST_SEGMENTS = 4096
"""More make no sense: an IP packet of full length has 123 of the least that every host takes."""


@record
class Context:
    """What a context descriptor says; offsets are from the start of the frame, ends 0 where they are the frame's."""

    ip_start: int = 0
    ip_offset: int = 0
    ip_end: int = 0
    start: int = 0
    offset: int = 0
    end: int = 0
    command: int = 0
    header: int = 0
    mss: int = 0
    payload: int = 0

    @property
    def is_tcp(self) -> bool:
        """Whether the packet is TCP rather than UDP."""
        return bool(self.command & r.CONTEXT_TCP)

    @property
    def is_ipv4(self) -> bool:
        """Whether the packet is IPv4 rather than IPv6."""
        return bool(self.command & r.CONTEXT_IP)


def put_checksum(frame: bytearray, start: int, offset: int, end: int) -> bool:
    """Put the checksum of the bytes from `start` to `end` (inclusive; 0: all) in its place; return whether it fits."""
    stop = end + 1 if end else len(frame)
    if not start <= stop <= len(frame) or not start <= offset or offset + 2 > len(frame):
        return False
    frame[offset : offset + 2] = p.checksum(p.words_sum(memoryview(frame)[start:stop])).to_bytes(2, "big")
    return True


def _word(frame: bytearray, offset: int) -> int:
    return int.from_bytes(frame[offset : offset + 2], "big")


def _put_word(frame: bytearray, offset: int, value: int) -> None:
    frame[offset : offset + 2] = (value & 0xFFFF).to_bytes(2, "big")


def finish(frame: bytearray, context: Context, options: int) -> bytearray:
    """Put in the checksums that a frame of plain length asks for."""
    if options & r.POPTS_TXSM:
        put_checksum(frame, context.start, context.offset, context.end)
    if options & r.POPTS_IXSM:
        put_checksum(frame, context.ip_start, context.ip_offset, context.ip_end)
    return frame


def _fits(context: Context) -> bool:
    """Whether the headers that are to be changed lie within the header that is repeated."""
    network = 20 if context.is_ipv4 else _IPV6_HEADER
    transport = 20 if context.is_tcp else 8
    inside = context.ip_start + network <= context.start and context.start + transport <= context.header
    return inside and context.offset + 2 <= context.header


def segments(frame: bytearray, context: Context, options: int) -> Iterator[bytearray]:
    """Yield the frames that a long frame is cut into; none where the descriptors make no sense."""
    header = context.header
    if not context.mss or not _fits(context) or len(frame) < header:
        return
    payload = memoryview(frame)[header:]
    if len(payload) > _MOST_SEGMENTS * context.mss:
        return
    for number, at in enumerate(range(0, max(len(payload), 1), context.mss)):
        piece = payload[at : at + context.mss]
        segment = bytearray(frame[:header]) + piece
        _number(segment, context, number, at, last=at + context.mss >= len(payload))
        length = len(segment) - context.start
        if options & r.POPTS_TXSM:
            # The driver has put the sum of the pseudo header in place, but for the length.
            _put_word(segment, context.offset, (_word(segment, context.offset) + length) % 0xFFFF)
        yield finish(segment, context, options)


def _number(segment: bytearray, context: Context, number: int, at: int, *, last: bool) -> None:
    """Make the headers those of one segment."""
    start, ip_start = context.start, context.ip_start
    if context.is_ipv4:
        _put_word(segment, ip_start + _IPV4_LENGTH, len(segment) - ip_start)
        _put_word(segment, ip_start + _IPV4_IDENTITY, _word(segment, ip_start + _IPV4_IDENTITY) + number)
    else:
        _put_word(segment, ip_start + _IPV6_LENGTH, len(segment) - ip_start - _IPV6_HEADER)
    if context.is_tcp:
        place = start + _TCP_SEQUENCE
        sequence = int.from_bytes(segment[place : place + 4], "big") + at
        segment[place : place + 4] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        if not last:
            segment[start + _TCP_FLAGS] &= ~_LAST_ONLY
    else:
        _put_word(segment, start + _UDP_LENGTH, len(segment) - start)


def whole(frame: bytearray, context: Context, options: int) -> Offload | None:
    """Make a long frame ready to be cut by somebody else, and return how; None where that cannot be said."""
    usual = context.is_tcp and context.offset == context.start + _TCP_CHECKSUM and options & r.POPTS_TXSM
    if not usual or not context.mss or not _fits(context) or not context.header < len(frame) <= MAX_FRAME:
        return None
    if len(frame) - context.ip_start > 0xFFFF:
        return None
    _number(frame, context, 0, 0, last=True)
    length = len(frame) - context.start
    _put_word(frame, context.offset, (_word(frame, context.offset) + length) % 0xFFFF)
    if options & r.POPTS_IXSM:
        put_checksum(frame, context.ip_start, context.ip_offset, context.ip_end)
    if len(frame) - context.header <= context.mss:
        return Offload(NEEDS_CSUM, 0, 0, 0, context.start, _TCP_CHECKSUM)
    kind = GSO_TCPV4 if context.is_ipv4 else GSO_TCPV6
    return Offload(NEEDS_CSUM, kind, context.header, context.mss, context.start, _TCP_CHECKSUM)
