"""Driver *snapshot-access*: what a disk was when the filter *copy-before-write* below this came, to be read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.node import ALL_PERMISSIONS, Access, Child, Extent, Node, Permission, Role
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings


def _unsupported() -> OSError:
    return OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


class SnapshotAccessNode(Node):
    """The state that `file`, a copy-before-write filter, keeps; what writes to it fails, even where it may."""

    driver: ClassVar[str] = "snapshot-access"

    def __init__(self, file: Node, *, name: str = "", read_only: bool = True) -> None:
        super().__init__(name, read_only=read_only)
        self._file = file
        self.children.append(Child(Role.STORAGE, file, "file"))

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self._file is old:
            self._file = new

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with the filter: nothing that concerns anybody."""
        return Access(Permission(0), ALL_PERMISSIONS)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._file.size

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError."""
        self.check_range(offset, total(buffers))
        read = getattr(self._file, "read_snapshot", None)
        if read is None:
            raise _unsupported()
        read(offset, buffers)

    def block_status(self, offset: int, length: int) -> Extent:
        """Return data that is nowhere as it is."""
        return Extent(min(length, self.size - offset), True, False, True)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Refuse: what was does not change."""
        self.check_write(offset, total(buffers))
        raise _unsupported()

    def flush(self) -> None:
        """Nothing is there to be made safe."""

    def discard(self, offset: int, length: int) -> None:
        """Refuse: what was does not change."""
        self.check_write(offset, length)
        raise _unsupported()

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Refuse: what was does not change."""
        self.check_write(offset, length)
        raise _unsupported()


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> SnapshotAccessNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return SnapshotAccessNode(children["file"], name=settings.name, read_only=settings.read_only)
