"""Format driver *qed*, read only: QEMU's "enhanced disk" images.

Source: the QEMU project's "QED Image File Format".  Tables of two levels say where each cluster is; all offsets are
multiples of clusters.  An image that was not closed in good order may have leaked clusters, which reading does not
mind.
"""

from __future__ import annotations

import errno
import os
import struct
from enum import IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pyvm.block.drivers.foreign.mapped import (
    SECTOR,
    Kind,
    MappedNode,
    Names,
    Numbers,
    Run,
    damaged,
    is_power_of_two,
)
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.options import Settings

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph

# magic, cluster size, clusters of a table, clusters of the header, features: whoever does not know one must not open
# the image; must not mind; clears it; offset of the first table, disk size, backing file name's offset and length
HEADER = struct.Struct("<4sIIIQQQQQII")
MAGIC = b"QED\0"
MIN_CLUSTER, MAX_CLUSTER = 4 << 10, 64 << 20
MAX_TABLE = 16
MAX_NAME = 1023
_ENTRY = 8
_ZEROS = 1
"""An entry for a cluster of zeros."""


class Feature(IntFlag):
    """What has to be known of an image to open it."""

    BACKING_FILE = 1
    NEEDS_CHECK = 2
    BACKING_IS_RAW = 4


def most_bytes(cluster: int, table: int) -> int:
    """Return how large a disk can be, by the sizes of a cluster in bytes and of a table in clusters."""
    return (table * cluster // _ENTRY) ** 2 * cluster


class _Header(NamedTuple):
    magic: bytes
    cluster: int
    table: int
    clusters: int
    features: int
    compatible: int
    autoclear: int
    first_table: int
    size: int
    backing_offset: int
    backing_length: int


def _invalid(file: Node) -> BlockError:
    return BlockError(f"Could not open '{file.filename}': {os.strerror(errno.EINVAL)}")


def _read_header(file: Node) -> _Header:
    """Return a header that can be.  Raises BlockError, and OSError."""
    head = file.head(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise BlockError("Image not in QED format")
    header = _Header(*HEADER.unpack(head))
    unknown = header.features & ~int(Feature.BACKING_FILE | Feature.NEEDS_CHECK | Feature.BACKING_IS_RAW)
    if unknown:
        raise BlockError(f"Unsupported QED features: {unknown:x}")
    if not MIN_CLUSTER <= header.cluster <= MAX_CLUSTER or not is_power_of_two(header.cluster):
        raise _invalid(file)
    if not 1 <= header.table <= MAX_TABLE or not is_power_of_two(header.table) or header.first_table % header.cluster:
        raise _invalid(file)
    if header.size > most_bytes(header.cluster, header.table) or header.size % SECTOR:
        raise _invalid(file)
    return header


def read_names(file: Node) -> Names:
    """Return what other files the image names.  Raises BlockError, and OSError."""
    return _names(file, _read_header(file))


def _names(file: Node, header: _Header) -> Names:
    if not header.features & Feature.BACKING_FILE:
        return Names()
    end = header.backing_offset + header.backing_length
    if header.backing_length > MAX_NAME or end > min(header.clusters * header.cluster, file.length()):
        raise _invalid(file)
    name = bytes(file.read(header.backing_offset, header.backing_length))
    kind = "raw" if header.features & Feature.BACKING_IS_RAW else None
    return Names(name.decode("utf-8", "surrogateescape"), kind)


class QedNode(MappedNode):
    """A QED image.  Raises BlockError for one that is damaged or of a kind that is not known, and OSError."""

    driver: ClassVar[str] = "qed"

    def __init__(self, file: Node, settings: Settings, backing: Node | None) -> None:
        super().__init__(file, settings, backing)
        header = _read_header(file)
        self.header = _names(file, header)
        self._size = header.size
        self._block = header.cluster
        self._per_table = header.table * header.cluster // _ENTRY
        self._first = header.first_table
        self._entries = Numbers(file, "<Q")
        self._entries.check(self._first, self._per_table, "QED table")

    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on."""
        index, start = divmod(offset, self._block)
        first, second = divmod(index, self._per_table)
        table = self._entries.at(self._first, first)
        if not table:
            rest = (self._per_table - second) * self._block - start
            return Run(min(length, rest), Kind.ABSENT)
        length = min(length, self._block - start)
        if table % self._block:
            raise damaged()
        entry = self._entries.at(table, second)
        if not entry:
            return Run(length, Kind.ABSENT)
        if entry == _ZEROS:
            return Run(length, Kind.ZERO)
        if entry % self._block:
            raise damaged()
        return Run(length, Kind.DATA, entry + start, self._file)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> QedNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del own, graph
    return QedNode(children["file"], settings, children.get("backing"))
