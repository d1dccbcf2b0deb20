"""Locks on host files, by which programs that use one image find out about each other.

The bytes are QEMU's: a permission that is used is a shared lock on byte 100 + its bit, one that is not shared with
others a shared lock on byte 200 + its bit.  Whoever finds the opposite byte locked by somebody else must not go on.
The locks belong to the open file (`F_OFD_SETLK`), so they also keep two disks of one machine apart.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from contextlib import suppress

from pyvm.block.errors import BlockError
from pyvm.block.node import PERMISSION_NAMES, Access, Permission

_USED_BASE = 100
_UNSHARED_BASE = 200
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid."""
_SEEK_SET = 0
_NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system answers that knows no locks; QEMU goes on without as well."""


class ImageLocks:
    """The locks on one open file.  With `required`, a file system without locks is an error."""

    def __init__(self, descriptor: int, path: str, *, required: bool = False) -> None:
        self._descriptor = descriptor
        self._path = path
        self._required = required
        self._held: frozenset[int] = frozenset()

    def change(self, access: Access) -> None:
        """Hold the locks of `access` instead of those held.

        Raises BlockError, with nothing changed, where another user of the file stands against it.
        """
        wanted = _bytes(access)
        try:
            for byte in sorted(wanted - self._held):
                _set(self._descriptor, byte, fcntl.F_RDLCK)
            self._check(access)
            for byte in self._held - wanted:
                _set(self._descriptor, byte, fcntl.F_UNLCK)
        except BlockError:
            self._undo(wanted)
            raise
        except OSError as error:
            self._undo(wanted)
            if error.errno not in _NO_LOCKS or self._required:
                raise BlockError(f"Could not lock '{self._path}': {error.strerror}") from None
            return
        self._held = wanted

    def take_over(self, other: ImageLocks) -> None:
        """Hold what `other` does, which is about to be gone: another descriptor of the same file, for the same user."""
        for byte in other._held:
            with suppress(OSError):
                _set(self._descriptor, byte, fcntl.F_RDLCK)
        self._held = other._held

    def _undo(self, wanted: frozenset[int]) -> None:
        for byte in wanted - self._held:
            with suppress(OSError):
                _set(self._descriptor, byte, fcntl.F_UNLCK)

    def _check(self, access: Access) -> None:
        for permission, name in PERMISSION_NAMES.items():
            if permission & access.used and _locked_by_others(self._descriptor, _byte(_UNSHARED_BASE, permission)):
                raise self._conflict(f'Failed to get "{name}" lock')
        for permission, name in PERMISSION_NAMES.items():
            if not permission & access.shared and _locked_by_others(self._descriptor, _byte(_USED_BASE, permission)):
                raise self._conflict(f'Failed to get shared "{name}" lock')

    def _conflict(self, what: str) -> BlockError:
        return BlockError(f"{what}\nIs another process using the image [{self._path}]?")


def lock_image(descriptor: int, path: str, access: Access) -> None:
    """Take the locks of `access` on a file.  Raises BlockError where another user of the file stands against it."""
    ImageLocks(descriptor, path).change(access)


def _bytes(access: Access) -> frozenset[int]:
    """Return the bytes that stand for `access`."""
    used = (_byte(_USED_BASE, it) for it in PERMISSION_NAMES if it & access.used)
    unshared = (_byte(_UNSHARED_BASE, it) for it in PERMISSION_NAMES if not it & access.shared)
    return frozenset((*used, *unshared))


def _byte(base: int, permission: Permission) -> int:
    return base + permission.bit_length() - 1


def _set(descriptor: int, byte: int, kind: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, _SEEK_SET, byte, 1, 0))


def _locked_by_others(descriptor: int, byte: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, _SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
