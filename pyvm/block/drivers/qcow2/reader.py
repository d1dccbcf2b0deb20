"""Reading a qcow2 disk: the tables say where each part of it is."""

from __future__ import annotations

from threading import Lock

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2.compressed import CompressedClusters
from pyvm.block.drivers.qcow2.mapping import Kind, Mapping
from pyvm.block.node import Extent, Node
from pyvm.block.vectors import Buffers, Cursor, copy_in, fill_zero

if TYPE_CHECKING:
    from pyvm.block.drivers.encrypted import EncryptedData


class Reader:
    """Reads through the tables `mapping`, from `data`, compressed clusters, and `backing`.

    While nothing changes, several threads may use it at once.
    """

    def __init__(
        self, mapping: Mapping, compressed: CompressedClusters, data: Node, backing: Node | None, cluster_size: int
    ) -> None:
        self.data = data
        self.backing = backing
        self._mapping = mapping
        self._compressed = compressed
        self._in_cluster = cluster_size - 1
        self._lock = Lock()
        """For the cache of tables."""
        self.encrypted: EncryptedData | None = None
        """What `data` is, where it is encrypted."""
        self.uses_disk_offsets = False
        """Whether encrypted data is numbered by its place on the disk."""

    def readv(self, offset: int, length: int, buffers: Buffers) -> None:
        """Fill the buffers, of `length` bytes together, from `offset` on.  Raises OSError."""
        cursor = Cursor(buffers)
        with self._lock:
            extents = list(self._mapping.extents(offset, length))
        whole = self._in_cluster + 1
        clusters = self._compressed.read_all(
            [host for kind, host, size in extents if kind is Kind.COMPRESSED and size == whole]
        )
        for kind, host, size in extents:
            # Most requests are one extent.
            parts = buffers if size == length else cursor.take(size)
            if kind is Kind.DATA:
                self._read_data(host, offset, parts)
            elif kind is Kind.ZERO:
                fill_zero(parts)
            elif kind is Kind.BACKING:
                self._read_backing(offset, size, parts)
            elif size == whole:
                copy_in(parts, next(clusters))
            else:
                start = offset & self._in_cluster
                copy_in(parts, memoryview(self._compressed.read(host))[start : start + size])
            offset += size

    def _read_data(self, host: int, offset: int, buffers: Buffers) -> None:
        if self.encrypted is not None and self.uses_disk_offsets:
            self.encrypted.read_as(host, offset, buffers)
        else:
            self.data.debug_event("read_aio")
            self.data.readv(host, buffers)

    def _read_backing(self, offset: int, length: int, buffers: Buffers) -> None:
        """Read what the backing file has; behind its end there are zeros."""
        there = min(max(self.backing.size - offset, 0), length) if self.backing else 0
        if self.backing is None or not there:
            fill_zero(buffers)
        elif there == length:
            self.backing.readv(offset, buffers)
        else:
            cursor = Cursor(buffers)
            self.backing.readv(offset, cursor.take(there))
            fill_zero(cursor.take(length - there))

    def read(self, offset: int, length: int) -> bytearray:
        """Return a range of the disk, which may reach behind its end."""
        data = bytearray(length)
        self.readv(offset, length, (memoryview(data),))
        return data

    def status(self, offset: int, length: int) -> Extent:
        """Return how the first part of a range is there."""
        with self._lock:
            kind, host, size = self._mapping.status(offset, length)
        if kind is Kind.COMPRESSED:
            return Extent(size, True, False, True, None, None, compressed=True)
        has_place = (kind is Kind.DATA or bool(host)) and self.encrypted is None
        place, node = (host, self.data) if has_place else (None, None)
        if kind is Kind.BACKING:
            return Extent(size, False, self.backing is None, False, place, node)
        return Extent(size, kind is Kind.DATA, kind is Kind.ZERO, True, place, node)
