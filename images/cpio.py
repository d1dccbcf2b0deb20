"""Writes initramfs archives: cpio in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format).

Archives are the same for the same contents: entries are sorted, owned by root and dated 0.  Device nodes need no
privilege, since nothing is made in a file system.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import PurePosixPath

_BLOCK = 4
_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """A file of the archive: mode with its type bits, contents or link target, device number."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _pad(length: int) -> bytes:
    return bytes(-length % _BLOCK)


class Archive:
    """An initramfs in the making; parent directories appear by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return _normal(path) in self._entries

    def _add(self, path: str, entry: Entry) -> None:
        name = _normal(path)
        for parent in PurePosixPath(name).parents:
            if str(parent) != "." and str(parent) not in self._entries:
                self._entries[str(parent)] = Entry(stat.S_IFDIR | 0o755)
        self._entries[name] = entry

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def to_bytes(self) -> bytes:
        """Return the archive."""
        parts: list[bytes] = []
        for inode, name in enumerate(sorted(self._entries), start=1):
            parts.append(_record(name, inode, self._entries[name]))
        parts.append(_record(_TRAILER, 0, Entry(0)))
        return b"".join(parts)


def _normal(path: str) -> str:
    return str(PurePosixPath(path.lstrip("/")))


def _record(name: str, inode: int, entry: Entry) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + encoded
    return header + _pad(len(header)) + entry.data + _pad(len(entry.data))
