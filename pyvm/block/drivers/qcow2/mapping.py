"""From guest offsets to host offsets: the L1 and L2 tables ("Cluster mapping" of the specification)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum

from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.refcounts import Refcounts
from pyvm.block.drivers.qcow2.structures import (
    ALL_SUBCLUSTERS,
    ALL_ZERO_SUBCLUSTERS,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO,
)
from pyvm.block.drivers.qcow2.tables import TableCache

_CACHE_BYTES = 16 << 20
"""L2 slices in memory: enough for 128 GiB of disk in clusters of 64 KiB."""


class Kind(Enum):
    """What a part of the disk is."""

    DATA = "data"
    ZERO = "zero"
    BACKING = "backing"
    """Not in this image: what the backing file has there, or zeros."""
    COMPRESSED = "compressed"


_WHOLE = {ALL_SUBCLUSTERS: Kind.DATA, ALL_ZERO_SUBCLUSTERS: Kind.ZERO, 0: Kind.BACKING}
"""Bitmaps of clusters that are the same all over."""

Extent = tuple[Kind, int, int]
"""A kind, the host offset of data (the L2 entry where it is compressed), and a length in bytes."""


class Place:
    """Where the L2 entry of a cluster is: `entries` from `index` on, in the slice at `offset`."""

    __slots__ = ("clusters", "entries", "index", "offset")

    def __init__(self, offset: int, entries: array[int], index: int, clusters: int) -> None:
        self.offset = offset
        self.entries = entries
        self.index = index
        self.clusters = clusters
        """How many clusters have their entries in this slice, from this one on."""


class Mapping:
    """The active tables of an image."""

    def __init__(self, image: Image) -> None:
        header = image.header
        self._image = image
        self._bits = image.cluster_bits
        self._in_cluster = image.cluster_size - 1
        self._words = header.l2_entry_size // 8
        """64-bit words of an entry: the second one is the subclusters' bitmap."""
        self._l2_bits = (image.cluster_size // header.l2_entry_size).bit_length() - 1
        self._l1_dirty: set[int] = set()
        self._external = header.external_data
        self._has_zero = header.version >= 3
        self.extended = header.extended_l2
        self.subcluster_bits = image.cluster_bits - (SUBCLUSTERS.bit_length() - 1)
        self.cache = TableCache(
            image.file,
            width=64,
            cluster_size=image.cluster_size,
            limit=_CACHE_BYTES,
            missing=lambda offset: image.corruption(f"L2 table at {offset:#x} is behind the end of the file"),
        )
        self._per_slice = self.cache.per_slice // self._words

    # ---- Reading

    def find(self, cluster: int) -> Place | None:
        """Return the place of a guest cluster's entry; None where its L2 table does not exist.  Raises OSError."""
        table = self._image.l1[cluster >> self._l2_bits] & OFFSET_MASK
        if not table:
            return None
        if table & self._in_cluster:
            self._image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {cluster >> self._l2_bits:#x})")
        return self._place(table, cluster)

    def _place(self, table: int, cluster: int) -> Place:
        index = cluster & ((1 << self._l2_bits) - 1)
        part, index = divmod(index, self._per_slice)
        offset = table + part * self.cache.slice_bytes
        return Place(offset, self.cache.get(offset), index * self._words, self._per_slice - index)

    def clusters_in_table(self, cluster: int) -> int:
        """Return how many clusters share an L2 table with this one, from this one on."""
        return (1 << self._l2_bits) - (cluster & ((1 << self._l2_bits) - 1))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what the range is made of; data that is contiguous on the host is one extent.  Raises OSError."""
        kind, host, size = Kind.ZERO, 0, 0
        for next_kind, next_host, next_size in self._parts(offset, length):
            joins = next_kind is kind and kind is not Kind.COMPRESSED
            if size and joins and (kind is not Kind.DATA or next_host == host + size):
                size += next_size
                continue
            if size:
                yield kind, host, size
            kind, host, size = next_kind, next_host, next_size
        if size:
            yield kind, host, size

    def _parts(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        cluster_size = self._in_cluster + 1
        while offset < end:
            cluster = offset >> self._bits
            place = self.find(cluster)
            if place is None:
                stop = min((cluster + self.clusters_in_table(cluster)) << self._bits, end)
                yield Kind.BACKING, 0, stop - offset
                offset = stop
                continue
            entries, index, step = place.entries, place.index, self._words
            stop = min((cluster + place.clusters) << self._bits, end)
            while offset < stop:
                inside = offset & self._in_cluster
                size = min(cluster_size - inside, stop - offset)
                entry = entries[index]
                if self.extended and not entry & COMPRESSED:
                    yield from self._subcluster_parts(entry, entries[index + 1], offset, size)
                else:
                    kind = self.kind(entry, offset - inside)
                    if kind is Kind.COMPRESSED:
                        yield kind, entry, size
                    else:
                        yield kind, (entry & OFFSET_MASK) + inside, size
                offset += size
                index += step

    def kind(self, entry: int, guest: int) -> Kind:
        """Return what the cluster at offset `guest` is, by an entry without a bitmap.

        Raises OSError for an entry that cannot be.
        """
        if entry & COMPRESSED:
            if self._external:
                self._image.corruption("Compressed cluster entry found in image with external data file")
            return Kind.COMPRESSED
        self._check_host(entry, guest)
        if entry & ZERO:
            if not self._has_zero:
                self._image.corruption("Zero cluster entry found in pre-v3 image")
            return Kind.ZERO
        return Kind.DATA if self.has_host(entry) else Kind.BACKING

    def has_host(self, entry: int) -> bool:
        """Whether an entry, not a compressed one, names a host cluster; offset 0 does only in a data file."""
        return bool(entry & OFFSET_MASK) or (self._external and bool(entry & COPIED))

    def _check_host(self, entry: int, guest: int) -> int:
        host = entry & OFFSET_MASK
        if host & self._in_cluster:
            self._image.corruption(f"Cluster allocation offset {host:#x} unaligned (guest offset: {guest:#x})")
        if self._external and entry & (OFFSET_MASK | COPIED) and host != guest:
            self._image.corruption(
                f"External data file host cluster offset {host:#x} does not match guest cluster offset {guest:#x}"
            )
        return host

    def _subcluster_parts(self, entry: int, bitmap: int, offset: int, size: int) -> Iterator[Extent]:
        """Yield the parts of `size` bytes from guest offset `offset` on, of a cluster with subclusters."""
        inside = offset & self._in_cluster
        host = self.checked_host(entry, bitmap, offset - inside)
        allocated, zero = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
        whole = _WHOLE.get(bitmap)
        if whole is not None:
            yield whole, host + inside, size
            return
        end = inside + size
        while inside < end:
            bit = 1 << (inside >> self.subcluster_bits)
            kind = Kind.DATA if allocated & bit else Kind.ZERO if zero & bit else Kind.BACKING
            stop = min(((inside >> self.subcluster_bits) + 1) << self.subcluster_bits, end)
            yield kind, host + inside, stop - inside
            inside = stop

    def checked_host(self, entry: int, bitmap: int, guest: int) -> int:
        """Return the host offset of an entry with a bitmap, for the cluster at offset `guest`.

        Raises OSError for an entry that cannot be.
        """
        host = self._check_host(entry, guest)
        if bitmap & (bitmap >> SUBCLUSTERS) & ALL_SUBCLUSTERS or entry & ZERO:
            self._image.corruption(f"Invalid cluster entry found (L2 entry: {entry:#x}, bitmap: {bitmap:#x})")
        if bitmap & ALL_SUBCLUSTERS and not self.has_host(entry):
            self._image.corruption(f"Subclusters without a host cluster (L2 entry: {entry:#x}, bitmap: {bitmap:#x})")
        return host

    # ---- Changing

    def find_for_change(self, cluster: int, refcounts: Refcounts) -> Place:
        """Return the place of a cluster's entry in a table that may be changed: made, or copied, if need be."""
        number = cluster >> self._l2_bits
        entry = self._image.l1[number]
        table = entry & OFFSET_MASK
        if table & self._in_cluster:
            self._image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {number:#x})")
        if not table or not entry & COPIED:
            table = self._new_table(number, table, refcounts)
        return self._place(table, cluster)

    def _new_table(self, number: int, old: int, refcounts: Refcounts) -> int:
        """Give an L1 entry a table of its own: a copy of the shared one at `old`, or an empty one."""
        image = self._image
        if old:
            data = image.file.read(old, image.cluster_size)
            if old + image.cluster_size > image.file.length():
                image.corruption(f"L2 table at {old:#x} is behind the end of the file")
            # What the cache knows of a shared table is what is on the disk: such a table is never changed.
        else:
            data = bytearray(image.cluster_size)
        table, _ = refcounts.allocate(1)
        try:
            image.file.write(table, data)
        except OSError:
            refcounts.undo(table, 1)
            raise
        image.tables.add_block(table >> self._bits, "active L2 table")
        image.l1[number] = table | COPIED
        self._l1_dirty.add(number)
        self.cache.forget(table, image.cluster_size)
        if old:
            image.tables.remove_block(old >> self._bits)
            refcounts.release(old, image.cluster_size)
        return table

    def changed(self, place: Place) -> None:
        """An entry at this place has changed."""
        self.cache.changed(place.offset, place.entries)

    @property
    def dirty(self) -> bool:
        """Whether tables have changed."""
        return self.cache.dirty or bool(self._l1_dirty)

    def write_tables(self) -> None:
        """Write what has changed; what it refers to must be on stable storage.  Raises OSError."""
        self.cache.write_dirty()
        start = self._image.header.l1_table_offset
        for number in sorted(self._l1_dirty):
            self._image.file.write(start + number * 8, self._image.l1[number].to_bytes(8, "big"))
            self._l1_dirty.discard(number)
