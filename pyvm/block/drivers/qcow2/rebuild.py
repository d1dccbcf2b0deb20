"""A refcount table with all its blocks, made anew: for a repair, and for counts of another width."""

from __future__ import annotations

import errno
import os
from array import array
from typing import TYPE_CHECKING

from pyvm.block.drivers.qcow2.image import Image
from pyvm.block.drivers.qcow2.structures import MAX_REFCOUNT_TABLE_BYTES
from pyvm.block.drivers.qcow2.tables import encode_entries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]


def plan_structure(cluster_bits: int, order: int, numbers: Numbers, start: int) -> tuple[list[int], int]:
    """Return which blocks are needed, by their index, and how many clusters the table has.

    `numbers` are the clusters in use; the table and then the blocks follow each other from cluster `start` on.
    Raises OSError where the table would be too large.
    """
    import numpy as np

    shift = cluster_bits + 3 - order
    used = {int(it) for it in np.unique(numbers >> np.uint64(shift))}
    blocks, clusters = used, 1
    while True:
        end = start + clusters + len(blocks)
        needed = used | set(range(start >> shift, ((end - 1) >> shift) + 1))
        table = -(-(max(needed) + 1) * 8 >> cluster_bits)
        if table << cluster_bits > MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if needed == blocks and table == clusters:
            return sorted(blocks), clusters
        blocks, clusters = needed | blocks, max(table, clusters)


def write_structure(image: Image, numbers: Numbers, counts: Numbers, order: int, start: int) -> tuple[int, int]:
    """Write a structure that counts clusters `numbers`, in order, `counts` times, and itself, from `start` on.

    Returns the offset of the table and its length in clusters; nothing refers to it yet.  Raises OSError.
    """
    import numpy as np

    bits = image.cluster_bits
    blocks, clusters = plan_structure(bits, order, numbers, start)
    own = np.arange(start, start + clusters + len(blocks), dtype=np.uint64)
    numbers = np.concatenate((numbers, own))
    counts = np.concatenate((counts, np.ones(len(own), np.uint64)))
    shift = bits + 3 - order
    per_block = 1 << shift
    typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(1 << order, 8)]
    table = array("Q", bytes(clusters << bits))
    for position, block in enumerate(blocks):
        first, last = np.searchsorted(numbers, (block * per_block, (block + 1) * per_block))
        content = np.zeros(per_block, typecode)
        content[(numbers[first:last] - np.uint64(block * per_block)).astype(np.intp)] = counts[first:last]
        offset = (start + clusters + position) << bits
        table[block] = offset
        image.file.write(offset, encode_entries(array(typecode, content.tobytes()), 1 << order))
    image.file.write(start << bits, encode_entries(table, 64))
    return start << bits, clusters
