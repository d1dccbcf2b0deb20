"""The drives as int 13h numbers them, and their geometry.

Floppy drives are 00h and 01h, hard disks 80h up, CD-ROM drives E0h up.  Hard disks are sorted as they are booted: by
the user's bootindex, then by interface, so that the disk that starts is drive 80h.

A disk has two geometries: the one of the drive, and the one that int 13h shows, which keeps to 1024 cylinders, 255
heads and 63 sectors.  How the second is found is T13's technical report "BIOS Enhanced Disk Drive Services" and custom
(bit shift and LBA-assisted translation); partition tables contain the result, so an existing one says what it was.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.machine import BiosDisk
from pyvm.records import record

SECTOR: Final = 512
CD_SECTOR: Final = 2048
FIRST_DISK: Final = 0x80
FIRST_CD: Final = 0xE0
MAX_FLOPPIES: Final = 2
MAX_DISKS: Final = 16
MAX_CDS: Final = 16
HIDDEN: Final = 0xFF
MAX_CYLINDERS: Final = 1024
MAX_DRIVE_CYLINDERS: Final = 16383
DRIVE_HEADS: Final = 16
DRIVE_SECTORS: Final = 63

_INTERFACE_ORDER: Final = {"floppy": 0, "ide": 1, "scsi": 2, "virtio": 3}
_LAST_INTERFACE: Final = 9
_BIT_SHIFT_LIMIT: Final = 131072  # tracks
_PARTITIONS: Final = range(0x1BE, 0x1FE, 16)


@record(frozen=True)
class Geometry:
    """Cylinders, heads, and sectors a track."""

    cylinders: int
    heads: int
    sectors: int

    @property
    def total(self) -> int:
        """All sectors that can be named."""
        return self.cylinders * self.heads * self.sectors

    def lba(self, cylinder: int, head: int, sector: int) -> int | None:
        """Return the number of a sector, or None where there is none of that name; sectors count from 1."""
        if cylinder >= self.cylinders or head >= self.heads or not 1 <= sector <= self.sectors:
            return None
        return (cylinder * self.heads + head) * self.sectors + sector - 1


@record(frozen=True)
class FloppyFormat:
    """A kind of diskette, by the size of its image; `drive_type` is what CMOS and int 13h AH=08 call the drive."""

    geometry: Geometry
    drive_type: int

    @property
    def size(self) -> int:
        """Bytes of an image."""
        return self.geometry.total * SECTOR


FLOPPY_FORMATS: Final = (
    FloppyFormat(Geometry(80, 2, 18), 4),  # 1.44 MB first: it stands for a size that is none of these
    FloppyFormat(Geometry(80, 2, 36), 5),
    FloppyFormat(Geometry(80, 2, 15), 2),
    FloppyFormat(Geometry(80, 2, 9), 3),
    FloppyFormat(Geometry(40, 2, 9), 1),
    FloppyFormat(Geometry(40, 2, 8), 1),
    FloppyFormat(Geometry(40, 1, 9), 1),
    FloppyFormat(Geometry(40, 1, 8), 1),
    FloppyFormat(Geometry(80, 2, 20), 4),
    FloppyFormat(Geometry(80, 2, 21), 4),
    FloppyFormat(Geometry(82, 2, 21), 4),
    FloppyFormat(Geometry(83, 2, 21), 4),
)


def floppy_format(size: int) -> FloppyFormat:
    """Return the format of an image of `size` bytes."""
    return next((kind for kind in FLOPPY_FORMATS if kind.size == size), FLOPPY_FORMATS[0])


def _partition_geometry(boot_sector: bytes | bytearray, sectors: int) -> Geometry | None:
    """Return the geometry that the ends of partitions in an MBR betray; they end on cylinder boundaries."""
    if boot_sector[510:512] != b"\x55\xaa":
        return None
    for entry in _PARTITIONS:
        if not any(boot_sector[entry + 12 : entry + 16]):
            continue
        heads, per_track = boot_sector[entry + 5] + 1, boot_sector[entry + 6] & 0x3F
        if heads == 1 or per_track == 0:
            continue
        cylinders = sectors // (heads * per_track)
        if 1 <= cylinders <= MAX_DRIVE_CYLINDERS:
            return Geometry(cylinders, heads, per_track)
    return None


def drive_geometry(sectors: int, boot_sector: bytes | bytearray) -> Geometry:
    """Return the geometry of a hard disk itself: 16 heads and 63 sectors, unless its partitions fit a smaller one."""
    found = _partition_geometry(boot_sector, sectors)
    if found is not None and found.heads <= DRIVE_HEADS:
        return found
    cylinders = sectors // (DRIVE_HEADS * DRIVE_SECTORS)
    return Geometry(min(max(cylinders, 2), MAX_DRIVE_CYLINDERS), DRIVE_HEADS, DRIVE_SECTORS)


def translate(drive: Geometry, sectors: int) -> Geometry:
    """Return the geometry in which int 13h shows a disk."""
    if drive.total > sectors:
        return _lba_assisted(sectors)
    if drive.cylinders <= MAX_CYLINDERS and drive.heads <= DRIVE_HEADS:
        return drive
    if drive.cylinders * drive.heads > _BIT_SHIFT_LIMIT:
        return _lba_assisted(sectors)
    cylinders, heads = drive.cylinders, drive.heads
    while cylinders > MAX_CYLINDERS and heads <= 127:
        cylinders >>= 1
        heads <<= 1
    return Geometry(min(cylinders, MAX_CYLINDERS), heads, drive.sectors)


def _lba_assisted(sectors: int) -> Geometry:
    if sectors > DRIVE_SECTORS * 255 * MAX_CYLINDERS:
        return Geometry(MAX_CYLINDERS, 255, DRIVE_SECTORS)
    tracks = sectors // DRIVE_SECTORS
    wanted = tracks // MAX_CYLINDERS
    heads = next((count for count in (16, 32, 64, 128) if wanted <= count), 255)
    return Geometry(max(min(tracks // heads, MAX_CYLINDERS), 1), heads, DRIVE_SECTORS)


@record
class Drive:
    """A drive with its number."""

    number: int
    disk: BiosDisk
    sector_size: int
    geometry: Geometry
    """What int 13h shows."""
    physical: Geometry
    floppy_type: int = 0

    @property
    def sectors(self) -> int:
        """How many sectors there are, of :attr:`sector_size` bytes."""
        return self.disk.backend.size // self.sector_size

    @property
    def removable(self) -> bool:
        """Whether the medium can be changed."""
        return self.disk.kind != "disk"


class Drives:
    """All drives.  They are numbered at the first use after a reset; the BIOS data area says which disk comes first."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._floppies: list[Drive] = []
        self._disks: list[Drive] = []
        self._cds: list[Drive] = []
        self._known = False

    @property
    def floppies(self) -> list[Drive]:
        """The floppy drives."""
        self._find_all()
        return self._floppies

    @property
    def disks(self) -> list[Drive]:
        """The hard disks."""
        self._find_all()
        return self._disks

    @property
    def cds(self) -> list[Drive]:
        """The CD-ROM drives."""
        self._find_all()
        return self._cds

    def forget(self) -> None:
        """Number the drives anew at the next use; at reset."""
        self._known = False
        self._core.ebda.set_byte(area.FIRST_DISK_INDEX, 0)
        self._core.ebda.set_block(area.DISK_SHIFTS, bytes(MAX_DISKS))

    def hide_disks(self) -> None:
        """Take the numbers of all hard disks back: :meth:`show` gives new ones."""
        self._core.ebda.set_block(area.DISK_SHIFTS, bytes((HIDDEN,)) * MAX_DISKS)
        self._core.bda.set_byte(area.DISK_COUNT, 0)
        self._known = False

    def show(self, index: int) -> None:
        """Give the hard disk of that index the number behind those that there are, of option ROMs as well."""
        number = self._core.bda.byte(area.DISK_COUNT)
        self._core.ebda.set_byte(area.DISK_SHIFTS + index, max(number - index, 0))
        self._core.bda.set_byte(area.DISK_COUNT, number + 1)
        self._known = False

    def show_all(self) -> None:
        """Give every hard disk a number that has none yet."""
        for index, drive in enumerate(self.disks):
            if not drive.number:
                self.show(index)

    def put_first(self, drive: Drive) -> None:
        """Make a hard disk drive 80h."""
        index = next((index for index, disk in enumerate(self._in_order("disk")) if disk is drive.disk), 0)
        self._core.ebda.set_byte(area.FIRST_DISK_INDEX, index)
        self._known = False

    def _in_order(self, kind: str) -> list[BiosDisk]:
        return sorted((disk for disk in self._core.machine.disks if disk.kind == kind), key=_boot_place)

    def _find_all(self) -> None:
        if self._known:
            return
        self._known = True
        floppies = sorted((disk for disk in self._core.machine.disks if disk.kind == "floppy"), key=lambda d: d.unit)
        self._floppies = [_floppy(number, disk) for number, disk in enumerate(floppies[:MAX_FLOPPIES])]
        disks = self._in_order("disk")
        first = self._core.ebda.byte(area.FIRST_DISK_INDEX)
        if first < len(disks):
            disks.insert(0, disks.pop(first))
        shifts = self._core.ebda.block(area.DISK_SHIFTS, MAX_DISKS)
        self._disks = [
            _hard_disk(0 if shift == HIDDEN else FIRST_DISK + index + shift, disk)
            for index, (disk, shift) in enumerate(zip(disks, shifts, strict=False))
        ]
        cds = self._in_order("cdrom")
        self._cds = [_cd_rom(FIRST_CD + index, disk) for index, disk in enumerate(cds[:MAX_CDS])]

    def find(self, number: int) -> Drive | None:
        """Return the drive of that number; a floppy's geometry is that of the diskette that is in it now."""
        if number >= FIRST_CD:
            drives, index = self.cds, number - FIRST_CD
        elif number >= FIRST_DISK:
            return next((drive for drive in self.disks if drive.number == number), None)
        else:
            drives, index = self.floppies, number
        if index >= len(drives):
            return None
        if number < FIRST_DISK:
            drives[index] = _floppy(number, drives[index].disk)
        return drives[index]


def _boot_place(disk: BiosDisk) -> tuple[bool, int, int, int, int]:
    order = _INTERFACE_ORDER.get(disk.interface, _LAST_INTERFACE)
    return disk.bootindex is None, disk.bootindex or 0, order, disk.channel, disk.unit


def _floppy(number: int, disk: BiosDisk) -> Drive:
    kind = floppy_format(disk.backend.size)
    return Drive(number, disk, SECTOR, kind.geometry, kind.geometry, kind.drive_type)


def _hard_disk(number: int, disk: BiosDisk) -> Drive:
    sectors = disk.backend.size // SECTOR
    boot_sector = bytearray(SECTOR)
    if sectors:
        try:
            disk.backend.preadv(0, (memoryview(boot_sector),))
        except OSError:
            pass  # a disk that cannot be read has the geometry of its size
    physical = drive_geometry(sectors, boot_sector)
    return Drive(number, disk, SECTOR, translate(physical, sectors), physical)


def _cd_rom(number: int, disk: BiosDisk) -> Drive:
    none = Geometry(0, 0, 0)
    return Drive(number, disk, CD_SECTOR, none, none)
