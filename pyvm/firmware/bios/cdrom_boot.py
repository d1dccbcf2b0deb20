"""Booting from a CD-ROM: the boot catalogue, and the drive that an image on the CD stands in for.

"El Torito" Bootable CD-ROM Format Specification 1.0 (Phoenix and IBM, 1995).  What was booted is kept in the extended
BIOS data area as the specification packet that int 13h AX=4B01 returns.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.drives import CD_SECTOR, FIRST_CD, FIRST_DISK, SECTOR, Drive, Geometry
from pyvm.records import record

BOOT_RECORD_SECTOR: Final = 17
BOOT_RECORD: Final = b"\0CD001\1EL TORITO SPECIFICATION"
CATALOGUE_POINTER: Final = 0x47
VALIDATION_ID: Final = 1
PLATFORM_80X86: Final = 0
BOOTABLE: Final = 0x88
DEFAULT_SEGMENT: Final = 0x07C0
MEDIA_TYPE: Final = 0x0F
NO_EMULATION, FLOPPY_1200, FLOPPY_1440, FLOPPY_2880, HARD_DISK = range(5)
PACKET: Final = struct.Struct("<BBBBIHHHHBBB")
_ENTRY: Final = struct.Struct("<BBHBBHI")
_FLOPPY_SECTORS: Final = {FLOPPY_1200: 15, FLOPPY_1440: 18, FLOPPY_2880: 36}
_FIRST_PARTITION_END: Final = 0x1BE + 5
_MAX_LOAD: Final = 0x9000  # sectors of 512 bytes that fit below 640 KiB at most, whatever the segment

# Why a CD does not boot, with the numbers that users find in forums.
NO_MEDIUM, NOT_READABLE, NO_BOOT_RECORD, BAD_SPECIFICATION = 2, 3, 4, 5
BAD_CATALOGUE, BAD_VALIDATION, BAD_PLATFORM, BAD_CHECKSUM_KEY, NOT_BOOTABLE = 7, 8, 9, 10, 11
IMAGE_NOT_READABLE, MBR_NOT_READABLE = 12, 13


class CdBootError(Exception):
    """A CD cannot be booted; `code` says why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code:04x}")
        self.code = code


@record(frozen=True)
class BootEntry:
    """The initial entry of the boot catalogue; `sectors` are virtual ones of 512 bytes."""

    media: int
    segment: int
    system_type: int
    sectors: int
    start: int
    """The first sector of the image on the CD, of 2048 bytes."""


def _read(drive: Drive, sector: int, code: int) -> bytes:
    data = bytearray(CD_SECTOR)
    if sector >= drive.sectors:
        raise CdBootError(code)
    try:
        drive.disk.backend.preadv(sector * CD_SECTOR, (memoryview(data),))
    except OSError:
        raise CdBootError(code) from None
    return bytes(data)


def find_entry(drive: Drive) -> BootEntry:
    """Return what the CD in `drive` wants booted; raises :class:`CdBootError`."""
    if not drive.disk.backend.inserted:
        raise CdBootError(NO_MEDIUM)
    record = _read(drive, BOOT_RECORD_SECTOR, NOT_READABLE)
    if record[0]:
        raise CdBootError(NO_BOOT_RECORD)
    if not record.startswith(BOOT_RECORD):
        raise CdBootError(BAD_SPECIFICATION)
    catalogue = _read(drive, int.from_bytes(record[CATALOGUE_POINTER : CATALOGUE_POINTER + 4], "little"), BAD_CATALOGUE)
    if catalogue[0] != VALIDATION_ID:
        raise CdBootError(BAD_VALIDATION)
    if catalogue[1] != PLATFORM_80X86:
        raise CdBootError(BAD_PLATFORM)
    if catalogue[0x1E:0x20] != b"\x55\xaa":
        raise CdBootError(BAD_CHECKSUM_KEY)
    indicator, media, segment, system_type, _, sectors, start = _ENTRY.unpack_from(catalogue, 0x20)
    if indicator != BOOTABLE or media & MEDIA_TYPE > HARD_DISK:
        raise CdBootError(NOT_BOOTABLE)
    return BootEntry(media & MEDIA_TYPE, segment or DEFAULT_SEGMENT, system_type, sectors, start)


def image_geometry(drive: Drive, entry: BootEntry) -> Geometry:
    """Return the geometry of the emulated drive; that of a hard disk is where its first partition ends."""
    if entry.media in _FLOPPY_SECTORS:
        return Geometry(80, 2, _FLOPPY_SECTORS[entry.media])
    end = _read(drive, entry.start, MBR_NOT_READABLE)[_FIRST_PARTITION_END:]
    heads, sectors = end[0] + 1, end[1] & 0x3F
    if not sectors:
        raise CdBootError(MBR_NOT_READABLE)
    return Geometry(((end[1] & 0xC0) << 2 | end[2]) + 1, heads, sectors)


class CdEmulation:
    """What was booted from a CD, as the extended BIOS data area has it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._ebda = core.ebda

    @property
    def emulating(self) -> bool:
        """Whether an image stands in for a floppy or hard disk now."""
        return self._ebda.byte(area.CDEMU_ACTIVE) != 0 and self._packet()[1] & MEDIA_TYPE != NO_EMULATION

    def _packet(self) -> tuple[int, ...]:
        return PACKET.unpack(self._ebda.block(area.CDEMU_PACKET, PACKET.size))

    @property
    def number(self) -> int:
        """The emulated drive: 00h or 80h; means something while :attr:`emulating`."""
        return self._packet()[2]

    @property
    def cd_index(self) -> int:
        """Which CD-ROM drive the image is in."""
        return self._ebda.byte(area.CDEMU_DRIVE)

    @property
    def start(self) -> int:
        """The first sector of the image, of 2048 bytes."""
        return self._packet()[4]

    @property
    def media(self) -> int:
        """What is emulated."""
        return self._packet()[1] & MEDIA_TYPE

    @property
    def geometry(self) -> Geometry:
        """The geometry of the emulated drive."""
        low, sectors, heads = self._packet()[9:12]
        return Geometry(((sectors & 0xC0) << 2 | low) + 1, heads + 1, sectors & 0x3F)

    def shifts(self, number: int) -> bool:
        """Whether the emulated drive pushes drives like `number` up by one."""
        return self.emulating and (self.number ^ number) & 0x80 == 0

    def clear(self) -> None:
        """Forget about all of it."""
        self._ebda.set_byte(area.CDEMU_ACTIVE, 0)
        self._ebda.set_block(area.CDEMU_PACKET, bytes(PACKET.size))

    def end(self) -> bool:
        """Give the number back to the real drive; say whether there was anything to end."""
        was = self._ebda.byte(area.CDEMU_ACTIVE) != 0
        self._ebda.set_byte(area.CDEMU_ACTIVE, 0)
        return was

    def packet(self) -> bytes:
        """Return the specification packet."""
        return self._ebda.block(area.CDEMU_PACKET, PACKET.size)

    def load(self, drive: Drive) -> tuple[int, int]:
        """Load the image of the CD in `drive`; return (segment, drive number) to start it with.

        Raises :class:`CdBootError`, and GuestMemoryError where it does not fit in memory.
        """
        entry = find_entry(drive)
        emulated = drive.number
        geometry = Geometry(1, 1, 0)
        if entry.media != NO_EMULATION:
            emulated = FIRST_DISK if entry.media == HARD_DISK else 0
            geometry = image_geometry(drive, entry)
        self._load_image(drive, entry)
        index = drive.number - FIRST_CD
        cylinder = geometry.cylinders - 1
        values = (
            PACKET.size, entry.media, emulated, drive.disk.channel & 0xFF, entry.start, drive.disk.unit & 0xFFFF, 0,
            entry.segment, entry.sectors, cylinder & 0xFF, geometry.sectors & 0x3F | cylinder >> 2 & 0xC0,
            geometry.heads - 1,
        )  # fmt: skip
        self._ebda.set_byte(area.CDEMU_DRIVE, index)
        self._ebda.set_block(area.CDEMU_PACKET, PACKET.pack(*values))
        self._ebda.set_byte(area.CDEMU_ACTIVE, 1)
        return entry.segment, emulated

    def _load_image(self, drive: Drive, entry: BootEntry) -> None:
        backend = drive.disk.backend
        length = min(entry.sectors or 1, _MAX_LOAD) * SECTOR
        start = entry.start * CD_SECTOR
        if start + length > backend.size:
            raise CdBootError(IMAGE_NOT_READABLE)
        address = entry.segment << 4
        try:
            backend.preadv(start, (self._core.memory.view(address, length),))
        except OSError:
            raise CdBootError(IMAGE_NOT_READABLE) from None
        self._core.memory.written(address, length)
