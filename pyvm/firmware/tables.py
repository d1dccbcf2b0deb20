"""Puts the tables that describe the machine into guest RAM, and offers them for fw_cfg.

Root pointers lie where systems look for them, in the segment at 0xf0000; the tables they lead to lie at the top of low
RAM, which the memory map keeps from use.  The lower half of the segment is this module's; the BIOS has the upper one.

What makes the tables is loaded when they are made: a machine that goes on from a saved state has them in its RAM.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import TYPE_CHECKING

from pyvm.firmware import table_loader
from pyvm.firmware.e820 import ACPI_RESERVE, BIOS_END, EBDA_START, E820Entry, high_ram_end, low_ram_end, pc_memory_map
from pyvm.firmware.errors import BootError
from pyvm.firmware.machine_info import MachineInfo
from pyvm.memory import PAGE_SIZE, GuestMemory
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.firmware.acpi import AcpiTables
    from pyvm.firmware.smbios import SmbiosTables

SEGMENT_START = 0xF0000
SEGMENT_END = 0xF8000
_ALIGN = 16

# BIOS data area: what systems look up without calling the BIOS.
BDA = 0x400
_BDA_COM_PORTS = BDA
_BDA_EBDA_SEGMENT = BDA + 0x0E
_BDA_EQUIPMENT = BDA + 0x10
_BDA_MEMORY_KIB = BDA + 0x13
_BDA_SIZE = 0x100
_EQUIPMENT_FPU = 1 << 1
_EQUIPMENT_MOUSE = 1 << 2
_EQUIPMENT_SERIAL_SHIFT = 9
_MAX_COM_PORTS = 4

SMBIOS_TABLES_FILE = "etc/smbios/smbios-tables"
SMBIOS_ANCHOR_FILE = "etc/smbios/smbios-anchor"
FW_CFG_FILES = (
    table_loader.TABLES_FILE,
    table_loader.RSDP_FILE,
    table_loader.LOADER_FILE,
    SMBIOS_TABLES_FILE,
    SMBIOS_ANCHOR_FILE,
)
"""What :meth:`Tables.fw_cfg_files` returns, by name."""


@record(frozen=True)
class InstalledTables:
    """Where the tables are, and the memory map that goes with them."""

    e820: list[E820Entry]
    rsdp: int
    facs: int
    smbios: int
    mp_pointer: int
    generation_id: int = 0
    """Where there is room for the identifier of the machine's life, 0 where there is none."""


class Tables:
    """All tables of one machine.  Building them takes a few milliseconds: each is made once, when it is asked for."""

    def __init__(self, info: MachineInfo) -> None:
        self.info = info

    def rebuild(self, info: MachineInfo) -> None:
        """Describe another machine from now on."""
        self.info = info
        for made in ("acpi", "smbios", "mp_table"):
            vars(self).pop(made, None)

    @cached_property
    def acpi(self) -> AcpiTables:
        """The ACPI tables."""
        from pyvm.firmware import acpi

        return acpi.build(self.info)

    @cached_property
    def smbios(self) -> SmbiosTables:
        """The SMBIOS structures.  Raises :class:`BootError` where they cannot say what the user wants."""
        from pyvm.firmware import smbios

        return smbios.build(self.info)

    @cached_property
    def mp_table(self) -> bytes:
        """The MultiProcessor table."""
        from pyvm.firmware import mptable

        return mptable.build(self.info)

    def build(self) -> None:
        """Make all that was not made yet.  Raises :class:`BootError`."""
        _ = self.acpi, self.smbios, self.mp_table

    @property
    def reserve(self) -> int:
        """Bytes at the top of low RAM that the tables need, in whole pages."""
        from pyvm.firmware import acpi

        needed = len(self.acpi.tables.data) + len(self.smbios.structures) + len(self.mp_table) + 3 * acpi.FACS_ALIGN
        return max(ACPI_RESERVE, (needed + PAGE_SIZE - 1) & -PAGE_SIZE)

    def memory_map(self, memory: GuestMemory) -> list[E820Entry]:
        """Return the E820 map of `memory` with the tables' part reserved."""
        return pc_memory_map(memory.blocks, self.reserve)

    def install(self, memory: GuestMemory) -> InstalledTables:
        """Write everything into guest RAM.  Raises :class:`BootError` where there is too little of it."""
        from pyvm.firmware import acpi, mptable

        low, high = low_ram_end(memory.blocks), high_ram_end(memory.blocks)
        if (low, high) != (self.info.low_ram_end, self.info.high_ram_end):
            raise ValueError("the tables describe a machine with other memory")
        start = low - self.reserve
        if start < BIOS_END:
            raise BootError(f"{low >> 10} KiB of memory are too little: the tables alone need {self.reserve >> 10} KiB")
        upper = _Area(memory, start, low)
        segment = _Area(memory, SEGMENT_START, SEGMENT_END)
        tables = upper.reserve(len(self.acpi.tables.data), acpi.FACS_ALIGN)
        memory.write(tables, self.acpi.tables.at(tables))
        rsdp = segment.add(self.acpi.rsdp.at(tables))
        structures = (segment if segment.fits(len(self.smbios.structures)) else upper).add(self.smbios.structures)
        entry_point = segment.add(self.smbios.entry_point(structures))
        mp_pointer = segment.reserve(mptable.FLOATING_POINTER_SIZE, mptable.FLOATING_POINTER_ALIGN)
        mp_table = (segment if segment.fits(len(self.mp_table)) else upper).add(self.mp_table)
        memory.write(mp_pointer, mptable.floating_pointer(mp_table))
        memory.write(BDA, self._bios_data())
        offsets = self.acpi.offsets
        return InstalledTables(
            e820=self.memory_map(memory),
            rsdp=rsdp,
            facs=tables + offsets["FACS"],
            smbios=entry_point,
            mp_pointer=mp_pointer,
            generation_id=tables + offsets[acpi.GENERATION_ID] if acpi.GENERATION_ID in offsets else 0,
        )

    def _bios_data(self) -> bytes:
        data = bytearray(_BDA_SIZE)
        ports = sorted(self.info.serial_ports, key=lambda port: port.number)[:_MAX_COM_PORTS]
        for index, port in enumerate(ports):
            struct.pack_into("<H", data, _BDA_COM_PORTS - BDA + 2 * index, port.base)
        equipment = _EQUIPMENT_FPU | len(ports) << _EQUIPMENT_SERIAL_SHIFT
        if self.info.i8042:
            equipment |= _EQUIPMENT_MOUSE
        struct.pack_into("<H", data, _BDA_EQUIPMENT - BDA, equipment)
        struct.pack_into("<H", data, _BDA_EBDA_SEGMENT - BDA, EBDA_START >> 4)
        struct.pack_into("<H", data, _BDA_MEMORY_KIB - BDA, EBDA_START >> 10)
        return bytes(data)

    def fw_cfg_files(self) -> dict[str, bytes]:
        """Return the fw_cfg files from which firmware in the guest makes the same tables.

        The SMBIOS anchor has address 0: the firmware puts the structures where it likes and corrects the anchor.
        """
        return {
            table_loader.TABLES_FILE: bytes(self.acpi.tables.data),
            table_loader.RSDP_FILE: bytes(self.acpi.rsdp.data),
            table_loader.LOADER_FILE: table_loader.script(self.acpi),
            SMBIOS_TABLES_FILE: self.smbios.structures,
            SMBIOS_ANCHOR_FILE: self.smbios.entry_point(0),
        }


def waking_vector(memory: GuestMemory, facs: int) -> int:
    """Return the real-mode address at which a guest wants to be resumed from S3; 0 where it has set none."""
    from pyvm.firmware import acpi

    return memory.read_u32(facs + acpi.FACS_WAKING_VECTOR)


class _Area:
    """A range of RAM that is handed out from its start."""

    def __init__(self, memory: GuestMemory, start: int, end: int) -> None:
        self._memory = memory
        self._next = start
        self._end = end

    def _aligned(self, align: int) -> int:
        return (self._next + align - 1) & -align

    def fits(self, length: int) -> bool:
        """Say whether there is room for `length` bytes and the pointers that still follow."""
        return self._aligned(_ALIGN) + length + 8 * _ALIGN <= self._end

    def reserve(self, length: int, align: int = _ALIGN) -> int:
        """Take `length` bytes and return their address."""
        address = self._aligned(align)
        if address + length > self._end:
            raise BootError("the tables that describe the machine do not fit in memory")
        self._next = address + length
        return address

    def add(self, data: bytes) -> int:
        """Take room for `data`, write it there and return the address."""
        address = self.reserve(len(data))
        self._memory.write(address, data)
        return address
