"""Protocol driver *file*: the bytes of a host file or block device."""

from __future__ import annotations

import errno
import os
import stat
from typing import ClassVar

from pyvm.block.errors import BlockError
from pyvm.block.locking import lock_image
from pyvm.block.node import Access, Node, disk_access
from pyvm.block.vectors import Buffers, behind, fill_zero

SECTOR = 512
_IOV_LIMIT = 1024
"""Most buffers of one preadv or pwritev (IOV_MAX of Linux)."""

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10
_ZERO_CHUNK = 1 << 20


class FileNode(Node):
    """A host file.

    As a disk, its length is fixed while it is open, and rounded down to whole sectors; the image formats above may
    write behind that, and let the file grow.  It is locked for `access`.  Raises :class:`BlockError` where the file
    cannot be opened, is not a file, or is in use in a way that does not go together with `access`.
    """

    driver: ClassVar[str] = "file"

    def __init__(
        self,
        path: str,
        *,
        name: str = "",
        read_only: bool = False,
        unmap: bool = False,
        serial: str = "",
        access: Access | None = None,
    ) -> None:
        super().__init__(name, read_only=read_only, unmap=unmap, serial=serial)
        self.path = path
        self._written = False
        self._lost = 0
        """The error of a flush that failed: the host may have dropped what it could not write."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except IsADirectoryError:
            raise BlockError(f"'file' driver requires '{path}' to be a regular file") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BlockError(f"Could not open '{path}': {reason}") from None
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
                raise BlockError(f"'file' driver requires '{path}' to be a regular file")
            self.identity = (status.st_dev, status.st_ino)
            """What tells whether two nodes are the same file."""
            lock_image(self._fd, path, access or disk_access(read_only))
            self._size = self.length() & -SECTOR
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size

    def length(self) -> int:
        """Return how long the file is now, in bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or fewer where the file is shorter.  Raises OSError."""
        return os.pread(self._fd, count, 0)

    def close(self) -> None:
        """Give the file and its locks back; nothing is flushed."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError.  What is not in the file reads as zeros."""
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = os.preadv(self._fd, rest, offset)
                if not count:
                    fill_zero(rest)
                    count = sum(map(len, rest))
                offset += count
                rest = behind(rest, count)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on.  Raises OSError."""
        self._written = True
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = os.pwritev(self._fd, rest, offset)
                offset += count
                rest = behind(rest, count)

    def flush(self) -> None:
        """Return when everything written is on stable storage.  Raises OSError, and from then on each time."""
        if self._lost:
            raise OSError(self._lost, os.strerror(self._lost))
        if not self._written:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = error.errno or errno.EIO
            raise
        self._written = False

    def discard(self, offset: int, length: int) -> None:
        """Let the range take no room where that was asked for and the host can do it; it reads as zeros then."""
        if not self.unmap:
            return
        try:
            self._fallocate(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError:
            # A discard is a hint.
            return

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it takes no room where the host can do that.  Raises OSError."""
        modes = [_FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE]
        if unmap and self.unmap:
            modes.insert(0, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE)
        for mode in modes:
            try:
                self._fallocate(mode, offset, length)
                return
            except OSError:
                # This file system cannot; the next way is slower and the last one always works.
                continue
        zeros = memoryview(bytes(min(_ZERO_CHUNK, length)))
        end = offset + length
        while offset < end:
            count = min(len(zeros), end - offset)
            self.writev(offset, [zeros[:count]])
            offset += count

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        import ctypes

        self._written = True
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(self._fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
