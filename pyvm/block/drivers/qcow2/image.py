"""A qcow2 file as the parts of the driver see it: its header, its tables' places, and what to do about damage.

Order of writing.  A table entry must never reach the disk before what it refers to, whenever the process is killed or
the power fails.  Data goes to the file at once.  Changed tables wait in memory for :meth:`Image.write_tables`:

1. refcounts of what is newly used, and tables that nothing refers to yet
2. (barrier) refcount table entries of new refcount blocks
3. (barrier) L2 and L1 entries, which make data and tables visible
4. (barrier) only now, what these entries no longer refer to is counted down and may be used again

A barrier is an fdatasync.  What is lost in between is at worst room in the file: leaked clusters.
"""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from itertools import islice
from operator import eq
from typing import NoReturn

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.structures import (
    AUTOCLEAR_OFFSET,
    INCOMPATIBLE_OFFSET,
    OFFSET_MASK,
    REFCOUNT_BLOCK_MASK,
    Header,
    Incompatible,
)
from pyvm.block.drivers.qcow2.tables import decode_entries
from pyvm.block.errors import BlockError

Warn = Callable[[str], None]


class Tables:
    """Where metadata is: whatever is written elsewhere must not touch it."""

    def __init__(self, cluster_bits: int) -> None:
        self._bits = cluster_bits
        self._ranges: list[tuple[int, int, str]] = []
        """Start, end and name, in this order, without overlaps."""
        self._sorted: array[int] = array("Q")
        self._added: dict[int, str] = {}
        self._removed: set[int] = set()

    def add_range(self, name: str, offset: int, length: int) -> None:
        """A table with this name is in this range."""
        size = 1 << self._bits
        insort(self._ranges, (offset, offset + -(-length // size) * size, name))

    def move_range(self, name: str, offset: int, length: int) -> None:
        """The only table with this name is in this range now."""
        self._ranges = [it for it in self._ranges if it[2] != name]
        self.add_range(name, offset, length)

    def set_blocks(self, clusters: Iterable[int]) -> str | None:
        """These clusters, by number, are L2 tables and refcount blocks; return what they overlap with, if anything."""
        self._sorted = array("Q", sorted(clusters))
        if any(map(eq, self._sorted, islice(self._sorted, 1, None))):
            return "next one"
        for start, stop, name in self._ranges:
            index = bisect_left(self._sorted, start >> self._bits)
            if index < len(self._sorted) and self._sorted[index] << self._bits < stop:
                return name
        return None

    def add_block(self, cluster: int, name: str) -> None:
        """One more cluster is metadata."""
        self._removed.discard(cluster)
        self._added[cluster] = name

    def remove_block(self, cluster: int) -> None:
        """A cluster is no longer metadata."""
        self._added.pop(cluster, None)
        self._removed.add(cluster)

    def find(self, offset: int, length: int) -> str | None:
        """Return the name of a table that the range touches."""
        end = offset + length
        behind = bisect_left(self._ranges, (end,))
        if behind and self._ranges[behind - 1][1] > offset:
            return self._ranges[behind - 1][2]
        first, last = offset >> self._bits, (end - 1) >> self._bits
        index = bisect_left(self._sorted, first)
        while index < len(self._sorted) and self._sorted[index] <= last:
            if self._sorted[index] not in self._removed:
                return "L2 table or refcount block"
            index += 1
        if self._added:
            for cluster in range(first, last + 1):
                if cluster in self._added:
                    return self._added[cluster]
        return None


class Image:
    """The open file, its header, the active L1 table, and whether it can still be trusted."""

    def __init__(self, file: FileNode, header: Header, warn: Warn) -> None:
        self.file = file
        self.header = header
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.read_only = file.read_only
        self.broken = False
        self.tables = Tables(header.cluster_bits)
        self._warn = warn
        self._warned = False
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

    # ---- Damage

    def check_usable(self) -> None:
        """Raise OSError once the image has been found corrupt while it may be written."""
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def corruption(self, what: str) -> NoReturn:
        """Report damage once, mark an image that may be written as corrupt, and raise OSError."""
        if not self._warned:
            self._warned = True
            name = self.file.path
            if self.read_only:
                self._warn(f"qcow2: {name}: Image is corrupt: {what}; further corruption events will be suppressed")
            else:
                self._warn(f"qcow2: {name}: Marking image as corrupt: {what}; further events will be suppressed")
        if not self.read_only and not self.broken:
            self.broken = True
            self._mark_corrupt()
        raise OSError(errno.EIO, what)

    def _mark_corrupt(self) -> None:
        """Set the corrupt bit, where the format has one, so that nobody writes before a repair."""
        if self.header.version < 3:
            return
        self.header.incompatible_features |= Incompatible.CORRUPT
        try:
            self.write_features()
            self.file.flush()
        except OSError:
            # What could not be marked is still not used any more.
            return

    def write_features(self) -> None:
        """Write the feature bits of the header that change.  Raises OSError."""
        header = self.header
        self.file.write(INCOMPATIBLE_OFFSET, header.incompatible_features.to_bytes(8, "big"))
        self.file.write(AUTOCLEAR_OFFSET, header.autoclear_features.to_bytes(8, "big"))

    def check_overlap(self, offset: int, length: int) -> None:
        """Mark the image as corrupt, and raise OSError, where a write of data would hit metadata."""
        table = self.tables.find(offset, length)
        if table is not None:
            self.corruption(f"Preventing invalid write on metadata (overlaps with {table})")

    def map_tables(self, refcount_table: array[int], others: Iterable[tuple[str, int, int]]) -> None:
        """Note where all metadata is, before the first write.  Raises BlockError where tables overlap."""
        header = self.header
        ranges = [
            ("qcow2 header", 0, self.cluster_size),
            ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * self.cluster_size),
            ("active L1 table", header.l1_table_offset, header.l1_size * 8),
            *others,
        ]
        end_of_file = self.file.length()
        for name, offset, length in ranges:
            if not length:
                continue
            if offset >= end_of_file:
                raise BlockError(f"Image is corrupt: the {name} is behind the end of the file")
            overlapped = self.tables.find(offset, length)
            if overlapped is not None:
                raise BlockError(f"Image is corrupt: the {name} overlaps with the {overlapped}")
            self.tables.add_range(name, offset, length)
        blocks = array("Q")
        for name, table, mask in (
            ("L2 table", self.l1, OFFSET_MASK),
            ("refcount block", refcount_table, REFCOUNT_BLOCK_MASK),
        ):
            for entry in table:
                offset = entry & mask
                if offset % self.cluster_size:
                    raise BlockError(f"Image is corrupt: {name} offset {offset:#x} unaligned")
                if offset:
                    blocks.append(offset >> self.cluster_bits)
        overlapped = self.tables.set_blocks(blocks)
        if overlapped is not None:
            raise BlockError(f"Image is corrupt: an L2 table or refcount block overlaps with the {overlapped}")
