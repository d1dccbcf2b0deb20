"""Format driver *parallels*, read only: disk images of Parallels' virtual machines, of both kinds.

Source: the "Parallels Expandable Image File Format", version 2.  A cluster's entry in the table says where it is: in
sectors in older images, in clusters in those whose header says so.  The extension, which is about backups, is not
looked at.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Numbers, Run
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# magic, version, heads, cylinders, sectors of a cluster, clusters, sectors of the disk, whether it is in use, sector
# where data begins, flags, sector of the extension
HEADER = struct.Struct("<16sIIIIIQIIIQ")
EXTENDED = b"WithouFreSpacExt"
_PLAIN = b"WithoutFreeSpace"
VERSION = 2
_MOST_SECTORS = 0x7FFFFFFF // SECTOR
"""In a cluster."""
_MOST_CLUSTERS = 0x7FFFFFFF // 4


class ParallelsNode(MappedNode):
    """A Parallels image.  Raises BlockError for one that is damaged, and OSError."""

    driver: ClassVar[str] = "parallels"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        head = file.head(HEADER.size)
        if len(head) < HEADER.size:
            raise BlockError("Image not in Parallels format")
        magic, version, _, _, cluster, self._clusters, sectors, *_ = HEADER.unpack(head)
        if magic not in (EXTENDED, _PLAIN) or version != VERSION:
            raise BlockError("Image not in Parallels format")
        if not cluster:
            raise BlockError("Invalid image: Zero sectors per track")
        if cluster > _MOST_SECTORS:
            raise BlockError("Invalid image: Too big cluster")
        if self._clusters > _MOST_CLUSTERS:
            raise BlockError("Catalog too large")
        if magic == _PLAIN:
            sectors &= 0xFFFFFFFF
        self._unit = SECTOR if magic == _PLAIN else cluster * SECTOR
        self._cluster = cluster * SECTOR
        self._size = sectors * SECTOR
        self._entries = Numbers(file, "<I")
        self._entries.check(HEADER.size, self._clusters, "Parallels block table")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on; what the table does not reach was never written."""
        index, start = divmod(offset, self._cluster)
        if index >= self._clusters:
            return Run(length, Kind.ZERO)
        length = min(length, self._cluster - start)
        entry = self._entries.at(HEADER.size, index)
        return Run(length, Kind.DATA, entry * self._unit + start, self._file) if entry else Run(length, Kind.ZERO)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> ParallelsNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return ParallelsNode(children["file"], settings)
