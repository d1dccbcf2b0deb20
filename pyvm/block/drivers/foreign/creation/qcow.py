"""Making images of the first version of qcow.

See :mod:`pyvm.block.drivers.foreign.qcow` for the format.
"""

from __future__ import annotations

import os

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, round_up, start_over
from pyvm.block.drivers.foreign.qcow import HEADER, MAGIC, MAX_L1, MAX_NAME
from pyvm.block.errors import BlockError

_BITS, _BITS_ABOVE = (12, 9), (9, 12)
"""Bits of a cluster and of a table: an image that lies on another one takes small pieces of it."""


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    size = options["size"]
    backing = os.fsencode(options.get("backing-file", ""))
    if not size:
        raise BlockError("Image size is too small, cannot be zero length")
    encryption = options.get("encrypt", {}).get("format")
    if encryption == "luks":
        raise BlockError("Unsupported encryption format")
    if len(backing) > MAX_NAME:
        raise BlockError("Backing file name too long")
    cluster_bits, table_bits = _BITS_ABOVE if backing else _BITS
    entries = -(-size >> cluster_bits + table_bits)
    if entries > MAX_L1:
        raise BlockError("Image too large")
    file = opening.file(options["file"])

    def write() -> None:
        if encryption is not None:
            if "key-secret" not in options["encrypt"]:
                raise BlockError("Parameter 'encrypt.key-secret' is required for cipher")
            raise BlockError("encrypted images of format 'qcow' are not supported by pyvm")
        table = round_up(HEADER.size + len(backing), 8)
        header = HEADER.pack(
            MAGIC, 1, HEADER.size if backing else 0, len(backing), size, cluster_bits, table_bits, 0, table
        )
        start_over(file, table + round_up(8 * entries, SECTOR))
        file.write(0, header + backing)
        file.flush()

    return write
