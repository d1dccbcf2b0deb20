"""What clients do with dirty bitmaps.  Everything can be undone, as transactions need it.

A function does its work, and returns how to undo it.  Errors are BlockErrors and OSErrors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.block import bitmap_store, bitmaps
from pyvm.block.bitmap_checks import check_free, check_usable, check_writable
from pyvm.block.bitmaps import MAX_NAME, MIN_GRANULARITY, DirtyBitmap
from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from pyvm.block.node import Node

Undo = Callable[[], None]


class Storage(Protocol):
    """The images of a machine, or of a tool."""

    @property
    def drives(self) -> Any:
        """Drives by name."""

    @property
    def graph(self) -> Any:
        """What has the `nodes` by name."""

    def quiet(self) -> AbstractContextManager[None]:
        """Let nothing happen to the images meanwhile."""


def find_node(storage: Storage, name: str) -> Node:
    """Return the medium of a drive, or a node."""
    drive = storage.drives.get(name)
    node: Node | None
    if drive is not None and drive.backend.node is not None:
        node = drive.backend.shown_node
    else:
        node = storage.graph.nodes.get(name)
    if node is None:
        raise BlockError(f"Cannot find device='{name}' nor node-name='{name}'")
    return node


def find_bitmap(storage: Storage, node_name: str, name: str) -> tuple[Node, DirtyBitmap]:
    """Return a bitmap, and the node that has it."""
    try:
        node = find_node(storage, node_name)
    except BlockError:
        raise BlockError(f"Node '{node_name}' not found") from None
    bitmap = bitmaps.find(node, name)
    if bitmap is None:
        raise BlockError(f"Dirty bitmap '{name}' not found")
    return node, bitmap


def add(
    storage: Storage, node_name: str, name: str, granularity: int | None, *, persistent: bool, disabled: bool
) -> Undo:
    """Begin to record what is written to a node."""
    if not name:
        raise BlockError("Bitmap name cannot be empty")
    node = find_node(storage, node_name)
    if granularity is None:
        granularity = bitmaps.default_granularity(node)
    elif granularity < MIN_GRANULARITY or granularity & (granularity - 1):
        raise BlockError("Granularity must be power of 2 and at least 512")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise BlockError("Bitmap name too long")
    if persistent:
        bitmap_store.check_addable(node, name, granularity)
    bitmap = DirtyBitmap(node.size, granularity, name)
    bitmap.persistent = persistent
    bitmap.enabled = not disabled
    with storage.quiet():
        bitmaps.attach(node, bitmap)
        if persistent:
            bitmap_store.keep(node)
    return lambda: bitmaps.detach(node, bitmap)


def remove(storage: Storage, node_name: str, name: str, *, keep: bool = False) -> tuple[Undo, Undo]:
    """Stop recording, and remove a bitmap from its image too; return how to undo that, and how to end it.

    With `keep` it is still there, and in use, until the end.
    """
    node, bitmap = find_bitmap(storage, node_name, name)
    check_free(bitmap)
    check_writable(bitmap)
    with storage.quiet():
        if bitmap.persistent:
            bitmap_store.remove(node, name)
        if not keep:
            bitmaps.detach(node, bitmap)
            return _nothing, _nothing
    bitmap.skip_store = bitmap.busy = True

    def undo() -> None:
        bitmap.skip_store = bitmap.busy = False

    def end() -> None:
        undo()
        bitmaps.detach(node, bitmap)

    return undo, end


def _nothing() -> None:
    """Nothing is left to be done."""


def clear(storage: Storage, node_name: str, name: str) -> Undo:
    """Make everything clean."""
    _, bitmap = find_bitmap(storage, node_name, name)
    check_usable(bitmap)
    check_writable(bitmap)
    with storage.quiet():
        before = bitmap.bits.copy()
        bitmap.clear_all()
    return _restore(bitmap, before)


def _restore(bitmap: DirtyBitmap, before: bytearray) -> Undo:
    def undo() -> None:
        bitmap.bits = before

    return undo


def enable(storage: Storage, node_name: str, name: str, *, enabled: bool) -> Undo:
    """Record from now on, or not."""
    _, bitmap = find_bitmap(storage, node_name, name)
    check_usable(bitmap)
    before, bitmap.enabled = bitmap.enabled, enabled
    return lambda: setattr(bitmap, "enabled", before)


def merge(storage: Storage, node_name: str, target: str, sources: list[tuple[str, str]]) -> Undo:
    """Make dirty in `target` what is dirty in any of `sources`, each a node and a bitmap of it; all or nothing."""
    _, bitmap = find_bitmap(storage, node_name, target)
    check_usable(bitmap)
    check_writable(bitmap)
    merged = DirtyBitmap(bitmap.size, bitmap.granularity)
    with storage.quiet():
        for source_node, source_name in sources:
            _, source = find_bitmap(storage, source_node, source_name)
            check_usable(source)
            if source.size != bitmap.size:
                raise BlockError(
                    f"Bitmaps are of different sizes (destination size is {bitmap.size}, source size is {source.size}) "
                    "and can't be merged"
                )
            merged.merge(source)
        before = bitmap.bits.copy()
        bitmap.merge(merged)
    return _restore(bitmap, before)
