"""Which pages of memory hold anything but zeros."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PAGE = mmap.PAGESIZE
Ranges = Mapping[str, Iterable[tuple[int, int]]]
"""By the name of a block of memory: where something may be in it, as offsets of starts and ends in order."""


def used_pages(data: memoryview) -> np.ndarray:
    """Return for each page of `data`, which is whole pages, whether it holds anything but zeros."""
    import numpy as np

    used: np.ndarray = np.asarray(np.frombuffer(data, np.uint64).reshape(-1, PAGE // 8).any(axis=1))
    return used


def runs(pages: np.ndarray) -> list[tuple[int, int]]:
    """Return where the pages that are set start and end, in bytes, neighbours together."""
    import numpy as np

    edges = np.flatnonzero(np.diff(pages, prepend=False, append=False)) * PAGE
    return [(first, end) for first, end in edges.reshape(-1, 2).tolist()]


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
