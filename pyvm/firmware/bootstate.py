"""The processor state in which a boot loader enters a kernel.

A loader writes what the kernel finds in memory and returns a :class:`BootState`: a plain record that the vCPU takes
over before its first instruction.  The states made here are those of the Linux/x86 boot protocol, sections "32-bit
boot protocol" and "64-bit boot protocol"; PVH and Multiboot ask for the same flat 32-bit state.

Loaders share the memory below 1 MiB as laid out by the constants here.  Kernels copy what they need from it early.
"""

from __future__ import annotations

import struct
from enum import Enum

from pyvm.memory import GuestMemory
from pyvm.records import record

# Memory below 1 MiB while a kernel starts.
GDT_ADDRESS = 0x1000
PAGE_TABLES = 0x2000  # PML4, PDPT and four page directories: 0x2000-0x7fff
BOOT_PARAMS = 0x8000  # Linux's zero page, or the information structure of PVH and Multiboot
BOOT_LISTS = 0x9000  # lists that the structure points to: 0x9000-0xffff
COMMAND_LINE = 0x10000
LOW_MEMORY_END = 0x9F000  # nothing is placed from here up to 1 MiB
HIGH_MEMORY = 0x100000

# Selectors that Linux's boot protocol fixes.
BOOT_CS = 0x10
BOOT_DS = 0x18
BOOT_TR = 0x20

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
RFLAGS_FIXED = 1 << 1

# Segment attributes at their places in the second word of a descriptor.
ATTR_ACCESSED = 1 << 8
ATTR_WRITABLE = 1 << 9
ATTR_READABLE = 1 << 9
ATTR_CODE = 1 << 11
ATTR_USER = 1 << 12  # code or data, not a system segment
ATTR_PRESENT = 1 << 15
ATTR_LONG = 1 << 21
ATTR_BIG = 1 << 22
ATTR_GRANULARITY = 1 << 23
ATTR_BUSY_TSS = 0xB << 8

_DATA = ATTR_PRESENT | ATTR_USER | ATTR_WRITABLE | ATTR_ACCESSED
_CODE = ATTR_PRESENT | ATTR_USER | ATTR_CODE | ATTR_READABLE | ATTR_ACCESSED

_PAGE_PRESENT_WRITABLE = 0x3
_PAGE_LARGE = 0x80
_LARGE_PAGE = 2 << 20
_MAPPED = 4 << 30


class EntryMode(Enum):
    """The processor mode at the first instruction."""

    REAL = "real"
    PROTECTED32 = "protected32"
    LONG64 = "long64"


@record(frozen=True)
class SegmentValue:
    """A segment register with its hidden part.  `limit` is in bytes, `attributes` as in a descriptor's second word."""

    selector: int
    base: int
    limit: int
    attributes: int

    def descriptor(self) -> int:
        """Return the 8-byte GDT entry that would load the hidden part."""
        limit = self.limit >> 12 if self.attributes & ATTR_GRANULARITY else self.limit
        low = (limit & 0xFFFF) | (self.base & 0xFFFF) << 16
        high = (self.base >> 16) & 0xFF | self.attributes | limit & 0xF0000 | self.base & 0xFF000000
        return high << 32 | low


@record(frozen=True)
class BootState:
    """Everything a vCPU is given before its first instruction.

    `registers` holds rax..r15, rip and rflags by name; those not named are 0.  LDT is empty, IDT has limit 0 (0x3ff
    in real mode) and interrupts are off.
    """

    mode: EntryMode
    registers: dict[str, int]
    cs: SegmentValue
    data: SegmentValue
    """What DS, ES, FS, GS and SS hold."""
    tr: SegmentValue
    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    gdt_base: int = 0
    gdt_limit: int = 0
    description: str = ""
    """What is entered and how, for traces."""


def _write_gdt(memory: GuestMemory, cs: SegmentValue, data: SegmentValue, tr: SegmentValue) -> int:
    """Write a GDT with the three segments at their selectors and return its limit."""
    entries = [0] * (BOOT_TR // 8 + 1)
    for segment in (cs, data, tr):
        entries[segment.selector // 8] = segment.descriptor()
    table = struct.pack(f"<{len(entries)}Q", *entries)
    memory.write(GDT_ADDRESS, table)
    return len(table) - 1


def _write_identity_map(memory: GuestMemory) -> int:
    """Map the first 4 GiB one to one with 2 MiB pages; return the address of the top-level table."""
    directories = _MAPPED >> 30
    pml4, pdpt, first = PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    memory.write(pml4, struct.pack("<Q", pdpt | _PAGE_PRESENT_WRITABLE).ljust(0x1000, b"\0"))
    upper = [first + 0x1000 * index | _PAGE_PRESENT_WRITABLE for index in range(directories)]
    memory.write(pdpt, struct.pack(f"<{directories}Q", *upper).ljust(0x1000, b"\0"))
    pages = range(0, _MAPPED, _LARGE_PAGE)
    lower = (page | _PAGE_PRESENT_WRITABLE | _PAGE_LARGE for page in pages)
    memory.write(first, struct.pack(f"<{len(pages)}Q", *lower))
    return pml4


def _tss() -> SegmentValue:
    return SegmentValue(BOOT_TR, 0, 0x67, ATTR_PRESENT | ATTR_BUSY_TSS)


def flat_protected(memory: GuestMemory, registers: dict[str, int], description: str) -> BootState:
    """Write a GDT and return the flat 32-bit state: paging off, 4 GiB segments."""
    cs = SegmentValue(BOOT_CS, 0, 0xFFFFFFFF, _CODE | ATTR_BIG | ATTR_GRANULARITY)
    data = SegmentValue(BOOT_DS, 0, 0xFFFFFFFF, _DATA | ATTR_BIG | ATTR_GRANULARITY)
    limit = _write_gdt(memory, cs, data, _tss())
    return BootState(
        mode=EntryMode.PROTECTED32,
        registers={"rflags": RFLAGS_FIXED} | registers,
        cs=cs,
        data=data,
        tr=_tss(),
        cr0=CR0_PE | CR0_ET,
        gdt_base=GDT_ADDRESS,
        gdt_limit=limit,
        description=description,
    )


def flat_long(memory: GuestMemory, registers: dict[str, int], description: str) -> BootState:
    """Write a GDT and page tables and return the 64-bit state: the first 4 GiB mapped one to one."""
    cs = SegmentValue(BOOT_CS, 0, 0xFFFFFFFF, _CODE | ATTR_LONG | ATTR_GRANULARITY)
    data = SegmentValue(BOOT_DS, 0, 0xFFFFFFFF, _DATA | ATTR_BIG | ATTR_GRANULARITY)
    limit = _write_gdt(memory, cs, data, _tss())
    return BootState(
        mode=EntryMode.LONG64,
        registers={"rflags": RFLAGS_FIXED} | registers,
        cs=cs,
        data=data,
        tr=_tss(),
        cr0=CR0_PG | CR0_PE | CR0_ET,
        cr3=_write_identity_map(memory),
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        gdt_base=GDT_ADDRESS,
        gdt_limit=limit,
        description=description,
    )
