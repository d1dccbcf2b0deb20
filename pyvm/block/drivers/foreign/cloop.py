"""Format driver *cloop*, read only: images of the compressed loopback device, version 2.

Source: the header and the index of blocks of the Linux module `cloop`, version 2.  Blocks of one size are compressed,
one by one; the index has where each begins.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Numbers, Run, damaged
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# size of a block, blocks; behind a script that loads the module
_HEADER = struct.Struct(">128xII")
_MAX_BLOCK = 64 << 20
_MAX_INDEX = 512 << 20


class CloopNode(MappedNode):
    """A cloop image.  Raises BlockError for one that is damaged, and OSError."""

    driver: ClassVar[str] = "cloop"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        head = file.head(_HEADER.size)
        if len(head) < _HEADER.size:
            raise BlockError("cloop image is too short")
        self._cluster, blocks = _HEADER.unpack(head)
        if self._cluster % SECTOR:
            raise BlockError(f"block_size {self._cluster} must be a multiple of {SECTOR}")
        if not self._cluster:
            raise BlockError("block_size cannot be zero")
        if self._cluster > _MAX_BLOCK:
            raise BlockError(f"block_size {self._cluster} must be {_MAX_BLOCK >> 20} MB or less")
        if (blocks + 1) * 8 > _MAX_INDEX:
            raise BlockError("image requires too many offsets, try increasing block size")
        self._size = blocks * self._cluster
        self._entries = Numbers(file, ">Q")
        self._entries.check(_HEADER.size, blocks + 1, "cloop index")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        index, start = divmod(offset, self._cluster)
        place = self._entries.at(_HEADER.size, index)
        return Run(min(length, self._cluster - start), Kind.COMPRESSED, place, self._file)

    def decompress(self, run: Run, offset: int) -> bytes:
        """Return a part of a block."""
        index, start = divmod(offset, self._cluster)
        length = self._entries.at(_HEADER.size, index + 1) - run.place
        if not 0 < length <= 2 * self._cluster or run.place + length > self._file.length():
            raise damaged()
        try:
            data = zlib.decompressobj().decompress(self._file.read(run.place, length), self._cluster)
        except zlib.error:
            raise damaged() from None
        if len(data) < self._cluster:
            raise damaged()
        return data[start : start + run.length]


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> CloopNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return CloopNode(children["file"], settings)
