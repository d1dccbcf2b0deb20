"""The packed virtqueue (virtio 1.2, section 2.8): one ring of descriptors that driver and device both write.

Descriptor: u64 address, u32 length, u16 buffer ID, u16 flags.  Event suppression structures of driver and device:
u16 descriptor offset and wrap counter, u16 flags.

A position in the ring is kept as the specification's events give it: offset in the low 15 bits, wrap counter in bit 15.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pyvm.devices.virtio.constants import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_FLAGS_DESC,
    EVENT_FLAGS_DISABLE,
    EVENT_FLAGS_ENABLE,
    EVENT_WRAP_BIT,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)
from pyvm.devices.virtio.ring import DESCRIPTOR, U16, Chain, RingError, RingMemory, Segments, reject_nested
from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.native import barrier

EVENT_SIZE = 4
_EVENT_POSITION = 0
_EVENT_FLAGS = 1
_OWNER_FLAGS = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
_FLAGS_WORD = 7
_USED_OFFSET = 8
_USED = struct.Struct("<IHH")

FIRST_POSITION = EVENT_WRAP_BIT
"""Where both sides of a new ring begin: offset 0, wrap counter 1."""


def distance(ahead: int, behind: int, size: int) -> int:
    """Return how many places position `ahead` is in front of `behind`, in a ring of `size`; 0..size if consistent."""
    places = (ahead & ~EVENT_WRAP_BIT) - (behind & ~EVENT_WRAP_BIT)
    return places + size if (ahead ^ behind) & EVENT_WRAP_BIT else places


class PackedRing(RingMemory):
    """One enabled packed virtqueue.

    `next_avail` and `next_used` are positions, FIRST_POSITION for a new queue.  Raises :class:`GuestMemoryError` where
    a part of it is not RAM.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: tuple[int, int, int],
        *,
        event_idx: bool,
        indirect: bool,
        next_avail: int,
        next_used: int,
        on_failure: Callable[[str], None],
    ) -> None:
        ring, driver, device = addresses
        view = memory.view(ring, size * DESC_SIZE)
        super().__init__(memory, view, size, indirect=indirect, on_failure=on_failure)
        self._ring_gpa = ring
        self._words = self._table.cast("H")
        self._driver_event = memory.view(driver, EVENT_SIZE).cast("H")
        self._device_event = memory.view(device, EVENT_SIZE).cast("H")
        self._device_event_gpa = device
        self._event_idx = event_idx
        self.next_avail = next_avail
        self.next_used = next_used
        self._unflushed = 0

    def pop(self) -> Chain | None:
        """Take the next available chain; None where there is none, or the driver broke the ring."""
        position = self.next_avail
        index = position & ~EVENT_WRAP_BIT
        # Available: the AVAIL bit equals the wrap counter and the USED bit does not.
        available = PACKED_DESC_F_AVAIL if position & EVENT_WRAP_BIT else PACKED_DESC_F_USED
        if self._words[index * 8 + _FLAGS_WORD] & _OWNER_FLAGS != available:
            if not self._want_notification(position):
                return None
            # The driver, which runs meanwhile, may have looked there before, and have more by now.
            barrier()
            if self._words[index * 8 + _FLAGS_WORD] & _OWNER_FLAGS != available:
                return None
        try:
            chain = self._walk(index, position)
            if distance(position, self.next_used, self._size) + chain.slots > self._size:
                raise RingError("more descriptors available than the queue has")
        except (RingError, GuestMemoryError) as error:
            self._fail(str(error))
            return None
        self.next_avail = self._advance(position, chain.slots)
        return chain

    def _want_notification(self, position: int) -> bool:
        """Ask the driver to notify when it makes the descriptor at `position` available (2.8.10).

        Return False where it was asked before.
        """
        event = self._device_event
        flags = EVENT_FLAGS_DESC if self._event_idx else EVENT_FLAGS_ENABLE
        if event[_EVENT_FLAGS] == flags and not (self._event_idx and event[_EVENT_POSITION] != position):
            return False
        event[_EVENT_POSITION] = position
        event[_EVENT_FLAGS] = flags
        self._written(self._device_event_gpa, EVENT_SIZE)
        return True

    def _walk(self, index: int, position: int) -> Chain:
        """Read a chain; its last descriptor holds the buffer ID."""
        size = self._size
        segments = Segments(self.memory)
        slots = 0
        while True:
            gpa, length, buffer_id, flags = DESCRIPTOR.unpack_from(self._table, index * DESC_SIZE)
            slots += 1
            if flags & DESC_F_INDIRECT:
                table = self._indirect_table(gpa, length, flags)
                if slots == 1 and (vectors := self.memory.vectors_of_table(table, linked=False)):
                    return Chain(buffer_id, position, slots, *vectors)
                for gpa, length, _, flags in DESCRIPTOR.iter_unpack(table):
                    reject_nested(flags)
                    segments.add(gpa, length, flags)
                return segments.chain(buffer_id, position, slots)
            segments.add(gpa, length, flags)
            if not flags & DESC_F_NEXT:
                return segments.chain(buffer_id, position, slots)
            if slots >= size:
                raise RingError("looped descriptor")
            index = index + 1 if index + 1 < size else 0

    def _advance(self, position: int, slots: int) -> int:
        index = (position & ~EVENT_WRAP_BIT) + slots
        wrap = position & EVENT_WRAP_BIT
        if index >= self._size:
            return (index - self._size) | (wrap ^ EVENT_WRAP_BIT)
        return index | wrap

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, `written` bytes of its writable segments filled.

        The driver sees it at once, as the machine lock keeps it from looking before the call is over; whether it gets
        an interrupt is decided by :meth:`flush`.
        """
        position = self.next_used
        index = position & ~EVENT_WRAP_BIT
        flags = _OWNER_FLAGS if position & EVENT_WRAP_BIT else 0
        if written:
            flags |= DESC_F_WRITE
            self.memory.on_vector(chain.writable, written)
        offset = index * DESC_SIZE + _USED_OFFSET
        _USED.pack_into(self._table, offset, written, chain.head, flags)
        self._written(self._ring_gpa + offset, _USED.size)
        self.next_used = self._advance(position, chain.slots)
        self._unflushed += chain.slots

    def flush(self) -> bool:
        """Return whether the driver wants an interrupt for what was pushed since the last call (2.8.14)."""
        count = self._unflushed
        if not count:
            return False
        self._unflushed = 0
        barrier()  # the driver, which runs meanwhile, says what it wants and then looks for what was pushed
        flags = self._driver_event[_EVENT_FLAGS] & 3
        if flags == EVENT_FLAGS_DISABLE:
            return False
        if flags != EVENT_FLAGS_DESC or not self._event_idx:
            return True
        event = self._driver_event[_EVENT_POSITION]
        used = self.next_used
        offset = event & ~EVENT_WRAP_BIT
        if (event ^ used) & EVENT_WRAP_BIT:
            offset -= self._size
        return ((used & ~EVENT_WRAP_BIT) - offset - 1) & U16 < count

    @staticmethod
    def send(fd: int) -> int:
        """Send available chains to a socket: none, here they are looked at one by one."""
        del fd
        return 0

    def rewind(self, chain: Chain) -> None:
        """Put back `chain` and all that were popped after it, none of them pushed yet."""
        self.next_avail = chain.position

    def empty(self) -> bool:
        """Return whether no chain is available."""
        position = self.next_avail
        available = PACKED_DESC_F_AVAIL if position & EVENT_WRAP_BIT else PACKED_DESC_F_USED
        word = self._words[(position & ~EVENT_WRAP_BIT) * 8 + _FLAGS_WORD]
        return word & _OWNER_FLAGS != available
