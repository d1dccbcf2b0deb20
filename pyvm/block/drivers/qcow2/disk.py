"""The parts of an open qcow2 image, and what all operations on it need: room, order of writing, stable storage."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from pyvm.block.drivers.file import SECTOR
from pyvm.block.drivers.qcow2.compressed import CompressedClusters
from pyvm.block.drivers.qcow2.image import Image, Warn
from pyvm.block.drivers.qcow2.mapping import Mapping
from pyvm.block.drivers.qcow2.options import Options
from pyvm.block.drivers.qcow2.overlap import Kind
from pyvm.block.drivers.qcow2.reader import Reader
from pyvm.block.drivers.qcow2.records import (
    BITMAP_FLAGS,
    BITMAP_IN_USE,
    MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAPS,
    Bitmap,
    Snapshot,
    encode_snapshots,
    parse_bitmaps,
    parse_snapshots,
)
from pyvm.block.drivers.qcow2.refcounts import Reason, Refcounts
from pyvm.block.drivers.qcow2.structures import MAX_SNAPSHOT_TABLE_BYTES, Autoclear, Header
from pyvm.block.drivers.qcow2.update import Updater
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.vectors import Buffers, Cursor, total

_VIEW_CACHE = 1 << 20
_CLEAN_UP_EVERY = 1024
"""Requests between two looks at the clock."""


class Disk:
    """An open image.  `refcounts` and `updater` are there only where it may be written."""

    refcounts: Refcounts
    updater: Updater

    def __init__(
        self,
        file: Node,
        header: Header,
        options: Options,
        *,
        name: str,
        data: Node,
        backing: Node | None,
        warn: Warn,
    ) -> None:
        self.file = file
        self.header = header
        self.options = options
        self.warn = warn
        self.image = Image(
            file,
            header,
            name=name,
            checked=options.overlap,
            lazy=options.lazy_refcounts and not file.read_only,
            warn=warn,
        )
        self.mapping = Mapping(self.image, cache_bytes=options.l2_cache, slice_bytes=options.l2_slice)
        self.compressed = CompressedClusters(file, header.cluster_bits, header.compression_type)
        self.reader = Reader(self.mapping, self.compressed, data, backing, header.cluster_size)
        self.snapshots: list[Snapshot] = []
        self.snapshots_bytes = 0
        """How long the snapshot table is."""
        self.bitmaps: list[Bitmap] = []
        self.bitmaps_kept = False
        """Whether somebody keeps the bitmaps up to date, and stores them in the end."""
        self._preallocated: bool | None = None
        self._requests = 0
        self._cleaned = time.monotonic()

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self.header.size & -SECTOR

    @property
    def data(self) -> Node:
        """Where the guest's data is."""
        return self.reader.data

    @property
    def is_encrypted(self) -> bool:
        """Whether the guest's data is encrypted."""
        return self.reader.encrypted is not None

    @property
    def stored_in(self) -> Node:
        """The file that the guest's data is in, as it is there."""
        encrypted = self.reader.encrypted
        return self.data if encrypted is None else encrypted.stored_in

    @property
    def backing(self) -> Node | None:
        """What shows where the image has nothing."""
        return self.reader.backing

    # ---- Opening

    def read_directories(self) -> None:
        """Read the snapshot table and the bitmap directory.  Raises BlockError."""
        header = self.header
        self.snapshots, self.snapshots_bytes = [], 0
        if header.nb_snapshots:
            length = min(self.file.length() - header.snapshots_offset, MAX_SNAPSHOT_TABLE_BYTES)
            data = self.image.read_bytes("snapshots", header.snapshots_offset, max(length, 0))
            for snapshot, end in parse_snapshots(data, header.nb_snapshots, header.cluster_size):
                self.snapshots.append(snapshot)
                self.snapshots_bytes = end
        self.bitmaps = []
        if header.bitmaps is None:
            return
        if not header.autoclear_features & Autoclear.BITMAPS:
            if not self.file.read_only:
                # Some program that does not know bitmaps wrote to the image: they are of no use to anybody.
                header.bitmaps = None
            self.warn(
                f"{self.file.filename}: a program lacking bitmap support modified this file, so all bitmaps are now"
                " considered inconsistent. Some clusters may be leaked, run 'qemu-img check -r' on the image file to"
                " fix."
            )
            return
        count, size, offset = header.bitmaps
        if count > MAX_BITMAPS or size > MAX_BITMAP_DIRECTORY_BYTES or offset % header.cluster_size:
            raise BlockError("Broken bitmap directory")
        self.bitmaps = list(parse_bitmaps(self.image.read_bytes("bitmap directory", offset, size), count, offset))

    def open_for_writing(self) -> None:
        """Make ready for changes.  Raises BlockError."""
        self.refcounts = Refcounts(self.image, self.options.refcount_cache)
        self.updater = Updater(self.image, self.mapping, self.refcounts, self.compressed, self.reader)
        self.map_tables()

    def map_tables(self) -> None:
        """Note where all metadata is."""
        header, image = self.header, self.image
        image.tables.clear()
        inactive = []
        if Kind.INACTIVE_L2 & image.tables.checked:
            inactive = [image.read_table("snapshot L1 table", it.l1_table_offset, it.l1_size) for it in self.snapshots]
        image.map_tables(self.refcounts.table, inactive)
        for it in self.snapshots:
            image.map_range(Kind.INACTIVE_L1, it.l1_table_offset, it.l1_size * 8)
        if self.snapshots_bytes:
            image.map_range(Kind.SNAPSHOT_TABLE, header.snapshots_offset, self.snapshots_bytes)
        if header.bitmaps is not None and self.bitmaps:
            image.map_range(Kind.BITMAP_DIRECTORY, header.bitmaps[2], header.bitmaps[1])

    # ---- Changes

    def write(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on, also behind the end of the disk.  Raises OSError."""
        cursor, length = Cursor(buffers), total(buffers)
        self.updater.behind = 0
        while length:
            self.make_room()
            count = self.updater.write_some(offset, length, cursor)
            offset += count
            length -= count

    def forget(self, offset: int, length: int, reason: Reason = Reason.OTHER) -> None:
        """Let whole clusters be as if they had never been written, wherever they are: what is below shows again."""
        end = offset + length
        while offset < end:
            self.make_room()
            offset += self.updater.forget_some(offset, end - offset, reason)

    # ---- Order of writing

    def make_room(self) -> None:
        """Write tables where too many of them wait for it.  Raises OSError."""
        if self.mapping.cache.crowded or self.refcounts.crowded:
            self.write_tables()

    def write_tables(self) -> None:
        """Write tables in the order that :mod:`.image` gives, and settle what is no longer used.  Raises OSError."""
        lazy = self.image.lazy and self.image.is_dirty
        if self.refcounts.dirty and (not lazy or self.refcounts.crowded):
            self.refcounts.write_blocks()
        if self.mapping.dirty:
            self.flush_files()
            self.mapping.write_tables()
        self.flush_files()
        if self.refcounts.pending:
            self.compressed.forget()
            self._give_back(self.refcounts.settle())
        for offset, length in self.updater.take_freed_data():
            if self.options.discard_request:
                self.data.discard(offset, length)

    def _give_back(self, free: list[tuple[int, int, Reason]]) -> None:
        options = self.options
        wanted = {
            Reason.REQUEST: options.discard_request,
            Reason.SNAPSHOT: options.discard_snapshot,
            Reason.OTHER: options.discard_other,
            Reason.RESIZE: True,
        }
        for offset, length, reason in free:
            if wanted[reason]:
                self.file.discard(offset, length)

    def flush_files(self) -> None:
        """Return when all that was written to the files is on stable storage.  Raises OSError."""
        self.file.flush()
        if self.stored_in is not self.file:
            self.stored_in.flush()

    def settle(self) -> None:
        """Write all tables, and count down all that is no longer used.  Raises OSError."""
        while self.mapping.dirty or self.refcounts.dirty or self.refcounts.pending:
            self.write_tables()
            # Counting down changes tables once more; with lazy refcounts that was put off.
            self.refcounts.write_blocks()
        self.flush_files()

    def make_clean(self) -> None:
        """Leave an image behind that anybody may open.  Raises OSError."""
        self.settle()
        self.image.set_dirty(False)

    @contextmanager
    def rearranging(self) -> Iterator[None]:
        """Within this, refcounts and tables are changed as a whole; at its start and end they are all on the disk.

        After an error, what is in memory is taken from the disk again.
        """
        self.image.check_changeable()
        self.settle()
        try:
            with self.image.inconsistent(self.settle):
                yield
        except Exception:
            if not self.image.broken:
                self._recover()
            raise

    def _recover(self) -> None:
        """An operation on the whole image has failed half-way: what is on the disk counts, and has to be in order."""
        from pyvm.block.drivers.qcow2.check import ALL, check

        self.file.flush()
        check(self, ALL)
        self.take_from_disk()

    def take_from_disk(self) -> None:
        """Forget all tables in memory that do not agree with the disk.  Raises BlockError."""
        header = self.header
        self.mapping.forget_changes()
        self.refcounts.reload()
        self.image.l1 = self.image.read_table("L1 table", header.l1_table_offset, header.l1_size)
        self.compressed.forget()
        self.read_directories()
        self.map_tables()

    # ---- The disk as others see it

    def changing_data(self) -> None:
        """What follows changes what the guest sees: bitmaps that should follow that are out of date.

        Raises OSError.
        """
        self.image.check_changeable()
        stale = [it for it in self.bitmaps if (it.auto or self.bitmaps_kept) and not it.in_use]
        if not stale:
            return
        for bitmap in stale:
            bitmap.flags |= BITMAP_IN_USE
            self.file.write(bitmap.flags_offset, BITMAP_FLAGS.pack(bitmap.flags))
        # What the guest writes must not come first.
        self.file.flush()
        if self.bitmaps_kept:
            return
        names = ", ".join(f"'{bitmap.name}'" for bitmap in stale)
        self.warn(f"{self.file.filename}: bitmaps are not updated by pyvm yet and now inconsistent: {names}")

    def put_snapshots(self, snapshots: list[Snapshot]) -> None:
        """Write another snapshot table, and let the header name it.  Raises OSError, or BlockError."""
        header, image = self.header, self.image
        data = encode_snapshots(snapshots, header.size)
        old_offset, old_bytes = header.snapshots_offset, self.snapshots_bytes
        offset = 0
        if data:
            offset = self.refcounts.allocate_run(image.clusters(len(data)))
            try:
                self.file.write(offset, data)
                self.refcounts.write_blocks()
            except OSError:
                self.refcounts.undo(offset, image.clusters(len(data)))
                raise
        header.snapshots_offset, header.nb_snapshots = offset, len(snapshots)
        image.commit_fields()
        self.snapshots, self.snapshots_bytes = snapshots, len(data)
        image.tables.move_range(Kind.SNAPSHOT_TABLE, offset, len(data))
        image.tables.remove_ranges(Kind.INACTIVE_L1)
        for it in snapshots:
            image.tables.add_range(Kind.INACTIVE_L1, it.l1_table_offset, it.l1_size * 8)
        if old_bytes:
            self.refcounts.release(old_offset, old_bytes)

    def is_preallocated(self) -> bool:
        """Whether much of what has a place on the host has no data there: found out once, as far as needed."""
        if self._preallocated is None:
            self._preallocated = self._find_preallocation()
        return self._preallocated

    def _find_preallocation(self) -> bool:
        taken = self.file.allocated_bytes()
        if taken is None:
            return False
        present = self.image.clusters(taken)
        threshold = max(present * 10 // 9, present + 2)
        refcounts = getattr(self, "refcounts", None) or Refcounts(self.image, 0)
        cluster, end, used = 0, self.image.clusters(self.file.length()), 0
        while cluster < end and used < threshold:
            stop, counts = refcounts.slice_from(cluster)
            if counts is not None:
                counts = counts[: end - cluster]
                used += len(counts) - counts.count(0)
            cluster = stop
        return used >= threshold

    def view(self, l1: array[int]) -> Reader:
        """Return what reads through another L1 table."""
        mapping = Mapping(self.image, cache_bytes=_VIEW_CACHE, l1=l1)
        compressed = CompressedClusters(self.file, self.header.cluster_bits, self.header.compression_type)
        reader = Reader(mapping, compressed, self.data, self.backing, self.header.cluster_size)
        reader.encrypted, reader.uses_disk_offsets = self.reader.encrypted, self.reader.uses_disk_offsets
        return reader

    def l1_entries(self, size: int) -> int:
        """Return how many L1 entries a disk of `size` bytes needs."""
        return -(-size // self.mapping.table_span())

    def grow_l1(self, entries: int) -> None:
        """Let the L1 table have at least so many entries.  Raises OSError."""
        image = self.image
        if entries <= len(image.l1):
            return
        self.settle()
        self.mapping.put_l1(image.l1 + array("Q", bytes(8 * (entries - len(image.l1)))), self.refcounts)

    def tick(self) -> None:
        """Count a request; now and then drop what was not used for a while from the caches."""
        self._requests += 1
        if self._requests < _CLEAN_UP_EVERY:
            return
        self._requests = 0
        now = time.monotonic()
        if self.options.clean_interval and now - self._cleaned >= self.options.clean_interval:
            self._cleaned = now
            self.mapping.cache.clean_up()
            if not self.file.read_only:
                self.refcounts.clean_up()
