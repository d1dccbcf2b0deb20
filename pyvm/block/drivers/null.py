"""Protocol drivers *null-co* and *null-aio*: a disk that keeps nothing, for measuring everything else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.errors import BlockError
from pyvm.block.node import DetectZeroes, Extent, Node
from pyvm.block.vectors import Buffers, fill_zero, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_DEFAULT_SIZE = 1 << 30
_SECTOR = 512
_NANOSECONDS = 1_000_000_000


class NullNode(Node):
    """A disk without contents: every request takes `latency` ns.  Reads leave zeros, or leave the buffers alone."""

    driver: ClassVar[str] = "null-co"

    def __init__(
        self,
        *,
        name: str = "",
        size: int = _DEFAULT_SIZE,
        latency: int = 0,
        read_zeroes: bool = False,
        read_only: bool = False,
        unmap: bool = False,
        detect_zeroes: DetectZeroes = "off",
    ) -> None:
        super().__init__(name, read_only=read_only, unmap=unmap)
        self.detect_zeroes = detect_zeroes
        self._size = -(-size // _SECTOR) * _SECTOR
        self._latency = latency
        self._read_zeroes = read_zeroes

    @property
    def filename(self) -> str:
        """The name that opens such a disk."""
        return f"{self.driver}://"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def _wait(self) -> None:
        if self._latency:
            time.sleep(self._latency / _NANOSECONDS)

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Read zeros, or nothing."""
        self.check_range(offset, total(buffers))
        self._wait()
        if self._read_zeroes:
            fill_zero(buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Forget the data.  What is written behind the end by an image format is forgotten as well."""
        self.note_write(offset + total(buffers))
        self._wait()

    def flush(self) -> None:
        """Nothing is there to be lost."""
        self._wait()

    def discard(self, offset: int, length: int) -> None:
        """Nothing takes room."""
        self._wait()

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Forget it."""
        self.note_write(offset + length)
        self._wait()

    def block_status(self, offset: int, length: int) -> Extent:
        """Return zeros where reads have them, and otherwise unknown data."""
        length = min(length, self._size - offset)
        return Extent(length, not self._read_zeroes, self._read_zeroes, True, offset, self)

    def allocated_bytes(self) -> int | None:
        """Return 0."""
        return 0


class NullAioNode(NullNode):
    """The same under its other name: in QEMU they differ in how they wait."""

    driver: ClassVar[str] = "null-aio"


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that a file name stands for: none.  Raises BlockError."""
    driver = NullAioNode.driver if name.startswith(NullAioNode.driver) else NullNode.driver
    if name != f"{driver}://":
        raise BlockError(f"The only allowed filename for this driver is '{driver}://'")
    return {}


def make(
    settings: Settings,
    own: dict[str, Any],
    children: dict[str, Node],
    graph: BlockGraph,
    kind: type[NullNode] = NullNode,
) -> NullNode:
    """Make the disk; see :mod:`pyvm.block.options`."""
    del children, graph
    return kind(
        name=settings.name,
        size=own.get("size", _DEFAULT_SIZE),
        latency=own.get("latency-ns", 0),
        read_zeroes=own.get("read-zeroes", False),
        read_only=settings.read_only,
        unmap=settings.unmap,
        detect_zeroes=settings.detect_zeroes,
    )


def make_aio(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> NullNode:
    """Make the disk under its other name."""
    return make(settings, own, children, graph, NullAioNode)
