"""Guest RAM of a machine into which modules of memory can be plugged: one mapping with room for all of them.

Devices and the CPU engine see guest RAM as one mapping.  So room for modules is set aside behind it when the machine is
made; it takes no memory.  A module's memory is mapped into its place there, and taken out again.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pyvm.machine.memory_backends import JoinedMemory, address_of
from pyvm.memory import map_fixed, punch_hole
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.machine.memory_backends import MemoryBackend
    from pyvm.migration.fork_ram import LayeredRam

_MAP_NORESERVE = 0x4000


class Placeable(Protocol):
    """Memory of the host that can be mapped at an address."""

    def place(self, address: int) -> None:
        """Map all of it at an address, over what is there.  Raises OSError."""


@record
class _Part:
    """What is mapped in one place; in bytes.  Without a descriptor, pages are given back by mapping others."""

    start: int
    size: int
    fd: int


class MemoryWindow:
    """Guest RAM of `size` bytes, which is `base`, with `room` bytes behind it.  Raises OSError."""

    def __init__(self, base: Placeable, size: int, room: int, fd: int) -> None:
        """`fd` is the file below `base` in which holes may be punched, or -1."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.mapping = mmap.mmap(-1, size + room, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._size = size
        self._parts = [_Part(0, size, fd)]
        self._joined: JoinedMemory | LayeredRam | None = None
        base.place(address_of(self.mapping))

    def close(self) -> None:
        """Give the room back; nothing may use it any more."""
        with suppress(BufferError):  # a machine that ends may still have views of it
            self.mapping.close()

    def join(self, memory: JoinedMemory | LayeredRam) -> None:
        """Memory of NUMA nodes, or layers, have taken the place of the base."""
        self._joined = memory

    def place(self, backend: MemoryBackend, offset: int) -> None:
        """Map a module's memory in the room.  Raises OSError."""
        backend.place(address_of(self.mapping) + offset)
        self._parts.append(_Part(offset, backend.size, -1 if backend.private else backend.fd))

    def vacate(self, offset: int, size: int) -> None:
        """Take a module's memory out of the room.  Raises OSError."""
        self._map_zeros(offset, size)
        self._parts = [part for part in self._parts if part.start != offset]

    def _map_zeros(self, offset: int, size: int) -> None:
        map_fixed(address_of(self.mapping) + offset, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""
        if self._joined is not None and offset < self._size:
            self._joined.discard(offset, length)
            return
        part = next(part for part in self._parts if part.start <= offset < part.start + part.size)
        if part.fd < 0:
            self._map_zeros(offset, length)
        else:
            punch_hole(part.fd, offset - part.start, length)
