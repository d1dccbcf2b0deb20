"""A refcount table with all its blocks, made anew: for a repair, and for counts of another width."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.structures import MAX_REFCOUNT_TABLE_BYTES
from pyvm.block.drivers.qcow2.tables import encode_entries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]

_NO_END = 1 << 62


class Plan(NamedTuple):
    """Where a structure is to be."""

    blocks: dict[int, int]
    """The cluster of each block, by its index."""
    table: int
    """The first cluster of the table."""
    table_clusters: int


class _Holes:
    """The clusters that nobody uses, as runs; the last one has no end."""

    def __init__(self, used: Numbers) -> None:
        import numpy as np

        cuts = np.flatnonzero(used[1:] != used[:-1] + np.uint64(1))
        # The first cluster is never free.
        starts = [used[cuts] + np.uint64(1), (used[-1:] if len(used) else np.zeros(1, np.uint64)) + np.uint64(1)]
        self._starts: Numbers = np.concatenate(starts).astype(np.int64)
        self._ends: Numbers = np.concatenate((used[cuts + 1], np.array([_NO_END], np.uint64))).astype(np.int64)

    def take(self, first: int, count: int) -> int:
        """Use the first `count` clusters in a row that are free from `first` on; return where they start."""
        import numpy as np

        at = int(np.searchsorted(self._ends, first, "right"))
        room = self._ends[at:] - np.maximum(self._starts[at:], first)
        at += int(np.argmax(room >= count))
        start, end = max(int(self._starts[at]), first), int(self._ends[at])
        if start > self._starts[at]:
            self._ends[at] = start
            self._starts = np.insert(self._starts, at + 1, start + count)
            self._ends = np.insert(self._ends, at + 1, end)
        else:
            self._starts[at] = start + count
        return start


def plan_repair(cluster_bits: int, order: int, numbers: Numbers, kept: Numbers) -> Plan:
    """Return where blocks that count the clusters `numbers`, and a table of them, find room that nobody uses.

    The clusters `kept` are not to be overwritten either.  Both are in order.  A block is among the clusters that it
    counts, or behind them.  Raises OSError where the table would be too large.
    """
    import numpy as np

    shift = cluster_bits + 3 - order
    holes = _Holes(np.union1d(numbers, kept))
    blocks: dict[int, int] = {}

    def cover(wanted: Iterable[int]) -> None:
        waiting = sorted(set(wanted) - blocks.keys(), reverse=True)
        while waiting:
            block = waiting.pop()
            blocks[block] = holes.take(block << shift, 1)
            own = blocks[block] >> shift
            if own not in blocks and own not in waiting:
                waiting.append(own)

    cover(np.unique(numbers >> np.uint64(shift)).tolist())
    while True:
        clusters = _table_clusters(max(blocks), cluster_bits)
        table = holes.take(0, clusters)
        cover(range(table >> shift, (table + clusters - 1 >> shift) + 1))
        if _table_clusters(max(blocks), cluster_bits) == clusters:
            return Plan(blocks, table, clusters)


def _table_clusters(last_block: int, cluster_bits: int) -> int:
    clusters = -(-(last_block + 1) * 8 >> cluster_bits)
    if clusters << cluster_bits > MAX_REFCOUNT_TABLE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return clusters


def plan_behind(cluster_bits: int, order: int, numbers: Numbers, start: int) -> Plan:
    """Return a structure whose table and then blocks follow each other from cluster `start` on.

    `numbers` are the clusters in use.  Raises OSError where the table would be too large.
    """
    import numpy as np

    shift = cluster_bits + 3 - order
    used = {int(it) for it in np.unique(numbers >> np.uint64(shift))}
    blocks, clusters = used, 1
    while True:
        end = start + clusters + len(blocks)
        needed = used | set(range(start >> shift, ((end - 1) >> shift) + 1))
        table = _table_clusters(max(needed), cluster_bits)
        if needed == blocks and table == clusters:
            return Plan({block: start + clusters + at for at, block in enumerate(sorted(blocks))}, start, clusters)
        blocks, clusters = needed | blocks, max(table, clusters)


def plan_growth(first: int, per_block_bits: int, cluster_size: int) -> tuple[int, int]:
    """Return how many new blocks count all from cluster `first` on, and how many clusters the table gets then."""
    known = first >> per_block_bits
    total, clusters = known, 0
    while True:
        # As if all of the structure were to follow, so there is room in it for a while.
        room = first + total + clusters
        needed = -(-room >> per_block_bits)
        wanted = -(-(needed + -(-needed // 2)) // (cluster_size // 8))
        if (needed, wanted) == (total, clusters):
            return total - known, clusters
        total, clusters = needed, wanted


def write_structure(image: Image, numbers: Numbers, counts: Numbers, order: int, plan: Plan) -> tuple[int, int]:
    """Write a structure that counts clusters `numbers`, in order, `counts` times, and itself.

    Returns the offset of the table and its length in clusters; nothing refers to it yet.  Raises OSError.
    """
    import numpy as np

    bits = image.cluster_bits
    own = np.array([*plan.blocks.values(), *range(plan.table, plan.table + plan.table_clusters)], np.uint64)
    numbers = np.concatenate((numbers, own))
    counts = np.concatenate((counts, np.ones(len(own), np.uint64)))
    in_order = np.argsort(numbers, kind="stable")
    numbers, counts = numbers[in_order], counts[in_order]
    shift = bits + 3 - order
    per_block = 1 << shift
    typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(1 << order, 8)]
    table = array("Q", bytes(plan.table_clusters << bits))
    for block, cluster in sorted(plan.blocks.items()):
        # Of the same type: else all numbers would be converted each time.
        bounds = np.array((block * per_block, (block + 1) * per_block), np.uint64)
        first, last = np.searchsorted(numbers, bounds).tolist()
        content = np.zeros(per_block, typecode)
        content[(numbers[first:last] - np.uint64(block * per_block)).astype(np.intp)] = counts[first:last]
        table[block] = cluster << bits
        image.file.write(cluster << bits, encode_entries(array(typecode, content.tobytes()), 1 << order))
    image.file.write(plan.table << bits, encode_entries(table, 64))
    return plan.table << bits, plan.table_clusters
