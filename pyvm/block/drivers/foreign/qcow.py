"""Format driver *qcow*, read only: the first version of QEMU's copy-on-write format.

Source: its description in the QCOW2 project's "The QCOW Image Format", version 1.  Encrypted images are refused.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyvm.block.drivers.foreign.mapped import SECTOR, Kind, MappedNode, Names, Numbers, Run, damaged
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# magic, version, backing file name's offset and length, modification time, size, cluster bits, L2 bits, encryption,
# L1 table offset
HEADER = struct.Struct(">4sIQI4xQBB2xIQ")
MAGIC = b"QFI\xfb"
MAX_NAME = 1023
_CLUSTER_BITS = range(9, 17)
_L2_BITS = range(6, 14)
_COMPRESSED = 1 << 63
_ENTRY = 8
_WINDOW_BITS = -12
MAX_L1 = 1 << 28
"""Most L1 entries: QEMU's limit of 2 GiB for the table."""


class _Header(NamedTuple):
    magic: bytes
    version: int
    backing_offset: int
    backing_length: int
    size: int
    cluster_bits: int
    l2_bits: int
    encryption: int
    l1_table: int


def _read_header(file: Node) -> _Header:
    head = file.head(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise BlockError("Image not in qcow format")
    header = _Header(*HEADER.unpack(head))
    if header.version != 1:
        raise BlockError(f"qcow (v{header.version}) does not support qcow version {header.version}")
    if header.size <= 1:
        raise BlockError("Image size is too small (must be at least 2 bytes)")
    if header.cluster_bits not in _CLUSTER_BITS:
        raise BlockError("Cluster size must be between 512 and 64k")
    if header.l2_bits not in _L2_BITS:
        raise BlockError("L2 table size must be between 512 and 64k")
    if header.encryption:
        raise BlockError("encrypted images of format 'qcow' are not supported by pyvm")
    return header


def read_names(file: Node) -> Names:
    """Return what other files the image names.  Raises BlockError, and OSError."""
    header = _read_header(file)
    if not header.backing_offset or not header.backing_length:
        return Names()
    if header.backing_length > MAX_NAME:
        raise BlockError("Backing file name too long")
    if header.backing_offset + header.backing_length > file.length():
        raise BlockError("Backing file name is behind the end of the file")
    name = bytes(file.read(header.backing_offset, header.backing_length))
    return Names(name.decode("utf-8", "surrogateescape"))


class QcowNode(MappedNode):
    """A qcow image of version 1.  Raises BlockError for one that is damaged or encrypted, and OSError."""

    driver: ClassVar[str] = "qcow"

    def __init__(self, file: Node, settings: Settings, backing: Node | None) -> None:
        super().__init__(file, settings, backing)
        header = _read_header(file)
        self.header = read_names(file)
        self._table = header.l1_table
        self._bits, self._l2_bits = header.cluster_bits, header.l2_bits
        self._block = 1 << self._bits
        self._size = -(-header.size // SECTOR) * SECTOR
        entries = -(-header.size >> self._bits + self._l2_bits)
        if entries > MAX_L1:
            raise BlockError("Image too large")
        self._entries = Numbers(file, ">Q")
        self._entries.check(self._table, entries, "L1 table")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        table = self._entries.at(self._table, offset >> self._bits + self._l2_bits)
        if not table:
            covered = 1 << self._bits + self._l2_bits
            return Run(min(length, covered - offset % covered), Kind.ABSENT)
        start = offset & self._block - 1
        length = min(length, self._block - start)
        if table % _ENTRY:
            raise damaged()
        entry = self._entries.at(table, offset >> self._bits & (1 << self._l2_bits) - 1)
        if not entry:
            return Run(length, Kind.ABSENT)
        if entry & _COMPRESSED:
            return Run(length, Kind.COMPRESSED, entry, self._file)
        if entry % SECTOR:
            raise damaged()
        return Run(length, Kind.DATA, entry + start, self._file)

    def decompress(self, run: Run, offset: int) -> bytes:
        """Return a part of a compressed cluster: its entry has the offset below, the length above."""
        shift = 63 - self._bits
        count = run.place >> shift & self._block - 1
        place = run.place & (1 << shift) - 1
        there = min(count, self._file.length() - place)
        if there <= 0:
            raise damaged()
        try:
            data = zlib.decompressobj(_WINDOW_BITS).decompress(self._file.read(place, there), self._block)
        except zlib.error:
            raise damaged() from None
        if len(data) < self._block:
            raise damaged()
        start = offset & self._block - 1
        return data[start : start + run.length]


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> QcowNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return QcowNode(children["file"], settings, children.get("backing"))
