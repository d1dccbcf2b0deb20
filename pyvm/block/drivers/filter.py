"""What all filters have in common: they show the data of their child."""

from __future__ import annotations

from pyvm.annotations import ClassVar
from pyvm.block.node import Child, Extent, Node, Preallocation, Role
from pyvm.block.vectors import Buffers, total


class FilterNode(Node):
    """A filter in front of `file`, which it closes in the end."""

    is_filter: ClassVar[bool] = True

    def __init__(self, file: Node, *, name: str = "", read_only: bool | None = None) -> None:
        super().__init__(name, read_only=file.read_only if read_only is None else read_only, unmap=file.unmap)
        self._below = file
        self.children.append(Child(Role.FILTERED, file))

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self._below is old:
            self._below = new

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._below.size

    def length(self) -> int:
        """Return the length now, to the byte."""
        return self._below.length()

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or fewer where there are not so many.  Raises OSError."""
        return self._below.head(count)

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self._below.readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        self.note_write(offset + total(buffers))
        self._below.writev(offset, buffers)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster, compressed."""
        self.note_write(offset + len(data))
        self._below.write_compressed(offset, data)

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        self._below.flush()

    def discard(self, offset: int, length: int) -> None:
        """Give the range back, where that was asked for and can be done."""
        self._below.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros."""
        self.note_write(offset + length)
        self._below.write_zeroes(offset, length, unmap)

    def block_status(self, offset: int, length: int) -> Extent:
        """Return what the child says."""
        return self._below.block_status(offset, length)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Change the length of the child."""
        self._below.truncate(size, preallocation=preallocation, exact=exact)

    @property
    def cluster_size(self) -> int | None:
        """The child's unit of allocation."""
        return self._below.cluster_size

    @property
    def has_zero_init(self) -> bool:
        """Whether what was never written reads as zeros."""
        return self._below.has_zero_init


class ReadOnlyView(FilterNode):
    """A node as one sees it that must not write to it, although others may."""

    driver: ClassVar[str] = "read-only-view"
    hidden: ClassVar[bool] = True

    def __init__(self, file: Node, *, name: str = "") -> None:
        super().__init__(file, name=name, read_only=True)
        self.implicit = True
        self.path = file.path
        self.identity = file.identity
