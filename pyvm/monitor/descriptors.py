"""File descriptors that clients hand over: under names, each for one use, and in sets that files are opened from.

A set's number stands for a file under the name ``/dev/fdset/N``: whoever opens that gets a duplicate of the member of
the set that was opened for the same kind of access.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from pyvm.monitor.errors import QmpError
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

SET_PREFIX = "/dev/fdset/"
_NONE_SUPPLIED = "No file descriptor supplied via SCM_RIGHTS"


def first_fd(chardev: Chardev) -> int | None:
    """Return the first descriptor that the peer passed last and close the others; None where there is none."""
    fds = chardev.take_fds()
    for fd in fds[1:]:
        os.close(fd)
    return fds[0] if fds else None


def none_supplied() -> QmpError:
    """Return the error for a command that came without the descriptor that it needs."""
    return QmpError(_NONE_SUPPLIED)


class NamedFds:
    """The descriptors that one monitor's clients gave names to; whoever takes one closes it."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        """Keep `fd` under a name, in place of what had it; raises QmpError for a name that looks like a number."""
        if name[:1].isdecimal() and name[:1].isascii():
            os.close(fd)
            raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
        old = self._fds.pop(name, None)
        self._fds[name] = fd
        if old is not None:
            os.close(old)

    def take(self, name: str) -> int | None:
        """Give away the descriptor of that name, None where there is none."""
        return self._fds.pop(name, None)

    def require(self, name: str) -> int:
        """Give away the descriptor of that name; raises QmpError where there is none."""
        fd = self.take(name)
        if fd is None:
            raise QmpError(f"File descriptor named '{name}' has not been found")
        return fd

    def drop(self, name: str) -> None:
        """Close the descriptor of that name; raises QmpError where there is none."""
        fd = self.take(name)
        if fd is None:
            raise QmpError(f"File descriptor named '{name}' not found")
        os.close(fd)

    def close(self) -> None:
        """Close them all."""
        while self._fds:
            os.close(self._fds.popitem()[1])


@record
class _Member:
    fd: int
    opaque: str | None
    removed: bool = False


@record
class _Set:
    members: list[_Member] = field(default_factory=list)
    duplicates: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    """What :meth:`FdSets.open` handed out, with the file that each is open on."""


class FdSets:
    """All sets of one process."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}

    def add(self, fd: int, set_id: int | None = None, opaque: str | None = None) -> int:
        """Put `fd` into a set, by default a new one, with a client's remark; return the set's number."""
        if set_id is None:
            set_id = next(number for number in range(len(self._sets) + 1) if number not in self._sets)
        elif set_id < 0:
            raise QmpError("Parameter 'fdset-id' expects a non-negative value")
        self._sets.setdefault(set_id, _Set()).members.append(_Member(fd, opaque))
        return set_id

    def remove(self, set_id: int, fd: int | None, *, running: bool) -> None:
        """Take one descriptor, or all, out of a set; raises QmpError where they are not there.

        They stay while the guest does not run: whoever moves the guest elsewhere may need them again.
        """
        found = self._sets.get(set_id)
        members = [] if found is None else [member for member in found.members if fd is None or member.fd == fd]
        if found is None or (fd is not None and not members):
            which = f"fdset-id:{set_id}" if fd is None else f"fdset-id:{set_id}, fd:{fd}"
            raise QmpError(f"File descriptor named '{which}' not found")
        for member in members:
            member.removed = True
        self._clean_set(set_id, found, running=running, watched=True)

    def clean(self, *, running: bool, watched: bool) -> None:
        """Close what nobody needs any more: `watched` says whether a monitor has a client."""
        for set_id, found in list(self._sets.items()):
            self._clean_set(set_id, found, running=running, watched=watched)

    def _clean_set(self, set_id: int, found: _Set, *, running: bool, watched: bool) -> None:
        abandoned = not watched and not self._in_use(found)
        for member in list(found.members):
            if running and (member.removed or abandoned):
                os.close(member.fd)
                found.members.remove(member)
        if not found.members and not self._in_use(found):
            del self._sets[set_id]

    def _in_use(self, found: _Set) -> bool:
        """Return whether a duplicate that somebody got is still open."""
        found.duplicates = {fd: file for fd, file in found.duplicates.items() if _file_of(fd) == file}
        return bool(found.duplicates)

    def query(self) -> list[tuple[int, list[tuple[int, str | None]]]]:
        """Return all sets, the highest number first, with their members."""
        return [
            (set_id, [(member.fd, member.opaque) for member in found.members])
            for set_id, found in sorted(self._sets.items(), reverse=True)
        ]

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open a file, or duplicate the descriptor that ``/dev/fdset/N`` stands for; raises OSError."""
        if not path.startswith(SET_PREFIX):
            return os.open(path, flags | os.O_CLOEXEC, mode)
        number = path.removeprefix(SET_PREFIX)
        if not number.isascii() or not number.isdecimal():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        found = self._sets.get(int(number))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        for member in found.members:
            if fcntl.fcntl(member.fd, fcntl.F_GETFL) & os.O_ACCMODE == flags & os.O_ACCMODE:
                duplicate = fcntl.fcntl(member.fd, fcntl.F_DUPFD_CLOEXEC, 0)
                found.duplicates[duplicate] = _file_of(duplicate)
                return duplicate
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def close(self) -> None:
        """Close all members."""
        for found in self._sets.values():
            for member in found.members:
                os.close(member.fd)
        self._sets.clear()


def _file_of(fd: int) -> tuple[int, int] | None:
    """Return the file that a descriptor is open on, None where it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
