"""Internal snapshots: L1 tables of their own, which share L2 tables and data with the disk ("Snapshots").

What is shared has a refcount above 1 and no "copied" flag, so that a write makes a copy.  Both change for a whole disk
when a snapshot comes or goes; :meth:`.disk.Disk.rearranging` keeps a crash in between repairable.
"""

from __future__ import annotations

import errno
import os
import time
from array import array
from typing import TYPE_CHECKING

from pyvm.block.drivers.qcow2 import bitmaps, vmstate, walk
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.records import NO_ICOUNT, Snapshot
from pyvm.block.drivers.qcow2.refcounts import Reason
from pyvm.block.drivers.qcow2.structures import COPIED, MAX_L1_BYTES, MAX_SIZE, MAX_SNAPSHOTS, OFFSET_MASK
from pyvm.block.drivers.qcow2.tables import encode_entries
from pyvm.block.drivers.qcow2.tally import Tally
from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

_NAME_LIMIT = 255
_NOT_COPIED = ~COPIED & ((1 << 64) - 1)


def find(disk: Disk, id_or_name: str) -> Snapshot:
    """Return the snapshot with this ID, or with this name.  Raises BlockError."""
    for key in ("identifier", "name"):
        for snapshot in disk.snapshots:
            if getattr(snapshot, key) == id_or_name:
                return snapshot
    raise BlockError(f"Can't find snapshot '{id_or_name}'")


def find_exactly(disk: Disk, identifier: str | None, name: str | None) -> Snapshot:
    """Return the snapshot with this ID and this name, where they are given.  Raises BlockError."""
    for snapshot in disk.snapshots:
        if (identifier is None or snapshot.identifier == identifier) and (name is None or snapshot.name == name):
            return snapshot
    raise BlockError(f"Can't find the snapshot: ID '{identifier or ''}', name '{name or ''}'")


def create(
    node: Qcow2Node,
    name: str,
    *,
    vm_state_size: int = 0,
    vm_clock_nsec: int = 0,
    icount: int = NO_ICOUNT,
    date_sec: int | None = None,
    date_nsec: int | None = None,
) -> Snapshot:
    """Keep the disk as it is now, with the `vm_state_size` bytes of VM state that were written behind its end.

    Raises OSError, or BlockError.
    """
    disk = node.disk
    if len(disk.snapshots) >= MAX_SNAPSHOTS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if disk.header.external_data:
        # What is in another file has no refcounts, so nobody could tell that it is shared.
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    now = time.time_ns()
    with disk.rearranging():
        _share(disk, disk.image.l1)
        offset = _copy_l1(disk)
        disk.refcounts.write_blocks()
        _write_flags(disk)
        snapshot = Snapshot(
            _next_identifier(disk.snapshots),
            name[:_NAME_LIMIT],
            offset,
            len(disk.image.l1),
            now // 1_000_000_000 if date_sec is None else date_sec,
            now % 1_000_000_000 if date_nsec is None else date_nsec,
            vm_clock_nsec,
            vm_state_size,
            disk.header.size,
            icount,
        )
        disk.put_snapshots([*disk.snapshots, snapshot])
    disk.map_tables()
    if vm_state_size:
        vmstate.drop(node, vm_state_size)  # the next snapshot would have to share it
    return snapshot


def _copy_l1(disk: Disk) -> int:
    """Write the active L1 table a second time; return where it is, 0 where it is empty."""
    image = disk.image
    clusters = image.clusters(len(image.l1) * 8)
    if not clusters:
        return 0
    offset = disk.refcounts.allocate_run(clusters)
    # The flags of the active table say nothing about this one.
    disk.file.write(offset, encode_entries(array("Q", (entry & _NOT_COPIED for entry in image.l1)), 64))
    return offset


def _next_identifier(snapshots: list[Snapshot]) -> str:
    numbers = [int(it.identifier) for it in snapshots if it.identifier.isascii() and it.identifier.isdigit()]
    return str(max(numbers, default=0) + 1)


def _tables(disk: Disk, l1: array[int]) -> list[int]:
    """Return where the L2 tables of an L1 table are.  Raises OSError where one is named twice: it never is."""
    offsets = [offset for _, offset in walk.l2_tables(l1)]
    if len(set(offsets)) < len(offsets):
        disk.image.corruption("L1 table names an L2 table twice", fatal=False)
    return offsets


def _share(disk: Disk, l1: array[int]) -> None:
    """All that an L1 table names has one user more.  Raises OSError: EINVAL where a refcount has no room for it."""
    import numpy as np

    tally = Tally()
    own = []
    for offset in _tables(disk, l1):
        tally.add(walk.data_clusters(walk.read_table(disk.image, offset), disk.header))
        own.append(offset >> disk.header.cluster_bits)
    tally.add(np.array(own, np.uint64))
    disk.refcounts.add(*tally.totals())


def _release(disk: Disk, l1: array[int], reason: Reason) -> None:
    """All that an L1 table names has one user less."""
    import numpy as np

    own = []
    for offset in _tables(disk, l1):
        words = walk.read_table(disk.image, offset)
        disk.refcounts.release_all(walk.data_clusters(words, disk.header), reason)
        own.append(offset >> disk.header.cluster_bits)
    disk.refcounts.release_all(np.array(own, np.uint64), reason)


def _write_flags(disk: Disk) -> None:
    """Let the "copied" flags of the active tables say what the refcounts say, on the disk.  Raises OSError."""
    import numpy as np

    image, header, refcounts = disk.image, disk.header, disk.refcounts
    bits = header.cluster_bits
    disk.file.flush()
    for index, offset in walk.l2_tables(image.l1):
        words = walk.read_table(image, offset)
        entries = walk.entries(words, header)
        hosts = np.unique((entries & np.uint64(OFFSET_MASK)) >> np.uint64(bits))
        single = hosts[refcounts.counts(hosts) == 1] if len(hosts) else hosts
        changed = walk.set_copied(words, header, single)
        if not np.array_equal(changed, words):
            disk.file.write(offset, walk.encode_table(changed))
        image.l1[index] = offset | (COPIED if refcounts.count(offset >> bits) == 1 else 0)
    if image.l1:
        disk.file.write(header.l1_table_offset, encode_entries(image.l1, 64))
    disk.mapping.cache.clear()


def apply(node: Qcow2Node, snapshot: Snapshot) -> None:
    """Let the disk be as in the snapshot; what it was is lost.  Raises OSError, or BlockError."""
    disk = node.disk
    image, header = disk.image, disk.header
    old_size = header.size
    size = snapshot.disk_size if snapshot.disk_size is not None else old_size
    if header.external_data:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    if size > MAX_SIZE or disk.l1_entries(size) * 8 > MAX_L1_BYTES:
        raise BlockError(f"Snapshot '{snapshot.name}' is of a disk that is too large")
    if size != old_size:
        bitmaps.check_resizable(disk)
    disk.changing_data()
    kept = bitmaps.load_all(disk)
    with disk.rearranging():
        old = image.l1
        l1 = image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        _share(disk, l1)
        l1.extend(array("Q", bytes(8 * max(disk.l1_entries(size) - len(l1), 0))))
        # The size changes together with the table.
        header.size = size
        disk.mapping.put_l1(array("Q", (entry & _NOT_COPIED for entry in l1)), disk.refcounts)
        _release(disk, old, Reason.SNAPSHOT)
        disk.settle()
        _write_flags(disk)
    disk.map_tables()
    disk.compressed.forget()
    if size != old_size:
        bitmaps.store_resized(disk, kept)


def delete(disk: Disk, snapshot: Snapshot) -> None:
    """Forget a snapshot, and give back what only it had.  Raises OSError, or BlockError."""
    with disk.rearranging():
        l1 = disk.image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        disk.put_snapshots([it for it in disk.snapshots if it is not snapshot])
        _release(disk, l1, Reason.SNAPSHOT)
        if snapshot.l1_size:
            disk.refcounts.release(snapshot.l1_table_offset, snapshot.l1_size * 8, Reason.SNAPSHOT)
        disk.settle()
        _write_flags(disk)
    disk.map_tables()
