"""Sizes and numbers: as typed, and as shown to people."""

from __future__ import annotations

import re

from pyvm.tools.img.console import PROGRAM, warn
from pyvm.tools.img.errors import ImgError

INT64_MAX = (1 << 63) - 1
_UINT64_MAX = (1 << 64) - 1
_SUFFIXES = "BKMGTPE"
_HEXADECIMAL = "0123456789abcdefABCDEF"
_SIZE = re.compile(
    r"\s*\+?(?:(?P<hex>0[xX][0-9a-fA-F]+)|(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]*))?)(?P<suffix>[a-zA-Z]?)"
)


def read_size(text: str) -> int | None:
    """Return a size in bytes: a number, with fractions before a suffix k, M, G, T, P or E; None where it is none.

    A size that does not fit in 64 bits is 2^64.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    suffix = match["suffix"].upper() or "B"
    if suffix not in _SUFFIXES:
        return None
    shift = 10 * _SUFFIXES.index(suffix)
    number = int(match["hex"], 16) if match["hex"] else int(match["whole"])
    size = number << shift
    fraction = match["fraction"]
    if fraction and int(fraction):
        if not shift:
            return None
        size += (int(fraction) << shift) // 10 ** len(fraction)
    return min(size, _UINT64_MAX + 1)


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
    digits = text.strip()
    try:
        if len(digits) > 1 and digits.lstrip("+-").startswith("0") and digits.lstrip("+-").isdigit():
            number = int(digits, 8)
        else:
            number = int(digits, 0)
    except ValueError:
        raise ImgError(message) from None
    if "_" in digits or not low <= number <= high:
        raise ImgError(message)
    return number


def human(size: int) -> str:
    """Return a size for people: three digits and a binary unit, as in ``1.32 MiB``."""
    units = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    index = 0
    # From 1000 on the next unit reads better: 0.977 KiB.
    while index + 1 < len(units) and size >= 1000 << (10 * index):
        index += 1
    return f"{size / (1 << 10 * index):.3g} {units[index]}B"
