"""Reference counts of host clusters, and their allocation ("Host cluster management" of the specification).

A cluster that is counted up is written before anything refers to it; one that is no longer used is counted down only
when nothing on the disk refers to it any more (see :mod:`.image`).  A crash can leak clusters but not share them.
"""

from __future__ import annotations

import errno
import os
from array import array
from enum import Enum

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.overlap import Kind
from pyvm.block.drivers.qcow2.structures import MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, REFCOUNT_BLOCK_MASK
from pyvm.block.drivers.qcow2.tables import TableCache, encode_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    Clusters = npt.NDArray[np.uint64]

_COMPRESSED = "compressed cluster"
_MAX_PENDING = 1 << 16
"""Most runs of clusters that wait to be counted down."""
_MAX_DISCARDED = 16 << 20
"""Most bytes that the guest has given back and that are not used again yet: rather than the file grows, they are."""


class Reason(Enum):
    """Why clusters are given back: whether the host hears of it depends on that."""

    REQUEST = "request"
    SNAPSHOT = "snapshot"
    OTHER = "other"
    RESIZE = "resize"


class Refcounts:
    """The refcount table with its blocks."""

    def __init__(self, image: Image, cache_bytes: int) -> None:
        self._image = image
        self._bits = image.cluster_bits
        self._cache_bytes = cache_bytes
        self.reload()

    def reload(self) -> None:
        """Take everything from the file again, as the header says now.  Raises BlockError."""
        image, header = self._image, self._image.header
        self._width = 1 << header.refcount_order
        self.max_count = (1 << self._width) - 1
        self._typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(self._width, 8)]
        self.per_block_bits = image.cluster_bits + 3 - header.refcount_order
        self._per_block = 1 << self.per_block_bits
        self._cache = TableCache(
            image.file,
            width=self._width,
            cluster_size=image.cluster_size,
            limit=self._cache_bytes,
            missing=lambda offset: image.corruption(f"Refcount block at {offset:#x} is behind the end of the file"),
            events=("refblock_load", "refblock_update"),
        )
        entries = header.refcount_table_clusters * image.cluster_size // 8
        self.table = image.read_table("refcount table", header.refcount_table_offset, entries)
        self._new_blocks: set[int] = set()
        """Indexes of table entries that are not on the disk yet."""
        self._first_free = 0
        """Where the search for free clusters begins: what is free before it was too short for somebody."""
        self._free_byte = 0
        """Where room for compressed data goes on in a cluster that has some; 0: nowhere."""
        self._pending: list[tuple[int, int, Reason]] = []
        self._discarded = 0

    @property
    def dirty(self) -> bool:
        """Whether counts have changed."""
        return self._cache.dirty or bool(self._new_blocks)

    @property
    def crowded(self) -> bool:
        """Whether the tables should be written before more is changed."""
        return self._cache.crowded or len(self._pending) > _MAX_PENDING or self._discarded > _MAX_DISCARDED

    @property
    def pending(self) -> bool:
        """Whether clusters wait to be counted down."""
        return bool(self._pending)

    def clean_up(self) -> None:
        """Drop from memory what was not used for a while."""
        self._cache.clean_up()

    # ---- Single counts

    def _slice(self, cluster: int) -> tuple[int, array[int], int] | None:
        """Return a cluster's slice: its offset, its counts, and the cluster's index; None where there is no block."""
        number = cluster >> self.per_block_bits
        offset = self.table[number] & REFCOUNT_BLOCK_MASK if number < len(self.table) else 0
        if not offset:
            return None
        if offset & (self._image.cluster_size - 1):
            self._image.corruption(f"Refblock offset {offset:#x} unaligned (reftable index: {number:#x})")
        part, index = divmod(cluster & (self._per_block - 1), self._cache.per_slice)
        offset += part * self._cache.slice_bytes
        return offset, self._cache.get(offset), index

    def _changed(self, offset: int, counts: array[int]) -> None:
        if self._image.lazy:
            self._image.set_dirty(True)
        self._cache.changed(offset, counts)

    def count(self, cluster: int) -> int:
        """Return how often a host cluster is used."""
        found = self._slice(cluster)
        return found[1][found[2]] if found else 0

    def part(self, cluster: int) -> tuple[int, Clusters | None]:
        """Return the counts from a cluster on, where a slice starts, and which cluster comes behind them.

        They are None where there is no block.  Raises OSError for a block that is not in the file.
        """
        import numpy as np

        stop, counts = self.slice_from(cluster)
        return stop, None if counts is None else np.frombuffer(counts, self._typecode)

    def slice_from(self, cluster: int) -> tuple[int, array[int] | None]:
        """Return what :meth:`part` does, as the table that is in memory: not to be changed."""
        number = cluster >> self.per_block_bits
        offset = self.table[number] & REFCOUNT_BLOCK_MASK if number < len(self.table) else 0
        aligned = not offset & (self._image.cluster_size - 1)
        if not offset or not aligned or offset + self._image.cluster_size > self._image.file.length():
            return (number + 1) << self.per_block_bits, None
        found = self._slice(cluster)
        if found is None:
            return (number + 1) << self.per_block_bits, None
        return cluster + self._cache.per_slice, found[1]

    def set_count(self, cluster: int, count: int) -> None:
        """Say how often a cluster is used, for a repair."""
        found = self._slice(cluster)
        if found is None:
            self._image.corruption(f"Refcount of cluster {cluster:#x} is too low")
        offset, counts, index = found
        counts[index] = count
        self._cache.changed(offset, counts)
        if self._cache.crowded:
            self.write_blocks()

    def _count_down(self, cluster: int) -> bool:
        """One user less; return whether it was the last."""
        found = self._slice(cluster)
        if found is None or not found[1][found[2]]:
            self._image.corruption(f"Refcount of cluster {cluster:#x} is too low")
        offset, counts, index = found
        counts[index] -= 1
        self._changed(offset, counts)
        if counts[index]:
            return False
        self._freed(cluster, 1)
        return True

    def _freed(self, first: int, count: int) -> None:
        self._first_free = min(self._first_free, first)
        if self._free_byte and first <= self._free_byte >> self._bits < first + count:
            self._free_byte = 0

    # ---- Many counts

    def _by_slice(self, clusters: Clusters) -> Iterator[Clusters]:
        """Yield sorted clusters in groups that have their counts in one slice."""
        import numpy as np

        numbers = clusters // np.uint64(self._cache.per_slice)
        for group in np.split(clusters, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1):
            if len(group):
                yield group

    def counts(self, clusters: Clusters) -> Clusters:
        """Return how often each of these clusters is used; they are sorted.  What no block counts is not used."""
        import numpy as np

        parts = []
        for group in self._by_slice(clusters):
            first = int(group[0])
            _, present = self.part(first - first % self._cache.per_slice)
            if present is None:
                parts.append(np.zeros(len(group), np.uint64))
            else:
                parts.append(present[(group % np.uint64(self._cache.per_slice)).astype(np.intp)].astype(np.uint64))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    def add(self, clusters: Clusters, times: Clusters) -> None:
        """These clusters, in order and each once, have so many users more.

        Raises OSError: EINVAL where a count would overflow, with nothing changed; EIO for damage.
        """
        import numpy as np

        most = np.uint64(self.max_count)
        if bool(np.any((times > most) | (self.counts(clusters) > most - np.minimum(times, most)))):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        position = 0
        for group in self._by_slice(clusters):
            found = self._slice(int(group[0]))
            if found is None:
                self._image.corruption(f"Refcount of cluster {int(group[0]):#x} is too low")
            offset, counts, _ = found
            view = np.frombuffer(counts, self._typecode)
            index = (group % np.uint64(self._cache.per_slice)).astype(np.intp)
            view[index] += times[position : position + len(group)].astype(view.dtype)
            position += len(group)
            self._changed(offset, counts)
            if self._cache.crowded:
                self.write_blocks()

    def add_runs(self, runs: Iterable[tuple[int, int]]) -> None:
        """The clusters of these runs, given by their firsts and lengths, have one user more each time they are named.

        Raises OSError: EINVAL where a count would overflow, with nothing changed; EIO for damage.
        """
        done: list[tuple[int, int]] = []
        try:
            for first, count in runs:
                cluster = first
                while cluster < first + count:
                    some = self._add_some(cluster, first + count - cluster)
                    done.append((cluster << self._bits, some))
                    cluster += some
                    if self._cache.crowded:
                        self.write_blocks()
        except OSError:
            for offset, some in done:
                self.undo(offset, some)
            raise

    def _add_some(self, cluster: int, limit: int) -> int:
        """Count clusters of one slice up; return how many.  Raises OSError, with nothing changed."""
        found = self._slice(cluster)
        if found is None:
            self._image.corruption(f"Refcount of cluster {cluster:#x} is too low")
        offset, counts, index = found
        present = counts[index : index + limit]
        if max(present) == self.max_count:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        counts[index : index + limit] = array(self._typecode, [count + 1 for count in present])
        self._changed(offset, counts)
        return len(present)

    def release_all(self, clusters: Clusters, reason: Reason = Reason.OTHER) -> None:
        """Each of these clusters has one user less for each time that it is named; see :meth:`release`."""
        import numpy as np

        ordered = np.sort(clusters)
        if not len(ordered):
            return
        # Runs of neighbours; one that is named twice is in two of them.
        cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
        starts = ordered[np.concatenate(([0], cuts))]
        lengths = np.diff(np.concatenate(([0], cuts, [len(ordered)])))
        self._pending += [
            (first, count, reason) for first, count in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]

    # ---- Allocation

    def allocate(self, wanted: int, what: str = "data cluster", behind: int = 0) -> tuple[int, int]:
        """Use the first free clusters, `wanted` in a row: return their offset and how many it were, at most `wanted`.

        Rather than those, use what is free at offset `behind`, however few: what is there goes on there.
        Where another block counts the rest, that comes next.  `what` they are for is told where that is damage.  Raises
        OSError: EFBIG where the format can count no more, EIO for damage.
        """
        self._image.file.debug_event("cluster_alloc")
        going_on = behind >> self._bits
        while True:
            first = going_on if going_on and not self.count(going_on) else self._find_run(wanted)
            if self.table_has_block(first):
                break
            # The block counts itself.  It does not part what is to be in a row, and that may be found elsewhere now.
            end = first + wanted
            together = first != going_on and end & (self._per_block - 1) and end - first < self._per_block
            self._add_block(end if together and not self.table_has_block(end) else first)
        found = self._slice(first)
        if found is None:
            self._image.corruption("Refcount block is missing")
        offset, counts, index = found
        count = 1
        while count < wanted and index + count < len(counts) and not counts[index + count]:
            count += 1
        self._take(first, count, (offset, counts, index), what)
        self._first_free = first + count
        return first << self._bits, count

    def _take(self, first: int, count: int, place: tuple[int, array[int], int], what: str) -> None:
        """Count clusters of one slice from 0 to 1."""
        offset, counts, index = place
        if (first + count) << self._bits > MAX_HOST_OFFSET:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if not first:
            self._image.corruption(f"Preventing invalid allocation of {what} at offset 0")
        self._image.check_overlap(first << self._bits, count << self._bits)
        counts[index : index + count] = array(self._typecode, [1]) * count
        self._changed(offset, counts)

    def allocate_run(self, wanted: int, what: str = "data cluster") -> int:
        """Use `wanted` clusters in a row, for a table; return where they are.  Raises OSError like :meth:`allocate`."""
        self._image.file.debug_event("cluster_alloc")
        while True:
            first = self._find_run(wanted)
            starts = range((first | (self._per_block - 1)) + 1, first + wanted, self._per_block)
            missing = next((it for it in (first, *starts) if not self.table_has_block(it)), None)
            if missing is None:
                break
            self._add_block(missing)
        done = 0
        try:
            while done < wanted:
                done += self._take_some(first + done, wanted - done, what)
        except OSError:
            self.undo(first << self._bits, done)
            raise
        return first << self._bits

    def _take_some(self, cluster: int, wanted: int, what: str) -> int:
        found = self._slice(cluster)
        if found is None:
            self._image.corruption("Refcount block is missing")
        offset, counts, index = found
        count = min(len(counts) - index, wanted)
        self._take(cluster, count, (offset, counts, index), what)
        return count

    def _find_run(self, wanted: int) -> int:
        first = self._find_free(self._first_free)
        while True:
            end = first
            while end < first + wanted:
                found = self._slice(end)
                if found is None:
                    end = (end | (self._per_block - 1)) + 1
                    continue
                _, counts, index = found
                stop = min(index + first + wanted - end, len(counts))
                if counts[index:stop].count(0) < stop - index:
                    end += next(at for at in range(index, stop) if counts[at]) - index
                    break
                end += stop - index
            if end >= first + wanted:
                return first
            first = self._find_free(end)

    def allocate_bytes(self, size: int) -> int:
        """Use room for `size` bytes of compressed data, at most a cluster; return where it is.

        It may share its clusters with other compressed data.  Raises OSError like :meth:`allocate`.
        """
        self._image.file.debug_event("cluster_alloc_bytes")
        cluster_size = self._image.cluster_size
        start = self._free_byte
        if start and self.count(start >> self._bits) < self.max_count:
            room = -start & (cluster_size - 1)
            following = (start >> self._bits) + 1
            if room < size:
                found = self._slice(following)
                if found is None or found[1][found[2]]:
                    start = 0
                else:
                    self._take(following, 1, found, _COMPRESSED)
            if start:
                self._add_some(start >> self._bits, 1)
        else:
            start = 0
        if not start:
            start, _ = self.allocate(1, _COMPRESSED)
        end = start + size
        self._free_byte = end if end & (cluster_size - 1) else 0
        return start

    def table_has_block(self, cluster: int) -> bool:
        """Whether there is a block that counts this cluster."""
        number = cluster >> self.per_block_bits
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
        number = cluster >> self.per_block_bits
        if number >= len(self.table):
            self._grow_table(cluster)
            return
        offset = cluster << self._bits
        self._image.file.debug_event("refblock_alloc")
        if not offset:
            self._image.corruption("Preventing invalid allocation of refcount block at offset 0")
        self._image.check_overlap(offset, self._image.cluster_size)
        if self._image.lazy:
            self._image.set_dirty(True)
        self._write_new_block(offset, cluster & (self._per_block - 1), 1)
        self.table[number] = offset
        self._new_blocks.add(number)
        self._image.tables.add_block(Kind.REFCOUNT_BLOCK, cluster)

    def _write_new_block(self, offset: int, start: int, used: int) -> None:
        """Put a block in the cache that has nothing but `used` clusters from index `start` on."""
        per_slice = self._cache.per_slice
        for part in range(self._per_block // per_slice):
            counts = array(self._typecode, [0]) * per_slice
            low, high = max(start - part * per_slice, 0), min(start + used - part * per_slice, per_slice)
            if low < high:
                counts[low:high] = array(self._typecode, [1]) * (high - low)
            self._cache.put(offset + part * self._cache.slice_bytes, counts)

    def _grow_table(self, cluster: int) -> None:
        """Move the table, with room for half as much again, to where nothing is counted yet.

        The free `cluster` becomes the block that counts it and its neighbours.  The new table follows those, behind the
        blocks that count it and leave it room.
        """
        from pyvm.block.drivers.qcow2.rebuild import plan_growth

        image = self._image
        number = cluster >> self.per_block_bits
        first_block = number + 1
        first = first_block << self.per_block_bits
        blocks, clusters = plan_growth(first, self.per_block_bits, image.cluster_size)
        if clusters * image.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        image.check_overlap(cluster << self._bits, image.cluster_size)
        image.check_overlap(first << self._bits, (clusters + blocks) << self._bits)
        table = self.table + array("Q", bytes(clusters * image.cluster_size - len(self.table) * 8))
        self._write_new_block(cluster << self._bits, cluster & (self._per_block - 1), 1)
        table[number] = cluster << self._bits
        for block in range(blocks):
            used = min(max(clusters + blocks - (block << self.per_block_bits), 0), self._per_block)
            self._write_new_block((first + block) << self._bits, 0, used)
            table[first_block + block] = (first + block) << self._bits
        self._cache.write_dirty()
        self._use_table(table, (first + blocks) << self._bits, clusters)
        for place in (cluster, *range(first, first + blocks)):
            image.tables.add_block(Kind.REFCOUNT_BLOCK, place)

    def _use_table(self, table: array[int], offset: int, clusters: int) -> None:
        """Write a table to a new place, let the header name it, and give the old one back."""
        image, header = self._image, self._image.header
        old_offset, old_clusters = header.refcount_table_offset, header.refcount_table_clusters
        image.file.write(offset, encode_entries(table, 64))
        image.file.flush()
        header.refcount_table_offset, header.refcount_table_clusters = offset, clusters
        image.commit_fields()
        self.table = table
        self._new_blocks.clear()
        image.tables.move_range(Kind.REFCOUNT_TABLE, offset, clusters << self._bits)
        for cluster in range(old_offset >> self._bits, (old_offset >> self._bits) + old_clusters):
            self._count_down(cluster)

    # ---- Giving back

    def undo(self, offset: int, count: int) -> None:
        """Give clusters back that were allocated and that nothing has come to refer to."""
        for cluster in range(offset >> self._bits, (offset >> self._bits) + count):
            self._count_down(cluster)

    def undo_bytes(self, offset: int, size: int) -> None:
        """Give room for compressed data back that nothing has come to refer to."""
        self.undo(offset, ((offset + size - 1) >> self._bits) - (offset >> self._bits) + 1)
        self._free_byte = 0

    def release(self, offset: int, length: int, reason: Reason = Reason.OTHER) -> None:
        """One user less for all clusters that the range touches, as soon as nothing on the disk refers to them."""
        first = offset >> self._bits
        count = ((offset + length - 1) >> self._bits) - first + 1
        if reason is Reason.REQUEST:
            self._discarded += length
        if self._pending:
            start, before, last_reason = self._pending[-1]
            if start + before == first and last_reason is reason:
                self._pending[-1] = (start, before + count, reason)
                return
        self._pending.append((first, count, reason))

    def settle(self) -> list[tuple[int, int, Reason]]:
        """Count down what waits for it: nothing refers to it any more.

        Return what became free: offsets, lengths, and why.
        """
        pending, self._pending = self._pending, []
        self._discarded = 0
        free: list[tuple[int, int, Reason]] = []
        for first, count, reason in pending:
            cluster, end = first, first + count
            while cluster < end:
                done, freed = self._settle_some(cluster, end - cluster)
                if freed:
                    offset, length = cluster << self._bits, done << self._bits
                    if free and free[-1][0] + free[-1][1] == offset and free[-1][2] is reason:
                        free[-1] = (free[-1][0], free[-1][1] + length, reason)
                    else:
                        free.append((offset, length, reason))
                cluster += done
            if self._cache.crowded:
                self.write_blocks()
        return free

    def _settle_some(self, cluster: int, limit: int) -> tuple[int, bool]:
        """Count clusters of one slice down that have as many users; return how many, and if they are free."""
        found = self._slice(cluster)
        if found is None or not found[1][found[2]]:
            self._image.corruption(f"Refcount of cluster {cluster:#x} is too low")
        offset, counts, index = found
        users = counts[index]
        count = min(len(counts) - index, limit)
        if count > 1 and counts[index : index + count].count(users) != count:
            count = next(at for at in range(1, count) if counts[index + at] != users)
        counts[index : index + count] = array(self._typecode, [users - 1]) * count
        self._changed(offset, counts)
        if users == 1:
            self._freed(cluster, count)
        return count, users == 1

    # ---- The end of the file

    def last_used(self, clusters: int) -> int:
        """Return the last of the first `clusters` clusters that is used."""
        for number in range(min(-(-clusters // self._per_block), len(self.table)) - 1, -1, -1):
            if not self.table[number] & REFCOUNT_BLOCK_MASK:
                continue
            for start in range(self._per_block - self._cache.per_slice, -1, -self._cache.per_slice):
                found = self._slice((number << self.per_block_bits) + start)
                if found is None or not any(found[1]):
                    continue
                index = next(at for at in range(len(found[1]) - 1, -1, -1) if found[1][at])
                return (number << self.per_block_bits) + start + index
        return 0

    def drop_empty_blocks(self) -> None:
        """Give back the refcount blocks that count nothing but themselves.  Raises OSError."""
        image = self._image
        self.write_blocks()
        image.file.flush()
        dropped = []
        for number, entry in enumerate(self.table):
            offset = entry & REFCOUNT_BLOCK_MASK
            if offset and self._is_empty(number, offset >> self._bits):
                dropped.append((number, offset))
        for number, _ in dropped:
            self.table[number] = 0
            image.file.write(image.header.refcount_table_offset + number * 8, bytes(8))
        if dropped:
            image.file.flush()
        for number, offset in dropped:
            cluster = offset >> self._bits
            image.tables.remove_block(Kind.REFCOUNT_BLOCK, cluster)
            self._cache.forget(offset, image.cluster_size)
            if cluster >> self.per_block_bits != number:
                self._count_down(cluster)
            else:
                self._freed(cluster, 1)

    def _is_empty(self, number: int, own: int) -> bool:
        for start in range(0, self._per_block, self._cache.per_slice):
            first = (number << self.per_block_bits) + start
            found = self._slice(first)
            if found is None:
                return False
            used = len(found[1]) - found[1].count(0)
            if used > 1 or (used and (not first <= own < first + len(found[1]) or found[1][own - first] != 1)):
                return False
        return True

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
