"""The memory functions of int 15h: how much there is, the map of it, and moving blocks above 1 MiB.

Advanced Configuration and Power Interface Specification 6.4, section 15.1 (E820h); Ralf Brown's Interrupt List (E801h,
87h, 88h).
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import MASK32, Registers, linear
from pyvm.firmware.e820 import ENTRY, E820Type
from pyvm.memory import FOUR_GIB, GuestMemoryError

SMAP: Final = 0x534D4150
UNSUPPORTED: Final = 0x86
_ONE_MIB: Final = 1 << 20
_SIXTEEN_MIB: Final = 16 << 20
_MAX_88_KIB: Final = 63 << 10
_MAX_E801_KIB: Final = 15 << 10
_BLOCK_64K: Final = 64 << 10

# AH=87: the descriptors of source and destination in the caller's table, and what can go wrong
_SOURCE: Final = 0x10
_DESTINATION: Final = 0x18
_MAX_WORDS: Final = 0x8000
MOVE_FAILED: Final = 0x02


class Memory:
    """The functions."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _low_end(self) -> int:
        """Return where the RAM that begins at 1 MiB ends."""
        entries = [entry for entry in self._core.machine.e820 if entry.type == E820Type.RAM]
        return next((min(entry.end, FOUR_GIB) for entry in entries if entry.start == _ONE_MIB), _ONE_MIB)

    def map(self, registers: Registers) -> None:
        """AX=E820: one entry of the memory map at es:di; EBX says which, and which comes next."""
        entries = self._core.machine.e820
        index = registers.ebx
        if registers.edx != SMAP or registers.ecx < ENTRY.size or index >= len(entries):
            registers.fail(UNSUPPORTED)
            return
        self._core.write_at(registers.es, registers.di, entries[index].pack())
        registers.ebx = index + 1 if index + 1 < len(entries) else 0
        registers.eax, registers.ecx = SMAP, ENTRY.size
        registers.carry = False

    def sizes(self, registers: Registers) -> None:
        """AX=E801: KiB from 1 to 16 MiB, and blocks of 64 KiB above."""
        end = self._low_end()
        kilobytes = min((end - _ONE_MIB) >> 10, _MAX_E801_KIB)
        blocks = max(end - _SIXTEEN_MIB, 0) // _BLOCK_64K
        registers.ax = registers.cx = kilobytes
        registers.bx = registers.dx = blocks
        registers.carry = False

    def extended_size(self, registers: Registers) -> None:
        """AH=88: KiB from 1 MiB up, at most 63 MiB."""
        registers.ax = min((self._low_end() - _ONE_MIB) >> 10, _MAX_88_KIB)
        registers.carry = False

    def move(self, registers: Registers) -> None:
        """AH=87: copy CX words between two addresses that descriptors at es:si hold."""
        length = registers.cx * 2
        if registers.cx > _MAX_WORDS:
            registers.fail(MOVE_FAILED)
            return
        table = self._core.read(linear(registers.es, registers.si), 0x30)
        try:
            data = self._core.read(_base(table[_SOURCE : _SOURCE + 8]), length)
            self._core.write(_base(table[_DESTINATION : _DESTINATION + 8]), data)
        except GuestMemoryError:
            registers.fail(MOVE_FAILED)
            return
        registers.succeed()


def _base(descriptor: bytes) -> int:
    """Return the address in a segment descriptor."""
    return (int.from_bytes(descriptor[2:5], "little") | descriptor[7] << 24) & MASK32
