"""Internal snapshots: L1 tables of their own, which share L2 tables and data with the disk ("Snapshots").

What is shared has a refcount above 1 and no "copied" flag, so that a write makes a copy.  Both change for a whole disk
when a snapshot comes or goes; :meth:`.disk.Disk.rearranging` keeps a crash in between repairable.
"""

from __future__ import annotations

import errno
import os
import time
from array import array

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2 import bitmaps, walk
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.records import NO_ICOUNT, Snapshot
from pyvm.block.drivers.qcow2.refcounts import Reason
from pyvm.block.drivers.qcow2.sharing import clear_copied, release, share, write_copied
from pyvm.block.drivers.qcow2.structures import COPIED, MAX_L1_BYTES, MAX_SIZE, MAX_SNAPSHOTS
from pyvm.block.drivers.qcow2.tables import encode_entries
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
    l1 = disk.image.l1
    # The VM state moves to the snapshot: the next one would have to share it.
    stays = disk.l1_entries(disk.header.size) if vm_state_size else len(l1)
    with disk.rearranging():
        share(disk, _tables(disk, l1, stays))
        offset = _copy_l1(disk)
        l1[stays:] = array("Q", bytes(8 * (len(l1) - stays)))
        disk.refcounts.write_blocks()
        disk.file.flush()
        clear_copied(disk)
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


def _tables(disk: Disk, l1: array[int], end: int | None = None) -> list[int]:
    """Return where the L2 tables of the first `end` entries of an L1 table are, or of all.

    Raises OSError where the L1 table names one twice: it never does.
    """
    tables = list(walk.l2_tables(l1))
    if len({offset for _, offset in tables}) < len(tables):
        disk.image.corruption("L1 table names an L2 table twice", fatal=False)
    return [offset for index, offset in tables if end is None or index < end]


def apply(node: Qcow2Node, snapshot: Snapshot, *, vm_state: bool = True) -> None:
    """Let the disk be as in the snapshot, with the VM state behind its end or not; what it was is lost.

    Raises OSError, or BlockError.
    """
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
        old = _tables(disk, image.l1)
        l1 = image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        if not vm_state:
            del l1[disk.l1_entries(size) :]
        new = _tables(disk, l1)
        # Those in both have one user more, and one less.
        both = set(old) & set(new)
        share(disk, [table for table in new if table not in both])
        l1.extend(array("Q", bytes(8 * max(disk.l1_entries(size) - len(l1), 0))))
        # The size changes together with the table.
        header.size = size
        disk.mapping.put_l1(array("Q", (entry & _NOT_COPIED for entry in l1)), disk.refcounts)
        release(disk, [table for table in old if table not in both], Reason.SNAPSHOT)
        clear_copied(disk)
    disk.map_tables()
    disk.compressed.forget()
    if size != old_size:
        bitmaps.store_resized(disk, kept)


def delete(disk: Disk, snapshot: Snapshot) -> None:
    """Forget a snapshot, and give back what only it had.  Raises OSError, or BlockError."""
    with disk.rearranging():
        l1 = disk.image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        disk.put_snapshots([it for it in disk.snapshots if it is not snapshot])
        release(disk, _tables(disk, l1), Reason.SNAPSHOT)
        if snapshot.l1_size:
            disk.refcounts.release(snapshot.l1_table_offset, snapshot.l1_size * 8, Reason.SNAPSHOT)
        disk.settle()
        write_copied(disk)
    disk.map_tables()
