"""Values of options for new images: as the monitor has them, or as text."""

from __future__ import annotations

from pyvm.annotations import Any
from pyvm.block.errors import BlockError
from pyvm.sizes import UINT64_MAX, read_number, read_size


def parse_size(value: Any, name: str) -> int:
    """Return a size in bytes: a number, or a string with a suffix.  Raises BlockError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
        return value
    size = None if isinstance(value, (bool, float)) else read_size(str(value).rstrip())
    if size is not None and size <= UINT64_MAX:
        return size
    raise BlockError(
        f"Parameter '{name}' expects a non-negative number below 2^64\n"
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
    )


def parse_number(value: Any, name: str) -> int:
    """Return a number.  Raises BlockError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    number = read_number(str(value).removeprefix("-"))
    if number is not None and str(value).startswith("-"):
        # As in C: which is too much for whatever it is.
        number = -number & UINT64_MAX
    if number is None or number > UINT64_MAX:
        raise BlockError(f"Parameter '{name}' expects a number")
    return number


def parse_flag(value: Any, name: str) -> bool:
    """Return a truth value.  Raises BlockError."""
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return bool(value == "on")
    raise BlockError(f"Parameter '{name}' expects 'on' or 'off'")
