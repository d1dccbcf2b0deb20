"""Driver *blkverify*: checks a disk against a raw one that is known to be right.

Everything is done to both; where a read finds them different, the process ends, so that nothing goes on from there.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Access, Child, Node, Permission, Role, storage_access
from pyvm.block.vectors import Buffers, Cursor, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings


class BlkverifyNode(FilterNode):
    """Shows `test`, and compares it with `raw`."""

    driver: ClassVar[str] = "blkverify"

    def __init__(self, test: Node, raw: Node, *, name: str = "", read_only: bool | None = None) -> None:
        super().__init__(test, name=name, read_only=read_only)
        self.children = [Child(Role.DATA_FILE, raw, "raw"), Child(Role.FILTERED, test, "test")]
        self._raw = raw

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self._raw is old:
            self._raw = new

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with both disks."""
        if child.node is self._raw:
            access = storage_access(self.read_only)
            return Access((used & access.used) | (used & Permission.WRITE), access.shared & shared)
        return Access(used, shared)

    def allocated_bytes(self) -> int | None:
        """Nobody asks how much two disks take."""
        return None

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on, and compare."""
        length = total(buffers)
        super().readv(offset, buffers)
        right = memoryview(self._raw.read(offset, length))
        start = 0
        for buffer in buffers:
            part = right[start : start + len(buffer)]
            if buffer != part:
                different = next(index for index in range(len(part)) if buffer[index] != part[index])
                _end("read", offset, length, f"contents mismatch at offset {offset + start + different}")
            start += len(buffer)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers to both."""
        super().writev(offset, buffers)
        self._raw.writev(offset, Cursor(buffers).take(total(buffers)))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros in both."""
        super().write_zeroes(offset, length, unmap)
        self._raw.write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Do nothing: they need not read the same afterwards."""
        self.check_write(offset, length)

    def flush(self) -> None:
        """Make the disk that is tested safe; nobody needs the other one."""
        super().flush()


def _end(kind: str, offset: int, length: int, why: str) -> NoReturn:
    """Say what is wrong, and end the process at once."""
    sys.stderr.write(f"blkverify: {kind} offset={offset} bytes={length} {why}\n")
    sys.stderr.flush()
    os._exit(1)


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that ``blkverify:RAW:TEST`` stands for; a plain name is TEST.  Raises BlockError."""
    if not name.startswith("blkverify:"):
        return {"x-test": name}
    raw, colon, test = name.removeprefix("blkverify:").partition(":")
    if not colon:
        raise BlockError("blkverify requires raw copy and original image path")
    return {"x-raw": raw, "x-test": test}


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> BlkverifyNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    for label in ("test", "raw"):
        if label not in children:
            raise BlockError(f'A block device must be specified for "{label}"')
    return BlkverifyNode(children["test"], children["raw"], name=settings.name, read_only=settings.read_only)
