"""Format driver *bochs*, read only: growing disk images of the Bochs emulator.

Source: the chapter "Disk image modes" of the Bochs user manual, and its structures of the "Redolog" header.  A catalog
says where each extent is; an extent is a bitmap, which says what of it was written, and the data.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Numbers, Run, is_power_of_two
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# magic, type, subtype, version, header's size, entries of the catalog, bytes of an extent's bitmap, bytes of an extent
_HEADER = struct.Struct("<32s16s16sIIIII")
_SIZE, _OLD_SIZE = struct.Struct("<4xQ"), struct.Struct("<Q")
"""Size of the disk, by version."""
_HEADER_SIZE = 512
_MAGIC, _TYPE, _SUBTYPE = b"Bochs Virtual HD Image", b"Redolog", b"Growing"
_VERSION, _OLD_VERSION = 0x00020000, 0x00010000
_MAX_CATALOG = 0x100000
_MAX_EXTENT = 0x800000
_UNUSED = 0xFFFFFFFF


class _Header(NamedTuple):
    magic: bytes
    kind: bytes
    subtype: bytes
    version: int
    size: int
    catalog: int
    bitmap: int
    extent: int


class BochsNode(MappedNode):
    """A growing Bochs image.  Raises BlockError for one that is damaged or of another kind, and OSError."""

    driver: ClassVar[str] = "bochs"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        head = file.head(_HEADER_SIZE)
        if len(head) < _HEADER_SIZE:
            raise BlockError("Image not in Bochs format")
        header = _Header(*_HEADER.unpack_from(head))
        names = tuple(name.partition(b"\0")[0] for name in header[:3])
        if names != (_MAGIC, _TYPE, _SUBTYPE) or header.version not in (_VERSION, _OLD_VERSION):
            raise BlockError("Image not in Bochs format")
        sizes = _OLD_SIZE if header.version == _OLD_VERSION else _SIZE
        self._size = sizes.unpack_from(head, _HEADER.size)[0] // SECTOR * SECTOR
        if header.catalog > _MAX_CATALOG:
            raise BlockError("Catalog size is too large")
        self._check_extent(header)
        self._bitmap = -(-header.bitmap // SECTOR) * SECTOR
        self._cluster = header.extent
        self._stride = self._bitmap + header.extent
        self._catalog = header.size
        self._data = header.size + 4 * header.catalog
        self._entries = Numbers(file, "<I")
        self._entries.check(self._catalog, header.catalog, "Bochs catalog")
        self._bits = Numbers(file, "<B")

    def _check_extent(self, header: _Header) -> None:
        if header.extent < SECTOR:
            raise BlockError(f"Extent size must be at least {SECTOR}")
        if not is_power_of_two(header.extent):
            raise BlockError(f"Extent size {header.extent} is not a power of two")
        if header.extent > _MAX_EXTENT:
            raise BlockError(f"Extent size {header.extent} is too large")
        if header.catalog * header.extent < self._size:
            raise BlockError("Catalog size is too small for this disk size")
        if header.bitmap * 8 * SECTOR < header.extent:
            raise BlockError("Bochs bitmap is too small for its extent")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on: sectors that the bitmap does not have are zeros."""
        index, start = divmod(offset, self._cluster)
        entry = self._entries.at(self._catalog, index)
        if entry == _UNUSED:
            return Run(min(length, self._cluster - start), Kind.ZERO)
        sector, inside = divmod(start, SECTOR)
        length = min(length, SECTOR - inside)
        place = self._data + entry * self._stride
        if not self._bits.at(place, sector // 8) >> sector % 8 & 1:
            return Run(length, Kind.ZERO)
        return Run(length, Kind.DATA, place + self._bitmap + start, self._file)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> BochsNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return BochsNode(children["file"], settings)
