"""Format driver *vdi*, read only: VirtualBox disk images, dynamic and static.

Source: the header and block map as VirtualBox's "Virtual Disk Image" has them, version 1.1.  Images that lie on others
are refused.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Numbers, Run, damaged
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# signature, version, header size, type, flags, description, offset of the block map, offset of the data, geometry (3),
# sector size, unused, disk size, block size, extra bytes of a block, blocks, allocated blocks, UUIDs: image, last
# snapshot, link, parent
_HEADER = struct.Struct("<64xIIIII256xII12xI4xQIIII16x16x16s16s")
_SIGNATURE = 0xBEDA107F
_VERSION = 0x00010001
_BLOCK = 1 << 20
_MOST_BLOCKS = 0x3FFFFFFF
_FIRST_UNUSED = 0xFFFFFFFE
"""Entries from here on stand for blocks of zeros: discarded, or never written."""
_NO_UUID = bytes(16)


class _Header(NamedTuple):
    signature: int
    version: int
    header_size: int
    kind: int
    flags: int
    map_offset: int
    data_offset: int
    sector: int
    size: int
    block: int
    extra: int
    blocks: int
    allocated: int
    link: bytes
    parent: bytes


def _read_header(file: Node) -> _Header:
    """Return a header that can be.  Raises BlockError, and OSError."""
    head = file.head(_HEADER.size)
    if len(head) < _HEADER.size:
        raise BlockError("Image not in VDI format (no header)")
    header = _Header(*_HEADER.unpack(head))
    most = _MOST_BLOCKS * _BLOCK
    if header.size > most:
        raise BlockError(f"Unsupported VDI image size (size is 0x{header.size:x}, max supported is 0x{most:x})")
    if header.signature != _SIGNATURE:
        raise BlockError(f"Image not in VDI format (bad signature {header.signature:08x})")
    room = header.blocks * _BLOCK
    checks = (
        (header.version != _VERSION, f"version {header.version >> 16}.{header.version & 0xFFFF}"),
        (header.map_offset % SECTOR, f"unaligned block map offset 0x{header.map_offset:x}"),
        (header.data_offset % SECTOR, f"unaligned data offset 0x{header.data_offset:x}"),
        (header.sector != SECTOR, f"sector size {header.sector} is not {SECTOR}"),
        (header.block != _BLOCK or header.extra, f"block size {header.block} is not {_BLOCK}"),
        (header.size > room, f"disk size {header.size}, image bitmap has room for {room}"),
        (header.link != _NO_UUID, "non-NULL link UUID"),
        (header.parent != _NO_UUID, "non-NULL parent UUID"),
        (header.blocks > _MOST_BLOCKS, f"too many blocks {header.blocks}, max is {_MOST_BLOCKS}"),
    )
    for wrong, what in checks:
        if wrong:
            raise BlockError(f"unsupported VDI image ({what})")
    return header


class VdiNode(MappedNode):
    """A VDI image.  Raises BlockError for one that is damaged or of a kind that is not supported, and OSError."""

    driver: ClassVar[str] = "vdi"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        self._header = _read_header(file)
        self._entries = Numbers(file, "<I")
        self._entries.check(self._header.map_offset, self._header.blocks, "VDI block map")
        self._size = -(-self._header.size // SECTOR) * SECTOR
        self._block = _BLOCK

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        index, start = divmod(offset, _BLOCK)
        length = min(length, _BLOCK - start)
        entry = self._entries.at(self._header.map_offset, index)
        if entry >= _FIRST_UNUSED:
            return Run(length, Kind.ZERO)
        if entry >= self._header.blocks:
            raise damaged()
        return Run(length, Kind.DATA, self._header.data_offset + entry * _BLOCK + start, self._file)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> VdiNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return VdiNode(children["file"], settings)
