"""Making VMDK images, of one file or of several.

A descriptor in text says of what extents the disk is made.  It is in the image itself where that is the only extent;
the files of other extents have to be there, and are given in their order.  See
:mod:`pyvm.block.drivers.foreign.vmdk` for the format.
"""

from __future__ import annotations

import os
import secrets
import struct
from array import array
from sys import byteorder
from typing import NamedTuple

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, check_sectors, round_up, start_over
from pyvm.block.drivers.foreign.vmdk import HAS_MARKERS, HAS_ZEROED_GRAINS, HEADER, IS_COMPRESSED, MAGIC
from pyvm.block.errors import BlockError
from pyvm.block.node import Node

_GRAIN = 128
"""Sectors of a grain."""
_TABLE_ENTRIES = 512
_TABLE = _TABLE_ENTRIES * 4 // SECTOR
"""Sectors of a grain table."""
_DESCRIPTOR, _DESCRIPTOR_SECTORS = 1, 20
_NEWLINES_KNOWN, _SECOND_DIRECTORY = 1, 2
_NEWLINES = b"\n \r\n"
_NEWLINES_PLACE = 73
_DEFLATE = 1
_MAX_DIRECTORY = 32 << 20
_MOST_IN_EXTENT = 2 << 30
"""Bytes of an extent where there are to be several."""
_NO_PARENT = 0xFFFFFFFF
_HEADS, _HEADS_OF_SCSI, _PER_TRACK = 16, 255, 63
_PART = 1 << 18
"""Entries that are written at once."""
_TEXT = """\
# Disk DescriptorFile
version=1
CID={cid:x}
parentCID={parent_cid:x}
createType="{kind}"
{parent}
# Extent description
{extents}
# The Disk Data Base
#DDB

ddb.virtualHWVersion = "{hardware}"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "{per_track}"
ddb.adapterType = "{adapter}"
ddb.toolsVersion = "{tools}"
"""
"""How VMware lays descriptors out."""


class _Plan(NamedTuple):
    """What an image is to be."""

    size: int
    kind: str
    has_zeroed_grains: bool

    @property
    def is_flat(self) -> bool:
        return self.kind.endswith("Flat")

    @property
    def is_compressed(self) -> bool:
        return self.kind == "streamOptimized"

    @property
    def is_alone(self) -> bool:
        """Whether the image is its only extent."""
        return self.kind in ("monolithicSparse", "streamOptimized")

    @property
    def extents(self) -> list[int]:
        """The sizes of the extents."""
        if not self.kind.startswith("twoGb"):
            return [self.size]
        starts = range(0, self.size, _MOST_IN_EXTENT)
        return [min(self.size - start, _MOST_IN_EXTENT) for start in starts] or [0]


def _read_options(options: Options) -> _Plan:
    """Return what the image is to be.  Raises BlockError."""
    plan = _Plan(options["size"], options.get("subformat", "monolithicSparse"), bool(options.get("zeroed-grain")))
    check_sectors(plan.size)
    if plan.is_flat and "backing-file" in options:
        raise BlockError("Flat image can't have backing file")
    if plan.is_flat and plan.has_zeroed_grains:
        raise BlockError("Flat image can't enable zeroed grain")
    if plan.size > _MAX_DIRECTORY * _TABLE_ENTRIES * _GRAIN * SECTOR:
        raise BlockError("L1 size too big")
    return plan


def _write_directory(file: Node, place: int, first: int, count: int) -> None:
    """Write a directory of `count` tables, of which the first is at the sector `first`."""
    for start in range(0, count, _PART):
        part = array("I", (first + index * _TABLE for index in range(start, min(start + _PART, count))))
        if byteorder == "big":
            part.byteswap()
        file.write(place * SECTOR + 4 * start, part.tobytes())


def _write_sparse(file: Node, plan: _Plan, size: int) -> None:
    """Write an extent without any data."""
    tables = -(-size // (_TABLE_ENTRIES * _GRAIN * SECTOR))
    directory = -(-4 * tables // SECTOR)
    second = _DESCRIPTOR + _DESCRIPTOR_SECTORS
    primary = second + directory + tables * _TABLE
    end = round_up(primary + directory + tables * _TABLE, _GRAIN)
    version, flags = 1, _NEWLINES_KNOWN | _SECOND_DIRECTORY
    if plan.has_zeroed_grains:
        version, flags = 2, flags | HAS_ZEROED_GRAINS
    if plan.is_compressed:
        version, flags = 3, flags | IS_COMPRESSED | HAS_MARKERS
    header = HEADER.pack(
        MAGIC, version, flags, size // SECTOR, _GRAIN, _DESCRIPTOR, _DESCRIPTOR_SECTORS, _TABLE_ENTRIES, second, primary
    )
    header += struct.pack("<Q", end)
    header = header.ljust(_NEWLINES_PLACE, b"\0") + _NEWLINES
    header += struct.pack("<H", _DEFLATE if plan.is_compressed else 0)
    start_over(file, end * SECTOR)
    file.write(0, header)
    _write_directory(file, second, second + directory, tables)
    _write_directory(file, primary, primary + directory, tables)


def _parent(opening: Opening, name: str) -> int:
    """Return the content ID of the image below.  Raises BlockError."""
    node = opening.image(name)
    try:
        if node.driver != "vmdk":
            raise BlockError(f"Invalid backing file format: {node.driver}. Must be vmdk")
        info = getattr(node, "format_info")()  # noqa: B009 - every image of this format has it
        return int(info["data"]["cid"])
    finally:
        node.close()


def _describe(plan: _Plan, options: Options, files: list[Node], parent_cid: int) -> bytes:
    """Return the text that describes the disk."""
    lines = ""
    for size, file in zip(plan.extents, files, strict=True):
        rest = "FLAT" if plan.is_flat else "SPARSE"
        lines += f'RW {size // SECTOR} {rest} "{os.path.basename(file.filename)}"{" 0" if plan.is_flat else ""}\n'
    adapter = options.get("adapter-type", "ide")
    heads = _HEADS if adapter == "ide" else _HEADS_OF_SCSI
    text = _TEXT.format(
        cid=secrets.randbelow(_NO_PARENT),
        parent_cid=parent_cid,
        kind=plan.kind,
        parent=f'parentFileNameHint="{options["backing-file"]}"' if "backing-file" in options else "",
        extents=lines,
        hardware=options.get("hwversion", "6" if adapter == "legacyESX" else "4"),
        cylinders=plan.size // (SECTOR * _PER_TRACK * heads),
        heads=heads,
        per_track=_PER_TRACK,
        adapter=adapter,
        tools=options.get("toolsversion", "2147483647"),
    )
    return os.fsencode(text)


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    wanted = _read_options(options)
    file = opening.file(options["file"])
    given = options.get("extents", [])
    sizes = wanted.extents

    def write() -> None:
        if not wanted.is_alone and len(given) < len(sizes):
            raise BlockError(f"Extent [{len(given)}] not specified")
        if len(given) > (0 if wanted.is_alone else len(sizes)):
            raise BlockError("List of extents contains unused extents")
        parent_cid = _NO_PARENT
        if "backing-file" in options:
            parent_cid = _parent(opening, options["backing-file"])
        files = [file] if wanted.is_alone else extents
        text = _describe(wanted, options, files, parent_cid)
        if wanted.is_alone and len(text) > _DESCRIPTOR_SECTORS * SECTOR:
            raise BlockError("VMDK descriptor is too long")
        for size, extent in zip(sizes, files, strict=True):
            if wanted.is_flat:
                start_over(extent, size)
            else:
                _write_sparse(extent, wanted, size)
            extent.flush()
        if not wanted.is_alone:
            start_over(file)
        file.write(_DESCRIPTOR * SECTOR if wanted.is_alone else 0, text)
        file.flush()

    extents = [opening.file(extent) for extent in given[: len(sizes)]] if not wanted.is_alone else []
    return write
