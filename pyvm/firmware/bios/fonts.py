"""The character generators of the ROM by height; they are drawn once."""

from __future__ import annotations

from functools import cache
from typing import Final

CHARACTERS: Final = 256


@cache
def font(height: int) -> bytes:
    """Return the 256 glyphs of the font `height` (8, 14 or 16) lines high, one after another, a byte a line."""
    from pyvm.firmware.bios.font import font_8x8, font_8x14, font_8x16

    return {8: font_8x8, 14: font_8x14, 16: font_8x16}[height]()
