"""System calls on host files that Python has no function for, and I/O that goes around the page cache."""

from __future__ import annotations

import errno
import os

from pyvm.annotations import Any
from pyvm.block.vectors import Buffers, Cursor, copy_in, total

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_MAX_ALIGNMENT = 4096
_ALIGNMENTS = (512, 1024, 2048, 4096)
_BOUNCE_SIZE = 1 << 20

_libc: Any = None


def _load_libc() -> Any:
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return _libc


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Change the allocation of a range of a file.  Raises OSError."""
    import ctypes

    libc = _libc or _load_libc()
    while libc.fallocate(descriptor, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def find_alignment(descriptor: int) -> int:
    """Return what offsets, lengths and addresses must be multiples of for direct I/O on an open file."""
    import mmap

    with mmap.mmap(-1, _MAX_ALIGNMENT) as page, memoryview(page) as view:
        for alignment in _ALIGNMENTS:
            try:
                with view[:alignment] as part:
                    os.preadv(descriptor, [part], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return alignment
    return _MAX_ALIGNMENT


class Bounce:
    """Direct I/O for requests that are not aligned: through an aligned buffer, with what is around them."""

    def __init__(self, alignment: int) -> None:
        import mmap

        self.alignment = alignment
        self._memory = mmap.mmap(-1, _BOUNCE_SIZE)
        self._view = memoryview(self._memory)

    def misaligned(self, offset: int, buffers: Buffers) -> bool:
        """Whether the request is known not to be aligned; of its addresses only the kernel knows."""
        mask = self.alignment - 1
        return bool(offset & mask) or any(len(buffer) & mask for buffer in buffers)

    def read(self, descriptor: int, offset: int, buffers: Buffers) -> int:
        """Read as much as goes in one step from `offset` on; 0 at the end of the file.  Raises OSError."""
        start = offset & -self.alignment
        length = min(total(buffers), _BOUNCE_SIZE - self.alignment)
        end = -(-(offset + length) // self.alignment) * self.alignment
        count = os.preadv(descriptor, [self._view[: end - start]], start) - (offset - start)
        if count <= 0:
            return 0
        count = min(count, length)
        copy_in(Cursor(buffers).take(count), self._view[offset - start : offset - start + count])
        return count

    def write(self, descriptor: int, offset: int, buffers: Buffers) -> int:
        """Write as much as goes in one step from `offset` on.  Raises OSError.

        What is around the request is read and written back; the file does not grow by it.
        """
        alignment, view = self.alignment, self._view
        start = offset & -alignment
        length = min(total(buffers), _BOUNCE_SIZE - alignment)
        end = -(-(offset + length) // alignment) * alignment
        if start != offset:
            self._fill(descriptor, start, 0)
        if end != offset + length and (end - alignment != start or start == offset):
            self._fill(descriptor, end - alignment, end - alignment - start)
        position = offset - start
        for part in Cursor(buffers).take(length):
            view[position : position + len(part)] = part
            position += len(part)
        before = os.lseek(descriptor, 0, os.SEEK_END)
        written = 0
        while written < end - start:
            written += os.pwritev(descriptor, [view[written : end - start]], start + written)
        if max(before, offset + length) < end:
            os.ftruncate(descriptor, max(before, offset + length))
        return length

    def _fill(self, descriptor: int, offset: int, position: int) -> None:
        """Read one aligned piece to `position` of the buffer; what is not in the file is zeros."""
        piece = self._view[position : position + self.alignment]
        count = os.preadv(descriptor, [piece], offset)
        piece[count:] = bytes(self.alignment - count)
