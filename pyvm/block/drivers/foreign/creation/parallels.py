"""Making Parallels images.

See :mod:`pyvm.block.drivers.foreign.parallels` for the format.
"""

from __future__ import annotations

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, check_sectors, round_up, start_over
from pyvm.block.drivers.foreign.parallels import EXTENDED, HEADER, VERSION
from pyvm.block.errors import BlockError

_CLUSTER = 1 << 20
_MOST_CLUSTERS = 1 << 32
_MOST_SECTORS = (1 << 31) - 1
"""In a cluster."""
_HEADS, _PER_TRACK = 16, 32


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    size, cluster = options["size"], options.get("cluster-size", _CLUSTER)
    if cluster >= _MOST_SECTORS:
        raise BlockError("Cluster size is too large")
    if size >= cluster * _MOST_CLUSTERS:
        raise BlockError("Image size is too large for this cluster size")
    check_sectors(size)
    if cluster % SECTOR:
        raise BlockError(f"Cluster size must be a multiple of {SECTOR} bytes")
    file = opening.file(options["file"])

    def write() -> None:
        clusters = -(-size // cluster)
        start = round_up(HEADER.size + 4 * clusters, cluster)
        cylinders = size // SECTOR // (_HEADS * _PER_TRACK)
        header = HEADER.pack(
            EXTENDED, VERSION, _HEADS, min(cylinders, 0xFFFFFFFF), cluster // SECTOR, clusters, size // SECTOR, 0,
            start // SECTOR, 0, 0,
        )  # fmt: skip
        start_over(file, start)
        file.write(0, header)
        file.flush()

    return write
