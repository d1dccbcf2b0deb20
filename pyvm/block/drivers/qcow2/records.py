"""Entries of the snapshot table and of the bitmap directory, apart from all logic.

Source: "Qcow2 Image File Format", sections "Snapshots" and "Bitmaps".  What is parsed comes from outside: the parsers
raise :class:`BlockError` for what cannot be, and bound what they take in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyvm.block.drivers.qcow2.structures import MAX_L1_BYTES, MAX_SIZE, MAX_SNAPSHOT_TABLE_BYTES
from pyvm.block.errors import BlockError
from pyvm.records import record, replace

MAX_SNAPSHOT_EXTRA = 1024
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY_BYTES = 64 << 20
MAX_BITMAP_TABLE_ENTRIES = 0x8000000
MAX_BITMAP_NAME = 1023
MAX_BITMAP_BYTES = 512 << 20
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31

# Snapshot table: l1_table_offset, l1_size, id_str_size, name_size, date_sec, date_nsec, vm_clock_nsec, vm_state_size,
# extra_data_size; then extra data, ID, name, padding to 8 bytes
_SNAPSHOT = struct.Struct(">QIHHIIQII")
# Extra data: vm_state_size (64 bits), disk_size, icount
_EXTRA_NUMBERS = struct.Struct(">Q")
_KNOWN_EXTRA = 24
NO_ICOUNT = (1 << 64) - 1

# Bitmap directory: bitmap_table_offset, bitmap_table_size, flags, type, granularity_bits, name_size, extra_data_size;
# then extra data, name, padding to 8 bytes
_BITMAP = struct.Struct(">QIIBBHI")
BITMAP_FLAGS_OFFSET = 12
BITMAP_FLAGS = struct.Struct(">I")
BITMAP_IN_USE = 1
BITMAP_AUTO = 2
BITMAP_EXTRA_COMPATIBLE = 4
_KNOWN_BITMAP_FLAGS = BITMAP_IN_USE | BITMAP_AUTO | BITMAP_EXTRA_COMPATIBLE
BITMAP_DIRTY_TRACKING = 1
"""The only type of bitmap."""

# Entries of a bitmap's table
BITMAP_ALL_ONES = 1
BITMAP_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
BITMAP_RESERVED_MASK = 0xFF00_0000_0000_01FE


@record
class Snapshot:
    """An entry of the snapshot table.  The fields are named as in the specification."""

    identifier: str
    name: str
    l1_table_offset: int
    l1_size: int
    date_sec: int = 0
    date_nsec: int = 0
    vm_clock_nsec: int = 0
    vm_state_size: int = 0
    disk_size: int | None = None
    """None in old images: that of the image."""
    icount: int = NO_ICOUNT
    """Instructions executed; NO_ICOUNT where they were not counted."""
    extra_size: int = _KNOWN_EXTRA
    """Bytes of extra data in the file."""
    other_extra: bytes = b""
    """Extra data behind what is known: kept."""


@record
class Bitmap:
    """An entry of the bitmap directory."""

    name: str
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    kind: int = BITMAP_DIRTY_TRACKING
    extra: bytes = b""
    flags_offset: int = 0
    """Where the flags are in the file; makes no difference between two."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitmap) and vars(replace(other, flags_offset=self.flags_offset)) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # they change

    @property
    def granularity(self) -> int:
        """Bytes of the disk that one bit stands for."""
        return 1 << self.granularity_bits

    @property
    def in_use(self) -> bool:
        """Whether the bitmap on the disk is out of date."""
        return bool(self.flags & BITMAP_IN_USE)

    @property
    def auto(self) -> bool:
        """Whether the bitmap is to follow all writes."""
        return bool(self.flags & BITMAP_AUTO)


def parse_snapshots(data: bytes | bytearray, count: int, cluster_size: int) -> Iterator[tuple[Snapshot, int]]:
    """Yield `count` entries of a snapshot table, each with where its entry ends.  Raises BlockError."""
    position = 0
    for _ in range(count):
        snapshot, position = _parse_snapshot(data, position)
        if snapshot.l1_size * 8 > MAX_L1_BYTES:
            raise BlockError("Snapshot L1 table too large")
        offset = snapshot.l1_table_offset
        if offset % cluster_size or offset + snapshot.l1_size * 8 > MAX_SIZE:
            raise BlockError("Snapshot L1 table offset invalid")
        yield snapshot, position


def _parse_snapshot(data: bytes | bytearray, position: int) -> tuple[Snapshot, int]:
    if position + _SNAPSHOT.size > len(data):
        raise BlockError("Snapshot table is cut short")
    fields = _SNAPSHOT.unpack_from(data, position)
    offset, l1_size, id_size, name_size, date_sec, date_nsec, vm_clock, vm_state, extra_size = fields
    if extra_size > MAX_SNAPSHOT_EXTRA:
        raise BlockError("Too much extra metadata in snapshot table entry")
    extra_start = position + _SNAPSHOT.size
    start = extra_start + extra_size
    end = start + id_size + name_size
    if end > len(data):
        raise BlockError("Snapshot table is cut short")
    extra = bytes(data[extra_start:start])
    snapshot = Snapshot(
        _decode(data[start : start + id_size]),
        _decode(data[start + id_size : end]),
        offset,
        l1_size,
        date_sec,
        date_nsec,
        vm_clock,
        vm_state,
        extra_size=extra_size,
        other_extra=extra[_KNOWN_EXTRA:],
    )
    numbers = [_EXTRA_NUMBERS.unpack_from(extra, at)[0] for at in range(0, min(extra_size, _KNOWN_EXTRA) & -8, 8)]
    if len(numbers) > 0:
        snapshot.vm_state_size = numbers[0]
    if len(numbers) > 1:
        snapshot.disk_size = numbers[1]
    if len(numbers) > 2:
        snapshot.icount = numbers[2]
    return snapshot, -(-end // 8) * 8


def encode_snapshots(snapshots: list[Snapshot], disk_size: int) -> bytes:
    """Return a snapshot table; `disk_size` is for entries that have none of their own.  Raises BlockError."""
    table = bytearray()
    for it in snapshots:
        identifier, name = _encode(it.identifier), _encode(it.name)
        size = it.disk_size if it.disk_size is not None else disk_size
        extra = b"".join(map(_EXTRA_NUMBERS.pack, (it.vm_state_size, size, it.icount))) + it.other_extra
        table += _SNAPSHOT.pack(
            it.l1_table_offset,
            it.l1_size,
            len(identifier),
            len(name),
            it.date_sec,
            it.date_nsec,
            it.vm_clock_nsec,
            # Old programs must not take the low half for the size.
            it.vm_state_size if it.vm_state_size < 1 << 32 else 0,
            len(extra),
        )
        table += extra + identifier + name
        table += bytes(-len(table) % 8)
    if len(table) > MAX_SNAPSHOT_TABLE_BYTES:
        raise BlockError("Snapshot table too large")
    return bytes(table)


def parse_bitmaps(data: bytes | bytearray, count: int, directory_offset: int) -> Iterator[Bitmap]:
    """Yield `count` entries of a bitmap directory that is at `directory_offset`.  Raises BlockError."""
    position = 0
    for _ in range(count):
        if position + _BITMAP.size > len(data):
            raise BlockError("Broken bitmap directory")
        offset, size, flags, kind, granularity_bits, name_size, extra_size = _BITMAP.unpack_from(data, position)
        start = position + _BITMAP.size + extra_size
        end = start + name_size
        if end > len(data) or not name_size or name_size > MAX_BITMAP_NAME or size > MAX_BITMAP_TABLE_ENTRIES:
            raise BlockError("Broken bitmap directory")
        extra = bytes(data[position + _BITMAP.size : start])
        flags_offset = directory_offset + position + BITMAP_FLAGS_OFFSET
        # What extra data means to others can only be said where there is some.
        if flags & ~_KNOWN_BITMAP_FLAGS or (flags & BITMAP_EXTRA_COMPATIBLE and not extra_size):
            raise BlockError(f"Bitmap '{_decode(data[start:end])}' doesn't satisfy the constraints")
        yield Bitmap(_decode(data[start:end]), offset, size, flags, granularity_bits, kind, extra, flags_offset)
        position = -(-end // 8) * 8


def encode_bitmaps(bitmaps: list[Bitmap]) -> bytes:
    """Return a bitmap directory.  Raises BlockError where it would be too large."""
    directory = bytearray()
    for it in bitmaps:
        name = _encode(it.name)
        directory += _BITMAP.pack(
            it.table_offset, it.table_size, it.flags, it.kind, it.granularity_bits, len(name), len(it.extra)
        )
        directory += it.extra + name
        directory += bytes(-len(directory) % 8)
    if len(directory) > MAX_BITMAP_DIRECTORY_BYTES:
        raise BlockError("Bitmap directory is too large")
    return bytes(directory)


def _decode(name: bytes | bytearray) -> str:
    return name.decode("utf-8", "surrogateescape")


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
