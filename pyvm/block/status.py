"""What a chain of images has where: allocated in which layer, data, zeros."""

from __future__ import annotations

from pyvm.annotations import NamedTuple
from pyvm.block.node import Extent, Node


class ChainExtent(NamedTuple):
    """A run of bytes that a chain has in one way; see :class:`pyvm.block.node.Extent` for what the members mean."""

    length: int
    data: bool
    zero: bool
    depth: int
    """How many layers above the one that has it there are; filters do not count."""
    present: bool
    """Whether any layer has it."""
    offset: int | None
    node: Node | None
    """The node in which it starts at `offset`."""
    layer: Node | None
    """The layer that has it."""
    compressed: bool = False


def skip_filters(node: Node | None) -> Node | None:
    """Return the first node from `node` down that is no filter."""
    while node is not None and node.is_filter:
        node = node.file
    return node


def backing_of(node: Node) -> Node | None:
    """Return what shows where `node` has nothing, looking through filters."""
    layer = skip_filters(node)
    return skip_filters(layer.backing) if layer is not None else None


def _below_filters(node: Node | None, offset: int, length: int, ask: bool) -> Node | None:
    """Return the first node from `node` down that is no filter; filters that are asked may fail, with OSError."""
    while node is not None and node.is_filter:
        if ask:
            node.check_status(offset, length)
        node = node.file
    return node


def chain_status(
    node: Node, offset: int, length: int, base: Node | None = None, *, ask_filters: bool = True
) -> ChainExtent:
    """Return the first run of bytes from `offset` on, looking down the chain as far as the layer above `base`.

    Raises OSError; filters have a say in that with `ask_filters`.  What is behind the end of a shorter backing file
    reads as zeros.
    """
    end = skip_filters(base)
    length = min(length, node.size - offset)
    layer = _below_filters(node, offset, length, ask_filters)
    depth = 0
    zero = end is None
    while layer is not None and layer is not end:
        there = layer.size - offset
        if there <= 0:
            return ChainExtent(length, False, True, depth, True, None, None, layer)
        extent = layer.block_status(offset, min(length, there))
        if extent.allocated:
            return _found(extent, depth, layer)
        length = extent.length
        zero = end is None and layer.unallocated_is_zero
        layer = _below_filters(layer.backing, offset, length, ask_filters)
        depth += 1
    # Nobody has it: zeros, unless there is a layer below `base` to look into.
    return ChainExtent(length, False, zero, depth - 1, False, None, None, None)


def _found(extent: Extent, depth: int, layer: Node) -> ChainExtent:
    offset, node, zero, length = extent.offset, extent.node, extent.zero, extent.length
    if extent.data and not zero and offset is not None and node is not None and node is not layer:
        # The file may know that there is a hole.
        below = node.block_status(offset, length)
        if 0 < below.length <= length:
            zero, length = below.zero, below.length
    return ChainExtent(length, extent.data, zero, depth, True, offset, node, layer, extent.compressed)


def is_allocated(node: Node, offset: int, length: int, base: Node | None = None) -> tuple[bool, int]:
    """Return whether a layer above `base` has what is at `offset`, and for how many bytes that is so."""
    extent = chain_status(node, offset, length, base)
    return extent.present, extent.length
