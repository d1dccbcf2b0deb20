"""Other sizes of a disk, preallocation, and emptying a layer."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvm.block.drivers.qcow2 import bitmaps, vmstate, walk
from pyvm.block.drivers.qcow2.refcounts import Reason
from pyvm.block.drivers.qcow2.structures import MAX_L1_BYTES, MAX_L1_ENTRIES, MAX_SIZE
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, Preallocation

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.disk import Disk
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

_SECTOR = 512
_ZEROS = 1 << 20


def truncate(node: Qcow2Node, size: int, preallocation: Preallocation) -> None:
    """Make the disk `size` bytes long.  Raises OSError, or BlockError."""
    disk = node.disk
    old = disk.header.size
    if size % _SECTOR:
        raise BlockError(f"The new size must be a multiple of {_SECTOR}")
    if preallocation not in ("off", "metadata", "falloc", "full"):
        raise BlockError(f"Unsupported preallocation mode '{preallocation}'")
    if disk.snapshots and disk.header.version < 3:
        raise BlockError("Can't resize a v2 image which has snapshots")
    if size < old and preallocation != "off":
        raise BlockError("Preallocation can't be used for shrinking an image")
    bitmaps.check_resizable(disk)
    entries = disk.l1_entries(size)
    if size > MAX_SIZE or entries > MAX_L1_ENTRIES or entries * 8 > MAX_L1_BYTES:
        raise BlockError("Failed to grow the L1 table: File too large")
    if size < old:
        _shrink(node, size)
    else:
        _grow(node, old, size, preallocation)


def _shrink(node: Qcow2Node, size: int) -> None:
    disk = node.disk
    header, image = disk.header, disk.image
    start = -(-size // header.cluster_size) * header.cluster_size
    kept = bitmaps.load_all(disk)
    disk.changing_data()
    # What is cut off, and the state of a VM behind it, goes first: nothing of it may show after another change.
    node.disk.forget(start, len(image.l1) * disk.mapping.table_span() - start, Reason.RESIZE)
    for number in range(disk.l1_entries(size), len(image.l1)):
        disk.mapping.drop_table(number, disk.refcounts, Reason.RESIZE)
    disk.settle()
    header.size = size
    image.commit_fields()
    bitmaps.store_resized(disk, kept)
    disk.refcounts.drop_empty_blocks()
    disk.settle()
    cut_file(node)
    if node.has_raw_data:
        disk.data.truncate(size)


def cut_file(node: Qcow2Node) -> None:
    """Let the file end behind its last cluster."""
    disk = node.disk
    end = (disk.refcounts.last_used(disk.image.clusters(disk.file.length())) + 1) << disk.header.cluster_bits
    if end < disk.file.length():
        _try_truncate(disk.file, end)


def _try_truncate(file: Node, size: int) -> None:
    try:
        file.truncate(size)
    except (BlockError, OSError):
        # What is behind the last cluster is of no use, but does no harm either.
        return


def _grow(node: Qcow2Node, old: int, size: int, preallocation: Preallocation) -> None:
    disk = node.disk
    header = disk.header
    entries = disk.l1_entries(size)
    if node.has_raw_data and preallocation == "off":
        # A raw data file has everything in its place.
        preallocation = "metadata"
    # Behind the disk there may be the state of a VM, which would show now.
    behind = vmstate.start(disk)
    span = disk.mapping.table_span()
    if len(disk.image.l1) * span > behind:
        node.disk.forget(behind, len(disk.image.l1) * span - behind)
    disk.grow_l1(entries)
    if node.has_raw_data and disk.data.length() < size:
        disk.data.truncate(size)
    old_end = -(-old // header.cluster_size) * header.cluster_size
    _clear_tail(node, old, min(old_end, size))
    kept = bitmaps.load_all(disk)
    disk.settle()
    header.size = size
    try:
        backing = disk.backing
        hidden = backing is not None and backing.size > old
        if hidden:
            # What the backing file has there must not come to light, nor what another one may have later.
            start = old & -_SECTOR
            stop = size if preallocation == "off" else min(old_end, size)
            node.write_zeroes(start, stop - start, False)
        if preallocation != "off":
            preallocate(node, old_end, size, preallocation, hidden=hidden)
        disk.settle()
        disk.image.commit_fields()
    except BaseException:
        header.size = old
        raise
    bitmaps.store_resized(disk, kept)


def _clear_tail(node: Qcow2Node, old: int, end: int) -> None:
    """What is in the last cluster behind the end of the disk was never the guest's: it may be anything."""
    start = old & -_SECTOR
    if start < end and node.disk.reader.status(start, end - start).data:
        node.write_tail(start, bytes(end - start))


def preallocate(node: Qcow2Node, start: int, end: int, mode: Preallocation, *, hidden: bool = False) -> None:
    """Give all clusters of a range a place on the host; with `falloc` and `full` that takes room there.

    With `hidden` they also hide what the backing file has.
    """
    disk = node.disk
    # What is in the file as zeros is something else when it is decrypted; version 2 cannot say that it is not to be.
    zero = disk.is_encrypted and disk.header.version >= 3 and not disk.header.extended_l2
    # A cluster without subclusters would let it show; others are data, or may be marked where no room is taken.
    zero = zero or (hidden and (disk.header.extended_l2 or (mode == "metadata" and disk.header.version >= 3)))
    offset = start
    while offset < end:
        disk.make_room()
        count, host, length = disk.updater.preallocate_some(offset, end - offset, zero=zero)
        if length and disk.is_encrypted and disk.header.version < 3:
            _write_zeros(disk, host, offset, length)
        elif length:
            _prepare(disk.data, host, length, mode)
        offset += count
    disk.settle()
    if disk.stored_in is disk.file:
        last = (disk.refcounts.last_used(1 << 62) + 1) << disk.header.cluster_bits
        if disk.file.length() < last:
            disk.file.truncate(last)
    elif disk.data.length() < end:
        disk.data.truncate(end)


def _write_zeros(disk: Disk, host: int, offset: int, length: int) -> None:
    """Let a range of the host have what zeros are at `offset` of an encrypted disk."""
    zeros = memoryview(bytes(min(_ZEROS, length)))
    for at in range(0, length, len(zeros)):
        count = min(len(zeros), length - at)
        disk.updater.write_at(host + at, offset + at, count, (zeros[:count],))


def _prepare(data: Node, host: int, length: int, mode: Preallocation) -> None:
    """Let a range of the host read as zeros, and take room as asked for."""
    if mode == "full":
        zeros = memoryview(bytes(min(_ZEROS, length)))
        end = host + length
        while host < end:
            count = min(len(zeros), end - host)
            data.writev(host, (zeros[:count],))
            host += count
    elif mode == "falloc":
        data.write_zeroes(host, length, False)
    else:
        # Behind the end of the file there are zeros anyway.
        used = min(length, data.length() - host)
        if used > 0:
            data.write_zeroes(host, used, True)


def make_empty(node: Qcow2Node) -> None:
    """Give back all that the active tables name; snapshots keep what they have.  Raises OSError."""
    import numpy as np

    disk = node.disk
    disk.changing_data()
    disk.file.debug_event("empty_image_prepare")
    with disk.rearranging():
        old = disk.image.l1
        disk.mapping.put_l1(array("Q", bytes(8 * disk.l1_entries(disk.header.size))), disk.refcounts)
        tables = []
        for _, offset in walk.l2_tables(old):
            words = walk.read_table(disk.image, offset)
            disk.refcounts.release_all(walk.data_clusters(words, disk.header))
            tables.append(offset >> disk.header.cluster_bits)
        disk.refcounts.release_all(np.array(tables, np.uint64))
    disk.map_tables()
    disk.compressed.forget()
    cut_file(node)
