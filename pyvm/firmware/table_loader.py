"""The script by which firmware in the guest places ACPI tables that it reads through fw_cfg.

The file `etc/table-loader` is a list of 128-byte commands: allocate a file's memory, add a file's address to a
pointer, compute a checksum, write an address back to a file (QEMU's documentation, docs/specs and
hw/acpi/bios-linker-loader's interface).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.firmware.acpi import AcpiTables, TableBlock

TABLES_FILE = "etc/acpi/tables"
RSDP_FILE = "etc/acpi/rsdp"
LOADER_FILE = "etc/table-loader"

_COMMAND_SIZE = 128
_NAME_SIZE = 56
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM, _WRITE_POINTER = 1, 2, 3, 4
_ZONE_HIGH, _ZONE_F_SEGMENT = 1, 2
_RSDP_ALIGN = 16


def _name(file: str) -> bytes:
    return file.encode("ascii").ljust(_NAME_SIZE, b"\0")


def _command(number: int, body: bytes) -> bytes:
    return (struct.pack("<I", number) + body).ljust(_COMMAND_SIZE, b"\0")


def _fix_up(file: str, block: TableBlock) -> list[bytes]:
    commands = [
        _command(_ADD_POINTER, _name(file) + _name(TABLES_FILE) + struct.pack("<IB", pointer.offset, pointer.size))
        for pointer in block.pointers
    ]
    commands += [
        _command(_ADD_CHECKSUM, _name(file) + struct.pack("<III", item.offset, item.start, item.length))
        for item in block.checksums
    ]
    return commands


def script(acpi: AcpiTables) -> bytes:
    """Return the contents of `etc/table-loader` for these tables."""
    from pyvm.firmware.acpi import FACS_ALIGN, GENERATION_ID

    commands = [
        _command(_ALLOCATE, _name(RSDP_FILE) + struct.pack("<IB", _RSDP_ALIGN, _ZONE_F_SEGMENT)),
        _command(_ALLOCATE, _name(TABLES_FILE) + struct.pack("<IB", FACS_ALIGN, _ZONE_HIGH)),
        *_fix_up(TABLES_FILE, acpi.tables),
        *_fix_up(RSDP_FILE, acpi.rsdp),
    ]
    if GENERATION_ID in acpi.offsets:
        from pyvm.devices.vmgenid import ADDRESS_FILE, ADDRESS_SIZE

        place = struct.pack("<IIB", 0, acpi.offsets[GENERATION_ID], ADDRESS_SIZE)
        commands.append(_command(_WRITE_POINTER, _name(ADDRESS_FILE) + _name(TABLES_FILE) + place))
    return b"".join(commands)
