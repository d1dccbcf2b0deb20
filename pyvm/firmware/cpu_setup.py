"""What firmware does to the processors before an operating system runs: memory types and the local APIC's wiring.

Intel SDM volume 3, sections 12.11 "Memory Type Range Registers (MTRRs)" and 11.5.1 "Local Vector Table"; MultiProcessor
Specification 1.4, section 3.6.2.2 "Virtual Wire Mode".  Systems complain of firmware that leaves the MTRRs off, or not
the same in all processors, and then do without the page attribute table too.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.firmware.machine_info import MachineInfo
from pyvm.memory import FOUR_GIB

MTRR_PHYS_BASE0 = 0x200
MTRR_PHYS_MASK0 = 0x201
MTRR_FIXED_64K = 0x250  # 0x00000-0x7ffff
MTRR_FIXED_16K = (0x258, 0x259)  # 0x80000-0x9ffff and 0xa0000-0xbffff
MTRR_FIXED_4K = range(0x268, 0x270)  # 0xc0000-0xfffff
MTRR_DEFAULT_TYPE = 0x2FF

TYPE_UNCACHEABLE, TYPE_WRITE_PROTECTED, TYPE_WRITE_BACK = 0, 5, 6
MASK_VALID = 1 << 11
FIXED_ENABLED = 1 << 10
MTRR_ENABLED = 1 << 11
_EIGHT_TIMES = 0x0101010101010101

# Starts of the uncacheable hole below 4 GiB that leave a size which is a power of two.
_HOLE_STARTS = (0x80000000, 0xC0000000, 0xE0000000, 0xF0000000)

LAPIC_SPURIOUS = 0xF0
LAPIC_LINT0 = 0x350
LAPIC_LINT1 = 0x360
_SPURIOUS_VECTOR = 0xFF
_LAPIC_ENABLE = 1 << 8
_DELIVER_EXTINT = 7 << 8
_DELIVER_NMI = 4 << 8


def memory_types(info: MachineInfo, physical_bits: int) -> list[tuple[int, int]]:
    """Return the (MSR, value) pairs to write on every processor.

    RAM is cacheable by default; the legacy display window and the hole below 4 GiB are not, and the BIOS area is
    write-protected.  `physical_bits` is the width of physical addresses that CPUID reports.
    """
    hole = next(start for start in _HOLE_STARTS if start >= info.low_ram_end)
    mask = ((1 << physical_bits) - 1) & -(FOUR_GIB - hole)
    values = [
        (MTRR_FIXED_64K, TYPE_WRITE_BACK * _EIGHT_TIMES),
        (MTRR_FIXED_16K[0], TYPE_WRITE_BACK * _EIGHT_TIMES),
        (MTRR_FIXED_16K[1], TYPE_UNCACHEABLE * _EIGHT_TIMES),
    ]
    values += [(register, TYPE_WRITE_PROTECTED * _EIGHT_TIMES) for register in MTRR_FIXED_4K]
    values.append((MTRR_PHYS_BASE0, hole | TYPE_UNCACHEABLE))
    values.append((MTRR_PHYS_MASK0, mask | MASK_VALID))
    values.append((MTRR_DEFAULT_TYPE, MTRR_ENABLED | FIXED_ENABLED | TYPE_WRITE_BACK))
    return values


def virtual_wire(write: Callable[[int, int, int], None]) -> None:
    """Put the boot processor's local APIC into virtual wire mode: LINT0 passes the PICs on, LINT1 is NMI.

    `write(offset, size, value)` writes its registers.
    """
    write(LAPIC_SPURIOUS, 4, _LAPIC_ENABLE | _SPURIOUS_VECTOR)
    write(LAPIC_LINT0, 4, _DELIVER_EXTINT)
    write(LAPIC_LINT1, 4, _DELIVER_NMI)
