"""Filter *compress*: what is written goes compressed into the image below, cluster by cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.vectors import Buffers, Cursor, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_ABLE = ("qcow2",)
"""Formats that have compressed clusters."""


class CompressNode(FilterNode):
    """A filter in front of an image whose format knows compression."""

    driver: ClassVar[str] = "compress"

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write whole clusters, filled up with what is there where the buffers do not cover them."""
        length = total(buffers)
        self.note_write(offset + length)
        unit = self.cluster_size or 1
        cursor = Cursor(buffers)
        end = offset + length
        while offset < end:
            start = offset // unit * unit
            stop = min(start + unit, self.size)
            count = min(stop, end) - offset
            if count == stop - start:
                data = bytearray().join(cursor.take(count))
            else:
                data = bytearray(self._below.read(start, stop - start))
                data[offset - start : offset - start + count] = b"".join(cursor.take(count))
            self._below.write_compressed(start, data)
            offset += count


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> CompressNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del own, graph
    file = children["file"]
    below = file
    while below.is_filter and below.file is not None:
        below = below.file
    if below.driver not in _ABLE:
        raise BlockError(f"Compression is not supported for underlying format: {file.driver}")
    return CompressNode(file, name=settings.name, read_only=settings.read_only)
