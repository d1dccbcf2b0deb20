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
HEADER = struct.Struct("<64xIIIII256xII12xI4xQIIII16s16s16s16s")
SIGNATURE = 0xBEDA107F
VERSION = 0x00010001
BLOCK = 1 << 20
MOST_BLOCKS = ((1 << 31) - SECTOR) // 4
"""QEMU's limit for the block map: 2 GiB with what is in front of it."""
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
    image: bytes
    snapshot: bytes
    link: bytes
    parent: bytes


def _read_header(file: Node) -> _Header:
    """Return a header that can be.  Raises BlockError, and OSError."""
    head = file.head(HEADER.size)
    if len(head) < HEADER.size:
        raise BlockError("Image not in VDI format (no header)")
    header = _Header(*HEADER.unpack(head))
    most = MOST_BLOCKS * BLOCK
    if header.size > most:
        raise BlockError(f"Unsupported VDI image size (size is 0x{header.size:x}, max supported is 0x{most:x})")
    if header.signature != SIGNATURE:
        raise BlockError(f"Image not in VDI format (bad signature {header.signature:08x})")
    room = header.blocks * BLOCK
    checks = (
        (header.version != VERSION, f"version {header.version >> 16}.{header.version & 0xFFFF}"),
        (header.map_offset % SECTOR, f"unaligned block map offset 0x{header.map_offset:x}"),
        (header.data_offset % SECTOR, f"unaligned data offset 0x{header.data_offset:x}"),
        (header.sector != SECTOR, f"sector size {header.sector} is not {SECTOR}"),
        (header.block != BLOCK or header.extra, f"block size {header.block} is not {BLOCK}"),
        (header.size > room, f"disk size {header.size}, image bitmap has room for {room}"),
        (header.link != _NO_UUID, "non-NULL link UUID"),
        (header.parent != _NO_UUID, "non-NULL parent UUID"),
        (header.blocks > MOST_BLOCKS, f"too many blocks {header.blocks}, max is {MOST_BLOCKS}"),
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
        self._block = BLOCK

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        index, start = divmod(offset, BLOCK)
        length = min(length, BLOCK - start)
        entry = self._entries.at(self._header.map_offset, index)
        if entry >= _FIRST_UNUSED:
            return Run(length, Kind.ZERO)
        if entry >= self._header.blocks:
            raise damaged()
        return Run(length, Kind.DATA, self._header.data_offset + entry * BLOCK + start, self._file)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> VdiNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return VdiNode(children["file"], settings)
