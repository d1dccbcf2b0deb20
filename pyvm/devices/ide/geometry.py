"""The geometry that a disk claims: cylinders, heads and sectors for those who still count so.

A partition table says which geometry the disk was partitioned with; without one the usual 16 heads of 63 sectors
are claimed.  The choices are those of QEMU, since guests have them in their partition tables.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.records import record

SECTOR: Final = 512
MAX_CYLINDERS: Final = 16383
MIN_CYLINDERS: Final = 2
HEADS: Final = 16
SECTORS: Final = 63
# Master boot record: four entries of 16 bytes from 446 on, then 0x55 0xaa
_TABLE: Final = 446
_ENTRY: Final = struct.Struct("<4B4BII")
_MAGIC: Final = b"\x55\xaa"
_LARGE_LIMIT: Final = 131072  # most logical tracks that the LARGE translation is used for

LIMITS: Final = {"cyls": 65535, "heads": 16, "secs": 255}
TRANSLATIONS: Final = ("auto", "none", "lba", "large", "rechs")


@record(frozen=True)
class Geometry:
    """Cylinders, heads and sectors for each track; `translation` is how a BIOS shows the disk to its callers."""

    cylinders: int
    heads: int
    sectors: int
    translation: str = "none"

    @property
    def size(self) -> int:
        """Sectors that this geometry reaches."""
        return self.cylinders * self.heads * self.sectors


def by_size(sectors: int) -> Geometry:
    """Return the geometry of a disk of which only the size in sectors is known."""
    cylinders = min(max(sectors // (HEADS * SECTORS), MIN_CYLINDERS), MAX_CYLINDERS)
    return Geometry(cylinders, HEADS, SECTORS, "none" if cylinders <= 1024 else "lba")


def _of_partitions(boot_sector: bytes, sectors: int) -> Geometry | None:
    """Return the geometry that the partition table was written with: partitions end at the end of a cylinder."""
    if len(boot_sector) < SECTOR or boot_sector[510:512] != _MAGIC:
        return None
    for index in range(4):
        entry = _ENTRY.unpack_from(boot_sector, _TABLE + _ENTRY.size * index)
        end_head, end_sector, length = entry[5], entry[6] & 0x3F, entry[9]
        if length and end_head and end_sector:
            heads = end_head + 1
            cylinders = sectors // (heads * end_sector)
            if 1 <= cylinders <= MAX_CYLINDERS:
                return Geometry(cylinders, heads, end_sector)
    return None


def guess(boot_sector: bytes, sectors: int) -> Geometry:
    """Return the geometry of a disk of `sectors` sectors that starts with `boot_sector`."""
    logical = _of_partitions(boot_sector, sectors)
    if logical is None:
        return by_size(sectors)
    if logical.heads > HEADS:
        # More heads than a drive can have: a BIOS translated, and the usual geometry is behind it.
        plain = by_size(sectors)
        large = logical.cylinders * logical.heads <= _LARGE_LIMIT
        return Geometry(plain.cylinders, plain.heads, plain.sectors, "large" if large else "lba")
    return logical
