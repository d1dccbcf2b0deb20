"""What can be wrong with an image."""

from __future__ import annotations


class BlockError(Exception):
    """An image cannot be opened; the text is for the person at the prompt, in the words of QEMU where it has some.

    Failures of a read or write of an open image are OSErrors instead.
    """
