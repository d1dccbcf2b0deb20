"""The character generators of the ROM by height, as :mod:`pyvm.firmware.bios.font` has drawn them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

CHARACTERS: Final = 256


@cache
def font(height: int) -> bytes:
    """Return the 256 glyphs of the font `height` (8, 14 or 16) lines high, one after another, a byte a line."""
    return Path(__file__).with_name(f"font{height}.bin").read_bytes()
