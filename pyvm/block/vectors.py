"""Scatter-gather lists: a sequence of buffers that together are one run of bytes."""

from __future__ import annotations

from collections.abc import Sequence

Buffers = Sequence[memoryview]


def total(buffers: Buffers) -> int:
    """Return the number of bytes in all buffers."""
    return sum(map(len, buffers))


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

    def take(self, count: int) -> list[memoryview]:
        """Return the next `count` bytes, which must be there."""
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
