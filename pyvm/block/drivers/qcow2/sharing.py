"""L2 tables, and all that they name, that have one user more or less: what a snapshot that comes, goes or returns does.

Where that are few runs of clusters, it is done in plain Python; for many there is numpy, whose import takes as long.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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
    entries = decode_entries(walk.read_bytes(disk.image, offset), 64)
    if disk.header.extended_l2:
        entries = entries[::2]
    own = (offset >> disk.header.cluster_bits, 1)
    return [own] if disk.header.external_data else [own, *_runs(disk, entries)]


def _runs(disk: Disk, entries: array[int]) -> Iterator[tuple[int, int]]:
    bits, size = disk.header.cluster_bits, disk.header.cluster_size
    index, end = 0, len(entries)
    while index < end:
        entry = entries[index]
        index += 1
        if entry & COMPRESSED:
            start, length = disk.compressed.place(entry)
            yield start >> bits, ((start + length - 1) >> bits) - (start >> bits) + 1
        elif host := entry & OFFSET_MASK:
            first, following = index - 1, host + size
            while index < end and entries[index] & (OFFSET_MASK | COMPRESSED) == following:
                following += size
                index += 1
            yield host >> bits, index - first


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
    import numpy as np

    image, header, refcounts = disk.image, disk.header, disk.refcounts
    bits = header.cluster_bits
    disk.file.flush()
    for index, offset in walk.l2_tables(image.l1):
        words = walk.read_table(image, offset)
        entries = walk.entries(words, header)
        hosts = np.unique((entries & np.uint64(OFFSET_MASK)) >> np.uint64(bits))
        single = hosts[refcounts.counts(hosts) == 1] if len(hosts) else hosts
        changed = walk.set_copied(words, header, single)
        if not np.array_equal(changed, words):
            disk.file.write(offset, walk.encode_table(changed))
        image.l1[index] = offset | (COPIED if refcounts.count(offset >> bits) == 1 else 0)
    if image.l1:
        disk.file.write(header.l1_table_offset, encode_entries(image.l1, 64))
    disk.mapping.cache.clear()
