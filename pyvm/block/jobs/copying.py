"""What is copied to a backup, by its job or before the guest overwrites it: whole clusters, each once."""

from __future__ import annotations

import errno

from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.status import chain_status, skip_filters
from pyvm.block.vectors import is_zero

DEFAULT_CLUSTER = 64 << 10


def cluster_of(target: Node) -> int:
    """Return the unit of copies to `target`: nothing smaller would leave the rest of its clusters as it is."""
    return max(DEFAULT_CLUSTER, target.cluster_size or 0)


class CopyError(Exception):
    """A copy has failed, at the source or at the target."""

    def __init__(self, error: OSError, of_read: bool) -> None:
        super().__init__(error.strerror)
        self.error = error
        self.of_read = of_read


class Copier:
    """Copies clusters of `source` to `target`; `wanted` says which are yet to be copied.

    Everything happens under the lock of the nodes' context.
    """

    def __init__(self, source: Node, target: Node) -> None:
        self.source = source
        self.target = target
        self.cluster = cluster_of(target)
        self.wanted = DirtyBitmap(source.size, self.cluster)
        self.copied = 0
        """How many bytes were copied."""
        self.compress = False
        self.layer_only = False
        """Whether only what the topmost layer of the source has is copied."""
        self._data = bytearray()

    def drop_unallocated(self, offset: int, length: int) -> int:
        """Want nothing from `offset` on that the topmost layer does not have; return how far this looked."""
        layer = skip_filters(self.source)
        assert layer is not None
        extent = layer.block_status(offset, length)
        end = offset + extent.length
        if extent.allocated:
            return -(-end // self.cluster) * self.cluster
        # A cluster of the copy with something in it is wanted.
        stop = end if end >= self.source.size else end // self.cluster * self.cluster
        if stop > offset:
            self.wanted.clear(offset, stop - offset)
            return stop
        return min(self._past_cluster(layer, offset), self.source.size)

    def _past_cluster(self, layer: Node, offset: int) -> int:
        """Look at one cluster of the copy that has several pieces; return its end."""
        end = min(offset + self.cluster, self.source.size)
        position = offset
        while position < end:
            extent = layer.block_status(position, end - position)
            if extent.allocated:
                return offset + self.cluster
            position += extent.length
        self.wanted.clear(offset, self.cluster)
        return offset + self.cluster

    def copy(self, offset: int, end: int, limit: int) -> int | None:
        """Copy the first run of wanted clusters in a range, at most `limit` bytes; return how much, None for nothing.

        Raises CopyError; what failed is still wanted.
        """
        found = self.wanted.run(offset // self.cluster * self.cluster, max(limit // self.cluster, 1) * self.cluster)
        if found is None or found[0] >= end:
            return None
        start, length = found
        # The run may begin in the middle where the range does; clusters are copied as a whole.
        length = min(length, -(-end // self.cluster) * self.cluster - start, self.source.size - start)
        length = self._copy(start, length)
        self.wanted.clear(start, length)
        self.copied += length
        return length

    def _copy(self, start: int, length: int) -> int:
        of_read = True
        try:
            extent = chain_status(self.source, start, length)
            zeros = extent.zero or not extent.present
            whole = extent.length // self.cluster * self.cluster
            if extent.length < length:
                zeros = zeros and whole > 0
                length = max(whole, self.cluster) if whole or zeros else min(self.cluster, length)
            if zeros:
                of_read = False
                self.target.write_zeroes(start, length, True)
                return length
            if len(self._data) < length:
                self._data = bytearray(length)
            view = memoryview(self._data)[:length]
            self.source.readv(start, (view,))
            of_read = False
            self._write(start, view)
        except (OSError, BlockError) as error:
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            raise CopyError(failure, of_read) from None
        return length

    def _write(self, start: int, view: memoryview) -> None:
        if not self.compress:
            self.target.writev(start, (view,))
            return
        unit = self.target.cluster_size or self.cluster
        for position in range(0, len(view), unit):
            part = view[position : position + unit]
            if is_zero((part,)):
                self.target.write_zeroes(start + position, len(part), True)
            else:
                self.target.write_compressed(start + position, part)
