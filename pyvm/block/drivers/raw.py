"""Format driver *raw*: the bytes of a file, or of a window in it, are those of the disk.

Where the format was guessed, the guest may not write what would be taken for another format the next time: it could
name any file of the host as its backing file.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from pyvm.block.drivers.file import SECTOR, FileNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Child, Node, Role
from pyvm.block.probe import PROBE_SIZE, probe_format
from pyvm.block.vectors import Buffers, Cursor, total


class RawNode(Node):
    """A raw image in `file`, which it closes in the end.

    `offset` and `size` are the window in bytes; without `size` it reaches to the end of the file.  `probed` says that
    the format was guessed.  Raises :class:`BlockError` for a window that is not in the file.
    """

    driver: ClassVar[str] = "raw"

    def __init__(
        self, file: FileNode, *, name: str = "", offset: int = 0, size: int | None = None, probed: bool = False
    ) -> None:
        super().__init__(name, read_only=file.read_only, unmap=file.unmap)
        self._file = file
        self._offset = offset
        self._probed = probed
        length = file.length()
        if size is None:
            if offset > length:
                raise BlockError("Offset cannot be greater than size of the containing file")
            size = (length - offset) & -SECTOR
        elif size % SECTOR:
            raise BlockError(f"Specified size is not multiple of {SECTOR}")
        elif offset + size > length:
            raise BlockError(
                f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the actual size of the"
                f" containing file ({length})"
            )
        self._size = size
        self.children.append(Child(Role.FILTERED, file))

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self.check_range(offset, total(buffers))
        self._file.readv(self._offset + offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on; EPERM where a guessed format would change."""
        length = total(buffers)
        self.check_write(offset, length)
        if self._probed and offset < PROBE_SIZE and length:
            buffers = self._checked_head(offset, length, buffers)
        self._file.writev(self._offset + offset, buffers)

    def _checked_head(self, offset: int, length: int, buffers: Buffers) -> Buffers:
        """Return the buffers with a copy of the first sector that has been looked at, so it cannot change again."""
        cursor = Cursor(buffers)
        count = min(PROBE_SIZE - offset, length)
        head = self.read(0, min(PROBE_SIZE, self._size))
        head[offset : offset + count] = b"".join(cursor.take(count))
        if probe_format(bytes(head)) != self.driver:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return [memoryview(head)[offset : offset + count], *cursor.take(length - count)]

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        self._file.flush()

    def discard(self, offset: int, length: int) -> None:
        """Give the range back, where that was asked for and the host can do it."""
        self.check_write(offset, length)
        self._file.discard(self._offset + offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros."""
        self.check_write(offset, length)
        if length:
            self._file.write_zeroes(self._offset + offset, length, unmap)
