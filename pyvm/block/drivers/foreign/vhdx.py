"""Format driver *vhdx*, read only: Hyper-V's disk images, fixed and dynamic.

Source: Microsoft's open specification [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format".  Differencing images are
refused, and images whose log has to be replayed first.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from uuid import UUID

from pyvm.block.drivers.foreign.mapped import Kind, MappedNode, Numbers, Run, damaged, is_power_of_two
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

_KIB, _MIB, _TIB = 1 << 10, 1 << 20, 1 << 40
SIGNATURE = b"vhdxfile"
HEADERS = (64 * _KIB, 128 * _KIB)
REGION_TABLES = (192 * _KIB, 256 * _KIB)
HEADER_SIZE, REGION_TABLE_SIZE = 4 * _KIB, 64 * _KIB
# signature, checksum, sequence number, write GUIDs of file and data, log GUID, log version, version, log length and
# offset
HEADER = struct.Struct("<4s4xQ32s16sHHIQ")
# signature, checksum, entries
REGION_TABLE = struct.Struct("<4s4xI4x")
# GUID, offset, length, bit 0: whoever does not know the region must not open the image
REGION = struct.Struct("<16sQII")
_MOST_REGIONS = 2047
_CHECKSUM = slice(4, 8)
# signature, entries
METADATA_TABLE = struct.Struct("<8s2xH20x")
# GUID, offset, length, bits
METADATA = struct.Struct("<16sIII4x")
METADATA_TABLE_SIZE = 64 * _KIB
_METADATA_REQUIRED = 4
_MOST_METADATA = 2047
_NO_LOG = bytes(16)

BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
_PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_KNOWN_METADATA = (FILE_PARAMETERS, DISK_SIZE, SECTOR_SIZE, DISK_ID, PHYSICAL_SECTOR_SIZE, _PARENT_LOCATOR)
_HAS_PARENT = 2

_MIN_BLOCK, MAX_BLOCK = _MIB, 256 * _MIB
MAX_DISK = 64 * _TIB
CHUNK_SECTORS = 1 << 23
"""A block of sector bitmaps, whose entry stands between those of data, is for so many sectors."""

# A BAT entry: the state in bits 0 to 2, the offset in MiB from bit 20 on
_STATE = 7
_OFFSET_BITS = ~((1 << 20) - 1)
FULLY_PRESENT, _PARTIALLY_PRESENT = 6, 7


class _Header(NamedTuple):
    signature: bytes
    sequence: int
    written: bytes
    log: bytes
    log_version: int
    version: int
    log_length: int
    log_offset: int


class _Place(NamedTuple):
    """Where a region, or an item of the metadata, is."""

    offset: int
    length: int


class VhdxNode(MappedNode):
    """A VHDX image.  Raises BlockError for one that is damaged or of a kind that is not supported, and OSError."""

    driver: ClassVar[str] = "vhdx"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        if not file.head(len(SIGNATURE)).startswith(SIGNATURE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._check_header(settings.path)
        regions = self._read_regions()
        items = self._read_metadata(regions[METADATA_REGION])
        self._block, flags = struct.unpack("<II", self._item(items, FILE_PARAMETERS, 8))
        (self._size,) = struct.unpack("<Q", self._item(items, DISK_SIZE, 8))
        (sector,) = struct.unpack("<I", self._item(items, SECTOR_SIZE, 4))
        if flags & _HAS_PARENT:
            raise BlockError("VHDX differencing images are not supported")
        if not is_power_of_two(self._block) or not _MIN_BLOCK <= self._block <= MAX_BLOCK:
            raise BlockError(f"Invalid VHDX block size {self._block}")
        if sector not in (512, 4096):
            raise BlockError(f"Invalid VHDX sector size {sector}")
        if self._size > MAX_DISK or self._size % sector:
            raise BlockError(f"Invalid VHDX disk size {self._size}")
        self._chunk = CHUNK_SECTORS * sector // self._block
        bat = regions[BAT]
        self._table = bat.offset
        blocks = -(-self._size // self._block)
        count = blocks + max(blocks - 1, 0) // self._chunk
        if count * 8 > bat.length:
            raise BlockError("VHDX block allocation table is too small")
        self._entries = Numbers(file, "<Q")
        self._entries.check(self._table, count, "VHDX block allocation table")

    def _check_header(self, path: str) -> None:
        """Look at the newer of the two headers that are sound."""
        found = []
        for offset in HEADERS:
            data = _checked(self._file, offset, HEADER_SIZE)
            header = _Header(*HEADER.unpack_from(data)) if data else None
            if header is not None and header.signature == b"head" and header.version == 1:
                found.append(header)
        if not found:
            raise BlockError("No valid VHDX header found")
        header = max(found, key=lambda it: it.sequence)
        if header.log != _NO_LOG and header.log_length:
            raise BlockError(
                f"VHDX image file '{path}' opened read-only, but contains a log that needs to be replayed\n"
                f"To replay the log, run:\nqemu-img check -r all '{path}'"
            )

    def _read_regions(self) -> dict[bytes, _Place]:
        for offset in REGION_TABLES:
            data = _checked(self._file, offset, REGION_TABLE_SIZE)
            if data is None:
                continue
            signature, count = REGION_TABLE.unpack_from(data)
            if signature == b"regi" and count <= _MOST_REGIONS:
                return self._parse_regions(data, count)
        raise BlockError("No valid VHDX region table found")

    def _parse_regions(self, data: bytes, count: int) -> dict[bytes, _Place]:
        regions: dict[bytes, _Place] = {}
        for index in range(count):
            identifier, offset, length, flags = REGION.unpack_from(data, REGION_TABLE.size + index * REGION.size)
            if identifier not in (BAT, METADATA_REGION):
                if flags & 1:
                    raise BlockError(f"VHDX image has an unknown region {UUID(bytes_le=identifier)}")
                continue
            if identifier in regions or offset % _MIB or offset < _MIB:
                raise BlockError("VHDX region table is damaged")
            regions[identifier] = _Place(offset, length)
        if len(regions) < 2:
            raise BlockError("VHDX region table is damaged")
        return regions

    def _read_metadata(self, region: _Place) -> dict[bytes, _Place]:
        if region.offset + METADATA_TABLE_SIZE > self._file.length():
            raise BlockError("VHDX metadata is behind the end of the file")
        data = bytes(self._file.read(region.offset, METADATA_TABLE_SIZE))
        signature, count = METADATA_TABLE.unpack_from(data)
        if signature != b"metadata" or count > _MOST_METADATA:
            raise BlockError("VHDX metadata is damaged")
        items = {}
        for index in range(count):
            identifier, offset, length, bits = METADATA.unpack_from(data, METADATA_TABLE.size + index * METADATA.size)
            if identifier in _KNOWN_METADATA:
                items[identifier] = _Place(region.offset + offset, length)
            elif bits & _METADATA_REQUIRED:
                raise BlockError(f"VHDX image has unknown metadata {UUID(bytes_le=identifier)}")
        return items

    def _item(self, items: dict[bytes, _Place], identifier: bytes, size: int) -> bytes:
        place = items.get(identifier)
        if place is None or place.length < size or place.offset + size > self._file.length():
            raise BlockError("VHDX metadata is damaged")
        return bytes(self._file.read(place.offset, size))

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        index, start = divmod(offset, self._block)
        length = min(length, self._block - start)
        entry = self._entries.at(self._table, index + index // self._chunk)
        state, place = entry & _STATE, entry & _OFFSET_BITS
        if state == _PARTIALLY_PRESENT or (state == FULLY_PRESENT and place < _MIB):
            raise damaged()
        if state == FULLY_PRESENT:
            return Run(length, Kind.DATA, place + start, self._file)
        return Run(length, Kind.ZERO)


def _checked(file: Node, offset: int, size: int) -> bytes | None:
    """Return a structure that has its checksum in it; None where that is wrong."""
    if offset + size > file.length():
        return None
    data = file.read(offset, size)
    stored = int.from_bytes(data[_CHECKSUM], "little")
    data[_CHECKSUM] = bytes(4)
    return bytes(data) if crc32c(data) == stored else None


_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, reversed."""


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC-32C of `data`."""
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (_POLYNOMIAL if number & 1 else 0)  # noqa: PLW2901 - it becomes the entry
        table.append(number)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> VhdxNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return VhdxNode(children["file"], settings)
