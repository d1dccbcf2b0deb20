"""The split virtqueue (virtio 1.2, section 2.7): descriptor table, available ring, used ring.

Available ring, 16-bit items: flags, idx, ring[size], used_event.
Used ring: u16 flags, u16 idx, then {u32 id, u32 len}[size], u16 avail_event.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pyvm.devices.virtio.constants import (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_SIZE,
    LEGACY_RING_ALIGN,
)
from pyvm.devices.virtio.ring import (
    DESCRIPTOR,
    U16,
    Chain,
    RingError,
    RingMemory,
    Segments,
    reject_nested,
)
from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.native import barrier

_FLAGS = 0
_IDX = 1
_RING = 2
_USED_ELEMENTS = 4
_USED_ELEMENT = struct.Struct("<II")
_EVENT_SIZE = 2


def avail_size(size: int, *, event_idx: bool) -> int:
    """Return the length in bytes of an available ring of `size` entries."""
    return 4 + 2 * size + (_EVENT_SIZE if event_idx else 0)


def used_size(size: int, *, event_idx: bool) -> int:
    """Return the length in bytes of a used ring of `size` entries."""
    return _USED_ELEMENTS + _USED_ELEMENT.size * size + (_EVENT_SIZE if event_idx else 0)


def legacy_layout(gpa: int, size: int) -> tuple[int, int, int]:
    """Return the GPAs of table, available ring and used ring of a legacy queue that begins at `gpa` (2.7.2)."""
    avail = gpa + DESC_SIZE * size
    used = avail + avail_size(size, event_idx=True)
    return gpa, avail, (used + LEGACY_RING_ALIGN - 1) & -LEGACY_RING_ALIGN


class SplitRing(RingMemory):
    """One enabled split virtqueue.

    `next_avail` and `next_used` are where it was when it last ran; 0 for a new queue.  Raises
    :class:`GuestMemoryError` where a part of it is not RAM.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: tuple[int, int, int],
        *,
        event_idx: bool,
        indirect: bool,
        notify_on_empty: bool,
        next_avail: int,
        next_used: int,
        on_failure: Callable[[str], None],
    ) -> None:
        table, avail, used = addresses
        view = memory.view(table, size * DESC_SIZE)
        super().__init__(memory, view, size, indirect=indirect, on_failure=on_failure)
        self._avail = memory.view(avail, avail_size(size, event_idx=event_idx)).cast("H")
        self._used_bytes = used_size(size, event_idx=event_idx)
        self._used_gpa = used
        self._used = memory.view(used, self._used_bytes)
        self._used_words = self._used.cast("H")
        self._event_idx = event_idx
        self._notify_on_empty = notify_on_empty
        self._used_event = _RING + size
        self._avail_event = (_USED_ELEMENTS + _USED_ELEMENT.size * size) // 2
        self.next_avail = next_avail
        self.next_used = next_used
        self._unflushed = 0

    def pop(self) -> Chain | None:
        """Take the next available chain; None where there is none, or the driver broke the ring.

        Coming to the end of the ring is what asks the driver for its next notification: whoever stops before hears
        of no further buffers, and needs to hear of none.
        """
        avail = self._avail
        position = self.next_avail
        pending = (avail[_IDX] - position) & U16
        if not pending:
            if not self._event_idx or self._used_words[self._avail_event] == position:
                return None
            self._used_words[self._avail_event] = position
            self._written(self._used_gpa + 2 * self._avail_event, _EVENT_SIZE)
            # The driver, which runs meanwhile, may have looked there before, and have more by now.
            barrier()
            pending = (avail[_IDX] - position) & U16
            if not pending:
                return None
        size = self._size
        try:
            if pending > size or (position - self.next_used) & U16 >= size:
                raise RingError(f"available index moved from {position} to {avail[_IDX]}")
            head = avail[_RING + position % size]
            if head >= size:
                raise RingError(f"head {head} is outside the queue of {size}")
            gpa, length, flags, _ = DESCRIPTOR.unpack_from(self._table, head * DESC_SIZE)
            if flags & (DESC_F_NEXT | DESC_F_INDIRECT):
                chain = self._walk(head, position)
            elif not length:
                raise RingError("zero sized buffers are not allowed")
            else:
                chain = self._single(head, position, (gpa, length), flags)
        except (RingError, GuestMemoryError) as error:
            self._fail(str(error))
            return None
        self.next_avail = (position + 1) & U16
        return chain

    def _walk(self, head: int, position: int) -> Chain:
        """Read a chain of several descriptors."""
        table, limit, index, in_table = self._table, self._size, head, False
        segments = Segments(self.memory)
        steps = 0
        while True:
            gpa, length, flags, following = DESCRIPTOR.unpack_from(table, index * DESC_SIZE)
            if in_table:
                reject_nested(flags)
            elif flags & DESC_F_INDIRECT:
                table = self._indirect_table(gpa, length, flags)
                if index == head and (vectors := self.memory.vectors_of_table(table, linked=True)):
                    return Chain(head, position, 1, *vectors)
                limit, index, in_table, steps = length // DESC_SIZE, 0, True, 0
                continue
            segments.add(gpa, length, flags)
            if not flags & DESC_F_NEXT:
                return segments.chain(head, position, 1)
            steps += 1
            if steps >= limit:
                raise RingError("looped descriptor")
            if following >= limit:
                raise RingError(f"next descriptor {following} is outside the table of {limit}")
            index = following

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, `written` bytes of its writable segments filled; told to the driver by :meth:`flush`."""
        used = self.next_used
        offset = _USED_ELEMENTS + _USED_ELEMENT.size * (used % self._size)
        _USED_ELEMENT.pack_into(self._used, offset, chain.head, written)
        self.next_used = (used + 1) & U16
        self._unflushed += 1
        if written:
            self.memory.on_vector(chain.writable, written)

    def flush(self) -> bool:
        """Show the driver what was pushed; return whether it wants an interrupt for it (2.7.7, 2.7.10)."""
        count = self._unflushed
        if not count:
            return False
        self._unflushed = 0
        used = self.next_used
        self._used_words[_IDX] = used
        self._written(self._used_gpa, self._used_bytes)
        avail = self._avail
        if self._notify_on_empty and avail[_IDX] == self.next_avail == used:
            return True
        if self._event_idx:
            barrier()  # the driver, which runs meanwhile, says what it wants and then looks for what was pushed
            return (used - avail[self._used_event] - 1) & U16 < count
        return not avail[_FLAGS] & AVAIL_F_NO_INTERRUPT

    def send(self, fd: int) -> int:
        """Send available chains to a socket and push them; return how many bytes it took of one that is still there."""
        chains, rest = self.memory.send_chains(
            self._table, self._avail, self._used, (self.next_avail, self.next_used), fd
        )
        self.next_avail = (self.next_avail + chains) & U16
        self.next_used = (self.next_used + chains) & U16
        self._unflushed += chains
        return rest

    def rewind(self, chain: Chain) -> None:
        """Put back `chain` and all that were popped after it, none of them pushed yet."""
        self.next_avail = chain.position

    def empty(self) -> bool:
        """Return whether no chain is available."""
        return self._avail[_IDX] == self.next_avail
