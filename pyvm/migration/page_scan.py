"""Which pages of memory hold anything but zeros.

Sets of pages are bytes here, one for each page, 1 where it is in the set.  Without numpy: to import that takes longer
than to look at the memory of a guest of some size.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping

from pyvm.native import used_pages

__all__ = ["PAGE", "Ranges", "both", "numbered", "packed", "runs", "touched", "union", "unpacked", "used_pages"]

PAGE = mmap.PAGESIZE
Ranges = Mapping[str, Iterable[tuple[int, int]]]
"""By the name of a block of memory: where something may be in it, as offsets of starts and ends in order."""

_TO_DIGITS, _FROM_DIGITS = bytes.maketrans(b"\x00\x01", b"01"), bytes.maketrans(b"01", b"\x00\x01")


def union(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """Return the pages that are in one set or the other, which are of the same length."""
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")


def both(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """Return the pages that are in two sets of the same length."""
    return (int.from_bytes(one, "little") & int.from_bytes(other, "little")).to_bytes(len(one), "little")


def numbered(numbers: bytes | bytearray, number: int) -> bytes:
    """Return the pages that have this number, 0 to 255."""
    table = bytearray(256)
    table[number] = 1
    return bytes(numbers.translate(table))


def runs(pages: bytes) -> list[tuple[int, int]]:
    """Return where the pages that are set start and end, in bytes, neighbours together."""
    found = []
    start = pages.find(1)
    while start >= 0:
        end = pages.find(0, start)
        if end < 0:
            end = len(pages)
        found.append((start * PAGE, end * PAGE))
        start = pages.find(1, end)
    return found


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
