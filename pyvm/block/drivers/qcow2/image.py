"""A qcow2 file as the parts of the driver see it: its header, its tables' places, and what to do about damage.

Order of writing.  A table entry must never reach the disk before what it refers to, whenever the process is killed or
the power fails.  Data goes to the file at once.  Changed tables wait in memory until they are written:

1. refcounts of what is newly used, and tables that nothing refers to yet
2. (barrier) refcount table entries of new refcount blocks
3. (barrier) L2 and L1 entries, which make data and tables visible
4. (barrier) only now, what these entries no longer refer to is counted down and may be used again

A barrier is an fdatasync.  What is lost in between is at worst room in the file: leaked clusters.

With lazy refcounts, step 1 and 2 are left out until the image is closed, and the dirty bit of the header says that
refcounts have to be made anew after a crash.  Operations that change refcounts and the "copied" flags of entries
together, as making a snapshot does, set the dirty bit as well: there is no order of writes without a moment at which
the two disagree.  Version 2 has no dirty bit; there such a moment leaves flags that a check repairs.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pyvm.annotations import Any, NoReturn
from pyvm.block.drivers.qcow2.overlap import NAMES, Kind, Tables
from pyvm.block.drivers.qcow2.structures import (
    MAX_CLUSTER_BITS,
    OFFSET_MASK,
    REFCOUNT_BLOCK_MASK,
    Autoclear,
    Compatible,
    Header,
    Incompatible,
    encode_fields,
    encode_header,
)
from pyvm.block.drivers.qcow2.tables import decode_entries
from pyvm.block.errors import BlockError
from pyvm.block.node import Node

Warn = Callable[[str], None]
OnCorrupted = Callable[[dict[str, Any]], None]
"""Takes the data of a BLOCK_IMAGE_CORRUPTED event."""


class Image:
    """The open file, its header, the active L1 table, and whether it can still be trusted."""

    def __init__(self, file: Node, header: Header, *, name: str, checked: Kind, lazy: bool, warn: Warn) -> None:
        self.file = file
        self.header = header
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.read_only = file.read_only
        self.broken = False
        """Found corrupt while it may be written: not used any more."""
        self.lazy = lazy
        self.tables = Tables(header.cluster_bits, checked)
        self.on_corrupted: OnCorrupted | None = None
        self._name = name
        self._warn = warn
        self._warned = False
        self._damage: str | None = None
        """What the first change is to be refused for."""
        self.l1 = self.read_table("L1 table", header.l1_table_offset, header.l1_size)

    def read_table(self, what: str, offset: int, count: int) -> array[int]:
        """Return a table of 64-bit entries.  Raises BlockError where it is not wholly in the file."""
        return decode_entries(self.read_bytes(what, offset, count * 8), 64)

    def read_bytes(self, what: str, offset: int, length: int) -> bytearray:
        """Return a range of the file.  Raises BlockError where it is not wholly there."""
        if offset + length > self.file.length():
            raise BlockError(f"Could not read {what}: it is behind the end of the file")
        try:
            return self.file.read(offset, length)
        except OSError as error:
            raise BlockError(f"Could not read {what}: {error.strerror}") from None

    def clusters(self, length: int) -> int:
        """Return how many clusters `length` bytes are, rounded up."""
        return -(-length >> self.cluster_bits)

    # ---- Damage

    def check_usable(self) -> None:
        """Raise OSError once the image has been found corrupt while it may be written."""
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def check_changeable(self) -> None:
        """Raise OSError where the image must not be changed, and mark it as corrupt."""
        self.check_usable()
        if self._damage is not None:
            self.corruption(self._damage)

    def corruption(self, what: str, offset: int = -1, size: int = -1, *, fatal: bool = True) -> NoReturn:
        """Report damage once, mark an image that may be written as corrupt, and raise OSError."""
        fatal = fatal and not self.read_only
        if not self._warned or (fatal and not self.broken):
            self._warned = True
            if fatal:
                text = f"Marking image as corrupt: {what}; further corruption events will be suppressed"
            else:
                text = f"Image is corrupt: {what}; further non-fatal corruption events will be suppressed"
            self._warn(f"qcow2: {text}")
            self._report(what, offset, size, fatal)
        if fatal and not self.broken:
            self.broken = True
            self._mark_corrupt()
        raise OSError(errno.EIO, what)

    def _report(self, what: str, offset: int, size: int, fatal: bool) -> None:
        if self.on_corrupted is None:
            return
        event: dict[str, Any] = {"device": "", "msg": what, "fatal": fatal}
        if self._name:
            event["node-name"] = self._name
        if offset >= 0:
            event["offset"] = offset
        if size >= 0:
            event["size"] = size
        self.on_corrupted(event)

    def _mark_corrupt(self) -> None:
        """Set the corrupt bit, where the format has one, so that nobody writes before a repair."""
        if self.header.version < 3:
            return
        self.header.incompatible_features |= Incompatible.CORRUPT
        try:
            self.write_fields()
            self.file.flush()
        except OSError:
            # What could not be marked is still not used any more.
            return

    def check_overlap(self, offset: int, length: int) -> None:
        """Mark the image as corrupt, and raise OSError, where a write would hit metadata."""
        kind = self.tables.find(offset, length)
        if kind is not None:
            what = f"Preventing invalid write on metadata (overlaps with {NAMES[kind]})"
            self.corruption(what, offset, length)

    # ---- The header

    def write_fields(self) -> None:
        """Write the fixed part of the header: it is in one sector, all of it changes at once.  Raises OSError."""
        self.file.write(0, encode_fields(self.header))

    def write_header(self) -> None:
        """Write the header with its extensions and the backing file's name.  Raises OSError, or BlockError."""
        old = self.file.head(min(self.cluster_size, 1 << MAX_CLUSTER_BITS)).ljust(self.cluster_size, b"\0")
        new = encode_header(self.header).ljust(self.cluster_size, b"\0")
        changed = [at for at in range(0, len(new), 512) if old[at : at + 512] != new[at : at + 512]]
        if changed:
            self.file.write(changed[0], new[changed[0] : changed[-1] + 512])

    def commit_fields(self) -> None:
        """Let the fixed part of the header change, behind all that was written before.  Raises OSError."""
        self.file.flush()
        self.write_fields()
        self.file.flush()

    def commit_header(self) -> None:
        """Let the header change, behind all that was written before.  Raises OSError, or BlockError."""
        self.file.flush()
        self.write_header()
        self.file.flush()

    @property
    def is_dirty(self) -> bool:
        """Whether the header says that refcounts may be wrong."""
        return bool(self.header.incompatible_features & Incompatible.DIRTY)

    def set_dirty(self, dirty: bool) -> None:
        """Say so, or no longer, on stable storage.  Raises OSError."""
        if self.header.version < 3 or self.is_dirty == dirty:
            return
        if dirty:
            self.header.incompatible_features |= Incompatible.DIRTY
        else:
            self.header.incompatible_features &= ~int(Incompatible.DIRTY)
        self.commit_fields()

    @contextmanager
    def inconsistent(self, settle: Callable[[], None]) -> Iterator[None]:
        """Between here and `settle`, refcounts and the entries of tables need not agree on the disk.

        `settle` writes all tables.  After a failure the dirty bit stays, and the next one to open the image repairs it.
        """
        self.set_dirty(True)
        yield
        settle()
        if not self.lazy:
            self.set_dirty(False)

    def uses_lazy_refcounts(self) -> bool:
        """Whether the header asks for lazy refcounts."""
        return bool(self.header.compatible_features & Compatible.LAZY_REFCOUNTS)

    # ---- Where tables are

    def map_tables(self, refcount_table: array[int], inactive: Iterable[array[int]] = ()) -> None:
        """Note where L2 tables and refcount blocks are, before the first change.

        `inactive` are the L1 tables of snapshots, given where their L2 tables are wanted.
        """
        header = self.header
        self._damage = None
        self.map_range(Kind.MAIN_HEADER, 0, self.cluster_size)
        table_bytes = header.refcount_table_clusters * self.cluster_size
        self.map_range(Kind.REFCOUNT_TABLE, header.refcount_table_offset, table_bytes)
        self.map_range(Kind.ACTIVE_L1, header.l1_table_offset, header.l1_size * 8)
        active = self._map_blocks(Kind.ACTIVE_L2, self.l1, OFFSET_MASK)
        blocks = self._map_blocks(Kind.REFCOUNT_BLOCK, refcount_table, REFCOUNT_BLOCK_MASK)
        if not set(blocks).isdisjoint(active):
            self._damaged(Kind.ACTIVE_L2, Kind.REFCOUNT_BLOCK)
        if self.tables.checked & Kind.INACTIVE_L2:
            below = array("Q")
            for table in inactive:
                below.extend(table)
            self._map_blocks(Kind.INACTIVE_L2, below, OFFSET_MASK)

    def map_range(self, kind: Kind, offset: int, length: int) -> None:
        """Note where a table is; that it overlaps with another one is refused at the first change."""
        if not length or not kind & self.tables.checked:
            return
        if offset >= self.file.length():
            self._note_damage(f"{NAMES[kind]} is behind the end of the file")
            return
        other = self.tables.find(offset, length)
        if other is not None:
            self._damaged(kind, other)
        self.tables.add_range(kind, offset, length)

    def _map_blocks(self, kind: Kind, table: array[int], mask: int) -> list[int]:
        offsets = [entry & mask for entry in table if entry & mask]
        unaligned = next((offset for offset in offsets if offset & (self.cluster_size - 1)), None)
        if unaligned is not None:
            self._note_damage(_unaligned(kind, table, unaligned, mask))
        clusters = [offset >> self.cluster_bits for offset in offsets]
        other = self.tables.set_blocks(kind, clusters)
        if other is not None:
            self._damaged(kind, other)
        return clusters

    def _damaged(self, kind: Kind, other: Kind) -> None:
        self._note_damage(f"Preventing invalid write on metadata ({NAMES[kind]} overlaps with {NAMES[other]})")

    def _note_damage(self, what: str) -> None:
        self._damage = self._damage or what

    @property
    def known_autoclear(self) -> int:
        """The autoclear bits that are looked after."""
        known = int(Autoclear.BITMAPS)
        return known | Autoclear.RAW_DATA_FILE if self.header.external_data else known


def _unaligned(kind: Kind, table: array[int], offset: int, mask: int) -> str:
    if kind is not Kind.REFCOUNT_BLOCK:
        return f"{NAMES[kind]} offset {offset:#x} unaligned"
    index = next(number for number, entry in enumerate(table) if entry & mask == offset)
    return f"Refblock offset {offset:#x} unaligned (reftable index: {hex(index) if index else '0'})"
