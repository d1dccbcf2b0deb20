"""Whole L2 tables at a time, as numpy arrays: for all that goes through an image from end to end."""

from __future__ import annotations

from array import array
from itertools import pairwise

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COMPRESSED_SECTOR, COPIED, OFFSET_MASK, Header

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from pyvm.block.drivers.qcow2.image import Image

    Words = npt.NDArray[np.uint64]

_RUN_BYTES = 1 << 20
"""Tables that follow one another in the file are read together, so many bytes at once."""
_MOST_HOST_CLUSTERS = 3
"""A compressed cluster touches at most so many: it has room for two, and need not start where one starts."""


def read_bytes(image: Image, offset: int) -> bytearray:
    """Return the L2 table at `offset` as the disk has it.  Raises OSError."""
    if offset & (image.cluster_size - 1):
        image.corruption(f"L2 table offset {offset:#x} unaligned")
    if offset + image.cluster_size > image.file.length():
        image.corruption(f"L2 table at {offset:#x} is behind the end of the file")
    return image.file.read(offset, image.cluster_size)


def read_table(image: Image, offset: int) -> Words:
    """Return the words of the L2 table at `offset`.  Raises OSError."""
    return decode_table(read_bytes(image, offset))


def decode_table(table: bytearray) -> Words:
    """Return the words of a table, of which this is the disk's form."""
    import numpy as np

    return np.frombuffer(table, ">u8").astype(np.uint64)


def runs(offsets: Words, size: int, apart: npt.NDArray[np.bool_] | None = None) -> Iterator[slice]:
    """Yield, of tables in order, those that follow one another in the file, and as many as are read at once.

    `apart` says of each table but the last that it is not to be in one run with the next.
    """
    import numpy as np

    cuts = offsets[1:] - offsets[:-1] != np.uint64(size)
    if apart is not None:
        cuts |= apart
    most = max(_RUN_BYTES // size, 1)
    bounds = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(offsets)]
    for start, end in pairwise(bounds):
        for first in range(start, end, most):
            yield slice(first, min(first + most, end))


def read_run(image: Image, offsets: Words) -> Words:
    """Return the words of tables that follow one another, a row for each.  Raises OSError."""
    import numpy as np

    data = image.file.read(int(offsets[0]), len(offsets) * image.cluster_size)
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(len(offsets), -1)


def encode_table(words: Words) -> bytes:
    """Return the disk's form of a table."""
    return bytes(words.astype(">u8").tobytes())


def entries(words: Words, header: Header) -> Words:
    """Return the entries of a table, or of tables in rows, without the bitmaps of subclusters."""
    chosen: Words = words[..., ::2] if header.extended_l2 else words
    return chosen


def data_clusters(words: Words, header: Header) -> Words:
    """Return the numbers of the host clusters that a table names, each as often as it does."""
    import numpy as np

    if header.external_data:
        return np.zeros(0, np.uint64)
    all_entries = entries(words, header)
    packed = (all_entries & np.uint64(COMPRESSED)) != 0
    hosts = all_entries[~packed] & np.uint64(OFFSET_MASK)
    plain: Words = hosts[hosts != 0] >> np.uint64(header.cluster_bits)
    if not packed.any():
        return plain
    return np.concatenate((plain, *compressed_clusters(all_entries[packed], header)))


def compressed_places(packed: Words, header: Header) -> tuple[Words, Words]:
    """Return where the data of compressed clusters starts and ends, in bytes, whole sectors."""
    import numpy as np

    offset_bits = 62 - (header.cluster_bits - 8)
    offsets = packed & np.uint64((1 << offset_bits) - 1)
    sectors = ((packed & np.uint64((1 << 62) - 1)) >> np.uint64(offset_bits)) + np.uint64(1)
    starts = offsets & np.uint64(~(COMPRESSED_SECTOR - 1) & ((1 << 64) - 1))
    return starts, starts + sectors * np.uint64(COMPRESSED_SECTOR)


def compressed_clusters(packed: Words, header: Header) -> Iterator[Words]:
    """Yield the numbers of the host clusters that compressed clusters touch."""
    import numpy as np

    starts, ends = compressed_places(packed, header)
    first = starts >> np.uint64(header.cluster_bits)
    last = (ends - np.uint64(1)) >> np.uint64(header.cluster_bits)
    for number in range(_MOST_HOST_CLUSTERS):
        touched = first + np.uint64(number)
        yield touched[touched <= last]


def set_copied(words: Words, header: Header, single: Words) -> Words:
    """Return the table with the "copied" flag on the entries of those clusters, in order, that are in `single`."""
    import numpy as np

    changed = words.copy()
    view = entries(changed, header)
    packed = (view & np.uint64(COMPRESSED)) != 0
    hosts = (view & np.uint64(OFFSET_MASK)) >> np.uint64(header.cluster_bits)
    if header.external_data:
        # Nobody shares the clusters of a data file.
        return changed
    alone = np.isin(hosts, single) & ~packed & (hosts != 0)
    view[alone] |= np.uint64(COPIED)
    view[~alone & ~packed] &= np.uint64(~COPIED & ((1 << 64) - 1))
    return changed


def l2_tables(l1: array[int]) -> Iterator[tuple[int, int]]:
    """Yield index and offset of the L2 tables of an L1 table."""
    for index, entry in enumerate(l1):
        if entry & OFFSET_MASK:
            yield index, entry & OFFSET_MASK
