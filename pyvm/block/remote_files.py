"""Files for new images that are elsewhere: an export of an NBD server, say, which is there and has its size."""

from __future__ import annotations

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.errors import BlockError
from pyvm.block.options import DRIVERS, parse_filename

if TYPE_CHECKING:
    from pyvm.block.node import Node

_SECTOR = 512


def open_remote(filename: str) -> Node | None:
    """Open what a name leads to, to write to it; None where that is a file of this host.  Raises BlockError."""
    protocol, own = parse_filename(filename)
    if protocol in (DRIVERS["file"], DRIVERS["host_device"], DRIVERS["host_cdrom"]):
        return None
    refusal = f"Protocol driver '{protocol.name}' does not support image creation"
    if protocol.name != "nbd":
        raise BlockError(refusal)
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import storage_access
    from pyvm.block.open import Opener
    from pyvm.block.options import Dialect

    opener = Opener(BlockGraph(), Dialect.DRIVE)
    try:
        return opener.open(None, {**own, "driver": protocol.name}, access=storage_access(False))
    except BlockError as error:
        raise BlockError(f"{refusal}, and opening the image failed: {error}") from None


def clear(node: Node, filename: str) -> None:
    """Let it be no image any more, of whatever format it was one.  Raises BlockError."""
    try:
        node.truncate(0, exact=False)
        if node.size:
            node.write_zeroes(0, min(_SECTOR, node.size), True)
    except OSError as error:
        raise BlockError(f"Could not create '{filename}': {error.strerror}") from None
