"""Format driver *vmdk*, read only: VMware's disk images.

Source: VMware's "Virtual Disk Format 5.0".  A disk is made of extents one after the other.  A sparse extent has a
directory of tables that say where its grains are; a flat one is the data itself.  An image is one sparse extent with
the descriptor in it, or a descriptor that names the files of the extents.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Names, Numbers, Run, damaged, is_power_of_two
from pyvm.block.drivers.foreign.vmdk_descriptor import (
    FLAT,
    MAX_TEXT,
    ZERO,
    Descriptor,
    ExtentLine,
    extent_names,
    parse_descriptor,
)
from pyvm.block.errors import BlockError
from pyvm.block.node import Child, Node, Role
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# magic, version, flags, capacity, grain size, descriptor's offset and size, entries of a grain table, offsets of the
# redundant and the primary grain directory
HEADER = struct.Struct("<4sIIQQQQIQQ")
_HEADER_SIZE = 512
MAGIC = b"KDMV"
_MAX_VERSION = 3
HAS_ZEROED_GRAINS = 1 << 2
IS_COMPRESSED = 1 << 16
HAS_MARKERS = 1 << 17
_AT_END = (1 << 64) - 1
"""The directory is named by a copy of the header at the end of the file."""
_FOOTER = 1024
# magic, version, flags, sectors, grain size, offset and entries of the grain directory
_OLD_HEADER = struct.Struct("<4sIIIIII")
_OLD_MAGIC = b"COWD"
_OLD_TABLE = 4096
# In front of a compressed grain: its sector on the disk, length
_MARKER = struct.Struct("<QI")

_MAX_TABLE = 512
_MAX_DIRECTORY = 32 << 20
_MAX_GRAIN_SECTORS = 0x200000
_MAX_COMPRESSED_GRAIN = 1 << 20
_MAX_SIZE = 1 << 62
_ZEROED = 1


class _Layout(NamedTuple):
    """How a sparse extent is laid out; sizes in bytes."""

    size: int
    grain: int
    directory: int
    table_entries: int
    flags: int = 0


def _read_layout(file: Node) -> _Layout:
    """Return the layout of a sparse extent.  Raises BlockError, and OSError."""
    head = file.head(_HEADER_SIZE)
    if len(head) < _HEADER_SIZE:
        raise BlockError("VMDK extent is too short")
    if head.startswith(_OLD_MAGIC):
        _, _, flags, sectors, grain, directory, _ = _OLD_HEADER.unpack_from(head)
        return _check_layout(_Layout(sectors * SECTOR, grain * SECTOR, directory * SECTOR, _OLD_TABLE), file)
    if not head.startswith(MAGIC):
        raise BlockError("Image not in VMDK format")
    fields = HEADER.unpack_from(head)
    if fields[-1] == _AT_END:
        length = file.length()
        head = bytes(file.read(length - _FOOTER, _HEADER_SIZE)) if length >= _FOOTER else b""
        if not head.startswith(MAGIC):
            raise BlockError("VMDK image has no footer")
        fields = HEADER.unpack_from(head)
    _, version, flags, capacity, grain, _, _, entries, _, directory = fields
    if version > _MAX_VERSION:
        raise BlockError(f"Unsupported VMDK version {version}")
    if not 1 <= entries <= _MAX_TABLE:
        raise BlockError("L2 table size too big")
    return _check_layout(_Layout(capacity * SECTOR, grain * SECTOR, directory * SECTOR, entries, flags), file)


def _check_layout(layout: _Layout, file: Node) -> _Layout:
    most = _MAX_COMPRESSED_GRAIN if layout.flags & IS_COMPRESSED else _MAX_GRAIN_SECTORS * SECTOR
    if not is_power_of_two(layout.grain) or layout.grain > most:
        raise BlockError("Invalid granularity, image may be corrupt")
    if layout.size > _MAX_SIZE:
        raise BlockError("VMDK extent is too large")
    entries = -(-layout.size // (layout.grain * layout.table_entries))
    if entries > _MAX_DIRECTORY:
        raise BlockError("L1 size too big")
    Numbers(file, "<I").check(layout.directory, entries, "VMDK grain directory")
    return layout


class _Extent:
    """A run of the disk in one file, at `base` of the disk."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` of the extent on."""
        del offset
        return Run(length, Kind.ZERO)


class _FlatExtent(_Extent):
    """Data as it is, from `start` of `file` on."""

    def __init__(self, base: int, line: ExtentLine, file: Node) -> None:
        super().__init__(base, line.size)
        self._file = file
        self._start = line.offset
        if line.offset + line.size > file.length():
            raise BlockError(f"VMDK extent '{line.filename}' is shorter than its description says")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` of the extent on."""
        return Run(length, Kind.DATA, self._start + offset, self._file)


class _SparseExtent(_Extent):
    """Grains in `file`, found through its tables."""

    def __init__(self, base: int, file: Node, size: int | None = None) -> None:
        self.layout = _read_layout(file)
        super().__init__(base, self.layout.size if size is None else size)
        if self.size > self.layout.size:
            raise BlockError("VMDK extent is shorter than its description says")
        self.file = file
        self._entries = Numbers(file, "<I")

    @property
    def is_compressed(self) -> bool:
        return bool(self.layout.flags & IS_COMPRESSED)

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` of the extent on."""
        grain, start = divmod(offset, self.layout.grain)
        index, slot = divmod(grain, self.layout.table_entries)
        table = self._entries.at(self.layout.directory, index)
        if not table:
            rest = (self.layout.table_entries - slot) * self.layout.grain - start
            return Run(min(length, rest), Kind.ABSENT)
        length = min(length, self.layout.grain - start)
        sector = self._entries.at(table * SECTOR, slot)
        if not sector:
            return Run(length, Kind.ABSENT)
        if sector == _ZEROED and self.layout.flags & HAS_ZEROED_GRAINS:
            return Run(length, Kind.ZERO)
        if self.is_compressed:
            return Run(length, Kind.COMPRESSED, sector * SECTOR, self.file)
        return Run(length, Kind.DATA, sector * SECTOR + start, self.file)

    def decompress(self, place: int) -> bytes:
        """Return the grain at `place` of the file, filled up with zeros.  Raises OSError."""
        grain = self.layout.grain
        there = self.file.length() - place
        length = 2 * grain
        if self.layout.flags & HAS_MARKERS:
            if there < _MARKER.size:
                raise damaged()
            _, length = _MARKER.unpack(self.file.read(place, _MARKER.size))
            place += _MARKER.size
            there -= _MARKER.size
        if not 0 < length <= 2 * grain or there <= 0:
            raise damaged()
        try:
            data = zlib.decompressobj().decompress(self.file.read(place, min(length, there)), grain)
        except zlib.error:
            raise damaged() from None
        return data.ljust(grain, b"\0")


def _read_descriptor(file: Node) -> tuple[Descriptor, bool]:
    """Return the descriptor, and whether it is in a sparse extent.  Raises BlockError, and OSError."""
    head = file.head(_HEADER_SIZE)
    start, length, embedded = 0, file.length(), False
    if head.startswith(_OLD_MAGIC):
        return Descriptor("vmfsSparse", 0, 0xFFFFFFFF, None, ()), True
    if head.startswith(MAGIC) and len(head) == _HEADER_SIZE:
        _, _, _, _, _, start, length, *_ = HEADER.unpack_from(head)
        start, length, embedded = start * SECTOR, length * SECTOR, True
        if not start or start + length > file.length():
            raise BlockError("VMDK image without its descriptor: it is an extent of another one")
    text = bytes(file.read(start, min(length, MAX_TEXT - 1))).partition(b"\0")[0]
    return parse_descriptor(text.decode("utf-8", "surrogateescape")), embedded


def read_names(file: Node) -> Names:
    """Return what other files the image names.  Raises BlockError, and OSError."""
    descriptor, embedded = _read_descriptor(file)
    parent = descriptor.parent
    return Names(parent, "vmdk" if parent else None, () if embedded else extent_names(descriptor))


class VmdkNode(MappedNode):
    """A VMDK image; `extents` are the files that its descriptor names, in this order.

    Raises BlockError for one that is damaged or of a kind that is not supported, and OSError.
    """

    driver: ClassVar[str] = "vmdk"

    def __init__(self, file: Node, settings: Settings, extents: list[Node], backing: Node | None) -> None:
        super().__init__(file, settings, backing)
        self._descriptor, embedded = _read_descriptor(file)
        self.header = read_names(file)
        self._extents: list[_Extent] = [_SparseExtent(0, file)] if embedded else self._make_extents(extents)
        last = self._extents[-1] if self._extents else _Extent(0, 0)
        self._size = last.base + last.size
        self._bases = [extent.base for extent in self._extents]
        grains = {extent.layout.grain for extent in self._extents if isinstance(extent, _SparseExtent)}
        self._block = grains.pop() if len(grains) == 1 else 0
        self.children += [Child(Role.DATA_FILE, node, f"extents.{number}") for number, node in enumerate(extents)]

    def _make_extents(self, files: list[Node]) -> list[_Extent]:
        extents: list[_Extent] = []
        left = iter(files)
        base = 0
        for line in self._descriptor.extents:
            if line.kind in ZERO:
                extent = _Extent(base, line.size)
            elif line.kind in FLAT:
                extent = _FlatExtent(base, line, next(left))
            else:
                extent = _SparseExtent(base, next(left), line.size)
            extents.append(extent)
            base += line.size
        return extents

    def _extent_at(self, offset: int) -> _Extent:
        return self._extents[bisect_right(self._bases, offset) - 1]

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        extent = self._extent_at(offset)
        offset -= extent.base
        return extent.find(offset, min(length, extent.size - offset))

    def decompress(self, run: Run, offset: int) -> bytes:
        """Return a part of a compressed grain."""
        extent = self._extent_at(offset)
        if not isinstance(extent, _SparseExtent):
            raise damaged()
        start = (offset - extent.base) % extent.layout.grain
        return extent.decompress(run.place)[start : start + run.length]

    def format_info(self) -> dict[str, Any]:
        """Return the `format-specific` of query-block."""
        files = [child.node for child in self.children if child.role is Role.DATA_FILE] or [self._file]
        stored = [extent for extent in self._extents if type(extent) is not _Extent]
        described = [_describe(extent, node) for extent, node in zip(stored, files, strict=True)]
        if files[0] is self._file:
            described[0]["format"] = ""  # nothing is said of that where the description is in the extent
        return {
            "type": "vmdk",
            "data": {
                "create-type": self._descriptor.create_type,
                "cid": self._descriptor.cid,
                "parent-cid": self._descriptor.parent_cid,
                "extents": described,
            },
        }


def _describe(extent: _Extent, node: Node) -> dict[str, Any]:
    """Return the ImageInfo of an extent."""
    info: dict[str, Any] = {"filename": node.filename, "format": "FLAT", "virtual-size": extent.size}
    if isinstance(extent, _SparseExtent):
        info["format"] = "SPARSE"
        info["cluster-size"] = extent.layout.grain
        if extent.is_compressed:
            info["compressed"] = True
    return info


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> VmdkNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    extents = [node for name, node in children.items() if name.startswith("extents.")]
    return VmdkNode(children["file"], settings, extents, children.get("backing"))
