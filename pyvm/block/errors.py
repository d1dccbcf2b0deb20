"""What can be wrong with an image."""

from __future__ import annotations

import os
import sys


class BlockError(Exception):
    """An image cannot be opened; the text is for the person at the prompt, in the words of QEMU where it has some.

    Failures of a read or write of an open image are OSErrors instead.
    """


def as_reported(text: str) -> str:
    """Return a line for the person at the prompt, who called this program by some name."""
    return f"{os.path.basename(sys.argv[0]) or 'pyvm'}: {text}"
