"""Int 1Ah AH=B1: the PCI BIOS; and the same for the other chapters.

PCI BIOS Specification 2.1, sections 2 and 3.  Everything goes through configuration mechanism #1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers

ADDRESS: Final = 0xCF8
DATA: Final = 0xCFC
_ENABLE: Final = 1 << 31

SUCCESS: Final = 0x00
UNSUPPORTED: Final = 0x81
BAD_VENDOR: Final = 0x83
NOT_FOUND: Final = 0x86
BAD_REGISTER: Final = 0x87

SIGNATURE: Final = 0x20494350  # "PCI "
VERSION: Final = 0x0210
MECHANISM_1: Final = 0x01
LAST_BUS: Final = 0
NO_DEVICE: Final = 0xFFFF

VENDOR_ID: Final = 0x00
CLASS_REVISION: Final = 0x08
HEADER_TYPE: Final = 0x0E
MULTI_FUNCTION: Final = 0x80
_FUNCTIONS: Final = 8
_ALL: Final = 32 * _FUNCTIONS


class Pci:
    """The service.  A function's address is bus << 8 | slot << 3 | function, as in BX."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def read(self, address: int, register: int, size: int) -> int:
        """Read configuration space."""
        self._core.outp(ADDRESS, 4, _ENABLE | address << 8 | register & 0xFC)
        return self._core.inp(DATA + (register & 3), size)

    def write(self, address: int, register: int, size: int, value: int) -> None:
        """Write configuration space."""
        self._core.outp(ADDRESS, 4, _ENABLE | address << 8 | register & 0xFC)
        self._core.outp(DATA + (register & 3), size, value)

    def functions(self) -> Iterator[int]:
        """Yield the address of every function there is."""
        single = False
        for address in range(_ALL):
            if address % _FUNCTIONS and single:
                continue
            present = self.read(address, VENDOR_ID, 2) != NO_DEVICE
            if address % _FUNCTIONS == 0:
                single = not present or not self.read(address, HEADER_TYPE, 1) & MULTI_FUNCTION
            if present:
                yield address

    def find(self, register: int, size: int, value: int, index: int = 0) -> int | None:
        """Return the address of the function number `index` of those that have `value` in a register."""
        for address in self.functions():
            if self.read(address, register, size) == value:
                if index == 0:
                    return address
                index -= 1
        return None

    def call(self, registers: Registers) -> None:
        """Serve int 1Ah AH=B1."""
        function = registers.al
        if function in (0x01, 0x81):
            self._installation_check(registers)
            status = SUCCESS
        elif function in (0x02, 0x82):
            status = self._find_device(registers)
        elif function in (0x03, 0x83):
            status = self._find_class(registers)
        elif function & 0x7F in range(0x08, 0x0E):
            status = self._access(registers, function & 0x7F)
        else:
            status = UNSUPPORTED
        registers.ah = status
        registers.carry = status != SUCCESS

    def _installation_check(self, registers: Registers) -> None:
        registers.al, registers.bx, registers.cl = MECHANISM_1, VERSION, LAST_BUS
        registers.edx = SIGNATURE
        registers.edi = 0  # no entry for protected mode

    def _find_device(self, registers: Registers) -> int:
        if registers.dx == NO_DEVICE:
            return BAD_VENDOR
        return self._found(registers, self.find(VENDOR_ID, 4, registers.cx << 16 | registers.dx, registers.si))

    def _find_class(self, registers: Registers) -> int:
        wanted, index = registers.ecx & 0xFFFFFF, registers.si
        for address in self.functions():
            if self.read(address, CLASS_REVISION, 4) >> 8 == wanted:
                if index == 0:
                    return self._found(registers, address)
                index -= 1
        return NOT_FOUND

    def _found(self, registers: Registers, address: int | None) -> int:
        if address is None:
            return NOT_FOUND
        registers.bx = address
        return SUCCESS

    def _access(self, registers: Registers, function: int) -> int:
        size = 1 << (function - 0x08) % 3
        register = registers.di
        if register > 0xFF or register % size:
            return BAD_REGISTER
        if function >= 0x0B:
            value = registers.ecx & (1 << (8 * size)) - 1
            self.write(registers.bx, register, size, value)
            return SUCCESS
        value = self.read(registers.bx, register, size)
        if size == 4:
            registers.ecx = value
        elif size == 2:
            registers.cx = value
        else:
            registers.cl = value
        return SUCCESS
