"""Making VDI images: dynamic ones, and static ones, whose blocks are there from the start.

See :mod:`pyvm.block.drivers.foreign.vdi` for the format.
"""

from __future__ import annotations

from array import array
from sys import byteorder
from uuid import uuid4

from pyvm.block.drivers.foreign.creation import SECTOR, Opening, Options, Write, round_up, start_over
from pyvm.block.drivers.foreign.vdi import BLOCK, HEADER, MOST_BLOCKS, SIGNATURE, VERSION
from pyvm.block.errors import BlockError

_TEXT = b"<<< pyvm Virtual Disk Image >>>\n"
_HEADER_SIZE = 0x180
_DYNAMIC, _STATIC = 1, 2
_NEVER_WRITTEN = 0xFFFFFFFF


def plan(options: Options, opening: Opening) -> Write:
    """See :mod:`pyvm.block.drivers.foreign.creation`."""
    size = options["size"]
    most = MOST_BLOCKS * BLOCK
    if size > most:
        raise BlockError(f"Unsupported VDI image size (size is 0x{size:x}, max supported is 0x{most:x})")
    mode = options.get("preallocation", "off")
    if mode not in ("off", "metadata"):
        raise BlockError("Preallocation mode not supported for vdi")
    is_static = mode == "metadata"
    file = opening.file(options["file"])

    def write() -> None:
        blocks = -(-size // BLOCK)
        table = array("I", range(blocks) if is_static else [_NEVER_WRITTEN]) * (1 if is_static else blocks)
        if byteorder == "big":
            table.byteswap()
        data = SECTOR + round_up(4 * blocks, SECTOR)
        start_over(file, data + (blocks * BLOCK if is_static else 0))
        header = HEADER.pack(
            SIGNATURE, VERSION, _HEADER_SIZE, _STATIC if is_static else _DYNAMIC, 0, SECTOR, data, SECTOR, size, BLOCK,
            0, blocks, blocks if is_static else 0, uuid4().bytes_le, uuid4().bytes_le, bytes(16), bytes(16),
        )  # fmt: skip
        file.write(0, _TEXT + header[len(_TEXT) :])
        if blocks:
            file.write(SECTOR, table.tobytes())
        file.flush()

    return write
