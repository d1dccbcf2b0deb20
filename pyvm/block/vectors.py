"""Scatter-gather lists: a sequence of buffers that together are one run of bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvm.block.spans import FileSpan
from pyvm.native import Vector

Buffers = Sequence[memoryview]
"""A :class:`Vector` of guest RAM is one, and needs no work for each of its segments; so is a :class:`FileSpan`."""
_WHOLE = (Vector, FileSpan)
"""What is taken apart without a look at single buffers."""


def total(buffers: Buffers) -> int:
    """Return the number of bytes in all buffers."""
    return buffers.nbytes if isinstance(buffers, _WHOLE) else sum(map(len, buffers))


def join(lists: Sequence[Buffers]) -> Buffers:
    """Return all buffers of several lists, one list after the other."""
    vectors = [one for one in lists if isinstance(one, Vector)]
    if vectors and len(vectors) == len(lists):
        return Vector.join(vectors)
    return [buffer for one in lists for buffer in one]


def preadv(fd: int, buffers: Buffers, offset: int, flags: int = 0) -> int:
    """Fill buffers from a file; return how many bytes there were.  Raises OSError."""
    if isinstance(buffers, Vector):
        return buffers.preadv(fd, offset, flags)
    return os.preadv(fd, buffers, offset, flags)


def pwritev(fd: int, buffers: Buffers, offset: int) -> int:
    """Write buffers to a file; return how many bytes that were.  Raises OSError."""
    if isinstance(buffers, _WHOLE):
        return buffers.pwritev(fd, offset)
    return os.pwritev(fd, buffers, offset)


def fill_zero(buffers: Buffers) -> None:
    """Set all bytes to zero."""
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))


def copy_in(buffers: Buffers, data: bytes | memoryview) -> None:
    """Fill the buffers with `data`, which is exactly as long."""
    start = 0
    for buffer in buffers:
        buffer[:] = data[start : start + len(buffer)]
        start += len(buffer)


def behind(buffers: Buffers, count: int) -> Buffers:
    """Return what is left of `buffers` behind their first `count` bytes."""
    if isinstance(buffers, _WHOLE):
        return buffers.span(count, buffers.nbytes)
    if count >= total(buffers):  # nearly always, and a list may be long
        return ()
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return (buffer[count:], *buffers[index + 1 :])
        count -= len(buffer)
    return ()


class Cursor:
    """Takes a scatter-gather list apart from its start; no byte is copied."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._index = 0
        self._start = 0

    def take(self, count: int) -> Buffers:
        """Return the next `count` bytes, which must be there."""
        if isinstance(self._buffers, _WHOLE):
            self._start += count
            return self._buffers.span(self._start - count, self._start)
        if not self._index and not self._start and count == total(self._buffers):
            self._index = len(self._buffers)
            return list(self._buffers)
        taken = []
        while count:
            buffer = self._buffers[self._index]
            rest = len(buffer) - self._start
            if rest > count:
                taken.append(buffer[self._start : self._start + count])
                self._start += count
                return taken
            if rest:
                taken.append(buffer[self._start :] if self._start else buffer)
            count -= rest
            self._index += 1
            self._start = 0
        return taken


_ZEROS = bytes(64 << 10)


def is_zero(buffers: Buffers) -> bool:
    """Whether all bytes are zero."""
    for buffer in buffers:
        # Most data is not, and shows that at its start.
        if buffer[:16] != _ZEROS[: min(16, len(buffer))]:
            return False
        for start in range(0, len(buffer), len(_ZEROS)):
            part = bytes(buffer[start : start + len(_ZEROS)])
            if part != _ZEROS[: len(part)]:
                return False
    return True
