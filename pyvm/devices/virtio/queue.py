"""A virtqueue as a virtio device and its transport see it, whichever ring format the driver negotiated.

The transport sets size and addresses and enables the queue; the device pops, pushes and flushes.  `pop`, `push` and
the others are the methods of the ring itself while the queue is enabled, and do nothing while it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvm.devices.virtio.constants import (
    DESC_F_WRITE,
    EVENT_WRAP_BIT,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NOTIFY_ON_EMPTY,
    F_RING_PACKED,
    F_VERSION_1,
    MAX_QUEUE_SIZE,
)
from pyvm.devices.virtio.packed import FIRST_POSITION, PackedRing, distance
from pyvm.devices.virtio.ring import U16, Chain, Ring, RingError, Segments
from pyvm.devices.virtio.split import SplitRing
from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.state import State, StateError, array, flag, integer, sequence, uint

_SEGMENTS_LIMIT = 2 * MAX_QUEUE_SIZE
"""A chain through the ring and then an indirect table."""


class QueueState(State):
    """Migratable state of one virtqueue.  Positions are counters (split) or offset and wrap counter (packed)."""

    size: int = integer(0, MAX_QUEUE_SIZE)
    ready: bool = flag()
    desc: int = uint(64)
    driver: int = uint(64)
    device: int = uint(64)
    next_avail: int = uint(16)
    next_used: int = uint(16)


class ChainState(State):
    """A chain that a device holds while the state is saved.

    The segments are here, since the descriptors of a packed ring may have been written over since.
    """

    queue: int = uint(16)
    head: int = uint(16)
    slots: int = integer(1, MAX_QUEUE_SIZE, 1)
    readable: list[list[int]] = sequence(array(uint(64), 2), _SEGMENTS_LIMIT)
    """GPA and length in bytes of each segment."""
    writable: list[list[int]] = sequence(array(uint(64), 2), _SEGMENTS_LIMIT)


class _NoRing:
    """Stands in for the ring of a queue that is not enabled."""

    @staticmethod
    def pop() -> Chain | None:
        return None

    @staticmethod
    def push(chain: Chain, written: int) -> None:
        del chain, written

    @staticmethod
    def flush() -> bool:
        return False

    @staticmethod
    def send(fd: int) -> int:
        del fd
        return 0

    @staticmethod
    def rewind(chain: Chain) -> None:
        del chain

    @staticmethod
    def empty() -> bool:
        return True


_NO_RING = _NoRing()


class VirtQueue:
    """One virtqueue of a device: `max_size` is what the device offers, `size` what the driver chose."""

    def __init__(
        self, index: int, max_size: int, interrupt: Callable[[int], None], on_failure: Callable[[str], None]
    ) -> None:
        self.index = index
        self.max_size = max_size
        self.size = max_size
        self.ready = False
        self.desc = 0
        """GPA of descriptor table or packed ring."""
        self.driver = 0
        """GPA of available ring or driver event suppression."""
        self.device = 0
        """GPA of used ring or device event suppression."""
        self._interrupt = interrupt
        self._on_failure = on_failure
        self._memory: GuestMemory | None = None
        self._features = 0
        self._ring: SplitRing | PackedRing | None = None
        self._connect(_NO_RING)

    def _connect(self, ring: Ring) -> None:
        self.pop = ring.pop
        self.push = ring.push
        self._flush_ring = ring.flush
        self.send = ring.send
        self.rewind = ring.rewind
        self.empty = ring.empty

    def attach(self, memory: GuestMemory) -> None:
        """Say where the guest's RAM is; once, before all else."""
        self._memory = memory

    def set_features(self, features: int) -> None:
        """Follow the features that the driver accepted; a legacy driver may do so when the queue is enabled already."""
        if features != self._features:
            self._features = features
            if self.ready:
                state = self.save()
                self.disable()
                self._enable_at(state.next_avail, state.next_used)

    def set_size(self, size: int) -> None:
        """Use `size` entries: what the driver chose; ignored where it is no possible size or the queue is enabled."""
        if not self.ready and 0 < size <= self.max_size:
            self.size = size

    def enable(self) -> bool:
        """Begin at the start of the ring, and return whether that was done; a ring outside RAM fails the device."""
        if self.ready or not self.size:
            return False
        first = FIRST_POSITION if self._features & F_RING_PACKED else 0
        self._enable_at(first, first)
        return self.ready

    def _enable_at(self, next_avail: int, next_used: int) -> None:
        try:
            self._map(next_avail, next_used)
        except GuestMemoryError as error:
            self._on_failure(f"queue {self.index}: {error}")

    def _map(self, next_avail: int, next_used: int) -> None:
        if self._memory is None:
            raise RuntimeError("virtqueue enabled before it was attached to guest memory")
        features = self._features
        event_idx = bool(features & F_EVENT_IDX)
        indirect = bool(features & F_INDIRECT_DESC)
        addresses = (self.desc, self.driver, self.device)
        if features & F_RING_PACKED:
            self._ring = PackedRing(
                self._memory,
                self.size,
                addresses,
                event_idx=event_idx,
                indirect=indirect,
                next_avail=next_avail,
                next_used=next_used,
                on_failure=self._ring_failed,
            )
        else:
            self._ring = SplitRing(
                self._memory,
                self.size,
                addresses,
                event_idx=event_idx,
                indirect=indirect,
                notify_on_empty=bool(features & F_NOTIFY_ON_EMPTY) and not features & F_VERSION_1,
                next_avail=next_avail,
                next_used=next_used,
                on_failure=self._ring_failed,
            )
        self._connect(self._ring)
        self.ready = True

    def _ring_failed(self, reason: str) -> None:
        self._on_failure(f"queue {self.index}: {reason}")

    def disable(self) -> None:
        """Let go of the ring; size and addresses stay."""
        self.ready = False
        self._ring = None
        self._connect(_NO_RING)

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.disable()
        self.size = self.max_size
        self.desc = self.driver = self.device = 0

    def flush(self) -> None:
        """Show the driver what was pushed, and interrupt it if it asked for that."""
        if self._flush_ring():
            self._interrupt(self.index)

    def save(self) -> QueueState:
        """Return the migratable state; chains popped and not pushed are lost, so devices rewind them first."""
        state = QueueState(self.size, self.ready, self.desc, self.driver, self.device)
        if self._ring is not None:
            state.next_avail = self._ring.next_avail
            state.next_used = self._ring.next_used
        return state

    def save_chain(self, chain: Chain) -> ChainState:
        """Return the state of a chain that was popped and not pushed yet."""
        return ChainState(
            self.index,
            chain.head,
            chain.slots,
            [list(piece) for piece in chain.readable.pieces],
            [list(piece) for piece in chain.writable.pieces],
        )

    def load_chain(self, state: ChainState) -> Chain:
        """Return a chain saved, once the queue itself is loaded; raise :class:`StateError` where it is none."""
        if self._ring is None:
            raise StateError(f"queue {self.index}: a chain, but the queue is not enabled")
        found = Segments(self._ring.memory)
        try:
            for gpa, length in state.readable:
                found.add(gpa, length, 0)
            for gpa, length in state.writable:
                found.add(gpa, length, DESC_F_WRITE)
            return found.chain(state.head, 0, state.slots)
        except (RingError, GuestMemoryError) as error:
            raise StateError(f"queue {self.index}: {error}") from None

    def check(self, state: QueueState, features: int) -> None:
        """Verify that this queue can be in `state`; raise :class:`StateError` otherwise."""
        path = f"queue {self.index}"
        if not state.size <= self.max_size or (self.max_size and not state.size):
            raise StateError(f"{path}: size {state.size} is outside 1..{self.max_size}")
        if not state.ready:
            return
        if features & F_RING_PACKED:
            positions = (state.next_avail & ~EVENT_WRAP_BIT, state.next_used & ~EVENT_WRAP_BIT)
            pending = distance(state.next_avail, state.next_used, state.size)
            if max(positions) >= state.size or not 0 <= pending <= state.size:
                raise StateError(f"{path}: positions {positions} do not fit a ring of {state.size}")
        elif (state.next_avail - state.next_used) & U16 > state.size:
            raise StateError(f"{path}: more chains in use than the ring has entries")

    def load(self, state: QueueState, features: int) -> None:
        """Take over a checked state; raise :class:`StateError` where the ring is not in RAM."""
        self.reset()
        self._features = features
        self.size = state.size
        self.desc, self.driver, self.device = state.desc, state.driver, state.device
        if state.ready:
            try:
                self._map(state.next_avail, state.next_used)
            except GuestMemoryError as error:
                raise StateError(f"queue {self.index}: {error}") from None


def check_chains(queues: Sequence[QueueState], features: int, chains: Sequence[ChainState]) -> None:
    """Verify that `chains` are all those that were popped and not pushed in `queues`; raise :class:`StateError`."""
    for index, queue in enumerate(queues):
        held = [chain for chain in chains if chain.queue == index]
        if not queue.ready:
            pending = 0
        elif features & F_RING_PACKED:
            pending = distance(queue.next_avail, queue.next_used, queue.size)
        else:
            pending = (queue.next_avail - queue.next_used) & U16
            if any(chain.head >= queue.size or chain.slots != 1 for chain in held):
                raise StateError(f"queue {index}: a chain that is outside the queue of {queue.size}")
        if sum(chain.slots for chain in held) != pending:
            raise StateError(f"queue {index}: {pending} entries in use, but the chains in flight are others")
        if len({chain.head for chain in held}) != len(held):
            raise StateError(f"queue {index}: a chain is in flight twice")
    if any(chain.queue >= len(queues) for chain in chains):
        raise StateError("a chain in flight of a queue that is not there")
