"""The bus-master engine of one IDE channel.

Programming Interface for Bus Master IDE Controller, revision 1.0 (SFF-8038i).  The guest writes the address of a table
of physical region descriptors (PRDs), sets the start bit and gives a DMA command to the drive; data moves when both
have been done, in either order.  The descriptors of a whole command become one list of views of guest RAM, which the
drive hands to its back end: no byte is copied here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.state import State, StateError, flag, uint

# Registers, offsets in ports (section 2)
COMMAND: Final = 0
STATUS: Final = 2
TABLE: Final = 4  # 32 bits, bits 1:0 read 0
PORTS: Final = 8

COMMAND_START: Final = 1 << 0
COMMAND_TO_MEMORY: Final = 1 << 3  # kept; the drive knows the direction from its command
COMMAND_WRITABLE: Final = COMMAND_START | COMMAND_TO_MEMORY

STATUS_ACTIVE: Final = 1 << 0  # read-only
STATUS_ERROR: Final = 1 << 1  # cleared by writing a one
STATUS_INTERRUPT: Final = 1 << 2  # cleared by writing a one
STATUS_DRIVE_CAPABLE: Final = 0x60  # for software: drives 0 and 1 were set up for DMA
STATUS_SIMPLEX: Final = 1 << 7  # read-only 0: both channels work at a time
STATUS_CLEAR: Final = STATUS_ERROR | STATUS_INTERRUPT

# Physical region descriptor: u32 address, u16 byte count (0: 64 KiB), u16 flags
PRD_SIZE: Final = 8
PRD_END_OF_TABLE: Final = 0x8000_0000
PRD_COUNT_MASK: Final = 0xFFFE
PRD_ADDRESS_MASK: Final = 0xFFFF_FFFE
MAX_PRD: Final = 0x1_0000
TABLE_LIMIT: Final = 0x1_0000
"""A table does not cross a boundary of 64 KiB: where it would, it ends."""


class DmaClient(Protocol):
    """A drive that has asked for its data to be moved."""

    def dma_start(self, buffers: list[memoryview]) -> None:
        """Go: `buffers` are as many bytes as were asked for, or fewer where the table holds no more."""

    def dma_failed(self) -> None:
        """The table, or memory that it names, is not RAM."""

    def dma_stop(self) -> None:
        """The engine is being stopped: end what was started, if need be without success."""


class BusMasterState(State):
    """Registers; `next_entry`, `rest_address`, `rest` and `ended` say where in its table the engine is."""

    command: int = uint(8)
    status: int = uint(8)
    table: int = uint(32)
    next_entry: int = uint(32)
    rest_address: int = uint(32)
    rest: int = uint(17)
    ended: bool = flag()


class BusMaster:
    """The engine.  `enabled` tells whether the function may master the bus."""

    def __init__(self, memory: GuestMemory, enabled: Callable[[], bool]) -> None:
        self._memory = memory
        self._enabled = enabled
        self._state = BusMasterState()
        self._client: DmaClient | None = None
        self._length = 0
        self._to_memory = False
        self._running = False
        self._ranges: list[tuple[int, int]] = []
        self._origin = BusMasterState()

    # -- registers --------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read one of the 8 ports, or more at a time."""
        value = 0
        for index in range(size):
            value |= self._read_byte(offset + index) << (8 * index)
        return value

    def _read_byte(self, offset: int) -> int:
        if offset == COMMAND:
            return self._state.command
        if offset == STATUS:
            return self._state.status
        if TABLE <= offset < PORTS:
            return self._state.table >> (8 * (offset - TABLE)) & 0xFF
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one of the 8 ports, or more at a time."""
        for index in range(size):
            self._write_byte(offset + index, value >> (8 * index) & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        state = self._state
        if offset == COMMAND:
            self._write_command(value & COMMAND_WRITABLE)
        elif offset == STATUS:
            kept = state.status & ~STATUS_DRIVE_CAPABLE & ~(value & STATUS_CLEAR)
            state.status = kept | value & STATUS_DRIVE_CAPABLE
        elif TABLE <= offset < PORTS:
            shift = 8 * (offset - TABLE)
            state.table = (state.table & ~(0xFF << shift) | value << shift) & 0xFFFF_FFFC

    def _write_command(self, value: int) -> None:
        state = self._state
        changed = state.command ^ value
        state.command = value
        if not changed & COMMAND_START:
            return
        if value & COMMAND_START:
            state.status |= STATUS_ACTIVE
            state.next_entry = state.table
            state.rest = 0
            state.ended = False
            self.kick()
        else:
            if self._running and self._client is not None:
                self._client.dma_stop()
            state.status &= ~STATUS_ACTIVE

    def interrupt(self) -> None:
        """The drive has raised its interrupt."""
        self._state.status |= STATUS_INTERRUPT

    # -- for drives -------------------------------------------------------------------------------------------------

    def request(self, client: DmaClient, length: int, *, to_memory: bool) -> None:
        """Move up to `length` bytes once the guest has started the engine: `client` hears when."""
        self._client = client
        self._length = length + (length & 1)  # the bus moves words
        self._to_memory = to_memory
        self._running = False
        self.kick()

    def kick(self) -> None:
        """Go on where the guest has now done everything that was missing."""
        client = self._client
        if client is None or self._running or not self._state.status & STATUS_ACTIVE or not self._enabled():
            return
        self._running = True
        try:
            buffers = self._collect()
        except GuestMemoryError:
            self._end()
            self._state.status = self._state.status & ~STATUS_ACTIVE | STATUS_ERROR
            client.dma_failed()
            return
        client.dma_start(buffers)

    def complete(self, moved: int | None = None) -> None:
        """The drive has moved what it wanted to: `moved` bytes, None for all that was asked for.

        The engine stays active where its table holds more (section 3.1).
        """
        collected = sum(length for _, length in self._ranges)
        self._end()
        if self._state.ended and not self._state.rest and (moved is None or moved >= collected):
            self._state.status &= ~STATUS_ACTIVE

    def abort(self) -> None:
        """The drive has given up in the midst: the engine stops."""
        self._end()
        self._state.status &= ~STATUS_ACTIVE

    def withdraw(self, client: DmaClient) -> None:
        """`client` was reset and wants nothing any more."""
        if self._client is client:
            self._end()

    def _end(self) -> None:
        if self._to_memory:
            for address, length in self._ranges:
                self._memory.written(address, length)
        self._client = None
        self._running = False
        self._ranges = []

    def _collect(self) -> list[memoryview]:
        """Follow the table for as many bytes as the drive wants."""
        state = self._state
        self._origin = state.copy()
        views: list[memoryview] = []
        ranges: list[tuple[int, int]] = []
        wanted = self._length
        while wanted:
            if not state.rest and not self._next_descriptor():
                break
            count = min(wanted, state.rest)
            views.append(self._memory.view(state.rest_address, count))
            if ranges and sum(ranges[-1]) == state.rest_address:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + count)
            else:
                ranges.append((state.rest_address, count))
            state.rest_address = (state.rest_address + count) & 0xFFFF_FFFF
            state.rest -= count
            wanted -= count
        self._ranges = ranges
        return views

    def _next_descriptor(self) -> bool:
        """Take the next descriptor; return False where the table has ended."""
        state = self._state
        if state.ended:
            return False
        address = self._memory.read_u32(state.next_entry)
        word = self._memory.read_u32(state.next_entry + 4)
        state.rest_address = address & PRD_ADDRESS_MASK
        state.rest = word & PRD_COUNT_MASK or MAX_PRD
        state.next_entry = (state.next_entry + PRD_SIZE) & 0xFFFF_FFFF
        state.ended = bool(word & PRD_END_OF_TABLE) or state.next_entry % TABLE_LIMIT < PRD_SIZE
        return True

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on; the drives have been reset."""
        self._end()
        self._state = BusMasterState()

    def save(self) -> BusMasterState:
        """Return the registers.  A drive whose data is being moved asks again after a load."""
        state = self._state.copy()
        if self._running:
            origin = self._origin
            state.next_entry, state.ended = origin.next_entry, origin.ended
            state.rest_address, state.rest = origin.rest_address, origin.rest
        return state

    def check(self, state: BusMasterState) -> None:
        """Raise StateError unless the engine can be in `state`."""
        state.check()
        if state.command & ~COMMAND_WRITABLE or state.status & (STATUS_SIMPLEX | 0x18) or state.table & 3:
            raise StateError("BusMasterState: bits that are never set")
        if state.status & STATUS_ACTIVE and not state.command & COMMAND_START:
            raise StateError("BusMasterState.status: active without having been started")
        if state.rest > MAX_PRD or state.next_entry & 3 or state.rest_address & 1 or state.rest & 1:
            raise StateError("BusMasterState.rest: not a descriptor")

    def load(self, state: BusMasterState) -> None:
        """Take over registers that :meth:`check` has passed, before the drives are loaded."""
        self._end()
        self._state = state.copy()
