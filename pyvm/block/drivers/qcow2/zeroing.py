"""Zeros in a qcow2 disk: as zero clusters where the format has them, as room given back, or as data."""

from __future__ import annotations

from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.mapping import Kind
from pyvm.block.drivers.qcow2.refcounts import Reason
from pyvm.block.status import chain_status

_MOST = 1 << 20
"""Most zeros in memory at once."""


def write_zeroes(disk: Disk, offset: int, length: int, unmap: bool) -> None:
    """Let the range read as zeros; with `unmap` it takes no room.  Raises OSError."""
    if disk.header.version < 3:
        _write_version_2(disk, offset, length, unmap)
    else:
        _write(disk, offset, length, unmap)


def has_whole_clusters(disk: Disk, offset: int, length: int) -> bool:
    """Whether there are clusters of which nothing is outside the range."""
    start, stop = _whole_clusters(disk, offset, offset + length)
    return start < stop


def discard(disk: Disk, offset: int, length: int) -> None:
    """Give the whole clusters of the range back; they read as zeros then, where that is possible.  Raises OSError."""
    start, stop = _whole_clusters(disk, offset, offset + length)
    if disk.header.version >= 3:
        _write(disk, start, min(stop, disk.size) - start, True)
    elif disk.backing is None:
        disk.forget(start, stop - start, Reason.REQUEST)


def _write(disk: Disk, offset: int, length: int, unmap: bool) -> None:
    cluster_size = disk.header.cluster_size
    stop = offset + length
    end = _end(disk, stop)
    while offset < stop:
        disk.make_room()
        edge = -offset % cluster_size or (end - offset) & -cluster_size
        step = min(edge, end - offset) or end - offset
        count = disk.updater.zero_some(offset, step, unmap)
        if not count:
            count = min(step, disk.size - offset)
            if not _zero_whole(disk, offset, count):
                _write_data(disk, offset, count)
        offset += count


def _zero_whole(disk: Disk, offset: int, length: int) -> bool:
    """Let a cluster read as zeros of which only a part shall, where the rest does so anyway."""
    size = disk.header.cluster_size
    start = offset - offset % size
    end = min(start + size, disk.size)
    if disk.mapping.extended or disk.mapping.status(start, end - start)[0] is not Kind.BACKING:
        return False
    if not _is_zero_below(disk, start, offset) or not _is_zero_below(disk, offset + length, end):
        return False
    return bool(disk.updater.zero_some(start, size, False))


def _is_zero_below(disk: Disk, start: int, end: int) -> bool:
    """Whether zeros show in a range that this image does not have."""
    below = disk.backing
    while below is not None and start < min(end, below.size):
        extent = chain_status(below, start, min(end, below.size) - start)
        if not extent.zero:
            return False
        start += extent.length
    return True


def _write_version_2(disk: Disk, offset: int, length: int, unmap: bool) -> None:
    """Without zero clusters, zeros have to be written, unless there is nothing below that would show."""
    end = offset + length
    if unmap and not _may_show_another(disk):
        start, stop = _whole_clusters(disk, offset, end)
        if start < stop:
            _write_unless_zero(disk, offset, start)
            disk.forget(start, stop - start, Reason.REQUEST)
            offset = min(stop, end)
    _write_unless_zero(disk, offset, end)


def _may_show_another(disk: Disk) -> bool:
    """Whether another image shows where this one has nothing: now, or when it is opened as its header says."""
    return disk.backing is not None or disk.header.backing_file is not None


def _write_unless_zero(disk: Disk, offset: int, end: int) -> None:
    """Write zeros where there is data, a cluster or less at a time."""
    for kind, _, size in list(disk.mapping.extents(offset, end - offset)) if offset < end else []:
        if _may_show_another(disk) or kind is not Kind.BACKING:
            _write_data(disk, offset, size)
        offset += size


def _write_data(disk: Disk, offset: int, length: int) -> None:
    zeros = memoryview(bytes(min(length, _MOST)))
    end = offset + length
    while offset < end:
        count = min(len(zeros), end - offset)
        disk.write(offset, (zeros[:count],))
        offset += count


def _end(disk: Disk, end: int) -> int:
    """Return `end`, or the end of the last cluster for the end of the disk: nothing is behind that."""
    return -(-end // disk.header.cluster_size) * disk.header.cluster_size if end == disk.size else end


def _whole_clusters(disk: Disk, offset: int, end: int) -> tuple[int, int]:
    cluster_size = disk.header.cluster_size
    return -(-offset // cluster_size) * cluster_size, _end(disk, end) // cluster_size * cluster_size
