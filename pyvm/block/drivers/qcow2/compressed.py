"""Compressed clusters ("Compressed Clusters Descriptor" of the specification): read, never written."""

from __future__ import annotations

import errno
import os
import zlib

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.structures import COMPRESSED_SECTOR, Compression

_CACHED_BYTES = 4 << 20
_WINDOW_BITS = -12
"""Raw deflate with the smallest window that an image may have been written with."""


class CompressedClusters:
    """Reads compressed clusters of `file`; keeps the last ones, because guests read them in pieces."""

    def __init__(self, file: FileNode, cluster_bits: int, compression: int) -> None:
        self._file = file
        self._size = 1 << cluster_bits
        self._offset_bits = 62 - (cluster_bits - 8)
        self._decompress = _zstd if compression == Compression.ZSTD else _deflate
        self._limit = max(_CACHED_BYTES >> cluster_bits, 1)
        self._cached: dict[int, bytes] = {}

    def place(self, entry: int) -> tuple[int, int]:
        """Return the host offset and the most bytes of what an L2 entry describes; it ends where a sector ends."""
        offset = entry & ((1 << self._offset_bits) - 1)
        sectors = ((entry & ((1 << 62) - 1)) >> self._offset_bits) + 1
        return offset, sectors * COMPRESSED_SECTOR - offset % COMPRESSED_SECTOR

    def read(self, entry: int) -> bytes:
        """Return a whole cluster.  Raises OSError for one that is broken."""
        cluster = self._cached.pop(entry, None)
        if cluster is None:
            offset, length = self.place(entry)
            cluster = self._decompress(bytes(self._file.read(offset, length)), self._size)
            if len(cluster) != self._size:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            while len(self._cached) >= self._limit:
                del self._cached[next(iter(self._cached))]
        self._cached[entry] = cluster
        return cluster

    def forget(self) -> None:
        """Drop what is kept: host clusters are about to be used for something else."""
        self._cached.clear()


def _deflate(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(_WINDOW_BITS).decompress(data, size)
    except zlib.error:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None


def _zstd(data: bytes, size: int) -> bytes:
    import zstandard

    # What follows the frame fills up the sector.
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=False)
    try:
        return reader.read(size)
    except zstandard.ZstdError:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
