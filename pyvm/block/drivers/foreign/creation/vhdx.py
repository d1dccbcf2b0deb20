"""Making VHDX images, dynamic and fixed ones.

The first MiB has the headers; log, block allocation table and metadata follow, then the blocks of a fixed image.  See
:mod:`pyvm.block.drivers.foreign.vhdx` for the format.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from sys import byteorder
from typing import NamedTuple
from uuid import uuid4

from pyvm.block.drivers.foreign import vhdx
from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, round_up, start_over
from pyvm.block.drivers.foreign.mapped import is_power_of_two
from pyvm.block.errors import BlockError
from pyvm.block.node import Node

_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_MAX_LOG = 4 * _GIB
_BLOCK_BY_SIZE = ((32 * _TIB, 64 * _MIB), (100 * _GIB, 32 * _MIB), (_GIB, 16 * _MIB))
_SMALL_BLOCK = 8 * _MIB
_CREATOR = "pyvm"
_VERSION = 1
_REQUIRED, _OF_DISK = 4, 2
"""Bits of an item of metadata: readers must know it; it is about the disk and not the file."""
_STAYS_ALLOCATED = 1
_ZERO = 2
"""The state of a block that reads as zeros."""
_PART = 1 << 17
"""Entries that are written at once."""


class _Plan(NamedTuple):
    """How an image is laid out."""

    size: int
    block: int
    log: int
    is_fixed: bool
    state: int
    """That of the blocks of a dynamic image."""

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def chunk(self) -> int:
        """Blocks for which there is one of sector bitmaps."""
        return vhdx.CHUNK_SECTORS * SECTOR // self.block

    @property
    def entries(self) -> int:
        return self.blocks + max(self.blocks - 1, 0) // self.chunk

    @property
    def table(self) -> tuple[int, int]:
        """Offset and length of the block allocation table."""
        return _MIB + self.log, max(round_up(8 * self.entries, _MIB), _MIB)

    @property
    def metadata(self) -> tuple[int, int]:
        """Offset and length of the metadata."""
        return sum(self.table), _MIB


def _with_checksum(data: bytes, size: int) -> bytes:
    data = data.ljust(size, b"\0")
    return data[:4] + struct.pack("<I", vhdx.crc32c(data)) + data[8:]


def _headers(plan: _Plan) -> bytes:
    """Return what begins the file."""
    head = bytearray(vhdx.REGION_TABLES[1] + vhdx.REGION_TABLE_SIZE)
    creator = vhdx.SIGNATURE + _CREATOR.encode("utf-16-le")
    head[: len(creator)] = creator
    identifiers = uuid4().bytes_le + uuid4().bytes_le
    for sequence, place in enumerate(vhdx.HEADERS):
        header = vhdx.HEADER.pack(b"head", sequence, identifiers, bytes(16), 0, _VERSION, plan.log, _MIB)
        head[place : place + vhdx.HEADER_SIZE] = _with_checksum(header, vhdx.HEADER_SIZE)
    regions = vhdx.REGION_TABLE.pack(b"regi", 2)
    regions += vhdx.REGION.pack(vhdx.BAT, *plan.table, 1) + vhdx.REGION.pack(vhdx.METADATA_REGION, *plan.metadata, 1)
    for place in vhdx.REGION_TABLES:
        head[place : place + vhdx.REGION_TABLE_SIZE] = _with_checksum(regions, vhdx.REGION_TABLE_SIZE)
    return bytes(head)


def _metadata(plan: _Plan) -> bytes:
    items = (
        (vhdx.FILE_PARAMETERS, struct.pack("<II", plan.block, _STAYS_ALLOCATED if plan.is_fixed else 0), _REQUIRED),
        (vhdx.DISK_SIZE, struct.pack("<Q", plan.size), _REQUIRED | _OF_DISK),
        (vhdx.DISK_ID, uuid4().bytes_le, _REQUIRED | _OF_DISK),
        (vhdx.SECTOR_SIZE, struct.pack("<I", SECTOR), _REQUIRED | _OF_DISK),
        (vhdx.PHYSICAL_SECTOR_SIZE, struct.pack("<I", SECTOR), _REQUIRED | _OF_DISK),
    )
    table, values = vhdx.METADATA_TABLE.pack(b"metadata", len(items)), b""
    for identifier, value, bits in items:
        place = vhdx.METADATA_TABLE_SIZE + len(values)
        table += vhdx.METADATA.pack(identifier, place, len(value), bits)
        values += value
    return table.ljust(vhdx.METADATA_TABLE_SIZE, b"\0") + values


def _entries(plan: _Plan, data: int) -> Iterator[int]:
    """Yield the block allocation table; the blocks of a fixed image begin at `data`."""
    for index in range(plan.entries):
        above, slot = divmod(index, plan.chunk + 1)
        if slot == plan.chunk:
            yield 0  # there are no bitmaps: there is no image below
        elif plan.is_fixed:
            yield data + (above * plan.chunk + slot) * plan.block | vhdx.FULLY_PRESENT
        else:
            yield plan.state


def _write_table(file: Node, plan: _Plan, data: int) -> None:
    place, part = plan.table[0], array("Q")
    for index, entry in enumerate(_entries(plan, data), 1):
        part.append(entry)
        if len(part) == _PART or index == plan.entries:
            if byteorder == "big":
                part.byteswap()
            file.write(place, part.tobytes())
            place += 8 * len(part)
            part = array("Q")


def _read_options(options: Options) -> _Plan:
    """Return what the image is to be.  Raises BlockError."""
    size, log = options["size"], options.get("log-size", _MIB)
    if size > vhdx.MAX_DISK:
        raise BlockError(f"Image size too large; max of {vhdx.MAX_DISK >> 40}TB")
    if not log or log % _MIB:
        raise BlockError("Log size must be a multiple of 1 MB")
    if log >= _MAX_LOG:
        raise BlockError("Log size must be smaller than 4 GB")
    by_size = next((block for least, block in _BLOCK_BY_SIZE if size > least), _SMALL_BLOCK)
    block = options.get("block-size", by_size)
    if not block or block % _MIB:
        raise BlockError("Block size must be a multiple of 1 MB")
    if not is_power_of_two(block):
        raise BlockError("Block size must be a power of two")
    if block > vhdx.MAX_BLOCK:
        raise BlockError(f"Block size must not exceed {vhdx.MAX_BLOCK}")
    state = _ZERO if options.get("block-state-zero", True) else 0
    return _Plan(round_up(size, SECTOR), block, log, options.get("subformat") == "fixed", state)


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    wanted = _read_options(options)
    file = opening.file(options["file"])

    def write() -> None:
        data = sum(wanted.metadata)
        start_over(file, data + (wanted.blocks * wanted.block if wanted.is_fixed else 0))
        file.write(0, _headers(wanted))
        _write_table(file, wanted, data)
        file.write(wanted.metadata[0], _metadata(wanted))
        file.flush()

    return write
