"""Locks on host files, by which programs that use one image find out about each other.

The bytes are QEMU's: a permission that is used is a shared lock on byte 100 + its bit, one that is not shared with
others a shared lock on byte 200 + its bit.  Whoever finds the opposite byte locked by somebody else must not go on.
The locks belong to the open file (`F_OFD_SETLK`), so they also keep two disks of one machine apart.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from pyvm.block.errors import BlockError
from pyvm.block.node import ALL_PERMISSIONS, Access, Permission

_USED_BASE = 100
_UNSHARED_BASE = 200
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid."""
_SEEK_SET = 0
_NAMES = {
    Permission.CONSISTENT_READ: "consistent read",
    Permission.WRITE: "write",
    Permission.WRITE_UNCHANGED: "write unchanged",
    Permission.RESIZE: "resize",
}
_NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system answers that knows no locks; QEMU goes on without as well."""


def lock_image(descriptor: int, path: str, access: Access) -> None:
    """Take the locks of `access` on a file.  Raises BlockError where another user of the file stands against it."""
    unshared = ALL_PERMISSIONS & ~access.shared
    try:
        for permission in _NAMES:
            if permission & access.used:
                _lock(descriptor, _byte(_USED_BASE, permission))
            if permission & unshared:
                _lock(descriptor, _byte(_UNSHARED_BASE, permission))
        for permission, name in _NAMES.items():
            if permission & access.used and _locked_by_others(descriptor, _byte(_UNSHARED_BASE, permission)):
                raise _conflict(f'Failed to get "{name}" lock', path)
        for permission, name in _NAMES.items():
            if permission & unshared and _locked_by_others(descriptor, _byte(_USED_BASE, permission)):
                raise _conflict(f'Failed to get shared "{name}" lock', path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise BlockError(f"Could not lock '{path}': {error.strerror}") from None


def _conflict(what: str, path: str) -> BlockError:
    return BlockError(f"{what}\nIs another process using the image [{path}]?")


def _byte(base: int, permission: Permission) -> int:
    return base + permission.bit_length() - 1


def _lock(descriptor: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, _SEEK_SET, byte, 1, 0))


def _locked_by_others(descriptor: int, byte: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, _SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
