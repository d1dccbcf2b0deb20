"""The state of a VM in a qcow2 image: data behind the end of the disk, in the active tables ("VM state").

It starts where the first L2 table does that the disk does not need.  A snapshot made afterwards has it; then it is
dropped from the active tables.
"""

from __future__ import annotations

import errno
import os

from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.structures import MAX_L1_BYTES, MAX_SIZE
from pyvm.block.vectors import Buffers, total


def start(disk: Disk) -> int:
    """Return where the state of a VM starts, as an offset on the disk."""
    return disk.l1_entries(disk.header.size) * disk.mapping.table_span()


def _place(disk: Disk, offset: int, length: int) -> int:
    first = start(disk) + offset
    if offset < 0 or first + length > MAX_SIZE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return first


def read(disk: Disk, offset: int, buffers: Buffers) -> None:
    """Fill the buffers with what is kept at `offset` of the state.  Raises OSError."""
    disk.image.check_usable()
    length = total(buffers)
    disk.reader.readv(_place(disk, offset, length), length, buffers)


def drop(disk: Disk, size: int) -> None:
    """Forget the first `size` bytes of the state: the disk does not need them.  Raises OSError."""
    cluster = disk.header.cluster_size
    disk.forget(start(disk), -(-size // cluster) * cluster)
    disk.settle()


def write(disk: Disk, offset: int, buffers: Buffers) -> None:
    """Write the state at `offset`.  Raises OSError."""
    length = total(buffers)
    if not length:
        return
    first = _place(disk, offset, length)
    entries = disk.l1_entries(first + length)
    if entries * 8 > MAX_L1_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    disk.grow_l1(entries)
    disk.write(first, buffers)
