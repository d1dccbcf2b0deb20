"""The drive parameters that int 13h AH=48 returns.

Phoenix, "Enhanced Disk Drive Specification" 3.0, section 5 (Get Device Parameters, the device parameter table extension
and the device path), in the lengths of versions 1, 2 and 3.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.drives import MAX_DRIVE_CYLINDERS, Drive

PARAMETERS_MINIMUM: Final = 26
_WITH_EXTENSION: Final = 30
_WITH_PATH: Final = 66

GEOMETRY_VALID: Final = 1 << 1
REMOVABLE: Final = 1 << 2
CHANGE_LINE: Final = 1 << 4
LOCKABLE: Final = 1 << 5
NO_MEDIUM_MAXIMUM: Final = 1 << 6

_NONE32: Final = 0xFFFFFFFF
_NONE64: Final = 0xFFFFFFFFFFFFFFFF

_PARAMETERS: Final = struct.Struct("<HHIIIQH")
_EXTENSION: Final = struct.Struct("<HHBBBBBBHHB")
_PATH: Final = struct.Struct("<HBBH4s8s8sQ")
_PATH_KEY: Final = 0xBEDD
_PATH_LENGTH: Final = 36

# Device parameter table extension
_IDE_PORTS: Final = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
_HEAD_ALWAYS: Final = 0xA0
_HEAD_LBA: Final = 1 << 6
_HEAD_SECOND: Final = 1 << 4
_OPTION_CHS_TRANSLATION: Final = 1 << 3
_OPTION_LBA: Final = 1 << 4
_OPTION_REMOVABLE: Final = 1 << 5
_OPTION_ATAPI: Final = 1 << 6
_OPTION_BIT_SHIFT: Final = 0
_OPTION_LBA_ASSISTED: Final = 1 << 9
_EXTENSION_REVISION: Final = 0x11


def drive_parameters(core: Core, drive: Drive, room: int, sectors: int) -> bytes:
    """Return the table for a caller with `room` bytes, at least 26; `sectors` is the drive's size."""
    size = next(length for length in (_WITH_PATH, _WITH_EXTENSION, PARAMETERS_MINIMUM) if room >= length)
    if drive.disk.interface != "ide" and drive.disk.pci_address is None:
        size = min(size, _WITH_EXTENSION)  # there is no path to give
    if drive.disk.kind == "cdrom":
        flags = REMOVABLE | CHANGE_LINE | LOCKABLE | NO_MEDIUM_MAXIMUM
        table = _PARAMETERS.pack(size, flags, _NONE32, _NONE32, _NONE32, _NONE64, drive.sector_size)
    else:
        geometry = drive.physical
        large = sectors > geometry.heads * geometry.sectors * MAX_DRIVE_CYLINDERS
        cylinders = MAX_DRIVE_CYLINDERS if large else geometry.cylinders
        flags = 0 if large else GEOMETRY_VALID
        values = (size, flags, cylinders, geometry.heads, geometry.sectors, sectors, drive.sector_size)
        table = _PARAMETERS.pack(*values)
    if size >= _WITH_EXTENSION:
        table += _extension_pointer(core, drive)
    if size >= _WITH_PATH:
        table += _device_path(drive)
    return table


def _extension_pointer(core: Core, drive: Drive) -> bytes:
    """Return a far pointer to the table about an IDE drive's registers, which is written anew; ones without."""
    if drive.disk.interface != "ide":
        return b"\xff" * 4
    command, control, irq = _IDE_PORTS[drive.disk.channel & 1]
    head = _HEAD_ALWAYS | _HEAD_LBA | (_HEAD_SECOND if drive.disk.unit & 1 else 0)
    options = _OPTION_LBA
    if drive.disk.kind == "cdrom":
        options |= _OPTION_REMOVABLE | _OPTION_ATAPI
    elif drive.geometry != drive.physical:
        options |= _OPTION_CHS_TRANSLATION
        shifted = drive.geometry.sectors == drive.physical.sectors
        options |= _OPTION_BIT_SHIFT if shifted else _OPTION_LBA_ASSISTED
    data = _EXTENSION.pack(command, control, head, 0xCB, irq, 1, 0, 0, options, 0, _EXTENSION_REVISION)
    data += bytes((-sum(data) & 0xFF,))
    core.ebda.set_block(area.DRIVE_PARAMETERS, data)
    return struct.pack("<HH", area.DRIVE_PARAMETERS, area.EBDA_SEGMENT)


def _device_path(drive: Drive) -> bytes:
    """Return where a drive is: the controller's PCI address or port, and master or slave or the SCSI target."""
    disk = drive.disk
    address = disk.pci_address
    if address is None:
        bus, where = b"ISA\0", struct.pack("<H6x", _IDE_PORTS[disk.channel & 1][0])
    else:
        bus, where = b"PCI ", struct.pack("<BBBB4x", address >> 8, address >> 3 & 0x1F, address & 7, disk.channel & 1)
    if disk.interface == "ide":
        kind, unit = b"ATAPI   " if disk.kind == "cdrom" else b"ATA     ", disk.unit & 1
    else:
        kind, unit = b"SCSI    ", disk.unit & 0xFFFF if disk.interface == "scsi" else 0
    data = _PATH.pack(_PATH_KEY, _PATH_LENGTH, 0, 0, bus, kind, where, unit)
    return data + bytes((0, -sum(data) & 0xFF))
