"""What a PC keeps in battery-backed memory about itself, for firmware to read.

The bytes from 0x10 up are those of the IBM AT and the extensions that virtual machines use (Ralf Brown's CMOS memory
list): how much memory there is, how many CPUs, which floppy drives, and where to boot from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.devices.rtc import Rtc

SHUTDOWN_STATUS = 0x0F
RESUME_FROM_RAM = 0xFE
FLOPPY_TYPES = 0x10
EQUIPMENT = 0x14
_BASE_MEMORY = 0x15  # KiB
_EXTENDED_MEMORY = (0x17, 0x30)  # KiB above 1 MiB, at most 64 MiB less 1 KiB
_MEMORY_ABOVE_16M = 0x34  # units of 64 KiB, below 4 GiB
_MEMORY_ABOVE_4G = 0x5B  # units of 64 KiB, three bytes
_CPU_COUNT = 0x5F  # less one
_BOOT_FIRST, _BOOT_THIRD = 0x3D, 0x38

_KIB, _MIB, _UNIT = 1 << 10, 1 << 20, 64 << 10
_EQUIPMENT_FPU, _EQUIPMENT_MOUSE = 1 << 1, 1 << 2
_EQUIPMENT_FLOPPY = (0x00, 0x01, 0x41)
_BOOT_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}


def describe_memory(rtc: Rtc, low: int, high: int, cpus: int) -> None:
    """Store the sizes in bytes of the memory below and from 4 GiB, and the number of CPUs."""
    _word(rtc, _BASE_MEMORY, 640)
    extended = min(max(low - _MIB, 0) // _KIB, 0xFFFF)
    for index in _EXTENDED_MEMORY:
        _word(rtc, index, extended)
    _word(rtc, _MEMORY_ABOVE_16M, min(max(low - 16 * _MIB, 0) // _UNIT, 0xFFFF))
    units = high // _UNIT
    _word(rtc, _MEMORY_ABOVE_4G, units & 0xFFFF)
    rtc.set_cmos(_MEMORY_ABOVE_4G + 2, units >> 16 & 0xFF)
    describe_cpus(rtc, cpus)


def describe_cpus(rtc: Rtc, cpus: int) -> None:
    """Store the number of CPUs."""
    rtc.set_cmos(_CPU_COUNT, cpus - 1)


def describe_floppies(rtc: Rtc, types: tuple[int, int]) -> None:
    """Store the types of the two floppy drives (0: none), and what other equipment there is."""
    rtc.set_cmos(FLOPPY_TYPES, types[0] << 4 | types[1])
    count = sum(1 for kind in types if kind)
    rtc.set_cmos(EQUIPMENT, _EQUIPMENT_FPU | _EQUIPMENT_MOUSE | _EQUIPMENT_FLOPPY[count])


def describe_boot_order(rtc: Rtc, letters: str, *, check_floppies: bool = True) -> None:
    """Store the drives to boot from, as `-boot order=` names them, and whether floppies need a signature for that."""
    codes = [_BOOT_CODES[letter] for letter in letters if letter in _BOOT_CODES][:3]
    first, second, third = codes + [0] * (3 - len(codes))
    rtc.set_cmos(_BOOT_FIRST, second << 4 | first)
    rtc.set_cmos(_BOOT_THIRD, third << 4 | (not check_floppies))


def _word(rtc: Rtc, index: int, value: int) -> None:
    rtc.set_cmos(index, value & 0xFF)
    rtc.set_cmos(index + 1, value >> 8)
