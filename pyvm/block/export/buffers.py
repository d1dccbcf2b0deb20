"""What a client's requests are received into: headers many at a time, data into memory that is used again and again.

To get fresh memory costs as much as to fill it.
"""

from __future__ import annotations

from pyvm.block.drivers.nbd_stream import Stream

_AHEAD = 64 << 10
"""How much is received at a time where headers are expected: data that comes along is copied once more."""
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


class RequestReader:
    """Receives headers, and the data that follows some of them; as few system calls as there can be."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._view = memoryview(bytearray(_AHEAD))
        self._start = 0
        self._end = 0

    def holds(self, count: int) -> bool:
        """Whether so many bytes are there without waiting."""
        return self._end - self._start >= count

    def take(self, count: int) -> memoryview:
        """Return the next few bytes, which stay until the next call.  Raises ConnectionLost."""
        while self._end - self._start < count:
            if self._start:
                rest = self._end - self._start
                self._view[:rest] = self._view[self._start : self._end]
                self._start, self._end = 0, rest
            self._end += self._stream.receive_some(self._view[self._end :])
        self._start += count
        return self._view[self._start - count : self._start]

    def fill(self, buffer: memoryview) -> None:
        """Receive data.  Raises ConnectionLost."""
        count = min(len(buffer), self._end - self._start)
        buffer[:count] = self._view[self._start : self._start + count]
        self._start += count
        if count < len(buffer):
            self._stream.receive_into((buffer[count:],))
