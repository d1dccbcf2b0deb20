"""The graph's base: nodes, and the permissions with which they use each other.

An edge has a role, and the role says what the parent does with the child and what it lets others do meanwhile.  The
leaves of the graph are host files; they hold these permissions as locks, so that two programs agree about an image.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import ClassVar

from pyvm.block.vectors import Buffers


class Permission(IntFlag):
    """What the user of a node does with it.  The bits are those of QEMU's image locks."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8


ALL_PERMISSIONS = Permission(15)


class Role(Enum):
    """What a child is to its parent."""

    FILTERED = "filtered"
    """All the data of the parent, which adds nothing to it: the file of a raw image."""
    STORAGE = "storage"
    """Data and metadata of an image format."""
    DATA_FILE = "data-file"
    """Data of an image that has its metadata elsewhere."""
    BACKING = "backing"
    """What shows where the parent has nothing."""


@dataclass(frozen=True)
class Access:
    """What one user of a node does with it, and what others may do at the same time."""

    used: Permission
    shared: Permission


def disk_access(read_only: bool) -> Access:
    """Return how a guest's disk uses its root node; a raw image passes this on to its file."""
    used = Permission.CONSISTENT_READ if read_only else Permission.CONSISTENT_READ | Permission.WRITE
    return Access(used, ALL_PERMISSIONS & ~Permission.WRITE)


def storage_access(read_only: bool) -> Access:
    """Return how an image format uses the files that its data and metadata are in."""
    used = Permission.CONSISTENT_READ
    if not read_only:
        used |= Permission.WRITE | Permission.RESIZE
    return Access(used, ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE))


def backing_access() -> Access:
    """Return how an overlay uses what is below it: it must not change."""
    return Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE))


@dataclass(frozen=True)
class Child:
    """An edge of the graph."""

    role: Role
    node: Node


class Node(ABC):
    """An open image.  All offsets and lengths are bytes; failures are raised as OSError."""

    driver: ClassVar[str]

    def __init__(self, name: str, *, read_only: bool, unmap: bool = False, serial: str = "") -> None:
        self.name = name
        self.read_only = read_only
        self.unmap = unmap
        """Whether what the guest discards is given back (`discard=unmap`)."""
        self.serial = serial
        self.children: list[Child] = []

    @property
    @abstractmethod
    def size(self) -> int:
        """Length in bytes, whole sectors."""

    @abstractmethod
    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""

    @abstractmethod
    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written is on stable storage."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Give the range back, where that was asked for and can be done: a hint."""

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it need take no room."""

    def close(self) -> None:
        """Give up the image and all that is below it.  What was not flushed may be lost."""
        for child in self.children:
            child.node.close()
        self.children = []

    def check_range(self, offset: int, length: int) -> None:
        """Raise OSError unless the range is on the disk."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def check_write(self, offset: int, length: int) -> None:
        """Raise OSError unless the range is on the disk and may be written."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.check_range(offset, length)

    def read(self, offset: int, length: int) -> bytearray:
        """Return `length` bytes from `offset` on."""
        data = bytearray(length)
        self.readv(offset, (memoryview(data),))
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`."""
        self.writev(offset, (memoryview(data),))
