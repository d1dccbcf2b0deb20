"""The qcow2 node: a disk out of tables, data and a backing file."""

from __future__ import annotations

from typing import ClassVar

from pyvm.block.drivers.file import SECTOR, FileNode
from pyvm.block.drivers.qcow2.compressed import CompressedClusters
from pyvm.block.drivers.qcow2.image import Image, Warn
from pyvm.block.drivers.qcow2.mapping import Kind, Mapping
from pyvm.block.drivers.qcow2.refcounts import Refcounts
from pyvm.block.drivers.qcow2.structures import (
    ALL_AUTOCLEAR,
    BITMAP_AUTO,
    BITMAP_FLAGS,
    BITMAP_IN_USE,
    MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAPS,
    MAX_CLUSTER_BITS,
    MAX_SNAPSHOT_TABLE_BYTES,
    Autoclear,
    Bitmap,
    Header,
    Incompatible,
    Snapshot,
    parse_bitmaps,
    parse_header,
    parse_snapshots,
)
from pyvm.block.drivers.qcow2.update import Updater
from pyvm.block.errors import BlockError
from pyvm.block.node import Child, Node, Role
from pyvm.block.vectors import Buffers, Cursor, copy_in, fill_zero, total


def read_header(file: FileNode) -> Header:
    """Return the header of the image in `file`.  Raises BlockError."""
    try:
        return parse_header(file.head(1 << MAX_CLUSTER_BITS))
    except OSError as error:
        raise BlockError(f"Could not read qcow2 header: {error.strerror}") from None


class Qcow2Node(Node):
    """A qcow2 image in `file`, with the nodes for its data file and backing file where `header` names them.

    It closes them in the end, and when its own construction fails it leaves that to the caller.  `warn` is called with
    one line about damage, or about what a write makes out of date.  Raises :class:`BlockError` for a broken image, and
    where the image may not be written although `file` may.
    """

    driver: ClassVar[str] = "qcow2"

    def __init__(
        self,
        file: FileNode,
        header: Header,
        *,
        name: str = "",
        data_file: FileNode | None = None,
        backing: Node | None = None,
        warn: Warn,
    ) -> None:
        super().__init__(name, read_only=file.read_only, unmap=file.unmap)
        self._file = file
        self._header = header
        self._data = data_file or file
        self._backing = backing
        self._warn = warn
        self._size = header.size & -SECTOR
        self._raw_data = data_file is not None and bool(header.autoclear_features & Autoclear.RAW_DATA_FILE)
        self._image = Image(file, header, warn)
        self._mapping = Mapping(self._image)
        self._compressed = CompressedClusters(file, header.cluster_bits, header.compression_type)
        self.snapshots = self._read_snapshots()
        self._stale_bitmaps: list[Bitmap] = []
        """Bitmaps that are to follow the guest's writes, and will not."""
        if not self.read_only:
            self._open_for_writing()
        self.children.append(Child(Role.STORAGE, file))
        if data_file is not None:
            self.children.append(Child(Role.DATA_FILE, data_file))
        if backing is not None:
            self.children.append(Child(Role.BACKING, backing))

    # ---- Opening

    def _read_snapshots(self) -> list[Snapshot]:
        header = self._header
        if not header.nb_snapshots:
            return []
        length = min(self._file.length() - header.snapshots_offset, MAX_SNAPSHOT_TABLE_BYTES)
        data = self._image.read_bytes("snapshots", header.snapshots_offset, max(length, 0))
        return list(parse_snapshots(data, header.nb_snapshots, header.cluster_size))

    def _open_for_writing(self) -> None:
        header = self._header
        if header.incompatible_features & Incompatible.CORRUPT:
            raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
        if header.incompatible_features & Incompatible.DIRTY:
            raise BlockError(
                "qcow2: Image was not closed cleanly (dirty bit set); pyvm cannot repair its refcounts yet and opens it"
                " read-only only"
            )
        self._refcounts = Refcounts(self._image)
        others = [
            (f"inactive L1 table of snapshot '{it.name}'", it.l1_table_offset, it.l1_size * 8) for it in self.snapshots
        ]
        if header.nb_snapshots:
            others.append(("snapshot table", header.snapshots_offset, self.snapshots[-1].end))
        if header.bitmaps and header.autoclear_features & Autoclear.BITMAPS:
            count, size, offset = header.bitmaps
            others.append(("bitmap directory", offset, size))
            self._stale_bitmaps = [it for it in self._read_bitmaps(count, size, offset) if it.flags & BITMAP_AUTO]
        self._image.map_tables(self._refcounts.table, others)
        self._updater = Updater(
            self._image,
            self._data,
            self._mapping,
            self._refcounts,
            self._compressed,
            read_disk=self._read_beyond,
            has_backing=self._backing is not None,
        )
        self._clear_features()

    def _read_bitmaps(self, count: int, size: int, offset: int) -> list[Bitmap]:
        if count > MAX_BITMAPS or size > MAX_BITMAP_DIRECTORY_BYTES or offset % self._header.cluster_size:
            raise BlockError("Broken bitmap directory")
        return list(parse_bitmaps(self._image.read_bytes("bitmap directory", offset, size), count, offset))

    def _clear_features(self) -> None:
        """Say that nobody looked after features that are not known here."""
        known = ALL_AUTOCLEAR if self._header.external_data else ALL_AUTOCLEAR - int(Autoclear.RAW_DATA_FILE)
        if self._header.autoclear_features & ~known:
            self._header.autoclear_features &= known
            try:
                self._image.write_features()
                self._file.flush()
            except OSError as error:
                raise BlockError(f"Could not update qcow2 header: {error.strerror}") from None

    # ---- Reading

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        length = total(buffers)
        self._image.check_usable()
        self.check_range(offset, length)
        self._read(offset, length, buffers)

    def _read(self, offset: int, length: int, buffers: Buffers) -> None:
        cursor = Cursor(buffers)
        for kind, host, size in self._mapping.extents(offset, length):
            # Most requests are one extent.
            parts = buffers if size == length else cursor.take(size)
            if kind is Kind.DATA:
                self._data.readv(host, parts)
            elif kind is Kind.ZERO:
                fill_zero(parts)
            elif kind is Kind.BACKING:
                self._read_backing(offset, size, parts)
            else:
                start = offset & (self._header.cluster_size - 1)
                copy_in(parts, memoryview(self._compressed.read(host))[start : start + size])
            offset += size

    def _read_backing(self, offset: int, length: int, buffers: Buffers) -> None:
        """Read what the backing file has; behind its end there are zeros."""
        there = min(max(self._backing.size - offset, 0), length) if self._backing else 0
        if self._backing is None or not there:
            fill_zero(buffers)
        elif there == length:
            self._backing.readv(offset, buffers)
        else:
            cursor = Cursor(buffers)
            self._backing.readv(offset, cursor.take(there))
            fill_zero(cursor.take(length - there))

    def _read_beyond(self, offset: int, length: int) -> bytearray:
        """Read in whole clusters: the last one may reach behind the end of the disk."""
        data = bytearray(length)
        self._read(offset, length, (memoryview(data),))
        return data

    # ---- Writing

    def _begin_change(self, offset: int, length: int) -> None:
        self._image.check_usable()
        self.check_write(offset, length)
        if self._stale_bitmaps and length:
            self._outdate_bitmaps()

    def _outdate_bitmaps(self) -> None:
        """Mark the bitmaps that miss what is about to be written; what the guest writes must not come first."""
        for bitmap in self._stale_bitmaps:
            if not bitmap.flags & BITMAP_IN_USE:
                self._file.write(bitmap.flags_offset, BITMAP_FLAGS.pack(bitmap.flags | BITMAP_IN_USE))
        self._file.flush()
        names = ", ".join(f"'{bitmap.name}'" for bitmap in self._stale_bitmaps)
        self._stale_bitmaps = []
        self._warn(f"{self._file.path}: bitmaps are not updated by pyvm yet and now inconsistent: {names}")

    def _make_room(self) -> None:
        if self._mapping.cache.crowded or self._refcounts.crowded:
            self._write_tables()

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        length = total(buffers)
        self._begin_change(offset, length)
        cursor = Cursor(buffers)
        while length:
            self._make_room()
            count = self._updater.write_some(offset, length, cursor)
            offset += count
            length -= count

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it takes no room."""
        self._begin_change(offset, length)
        if not length:
            return
        if self._raw_data:
            self._data.write_zeroes(offset, length, unmap)
        unmap = unmap and self.unmap
        if self._header.version < 3:
            self._zero_version_2(offset, length, unmap)
        else:
            self._zero(offset, length, unmap)

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        cluster_size = self._header.cluster_size
        stop = offset + length
        end = self._end(stop)
        while offset < stop:
            self._make_room()
            edge = -offset % cluster_size or (end - offset) & -cluster_size
            step = min(edge, end - offset) or end - offset
            count = self._updater.zero_some(offset, step, unmap)
            if not count:
                count = min(step, self._size - offset)
                self._write_zeros(offset, count)
            offset += count

    def _end(self, end: int) -> int:
        """Return `end`, or the end of the last cluster for the end of the disk: nothing is behind that."""
        return -(-end // self._header.cluster_size) * self._header.cluster_size if end == self._size else end

    def _zero_version_2(self, offset: int, length: int, unmap: bool) -> None:
        """Without zero clusters, zeros have to be written, unless there is nothing below that would show."""
        end = offset + length
        if unmap and self._backing is None:
            start, stop = self._whole_clusters(offset, end)
            if start < stop:
                self._write_unless_zero(offset, start)
                self._forget(start, stop)
                offset = min(stop, end)
        self._write_unless_zero(offset, end)

    def _write_unless_zero(self, offset: int, end: int) -> None:
        """Write zeros where there is data, a cluster or less at a time."""
        for kind, _, size in list(self._mapping.extents(offset, end - offset)) if offset < end else []:
            if self._backing is not None or kind is not Kind.BACKING:
                self._write_zeros(offset, size)
            offset += size

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, 1 << 20)))
        end = offset + length
        while offset < end:
            self.writev(offset, (zeros[: end - offset],))
            offset += min(len(zeros), end - offset)

    def _whole_clusters(self, offset: int, end: int) -> tuple[int, int]:
        cluster_size = self._header.cluster_size
        return -(-offset // cluster_size) * cluster_size, self._end(end) // cluster_size * cluster_size

    def _forget(self, offset: int, end: int) -> None:
        while offset < end:
            self._make_room()
            offset += self._updater.forget_some(offset, end - offset)

    def discard(self, offset: int, length: int) -> None:
        """Give whole clusters back, where that was asked for; they read as zeros then."""
        self._begin_change(offset, 0)
        self.check_write(offset, length)
        if not self.unmap or self._raw_data:
            return
        start, stop = self._whole_clusters(offset, offset + length)
        if start >= stop:
            return
        self._begin_change(offset, length)
        if self._header.version >= 3:
            self._zero(start, min(stop, self._size) - start, True)
        elif self._backing is None:
            self._forget(start, stop)

    # ---- Stable storage

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        if self.read_only:
            return
        self._image.check_usable()
        self._write_tables()

    def _write_tables(self) -> None:
        """Write tables in the order that :mod:`.image` gives, and settle what is no longer used."""
        if self._refcounts.dirty:
            self._refcounts.write_blocks()
        if self._mapping.dirty:
            self._flush_data()
            self._mapping.write_tables()
        self._flush_data()
        if self._refcounts.pending:
            self._compressed.forget()
            for offset, length in self._refcounts.settle():
                if self.unmap:
                    self._file.discard(offset, length)

    def _flush_data(self) -> None:
        self._file.flush()
        if self._data is not self._file:
            self._data.flush()

    def close(self) -> None:
        """Write what is left, so that nothing is leaked; errors stay silent, as nobody waits for the data."""
        if not self.read_only and self.children and not self._image.broken:
            try:
                self._write_tables()
                self._write_tables()
            except OSError as error:
                self._warn(f"{self._file.path}: closing the image: {error.strerror}")
        super().close()
