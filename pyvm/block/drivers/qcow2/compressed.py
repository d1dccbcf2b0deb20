"""Compressed clusters ("Compressed Clusters Descriptor" of the specification)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from threading import Lock

from pyvm.annotations import TYPE_CHECKING, Any
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COMPRESSED_SECTOR, Compression
from pyvm.block.node import Node

if TYPE_CHECKING:
    from zstandard import ZstdCompressor, ZstdDecompressor

_CACHED_BYTES = 4 << 20
_LONGEST_READ = 1 << 20
_WINDOW_BITS = -12
"""Raw deflate with the smallest window: every reader can take that apart."""
_ANY_WINDOW_BITS = -15
_MEMORY_LEVEL = 9

Decompress = Callable[[memoryview, int], bytes]


class CompressedClusters:
    """Compressed clusters of `file`; keeps the last ones that were read, because guests read them in pieces.

    Several threads may read, and compress, at once.
    """

    def __init__(self, file: Node, cluster_bits: int, compression: int) -> None:
        self._file = file
        self._size = 1 << cluster_bits
        self._offset_bits = 62 - (cluster_bits - 8)
        self._zstd = Zstd() if compression == Compression.ZSTD else None
        self._decompress: Decompress | None = None
        self._limit = max(_CACHED_BYTES >> cluster_bits, 1)
        self._cached: dict[int, bytes] = {}
        self._lock = Lock()
        """For what is kept."""

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

    # ---- Reading

    def read_all(self, entries: Sequence[int]) -> Iterator[bytes]:
        """Yield whole clusters, one for each entry.  Raises OSError for one that is broken.

        What is next to each other in the file is read at once.
        """
        at = 0
        while at < len(entries):
            cluster = self._cached.get(entries[at])
            if cluster is not None:
                yield cluster
                at += 1
                continue
            start, length = self.place(entries[at])
            places = [(start, length)]
            end = start + length
            for entry in entries[at + 1 :]:
                offset, length = self.place(entry)
                if not start <= offset <= end or offset + length > start + _LONGEST_READ:
                    break
                places.append((offset, length))
                end = max(end, offset + length)
            data = memoryview(self._file.read(start, end - start))
            for offset, length in places:
                yield self._unpack(data[offset - start : offset - start + length])
            at += len(places)

    def read(self, entry: int) -> bytes:
        """Return a whole cluster, and keep it for the next one who wants a part of it.  Raises OSError."""
        (cluster,) = self.read_all((entry,))
        with self._lock:
            # The newest is last.
            self._cached.pop(entry, None)
            while len(self._cached) >= self._limit:
                del self._cached[next(iter(self._cached))]
            self._cached[entry] = cluster
        return cluster

    def _unpack(self, data: memoryview) -> bytes:
        if self._decompress is None:
            self._decompress = self._zstd.decompress if self._zstd is not None else _find_inflate()
        cluster = self._decompress(data, self._size)
        if len(cluster) != self._size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return cluster

    def forget(self) -> None:
        """Drop what is kept: host clusters are about to be used for something else."""
        with self._lock:
            self._cached.clear()

    # ---- Compressing

    def compress(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Return a whole cluster in compressed form; None where that is not smaller.  May be called by any thread."""
        if self._zstd is not None:
            packed = self._zstd.compress(data)
        else:
            import zlib

            deflater = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
            packed = deflater.compress(data) + deflater.flush()
        return packed if len(packed) < self._size else None


def _find_inflate() -> Decompress:
    """Return what decompresses raw deflate, written with any window, as QEMU takes it too: the fastest there is."""
    import zlib

    library: Any = zlib
    # Not every kind of processor has it.
    with suppress(ImportError):
        library = import_module("isal.isal_zlib")
    begin, failure = library.decompressobj, library.error

    def inflate(data: memoryview, size: int) -> bytes:
        try:
            return bytes(begin(_ANY_WINDOW_BITS).decompress(data, size))
        except failure:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from None

    return inflate


class Zstd:
    """Compresses and decompresses with contexts that are used again, each by one thread at a time."""

    def __init__(self) -> None:
        self._compressors: list[ZstdCompressor] = []
        self._decompressors: list[ZstdDecompressor] = []

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return `data` as a frame."""
        context: ZstdCompressor | None = _take(self._compressors)
        if context is None:
            from zstandard import ZstdCompressor

            context = ZstdCompressor()
        packed = context.compress(data)
        self._compressors.append(context)
        return packed

    def decompress(self, data: memoryview, size: int) -> bytes:
        """Return at most `size` bytes of a frame; what follows it fills up the sector.  Raises OSError."""
        import zstandard

        context: ZstdDecompressor = _take(self._decompressors) or zstandard.ZstdDecompressor()
        try:
            if 0 < zstandard.frame_content_size(data) <= size:
                return context.decompress(data, max_output_size=size, allow_extra_data=True)
            return context.stream_reader(data, read_across_frames=False).read(size)
        except zstandard.ZstdError:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
        finally:
            self._decompressors.append(context)


def _take(contexts: list[Any]) -> Any:
    """Return one that nobody uses; None where there is none."""
    try:
        return contexts.pop()
    except IndexError:
        return None
