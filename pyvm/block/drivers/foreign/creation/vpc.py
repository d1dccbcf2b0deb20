"""Making VHD images, dynamic and fixed ones.

A disk's size is what its geometry gives unless it is to be forced: only then it can have any.  See
:mod:`pyvm.block.drivers.foreign.vpc` for the format.
"""

from __future__ import annotations

import struct
import time
from itertools import count
from typing import NamedTuple
from uuid import uuid4

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, round_up, start_over
from pyvm.block.drivers.foreign.vpc import COOKIE, DYNAMIC_COOKIE, DYNAMIC_TYPE, FIXED_TYPE, MOST_SECTORS
from pyvm.block.errors import BlockError

# cookie, features, version, offset of what follows, time stamp, creator, its version, its system, original size,
# size, cylinders, heads, sectors per track, type, checksum, UUID
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16s")
# cookie, offset of what follows, offset of the table, version, entries of the table, block size, checksum
_DYNAMIC = struct.Struct(">8sQQIIII")
_DYNAMIC_SIZE = 1024
_RESERVED = 2
"""A feature that is always there."""
_VERSION = 1 << 16
_NOTHING = (1 << 64) - 1
_EPOCH = 946684800
"""The year 2000."""
_CREATOR, _EXACT_CREATOR = b"pyvm", b"qem2"
"""The second is one that readers know: they take the size as it is, where otherwise the geometry tells it."""
_BLOCK = 2 << 20
_MOST_CYLINDERS, _MOST_HEADS, _MOST_PER_TRACK = 65535, 16, 255


class _Geometry(NamedTuple):
    cylinders: int
    heads: int
    per_track: int

    @property
    def sectors(self) -> int:
        return self.cylinders * self.heads * self.per_track


_LARGEST = _Geometry(_MOST_CYLINDERS, _MOST_HEADS, _MOST_PER_TRACK)


def _geometry(sectors: int) -> _Geometry:
    """Return the geometry of a disk, as the specification's appendix computes it; it may be smaller than the disk."""
    if sectors >= _MOST_CYLINDERS * 16 * 63:
        tracks, heads, per_track = min(sectors, _LARGEST.sectors) // _MOST_PER_TRACK, 16, _MOST_PER_TRACK
        return _Geometry(tracks // heads, heads, per_track)
    per_track = 17
    tracks = sectors // per_track
    heads = max(-(-tracks // 1024), 4)
    if tracks >= heads * 1024 or heads > 16:
        heads, per_track = 16, 31
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        heads, per_track = 16, 63
        tracks = sectors // per_track
    return _Geometry(tracks // heads, heads, per_track)


def _fit(size: int, is_forced: bool) -> _Geometry:
    """Return the geometry for a disk of `size` bytes; raises BlockError where there is none."""
    sectors = -(-size // SECTOR)
    geometry = _LARGEST
    if not is_forced:
        wanted = min(sectors, _LARGEST.sectors)
        geometry = next(fit for extra in count() if (fit := _geometry(wanted + extra)).sectors >= wanted)
    if geometry == _LARGEST:
        if sectors > MOST_SECTORS:
            raise BlockError(f"Disk size is too large, max size is {MOST_SECTORS * SECTOR >> 30} GiB")
        if is_forced and size % SECTOR:
            raise BlockError("The requested image size cannot be represented in CHS geometry")
    elif geometry.sectors * SECTOR != size:
        raise BlockError("The requested image size cannot be represented in CHS geometry")
    return geometry


def _checked(data: bytes, place: int) -> bytes:
    """Return a structure with its checksum, which is nought in `data` and belongs at `place`."""
    return data[:place] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[place + 4 :]


def _footer(size: int, geometry: _Geometry, *, is_fixed: bool, is_forced: bool) -> bytes:
    data = _FOOTER.pack(
        COOKIE, _RESERVED, _VERSION, _NOTHING if is_fixed else SECTOR, int(time.time()) - _EPOCH,
        _EXACT_CREATOR if is_forced else _CREATOR, _VERSION, b"Wi2k", size, size, *geometry,
        FIXED_TYPE if is_fixed else DYNAMIC_TYPE, 0, uuid4().bytes,
    )  # fmt: skip
    return _checked(data.ljust(SECTOR, b"\0"), 64)


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    size, is_forced = options["size"], bool(options.get("force-size"))
    is_fixed = options.get("subformat", "dynamic") == "fixed"
    file = opening.file(options["file"])

    def write() -> None:
        geometry = _fit(size, is_forced)
        footer = _footer(size, geometry, is_fixed=is_fixed, is_forced=is_forced)
        if is_fixed:
            start_over(file, size + SECTOR)
            file.write(size, footer)
        else:
            entries = -(-size // _BLOCK)
            place = SECTOR + _DYNAMIC_SIZE
            table = round_up(4 * entries, SECTOR)
            header = _DYNAMIC.pack(DYNAMIC_COOKIE, _NOTHING, place, _VERSION, entries, _BLOCK, 0)
            start_over(file, place + table + SECTOR)
            file.write(0, footer + _checked(header.ljust(_DYNAMIC_SIZE, b"\0"), 36))
            file.write(place, b"\xff" * table + footer)
        file.flush()

    return write
