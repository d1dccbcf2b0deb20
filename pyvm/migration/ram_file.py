"""The memory of a saved machine: one file with the guest's RAM and that of its devices, block after block.

Pages of zeros are holes.  The file is mapped copy-on-write to be RAM again: nothing is read before the guest touches
it, and machines that were made of one file share what none of them has changed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping

from pyvm.migration.fork_ram import LayeredRam, Layers
from pyvm.migration.page_scan import Ranges, runs, used_pages
from pyvm.records import record

_PAGE = mmap.PAGESIZE
_CHUNK = 4 << 20


@record(frozen=True)
class RamPart:
    """A block of memory in the file; in bytes."""

    name: str
    offset: int
    size: int


def write_ram(path: str, blocks: Mapping[str, memoryview], ranges: Ranges) -> list[RamPart]:
    """Write a new file with blocks of whole pages; return where they are.  Raises OSError.

    Of blocks that are in `ranges`, nothing else is looked at.
    """
    parts, end = [], 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for name, view in blocks.items():
            part = RamPart(name, end, len(view))
            for start, stop in ranges.get(name, [(0, len(view))]):
                _write_pages(descriptor, part.offset, view, start, stop)
            parts.append(part)
            end += part.size
        os.ftruncate(descriptor, end)
    finally:
        os.close(descriptor)
    return parts


def _write_pages(descriptor: int, base: int, view: memoryview, start: int, stop: int) -> None:
    for chunk in range(start, stop, _CHUNK):
        data = view[chunk : min(chunk + _CHUNK, stop)]
        for first, end in runs(used_pages(data)):
            _write_all(descriptor, data[first:end], base + chunk + first)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


class SavedRam(LayeredRam):
    """A part of such a file as guest RAM; changes stay in this process.  Raises OSError."""

    def __init__(self, path: str, part: RamPart) -> None:
        super().__init__(Layers(part.size, os.open(path, os.O_RDONLY | os.O_CLOEXEC), part.offset))
