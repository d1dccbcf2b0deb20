"""What is copied to a backup, by its job or before the guest overwrites it: whole clusters, each once."""

from __future__ import annotations

from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.errors import BlockError
from pyvm.block.jobs.read_ahead import CopyError, ReadAhead, file_of, plain_file
from pyvm.block.node import Node
from pyvm.block.status import ChainExtent, chain_status, skip_filters
from pyvm.block.vectors import is_zero

DEFAULT_CLUSTER = 64 << 10


def cluster_of(target: Node) -> int:
    """Return the unit of copies to `target`: nothing smaller would leave the rest of its clusters as it is."""
    return max(DEFAULT_CLUSTER, target.cluster_size or 0)


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
        self._data = bytearray()
        self.on_host = False
        """Whether the host is to copy from file to file, which may share blocks then."""

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

    def copy(self, offset: int, end: int, limit: int, ahead: ReadAhead | None = None) -> int | None:
        """Copy the first run of wanted clusters in a range, at most `limit` bytes; return how much, None for nothing.

        A job that goes through all of the disk reads with its `ahead`.  Raises CopyError; what failed is still wanted.
        """
        most = max(limit // self.cluster, 1) * self.cluster
        # What is wanted behind that may be read ahead.
        found = self.wanted.run(offset // self.cluster * self.cluster, most if ahead is None else 2 * most)
        if found is None or found[0] >= end:
            return None
        start, length = found
        # The run may begin in the middle where the range does; clusters are copied as a whole.
        until = min(start + length, -(-end // self.cluster) * self.cluster, self.source.size)
        length = self._copy(start, min(until - start, most), until, ahead)
        self.wanted.clear(start, length)
        self.copied += length
        return length

    def _copy(self, start: int, length: int, until: int, ahead: ReadAhead | None) -> int:
        of_read = True
        try:
            look = chain_status if ahead is None else ahead.status
            extent = look(self.source, start, length)
            zeros = extent.zero or not extent.present
            whole = extent.length // self.cluster * self.cluster
            if extent.length < length:
                zeros = zeros and whole > 0
                length = max(whole, self.cluster) if whole or zeros else min(self.cluster, length)
            if zeros:
                of_read = False
                self.target.write_zeroes(start, length, True)
                return length
            if self.on_host and length <= extent.length and self._copy_on_host(start, length, extent):
                return length
            if ahead is not None and not self.compress:
                ahead.copy(self.source, start, length, until, self.target)
                return length
            view = self._read(start, length, until, ahead)
            of_read = False
            self._write(start, view)
        except (OSError, BlockError) as error:
            raise CopyError(error, of_read) from None
        return length

    def _read(self, start: int, length: int, until: int, ahead: ReadAhead | None) -> memoryview:
        if ahead is not None:
            return ahead.read(self.source, start, length, until)
        if len(self._data) < length:
            self._data = bytearray(length)
        view = memoryview(self._data)[:length]
        self.source.readv(start, (view,))
        return view

    def _copy_on_host(self, start: int, length: int, extent: ChainExtent) -> bool:
        """Let the host copy; return whether it could."""
        place, target = file_of(self.source, extent), self.target
        into = plain_file(target.file) if target.driver == "raw" else None
        begin = target.block_status(0, target.size).offset if into is not None else None
        if place is None or into is None or begin is None or self.compress or _watched(target):
            return False
        file, offset = place
        target.note_write(start + length)
        done = 0
        try:
            while done < length:
                count = into.copy_range(file, offset + done, begin + start + done, length - done)
                if not count:
                    return False  # behind the end of the file; what is read there are zeros
                done += count
        except OSError:
            self.on_host = False  # between these files it cannot
            return False
        return True

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


def _watched(node: Node) -> bool:
    """Return whether more is to be done about a write to a raw image than to write to its file."""
    watched = any(it.dirty_bitmaps or it.detect_zeroes != "off" for it in (node, node.file) if it is not None)
    return watched or node.inactive or bool(node.write_threshold)
