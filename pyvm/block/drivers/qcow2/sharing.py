"""L2 tables, and all that they name, that have one user more or less: what a snapshot that comes, goes or returns does.

Where that are few runs of clusters, it is done in plain Python; for many there is numpy, whose import takes as long.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2 import walk
from pyvm.block.drivers.qcow2.refcounts import Reason
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COPIED, OFFSET_MASK
from pyvm.block.drivers.qcow2.tables import decode_entries, encode_entries

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.disk import Disk

_FEW_TABLES = 64
_FEW_RUNS = 4096
_COPIED_BYTE, _COMPRESSED_BYTE = COPIED >> 56, COMPRESSED >> 56
_CLEARED = bytes(byte if byte & _COMPRESSED_BYTE else byte & ~_COPIED_BYTE for byte in range(256))
"""By the first byte of an entry: the one of the same entry without the "copied" flag; compressed clusters have none."""

Runs = list[tuple[int, int]]
"""Runs of host clusters: the number of the first one, and how many they are."""


def share(disk: Disk, tables: Sequence[int]) -> None:
    """The L2 tables at these offsets, and what they name, have one user more.

    Raises OSError: EINVAL where a refcount has no room for it, with nothing changed.
    """
    runs = _few_runs(disk, tables)
    if runs is not None:
        disk.refcounts.add_runs(runs)
        return
    import numpy as np

    from pyvm.block.drivers.qcow2.tally import Tally

    tally = Tally()
    for offset in tables:
        tally.add(walk.data_clusters(walk.read_table(disk.image, offset), disk.header))
    tally.add(np.array(tables, np.uint64) >> np.uint64(disk.header.cluster_bits))
    disk.refcounts.add(*tally.totals())


def release(disk: Disk, tables: Sequence[int], reason: Reason) -> None:
    """The L2 tables at these offsets, and what they name, have one user less, as soon as that is on the disk."""
    runs = _few_runs(disk, tables)
    if runs is not None:
        for first, count in runs:
            disk.refcounts.release(first << disk.header.cluster_bits, count << disk.header.cluster_bits, reason)
        return
    import numpy as np

    for offset in tables:
        disk.refcounts.release_all(walk.data_clusters(walk.read_table(disk.image, offset), disk.header), reason)
    disk.refcounts.release_all(np.array(tables, np.uint64) >> np.uint64(disk.header.cluster_bits), reason)


def _few_runs(disk: Disk, tables: Sequence[int]) -> Runs | None:
    """Return all that tables name, and the tables themselves; None where that is so much that numpy is quicker."""
    if len(tables) > _FEW_TABLES:
        return None
    runs: Runs = []
    for offset in tables:
        runs += _named(disk, offset)
        if len(runs) > _FEW_RUNS:
            return None
    return runs


def _named(disk: Disk, offset: int) -> Runs:
    """Return the clusters of the table at `offset`: its own, and what it names, each as often as it does."""
    own = (offset >> disk.header.cluster_bits, 1)
    if disk.header.external_data:
        return [own]
    return [own, *_runs(disk, _entries(disk, walk.read_bytes(disk.image, offset)))]


def _entries(disk: Disk, table: bytearray) -> array[int]:
    """Return the entries of a table, without the bitmaps of subclusters."""
    entries = decode_entries(table, 64)
    return entries[::2] if disk.header.extended_l2 else entries


def _runs(disk: Disk, entries: array[int]) -> Iterator[tuple[int, int]]:
    bits = disk.header.cluster_bits
    for _, host, count in _plain_runs(disk, entries):
        yield host >> bits, count
    for entry in entries:
        if entry & COMPRESSED:
            start, length = disk.compressed.place(entry)
            yield start >> bits, ((start + length - 1) >> bits) - (start >> bits) + 1


def _plain_runs(disk: Disk, entries: array[int]) -> Iterator[tuple[int, int, int]]:
    """Yield runs of entries whose clusters, not compressed, follow one another in the file too.

    They are given by the index of the first, where its cluster is, and how many they are.
    """
    size = disk.header.cluster_size
    index, end = 0, len(entries)
    while index < end:
        entry = entries[index]
        index += 1
        if not entry & COMPRESSED and (host := entry & OFFSET_MASK):
            first, following = index - 1, host + size
            while index < end and entries[index] & (OFFSET_MASK | COMPRESSED) == following:
                following += size
                index += 1
            yield first, host, index - first


def clear_copied(disk: Disk) -> None:
    """Let no entry of the active tables have the "copied" flag: somebody else uses all that they name.

    Raises OSError.
    """
    image, header = disk.image, disk.header
    for index, offset in walk.l2_tables(image.l1):
        data = walk.read_bytes(image, offset)
        first_bytes = data[:: header.l2_entry_size]
        cleared = first_bytes.translate(_CLEARED)
        if cleared != first_bytes:
            data[:: header.l2_entry_size] = cleared
            disk.file.write(offset, data)
        image.l1[index] = offset
    if image.l1:
        disk.file.write(header.l1_table_offset, encode_entries(image.l1, 64))
    disk.mapping.cache.clear()


def write_copied(disk: Disk) -> None:
    """Let the "copied" flags of the active tables say what the refcounts say, on the disk.  Raises OSError."""
    image, header, refcounts = disk.image, disk.header, disk.refcounts
    disk.file.flush()
    tables = list(walk.l2_tables(image.l1))
    marked = _marked if _few_runs(disk, [offset for _, offset in tables]) is not None else _marked_by_numpy
    for index, offset in tables:
        before = walk.read_bytes(image, offset)
        changed = before if header.external_data else marked(disk, before)  # nobody shares what is in a data file
        if changed != before:
            disk.file.write(offset, changed)
        image.l1[index] = offset | (COPIED if refcounts.count(offset >> header.cluster_bits) == 1 else 0)
    if image.l1:
        disk.file.write(header.l1_table_offset, encode_entries(image.l1, 64))
    disk.mapping.cache.clear()


def _marked(disk: Disk, table: bytearray) -> bytearray:
    """Return an L2 table with the right flags."""
    header = disk.header
    first_bytes = table[:: header.l2_entry_size].translate(_CLEARED)
    for start, host, length in _plain_runs(disk, _entries(disk, table)):
        index, end, cluster = start, start + length, host >> header.cluster_bits
        while index < end:
            counts = _counts(disk, cluster, end - index)
            for place, count in enumerate(counts, index):
                if count == 1:
                    first_bytes[place] |= _COPIED_BYTE
            index, cluster = index + len(counts), cluster + len(counts)
    changed = bytearray(table)
    changed[:: header.l2_entry_size] = first_bytes
    return changed


def _counts(disk: Disk, cluster: int, limit: int) -> array[int]:
    """Return how often clusters are used, from one on: of `limit` as many as are counted together, at least one."""
    stop, counts = disk.refcounts.slice_from(cluster)
    if counts is None:  # nobody counts them
        return array("B", bytes(min(limit, stop - cluster)))
    index = cluster % len(counts)
    return counts[index : index + limit]


def _marked_by_numpy(disk: Disk, table: bytearray) -> bytes:
    import numpy as np

    words = walk.decode_table(table)
    hosts = (walk.entries(words, disk.header) & np.uint64(OFFSET_MASK)) >> np.uint64(disk.header.cluster_bits)
    hosts = np.unique(hosts)
    single = hosts[disk.refcounts.counts(hosts) == 1] if len(hosts) else hosts
    return walk.encode_table(walk.set_copied(words, disk.header, single))
