"""Bitmaps that are kept in qcow2 images: loaded when one is opened, stored when it is closed.

While an image can be written to, what it has of its bitmaps is marked as in use: whoever finds it so after a crash
knows that it is out of date.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvm.block import bitmaps
from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.node import Node


def _as_image(node: Node) -> Qcow2Node | None:
    return node if node.driver == "qcow2" and hasattr(node, "before_settling") else None  # type: ignore[return-value]


def load(node: Node) -> None:
    """Take over the bitmaps of an image that was just opened; nothing for other nodes."""
    image = _as_image(node)
    if image is None or image.before_settling is not None or not image.disk.bitmaps:
        return
    from pyvm.block.drivers.qcow2 import bitmaps as stored

    for entry in image.disk.bitmaps:
        bitmap = DirtyBitmap(node.size, entry.granularity, entry.name)
        bitmap.persistent = True
        bitmap.enabled = entry.auto
        try:
            bitmap.load(stored.load(image.disk, entry))
        except (OSError, BlockError) as error:
            if not entry.in_use:
                image.disk.warn(f"Bitmap '{entry.name}' cannot be loaded: {error}")
            bitmap.inconsistent, bitmap.enabled = True, False
        with suppress(BlockError):
            bitmaps.attach(node, bitmap)
    reopened(node)


def keep(node: Node) -> None:
    """From now on, have the bitmaps of an image stored when it is closed."""
    image = _as_image(node)
    if image is not None and image.before_settling is None:
        image.before_settling = lambda: store(image)
        image.disk.bitmaps_kept = True


def reopened(node: Node) -> None:
    """An image with bitmaps was opened in another way: read-only, or writable."""
    image = _as_image(node)
    if image is None:
        return
    kept = [bitmap for bitmap in node.dirty_bitmaps if bitmap.persistent]
    for bitmap in kept:
        bitmap.read_only = node.read_only
    if kept:
        keep(node)
        image.disk.bitmaps_kept = True
        if not node.read_only:
            with suppress(OSError):
                image.disk.changing_data()


def store(image: Qcow2Node) -> None:
    """Write all bitmaps that are to be kept into their image; one that nobody looked after stays as it is there."""
    if image.read_only:
        return
    from pyvm.block.drivers.qcow2 import bitmaps as stored

    contents: dict[str, Any] = {}
    for bitmap in image.dirty_bitmaps:
        if bitmap.persistent and not bitmap.inconsistent and not bitmap.skip_store:
            contents[bitmap.name] = (bitmap.granularity.bit_length() - 1, bitmap.recording, _content(bitmap))
    try:
        if not stored.are_stored(image.disk, contents):
            stored.store_all(image.disk, contents)
    except (OSError, BlockError) as error:
        names = ", ".join(f"'{name}'" for name in contents)
        image.disk.warn(f"Could not store persistent bitmaps {names} of node '{image.name}': {error}")


def _content(bitmap: DirtyBitmap) -> bytes:
    if bitmap.successor is None:
        return bitmap.content()
    both = DirtyBitmap(bitmap.size, bitmap.granularity)
    both.merge(bitmap)
    both.merge(bitmap.successor)
    return both.content()


def check_addable(node: Node, name: str, granularity: int) -> None:
    """Raise BlockError where no bitmap of this name can be kept in a node."""
    image = _as_image(node)
    if image is None or node.read_only:
        raise BlockError(f"Can't store persistent bitmaps to {node.name}")
    from pyvm.block.drivers.qcow2 import bitmaps as stored

    added = [it.name for it in node.dirty_bitmaps if it.persistent]
    try:
        stored.check_name(image.disk, name, granularity.bit_length() - 1, others=added)
    except BlockError as error:
        raise BlockError(f"Can't make bitmap '{name}' persistent in '{node.name}': {error}") from None


def remove(node: Node, name: str) -> None:
    """Remove a bitmap from the image that has it; nothing where none does.  Raises OSError or BlockError."""
    image = _as_image(node)
    if image is None or not any(it.name == name for it in image.disk.bitmaps):
        return
    from pyvm.block.drivers.qcow2 import bitmaps as stored

    stored.remove(image.disk, name)
