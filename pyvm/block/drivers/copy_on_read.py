"""Filter *copy-on-read*: what is read from a backing file is put into the image above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Access, Child, Node, Permission
from pyvm.block.status import backing_of, chain_status
from pyvm.block.vectors import Buffers, Cursor, copy_in, is_zero, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_DEFAULT_UNIT = 64 << 10
_MAX_STEP = 1 << 20


class CopyOnReadNode(FilterNode):
    """A filter in front of `file`.  With `bottom`, only what that layer and those above it have is copied."""

    driver: ClassVar[str] = "copy-on-read"

    def __init__(
        self, file: Node, *, name: str = "", bottom: Node | None = None, read_only: bool | None = None
    ) -> None:
        super().__init__(file, name=name, read_only=read_only)
        if bottom is not None and not _is_below(bottom, file):
            raise BlockError(f"Bottom node '{bottom.name}' is not in the backing chain of '{file.name}'")
        self.bottom = bottom

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Copying does not change what the image shows."""
        if not self.read_only:
            used |= Permission.WRITE_UNCHANGED
        return Access(used, shared)

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError, also where the copy fails."""
        length = total(buffers)
        if self.read_only:
            self._below.readv(offset, buffers)
            return
        self.check_range(offset, length)
        cursor = Cursor(buffers)
        while length:
            here, count = self._status(offset, length)
            if here:
                self._below.readv(offset, cursor.take(count))
            else:
                count = min(count, _MAX_STEP)
                self._copy(offset, count, cursor.take(count))
            offset += count
            length -= count

    def _status(self, offset: int, length: int) -> tuple[bool, int]:
        """Return whether the range can be read as it is, and how much of it."""
        top = _first_layer(self._below)
        below = backing_of(top)
        if below is None:
            # Without anything to copy, zeros are written where there is nothing.
            own = top.block_status(offset, length)
            return own.allocated, own.length
        extent = chain_status(top, offset, length, below)
        if extent.present or self.bottom is None:
            return extent.present, extent.length
        wanted = chain_status(below, offset, min(extent.length, below.size - offset), backing_of(self.bottom))
        return not wanted.present, wanted.length

    def _copy(self, offset: int, length: int, buffers: Buffers) -> None:
        """Copy whole clusters, as anything less has the rest of the cluster read as well."""
        unit = _first_layer(self._below).cluster_size or _DEFAULT_UNIT
        start = offset // unit * unit
        end = min(-(-(offset + length) // unit) * unit, self.size)
        data = self._below.read(start, end - start)
        view = memoryview(data)
        position = start
        while position < end:
            # The clusters around may be there already, in part.
            extent, count = self._status(position, end - position)
            if not extent:
                part = view[position - start : position - start + count]
                if is_zero((part,)):
                    self._below.write_zeroes(position, count, False)
                else:
                    self._below.writev(position, (part,))
            position += count
        copy_in(buffers, view[offset - start : offset - start + length])


def _first_layer(node: Node) -> Node:
    """Return the first image from `node` down that may lie on another; a raw one shows what is in it."""
    layer = node
    while layer.file is not None and (layer.is_filter or (layer.driver == "raw" and not layer.options.get("offset"))):
        layer = layer.file
    return layer


def _is_below(node: Node, top: Node) -> bool:
    layer: Node | None = top
    while layer is not None:
        if layer is node:
            return True
        layer = layer.file if layer.is_filter else layer.backing
    return False


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> CopyOnReadNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    if children["file"].read_only:
        raise BlockError("Block node is read-only")
    bottom = None
    if "bottom" in own:
        bottom = graph.nodes.get(own["bottom"])
        if bottom is None:
            raise BlockError(f"Bottom node '{own['bottom']}' not found")
    return CopyOnReadNode(children["file"], name=settings.name, bottom=bottom, read_only=settings.read_only)
