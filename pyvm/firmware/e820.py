"""The physical memory map that firmware hands to the operating system.

ACPI specification 6.5, section 15 "System Address Map Interfaces".  The map is that of an i440FX machine: usable RAM
around the legacy hole, the top of low RAM kept for ACPI tables, the flash window below 4 GiB, RAM from 4 GiB up.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from pyvm.memory import FOUR_GIB, RamBlock
from pyvm.records import record

EBDA_START = 0x9FC00
EBDA_END = 0xA0000
BIOS_START = 0xF0000
BIOS_END = 0x100000
FLASH_START = 0xFFFC0000
HYPERTRANSPORT_START = 0xFD_0000_0000
HYPERTRANSPORT_END = 0x100_0000_0000

ACPI_RESERVE = 0x23000
"""Bytes at the top of low RAM that are kept for tables, unless the tables need more."""

ENTRY = struct.Struct("<QQI")


class E820Type(IntEnum):
    """What a range is."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5


@record(frozen=True)
class E820Entry:
    """One range of the map; both values in bytes."""

    start: int
    length: int
    type: E820Type

    @property
    def end(self) -> int:
        """The address just behind the range."""
        return self.start + self.length

    def pack(self) -> bytes:
        """Return the 20-byte form that BIOS call E820 and Linux's zero page use."""
        return ENTRY.pack(self.start, self.length, self.type)


def low_ram_end(blocks: list[RamBlock]) -> int:
    """Return the end of the RAM below 4 GiB."""
    return max((block.end for block in blocks if block.gpa < FOUR_GIB), default=0)


def high_ram_end(blocks: list[RamBlock]) -> int:
    """Return the end of the RAM above 4 GiB, or 4 GiB where there is none."""
    return max((block.end for block in blocks if block.gpa >= FOUR_GIB), default=FOUR_GIB)


def pc_memory_map(
    blocks: list[RamBlock], acpi_reserve: int = ACPI_RESERVE, *, hypertransport: bool = True
) -> list[E820Entry]:
    """Return the map for RAM as :func:`pyvm.memory.pc_ram_blocks` places it, in order of address.

    The top `acpi_reserve` bytes of low RAM are reserved.  `hypertransport` reserves the window below 1 TiB where AMD
    processors, which this machine presents, never see RAM.
    """
    ranges: list[tuple[int, int, E820Type]] = []
    low = low_ram_end(blocks)
    ranges.append((0, min(low, EBDA_START), E820Type.RAM))
    ranges.append((EBDA_START, EBDA_END, E820Type.RESERVED))
    ranges.append((BIOS_START, BIOS_END, E820Type.RESERVED))
    top = max(low - acpi_reserve, BIOS_END)
    ranges.append((BIOS_END, min(top, low), E820Type.RAM))
    ranges.append((top, low, E820Type.RESERVED))
    ranges.append((FLASH_START, FOUR_GIB, E820Type.RESERVED))
    high = high_ram_end(blocks)
    if hypertransport and high <= HYPERTRANSPORT_START:
        ranges.append((HYPERTRANSPORT_START, HYPERTRANSPORT_END, E820Type.RESERVED))
    ranges.append((FOUR_GIB, high, E820Type.RAM))
    return [E820Entry(start, end - start, kind) for start, end, kind in sorted(ranges) if end > start]


def hardware_map(blocks: list[RamBlock]) -> list[E820Entry]:
    """Return the map before any firmware has reserved something: all RAM, and what never is RAM."""
    high = high_ram_end(blocks)
    entries = [E820Entry(0, low_ram_end(blocks), E820Type.RAM)]
    if high > FOUR_GIB:
        entries.append(E820Entry(FOUR_GIB, high - FOUR_GIB, E820Type.RAM))
    if high <= HYPERTRANSPORT_START:
        window = HYPERTRANSPORT_END - HYPERTRANSPORT_START
        entries.insert(0, E820Entry(HYPERTRANSPORT_START, window, E820Type.RESERVED))
    return entries


def is_usable(entries: list[E820Entry], start: int, length: int) -> bool:
    """Say whether one RAM range of the map holds all `length` bytes at `start`."""
    return any(entry.type == E820Type.RAM and entry.start <= start and start + length <= entry.end for entry in entries)


def highest_fit(entries: list[E820Entry], length: int, *, floor: int, ceiling: int, align: int = 4096) -> int | None:
    """Return the highest aligned address at which usable RAM in `floor`..`ceiling` holds `length` bytes, or None."""
    best: int | None = None
    for entry in entries:
        if entry.type != E820Type.RAM:
            continue
        start = (min(entry.end, ceiling) - length) & -align
        if start >= max(entry.start, floor) and (best is None or start > best):
            best = start
    return best


def lowest_fit(entries: list[E820Entry], length: int, *, floor: int, ceiling: int, align: int = 4096) -> int | None:
    """Return the lowest aligned address at which usable RAM in `floor`..`ceiling` holds `length` bytes, or None."""
    best: int | None = None
    for entry in entries:
        if entry.type != E820Type.RAM:
            continue
        start = (max(entry.start, floor) + align - 1) & -align
        if start + length <= min(entry.end, ceiling) and (best is None or start < best):
            best = start
    return best
