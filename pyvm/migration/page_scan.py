"""Which pages of memory hold anything but zeros.

Without numpy: to import that takes longer than to look at the memory of a guest of some size.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping

PAGE = mmap.PAGESIZE
Ranges = Mapping[str, Iterable[tuple[int, int]]]
"""By the name of a block of memory: where something may be in it, as offsets of starts and ends in order."""


_ZERO_PAGE = bytes(PAGE)
_CHUNK = 256 * PAGE
"""As much as fits in the processor's cache."""
_TO_DIGITS, _FROM_DIGITS = bytes.maketrans(b"\x00\x01", b"01"), bytes.maketrans(b"01", b"\x00\x01")
_SET = re.compile(rb"\x01+")


def used_pages(data: memoryview) -> bytes:
    """Return for each page of `data`, which is whole pages, 1 where it holds anything but zeros, and 0."""
    used = bytearray()
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK].tobytes()
        used += bytes([not chunk.startswith(_ZERO_PAGE, page) for page in range(0, len(chunk), PAGE)])
    return bytes(used)


def runs(pages: bytes) -> list[tuple[int, int]]:
    """Return where the pages that are set start and end, in bytes, neighbours together."""
    return [(found.start() * PAGE, found.end() * PAGE) for found in _SET.finditer(pages)]


def packed(pages: bytes) -> bytes:
    """Return as many bits, the lowest first."""
    digits = bytes(pages[::-1]).translate(_TO_DIGITS)
    return int(digits or b"0", 2).to_bytes(-(-len(pages) // 8), "little")


def unpacked(bits: bytes | bytearray, count: int) -> bytes:
    """Return the first `count` of the bits that :func:`packed` made."""
    digits = f"{int.from_bytes(bits, 'little'):0{len(bits) * 8}b}".encode()
    return digits.translate(_FROM_DIGITS)[::-1][:count]


def touched(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that may hold something."""
    if descriptor < 0:
        yield 0, size
        return
    place = 0
    while place < size:
        try:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing more
                return
            raise
        place = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start < place:
            yield start, place
