"""What drives say of themselves: the data of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.

ATA/ATAPI-6, sections 8.15 and 8.16; words 106, 108 to 111, 169 and 217 are of ATA8-ACS and ACS-2.  The values are
those of QEMU's drives, as far as a guest can make something of them.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.devices.ide.constants import IDENTIFY_SIZE, MAX_MULTIPLE, SECTOR
from pyvm.devices.ide.geometry import Geometry
from pyvm.records import record

WORDS: Final = IDENTIFY_SIZE // 2
_PACK: Final = struct.Struct(f"<{WORDS}H")

SERIAL_LENGTH: Final = 20
VERSION_LENGTH: Final = 8
MODEL_LENGTH: Final = 40

_LBA28_LIMIT: Final = 0x0FFF_FFFF
_MULTIWORD_MODES: Final = 0x07
_SINGLEWORD_MODES: Final = 0x07
_ULTRA_MODES: Final = 0x3F
_MAJOR_VERSIONS_DISK: Final = 0x00F0  # ATA/ATAPI-4 to -7
_MAJOR_VERSIONS_PACKET: Final = 0x001E
_MINOR_VERSION: Final = 0x0016  # ATA/ATAPI-6 T13 1410D revision 3a

# Transfer modes as SET FEATURES names them, in the upper five bits of the sector count
MODE_PIO: Final = 0x00
MODE_PIO_FLOW: Final = 0x01
MODE_SINGLEWORD: Final = 0x02
MODE_MULTIWORD: Final = 0x04
MODE_ULTRA: Final = 0x08
_HIGHEST: Final = {MODE_PIO: 1, MODE_PIO_FLOW: 4, MODE_SINGLEWORD: 2, MODE_MULTIWORD: 2, MODE_ULTRA: 5}
MODE_RESET: Final = MODE_ULTRA << 3 | 5


@record(frozen=True)
class Names:
    """Serial number, firmware version and model of a drive."""

    serial: str
    version: str
    model: str

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("serial", self.serial, SERIAL_LENGTH),
            ("ver", self.version, VERSION_LENGTH),
            ("model", self.model, MODEL_LENGTH),
        ):
            if len(value) > limit or not value.isascii():
                raise ValueError(f"Property .{name} doesn't take value '{value}', at most {limit} characters")


def valid_mode(mode: int) -> bool:
    """Return whether there is a transfer mode called `mode` (8 bits)."""
    return mode & 7 <= _HIGHEST.get(mode >> 3, -1)


def _put_text(words: list[int], first: int, text: str, length: int) -> None:
    """Store `text`, padded with spaces: the first character of each pair is the upper byte."""
    data = text.encode("ascii").ljust(length)
    words[first : first + length // 2] = struct.unpack(f">{length // 2}H", data)


def _put_names(words: list[int], names: Names) -> None:
    _put_text(words, 10, names.serial, SERIAL_LENGTH)
    _put_text(words, 23, names.version, VERSION_LENGTH)
    _put_text(words, 27, names.model, MODEL_LENGTH)
    words[20:23] = 3, 512, 4  # buffer type, size in sectors, ECC bytes: all obsolete


def _put_modes(words: list[int], mode: int) -> None:
    """Store which transfer modes there are and which one is chosen."""
    chosen = 1 << (8 + (mode & 7))
    kind = mode >> 3
    words[53] |= 0x0007  # words 54-58, 64-70 and 88 are valid
    words[62] = _SINGLEWORD_MODES | (chosen if kind == MODE_SINGLEWORD else 0)
    words[63] = _MULTIWORD_MODES | (chosen if kind == MODE_MULTIWORD else 0)
    words[64] = 0x0003  # PIO modes 3 and 4
    words[88] = _ULTRA_MODES | (chosen if kind == MODE_ULTRA else 0)


@record(frozen=True)
class DiskIdentity:
    """What IDENTIFY DEVICE tells, besides the size."""

    names: Names
    wwn: int = 0
    physical_block_size: int = SECTOR
    rotation_rate: int = 0
    trim: bool = True


def disk(
    identity: DiskIdentity, sectors: int, native: Geometry, current: Geometry, *, multiple: int, mode: int, cache: bool
) -> bytes:
    """Return the 512 bytes of IDENTIFY DEVICE of a disk of `sectors` sectors.

    `multiple` are the sectors of a READ MULTIPLE block, `cache` says whether the write cache is on.
    """
    words = [0] * WORDS
    words[0] = 0x0040  # fixed drive
    words[1], words[3], words[6] = native.cylinders, native.heads, native.sectors
    words[4], words[5] = SECTOR * native.sectors, SECTOR
    _put_names(words, identity.names)
    words[47] = 0x8000 | MAX_MULTIPLE
    words[48] = 0x0001  # 32-bit accesses of the data register
    words[49] = 0x0B00  # IORDY, LBA, DMA
    words[51] = words[52] = 0x0200  # PIO and DMA timing mode, obsolete
    words[54:57] = current.cylinders, current.heads, current.sectors
    words[57], words[58] = current.size & 0xFFFF, current.size >> 16 & 0xFFFF
    words[59] = 0x0100 | multiple if multiple else 0
    small = min(sectors, _LBA28_LIMIT)
    words[60], words[61] = small & 0xFFFF, small >> 16
    words[65:69] = [0x78] * 4  # cycle times in ns
    _put_modes(words, mode)
    words[80], words[81] = _MAJOR_VERSIONS_DISK, _MINOR_VERSION
    has_wwn = 0x0100 if identity.wwn else 0
    words[82] = words[85] = 0x4021  # NOP, write cache, SMART
    words[83], words[86] = 0x7400, 0x3400  # FLUSH CACHE and its EXT, LBA48
    words[84] = words[87] = 0x4000 | has_wwn
    if not cache:
        words[85] &= ~0x0020
    words[93] = 0x6001  # hardware reset result: 80-conductor cable, drive 0
    for index in range(4):
        words[100 + index] = sectors >> (16 * index) & 0xFFFF
        words[108 + index] = identity.wwn >> (48 - 16 * index) & 0xFFFF
    words[106] = 0x6000 | (identity.physical_block_size // SECTOR).bit_length() - 1
    if identity.trim:
        words[69] = 0x4000  # trimmed sectors always read the same
        words[169] = 0x0001
    words[217] = identity.rotation_rate
    return _PACK.pack(*words)


def packet(names: Names, mode: int, wwn: int) -> bytes:
    """Return the 512 bytes of IDENTIFY PACKET DEVICE of a CD drive."""
    words = [0] * WORDS
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, DRQ within 50 us, 12-byte packets
    _put_names(words, names)
    words[48] = 0x0001
    words[49] = 0x0300  # LBA, DMA
    _put_modes(words, mode)
    words[65:69] = 0xB4, 0xB4, 0x12C, 0xB4  # cycle times in ns
    words[71] = words[72] = 0x1E  # ns of bus release: overlap is not offered
    words[80] = _MAJOR_VERSIONS_PACKET
    if wwn:
        words[84] = words[87] = 0x4100
        for index in range(4):
            words[108 + index] = wwn >> (48 - 16 * index) & 0xFFFF
    return _PACK.pack(*words)
