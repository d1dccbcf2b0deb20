"""Protocol drivers *host_device* and *host_cdrom*: a block or character device of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.file import make as make_file
from pyvm.block.errors import BlockError
from pyvm.block.node import Extent, Node, Preallocation

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_RANGE = struct.Struct("@QQ")
# linux/fs.h and linux/cdrom.h
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_BLKFLSBUF = 0x1261
_CDROMEJECT = 0x5309
_CDROMCLOSETRAY = 0x5319
_CDROM_DRIVE_STATUS = 0x5326
_CDROM_LOCKDOOR = 0x5329
_CDS_DISC_OK = 4
_CDSL_CURRENT = 0x7FFFFFFF


class HostDeviceNode(FileNode):
    """A block or character device."""

    driver: ClassVar[str] = "host_device"
    _KIND: ClassVar[str] = "either a character or block device"

    @staticmethod
    def _is_mine(mode: int) -> bool:
        return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)

    def _punch(self, offset: int, length: int) -> None:
        self._written = True
        fcntl.ioctl(self._fd, _BLKDISCARD, _RANGE.pack(offset, length))

    def _try_zero(self, mode: int, offset: int, length: int) -> bool:
        # A device that discards need not show zeros afterwards; this knows, and discards where that does it.
        del mode
        try:
            self._written = True
            fcntl.ioctl(self._fd, _BLKZEROOUT, _RANGE.pack(offset, length))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            return False
        return True

    def block_status(self, offset: int, length: int) -> Extent:
        """A device has data everywhere, as far as anybody knows."""
        return Extent(min(length, self.size - offset), True, False, True, offset, self)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """A device has the size that it has.  Raises BlockError for another one."""
        if preallocation != "off":
            raise BlockError(f"Preallocation mode '{preallocation}' unsupported for this non-regular file")
        present = self.length()
        if size != present and exact:
            raise BlockError("Cannot resize device files")
        if size > present:
            raise BlockError("Cannot grow device files")

    def allocated_bytes(self) -> int | None:
        """A device takes no room of a file system."""
        return 0

    @property
    def has_zero_init(self) -> bool:
        """A device may have been used before."""
        return False

    def drop_cache(self) -> None:
        """Forget what the host's page cache has of the device."""
        super().drop_cache()
        with suppress(OSError):
            fcntl.ioctl(self._fd, _BLKFLSBUF, 0)


class HostCdromNode(HostDeviceNode):
    """A CD-ROM drive.  It can be opened without a medium, and is empty then."""

    driver: ClassVar[str] = "host_cdrom"

    @property
    def present(self) -> bool:
        """Whether there is a medium in the drive."""
        try:
            return fcntl.ioctl(self._fd, _CDROM_DRIVE_STATUS, _CDSL_CURRENT) == _CDS_DISC_OK
        except OSError:
            return self.length() > 0

    @property
    def size(self) -> int:
        """Length of the medium in bytes; 0 without one."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            return 0

    def eject(self, open: bool) -> None:  # noqa: A002 - the tray
        """Open or close the tray.  A drive that cannot leaves it."""
        with suppress(OSError):
            fcntl.ioctl(self._fd, _CDROMEJECT if open else _CDROMCLOSETRAY, 0)

    def lock(self, locked: bool) -> None:
        """Lock the tray, or unlock it."""
        with suppress(OSError):
            fcntl.ioctl(self._fd, _CDROM_LOCKDOOR, int(locked))


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> FileNode:
    """Open a device of the host; see :mod:`pyvm.block.options`."""
    return make_file(settings, own, children, graph, HostDeviceNode)


def make_cdrom(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> FileNode:
    """Open a CD-ROM drive of the host; see :mod:`pyvm.block.options`."""
    return make_file(settings, own, children, graph, HostCdromNode)
