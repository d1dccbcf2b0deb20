"""How answers are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pyvm.printable import printable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP = 1024


def show_json(answer: Any) -> None:
    """Write an answer as JSON."""
    sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")


def show_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write lines with columns; numbers stand at the right."""
    lines = [[text(cell) for cell in row] for row in rows]
    numbers = [bool(lines) and all(_is_number(line[i]) for line in lines) for i in range(len(heading))]
    widths = [max(len(line[i]) for line in [list(heading), *lines]) for i in range(len(heading))]
    for line in [list(heading), *lines]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numbers, strict=True)
        )
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def show_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Write names and values, those that are there."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        sys.stdout.write(f"{name.ljust(width)}  {text(value)}\n")


def text(value: object) -> str:
    """Return a value as a person would write it; what would move the cursor is left out."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def size(count: int | None) -> str:
    """Return a number of bytes with a unit."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in _UNITS:
        if abs(amount) < _STEP or unit == _UNITS[-1]:
            break
        amount /= _STEP
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()
