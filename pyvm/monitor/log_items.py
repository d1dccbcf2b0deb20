"""What the log can be asked for: the items of `-d` and of the monitor's `log`, trace events among them.

The names are QEMU's.  Most of those are about its translator, which is not pyvm's; they are known, and refused.
"""

from __future__ import annotations

from typing import NamedTuple

CPU_RESET = "cpu_reset"
GUEST_ERRORS = "guest_errors"
_ITEMS = {
    CPU_RESET: "show CPU state before CPU resets",
    GUEST_ERRORS: "log when the guest OS does something invalid (eg accessing memory that is not there)",
}
_TRACE = "trace:"
_MISSING = frozenset(
    "all out_asm in_asm op op_opt op_ind int exec cpu fpu mmu pcall unimp page nochain plugin strace tid"
    .split()
)  # fmt: skip
_WIDTH = 15


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


def listing(command: str, *, with_none: bool = False) -> str:
    """Return the list of all items; `command` is what takes them, and may take `none` as well."""
    items = {**({"none": "remove all logs"} if with_none else {}), **_ITEMS, f"{_TRACE}PATTERN": "enable trace events"}
    lines = "".join(f"{name:<{_WIDTH}} {text}\n" for name, text in items.items())
    return f'Log items (comma separated):\n{lines}\nUse "{command} {_TRACE}help" to get a list of trace events.\n\n'
