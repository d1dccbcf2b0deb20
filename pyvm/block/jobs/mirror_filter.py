"""Filter *mirror_top*: stands in front of a disk that is mirrored, and writes to the copy as well where it is to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import UNUSED, Access, Child, Node, Permission, Role
from pyvm.block.vectors import Buffers, Cursor, total

if TYPE_CHECKING:
    from pyvm.block.bitmaps import DirtyBitmap


class MirrorTop(FilterNode):
    """A filter in front of `source`.  `unit` is what is copied as a whole; `bitmap` says what is yet to be copied."""

    driver: ClassVar[str] = "mirror_top"

    def __init__(self, source: Node, target: Node, bitmap: DirtyBitmap, unit: int, *, commit: bool) -> None:
        super().__init__(source)
        self.children = [Child(Role.FILTERED, source, "backing")]
        self.target = target
        self.bitmap = bitmap
        self.active = False
        """Whether a write is done once the copy has it, too."""
        self.stopped = False
        """Whether the job is over, and the filter about to go."""
        self.on_error: Callable[[OSError], None] = lambda error: None
        self._unit = unit
        self._commit = commit

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with the source: as those above say, with exceptions where the copy is below it."""
        if self.stopped:
            return UNUSED
        if self._commit:
            # Nobody above the copy reads anything consistent, and the copy is written to.
            return Access(used & ~Permission.CONSISTENT_READ, shared | Permission.WRITE | Permission.RESIZE)
        return Access(used, shared)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers, here and there."""
        length = total(buffers)
        if not self.active:
            super().writev(offset, buffers)
            return
        start, end = self._covered(offset, length)
        super().writev(offset, buffers)
        cursor = Cursor(buffers)
        cursor.take(start - offset)
        self._repeat(start, end, lambda: self.target.writev(start, cursor.take(end - start)))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros, here and there."""
        if not self.active:
            super().write_zeroes(offset, length, unmap)
            return
        start, end = self._covered(offset, length)
        super().write_zeroes(offset, length, unmap)
        self._repeat(start, end, lambda: self.target.write_zeroes(start, end - start, unmap))

    def discard(self, offset: int, length: int) -> None:
        """Give the range back, here and there: what is left of it decides."""
        if not self.active:
            super().discard(offset, length)
            return
        start, end = self._covered(offset, length)
        super().discard(offset, length)
        self._repeat(start, end, lambda: self._copy(start, end))

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster, compressed here and as it is there."""
        start, end = self._covered(offset, len(data)) if self.active else (offset, offset)
        super().write_compressed(offset, data)
        if self.active:
            view = memoryview(data)
            self._repeat(start, end, lambda: self.target.writev(start, (view[start - offset : end - offset],)))

    def _copy(self, start: int, end: int) -> None:
        """Copy what the source shows now: a discarded range may read as before."""
        while start < end:
            count = min(end - start, self._unit)
            self.target.write(start, self._below.read(start, count))
            start += count

    def _covered(self, offset: int, length: int) -> tuple[int, int]:
        """Return what of a range can be written to the copy now.

        Not a piece of a unit that was not copied before: it will be, as a whole.
        """
        end = offset + length
        start, stop = offset, end
        first, last = offset // self._unit * self._unit, -(-end // self._unit) * self._unit
        if offset > first and self._dirty(first):
            start = min(first + self._unit, end)
        if end < last and end < self.size and self._dirty(last - self._unit):
            stop = max(last - self._unit, start)
        return start, stop

    def _dirty(self, start: int) -> bool:
        found = self.bitmap.next(start) if start < self.bitmap.size else None
        return found is not None and found < start + self._unit

    def _repeat(self, start: int, end: int, change: Callable[[], None]) -> None:
        """Do to the copy what was done to the source; what fails is copied later."""
        if start >= end:
            return
        try:
            change()
        except OSError as error:
            self.on_error(error)
        except BlockError as error:
            self.on_error(OSError(5, str(error)))
        else:
            # The units at the ends were copied before, or are written as a whole.
            unit = self.bitmap.granularity
            first = start // unit * unit
            self.bitmap.clear(first, -(-end // unit) * unit - first)
