"""From guest offsets to host offsets: the L1 and L2 tables ("Cluster mapping" of the specification)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum

from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.overlap import Kind as Table
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
from pyvm.block.drivers.qcow2.tables import SLICE_BYTES, TableCache, encode_entries


class Kind(Enum):
    """What a part of the disk is."""

    DATA = "data"
    ZERO = "zero"
    BACKING = "backing"
    """Not in this image: what the backing file has there, or zeros."""
    COMPRESSED = "compressed"


_WHOLE = {ALL_SUBCLUSTERS: Kind.DATA, ALL_ZERO_SUBCLUSTERS: Kind.ZERO, 0: Kind.BACKING}
"""Bitmaps of clusters that are the same all over."""

_AT_ONCE = 64
"""Entries that are looked at as one."""

Part = tuple[Kind, int, int]
"""A kind, a host offset (the L2 entry where it is compressed; 0 where there is none), and a length in bytes."""


class Place:
    """Where the L2 entry of a cluster is: `entries` from `index` on, in the slice at `offset`."""

    __slots__ = ("clusters", "entries", "index", "offset")

    def __init__(self, offset: int, entries: array[int], index: int, clusters: int) -> None:
        self.offset = offset
        self.entries = entries
        self.index = index
        self.clusters = clusters
        """How many clusters have their entries in this slice, from this one on."""


def _hex(number: int) -> str:
    """Return a number as C's ``%#x`` writes it."""
    return hex(number) if number else "0"


class Mapping:
    """The tables of an image: the active ones, or those that start at `l1`, which are only read then."""

    def __init__(
        self, image: Image, *, cache_bytes: int, slice_bytes: int = SLICE_BYTES, l1: array[int] | None = None
    ) -> None:
        header = image.header
        self._image = image
        self._inactive = l1
        self._bits = image.cluster_bits
        self._in_cluster = image.cluster_size - 1
        self._words = header.l2_entry_size // 8
        """64-bit words of an entry: the second one is the subclusters' bitmap."""
        self.l2_bits = (image.cluster_size // header.l2_entry_size).bit_length() - 1
        self._l1_dirty: set[int] = set()
        self._external = header.external_data
        self.extended = header.extended_l2
        self.subcluster_bits = image.cluster_bits - (SUBCLUSTERS.bit_length() - 1)
        self.cache = TableCache(
            image.file,
            width=64,
            cluster_size=image.cluster_size,
            limit=cache_bytes,
            missing=lambda offset: image.corruption(f"L2 table at {offset:#x} is behind the end of the file"),
            slice_bytes=slice_bytes,
            events=("l2_load", "l2_update"),
        )
        self._per_slice = self.cache.per_slice // self._words

    @property
    def l1(self) -> array[int]:
        """The L1 table."""
        return self._image.l1 if self._inactive is None else self._inactive

    def table_span(self) -> int:
        """Return how many bytes of the disk an L2 table is for."""
        return 1 << (self.l2_bits + self._bits)

    # ---- Reading

    def find(self, cluster: int) -> Place | None:
        """Return the place of a guest cluster's entry; None where its L2 table does not exist.  Raises OSError."""
        number = cluster >> self.l2_bits
        l1 = self._image.l1 if self._inactive is None else self._inactive
        # What is behind the table was never written: the state of a VM starts behind the disk.
        table = l1[number] & OFFSET_MASK if number < len(l1) else 0
        if not table:
            return None
        if table & self._in_cluster:
            self._image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {_hex(number)})")
        return self._place(table, cluster)

    def _place(self, table: int, cluster: int) -> Place:
        index = cluster & ((1 << self.l2_bits) - 1)
        part, index = divmod(index, self._per_slice)
        offset = table + part * self.cache.slice_bytes
        return Place(offset, self.cache.get(offset), index * self._words, self._per_slice - index)

    def clusters_in_table(self, cluster: int) -> int:
        """Return how many clusters share an L2 table with this one, from this one on."""
        return (1 << self.l2_bits) - (cluster & ((1 << self.l2_bits) - 1))

    def extents(self, offset: int, length: int) -> Iterator[Part]:
        """Yield what the range is made of; data that is contiguous on the host is one part.  Raises OSError."""
        kind, host, size = Kind.ZERO, 0, 0
        for next_kind, next_host, next_size in self.parts(offset, length):
            joins = next_kind is kind and kind is not Kind.COMPRESSED
            if size and joins and (kind is not Kind.DATA or next_host == host + size):
                size += next_size
                continue
            if size:
                yield kind, host, size
            kind, host, size = next_kind, next_host, next_size
        if size:
            yield kind, host, size

    def status(self, offset: int, length: int) -> Part:
        """Return the first part of a range, as long as kind and place on the host go on.  Raises OSError."""
        parts = self.parts(offset, length)
        kind, host, size = next(parts)
        has_place = kind is Kind.DATA or bool(host)
        for next_kind, next_host, next_size in parts:
            # Compressed clusters are like each other, wherever they are.
            joins = kind is Kind.COMPRESSED or next_host == (host + size if has_place else 0)
            if next_kind is not kind or not joins:
                break
            size += next_size
        return kind, host, size

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """Yield what the range is made of, in runs within one slice of a table.  Raises OSError."""
        end = offset + length
        while offset < end:
            cluster = offset >> self._bits
            place = self.find(cluster)
            if place is None:
                stop = min((cluster + self.clusters_in_table(cluster)) << self._bits, end)
                yield Kind.BACKING, 0, stop - offset
            else:
                stop = min((cluster + place.clusters) << self._bits, end)
                if self.extended:
                    yield from self._extended_parts(place, offset, stop)
                else:
                    yield from self._plain_parts(place, offset, stop)
            offset = stop

    def _plain_parts(self, place: Place, offset: int, stop: int) -> Iterator[Part]:
        entries, index = place.entries, place.index
        cluster_size = self._in_cluster + 1
        while offset < stop:
            inside = offset & self._in_cluster
            entry = entries[index]
            kind = self.kind(entry, offset - inside)
            size = cluster_size - inside
            index += 1
            if kind is not Kind.COMPRESSED:
                # Most entries follow from the one before: the next cluster on the host, or nothing again.
                step = cluster_size if entry & OFFSET_MASK or kind is Kind.DATA else 0
                entry += step
                if not step:
                    # Nothing comes in long runs.
                    alike = array("Q", (entry,)) * _AT_ONCE
                    many = _AT_ONCE * cluster_size
                    while size + many <= stop - offset and entries[index : index + _AT_ONCE] == alike:
                        size += many
                        index += _AT_ONCE
                while size < stop - offset and entries[index] == entry:
                    entry += step
                    size += cluster_size
                    index += 1
                entry = (entries[index - 1] & OFFSET_MASK) + cluster_size - size if step else 0
            size = min(size, stop - offset)
            yield kind, entry, size
            offset += size

    def _extended_parts(self, place: Place, offset: int, stop: int) -> Iterator[Part]:
        entries, index = place.entries, place.index
        cluster_size = self._in_cluster + 1
        while offset < stop:
            inside = offset & self._in_cluster
            size = min(cluster_size - inside, stop - offset)
            entry = entries[index]
            if entry & COMPRESSED:
                yield self.kind(entry, offset - inside), entry, size
            else:
                yield from self._subcluster_parts(entry, entries[index + 1], offset, size)
            offset += size
            index += 2

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
            if self._image.header.version < 3:
                self._image.corruption("Zero cluster entry found in pre-v3 image")
            return Kind.ZERO
        return Kind.DATA if self.has_host(entry) else Kind.BACKING

    def has_host(self, entry: int) -> bool:
        """Whether an entry, not a compressed one, names a host cluster; offset 0 does only in a data file."""
        return bool(entry & OFFSET_MASK) or (self._external and bool(entry & COPIED))

    def _check_host(self, entry: int, guest: int) -> int:
        host = entry & OFFSET_MASK
        if host & self._in_cluster:
            cluster = guest >> self._image.cluster_bits
            table = self._image.l1[cluster >> self.l2_bits] & OFFSET_MASK
            index = cluster & (1 << self.l2_bits) - 1
            place = f"L2 offset: {table:#x}, L2 index: {_hex(index)}"
            self._image.corruption(f"Cluster allocation offset {host:#x} unaligned ({place})")
        if self._external and entry & (OFFSET_MASK | COPIED) and host != guest:
            self._image.corruption(
                f"External data file host cluster offset {host:#x} does not match guest cluster offset {guest:#x}"
            )
        return host

    def _subcluster_parts(self, entry: int, bitmap: int, offset: int, size: int) -> Iterator[Part]:
        """Yield the parts of `size` bytes from guest offset `offset` on, of a cluster with subclusters."""
        inside = offset & self._in_cluster
        host = self.checked_host(entry, bitmap, offset - inside)
        there = self.has_host(entry)
        allocated, zero = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
        whole = _WHOLE.get(bitmap)
        if whole is not None:
            yield whole, host + inside if there else 0, size
            return
        end = inside + size
        while inside < end:
            bit = 1 << (inside >> self.subcluster_bits)
            kind = Kind.DATA if allocated & bit else Kind.ZERO if zero & bit else Kind.BACKING
            stop = min(((inside >> self.subcluster_bits) + 1) << self.subcluster_bits, end)
            yield kind, host + inside if there else 0, stop - inside
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

    def at_hand(self, offset: int, length: int) -> int | None:
        """Return where a range is on the host; None where it is not in one piece, or it takes reading to know."""
        if self.extended:
            return None
        cluster = offset >> self._bits
        number = cluster >> self.l2_bits
        l1 = self.l1
        table = l1[number] & OFFSET_MASK if number < len(l1) else 0
        if not table or table & self._in_cluster:
            return None
        part, index = divmod(cluster & ((1 << self.l2_bits) - 1), self._per_slice)
        entries = self.cache.peek(table + part * self.cache.slice_bytes)
        if entries is None:
            return None
        inside = offset & self._in_cluster
        count = ((inside + length - 1) >> self._bits) + 1
        if index + count > self._per_slice or not self.is_run(entries, index, count):
            return None
        first = entries[index] & OFFSET_MASK
        if self._external and first != offset - inside:
            return None
        return first + inside

    def is_run(self, entries: array[int], index: int, count: int) -> bool:
        """Whether entries without bitmaps are alike, and name data that is in one piece on the host."""
        first = entries[index]
        if first & (COMPRESSED | ZERO | self._in_cluster & OFFSET_MASK) or not first & OFFSET_MASK:
            return False
        step = self._in_cluster + 1
        return count == 1 or entries[index : index + count] == array("Q", range(first, first + count * step, step))

    # ---- Changing

    def find_for_change(self, cluster: int, refcounts: Refcounts) -> Place:
        """Return the place of a cluster's entry in a table that may be changed: made, or copied, if need be."""
        number = cluster >> self.l2_bits
        entry = self._image.l1[number]
        table = entry & OFFSET_MASK
        if table & self._in_cluster:
            self._image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {_hex(number)})")
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
        table, _ = refcounts.allocate(1, "L2 table")
        try:
            if image.lazy:
                refcounts.write_blocks()  # of data alone it is put off
            image.file.debug_event("l2_alloc_write")
            image.file.write(table, data)
        except OSError:
            refcounts.undo(table, 1)
            raise
        image.tables.add_block(Table.ACTIVE_L2, table >> self._bits)
        image.l1[number] = table | COPIED
        self._l1_dirty.add(number)
        self.cache.forget(table, image.cluster_size)
        if old:
            image.tables.remove_block(Table.ACTIVE_L2, old >> self._bits)
            refcounts.release(old, image.cluster_size)
        return table

    def drop_table(self, number: int, refcounts: Refcounts, reason: Reason = Reason.OTHER) -> None:
        """Let an L1 entry have no L2 table any more; what the table named has been given back."""
        table = self._image.l1[number] & OFFSET_MASK
        if not table:
            return
        self._image.l1[number] = 0
        self._l1_dirty.add(number)
        self.cache.forget(table, self._image.cluster_size)
        self._image.tables.remove_block(Table.ACTIVE_L2, table >> self._bits)
        refcounts.release(table, self._image.cluster_size, reason)

    def put_l1(self, l1: array[int], refcounts: Refcounts) -> None:
        """Give the image another L1 table, in a place of its own; the header changes at once.

        All tables have been written before.  What is only in the old one is still counted: see the caller.
        Raises OSError.
        """
        image, header = self._image, self._image.header
        old_offset, old_size = header.l1_table_offset, header.l1_size
        length = len(l1) * 8
        image.file.debug_event("l1_grow_alloc_table")
        offset = refcounts.allocate_run(image.clusters(length), "L1 table") if length else 0
        try:
            image.file.debug_event("l1_grow_write_table")
            image.file.write(offset, encode_entries(l1, 64))
            refcounts.write_blocks()
        except OSError:
            refcounts.undo(offset, image.clusters(length))
            raise
        header.l1_table_offset, header.l1_size = offset, len(l1)
        image.file.debug_event("l1_grow_activate_table")
        image.commit_fields()
        image.l1 = l1
        self._l1_dirty.clear()
        self.cache.clear()
        image.tables.move_range(Table.ACTIVE_L1, offset, length)
        if old_size:
            refcounts.release(old_offset, old_size * 8)

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
            self._image.file.debug_event("l1_update")
            self._image.file.write(start + number * 8, self._image.l1[number].to_bytes(8, "big"))
            self._l1_dirty.discard(number)

    def forget_changes(self) -> None:
        """Forget what was to be written."""
        self.cache.clear()
        self._l1_dirty.clear()
