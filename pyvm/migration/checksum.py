"""CRC-32 as zlib has it, by the fastest way that there is: all memory of a guest that moves goes through it."""

from __future__ import annotations

import zlib

try:
    # Not every kind of processor has it.  It takes a tenth of zlib's time.
    from isal.isal_zlib import crc32
except ImportError:
    crc32 = zlib.crc32

__all__ = ["crc32"]
