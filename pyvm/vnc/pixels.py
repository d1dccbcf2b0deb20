"""Pixels as clients want them: RFC 6143, sections 7.4 (pixel format data structure) and 7.6.2 (SetColourMapEntries).

Inside the server a picture is an array of numbers 0xRRGGBB.  A client names the size of its pixels, their byte order,
and where in them each colour is; or it wants numbers of colours in a map, and gets one of 256 colours.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pyvm.records import record
from pyvm.vnc.protocol import COLOUR, COLOUR_MAP, PIXEL_FORMAT, SET_COLOUR_MAP, ProtocolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint32]
    """Height x width of 0xRRGGBB."""
    Table = NDArray[Any]

_SIZES: Final = (8, 16, 32)
_BRIGHTEST: Final = 255
_MAP_SIZE: Final = 256
_MAP_BRIGHTEST: Final = 0xFFFF
_COMPACT_DEPTH: Final = 24


@record(frozen=True)
class PixelFormat:
    """How a pixel is written; `most` is the greatest value of a colour, `shifts` where it is, red, green, blue."""

    bits: int
    depth: int
    big_endian: bool
    true_colour: bool
    most: tuple[int, int, int]
    shifts: tuple[int, int, int]

    @classmethod
    def decode(cls, data: bytes) -> PixelFormat:
        """Return what a client asks for.  Raises ProtocolError for what cannot be written."""
        bits, depth, big_endian, true_colour, *colours = PIXEL_FORMAT.unpack(data)
        if bits not in _SIZES:
            raise ProtocolError(f"pixels of {bits} bits")
        if not true_colour:
            return cls(bits, depth, bool(big_endian), False, MAPPED.most, MAPPED.shifts)
        red, green, blue, *shifts = (value or _BRIGHTEST if place < 3 else value for place, value in enumerate(colours))
        for most, shift in zip((red, green, blue), shifts, strict=True):
            if most << shift >= 1 << bits:
                raise ProtocolError("a colour outside of the pixel")
        return cls(bits, depth, bool(big_endian), True, (red, green, blue), (shifts[0], shifts[1], shifts[2]))

    def encode(self) -> bytes:
        """Return the record as it is sent."""
        return PIXEL_FORMAT.pack(self.bits, self.depth, self.big_endian, self.true_colour, *self.most, *self.shifts)

    @property
    def dtype(self) -> str:
        """How numpy calls such pixels."""
        return f"{'>' if self.big_endian else '<'}u{self.bits // 8}"

    @property
    def compact(self) -> tuple[int, int] | None:
        """Which bytes of a pixel ZRLE sends where not all (7.7.5); None where it sends all."""
        if self.bits != 32 or not self.true_colour or self.depth > _COMPACT_DEPTH:
            return None
        used = 0
        for most, shift in zip(self.most, self.shifts, strict=True):
            used |= most << shift
        if used < 1 << 24:
            return (1, 4) if self.big_endian else (0, 3)
        if not used & 0xFF:
            return (0, 3) if self.big_endian else (1, 4)
        return None

    def convert(self, pixels: Pixels) -> Table:
        """Return pixels in this format, as an array without gaps."""
        import numpy as np

        if self == SERVER_FORMAT:
            return np.ascontiguousarray(pixels, self.dtype)
        red, green, blue = _tables(self)
        found: Table = red[pixels >> 16] | green[pixels >> 8 & 0xFF] | blue[pixels & 0xFF]
        wanted: Table = found.astype(self.dtype)
        return wanted


SERVER_FORMAT: Final = PixelFormat(32, 24, False, True, (255, 255, 255), (16, 8, 0))
"""What is sent to a client that asks for nothing else."""
MAPPED: Final = PixelFormat(8, 8, False, False, (7, 7, 3), (0, 3, 6))
"""Numbers of colours in the map."""


@cache
def _tables(form: PixelFormat) -> tuple[Table, Table, Table]:
    """Return what each of 256 steps of a colour becomes in a pixel, for the three colours."""
    import numpy as np

    values = np.arange(_BRIGHTEST + 1, dtype=np.uint64)

    def table(most: int, shift: int) -> Table:
        steps = values * (most + 1) >> 8 if most <= _BRIGHTEST else values * most // _BRIGHTEST
        return (steps << shift).astype(np.uint32)

    red, green, blue = (table(most, shift) for most, shift in zip(form.most, form.shifts, strict=True))
    return red, green, blue


def colour_map() -> bytes:
    """Return the message that says what the colours of :data:`MAPPED` are."""
    colours = [COLOUR_MAP.pack(SET_COLOUR_MAP, 0, _MAP_SIZE)]
    for number in range(_MAP_SIZE):
        parts = (
            (number >> shift & most) * _MAP_BRIGHTEST // most
            for most, shift in zip(MAPPED.most, MAPPED.shifts, strict=True)
        )
        colours.append(COLOUR.pack(*parts))
    return b"".join(colours)
