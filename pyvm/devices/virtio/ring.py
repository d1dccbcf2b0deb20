"""What split and packed rings have in common: descriptor chains and how they are read and written.

A ring reads its structures straight from views of guest RAM that were bounds-checked when the queue was enabled.
Buffers are views too: nothing is copied.  Everything found in guest RAM is checked; what breaks the rules of the
specification raises :class:`RingError` inside a ring and reaches the owner of the ring as a call of `on_failure`.

The 16-bit fields are accessed through views cast to 16-bit items, which is several times faster than unpacking them;
like RAM itself this needs a little-endian host.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from pyvm.devices.virtio.constants import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    MAX_QUEUE_SIZE,
)
from pyvm.memory import GuestMemory
from pyvm.native import Vector

U16 = 0xFFFF


class RingError(ValueError):
    """The driver broke the rules of the ring."""


class Chain:
    """One buffer of the driver: device-readable segments, then device-writable ones, as views of guest RAM."""

    __slots__ = ("head", "position", "readable", "slots", "writable")

    def __init__(self, head: int, position: int, slots: int, readable: Vector, writable: Vector) -> None:
        self.head = head
        """Descriptor index (split) or buffer ID (packed) by which the driver knows the chain."""
        self.position = position
        """Where in the ring the chain was found, in the form of the ring that made it."""
        self.slots = slots
        """How many places in the ring it takes."""
        self.readable = readable
        self.writable = writable

    @property
    def readable_bytes(self) -> int:
        """Return how many bytes the driver gave."""
        return self.readable.nbytes

    @property
    def writable_bytes(self) -> int:
        """Return how many bytes the driver will take."""
        return self.writable.nbytes

    def gather(self, limit: int) -> bytes:
        """Return a copy of the first `limit` readable bytes, or of all where there are fewer."""
        return b"".join(self.readable.span(0, limit))

    def scatter(self, data: bytes | memoryview) -> int:
        """Copy `data` to the start of the writable segments; return how many bytes there was room for."""
        done = 0
        for segment in self.writable.span(0, len(data)):
            segment[:] = data[done : done + len(segment)]
            done += len(segment)
        return done


class Ring(Protocol):
    """The device's side of one enabled virtqueue."""

    def pop(self) -> Chain | None:
        """Take the next available chain; None where there is none, or the driver broke the ring."""

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, `written` bytes of its writable segments filled; told to the driver by :meth:`flush`."""

    def flush(self) -> bool:
        """Show the driver what was pushed; return whether it wants an interrupt for it."""

    def send(self, fd: int) -> int:
        """Send available chains to a socket and push them; return how many bytes it took of one that is still there.

        The ring may leave any chain for others to look at.
        """

    def rewind(self, chain: Chain) -> None:
        """Put back `chain` and all that were popped after it, none of them pushed yet."""

    def empty(self) -> bool:
        """Return whether no chain is available."""


class RingMemory:
    """Guest RAM as a ring uses it, and the reading of descriptors."""

    def __init__(
        self,
        memory: GuestMemory,
        table: memoryview,
        size: int,
        *,
        indirect: bool,
        on_failure: Callable[[str], None],
    ) -> None:
        self.memory = memory
        self._view = memory.view
        self._written = memory.written
        self._table = table
        self._size = size
        self._indirect = indirect
        self._fail = on_failure
        self._nothing = memory.vector(())

    def _single(self, head: int, position: int, piece: tuple[int, int], flags: int) -> Chain:
        """Return the chain of one descriptor."""
        vector = self.memory.vector((piece,))
        if flags & DESC_F_WRITE:
            return Chain(head, position, 1, self._nothing, vector)
        return Chain(head, position, 1, vector, self._nothing)

    def _indirect_table(self, gpa: int, length: int, flags: int) -> memoryview:
        """Return the view of an indirect table, which stands at the end of a chain and has no table below it."""
        if not self._indirect:
            raise RingError("indirect descriptor without VIRTIO_F_INDIRECT_DESC")
        if flags & DESC_F_NEXT:
            raise RingError("indirect descriptor with a next one")
        # The specification allows no chain longer than the queue; drivers take that for the ring only, so longer
        # tables are accepted as far as the largest possible queue.
        if not length or length % DESC_SIZE or length > MAX_QUEUE_SIZE * DESC_SIZE:
            raise RingError(f"invalid size for indirect buffer table: {length}")
        return self._view(gpa, length)


class Segments:
    """The segments of a chain while it is being read."""

    __slots__ = ("_left", "_memory", "_readable", "_writable")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        # Only the same RAM many times over is longer: work without end for whoever takes it.
        self._left = memory.size
        self._readable: list[tuple[int, int]] = []
        self._writable: list[tuple[int, int]] = []

    def add(self, gpa: int, length: int, flags: int) -> None:
        """Take up one descriptor."""
        if not length:
            raise RingError("zero sized buffers are not allowed")
        self._left -= length
        if self._left < 0:
            raise RingError("chain is longer than memory")
        if flags & DESC_F_WRITE:
            self._writable.append((gpa, length))
        elif self._writable:
            raise RingError("incorrect order for descriptors")
        else:
            self._readable.append((gpa, length))

    def chain(self, head: int, position: int, slots: int) -> Chain:
        """Return the chain that was read.  Raises :class:`GuestMemoryError` where a segment is not RAM."""
        vector = self._memory.vector
        return Chain(head, position, slots, vector(self._readable), vector(self._writable))


def reject_nested(flags: int) -> None:
    """Raise where a descriptor of an indirect table asks for another table."""
    if flags & DESC_F_INDIRECT:
        raise RingError("indirect descriptor inside an indirect table")


DESCRIPTOR = struct.Struct("<QIHH")
"""Split: address, length, flags, next.  Packed: address, length, buffer ID, flags."""
