"""Numbers and sizes as people type them for QEMU, and sizes as they are shown to people.

Readers return None for what is no number: each place that reads has an error text of its own.
"""

from __future__ import annotations

INT64_MAX = (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1
_SUFFIXES = "BKMGTPE"
_LONGEST = 400
"""Characters; numbers that go on for longer are no use to anybody, and take time to read."""
_SIZE = r"\s*\+?(?:(?P<hex>0[xX][0-9a-fA-F]+)|(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]*))?)(?P<suffix>[a-zA-Z]?)"
_NUMBER = r"\s*(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))"


def read_size(text: str, unit: str = "B") -> int | None:
    """Return a size in bytes: a number, with fractions before a suffix k, M, G, T, P or E; None where it is none.

    Without a suffix it is in `unit`s.  A size that does not fit in 64 bits is 2^64.
    """
    # Most are as plain as that, and to import what others need takes its time.
    digits, suffix = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, unit)
    if digits.isdecimal() and text.isascii() and len(text) <= _LONGEST and suffix in _SUFFIXES:
        return min(int(digits) << 10 * _SUFFIXES.index(suffix), UINT64_MAX + 1)
    import re

    match = re.fullmatch(_SIZE, text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    suffix = match["suffix"].upper() or unit
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
    return min(size, UINT64_MAX + 1)


def read_number(text: str) -> int | None:
    """Return a whole number, with a sign or without, in C's notations: decimal, 0x and hexadecimal, 0 and octal."""
    if text.isdecimal() and text.isascii() and text[0] != "0" and len(text) <= _LONGEST:
        return int(text)
    import re

    match = re.fullmatch(_NUMBER, text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    if match["hex"]:
        number = int(match["hex"], 16)
    else:
        number = int(match["octal"], 8) if match["octal"] else int(match["decimal"])
    return -number if match["sign"] == "-" else number


def human(size: int) -> str:
    """Return a size for people: three digits and a binary unit, as in ``1.32 MiB``."""
    units = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    index = 0
    # From 1000 on the next unit reads better: 0.977 KiB.
    while index + 1 < len(units) and size >= 1000 << (10 * index):
        index += 1
    return f"{size / (1 << 10 * index):.3g} {units[index]}B"
