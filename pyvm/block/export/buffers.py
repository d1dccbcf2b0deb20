"""What the data of a client's requests is received into: memory that is used again and again.

To get fresh memory costs as much as to fill it.
"""

from __future__ import annotations

_SMALLEST = 4 << 10
_KEPT = 16 << 20
"""Most memory that is kept while nobody needs it."""


class BufferPool:
    """Buffers of one client, by sizes that are powers of two.  The client's own lock guards it where it has to."""

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._kept = 0

    def take(self, length: int) -> memoryview:
        """Return memory for `length` bytes, with anything in it that went through it before."""
        size = _SMALLEST if length <= _SMALLEST else 1 << (length - 1).bit_length()
        free = self._free.get(size)
        if free:
            try:
                buffer = free.pop()
                self._kept -= size
            except IndexError:
                buffer = bytearray(size)
        else:
            buffer = bytearray(size)
        return memoryview(buffer)[:length]

    def give_back(self, view: memoryview) -> None:
        """The data is not needed any more."""
        buffer = view.obj
        assert isinstance(buffer, bytearray)
        if self._kept + len(buffer) <= _KEPT:
            self._free.setdefault(len(buffer), []).append(buffer)
            self._kept += len(buffer)
