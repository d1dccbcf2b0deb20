"""The memory of a saved machine: one file with the guest's RAM and that of its devices, block after block.

Pages of zeros are holes.  The file is mapped copy-on-write to be RAM again: nothing is read before the guest touches
it, and machines that were made of one file share what none of them has changed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE
_CHUNK = 4 << 20
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000


@dataclass(frozen=True)
class RamPart:
    """A block of memory in the file; in bytes."""

    name: str
    offset: int
    size: int


def write_ram(path: str, blocks: dict[str, memoryview], holes: dict[str, int]) -> list[RamPart]:
    """Write a new file with blocks of whole pages; return where they are.  Raises OSError.

    `holes` names blocks of anonymous shared memory by descriptor: what was never touched there is not looked at.
    """
    parts, end = [], 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for name, view in blocks.items():
            part = RamPart(name, end, len(view))
            for start, stop in _touched(holes.get(name, -1), len(view)):
                _write_pages(descriptor, part.offset, view, start, stop)
            parts.append(part)
            end += part.size
        os.ftruncate(descriptor, end)
    finally:
        os.close(descriptor)
    return parts


def _touched(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges that may hold something."""
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


def _write_pages(descriptor: int, base: int, view: memoryview, start: int, stop: int) -> None:
    import numpy as np

    for chunk in range(start, stop, _CHUNK):
        data = view[chunk : min(chunk + _CHUNK, stop)]
        used = np.frombuffer(data, dtype=np.uint64).reshape(-1, _PAGE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)) * _PAGE
        for first, end in edges.reshape(-1, 2).tolist():
            _write_all(descriptor, data[first:end], base + chunk + first)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


class SavedRam:
    """A part of such a file as guest RAM; changes stay in this process.  Raises OSError."""

    def __init__(self, path: str, part: RamPart) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.mapping = mmap.mmap(
                descriptor,
                part.size,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=part.offset,
            )
        finally:
            os.close(descriptor)

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping)) + offset
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        made = libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(length), protection, flags, -1, ctypes.c_long(0))
        if made != address:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
