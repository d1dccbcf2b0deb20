"""Making empty images of formats that pyvm only reads otherwise.

There is a module for each format, with a function `plan`: it looks at options, of the names and types of the monitor's
`blockdev-create`, and at what can be seen before anything is touched, opens the file by what it is given for that, and
returns a function that writes the image.  Both raise BlockError, the latter OSError, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from pyvm.block.errors import BlockError
from pyvm.block.node import Node

FORMATS = ("parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc")
"""The formats of which there are modules."""
SECTOR = 512

Options = Mapping[str, Any]
Write = Callable[[], None]


class Opening(NamedTuple):
    """How a plan opens what it needs."""

    file: Callable[[Any], Node]
    """Open what an option names or describes, to be written to; it is closed when the image is there."""
    image: Callable[[str], Node]
    """Open an image by its name, only to look at it; the caller closes it."""


class Planner(Protocol):
    """What the function `plan` of a format's module is."""

    def __call__(self, options: Options, opening: Opening) -> Write:
        """Return what writes the image."""


def check_sectors(size: int) -> None:
    """Raise BlockError for a disk that does not have whole sectors."""
    if size % SECTOR:
        raise BlockError(f"Image size must be a multiple of {SECTOR} bytes")


def round_up(number: int, unit: int) -> int:
    """Return the next multiple of `unit`, or `number` itself."""
    return -(-number // unit) * unit


def start_over(file: Node, length: int = 0) -> None:
    """Let the file be `length` zeros; what cannot become shorter is overwritten.  Raises BlockError."""
    try:
        file.truncate(0)
    except BlockError:
        file.write_zeroes(0, min(length, file.length()), False)
    if file.length() < length:
        file.truncate(length)
