"""Taking over the bitmaps of images that a tool is going to write to; without any, nothing is imported for them."""

from __future__ import annotations

from pyvm.annotations import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.block.node import Node


def load_bitmaps(node: Node) -> None:
    """Have changes of an image, and of the writable ones that it is made of, recorded in the bitmaps that they have."""
    disk = getattr(node, "disk", None)
    if disk is not None and disk.bitmaps and not node.read_only:
        from pyvm.block import bitmap_store

        bitmap_store.load(node)
    for child in node.children:
        load_bitmaps(child.node)
