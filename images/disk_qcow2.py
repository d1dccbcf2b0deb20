"""Writes a disk's contents as a qcow2 image, leaving out what is zero (QEMU, docs/interop/qcow2.txt, version 3)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
ENTRIES = CLUSTER // 8
"""Of an L2 table or of the refcount table."""
REFCOUNT_ORDER = 4
REFCOUNTS = CLUSTER // 2
"""Of a refcount block."""
COPIED = 1 << 63
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def _data_clusters(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and contents of all clusters that are not zero, padded to their size."""
    position = 0
    while position < size:
        try:
            position = os.lseek(file.fileno(), position, os.SEEK_DATA) & -CLUSTER
        except OSError:
            return
        file.seek(position)
        data = file.read(CLUSTER).ljust(CLUSTER, b"\0")
        if data.strip(b"\0"):
            yield position >> CLUSTER_BITS, data
        position += CLUSTER


def _refcount_blocks(others: int) -> tuple[int, int]:
    """Return how many clusters the refcount table and its blocks take, for `others` clusters besides."""
    table = blocks = 1
    while True:
        clusters = others + table + blocks
        needed = -(-clusters // REFCOUNTS), -(-blocks // ENTRIES)
        if needed == (blocks, table):
            return table, blocks
        blocks, table = needed


def write_qcow2(source: Path, target: Path) -> None:
    """Write `target`, a qcow2 image with the contents of the raw image `source`."""
    size = source.stat().st_size
    l1_size = -(-size // (CLUSTER * ENTRIES))
    l1_clusters = -(-l1_size * 8 // CLUSTER)
    l2_tables: dict[int, list[int]] = {}
    with source.open("rb") as raw, target.open("wb") as image:
        next_cluster = 1 + l1_clusters
        for number, data in _data_clusters(raw, size):
            l2_tables.setdefault(number // ENTRIES, [0] * ENTRIES)[number % ENTRIES] = next_cluster * CLUSTER | COPIED
            image.seek(next_cluster * CLUSTER)
            image.write(data)
            next_cluster += 1
        l1 = [0] * l1_size
        image.seek(next_cluster * CLUSTER)
        for index, table in l2_tables.items():
            l1[index] = next_cluster * CLUSTER | COPIED
            image.write(struct.pack(f">{ENTRIES}Q", *table))
            next_cluster += 1
        table_clusters, blocks = _refcount_blocks(next_cluster)
        refcount_table = next_cluster
        first_block = refcount_table + table_clusters
        clusters = first_block + blocks
        offsets = [(first_block + block) * CLUSTER for block in range(blocks)]
        image.write(struct.pack(f">{blocks}Q", *offsets).ljust(table_clusters * CLUSTER, b"\0"))
        image.write(struct.pack(f">{clusters}H", *[1] * clusters).ljust(blocks * CLUSTER, b"\0"))
        image.seek(CLUSTER)
        image.write(struct.pack(f">{l1_size}Q", *l1).ljust(l1_clusters * CLUSTER, b"\0"))
        image.seek(0)
        image.write(_header(size, l1_size, refcount_table, table_clusters).ljust(CLUSTER, b"\0"))


def _header(size: int, l1_size: int, refcount_table: int, table_clusters: int) -> bytes:
    # No backing file, no encryption, the L1 table behind the header, no snapshots; no features; no extensions.
    return HEADER.pack(
        *(b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, size, 0, l1_size, CLUSTER, refcount_table * CLUSTER, table_clusters),
        *(0, 0, 0, 0, 0, REFCOUNT_ORDER, HEADER.size),
    )
