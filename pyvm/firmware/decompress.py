"""Decompression of kernel payloads on the host.

Formats are those of Linux's `scripts/Makefile.lib`: gzip, bzip2, lzma ("alone" format), xz, LZ4 in legacy frames, zstd,
and none.  (A kernel packed with lzo is left to unpack itself.)  The output comes in pieces, so that it can go straight
into guest RAM, and is bounded: a small payload that would grow without end is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

from pyvm.firmware.errors import BootError

PIECE = 1 << 20
DEFAULT_LIMIT = 1 << 30
_DECODER_MEMORY = 256 << 20  # the largest dictionary or window that is accepted

# LZ4 legacy frames: lz4's doc/lz4_Frame_format.md, section "Legacy frame".
_LZ4_MAGIC = 0x184C2102
_LZ4_BLOCK = 8 << 20
_LZ4_COMPRESSED_BLOCK = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16
_U32 = struct.Struct("<I")

_ZSTD_RLE_BLOCK = 1


class Compression(Enum):
    """How a payload is packed."""

    GZIP = "gzip"
    BZIP2 = "bzip2"
    LZMA = "lzma"
    XZ = "xz"
    LZ4 = "LZ4"
    ZSTD = "zstd"
    NONE = "uncompressed"


_MAGIC = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\x5d\0\0", Compression.LZMA),
    (b"\xfd7zXZ\0", Compression.XZ),
    (_U32.pack(_LZ4_MAGIC), Compression.LZ4),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
    (b"\x7fELF", Compression.NONE),
)


def identify(payload: bytes | memoryview) -> Compression | None:
    """Return how `payload` is packed by its first bytes, or None where that is not known."""
    start = bytes(payload[:8])
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)


def expand(payload: bytes | memoryview, kind: Compression, limit: int = DEFAULT_LIMIT) -> Iterator[bytes]:
    """Yield what `payload` unpacks to, in pieces, `limit` bytes at most in all.

    Bytes behind the end that the format itself marks are ignored; LZ4 legacy frames and uncompressed data have no such
    mark and are taken to their last byte.  Raises :class:`BootError` where the data are damaged, cut short or too long.
    """
    total = 0
    for piece in _DECODERS[kind](memoryview(payload)):
        total += len(piece)
        if total > limit:
            raise BootError(f"{kind.value} kernel payload unpacks to more than {limit} bytes")
        yield piece


def decompress(payload: bytes | memoryview, kind: Compression, limit: int = DEFAULT_LIMIT) -> bytes:
    """Return all that `payload` unpacks to; see :func:`expand`."""
    return b"".join(expand(payload, kind, limit))


class _DamageError(ValueError):
    """What a decoder of this module found wrong with its input."""


_TOO_SHORT = "it ends too early"


@contextmanager
def _damage_reported(kind: Compression, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a decoder raises for bad input into a BootError."""
    caught: tuple[type[Exception], ...] = (_DamageError, EOFError, *errors)
    try:
        yield
    except caught as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BootError(f"{kind.value} kernel payload is damaged: {detail}") from error


class _Decoder(Protocol):
    """What the standard library's xz and bzip2 decoders have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: memoryview | bytes, max_length: int = ...) -> bytes: ...


def _pump(decoder: _Decoder, payload: memoryview) -> Iterator[bytes]:
    """Feed `payload` through `decoder`, never holding more than a piece of output."""
    for start in range(0, len(payload), PIECE):
        yield decoder.decompress(payload[start : start + PIECE], PIECE)
        while not decoder.eof and not decoder.needs_input:
            yield decoder.decompress(b"", PIECE)
        if decoder.eof:
            return
    raise _DamageError(_TOO_SHORT)


def _gzip(payload: memoryview) -> Iterator[bytes]:
    import zlib

    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    with _damage_reported(Compression.GZIP, zlib.error):
        for start in range(0, len(payload), PIECE):
            yield decoder.decompress(payload[start : start + PIECE], PIECE)
            while decoder.unconsumed_tail:
                yield decoder.decompress(decoder.unconsumed_tail, PIECE)
            if decoder.eof:
                return
        while not decoder.eof:  # output that the piece limit held back after the last input
            piece = decoder.decompress(b"", PIECE)
            if not piece:
                raise _DamageError(_TOO_SHORT)
            yield piece


def _bzip2(payload: memoryview) -> Iterator[bytes]:
    import bz2

    with _damage_reported(Compression.BZIP2, OSError):
        yield from _pump(bz2.BZ2Decompressor(), payload)


def _lzma(payload: memoryview) -> Iterator[bytes]:
    import lzma

    with _damage_reported(Compression.LZMA, lzma.LZMAError):
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_DECODER_MEMORY)
        yield from _pump(decoder, payload)


def _xz(payload: memoryview) -> Iterator[bytes]:
    import lzma

    with _damage_reported(Compression.XZ, lzma.LZMAError):
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY)
        yield from _pump(decoder, payload)


def _zstd_frame_length(payload: memoryview) -> int:
    """Return the length of the frame at the start of `payload`, walking its block headers (RFC 8878, section 3.1.1).

    The library's bounded reader does not tell a frame that ends from one that is cut short.
    """
    descriptor = payload[4] if len(payload) > 4 else 0
    single_segment = bool(descriptor & 0x20)
    dictionary_id = (0, 1, 2, 4)[descriptor & 3]
    content_size = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    position = 5 + (not single_segment) + dictionary_id + content_size
    last = False
    while not last:
        if position + 3 > len(payload):
            raise _DamageError(_TOO_SHORT)
        header = int.from_bytes(payload[position : position + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == _ZSTD_RLE_BLOCK else size)
    position += 4 if descriptor & 4 else 0  # content checksum
    if position > len(payload):
        raise _DamageError(_TOO_SHORT)
    return position


def _zstd(payload: memoryview) -> Iterator[bytes]:
    import zstandard

    with _damage_reported(Compression.ZSTD, zstandard.ZstdError):
        frame = payload[: _zstd_frame_length(payload)]
        reader = zstandard.ZstdDecompressor(max_window_size=_DECODER_MEMORY).stream_reader(frame)
        while piece := reader.read(PIECE):
            yield piece


def _lz4(payload: memoryview) -> Iterator[bytes]:
    import lz4.block

    with _damage_reported(Compression.LZ4, lz4.block.LZ4BlockError):
        for block in _lz4_blocks(payload):
            yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)


def _lz4_blocks(payload: memoryview) -> Iterator[memoryview]:
    """Yield the packed blocks of one or more legacy frames."""
    position = 0
    while position < len(payload):
        if position + 4 > len(payload):
            raise _DamageError(_TOO_SHORT)
        (size,) = _U32.unpack_from(payload, position)
        position += 4
        if size == _LZ4_MAGIC:
            continue
        if not 0 < size <= _LZ4_COMPRESSED_BLOCK:
            raise _DamageError(f"it has a block of {size} bytes")
        if position + size > len(payload):
            raise _DamageError(_TOO_SHORT)
        yield payload[position : position + size]
        position += size


def _none(payload: memoryview) -> Iterator[bytes]:
    for start in range(0, len(payload), PIECE):
        yield bytes(payload[start : start + PIECE])


_DECODERS: dict[Compression, Callable[[memoryview], Iterator[bytes]]] = {
    Compression.GZIP: _gzip,
    Compression.BZIP2: _bzip2,
    Compression.LZMA: _lzma,
    Compression.XZ: _xz,
    Compression.LZ4: _lz4,
    Compression.ZSTD: _zstd,
    Compression.NONE: _none,
}
