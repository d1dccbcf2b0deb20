"""Compressed clusters ("Compressed Clusters Descriptor" of the specification)."""

from __future__ import annotations

import errno
import os
import zlib

from pyvm.block.drivers.qcow2.structures import COMPRESSED, COMPRESSED_SECTOR, Compression
from pyvm.block.node import Node

_CACHED_BYTES = 4 << 20
_WINDOW_BITS = -12
"""Raw deflate with the smallest window: every reader can take that apart."""
_MEMORY_LEVEL = 9


class CompressedClusters:
    """Compressed clusters of `file`; keeps the last ones that were read, because guests read them in pieces."""

    def __init__(self, file: Node, cluster_bits: int, compression: int) -> None:
        self._file = file
        self._size = 1 << cluster_bits
        self._offset_bits = 62 - (cluster_bits - 8)
        self._compression = compression
        self._decompress = _zstd if compression == Compression.ZSTD else _inflate
        self._limit = max(_CACHED_BYTES >> cluster_bits, 1)
        self._cached: dict[int, bytes] = {}

    def place(self, entry: int) -> tuple[int, int]:
        """Return the host offset and the most bytes of what an L2 entry describes; it ends where a sector ends."""
        offset = entry & ((1 << self._offset_bits) - 1)
        sectors = ((entry & ((1 << 62) - 1)) >> self._offset_bits) + 1
        return offset, sectors * COMPRESSED_SECTOR - offset % COMPRESSED_SECTOR

    def entry(self, offset: int, size: int) -> int | None:
        """Return the L2 entry for `size` bytes at a host offset; None where the offset is too large for one."""
        if offset + size > 1 << self._offset_bits:
            return None
        sectors = (offset + size - 1) // COMPRESSED_SECTOR - offset // COMPRESSED_SECTOR
        return COMPRESSED | sectors << self._offset_bits | offset

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

    def compress(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Return a whole cluster in compressed form; None where that is not smaller.  May be called by any thread."""
        if self._compression == Compression.ZSTD:
            import zstandard

            packed = zstandard.ZstdCompressor().compress(data)
        else:
            deflater = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
            packed = deflater.compress(data) + deflater.flush()
        return packed if len(packed) < self._size else None


def _inflate(data: bytes, size: int) -> bytes:
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
