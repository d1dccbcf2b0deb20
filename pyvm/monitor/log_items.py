"""What the log can be asked for: the items of `-d` and of the monitor's `log`, trace events among them.

The names are QEMU's.  Most of those are about its translator, which is not pyvm's; they are known, and refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CODE, INTERRUPTS, BLOCKS, REGISTERS, FPU = "in_asm", "int", "exec", "cpu", "fpu"
CPU_RESET = "cpu_reset"
GUEST_ERRORS = "guest_errors"
_ITEMS = {
    CODE: "show target assembly code for each compiled TB",
    INTERRUPTS: "show interrupts/exceptions in short format",
    BLOCKS: "show trace before each executed TB (lots of logs)",
    REGISTERS: "show CPU registers before entering a TB (lots of logs)",
    FPU: "include FPU registers in the 'cpu' logging",
    CPU_RESET: "show CPU state before CPU resets",
    GUEST_ERRORS: "log when the guest OS does something invalid (eg accessing memory that is not there)",
    "nochain": 'show all TBs with "exec" and "cpu", which they do anyway',
}
_TRACE = "trace:"
_MISSING = frozenset(
    "all out_asm op op_opt op_ind mmu pcall unimp page plugin strace tid"
    .split()
)  # fmt: skip
_WIDTH = 15
_RANGE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+)(\.\.|\+|-)(0x[0-9a-fA-F]+|[0-9]+)")
_LAST_ADDRESS = (1 << 64) - 1


class LogItems(NamedTuple):
    """What is to be logged: items by name, and patterns of trace events."""

    names: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()


class UnknownItemError(Exception):
    """There is no such item."""


class MissingItemError(Exception):
    """There is such an item in QEMU only; the message is one line for the person at the prompt."""


def parse(text: str) -> LogItems:
    """Return what a list of items asks for; raises UnknownItemError and MissingItemError."""
    names, patterns = set(), []
    for item in text.split(","):
        if item in _ITEMS:
            names.add(item)
        elif item.startswith(_TRACE) and item != _TRACE:
            patterns.append(item.removeprefix(_TRACE))
        elif item in _MISSING:
            known = ", ".join([*_ITEMS, f"{_TRACE}PATTERN"])
            raise MissingItemError(f"log item '{item}' is not supported by pyvm yet (only {known})")
        else:
            raise UnknownItemError(item)
    return LogItems(frozenset(names), tuple(patterns))


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Return first and last address of each range: `FIRST..LAST`, `FIRST+SIZE` or `LAST-SIZE`; raises ValueError."""
    ranges = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ValueError(part)
        one, how, other = int(found[1], 0), found[2], int(found[3], 0)
        if other > _LAST_ADDRESS or one > _LAST_ADDRESS or (how != ".." and not other):
            raise ValueError(part)
        first, last = {"..": (one, other), "+": (one, one + other - 1), "-": (one - other + 1, one)}[how]
        if not 0 <= first <= last <= _LAST_ADDRESS:
            raise ValueError(part)
        ranges.append((first, last))
    return ranges


def listing(command: str, *, with_none: bool = False) -> str:
    """Return the list of all items; `command` is what takes them, and may take `none` as well."""
    items = {**({"none": "remove all logs"} if with_none else {}), **_ITEMS, f"{_TRACE}PATTERN": "enable trace events"}
    lines = "".join(f"{name:<{_WIDTH}} {text}\n" for name, text in items.items())
    return f'Log items (comma separated):\n{lines}\nUse "{command} {_TRACE}help" to get a list of trace events.\n\n'
