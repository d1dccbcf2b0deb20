"""How the pixels of a rectangle are written: RFC 6143, section 7.7, Raw, Hextile and ZRLE; rfbproto, Zlib.

Each takes an array of pixels in the client's format and returns the rectangle's contents.  Zlib and ZRLE write one
stream of compressed data for the whole life of a connection.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from pyvm.vnc.protocol import LENGTH, Encoding

if TYPE_CHECKING:
    from pyvm.vnc.pixels import PixelFormat, Table

SUPPORTED: Final = (Encoding.RAW, Encoding.HEXTILE, Encoding.ZLIB, Encoding.ZRLE)
DEFAULT_LEVEL: Final = 1
"""Of compression.  Level 6 takes two to three times as long, and the guest waits; a viewer on a slow line says so."""

_HEXTILE: Final = 16
_HEX_RAW: Final = 1
_HEX_BACKGROUND: Final = 2
_HEX_FOREGROUND: Final = 4
_HEX_SUBRECTS: Final = 8

_ZRLE_TILE: Final = 64
_ZRLE_RAW: Final = 0
_ZRLE_SOLID: Final = 1
_PALETTE_LIMIT: Final = 16
_SAMPLE: Final = 8  # every so many lines and columns are looked at before colours are counted


class Encoder:
    """Writes rectangles for one client, in the encoding that it likes best."""

    def __init__(self) -> None:
        self.level = DEFAULT_LEVEL
        self._zlib: zlib._Compress | None = None
        self._zrle: zlib._Compress | None = None

    def encode(self, encoding: Encoding, pixels: Table, form: PixelFormat) -> bytes:
        """Return the contents of a rectangle of `pixels`, which are in the client's format."""
        match encoding:
            case Encoding.HEXTILE:
                return hextile(pixels)
            case Encoding.ZLIB:
                if self._zlib is None:
                    self._zlib = zlib.compressobj(self.level)
                return _compress(self._zlib, pixels.tobytes())
            case Encoding.ZRLE:
                if self._zrle is None:
                    self._zrle = zlib.compressobj(self.level)
                return _compress(self._zrle, zrle_tiles(pixels, form))
        return pixels.tobytes()


def _compress(stream: zlib._Compress, data: bytes) -> bytes:
    packed = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
    return LENGTH.pack(len(packed)) + packed


# ---- Hextile (7.7.4)


def hextile(pixels: Table) -> bytes:
    """Return pixels in tiles of 16 x 16: plain, of two colours, or as they are."""
    parts: list[bytes] = []
    background = b""
    for top in range(0, pixels.shape[0], _HEXTILE):
        band = pixels[top : top + _HEXTILE]
        for left in range(0, pixels.shape[1], _HEXTILE):
            tile = band[:, left : left + _HEXTILE]
            low, high = tile.min(), tile.max()
            if low == high:
                colour = _bytes(low, pixels)
                parts.append(b"\0" if colour == background else bytes((_HEX_BACKGROUND,)) + colour)
                background = colour
                continue
            part = _two_colours(tile, low, high)
            parts.append(part)
            background = b"" if part[0] & _HEX_RAW else part[1 : 1 + pixels.itemsize]
    return b"".join(parts)


def _two_colours(tile: Table, low: Table, high: Table) -> bytes:
    """Return a tile as a background with runs of one other colour; as it is where that is shorter or impossible."""
    import numpy as np

    raw_size = tile.size * tile.itemsize
    other = tile == high
    if np.count_nonzero(other) + np.count_nonzero(tile == low) == tile.size:
        if 2 * np.count_nonzero(other) > tile.size:
            low, high, other = high, low, ~other
        steps = np.diff(np.pad(other, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, first = np.nonzero(steps == 1)
        last = np.nonzero(steps == -1)[1]
        if len(rows) * 2 + 2 * tile.itemsize + 1 < raw_size:
            flags = _HEX_BACKGROUND | _HEX_FOREGROUND | _HEX_SUBRECTS
            runs = np.stack((first << 4 | rows, last - first - 1 << 4), axis=1).astype(np.uint8)
            return bytes((flags,)) + _bytes(low, tile) + _bytes(high, tile) + bytes((len(rows),)) + runs.tobytes()
    return bytes((_HEX_RAW,)) + tile.tobytes()


def _bytes(pixel: Table, pixels: Table) -> bytes:
    """Return one pixel in the byte order of `pixels`: numpy takes single ones out in the host's."""
    import numpy as np

    return np.array([pixel], pixels.dtype).tobytes()


# ---- ZRLE (7.7.6)


def zrle_tiles(pixels: Table, form: PixelFormat) -> bytes:
    """Return pixels in tiles of 64 x 64: plain, numbers of a few colours, or as they are; not compressed yet."""
    parts = []
    for top in range(0, pixels.shape[0], _ZRLE_TILE):
        band = pixels[top : top + _ZRLE_TILE]
        for left in range(0, pixels.shape[1], _ZRLE_TILE):
            parts.append(_zrle_tile(band[:, left : left + _ZRLE_TILE], form))
    return b"".join(parts)


def _zrle_tile(tile: Table, form: PixelFormat) -> bytes:
    import numpy as np

    if tile.min() == tile.max():
        return bytes((_ZRLE_SOLID,)) + _cpixels(tile[:1, :1], form)
    if len(np.unique(tile[::_SAMPLE, ::_SAMPLE])) <= _PALETTE_LIMIT:
        colours, numbers = np.unique(tile, return_inverse=True)
        if len(colours) <= _PALETTE_LIMIT:
            return bytes((len(colours),)) + _cpixels(colours, form) + _packed(numbers.reshape(tile.shape), len(colours))
    return bytes((_ZRLE_RAW,)) + _cpixels(tile, form)


def _packed(numbers: Table, colours: int) -> bytes:
    """Return numbers of colours in 1, 2 or 4 bits each; each line begins with a new byte."""
    import numpy as np

    bits = 1 if colours == 2 else 2 if colours <= 4 else 4
    planes = numbers.astype(np.uint8)[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1
    return np.packbits(planes.reshape(len(numbers), -1), axis=1).tobytes()


def _cpixels(pixels: Table, form: PixelFormat) -> bytes:
    """Return pixels without the byte that no colour is in, where there is one (7.7.5)."""
    import numpy as np

    part = form.compact
    if part is None:
        return pixels.tobytes()
    octets = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1, 4)
    return octets[:, part[0] : part[1]].tobytes()
