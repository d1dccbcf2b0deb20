"""Filter *blklogwrites*: writes go to the disk, and into a log from which they can be repeated in their order.

The log has the form of Linux' device mapper target log-writes, version 1 ("dm-log-writes", Documentation/admin-guide/
device-mapper/log-writes.rst): a super block in the first sector, then for each request an entry of one sector, with
its data behind it.  A flush makes the number of entries in the super block safe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import ALL_PERMISSIONS, Access, Child, Node, Permission, Role
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

MAGIC = 0x6A736677736872
VERSION = 1
SUPER = struct.Struct("<QQQI")
"""Magic number, version, number of entries, sector size."""
ENTRY = struct.Struct("<QQQQ")
"""First sector, number of sectors, flags, length of data that is no sector's."""
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_UPDATE_INTERVAL = 4096
_MAX_SECTOR = 1 << 23


class BlkLogWritesNode(FilterNode):
    """A filter in front of `file`, with the log in `log`."""

    driver: ClassVar[str] = "blklogwrites"

    def __init__(
        self, file: Node, log: Node, *, name: str, read_only: bool, sector: int, append: bool, interval: int
    ) -> None:
        """Begin a log, or go on with the one that is there; raises BlockError."""
        super().__init__(file, name=name, read_only=read_only)
        self.log = log
        self._sector = sector
        self._interval = interval
        self._entries = 0
        self._position = 1
        """The next sector of the log."""
        self._since_update = 0
        if append:
            self._go_on()
        self.children.append(Child(Role.DATA_FILE, log, "log"))

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self.log is old:
            self.log = new

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with the disk, and with the log, which nobody else writes."""
        if child.role is Role.DATA_FILE:
            wanted = Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE
            return Access(wanted, ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE))
        return super().child_access(child, used, shared)

    def _go_on(self) -> None:
        """Find the end of the log that is there."""
        magic, version, entries, sector = SUPER.unpack(self.log.head(SUPER.size).ljust(SUPER.size, b"\0"))
        if magic != MAGIC:
            raise BlockError("Could not read log superblock")
        if version != VERSION:
            raise BlockError(f"Unsupported log version {version}")
        if not _is_sector_size(sector):
            raise BlockError(f"Invalid sector size in log {sector}")
        self._sector = sector
        self._entries = entries
        for _ in range(entries):
            data = self.log.read(self._position * sector, ENTRY.size)
            _, count, flags, length = ENTRY.unpack(data)
            self._position += 1 + (0 if flags & DISCARD else count) + -(-length // sector)

    # ---- Requests

    def _note(self, offset: int, length: int, flags: int, write: Callable[[int], None] | None = None) -> None:
        """Add an entry, and its data if `write` puts that at the offset that it is given."""
        sector = self._sector
        entry = ENTRY.pack(offset // sector, -(-length // sector), flags, 0)
        self.log.write(self._position * sector, entry.ljust(sector, b"\0"))
        self._position += 1
        if write is not None:
            write(self._position * sector)
            self._position += -(-length // sector)
        self._entries += 1
        self._since_update += 1
        if flags & FLUSH or self._since_update >= self._interval:
            self._update()

    def _update(self) -> None:
        """Let the super block count all entries, once they are safe."""
        self._since_update = 0
        self.log.flush()
        super_block = SUPER.pack(MAGIC, VERSION, self._entries, self._sector)
        self.log.write(0, super_block.ljust(self._sector, b"\0"))
        self.log.flush()

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write, and note that with its data."""
        super().writev(offset, buffers)
        self._note(offset, total(buffers), 0, lambda place: self.log.writev(place, buffers))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros, and note that with as many zeros."""
        super().write_zeroes(offset, length, unmap)
        self._note(offset, length, 0, lambda place: self.log.write_zeroes(place, length, False))

    def discard(self, offset: int, length: int) -> None:
        """Give the range back, and note that."""
        super().discard(offset, length)
        self._note(offset, length, DISCARD)

    def flush(self) -> None:
        """Make everything safe, and note that."""
        super().flush()
        if not self.read_only:
            self._note(0, 0, FLUSH)

    def close(self) -> None:
        """Count all entries, and let both go."""
        try:
            if not self.read_only and self._since_update:
                self._update()
        finally:
            super().close()


def _is_sector_size(size: int) -> bool:
    return 0 < size < _MAX_SECTOR and not size & (size - 1)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> BlkLogWritesNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del graph
    append = bool(own.get("log-append", False))
    if append and "log-sector-size" in own:
        raise BlockError("log-append and log-sector-size are mutually exclusive")
    sector = int(own.get("log-sector-size", 512))
    if not _is_sector_size(sector):
        raise BlockError(f"Invalid log sector size {sector}")
    interval = int(own.get("log-super-update-interval", _UPDATE_INTERVAL))
    if not interval:
        raise BlockError(f"Invalid log superblock update interval {interval}")
    return BlkLogWritesNode(
        children["file"],
        children["log"],
        name=settings.name,
        read_only=settings.read_only,
        sector=sector,
        append=append,
        interval=interval,
    )
