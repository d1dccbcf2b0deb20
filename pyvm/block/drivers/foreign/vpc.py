"""Format driver *vpc*, read only: Virtual PC's and Hyper-V's first disk images (VHD), fixed and dynamic.

Source: Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0.  Differencing images are refused.
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

# cookie, features, file format version, data offset, time stamp, creator application, its version, its system,
# original size, current size, cylinders, heads, sectors per track, type
_FOOTER = struct.Struct(">8s8xQ4x4s4x4x8xQHBBI")
COOKIE = b"conectix"
# cookie, offset of what follows, table offset, header version, table entries, block size
_DYNAMIC = struct.Struct(">8s8xQ4xII")
DYNAMIC_COOKIE = b"cxsparse"
FIXED_TYPE, DYNAMIC_TYPE = 2, 3
_UNUSED = 0xFFFFFFFF
MOST_SECTORS = 0xFF000000
_MOST_BY_GEOMETRY = 65535 * 16 * 255
"""Where the geometry says this, the disk has at least as many sectors."""
_EXACT_CREATORS = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
"""Programs that mean the size; for others, it is what the geometry gives."""
_MIN_BLOCK = 4096
"""A byte of a block's bitmap stands for so much."""


class _Footer(NamedTuple):
    cookie: bytes
    data_offset: int
    creator: bytes
    size: int
    cylinders: int
    heads: int
    sectors: int
    kind: int

    @property
    def disk_size(self) -> int:
        by_geometry = self.cylinders * self.heads * self.sectors
        if self.creator in _EXACT_CREATORS or by_geometry == _MOST_BY_GEOMETRY:
            return self.size // SECTOR * SECTOR
        return by_geometry * SECTOR


class VpcNode(MappedNode):
    """A VHD image.  Raises BlockError for one that is damaged or of a kind that is not supported, and OSError."""

    driver: ClassVar[str] = "vpc"

    def __init__(self, file: Node, settings: Settings) -> None:
        super().__init__(file, settings)
        footer, is_fixed = self._read_footer()
        self._size = footer.disk_size
        if self._size > MOST_SECTORS * SECTOR:
            raise BlockError(f"VHD image of {self._size} bytes is larger than the format allows")
        self._entries: Numbers | None = None
        if is_fixed:
            if self._size > file.length() - SECTOR:
                raise BlockError(f"VHD image is truncated, expected at least {self._size + SECTOR} bytes")
        else:
            self._read_dynamic(footer)

    def _read_footer(self) -> tuple[_Footer, bool]:
        """Return the footer, of which a dynamic image has a copy at its start."""
        head = self._file.head(_FOOTER.size)
        if head.startswith(COOKIE) and len(head) == _FOOTER.size:
            footer = _Footer(*_FOOTER.unpack(head))
            if footer.kind not in (FIXED_TYPE, DYNAMIC_TYPE):
                raise BlockError(f"VHD image of type {footer.kind} is not supported (only fixed and dynamic ones)")
            return footer, False
        start = self._file.length() - SECTOR
        if start >= 0:
            footer = _Footer(*_FOOTER.unpack(self._file.read(start, _FOOTER.size)))
            if footer.cookie == COOKIE and footer.kind == FIXED_TYPE:
                return footer, True
        raise BlockError("invalid VPC image")

    def _read_dynamic(self, footer: _Footer) -> None:
        if footer.data_offset + _DYNAMIC.size > self._file.length():
            raise BlockError("invalid VPC image")
        header = self._file.read(footer.data_offset, _DYNAMIC.size)
        cookie, self._table, entries, block = _DYNAMIC.unpack(header)
        if cookie != DYNAMIC_COOKIE:
            raise BlockError("invalid VPC image")
        if not is_power_of_two(block) or block < _MIN_BLOCK:
            raise BlockError(f"Invalid block size {block}")
        if block * entries < self._size:
            raise BlockError("Page table too small")
        self._entries = Numbers(self._file, ">I")
        self._entries.check(self._table, entries, "VHD block table")
        self._block = block
        bitmap = block // SECTOR // 8
        self._bitmap = -(-bitmap // SECTOR) * SECTOR

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on.  As in QEMU, a block that is there is there whole."""
        if self._entries is None:
            return Run(length, Kind.DATA, offset, self._file)
        index, start = divmod(offset, self._block)
        length = min(length, self._block - start)
        sector = self._entries.at(self._table, index)
        if sector == _UNUSED:
            return Run(length, Kind.ZERO)
        return Run(length, Kind.DATA, sector * SECTOR + self._bitmap + start, self._file)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> VpcNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return VpcNode(children["file"], settings)
