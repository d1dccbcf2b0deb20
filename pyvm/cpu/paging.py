"""Paging as a debugger sees it: which physical address a linear address stands for, and all that is mapped.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, chapter 4: 32-bit, PAE and 4-level paging.
Nothing is checked but presence: access rights are for guest code.  The tables belong to the guest, and may be anything:
what is walked is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pyvm.memory import GuestMemoryError
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState
    from pyvm.memory import GuestMemory

PRESENT = 1 << 0
WRITE = 1 << 1
USER = 1 << 2
LARGE = 1 << 7
"""In an entry above the last level: it maps a page by itself."""

CR0_PG = 1 << 31
CR4_PSE, CR4_PAE = 1 << 4, 1 << 5
EFER_LMA = 1 << 10

PAGE_SIZE = 4096
TABLE_LIMIT = 8192
"""Most tables that are walked for one list of mappings."""

_ADDRESS = 0x000F_FFFF_FFFF_F000
_LINEAR_BITS = 48


class TooManyTablesError(Exception):
    """The guest's page tables are more than anybody wants to walk."""


class Mapping(NamedTuple):
    """A run of linear addresses that stands for a run of physical ones; all in bytes."""

    linear: int
    physical: int
    length: int


@record(frozen=True)
class _Level:
    """How one level of tables is indexed."""

    shift: int
    count: int
    large: bool
    """Whether an entry can map a page by itself."""


@record(frozen=True)
class _Mode:
    """A paging mode: the size of an entry in bytes, and its levels from the root down."""

    entry: int
    root: int
    levels: tuple[_Level, ...]


def _mode(registers: RegisterState) -> _Mode | None:
    """Return the paging mode, None where paging is off."""
    if not registers.cr0 & CR0_PG:
        return None
    if registers.efer & EFER_LMA:
        long = (_Level(39, 512, False), _Level(30, 512, True), _Level(21, 512, True), _Level(12, 512, False))
        return _Mode(8, registers.cr3 & _ADDRESS, long)
    if registers.cr4 & CR4_PAE:
        pae = (_Level(30, 4, False), _Level(21, 512, True), _Level(12, 512, False))
        return _Mode(8, registers.cr3 & 0xFFFF_FFE0, pae)
    large = bool(registers.cr4 & CR4_PSE)
    return _Mode(4, registers.cr3 & 0xFFFF_F000, (_Level(22, 1024, large), _Level(12, 1024, False)))


def _target(entry: int, size: int, level: _Level) -> int:
    """Return the physical address in an entry that maps a page of its level."""
    if size == 4:
        # A large page of 32-bit paging has bits 32 to 39 of its address in bits 13 to 20 of the entry.
        high = (entry >> 13 & 0xFF) << 32 if level.large else 0
        return high | entry & 0xFFFF_FFFF & -(1 << level.shift)
    return entry & _ADDRESS & -(1 << level.shift)


def translate(memory: GuestMemory, registers: RegisterState, linear: int) -> int | None:
    """Return the physical address of a linear one, None where nothing is mapped there."""
    mode = _mode(registers)
    if mode is None:
        return linear & (registers.a20_mask | ~0xFFFF_FFFF)
    if mode.levels[0].shift == 39:
        linear &= (1 << _LINEAR_BITS) - 1
    elif linear >> 32:
        return None
    table = mode.root
    for level in mode.levels:
        index = linear >> level.shift & level.count - 1
        try:
            entry = int.from_bytes(memory.read(table + index * mode.entry, mode.entry), "little")
        except GuestMemoryError:
            return None
        if not entry & PRESENT:
            return None
        if level.shift == 12 or (level.large and entry & LARGE):
            physical = _target(entry, mode.entry, level) | linear & (1 << level.shift) - 1
            return physical & (registers.a20_mask | ~0xFFFF_FFFF)
        table = _target(entry, mode.entry, _Level(12, 0, False))
    return None


def mappings(memory: GuestMemory, registers: RegisterState) -> list[Mapping] | None:
    """Return all that is mapped, in order of linear address, runs joined; None where paging is off.

    Raises :class:`TooManyTablesError`.
    """
    mode = _mode(registers)
    if mode is None:
        return None
    joined: list[Mapping] = []
    for linear, physical, length in _Walk(memory, mode).pages():
        last = joined[-1] if joined else None
        if last is not None and (last.linear + last.length, last.physical + last.length) == (linear, physical):
            joined[-1] = Mapping(last.linear, last.physical, last.length + length)
        else:
            joined.append(Mapping(linear, physical, length))
    return joined


class _Walk:
    """One walk over all tables."""

    def __init__(self, memory: GuestMemory, mode: _Mode) -> None:
        self._memory = memory
        self._mode = mode
        self._tables = 0

    def pages(self) -> Iterator[tuple[int, int, int]]:
        """Return linear address, physical address and size of each page."""
        return self._table(self._mode.root, 0, 0)

    def _table(self, table: int, depth: int, base: int) -> Iterator[tuple[int, int, int]]:
        self._tables += 1
        if self._tables > TABLE_LIMIT:
            raise TooManyTablesError("the guest has too many page tables")
        size, level = self._mode.entry, self._mode.levels[depth]
        try:
            content = self._memory.read(table, level.count * size)
        except GuestMemoryError:
            return
        entries = struct.unpack(f"<{level.count}{'Q' if size == 8 else 'I'}", content)
        for index, entry in enumerate(entries):
            if not entry & PRESENT:
                continue
            linear = base + (index << level.shift)
            if level.shift == 39 and index >= 256:
                linear |= 0xFFFF << _LINEAR_BITS
            if level.shift == 12 or (level.large and entry & LARGE):
                yield linear, _target(entry, size, level), 1 << level.shift
            else:
                yield from self._table(_target(entry, size, _Level(12, 0, False)), depth + 1, linear)


class Page(NamedTuple):
    """One page that is mapped, with the entry that maps it and what may be done there at any level."""

    linear: int
    physical: int
    size: int
    entry: int
    rights: int
    """:data:`WRITE` and :data:`USER`, each set where no level forbids it."""


def entries(memory: GuestMemory, registers: RegisterState) -> Iterator[Page]:
    """Yield all pages in order of linear address, none where paging is off.

    Raises :class:`TooManyTablesError`, after what was found before.
    """
    mode = _mode(registers)
    if mode is not None:
        yield from _EntryWalk(memory, mode).below(mode.root, 0, 0, WRITE | USER)


class _EntryWalk:
    """One walk over all tables that keeps entries and rights."""

    def __init__(self, memory: GuestMemory, mode: _Mode) -> None:
        self._memory = memory
        self._mode = mode
        self._tables = 0

    def below(self, table: int, depth: int, base: int, rights: int) -> Iterator[Page]:
        """Yield the pages that a table leads to; `rights` are those of the levels above."""
        self._tables += 1
        if self._tables > TABLE_LIMIT:
            raise TooManyTablesError("the guest has too many page tables")
        size, level = self._mode.entry, self._mode.levels[depth]
        try:
            content = self._memory.read(table, level.count * size)
        except GuestMemoryError:
            return
        for index, (entry,) in enumerate(struct.iter_unpack("<Q" if size == 8 else "<I", content)):
            if not entry & PRESENT:
                continue
            linear = base + (index << level.shift)
            if level.shift == 39 and index >= 256:
                linear |= 0xFFFF << _LINEAR_BITS
            # Entries of the root of PAE paging have no rights of their own.
            own = rights if size == 8 and level.count == 4 else rights & entry
            if level.shift == 12 or (level.large and entry & LARGE):
                yield Page(linear, _target(entry, size, level), 1 << level.shift, entry, own)
            else:
                yield from self.below(_target(entry, size, _Level(12, 0, False)), depth + 1, linear, own)
