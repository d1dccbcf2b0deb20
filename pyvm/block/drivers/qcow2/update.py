"""Changing a qcow2 image: where writes go, what has to be copied, what becomes free.

Every step leaves the tables in memory consistent, so they may be written between any two of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from pyvm.block.breakpoints import Suspended
from pyvm.block.drivers.qcow2.compressed import CompressedClusters
from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.mapping import Kind, Mapping, Place
from pyvm.block.drivers.qcow2.reader import Reader
from pyvm.block.drivers.qcow2.refcounts import Reason, Refcounts
from pyvm.block.drivers.qcow2.structures import (
    ALL_SUBCLUSTERS,
    ALL_ZERO_SUBCLUSTERS,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO,
)
from pyvm.block.vectors import Buffers, Cursor


class Updater:
    """Writes guest data into the image's file, or the external data file, and keeps the tables up to date."""

    def __init__(
        self, image: Image, mapping: Mapping, refcounts: Refcounts, compressed: CompressedClusters, reader: Reader
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._refcounts = refcounts
        self._compressed = compressed
        self._reader = reader
        self._bits = image.cluster_bits
        self._size = image.cluster_size
        self._external = image.header.external_data
        self._words = image.header.l2_entry_size // 8
        self._unit = 1 << mapping.subcluster_bits if mapping.extended else self._size
        """What is allocated or zero as a whole: a subcluster, or a cluster."""
        self.behind = 0
        """Where what the present request has written ends in the file; 0 before."""
        self._freed_data: list[tuple[int, int]] = []
        """What the external data file need not keep: offsets and lengths."""

    @property
    def _has_backing(self) -> bool:
        return self._reader.backing is not None

    # ---- Writing data

    def write_some(self, offset: int, length: int, cursor: Cursor) -> int:
        """Write the next of `length` bytes that can be written at once; return how many.  Raises OSError."""
        cluster = offset >> self._bits
        place = self._mapping.find(cluster)
        count = self._in_place(place, offset, length) if place else 0
        if place and count and (count == length or not self._host_goes_on(place, offset, count)):
            host = (place.entries[place.index] & OFFSET_MASK) + (offset & (self._size - 1))
            self.write_at(host, offset, count, cursor.take(count))
            return count
        place = self._mapping.find_for_change(cluster, self._refcounts)
        if self._reusable(place.entries[place.index]):
            return self._write_reused(place, offset, length, cursor)
        return self._write_new(place, offset, length, cursor)

    def write_at(self, host: int, offset: int, length: int, buffers: Buffers) -> None:
        """Write what is at `offset` of the disk, with its place on the host.  Raises OSError."""
        if not self._external:
            self._image.check_overlap(host, length)
        elif self._freed_data:
            self._freed_data = list(_outside(self._freed_data, host, host + length))
        reader = self._reader
        reader.data.debug_event("write_aio")
        if reader.encrypted is not None and reader.uses_disk_offsets:
            reader.encrypted.write_as(host, offset, buffers)
        else:
            reader.data.writev(host, buffers)

    def _reusable(self, entry: int) -> bool:
        """Whether an entry names a host cluster that belongs to it alone."""
        return not entry & COMPRESSED and bool(entry & COPIED) and self._mapping.has_host(entry)

    def _in_place(self, place: Place, offset: int, length: int) -> int:
        """Return how many bytes from `offset` on can be written without a change to tables."""
        index = place.index
        host = place.entries[index] & OFFSET_MASK
        inside = offset & (self._size - 1)
        count = 0
        if not self._mapping.extended and not self._external and self._reusable(place.entries[index]):
            clusters = min(((inside + length - 1) >> self._bits) + 1, place.clusters)
            if self._mapping.is_run(place.entries, index, clusters):
                return min(length, (clusters << self._bits) - inside)
        for number in range(place.clusters):
            if count >= length:
                break
            entry = place.entries[index + number * self._words]
            if not self._reusable(entry) or entry & OFFSET_MASK != host + number * self._size:
                break
            stop = min(inside + length - count, self._size)
            if self._mapping.extended:
                bitmap = place.entries[index + number * 2 + 1]
                self._mapping.checked_host(entry, bitmap, offset + count - inside)
                if (bitmap & ALL_SUBCLUSTERS) != ALL_SUBCLUSTERS and not _has_all(bitmap, *self._units(inside, stop)):
                    break
            elif self._mapping.kind(entry, offset + count - inside) is not Kind.DATA:
                break
            count += stop - inside
            inside = 0
        return count

    def _units(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first subcluster, and the one behind the last, that a range in a cluster touches."""
        bits = self._mapping.subcluster_bits
        return start >> bits, -(-stop >> bits)

    def _host_goes_on(self, place: Place, offset: int, count: int) -> bool:
        """Whether what follows `count` bytes has its place behind them on the host, without valid data yet."""
        first, behind = offset >> self._bits, (offset + count) >> self._bits
        if self._mapping.extended or behind - first >= place.clusters:
            return False
        entry = place.entries[place.index + behind - first]
        host = (place.entries[place.index] & OFFSET_MASK) + ((behind - first) << self._bits)
        return self._reusable(entry) and entry & OFFSET_MASK == host

    def _write_reused(self, place: Place, offset: int, length: int, cursor: Cursor) -> int:
        """Write into clusters that have host clusters in a row, where there is no valid data yet in all of them."""
        entries, index = place.entries, place.index
        inside = offset & (self._size - 1)
        host = entries[index] & OFFSET_MASK
        clusters = 1
        if self._mapping.extended:
            self._mapping.checked_host(entries[index], entries[index + 1], offset - inside)
        else:
            most = min(-(-(inside + length) >> self._bits), place.clusters)
            while clusters < most and self._reusable(entries[index + clusters]):
                if entries[index + clusters] & OFFSET_MASK != host + (clusters << self._bits):
                    break
                clusters += 1
            for number in range(clusters):
                self._mapping.kind(entries[index + number], offset - inside + (number << self._bits))
        count = min(length, (clusters << self._bits) - inside)
        self._write_around(host + inside, offset, count, cursor, whole=False)
        for number in range(clusters):
            start = inside if not number else 0
            stop = min(inside + count - (number << self._bits), self._size)
            self._set(place, number, host + (number << self._bits), start, stop, keep=True)
        return count

    def _write_new(self, place: Place, offset: int, length: int, cursor: Cursor) -> int:
        """Write into new host clusters, as many as there are in a row."""
        inside = offset & (self._size - 1)
        wanted = min(-(-(inside + length) >> self._bits), place.clusters)
        entries, index = place.entries, place.index
        clusters = 1
        while clusters < wanted and not self._reusable(entries[index + clusters * self._words]):
            clusters += 1
        if self._external:
            host = offset - inside
        else:
            host, clusters = self._refcounts.allocate(clusters, behind=self.behind)
            self.behind = host + (clusters << self._bits)
        try:
            count = min(length, (clusters << self._bits) - inside)
            # Where other users have the old data, or it is compressed, all of it moves along.
            last = (inside + count - 1) >> self._bits
            whole = any(self._has_old(place, number) for number in {0, last})
            self._write_around(host + inside, offset, count, cursor, whole=whole)
        except (OSError, Suspended):
            if not self._external:
                self._refcounts.undo(host, clusters)
            raise
        for number in range(clusters):
            start = inside if not number else 0
            stop = min(inside + count - (number << self._bits), self._size)
            self._release_old(place, number)
            if whole and number in (0, last):
                start, stop = 0, self._size
            self._set(place, number, host + (number << self._bits), start, stop, keep=not whole)
        return count

    def _has_old(self, place: Place, number: int) -> bool:
        entry = place.entries[place.index + number * self._words]
        return bool(entry & COMPRESSED) or self._mapping.has_host(entry)

    def _write_around(self, host: int, offset: int, count: int, cursor: Cursor, *, whole: bool) -> None:
        """Write `count` bytes, filled up to whole units (or clusters, if `whole`) with what the disk has there."""
        unit = self._size if whole else self._unit
        before = offset % unit
        after = -(offset + count) % unit
        parts = cursor.take(count)
        if before or after:
            head = (memoryview(self._reader.read(offset - before, before)),) if before else ()
            tail = (memoryview(self._reader.read(offset + count, after)),) if after else ()
            parts = (*head, *parts, *tail)
        self.write_at(host - before, offset - before, before + count + after, parts)

    def _set(self, place: Place, number: int, host: int, start: int, stop: int, *, keep: bool) -> None:
        """Let an entry name a host cluster that has valid data from `start` to `stop`, in whole units.

        `keep` says that a bitmap stays as it is for other subclusters.
        """
        index = place.index + number * self._words
        if self._mapping.extended:
            first, last = self._units(start, stop)
            written = ((1 << (last - first)) - 1) << first
            old = place.entries[index + 1] if keep and not place.entries[index] & COMPRESSED else 0
            place.entries[index + 1] = (old | written) & ~(written << SUBCLUSTERS)
        place.entries[index] = host | COPIED
        self._mapping.changed(place)

    def _release_old(self, place: Place, number: int, reason: Reason = Reason.OTHER) -> None:
        """What an entry names has one user less."""
        entry = place.entries[place.index + number * self._words]
        if entry & COMPRESSED:
            self._refcounts.release(*self._compressed.place(entry), reason)
        elif not self._external and entry & OFFSET_MASK:
            self._refcounts.release(entry & OFFSET_MASK, self._size, reason)
        elif self._external and self._mapping.has_host(entry) and reason is Reason.REQUEST:
            host = entry & OFFSET_MASK
            if self._freed_data and sum(self._freed_data[-1]) == host:
                self._freed_data[-1] = (self._freed_data[-1][0], host + self._size - self._freed_data[-1][0])
            else:
                self._freed_data.append((host, self._size))

    def take_freed_data(self) -> list[tuple[int, int]]:
        """Return what the external data file need not keep any more, and forget it."""
        freed, self._freed_data = self._freed_data, []
        return freed

    # ---- Compressed data

    def write_packed(self, offset: int, packed: bytes) -> bool:
        """Write a whole cluster in compressed form; return whether the format could say where it is.

        Raises OSError.
        """
        place = self._mapping.find_for_change(offset >> self._bits, self._refcounts)
        host = self._refcounts.allocate_bytes(len(packed))
        entry = self._compressed.entry(host, len(packed))
        if entry is None:
            self._refcounts.undo_bytes(host, len(packed))
            return False
        try:
            self.write_at(host, offset, len(packed), [memoryview(packed)])
        except OSError:
            self._refcounts.undo_bytes(host, len(packed))
            raise
        self._release_old(place, 0)
        place.entries[place.index] = entry
        if self._mapping.extended:
            place.entries[place.index + 1] = 0
        self._mapping.changed(place)
        return True

    # ---- Preallocation

    def preallocate_some(self, offset: int, length: int, *, zero: bool = False) -> tuple[int, int, int]:
        """Give the next clusters of a range a place on the host, where they have none.

        Return how many bytes of the range that is, and where and how long the new place is.  What is there must read
        as zeros: that is the caller's to see to, but with `zero` they do whatever is there.  Raises OSError.
        """
        cluster = offset >> self._bits
        place = self._mapping.find_for_change(cluster, self._refcounts)
        wanted = min(-(-length >> self._bits), place.clusters)
        used = next((at for at in range(wanted) if place.entries[place.index + at * self._words]), wanted)
        if not used:
            return self._size, 0, 0
        if self._external:
            host = cluster << self._bits
        else:
            host, used = self._refcounts.allocate(used)
        for number in range(used):
            # With subclusters, the bitmap goes on saying that there is no data yet.
            entry = (host + (number << self._bits)) | COPIED
            index = place.index + number * self._words
            place.entries[index] = entry | ZERO if zero and not self._mapping.extended else entry
            if zero and self._mapping.extended:
                place.entries[index + 1] = ALL_ZERO_SUBCLUSTERS
        self._mapping.changed(place)
        return used << self._bits, host, used << self._bits

    # ---- Zeros

    def zero_some(self, offset: int, length: int, unmap: bool) -> int:
        """Let the next of `length` bytes read as zeros, in whole units, without writing them; return how many.

        Returns 0 where zeros have to be written instead.  With `unmap` the clusters are given back.
        """
        cluster = offset >> self._bits
        if offset & (self._size - 1) or length < self._size:
            return self._zero_subclusters(offset, length) if self._mapping.extended else 0
        place = self._mapping.find_for_change(cluster, self._refcounts)
        count = min(length >> self._bits, place.clusters)
        for number in range(count):
            self._zero_cluster(place, number, offset + (number << self._bits), unmap)
        return count << self._bits

    def _zero_cluster(self, place: Place, number: int, guest: int, unmap: bool) -> None:
        index = place.index + number * self._words
        entry = place.entries[index]
        if self._mapping.extended and not entry & COMPRESSED:
            bitmap = place.entries[index + 1]
            self._mapping.checked_host(entry, bitmap, guest)
            is_zero = bitmap == ALL_ZERO_SUBCLUSTERS
        else:
            is_zero = self._mapping.kind(entry, guest) is Kind.ZERO
        # What has never been written is marked as well: another image may come to lie below.
        if is_zero and not (unmap and self._has_old(place, number)):
            return
        if unmap or entry & COMPRESSED:
            self._release_old(place, number, Reason.REQUEST)
            entry = 0
        if self._mapping.extended:
            place.entries[index + 1] = ALL_ZERO_SUBCLUSTERS
            place.entries[index] = entry
        else:
            place.entries[index] = entry | ZERO
        self._mapping.changed(place)

    def _zero_subclusters(self, offset: int, length: int) -> int:
        """Let the subclusters of one cluster read as zeros that the range has as a whole."""
        inside = offset & (self._size - 1)
        stop = min(inside + length, self._size)
        if inside % self._unit or stop % self._unit:
            return 0
        place = self._mapping.find_for_change(offset >> self._bits, self._refcounts)
        entry = place.entries[place.index]
        if entry & COMPRESSED:
            return 0
        bitmap = place.entries[place.index + 1]
        self._mapping.checked_host(entry, bitmap, offset - inside)
        first, last = self._units(inside, stop)
        cleared = ((1 << (last - first)) - 1) << first
        place.entries[place.index + 1] = (bitmap & ~cleared) | cleared << SUBCLUSTERS
        self._mapping.changed(place)
        return stop - inside

    def forget_some(self, offset: int, length: int, reason: Reason) -> int:
        """Let whole clusters be as if they had never been written; return how many bytes of the range that were."""
        cluster = offset >> self._bits
        place = self._mapping.find(cluster)
        if place is None:
            return min(length, self._mapping.clusters_in_table(cluster) << self._bits)
        place = self._mapping.find_for_change(cluster, self._refcounts)
        count = min(-(-length >> self._bits), place.clusters)
        for number in range(count):
            index = place.index + number * self._words
            if any(place.entries[index : index + self._words]):
                self._release_old(place, number, reason)
                place.entries[index : index + self._words] = array("Q", bytes(8 * self._words))
                self._mapping.changed(place)
        return count << self._bits


def _has_all(bitmap: int, first: int, last: int) -> bool:
    wanted = ((1 << (last - first)) - 1) << first
    return bitmap & wanted == wanted


def _outside(ranges: Iterable[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield what ranges, each an offset and a length, have before `start` and from `stop` on."""
    for offset, length in ranges:
        end = offset + length
        for first, last in ((offset, min(end, start)), (max(offset, stop), end)):
            if first < last:
                yield first, last - first
