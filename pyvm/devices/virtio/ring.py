"""What split and packed rings have in common: descriptor chains and how they are read and written.

A ring reads its structures straight from views of guest RAM that were bounds-checked when the queue was enabled.
Buffers are views too: nothing is copied.  Everything found in guest RAM is checked; what breaks the rules of the
specification raises :class:`RingError` inside a ring and reaches the owner of the ring as a call of `on_failure`.

The 16-bit fields are accessed through views cast to 16-bit items, which is several times faster than unpacking them;
like RAM itself this needs a little-endian host.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from pyvm.devices.virtio.constants import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    MAX_QUEUE_SIZE,
)
from pyvm.memory import GuestMemory

U16 = 0xFFFF


class RingError(ValueError):
    """The driver broke the rules of the ring."""


class Chain:
    """One buffer of the driver: device-readable segments, then device-writable ones, as views of guest RAM."""

    __slots__ = ("addresses", "head", "position", "readable", "slots", "sources", "writable")

    def __init__(
        self,
        head: int,
        position: int,
        slots: int,
        readable: Sequence[memoryview],
        writable: Sequence[memoryview],
        addresses: Sequence[int],
        sources: Sequence[int],
    ) -> None:
        self.head = head
        """Descriptor index (split) or buffer ID (packed) by which the driver knows the chain."""
        self.position = position
        """Where in the ring the chain was found, in the form of the ring that made it."""
        self.slots = slots
        """How many places in the ring it takes."""
        self.readable = readable
        self.writable = writable
        self.addresses = addresses
        """GPA of each writable segment."""
        self.sources = sources
        """GPA of each readable segment."""

    @property
    def readable_bytes(self) -> int:
        """Return how many bytes the driver gave."""
        return sum(map(len, self.readable))

    @property
    def writable_bytes(self) -> int:
        """Return how many bytes the driver will take."""
        return sum(map(len, self.writable))

    def gather(self, limit: int) -> bytes:
        """Return a copy of the first `limit` readable bytes, or of all where there are fewer."""
        data = b""
        for segment in self.readable:
            if len(data) >= limit:
                break
            data += segment[: limit - len(data)]
        return data

    def scatter(self, data: bytes | memoryview) -> int:
        """Copy `data` to the start of the writable segments; return how many bytes there was room for."""
        done = 0
        length = len(data)
        for segment in self.writable:
            if done >= length:
                break
            part = data[done : done + len(segment)]
            segment[: len(part)] = part
            done += len(part)
        return done


EMPTY: tuple[memoryview, ...] = ()
NO_ADDRESSES: tuple[int, ...] = ()


class Ring(Protocol):
    """The device's side of one enabled virtqueue."""

    def pop(self) -> Chain | None:
        """Take the next available chain; None where there is none, or the driver broke the ring."""

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, `written` bytes of its writable segments filled; told to the driver by :meth:`flush`."""

    def flush(self) -> bool:
        """Show the driver what was pushed; return whether it wants an interrupt for it."""

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
        self.block = (0, 0, table[:0])
        """Where the segment last seen was: first GPA of its block of RAM, GPA behind it, the block itself."""
        self._view = memory.view
        self._written = memory.written
        self._table = table
        self._size = size
        self._indirect = indirect
        self._fail = on_failure

    def segment(self, gpa: int, length: int) -> memoryview:
        """Return RAM that may lie in another block than the segment before; raises :class:`GuestMemoryError`."""
        view = self._view(gpa, length)
        for block in self.memory.blocks:
            if block.gpa <= gpa < block.end:
                self.block = (block.gpa, block.end, self._view(block.gpa, block.size))
        return view

    def _mark_written(self, chain: Chain, written: int) -> None:
        """Say which RAM was changed: whole segments, the last of them perhaps in part."""
        lengths = list(map(len, chain.writable))
        if written < sum(lengths):
            for index, length in enumerate(lengths):
                lengths[index] = max(min(length, written), 0)
                written -= length
        self.memory.on_writes(chain.addresses, lengths)

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

    __slots__ = ("_left", "_ram", "addresses", "readable", "sources", "writable")

    def __init__(self, ram: RingMemory) -> None:
        self._ram = ram
        # Only the same RAM many times over is longer: work without end for whoever takes it.
        self._left = ram.memory.size
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.addresses: list[int] = []
        self.sources: list[int] = []

    def add(self, gpa: int, length: int, flags: int) -> None:
        """Take up one descriptor."""
        if not length:
            raise RingError("zero sized buffers are not allowed")
        self._left -= length
        if self._left < 0:
            raise RingError("chain is longer than memory")
        start, end, block = self._ram.block
        if start <= gpa and gpa + length <= end:
            segment = block[gpa - start : gpa - start + length]
        else:
            segment = self._ram.segment(gpa, length)
        if flags & DESC_F_WRITE:
            self.writable.append(segment)
            self.addresses.append(gpa)
        elif self.writable:
            raise RingError("incorrect order for descriptors")
        else:
            self.readable.append(segment)
            self.sources.append(gpa)

    def add_table(self, table: memoryview, *, linked: bool) -> bool:
        """Take up the descriptors of an indirect table in the order in which they stand.

        `linked` says that they are a list (split rings), which ends with the first that has no next one; return False
        where the list has another order.  This is what most chains are, so it is :meth:`add` once more without calls.
        """
        start, end, block = self._ram.block
        readable, sources, writable, addresses = self.readable, self.sources, self.writable, self.addresses
        left = self._left
        index = 0
        for index, (gpa, length, flags, last) in enumerate(DESCRIPTOR.iter_unpack(table), 1):
            if not linked:
                flags = last  # noqa: PLW2901 - the packed format has the buffer ID first
            left -= length
            if not length or left < 0 or flags & DESC_F_INDIRECT:
                reject_nested(flags)
                raise RingError("chain is longer than memory" if length else "zero sized buffers are not allowed")
            place = gpa - start
            if place >= 0 and gpa + length <= end:
                segment = block[place : place + length]
            else:
                segment = self._ram.segment(gpa, length)
                start, end, block = self._ram.block
            if flags & DESC_F_WRITE:
                writable.append(segment)
                addresses.append(gpa)
            elif writable:
                raise RingError("incorrect order for descriptors")
            else:
                readable.append(segment)
                sources.append(gpa)
            if linked:
                if not flags & DESC_F_NEXT:
                    break
                if last != index:
                    return False
        else:
            if linked:
                raise RingError(f"next descriptor {index} is outside the table of {index}")
        self._left = left
        return True


def reject_nested(flags: int) -> None:
    """Raise where a descriptor of an indirect table asks for another table."""
    if flags & DESC_F_INDIRECT:
        raise RingError("indirect descriptor inside an indirect table")


DESCRIPTOR = struct.Struct("<QIHH")
"""Split: address, length, flags, next.  Packed: address, length, buffer ID, flags."""
