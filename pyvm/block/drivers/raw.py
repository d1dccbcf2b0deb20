"""Format driver *raw*: the bytes of another node, or of a window in it, are those of the disk.

Where the format was guessed, the guest may not write what would be taken for another format the next time: it could
name any file of the host as its backing file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pyvm.annotations import TYPE_CHECKING, Any, ClassVar
from pyvm.block.errors import BlockError
from pyvm.block.node import Child, DetectZeroes, Extent, Node, NodeOptions, Pending, Preallocation, Role
from pyvm.block.probe import PROBE_SIZE, probe_format
from pyvm.block.vectors import Buffers, Cursor, fill_zero, is_zero, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

SECTOR = 512


class RawNode(Node):
    """A raw image in `file`, which it closes in the end.

    `offset` and `size` are the window in bytes; without `size` it reaches to the end of the file.  `probed` says that
    the format was guessed.  Raises :class:`BlockError` for a window that is not in the file.
    """

    driver: ClassVar[str] = "raw"

    def __init__(
        self,
        file: Node,
        *,
        name: str = "",
        offset: int = 0,
        size: int | None = None,
        probed: bool = False,
        read_only: bool | None = None,
        unmap: bool | None = None,
        detect_zeroes: DetectZeroes = "off",
    ) -> None:
        super().__init__(
            name,
            read_only=file.read_only if read_only is None else read_only,
            unmap=file.unmap if unmap is None else unmap,
        )
        self.detect_zeroes = detect_zeroes
        self._file = file
        self._offset = offset
        self.probed = probed
        self._given_size = size
        self._check_window(file, offset, size)
        self._size = self._whole_size()
        self.children.append(Child(Role.FILTERED, file))

    @staticmethod
    def _check_window(file: Node, offset: int, size: int | None) -> None:
        length = file.length()
        if size is None:
            if offset > length:
                raise BlockError(f"Offset ({offset}) cannot be greater than size of the containing file ({length})")
        elif size % SECTOR:
            raise BlockError(f"Specified size is not multiple of {SECTOR}")
        elif offset + size > length:
            raise BlockError(
                f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the"
                f" containing file ({length})"
            )

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Be as `new` says; raises BlockError for a window that is not in the file."""
        offset, size = new.own.get("offset", 0), new.own.get("size")
        self._check_window(self._file, offset, size)
        before = self._offset, self._given_size, self._size
        restore = super().reopen(graph, new)
        self._offset, self._given_size = offset, size
        self._size = self._whole_size()

        def back() -> None:
            restore()
            self._offset, self._given_size, self._size = before

        return back

    def _whole_size(self) -> int:
        """Return the length of the disk; the last sector is filled up."""
        if self._given_size is not None:
            return self._given_size
        return -((self._offset - self._file.length()) // SECTOR) * SECTOR

    def drop_cache(self) -> None:
        """Forget how long the file was."""
        super().drop_cache()
        self._size = self._whole_size()

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self._file is old:
            self._file = new

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on; behind the end there are zeros for a format that grows."""
        length = total(buffers)
        if offset < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        inside = max(min(length, self._size - offset), 0)
        if inside < length:
            cursor = Cursor(buffers)
            buffers = cursor.take(inside)
            fill_zero(cursor.take(length - inside))
        self._file.debug_event("read_aio")
        if inside:
            self._file.readv(self._offset + offset, buffers)

    def read_at_hand(self, offset: int, buffers: Buffers) -> bool:
        """Fill all buffers from `offset` on if that needs no waiting; return whether it was done."""
        return offset + total(buffers) <= self._size and self._file.read_at_hand(self._offset + offset, buffers)

    def start_readv(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to fill all buffers from `offset` on, where the file can be asked for that."""
        if offset < 0 or offset + total(buffers) > self._size:
            return None
        return self._file.start_readv(self._offset + offset, buffers)

    def start_writev(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to write all buffers from `offset` on, where the file can be asked for that."""
        end = offset + total(buffers)
        looked_at = self.probed or self.detect_zeroes != "off" or self.dirty_bitmaps
        if looked_at or self.read_only or offset < 0 or end > self._size:
            return None
        self.note_write(end)
        return self._file.start_writev(self._offset + offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on; EPERM where a guessed format would change."""
        length = total(buffers)
        self._check_change(offset, length)
        self.note_write(offset + length)
        self._file.debug_event("write_aio")
        if self.probed and offset < PROBE_SIZE and length:
            buffers = self._checked_head(offset, length, buffers)
        if self.detect_zeroes != "off" and is_zero(buffers):
            self._file.write_zeroes(self._offset + offset, length, self.detect_zeroes == "unmap")
        else:
            self._file.writev(self._offset + offset, buffers)
        if offset + length > self._size:
            self._size = self._whole_size()

    def _check_change(self, offset: int, length: int) -> None:
        """Raise OSError unless the range may be written; a format may let its file grow, if the size was not given."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if offset < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._given_size is not None and offset + length > self._given_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
        if self.unmap:
            self._file.discard(self._offset + offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros."""
        self._check_change(offset, length)
        if length:
            self.note_write(offset + length)
            self._file.write_zeroes(self._offset + offset, length, unmap and self.unmap)
        if offset + length > self._size:
            self._size = self._whole_size()

    def block_status(self, offset: int, length: int) -> Extent:
        """Return what the file says: all that is in it is data of this image."""
        length = min(length, self._size - offset)
        below = self._file.block_status(self._offset + offset, length)
        if not below.length:
            # The file has become shorter under us; what is gone reads as zeros.
            return Extent(length, False, True, True)
        return Extent(below.length, below.data, below.zero, True, below.offset, below.node, below.compressed)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Change the length of the file.  Raises OSError, or BlockError where the length was given."""
        if self._given_size is not None:
            raise BlockError("Cannot resize fixed-size raw disks")
        self._file.truncate(self._offset + size, preallocation=preallocation, exact=exact)
        self._size = self._whole_size()

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read it at the same time."""
        return self._file.takes_threads

    @property
    def takes_several(self) -> bool:
        """Whether requests can be begun."""
        return self._file.takes_several

    @property
    def has_zero_init(self) -> bool:
        """Whether what was never written reads as zeros."""
        return self._file.has_zero_init


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> RawNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del graph
    return RawNode(
        children["file"],
        name=settings.name,
        offset=own.get("offset", 0),
        size=own.get("size"),
        probed=settings.probed,
        read_only=settings.read_only,
        unmap=settings.unmap,
        detect_zeroes=settings.detect_zeroes,
    )
