"""Making QED images.

See :mod:`pyvm.block.drivers.foreign.qed` for the format.
"""

from __future__ import annotations

import os

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, start_over
from pyvm.block.drivers.foreign.mapped import is_power_of_two
from pyvm.block.drivers.foreign.qed import (
    HEADER,
    MAGIC,
    MAX_CLUSTER,
    MAX_NAME,
    MAX_TABLE,
    MIN_CLUSTER,
    Feature,
    most_bytes,
)
from pyvm.block.errors import BlockError

_CLUSTER, _TABLE = 64 << 10, 4


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    size, cluster, table = options["size"], options.get("cluster-size", _CLUSTER), options.get("table-size", _TABLE)
    backing = os.fsencode(options.get("backing-file", ""))
    if not MIN_CLUSTER <= cluster <= MAX_CLUSTER or not is_power_of_two(cluster):
        raise BlockError(f"QED cluster size must be within range [{MIN_CLUSTER}, {MAX_CLUSTER}] and power of 2")
    if not 1 <= table <= MAX_TABLE or not is_power_of_two(table):
        raise BlockError(f"QED table size must be within range [1, {MAX_TABLE}] and power of 2")
    most = most_bytes(cluster, table)
    if size > most or size % SECTOR:
        raise BlockError(f"QED image size must be a non-zero multiple of cluster size and less than {most} bytes")
    if len(backing) > MAX_NAME:
        raise BlockError("Backing file name too long")
    features = Feature(0)
    if backing:
        features |= Feature.BACKING_FILE
        if options.get("backing-fmt") == "raw":
            features |= Feature.BACKING_IS_RAW
    file = opening.file(options["file"])

    def write() -> None:
        place = HEADER.size if backing else 0
        header = HEADER.pack(MAGIC, cluster, table, 1, int(features), 0, 0, cluster, size, place, len(backing))
        start_over(file, (1 + table) * cluster)
        file.write(0, header + backing)
        file.flush()

    return write
