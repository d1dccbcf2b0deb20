"""The POST Memory Manager: memory for option ROMs while they are initialised.

POST Memory Manager Specification 1.01 (Phoenix, Intel), sections 2 and 3.  ROMs find the entry point by a structure in
the BIOS' segment, which is there until booting begins.  The blocks are ordinary memory that nothing else uses until
then; which there are is noted in the extended data area.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.rom import PMM, SEGMENT, SEGMENT_BASE
from pyvm.firmware.e820 import EBDA_START, E820Type
from pyvm.memory import FOUR_GIB
from pyvm.records import record

PARAGRAPH: Final = 16
ALLOCATE, FIND, FREE = 0, 1, 2
FAILED: Final = 0xFFFFFFFF
"""The result of a function that there is not, or not any more."""
NO_BLOCK: Final = 0
ANONYMOUS: Final = 0xFFFFFFFF

# Flags of an allocation
CONVENTIONAL: Final = 1 << 0
EXTENDED: Final = 1 << 1
ALIGNED: Final = 1 << 2  # at a multiple of the lowest bit that is set in the length

_STRUCTURE: Final = struct.Struct("<4sBBBHH5x")
_REVISION: Final = 0x01
_CHECKSUM: Final = 6
_ALLOCATION: Final = struct.Struct("<IIH")
_BLOCK: Final = struct.Struct("<III")
_MOST_BLOCKS: Final = 20
_ARGUMENTS: Final = 6  # on the caller's stack, behind return address and function number

_CONVENTIONAL_START: Final = 0x20000
_EXTENDED_START: Final = 2 << 20
_ONE_MIB: Final = 1 << 20


@record(frozen=True)
class Block:
    """Memory that a ROM has."""

    start: int
    size: int
    handle: int


class MemoryManager:
    """The service."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def open(self) -> None:
        """Let ROMs find the service."""
        entry = self._core.rom.labels["pmm_entry"]
        data = bytearray(_STRUCTURE.pack(b"$PMM", _REVISION, _STRUCTURE.size, 0, entry, SEGMENT))
        data[_CHECKSUM] = -sum(data) & 0xFF
        self._core.memory.write(SEGMENT_BASE + PMM, data)

    def close(self) -> None:
        """The service has ended, and its memory is that of what is booted."""
        self._core.memory.write(SEGMENT_BASE + PMM, bytes(_STRUCTURE.size))
        self._store([])

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, registers: Registers) -> None:
        """Serve a far call, whose arguments are on the stack; the result is in DX:AX."""
        core = self._core
        function = core.memory.read_u16(linear(registers.ss, registers.sp + 4))
        place = linear(registers.ss, registers.sp + _ARGUMENTS)
        is_open = core.memory.read(SEGMENT_BASE + PMM, 4) == b"$PMM"
        result = FAILED
        if is_open and function == ALLOCATE:
            result = self._allocate(*_ALLOCATION.unpack(core.memory.read(place, _ALLOCATION.size)))
        elif is_open and function == FIND:
            result = self._find(core.memory.read_u32(place))
        elif is_open and function == FREE:
            result = self._free(core.memory.read_u32(place))
        registers.ax, registers.dx = result & 0xFFFF, result >> 16

    def _allocate(self, length: int, handle: int, flags: int) -> int:
        """Return the address of a new block of `length` paragraphs, or with 0 how many there are in one piece."""
        blocks = self._blocks()
        regions = [self._region(kind) for kind in (EXTENDED, CONVENTIONAL) if flags & kind]
        if not length:
            return max((end - start for region in regions for start, end in _gaps(region, blocks)), default=0) >> 4
        if len(blocks) >= _MOST_BLOCKS or (handle != ANONYMOUS and self._find(handle)):
            return NO_BLOCK
        size = length * PARAGRAPH
        alignment = size & -size if flags & ALIGNED else PARAGRAPH
        for region in regions:
            for start, end in _gaps(region, blocks):
                address = (end - size) & -alignment
                if address >= start:
                    self._store([*blocks, Block(address, size, handle)])
                    return address
        return NO_BLOCK

    def _find(self, handle: int) -> int:
        return next((block.start for block in self._blocks() if block.handle == handle != ANONYMOUS), NO_BLOCK)

    def _free(self, address: int) -> int:
        blocks = self._blocks()
        others = [block for block in blocks if block.start != address]
        self._store(others)
        return int(len(others) == len(blocks))

    # -- what there is ----------------------------------------------------------------------------------------------

    def _region(self, kind: int) -> tuple[int, int]:
        """Return start and end of the memory of a kind."""
        if kind == CONVENTIONAL:
            return _CONVENTIONAL_START, EBDA_START
        ram = (entry for entry in self._core.machine.e820 if entry.type == E820Type.RAM and entry.start == _ONE_MIB)
        return _EXTENDED_START, max((min(entry.end, FOUR_GIB) for entry in ram), default=_EXTENDED_START)

    def _blocks(self) -> list[Block]:
        """Return the blocks, the highest first; what guests write there themselves is no block."""
        data = self._core.ebda.block(area.PMM_BLOCKS, _MOST_BLOCKS * _BLOCK.size)
        found = [Block(*fields) for fields in _BLOCK.iter_unpack(data) if fields[1]]
        return sorted(found, key=lambda block: block.start, reverse=True)

    def _store(self, blocks: list[Block]) -> None:
        data = b"".join(_BLOCK.pack(block.start, block.size, block.handle) for block in blocks)
        self._core.ebda.set_block(area.PMM_BLOCKS, data.ljust(_MOST_BLOCKS * _BLOCK.size, b"\0"))


def _gaps(region: tuple[int, int], blocks: list[Block]) -> list[tuple[int, int]]:
    """Return the free pieces of a region, the highest first; `blocks` are in that order, too."""
    first, end = region
    gaps = []
    for block in blocks:
        if first <= block.start < end:
            if block.start + block.size < end:
                gaps.append((block.start + block.size, end))
            end = block.start
    if first < end:
        gaps.append((first, end))
    return gaps
