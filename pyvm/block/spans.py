"""Bytes of a host file as a scatter-gather list: read where somebody looks at them, copied by the host where not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pyvm.annotations import TYPE_CHECKING, overload
from pyvm.native import splice

if TYPE_CHECKING:
    _Buffers = Sequence[memoryview]
else:
    _Buffers = object  # to ask whether something is an instance of an abstract class takes long

_PIPE_BYTES = 1 << 20
"""How much goes through a pipe at a time, where the host lets it be so large."""


class HostPipe:
    """Copies from file to file through a pipe: each byte is copied once, and the files share no blocks afterwards."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def _open(self) -> tuple[int, int]:
        if self._ends is None:
            import fcntl

            self._ends = os.pipe()
            try:
                fcntl.fcntl(self._ends[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass  # it takes more turns through a small one
        return self._ends

    def copy(self, source: int, start: int, target: int, offset: int, length: int) -> int:
        """Copy bytes from `start` on in one file to `offset` in another; return how many of `length` those were.

        0 where the source ends.  Raises OSError, also for files with which this does not go.
        """
        way_out, way_in = self._open()
        try:
            return splice(way_out, way_in, source, start, target, offset, length)
        except BaseException:
            self.close()  # something may be left in it
            raise

    def close(self) -> None:
        """Give the pipe back."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            os.close(end)


class FileSpan(_Buffers):
    """`length` bytes from `start` on of an open file, as one buffer.  What is behind the file's end are zeros."""

    __slots__ = ("_data", "_file", "_pipe", "_start", "nbytes")

    def __init__(self, pipe: HostPipe, file: int, start: int, length: int) -> None:
        self._pipe = pipe
        self._file = file
        self._start = start
        self.nbytes = length
        """How many bytes it is."""
        self._data: memoryview | None = None

    def __len__(self) -> int:
        return 1 if self.nbytes else 0

    @overload
    def __getitem__(self, index: int) -> memoryview: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | Sequence[memoryview]:
        """Return the buffer, or this where it is among those asked for."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return self if chosen else ()
        return self._read()

    def __iter__(self) -> Iterator[memoryview]:
        if self.nbytes:
            yield self._read()

    def span(self, start: int, end: int) -> FileSpan:
        """Return a part of it."""
        return FileSpan(self._pipe, self._file, self._start + start, end - start)

    def _read(self) -> memoryview:
        if self._data is None:
            data = memoryview(bytearray(self.nbytes))
            done = 0
            while done < self.nbytes and (count := os.preadv(self._file, [data[done:]], self._start + done)):
                done += count
            self._data = data
        return self._data

    def pwritev(self, file: int, offset: int) -> int:
        """Write it to a file; return how many bytes that were.  Raises OSError."""
        if self._data is None:
            count = self._pipe.copy(self._file, self._start, file, offset, self.nbytes)
            if count:
                return count
        return os.pwritev(file, [self._read()], offset)
