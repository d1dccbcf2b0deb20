"""Sizes and numbers as typed, with the errors of the tools."""

from __future__ import annotations

from pyvm.sizes import INT64_MAX, read_number, read_size
from pyvm.tools.img.console import PROGRAM, warn
from pyvm.tools.img.errors import ImgError

_HEXADECIMAL = "0123456789abcdefABCDEF"


def parse_size(what: str, text: str, low: int = 0, high: int = INT64_MAX) -> int:
    """Return a size in bytes; `what` names it in errors.  Raises ImgError."""
    size = read_size(text)
    if size is None:
        raise ImgError(
            f"Invalid {what} specified. You may use k, M, G, T, P or E suffixes for\n"
            f"{PROGRAM}: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        )
    if text.strip().lower().startswith("0x") and text[-1] not in _HEXADECIMAL:
        warn(f"Using a multiplier suffix on hex numbers is deprecated: {text}")
    if not low <= size <= high:
        raise ImgError(f"Invalid {what} specified. Must be between {low} and {high}.")
    return size


def parse_integer(text: str, message: str, low: int = 0, high: int = (1 << 31) - 1) -> int:
    """Return a whole number, in C's notations; where it is none or out of range, ImgError has `message`."""
    number = read_number(text.rstrip())
    if number is None or not low <= number <= high:
        raise ImgError(message)
    return number
