"""The video modes of int 10h and what each wants in the registers of a VGA.

IBM Personal System/2 Hardware Interface Technical Reference, "Video subsystem" (register values by mode); Ralf Brown's
Interrupt List, int 10h AH=00.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cache
from typing import Final

from pyvm.records import record


class Layout(Enum):
    """How a mode's memory makes dots."""

    TEXT = auto()
    CGA = auto()
    PLANAR = auto()
    PACKED = auto()


class Palette(Enum):
    """What a mode loads into the DAC."""

    MONO = auto()
    CGA = auto()
    EGA = auto()
    VGA = auto()


@record(frozen=True)
class VideoMode:
    """One mode.  Sizes are in characters, lines of a character, and bytes."""

    number: int
    layout: Layout
    columns: int
    rows: int
    character_height: int
    page_size: int
    base: int
    palette: Palette
    bits: int
    """Bits of a dot."""
    sequencer: bytes
    """Registers 1 to 4."""
    miscellaneous: int
    crtc: bytes
    attribute: bytes
    graphics: bytes

    @property
    def pages(self) -> int:
        """How many pages the memory holds, at most 8."""
        if self.layout is Layout.CGA or self.number == 0x13:
            return 1
        room = 0x10000 if self.layout is Layout.PLANAR else 0x8000
        return min(max(room // self.page_size, 1), 8)

    @property
    def bytes_per_row(self) -> int:
        """Bytes from one line of dots to the next, in a graphics mode."""
        return self.columns * (8 if self.layout is Layout.PACKED else 2 if self.bits == 2 else 1)


_TEXT_ATTRIBUTES: Final = "00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 0c 00 0f 08"
_CGA4_ATTRIBUTES: Final = "00 13 15 17 02 04 06 07 10 11 12 13 14 15 16 17 01 00 03 00"
_CGA2_ATTRIBUTES: Final = "00 17 17 17 17 17 17 17 17 17 17 17 17 17 17 17 01 00 01 00"
_MONO_ATTRIBUTES: Final = "00 08 08 08 08 08 08 08 10 18 18 18 18 18 18 18 0e 00 0f 08"
_EGA200_ATTRIBUTES: Final = "00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 01 00 0f 00"
_EGA_MONO_ATTRIBUTES: Final = "00 08 00 00 18 18 00 00 00 08 00 00 00 18 00 00 0b 00 05 00"
_EGA350_ATTRIBUTES: Final = "00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 01 00 0f 00"
_VGA2_ATTRIBUTES: Final = "00 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 3f 01 00 0f 00"
_VGA256_ATTRIBUTES: Final = "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 41 00 0f 00"

_TEXT_GRAPHICS: Final = "00 00 00 00 00 10 0e 0f ff"
_MONO_GRAPHICS: Final = "00 00 00 00 00 10 0a 0f ff"
_CGA4_GRAPHICS: Final = "00 00 00 00 00 30 0f 0f ff"
_CGA2_GRAPHICS: Final = "00 00 00 00 00 00 0d 0f ff"
_PLANAR_GRAPHICS: Final = "00 00 00 00 00 00 05 0f ff"
_EGA_MONO_GRAPHICS: Final = "00 00 00 00 00 00 05 05 ff"
_VGA2_GRAPHICS: Final = "00 00 00 00 00 00 05 01 ff"
_VGA256_GRAPHICS: Final = "00 00 00 00 00 40 05 0f ff"

_CRTC_40: Final = "2d 27 28 90 2b a0 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 14 1f 96 b9 a3 ff"
_CRTC_80: Final = "5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff"
_CRTC_MONO: Final = "5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 0f 96 b9 a3 ff"
_CRTC_CGA4: Final = "2d 27 28 90 2b 80 bf 1f 00 c1 00 00 00 00 00 00 9c 8e 8f 14 00 96 b9 a2 ff"
_CRTC_CGA2: Final = "5f 4f 50 82 54 80 bf 1f 00 c1 00 00 00 00 00 00 9c 8e 8f 28 00 96 b9 c2 ff"
_CRTC_320: Final = "2d 27 28 90 2b 80 bf 1f 00 c0 00 00 00 00 00 00 9c 8e 8f 14 00 96 b9 e3 ff"
_CRTC_640: Final = "5f 4f 50 82 54 80 bf 1f 00 c0 00 00 00 00 00 00 9c 8e 8f 28 00 96 b9 e3 ff"
_CRTC_350: Final = "5f 4f 50 82 54 80 bf 1f 00 40 00 00 00 00 00 00 83 85 5d 28 0f 63 ba e3 ff"
_CRTC_480_2: Final = "5f 4f 50 82 54 80 0b 3e 00 40 00 00 00 00 00 00 ea 8c df 28 00 e7 04 c3 ff"
_CRTC_480: Final = "5f 4f 50 82 54 80 0b 3e 00 40 00 00 00 00 00 00 ea 8c df 28 00 e7 04 e3 ff"
_CRTC_256: Final = "5f 4f 50 82 54 80 bf 1f 00 41 00 00 00 00 00 00 9c 8e 8f 28 40 96 b9 a3 ff"

_T, _C, _P, _L = Layout.TEXT, Layout.CGA, Layout.PLANAR, Layout.PACKED
_RAW: Final = (
    # number, layout, columns, rows, character height, page size, base, palette, bits, sequencer, miscellaneous output
    (0x00, _T, 40, 25, 16, 0x0800, 0xB8000, Palette.EGA, 4, "08 03 00 02", 0x67, _CRTC_40, _TEXT_ATTRIBUTES,
     _TEXT_GRAPHICS),
    (0x01, _T, 40, 25, 16, 0x0800, 0xB8000, Palette.EGA, 4, "08 03 00 02", 0x67, _CRTC_40, _TEXT_ATTRIBUTES,
     _TEXT_GRAPHICS),
    (0x02, _T, 80, 25, 16, 0x1000, 0xB8000, Palette.EGA, 4, "00 03 00 02", 0x67, _CRTC_80, _TEXT_ATTRIBUTES,
     _TEXT_GRAPHICS),
    (0x03, _T, 80, 25, 16, 0x1000, 0xB8000, Palette.EGA, 4, "00 03 00 02", 0x67, _CRTC_80, _TEXT_ATTRIBUTES,
     _TEXT_GRAPHICS),
    (0x04, _C, 40, 25, 8, 0x4000, 0xB8000, Palette.CGA, 2, "09 03 00 02", 0x63, _CRTC_CGA4, _CGA4_ATTRIBUTES,
     _CGA4_GRAPHICS),
    (0x05, _C, 40, 25, 8, 0x4000, 0xB8000, Palette.CGA, 2, "09 03 00 02", 0x63, _CRTC_CGA4, _CGA4_ATTRIBUTES,
     _CGA4_GRAPHICS),
    (0x06, _C, 80, 25, 8, 0x4000, 0xB8000, Palette.CGA, 1, "01 01 00 06", 0x63, _CRTC_CGA2, _CGA2_ATTRIBUTES,
     _CGA2_GRAPHICS),
    (0x07, _T, 80, 25, 16, 0x1000, 0xB0000, Palette.MONO, 4, "00 03 00 02", 0x66, _CRTC_MONO, _MONO_ATTRIBUTES,
     _MONO_GRAPHICS),
    (0x0D, _P, 40, 25, 8, 0x2000, 0xA0000, Palette.CGA, 4, "09 0f 00 06", 0x63, _CRTC_320, _EGA200_ATTRIBUTES,
     _PLANAR_GRAPHICS),
    (0x0E, _P, 80, 25, 8, 0x4000, 0xA0000, Palette.CGA, 4, "01 0f 00 06", 0x63, _CRTC_640, _EGA200_ATTRIBUTES,
     _PLANAR_GRAPHICS),
    (0x0F, _P, 80, 25, 14, 0x8000, 0xA0000, Palette.MONO, 4, "01 0f 00 06", 0xA2, _CRTC_350, _EGA_MONO_ATTRIBUTES,
     _EGA_MONO_GRAPHICS),
    (0x10, _P, 80, 25, 14, 0x8000, 0xA0000, Palette.EGA, 4, "01 0f 00 06", 0xA3, _CRTC_350, _EGA350_ATTRIBUTES,
     _PLANAR_GRAPHICS),
    (0x11, _P, 80, 30, 16, 0xA000, 0xA0000, Palette.EGA, 4, "01 0f 00 06", 0xE3, _CRTC_480_2, _VGA2_ATTRIBUTES,
     _VGA2_GRAPHICS),
    (0x12, _P, 80, 30, 16, 0xA000, 0xA0000, Palette.EGA, 4, "01 0f 00 06", 0xE3, _CRTC_480, _EGA350_ATTRIBUTES,
     _PLANAR_GRAPHICS),
    (0x13, _L, 40, 25, 8, 0x2000, 0xA0000, Palette.VGA, 8, "01 0f 00 0e", 0x63, _CRTC_256, _VGA256_ATTRIBUTES,
     _VGA256_GRAPHICS),
)  # fmt: skip


@cache
def modes() -> dict[int, VideoMode]:
    """Return all modes by number."""
    table = {}
    for raw in _RAW:
        sequencer, miscellaneous, crtc, attribute, graphics = raw[9:]
        registers = (bytes.fromhex(sequencer), miscellaneous, *map(bytes.fromhex, (crtc, attribute, graphics)))
        table[raw[0]] = VideoMode(*raw[:9], *registers)  # type: ignore[arg-type]
    return table


def _component(value: int, strong: int, weak: int) -> int:
    return (0x2A if value & strong else 0) + (0x15 if value & weak else 0)


def _ega_colour(value: int) -> bytes:
    """Return the colour of a 6-bit EGA value: rgbRGB, where the second three weigh twice as much."""
    return bytes((_component(value, 4, 0x20), _component(value, 2, 0x10), _component(value, 1, 0x08)))


def _cga_colour(value: int) -> bytes:
    """Return one of the 16 colours of a CGA: IRGB, and brown instead of dark yellow."""
    if value == 6:
        return bytes((0x2A, 0x15, 0x00))
    base = 0x15 if value & 8 else 0
    return bytes(base + (0x2A if value & bit else 0) for bit in (4, 2, 1))


_GREYS: Final = bytes.fromhex("00 05 08 0b 0e 11 14 18 1c 20 24 28 2d 32 38 3f")
# Five steps from the lowest to the highest component, by intensity (high to low) and saturation (high to low).
_STEPS: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "00 10 1f 2f 3f", "1f 27 2f 37 3f", "2d 31 36 3a 3f", "00 07 0e 15 1c", "0e 11 15 18 1c", "14 16 18 1a 1c",
        "00 04 08 0c 10", "08 0a 0c 0e 10", "0b 0c 0d 0f 10",
    )
)  # fmt: skip


def _hues(steps: bytes) -> bytes:
    """Return 24 colours around the wheel, from blue by way of red and green."""
    low, high = steps[0], steps[4]
    rising, falling = list(steps[:4]), list(steps[:0:-1])
    wheel = [(step, low, high) for step in rising]
    wheel += [(high, low, step) for step in falling]
    wheel += [(high, step, low) for step in rising]
    wheel += [(step, high, low) for step in falling]
    wheel += [(low, high, step) for step in rising]
    wheel += [(low, step, high) for step in falling]
    return b"".join(map(bytes, wheel))


@cache
def palette(kind: Palette) -> bytes:
    """Return the 256 colours that a mode loads into the DAC, 3 bytes each with 6 bits."""
    if kind is Palette.VGA:
        colours = b"".join(map(_cga_colour, range(16)))
        colours += b"".join(bytes((grey,)) * 3 for grey in _GREYS)
        colours += b"".join(map(_hues, _STEPS))
    elif kind is Palette.EGA:
        colours = b"".join(map(_ega_colour, range(64)))
    elif kind is Palette.CGA:
        # 8 dark colours at 0, and the bright ones at 10h, where the attribute controller of these modes looks.
        colours = b"".join(_cga_colour(value & 7 | (value & 0x10) >> 1) for value in range(64))
    else:
        levels = (0x00, 0x2A, 0x00, 0x3F)
        colours = b"".join(bytes((levels[value >> 3 & 3],)) * 3 for value in range(64))
    return colours.ljust(3 * 256, b"\0")
