"""What a dirty bitmap can be used for in its state, with QEMU's texts where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from pyvm.block.bitmaps import DirtyBitmap


def check_free(bitmap: DirtyBitmap) -> None:
    """Raise BlockError where a job uses it."""
    if bitmap.busy:
        raise BlockError(f"Bitmap '{bitmap.name}' is currently in use by another operation and cannot be used")


def check_usable(bitmap: DirtyBitmap) -> None:
    """Raise BlockError where a job uses it, or where nobody knows what should be in it."""
    check_free(bitmap)
    if bitmap.inconsistent:
        raise BlockError(
            f"Bitmap '{bitmap.name}' is inconsistent and cannot be used\n"
            "Try block-dirty-bitmap-remove to delete this bitmap from disk"
        )


def check_writable(bitmap: DirtyBitmap) -> None:
    """Raise BlockError where it is in an image that cannot be written to."""
    if bitmap.read_only:
        raise BlockError(f"Bitmap '{bitmap.name}' is readonly and cannot be modified")
