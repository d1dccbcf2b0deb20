"""MSI-X: interrupts as memory writes, one table entry and one pending bit for each vector.

PCI Local Bus Specification 3.0, section 6.8.  The table and the pending bit array lie in a memory BAR of the function;
the capability in its configuration space holds the enable and the function mask bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.devices.pci import constants as c
from pyvm.state import State, StateError, blob

EXCLUSIVE_BAR_SIZE: Final = 4096


class MsixState(State):
    """Table and pending bits; the control bits are part of configuration space."""

    table: bytes = blob(c.MSIX_MAX_VECTORS * c.MSIX_ENTRY_SIZE)
    pending: bytes = blob(c.MSIX_MAX_VECTORS // 8)


def default_pba_offset(vectors: int) -> int:
    """Return where the pending bits go behind a table at 0: halfway in a 4 KiB BAR, or just behind a longer table."""
    return max(EXCLUSIVE_BAR_SIZE // 2, -(-vectors * c.MSIX_ENTRY_SIZE // 8) * 8)


class Msix:
    """The MSI-X logic of one function.

    `control` reads the capability's message control word; `send` delivers a message (address, data).
    """

    def __init__(
        self,
        vectors: int,
        table_offset: int,
        pba_offset: int,
        control: Callable[[], int],
        send: Callable[[int, int], None],
    ) -> None:
        if not 1 <= vectors <= c.MSIX_MAX_VECTORS:
            raise ValueError(f"MSI-X cannot have {vectors} vectors")
        self.vectors = vectors
        self.table_offset = table_offset
        self.pba_offset = pba_offset
        self._control = control
        self._send = send
        self._table = bytearray(vectors * c.MSIX_ENTRY_SIZE)
        self._pending = bytearray(-(-vectors // 64) * 8)
        self._enabled = False
        self._masked = False
        self.reset()

    @property
    def bar_size(self) -> int:
        """The size in bytes of a BAR that holds just table and pending bits."""
        end = max(self.table_offset + len(self._table), self.pba_offset + len(self._pending))
        return max(EXCLUSIVE_BAR_SIZE, 1 << (end - 1).bit_length())

    @property
    def enabled(self) -> bool:
        """Whether the driver chose MSI-X: the function must not use INTx then."""
        return self._enabled

    def reset(self) -> None:
        """Mask all vectors and forget what is pending."""
        self._table[:] = bytes(len(self._table))
        for vector in range(self.vectors):
            self._table[vector * c.MSIX_ENTRY_SIZE + c.MSIX_ENTRY_CONTROL] = c.MSIX_ENTRY_MASKED
        self._pending[:] = bytes(len(self._pending))
        self._read_control()

    def _read_control(self) -> None:
        control = self._control()
        self._enabled = bool(control & c.MSIX_CONTROL_ENABLE)
        self._masked = bool(control & c.MSIX_CONTROL_MASK)

    def control_written(self) -> None:
        """The message control word may have changed: deliver what that unmasks."""
        was_open = self._enabled and not self._masked
        self._read_control()
        if self._enabled and not self._masked and not was_open and any(self._pending):
            for vector in range(self.vectors):
                self._deliver_pending(vector)

    def notify(self, vector: int) -> None:
        """Signal `vector`: send its message, or leave it pending while it is masked; nothing unless enabled."""
        if not self._enabled or not 0 <= vector < self.vectors:
            return
        entry = vector * c.MSIX_ENTRY_SIZE
        if self._masked or self._table[entry + c.MSIX_ENTRY_CONTROL] & c.MSIX_ENTRY_MASKED:
            self._pending[vector >> 3] |= 1 << (vector & 7)
            return
        address = int.from_bytes(self._table[entry : entry + 8], "little")
        self._send(address, int.from_bytes(self._table[entry + 8 : entry + 12], "little"))

    def is_masked(self, vector: int) -> bool:
        """Whether a message of `vector` would stay pending."""
        control = self._table[vector * c.MSIX_ENTRY_SIZE + c.MSIX_ENTRY_CONTROL]
        return self._masked or bool(control & c.MSIX_ENTRY_MASKED)

    def clear_pending(self, vector: int) -> None:
        """The cause of `vector` went away before its message was sent."""
        if 0 <= vector < self.vectors:
            self._pending[vector >> 3] &= ~(1 << (vector & 7))

    def _deliver_pending(self, vector: int) -> None:
        bit = 1 << (vector & 7)
        if self._pending[vector >> 3] & bit and self._enabled and not self.is_masked(vector):
            self._pending[vector >> 3] &= ~bit
            self.notify(vector)

    def read(self, offset: int, size: int) -> int:
        """Read table or pending bits; `offset` counts from the start of the BAR, bytes outside of both read 0."""
        for start, memory in ((self.table_offset, self._table), (self.pba_offset, self._pending)):
            if start <= offset < start + len(memory):
                return int.from_bytes(memory[offset - start : offset - start + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table (pending bits are read-only); `offset` counts from the start of the BAR."""
        start = offset - self.table_offset
        if not 0 <= start < len(self._table):
            return
        end = min(start + size, len(self._table))
        data = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        self._table[start:end] = data[: end - start]
        first, last = start // c.MSIX_ENTRY_SIZE, (end - 1) // c.MSIX_ENTRY_SIZE
        for vector in range(first, last + 1):
            entry = vector * c.MSIX_ENTRY_SIZE
            self._table[entry] &= ~3 & 0xFF  # messages are dwords
            control = entry + c.MSIX_ENTRY_CONTROL
            self._table[control : control + 4] = bytes((self._table[control] & c.MSIX_ENTRY_MASKED, 0, 0, 0))
            self._deliver_pending(vector)

    def save(self) -> MsixState:
        """Return table and pending bits."""
        return MsixState(bytes(self._table), bytes(self._pending))

    def check(self, state: MsixState) -> None:
        """Raise StateError where `state` is not of a function with as many vectors."""
        state.check()
        if len(state.table) != len(self._table) or len(state.pending) != len(self._pending):
            raise StateError(f"MsixState: not the tables of {self.vectors} vectors")

    def load(self, state: MsixState) -> None:
        """Take over table and pending bits; configuration space must have been loaded before."""
        self.check(state)
        self._table[:] = state.table
        self._pending[:] = state.pending
        self._read_control()
