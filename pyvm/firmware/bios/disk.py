"""Int 13h: floppy drives, hard disks and CD-ROM drives.

Ralf Brown's Interrupt List, INTERRUP.B; Phoenix, "Enhanced Disk Drive Specification" 3.0 (functions 41h-4Eh); El
Torito 1.0 (4Ah-4Dh).  Sectors go straight between the image and the guest's memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import tables
from pyvm.firmware.bios.cdrom_boot import CdEmulation
from pyvm.firmware.bios.core import VGA_WINDOW, Core
from pyvm.firmware.bios.drives import (
    CD_SECTOR,
    FIRST_CD,
    FIRST_DISK,
    FLOPPY_FORMATS,
    MAX_FLOPPIES,
    SECTOR,
    Drive,
    Drives,
    Geometry,
)
from pyvm.firmware.bios.edd import PARAMETERS_MINIMUM, drive_parameters
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.memory import GuestMemoryError

# Status codes
SUCCESS: Final = 0x00
BAD_PARAMETER: Final = 0x01
ADDRESS_MARK: Final = 0x02
WRITE_PROTECTED: Final = 0x03
NOT_FOUND: Final = 0x04
MEDIUM_CHANGED: Final = 0x06
DMA_BOUNDARY: Final = 0x09
MEDIA_TYPE_UNKNOWN: Final = 0x0C
CONTROLLER_FAILURE: Final = 0x20
DRIVE_NOT_READY: Final = 0xAA
NOT_REMOVABLE: Final = 0xB2
EJECT_FAILED: Final = 0xB5
TIMEOUT: Final = 0x80

MAX_COUNT: Final = 128
"""Most sectors of one call by cylinder, head and sector: what a DMA channel moves."""

# AH=41
EDD_VERSION_3: Final = 0x30
EDD_ACCESS, EDD_LOCKING, EDD_PARAMETERS = 1 << 0, 1 << 1, 1 << 2
# AH=15
KIND_FLOPPY: Final = 1
KIND_HARD_DISK: Final = 3
# AH=4E
HARDWARE_DEFAULTS: Final = frozenset({1, 3, 4, 6})

_PACKET: Final = struct.Struct("<BBHHHQ")
_FLAT_POINTER: Final = 0xFFFFFFFF
_FLAT_PACKET_SIZE: Final = 0x18
_FLAT_ADDRESS: Final = 0x10
_FORMAT_ENTRY: Final = 4


class DiskError(Exception):
    """A call fails with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:02x}")
        self.status = status


class Disk:
    """The service."""

    def __init__(self, core: Core, drives: Drives) -> None:
        self._core = core
        self._drives = drives
        self.emulation = CdEmulation(core)
        self._functions: dict[int, Callable[[Registers], int]] = {
            0x00: self._reset,
            0x01: self._last_status,
            0x02: self._read,
            0x03: self._write,
            0x04: self._verify,
            0x05: self._format,
            0x08: self._parameters,
            0x09: self._nothing,
            0x0C: self._seek,
            0x0D: self._reset,
            0x10: self._ready,
            0x11: self._nothing,
            0x14: self._nothing,
            0x15: self._kind,
            0x16: self._change_line,
            0x17: self._set_disk_type,
            0x18: self._set_media_type,
            0x41: self._edd_check,
            0x42: self._edd_read,
            0x43: self._edd_write,
            0x44: self._edd_verify,
            0x45: self._lock,
            0x46: self._eject,
            0x47: self._edd_seek,
            0x48: self._edd_parameters,
            0x49: self._edd_change,
            0x4E: self._hardware,
        }

    def call(self, registers: Registers) -> None:
        """Serve int 13h, or int 40h, which is the same here."""
        function = self._functions.get(registers.ah)
        number = registers.dl
        if registers.ah == 0x4B:
            function = self._cd_emulation
        elif function is not None and self._find(number) is None and registers.ah != 0x01:
            function = None
        try:
            status = function(registers) if function is not None else BAD_PARAMETER
        except DiskError as error:
            status = error.status
        except GuestMemoryError:
            status = DMA_BOUNDARY
        self._finish(registers, number, status)

    def _finish(self, registers: Registers, number: int, status: int) -> None:
        place = area.FLOPPY_STATUS if number < FIRST_DISK else area.DISK_STATUS
        self._core.bda.set_byte(place, status)
        if status:
            registers.fail(status)
        elif registers.carry is None:
            registers.succeed()

    def last_error(self, number: int) -> int:
        """Return the status of the last call for a drive of that kind."""
        return self._core.bda.byte(area.FLOPPY_STATUS if number < FIRST_DISK else area.DISK_STATUS)

    # -- drives -----------------------------------------------------------------------------------------------------

    def _find(self, number: int) -> Drive | None:
        """Return the drive that a number means now: an image on a CD pushes real drives up by one."""
        emulation = self.emulation
        if number >= FIRST_CD or not emulation.shifts(number):
            return self._drives.find(number)
        if number != emulation.number:
            return self._drives.find(number - 1)
        cd = self._drives.find(FIRST_CD + emulation.cd_index)
        if cd is None:
            return None
        kind = FLOPPY_FORMATS[0].drive_type if number == 0 else 0
        return Drive(number, cd.disk, SECTOR, emulation.geometry, emulation.geometry, kind)

    def _drive(self, registers: Registers) -> Drive:
        drive = self._find(registers.dl)
        if drive is None:
            raise DiskError(BAD_PARAMETER)
        return drive

    def _is_image(self, drive: Drive) -> bool:
        return drive.disk.kind == "cdrom" and drive.sector_size == SECTOR

    def _first_byte(self, drive: Drive) -> int:
        return self.emulation.start * CD_SECTOR if self._is_image(drive) else 0

    def _length(self, drive: Drive) -> int:
        """Return how many sectors there are."""
        return drive.geometry.total if self._is_image(drive) else drive.sectors

    # -- transfers --------------------------------------------------------------------------------------------------

    def transfer(self, drive: Drive, address: int, lba: int, count: int, write: bool) -> None:
        """Move `count` sectors between guest memory and the drive; raises DiskError and GuestMemoryError."""
        backend = drive.disk.backend
        if not backend.inserted:
            raise DiskError(TIMEOUT if drive.number < FIRST_DISK else DRIVE_NOT_READY)
        offset, length = self._first_byte(drive) + lba * drive.sector_size, count * drive.sector_size
        if lba + count > self._length(drive) or offset + length > backend.size:
            raise DiskError(NOT_FOUND if drive.number < FIRST_DISK else BAD_PARAMETER)
        if write and (backend.read_only or drive.disk.kind == "cdrom"):
            raise DiskError(WRITE_PROTECTED)
        try:
            if address in VGA_WINDOW:
                self._transfer_window(drive, address, offset, length, write)
            elif write:
                backend.pwritev(offset, (self._core.memory.view(address, length),))
            else:
                backend.preadv(offset, (self._core.memory.view(address, length),))
                self._core.memory.written(address, length)
        except OSError:
            raise DiskError(CONTROLLER_FAILURE) from None

    def _transfer_window(self, drive: Drive, address: int, offset: int, length: int, write: bool) -> None:
        """Move data between the drive and what the display shows, which is not RAM."""
        if write:
            drive.disk.backend.pwritev(offset, (memoryview(self._core.read(address, length)),))
            return
        if address + length > VGA_WINDOW.stop:
            raise GuestMemoryError(address, length)
        data = bytearray(length)
        drive.disk.backend.preadv(offset, (memoryview(data),))
        self._core.write(address, data)

    def _addressed(self, registers: Registers, drive: Drive) -> tuple[int, int]:
        """Return the sector and the count that a call by cylinder, head and sector names."""
        count = registers.al
        if drive.number >= FIRST_CD or not 1 <= count <= MAX_COUNT:
            raise DiskError(BAD_PARAMETER)
        cylinder = registers.ch | (registers.cl & 0xC0) << 2
        lba = drive.geometry.lba(cylinder, registers.dh, registers.cl & 0x3F)
        if lba is None:
            raise DiskError(BAD_PARAMETER)
        return lba, count

    def _move(self, registers: Registers, write: bool) -> int:
        drive = self._drive(registers)
        lba, count = self._addressed(registers, drive)
        registers.al = 0
        self.transfer(drive, linear(registers.es, registers.bx), lba, count, write)
        registers.al = count
        return SUCCESS

    def _read(self, registers: Registers) -> int:
        return self._move(registers, write=False)

    def _write(self, registers: Registers) -> int:
        return self._move(registers, write=True)

    def _verify(self, registers: Registers) -> int:
        drive = self._drive(registers)
        lba, count = self._addressed(registers, drive)
        self._check_range(drive, lba, count)
        return SUCCESS

    def _check_range(self, drive: Drive, lba: int, count: int) -> None:
        if not drive.disk.backend.inserted:
            raise DiskError(TIMEOUT if drive.number < FIRST_DISK else DRIVE_NOT_READY)
        if lba + count > self._length(drive):
            raise DiskError(BAD_PARAMETER)

    def _format(self, registers: Registers) -> int:
        """Format a track of a floppy disk: its sectors get the fill byte.  Hard disks come formatted."""
        drive = self._drive(registers)
        if drive.number >= FIRST_DISK:
            return self._seek(registers)
        count = registers.al
        lba = drive.geometry.lba(registers.ch, registers.dh, 1)
        if lba is None or not 1 <= count <= drive.geometry.sectors:
            raise DiskError(BAD_PARAMETER)
        fields = self._core.read_at(registers.es, registers.bx, count * _FORMAT_ENTRY)
        for entry in range(0, len(fields), _FORMAT_ENTRY):
            track, head, sector, size = fields[entry : entry + _FORMAT_ENTRY]
            if (track, head, size) != (registers.ch, registers.dh, 2) or not 1 <= sector <= drive.geometry.sectors:
                raise DiskError(ADDRESS_MARK)
        backend = drive.disk.backend
        if not backend.inserted:
            raise DiskError(TIMEOUT)
        if backend.read_only or drive.disk.kind == "cdrom":
            raise DiskError(WRITE_PROTECTED)
        fill = memoryview(tables.DISKETTE[tables.DISKETTE_FILL_BYTE : tables.DISKETTE_FILL_BYTE + 1] * count * SECTOR)
        if (lba + count) * SECTOR > backend.size:
            raise DiskError(NOT_FOUND)
        try:
            backend.pwritev(lba * SECTOR, (fill,))
        except OSError:
            raise DiskError(CONTROLLER_FAILURE) from None
        return SUCCESS

    # -- status and geometry ----------------------------------------------------------------------------------------

    def _nothing(self, registers: Registers) -> int:
        return SUCCESS

    def _reset(self, registers: Registers) -> int:
        return SUCCESS

    def _last_status(self, registers: Registers) -> int:
        """AH=01: the status of the call before, which this call does not change."""
        status = self.last_error(registers.dl)
        registers.succeed(status)
        registers.carry = bool(status)
        return status

    def _seek(self, registers: Registers) -> int:
        cylinder = registers.ch | (registers.cl & 0xC0) << 2
        geometry = self._drive(registers).geometry
        return SUCCESS if cylinder < geometry.cylinders and registers.dh < geometry.heads else BAD_PARAMETER

    def _ready(self, registers: Registers) -> int:
        return SUCCESS if self._drive(registers).disk.backend.inserted else DRIVE_NOT_READY

    def _count(self, number: int) -> int:
        more = self.emulation.shifts(number)
        if number < FIRST_DISK:
            return min(len(self._drives.floppies) + more, MAX_FLOPPIES)
        # The data area counts the drives of option ROMs, too.
        return self._core.bda.byte(area.DISK_COUNT) + more

    def _parameters(self, registers: Registers) -> int:
        drive = self._drive(registers)
        if drive.number >= FIRST_CD:
            return BAD_PARAMETER
        number, geometry = registers.dl, drive.geometry
        cylinder = geometry.cylinders - 1
        if number < FIRST_DISK:
            registers.bx = drive.floppy_type
            registers.es, registers.di = SEGMENT, self._core.rom.labels["diskette_table"]
        elif cylinder:
            cylinder -= 1  # the last one is for diagnostics
        registers.ax = 0
        registers.ch = cylinder & 0xFF
        registers.cl = cylinder >> 2 & 0xC0 | geometry.sectors & 0x3F
        registers.dh = geometry.heads - 1
        registers.dl = self._count(number)
        return SUCCESS

    def _kind(self, registers: Registers) -> int:
        drive = self._drive(registers)
        if FIRST_DISK <= drive.number < FIRST_CD:
            shown = Geometry(max(drive.geometry.cylinders - 1, 0), drive.geometry.heads, drive.geometry.sectors)
            registers.cx, registers.dx = shown.total >> 16, shown.total
            registers.succeed(KIND_HARD_DISK)
        else:
            registers.succeed(KIND_FLOPPY)
        return SUCCESS

    def _change_line(self, registers: Registers) -> int:
        """AH=16: the drives have no change line, so the medium may always have been changed."""
        return BAD_PARAMETER if registers.dl >= FIRST_DISK else MEDIUM_CHANGED

    def _set_disk_type(self, registers: Registers) -> int:
        return SUCCESS if registers.dl < FIRST_DISK and 1 <= registers.al <= 4 else BAD_PARAMETER

    def _set_media_type(self, registers: Registers) -> int:
        drive = self._drive(registers)
        if drive.number >= FIRST_DISK:
            return BAD_PARAMETER
        cylinders, sectors = (registers.ch | (registers.cl & 0xC0) << 2) + 1, registers.cl & 0x3F
        if (cylinders, sectors) != (drive.geometry.cylinders, drive.geometry.sectors):
            return MEDIA_TYPE_UNKNOWN
        registers.es, registers.di = SEGMENT, self._core.rom.labels["diskette_table"]
        return SUCCESS

    # -- enhanced disk drive services -------------------------------------------------------------------------------

    def _enhanced(self, registers: Registers) -> Drive:
        drive = self._drive(registers)
        if drive.number < FIRST_DISK:
            raise DiskError(BAD_PARAMETER)
        return drive

    def _edd_check(self, registers: Registers) -> int:
        self._enhanced(registers)
        if registers.bx != 0x55AA:
            return BAD_PARAMETER
        registers.bx = 0xAA55
        registers.cx = EDD_ACCESS | EDD_LOCKING | EDD_PARAMETERS
        registers.succeed(EDD_VERSION_3)
        return SUCCESS

    def _edd_move(self, registers: Registers, write: bool | None) -> int:
        """Carry out a disk address packet; `write` is None where nothing is moved.

        The packet's count becomes the number of sectors that were moved.
        """
        drive = self._enhanced(registers)
        place = linear(registers.ds, registers.si)
        size, _, count, offset, segment, lba = _PACKET.unpack(self._core.read(place, _PACKET.size))
        if size < _PACKET.size or (write and registers.al > 2):
            return BAD_PARAMETER
        address = linear(segment, offset)
        if size >= _FLAT_PACKET_SIZE and segment << 16 | offset == _FLAT_POINTER:
            address = int.from_bytes(self._core.read(place + _FLAT_ADDRESS, 8), "little")
        try:
            if write is None:
                self._check_range(drive, lba, count)
            elif count:
                self.transfer(drive, address, lba, count, write)
        except (DiskError, GuestMemoryError):
            self._core.write(place + 2, b"\0\0")
            raise
        return SUCCESS

    def _edd_read(self, registers: Registers) -> int:
        return self._edd_move(registers, write=False)

    def _edd_write(self, registers: Registers) -> int:
        return self._edd_move(registers, write=True)

    def _edd_verify(self, registers: Registers) -> int:
        return self._edd_move(registers, write=None)

    def _edd_seek(self, registers: Registers) -> int:
        drive = self._enhanced(registers)
        packet = _PACKET.unpack(self._core.read_at(registers.ds, registers.si, _PACKET.size))
        self._check_range(drive, packet[-1], 1)
        return SUCCESS

    def _lock(self, registers: Registers) -> int:
        """AH=45: media do not leave their drives by themselves, so a lock is granted and means nothing."""
        self._enhanced(registers)
        if registers.al > 2:
            return BAD_PARAMETER
        registers.al = 0
        return SUCCESS

    def _eject(self, registers: Registers) -> int:
        """AH=46: the person at the machine changes media, not the guest."""
        return EJECT_FAILED if self._enhanced(registers).removable else NOT_REMOVABLE

    def _edd_change(self, registers: Registers) -> int:
        return MEDIUM_CHANGED if self._enhanced(registers).removable else SUCCESS

    def _edd_parameters(self, registers: Registers) -> int:
        drive = self._enhanced(registers)
        place = linear(registers.ds, registers.si)
        room = int.from_bytes(self._core.read(place, 2), "little")
        if room < PARAMETERS_MINIMUM:
            return BAD_PARAMETER
        self._core.write(place, drive_parameters(self._core, drive, room, self._length(drive)))
        return SUCCESS

    def _hardware(self, registers: Registers) -> int:
        self._enhanced(registers)
        return SUCCESS if registers.al in HARDWARE_DEFAULTS else BAD_PARAMETER

    def _cd_emulation(self, registers: Registers) -> int:
        """AH=4B: return what was booted from a CD, and with AL=00 let the real drive have its number back."""
        if registers.al > 1:
            return BAD_PARAMETER
        if self._core.ebda.byte(area.CDEMU_ACTIVE) == 0:
            return BAD_PARAMETER
        self._core.write_at(registers.ds, registers.si, self.emulation.packet())
        if registers.al == 0:
            self.emulation.end()
        return SUCCESS
