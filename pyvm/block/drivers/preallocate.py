"""Filter *preallocate*: between a format and its file, has the file grow in large steps.

A write behind the end of the data makes room for much more than itself.  What was not used of that is given back when
the file is closed, or nobody writes to it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Access, Node, NodeOptions, Permission, Preallocation
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_ALIGN = 1 << 20
_SIZE = 128 << 20
_MIN_ALIGN = 512


class PreallocateNode(FilterNode):
    """A filter in front of a file that grows."""

    driver: ClassVar[str] = "preallocate"

    def __init__(self, file: Node, *, name: str, read_only: bool, align: int, step: int) -> None:
        super().__init__(file, name=name, read_only=read_only)
        self._align = align
        self._step = step
        self._end: int | None = None
        """Where the data ends, while the file may be longer than that."""

    @property
    def size(self) -> int:
        """Length in bytes, whole sectors."""
        return self._below.size if self._end is None else -(-self._end // _MIN_ALIGN) * _MIN_ALIGN

    def length(self) -> int:
        """Return where the data ends."""
        return self._below.length() if self._end is None else self._end

    def set_access(self, access: Access) -> None:
        """Give back what is too much when nobody writes any more."""
        super().set_access(access)
        if not access.used & (Permission.WRITE | Permission.RESIZE):
            self._trim()

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write, with room behind."""
        self._make_room(offset, total(buffers))
        super().writev(offset, buffers)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros, with room behind."""
        self._make_room(offset, length)
        super().write_zeroes(offset, length, unmap)

    def _make_room(self, offset: int, length: int) -> None:
        """Let the file be long enough for a write, and more."""
        end = offset + length
        data_end = self.length()
        if end <= data_end:
            return
        there = self._below.length()
        if end > there:
            wanted = -(-(end + self._step) // self._align) * self._align
            try:
                self._below.truncate(wanted, preallocation="falloc")
            except (OSError, BlockError):
                self._end = None  # as without the filter
                return
        self._end = end

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Change where the data ends."""
        if self._end is not None:
            self._trim()
        super().truncate(size, preallocation=preallocation, exact=exact)

    def inactivate(self) -> None:
        """Give back what was not used, and write everything."""
        self._trim()
        super().inactivate()

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Grow in other steps from now on.  Raises BlockError."""
        before = self._align, self._step
        align, step = _steps(new.own)
        restore = super().reopen(graph, new)
        self._align, self._step = align, step

        def back() -> None:
            restore()
            self._align, self._step = before

        return back

    def _trim(self) -> None:
        """Let the file end where the data does."""
        end, self._end = self._end, None
        if end is not None and self._below.length() > end:
            self._below.truncate(end)

    def close(self) -> None:
        """Give back what was not used, and let the file go."""
        try:
            self._trim()
        finally:
            super().close()


def _steps(own: dict[str, Any]) -> tuple[int, int]:
    """Return the options; raises BlockError."""
    align, step = int(own.get("prealloc-align", _ALIGN)), int(own.get("prealloc-size", _SIZE))
    if align <= 0 or align % _MIN_ALIGN:
        raise BlockError(f"prealloc-align parameter of preallocate filter is not aligned to {_MIN_ALIGN}")
    return align, step


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> PreallocateNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del graph
    align, step = _steps(own)
    return PreallocateNode(children["file"], name=settings.name, read_only=settings.read_only, align=align, step=step)
