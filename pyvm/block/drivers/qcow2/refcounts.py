"""Reference counts of host clusters, and their allocation ("Host cluster management" of the specification).

A cluster that is counted up is written before anything refers to it; one that is no longer used is counted down only
when nothing on the disk refers to it any more (see :mod:`.image`).  A crash can leak clusters but not share them.
"""

from __future__ import annotations

import errno
import os
from array import array

from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.structures import (
    MAX_HOST_OFFSET,
    MAX_REFCOUNT_TABLE_BYTES,
    REFCOUNT_BLOCK_MASK,
    REFCOUNT_TABLE_FIELDS,
    REFCOUNT_TABLE_FIELDS_OFFSET,
)
from pyvm.block.drivers.qcow2.tables import TableCache, encode_entries

_CACHE_BYTES = 4 << 20
_MAX_PENDING = 1 << 16
"""Most runs of clusters that wait to be counted down."""


class Refcounts:
    """The refcount table with its blocks."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._bits = image.cluster_bits
        self._width = 1 << image.header.refcount_order
        self._typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(self._width, 8)]
        self._per_block_bits = image.cluster_bits + 3 - image.header.refcount_order
        self._per_block = 1 << self._per_block_bits
        self._cache = TableCache(
            image.file,
            width=self._width,
            cluster_size=image.cluster_size,
            limit=_CACHE_BYTES,
            missing=lambda offset: image.corruption(f"Refcount block at {offset:#x} is behind the end of the file"),
        )
        header = image.header
        entries = header.refcount_table_clusters * image.cluster_size // 8
        self.table = image.read_table("refcount table", header.refcount_table_offset, entries)
        self._new_blocks: set[int] = set()
        """Indexes of table entries that are not on the disk yet."""
        self._first_free = 0
        """No cluster before this one is free."""
        self._pending: list[tuple[int, int]] = []

    @property
    def dirty(self) -> bool:
        """Whether counts have changed."""
        return self._cache.dirty or bool(self._new_blocks)

    @property
    def crowded(self) -> bool:
        """Whether the tables should be written before more is changed."""
        return self._cache.crowded or len(self._pending) > _MAX_PENDING

    @property
    def pending(self) -> bool:
        """Whether clusters wait to be counted down."""
        return bool(self._pending)

    # ---- Single counts

    def _slice(self, cluster: int) -> tuple[int, array[int], int] | None:
        """Return a cluster's slice: its offset, its counts, and the cluster's index; None where there is no block."""
        number = cluster >> self._per_block_bits
        offset = self.table[number] & REFCOUNT_BLOCK_MASK if number < len(self.table) else 0
        if not offset:
            return None
        if offset % self._image.cluster_size:
            self._image.corruption(f"Refblock offset {offset:#x} unaligned (reftable index: {number:#x})")
        part, index = divmod(cluster & (self._per_block - 1), self._cache.per_slice)
        offset += part * self._cache.slice_bytes
        return offset, self._cache.get(offset), index

    def count(self, cluster: int) -> int:
        """Return how often a host cluster is used."""
        found = self._slice(cluster)
        return found[1][found[2]] if found else 0

    def _count_down(self, cluster: int) -> bool:
        """One user less; return whether it was the last."""
        found = self._slice(cluster)
        if found is None or not found[1][found[2]]:
            self._image.corruption(f"Refcount of cluster {cluster:#x} is too low")
        offset, counts, index = found
        counts[index] -= 1
        self._cache.changed(offset, counts)
        if counts[index]:
            return False
        self._first_free = min(self._first_free, cluster)
        return True

    # ---- Allocation

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Use the first free cluster, and those behind it: return its offset and how many, at most `wanted`.

        Raises OSError: EFBIG where the format can count no more, EIO for damage.
        """
        first = self._first_free
        while True:
            first = self._find_free(first)
            if self.table_has_block(first):
                break
            # The block counts itself, and the search goes on behind it.
            self._add_block(first)
        found = self._slice(first)
        if found is None:
            self._image.corruption("Refcount block is missing")
        offset, counts, index = found
        count = 1
        while count < wanted and index + count < len(counts) and not counts[index + count]:
            count += 1
        if (first + count) << self._bits > MAX_HOST_OFFSET:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._image.check_overlap(first << self._bits, count << self._bits)
        counts[index : index + count] = array(self._typecode, [1]) * count
        self._cache.changed(offset, counts)
        self._first_free = first + count
        return first << self._bits, count

    def table_has_block(self, cluster: int) -> bool:
        """Whether there is a block that counts this cluster."""
        number = cluster >> self._per_block_bits
        return number < len(self.table) and bool(self.table[number] & REFCOUNT_BLOCK_MASK)

    def _find_free(self, cluster: int) -> int:
        """Return the first cluster from here on that is free, whether or not there is a block for it."""
        while True:
            found = self._slice(cluster)
            if found is None:
                return cluster
            _, counts, index = found
            try:
                return cluster + counts.index(0, index) - index
            except ValueError:
                cluster += len(counts) - index

    def _add_block(self, cluster: int) -> None:
        """Make a free cluster the block that counts it and its neighbours, which have none."""
        number = cluster >> self._per_block_bits
        if number >= len(self.table):
            self._grow_table(number)
            return
        offset = cluster << self._bits
        self._image.check_overlap(offset, self._image.cluster_size)
        self._write_new_block(offset, cluster & (self._per_block - 1), 1)
        self.table[number] = offset
        self._new_blocks.add(number)
        self._image.tables.add_block(cluster, "refcount block")

    def _write_new_block(self, offset: int, start: int, used: int) -> None:
        """Put a block in the cache that has nothing but `used` clusters from index `start` on."""
        per_slice = self._cache.per_slice
        for part in range(self._per_block // per_slice):
            counts = array(self._typecode, [0]) * per_slice
            low, high = max(start - part * per_slice, 0), min(start + used - part * per_slice, per_slice)
            if low < high:
                counts[low:high] = array(self._typecode, [1]) * (high - low)
            self._cache.put(offset + part * self._cache.slice_bytes, counts)

    def _grow_table(self, number: int) -> None:
        """Move the table, with room for block `number` and half as much again, behind all that it can count now.

        The blocks for the new place follow the new table.
        """
        image = self._image
        old_offset, old_clusters = image.header.refcount_table_offset, image.header.refcount_table_clusters
        first_block = len(self.table)
        first = first_block << self._per_block_bits
        clusters = -(-max(number + 1, len(self.table) * 3 // 2) * 8 // image.cluster_size)
        clusters = max(clusters, old_clusters + 1)
        blocks = 1
        while blocks << self._per_block_bits < clusters + blocks:
            blocks += 1
        while clusters * image.cluster_size // 8 < first_block + blocks:
            clusters += 1
            blocks = max(blocks, -(-(clusters + blocks) >> self._per_block_bits))
        if clusters * image.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        image.check_overlap(first << self._bits, (clusters + blocks) << self._bits)
        table = self.table + array("Q", bytes(clusters * image.cluster_size - len(self.table) * 8))
        for block in range(blocks):
            cluster = first + clusters + block
            used = min(max(clusters + blocks - (block << self._per_block_bits), 0), self._per_block)
            self._write_new_block(cluster << self._bits, 0, used)
            table[first_block + block] = cluster << self._bits
        self._cache.write_dirty()
        image.file.write(first << self._bits, encode_entries(table, 64))
        image.file.flush()
        image.header.refcount_table_offset = first << self._bits
        image.header.refcount_table_clusters = clusters
        image.file.write(REFCOUNT_TABLE_FIELDS_OFFSET, REFCOUNT_TABLE_FIELDS.pack(first << self._bits, clusters))
        image.file.flush()
        self.table = table
        self._new_blocks.clear()
        image.tables.move_range("refcount table", first << self._bits, clusters << self._bits)
        for block in range(blocks):
            image.tables.add_block(first + clusters + block, "refcount block")
        for cluster in range(old_offset >> self._bits, (old_offset >> self._bits) + old_clusters):
            self._count_down(cluster)

    # ---- Giving back

    def undo(self, offset: int, count: int) -> None:
        """Give clusters back that were allocated and that nothing has come to refer to."""
        for cluster in range(offset >> self._bits, (offset >> self._bits) + count):
            self._count_down(cluster)

    def release(self, offset: int, length: int) -> None:
        """One user less for all clusters that the range touches, as soon as nothing on the disk refers to them."""
        first = offset >> self._bits
        count = ((offset + length - 1) >> self._bits) - first + 1
        if self._pending and sum(self._pending[-1]) == first:
            start, before = self._pending[-1]
            self._pending[-1] = (start, before + count)
        else:
            self._pending.append((first, count))

    def settle(self) -> list[tuple[int, int]]:
        """Count down what waits for it: nothing refers to it any more.  Return what became free: offsets, lengths."""
        pending, self._pending = self._pending, []
        free = []
        for first, count in pending:
            for cluster in range(first, first + count):
                if self._count_down(cluster):
                    free.append((cluster << self._bits, 1 << self._bits))
        return free

    # ---- Writing

    def write_blocks(self) -> None:
        """Write all counts; then, behind a barrier, where new blocks are.  Raises OSError."""
        self._cache.write_dirty()
        if not self._new_blocks:
            return
        file = self._image.file
        file.flush()
        start = self._image.header.refcount_table_offset
        for number in sorted(self._new_blocks):
            file.write(start + number * 8, self.table[number].to_bytes(8, "big"))
        self._new_blocks.clear()
