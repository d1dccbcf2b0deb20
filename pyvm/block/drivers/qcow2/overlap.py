"""Where the metadata of an image is, so that nothing else is written there.

QEMU knows the same kinds of metadata by the same names, and the same sets of them to look at (`overlap-check`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from enum import IntFlag


class Kind(IntFlag):
    """What a part of the file is."""

    MAIN_HEADER = 1
    ACTIVE_L1 = 2
    ACTIVE_L2 = 4
    REFCOUNT_BLOCK = 8
    REFCOUNT_TABLE = 16
    SNAPSHOT_TABLE = 32
    INACTIVE_L1 = 64
    INACTIVE_L2 = 128
    BITMAP_DIRECTORY = 256


NAMES = {
    Kind.MAIN_HEADER: "qcow2_header",
    Kind.ACTIVE_L1: "active L1 table",
    Kind.ACTIVE_L2: "active L2 table",
    Kind.REFCOUNT_BLOCK: "refcount block",
    Kind.REFCOUNT_TABLE: "refcount table",
    Kind.SNAPSHOT_TABLE: "snapshot table",
    Kind.INACTIVE_L1: "inactive L1 table",
    Kind.INACTIVE_L2: "inactive L2 table",
    Kind.BITMAP_DIRECTORY: "bitmap directory",
}
_CONSTANT = Kind.MAIN_HEADER | Kind.REFCOUNT_TABLE | Kind.SNAPSHOT_TABLE | Kind.BITMAP_DIRECTORY | Kind.ACTIVE_L1
_CACHED = _CONSTANT | Kind.ACTIVE_L2 | Kind.REFCOUNT_BLOCK | Kind.INACTIVE_L1
TEMPLATES = {"none": Kind(0), "constant": _CONSTANT, "cached": _CACHED, "all": _CACHED | Kind.INACTIVE_L2}


class _Blocks:
    """A set of clusters, by number, made for a large start and few changes."""

    def __init__(self) -> None:
        self._sorted: array[int] = array("Q")
        self._added: set[int] = set()
        self._removed: set[int] = set()

    def fill(self, clusters: Iterable[int]) -> None:
        """Start anew with these, in order and each once."""
        self._sorted = array("Q", clusters)
        self._added, self._removed = set(), set()

    def add(self, cluster: int) -> None:
        self._removed.discard(cluster)
        self._added.add(cluster)

    def remove(self, cluster: int) -> None:
        self._added.discard(cluster)
        self._removed.add(cluster)

    def hit(self, first: int, last: int) -> bool:
        """Whether one of the clusters from `first` to `last` is in the set."""
        index = bisect_left(self._sorted, first)
        while index < len(self._sorted) and self._sorted[index] <= last:
            if self._sorted[index] not in self._removed:
                return True
            index += 1
        if not self._added:
            return False
        if last - first < len(self._added):
            return any(cluster in self._added for cluster in range(first, last + 1))
        return any(first <= cluster <= last for cluster in self._added)


class Tables:
    """Where metadata is: whatever is written elsewhere must not touch it.  `checked` says what to look at."""

    def __init__(self, cluster_bits: int, checked: Kind) -> None:
        self.checked = checked
        self._bits = cluster_bits
        self._ranges: list[tuple[int, int, Kind]] = []
        """Start, end and kind, in this order; none in another."""
        self._blocks = {kind: _Blocks() for kind in (Kind.ACTIVE_L2, Kind.REFCOUNT_BLOCK, Kind.INACTIVE_L2)}

    def clear(self) -> None:
        """Forget everything."""
        self._ranges = []
        self._blocks = {kind: _Blocks() for kind in self._blocks}

    def add_range(self, kind: Kind, offset: int, length: int) -> None:
        """A table of this kind is in this range."""
        if length and kind & self.checked:
            size = 1 << self._bits
            insort(self._ranges, (offset, offset + -(-length // size) * size, kind))

    def remove_ranges(self, kind: Kind) -> None:
        """There is no table of this kind any more."""
        self._ranges = [it for it in self._ranges if it[2] != kind]

    def move_range(self, kind: Kind, offset: int, length: int) -> None:
        """The only table of this kind is in this range now."""
        self.remove_ranges(kind)
        self.add_range(kind, offset, length)

    def set_blocks(self, kind: Kind, clusters: Sequence[int]) -> Kind | None:
        """These clusters, by number, are of this kind; return what they overlap with, if anything."""
        if not kind & self.checked:
            return None
        ordered = sorted(set(clusters))
        if kind is not Kind.INACTIVE_L2 and len(ordered) < len(clusters):
            return kind
        self._blocks[kind].fill(ordered)
        for start, stop, other in self._ranges:
            index = bisect_left(ordered, start >> self._bits)
            if index < len(ordered) and ordered[index] << self._bits < stop:
                return other
        return None

    def add_block(self, kind: Kind, cluster: int) -> None:
        """One more cluster is metadata."""
        if kind & self.checked:
            self._blocks[kind].add(cluster)

    def remove_block(self, kind: Kind, cluster: int) -> None:
        """A cluster is no longer metadata."""
        self._blocks[kind].remove(cluster)

    def find(self, offset: int, length: int) -> Kind | None:
        """Return the kind of a table that the range touches."""
        end = offset + length
        behind = bisect_left(self._ranges, (end,))
        if behind and self._ranges[behind - 1][1] > offset:
            return self._ranges[behind - 1][2]
        first, last = offset >> self._bits, (end - 1) >> self._bits
        for kind, blocks in self._blocks.items():
            if blocks.hit(first, last):
                return kind
        return None
