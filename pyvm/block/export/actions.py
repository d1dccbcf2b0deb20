"""What NBD requests have done to a node beyond plain reading and writing.

Each function returns an action that is carried out in the node's I/O context; what it finds goes into the chunks of a
structured reply.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyvm.block.drivers.nbd_protocol import (
    CHUNK_HOLE,
    CHUNK_OFFSET,
    EXTENT,
    LENGTH,
    STATE_HOLE,
    STATE_ZERO,
    ReplyType,
)
from pyvm.block.export.nbd import BASE_ID, DEPTH_ID, FIRST_BITMAP_ID
from pyvm.block.status import chain_status

if TYPE_CHECKING:
    from pyvm.block.bitmaps import DirtyBitmap
    from pyvm.block.export.nbd import NbdExport
    from pyvm.block.node import Node

Action = Callable[["Node"], None]
Chunk = tuple[int, list[memoryview | bytes]]
"""Type and payload of a chunk."""
Extents = list[tuple[int, int]]
"""Lengths and flags of runs of bytes."""

MAX_EXTENTS = (1 << 20) // EXTENT.size
"""Most runs in a reply."""
_STATE_DIRTY = 1
_CACHE_STEP = 1 << 20


def sparse_read(offset: int, length: int, buffer: memoryview | None, chunks: list[Chunk], *, flush: bool) -> Action:
    """Read data, and tell of zeros without sending them."""
    assert buffer is not None
    view = buffer

    def act(node: Node) -> None:
        if flush:
            node.flush()
        for start, count, zero in _runs(node, offset, length):
            if zero:
                chunks.append((ReplyType.OFFSET_HOLE, [CHUNK_HOLE.pack(start, count)]))
            else:
                part = view[start - offset : start - offset + count]
                node.readv(start, (part,))
                chunks.append((ReplyType.OFFSET_DATA, [CHUNK_OFFSET.pack(start), part]))

    return act


def _runs(node: Node, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield where runs of data and of zeros start, how long they are, and whether they are zeros."""
    start, end, position = offset, offset + length, offset
    before: bool | None = None
    while position < end:
        extent = chain_status(node, position, end - position)
        if before is not None and extent.zero is not before:
            yield start, position - start, before
            start = position
        before = extent.zero
        position += extent.length
    yield start, end - start, bool(before)


def flushed_read(offset: int, buffer: memoryview | None) -> Action:
    """Read data that is on stable storage."""

    def act(node: Node) -> None:
        node.flush()
        if buffer is not None and len(buffer):
            node.readv(offset, (buffer,))

    return act


def cache(offset: int, length: int, copy: bool) -> Action:
    """Read data that nobody wants yet; with `copy`, an image takes over what it shows of those below it."""

    def act(node: Node) -> None:
        from pyvm.block.drivers.copy_on_read import CopyOnReadNode

        source = CopyOnReadNode(node) if copy else node
        scratch = memoryview(bytearray(min(length, _CACHE_STEP)))
        position, end = offset, offset + length
        while position < end:
            count = min(end - position, len(scratch))
            source.readv(position, (scratch[:count],))
            position += count

    return act


def fast_zeroes(offset: int, length: int, unmap: bool) -> Action:
    """Let a range read as zeros where that is faster than to write them; otherwise fail with ENOTSUP."""

    def act(node: Node) -> None:
        if not _zeroes_fast(node):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        node.write_zeroes(offset, length, unmap)

    return act


def _zeroes_fast(node: Node) -> bool:
    """Whether a node has zeros without writing them, as far as one knows."""
    layer: Node | None = node
    while layer is not None and (layer.is_filter or layer.driver == "raw"):
        layer = layer.file
    return layer is not None and getattr(layer, "zeroes_fast", True)


# ---- Block status


def status(
    export: NbdExport, contexts: tuple[int, ...], offset: int, length: int, most: int, chunks: list[Chunk]
) -> Action:
    """Tell what is where, in each of the kinds of block status that were agreed on; `most` runs at most."""

    def act(node: Node) -> None:
        for number in contexts:
            if number == BASE_ID:
                found = _base_allocation(node, offset, length, most)
            elif number == DEPTH_ID:
                found = _allocation_depth(node, offset, length, most)
            else:
                found = _dirty(export.bitmaps[number - FIRST_BITMAP_ID], offset, length, most)
            payload = b"".join(EXTENT.pack(*extent) for extent in found)
            chunks.append((ReplyType.BLOCK_STATUS, [LENGTH.pack(number) + payload]))

    return act


def _add(extents: Extents, length: int, flags: int, most: int) -> bool:
    """Append a run, or make the last one longer; return False where there is no room."""
    if extents and extents[-1][1] == flags:
        extents[-1] = (extents[-1][0] + length, flags)
        return True
    if len(extents) >= most:
        return False
    extents.append((length, flags))
    return True


def _base_allocation(node: Node, offset: int, length: int, most: int) -> Extents:
    found: Extents = []
    end = offset + length
    real = _real_length(node)
    while offset < end:
        if offset >= real:
            _add(found, end - offset, STATE_HOLE | STATE_ZERO, most)
            break
        extent = chain_status(node, offset, min(end, real) - offset)
        flags = (0 if extent.data else STATE_HOLE) | (STATE_ZERO if extent.zero else 0)
        if not _add(found, extent.length, flags, most):
            break
        offset += extent.length
    return found


def _real_length(node: Node) -> int:
    """Return where a node ends, to the byte: zeros fill up the last sector of a file."""
    leaf = node
    while (leaf.driver == "raw" or leaf.is_filter) and leaf.file is not None and leaf.file.size == node.size:
        leaf = leaf.file
    return min(leaf.length(), node.size)


def _allocation_depth(node: Node, offset: int, length: int, most: int) -> Extents:
    found: Extents = []
    end = offset + length
    while offset < end:
        extent = chain_status(node, offset, end - offset)
        if not _add(found, extent.length, extent.depth + 1 if extent.present else 0, most):
            break
        offset += extent.length
    return found


def _dirty(bitmap: DirtyBitmap, offset: int, length: int, most: int) -> Extents:
    found: Extents = []
    end = offset + length
    while offset < end and len(found) < most:
        dirty = bitmap.is_dirty(offset)
        change = bitmap.next(offset, dirty=not dirty)
        stop = end if change is None else min(change, end)
        found.append((stop - offset, _STATE_DIRTY if dirty else 0))
        offset = stop
    return found
