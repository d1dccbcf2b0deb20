"""``pyvm-img map``: where an image and what is below it has its data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice
from pyvm.tools.img.sizes import parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node

_LONG = {
    **IMAGE_LONG,
    "format": "f",
    "output": "output=",
    "force-share": "U",
    "start-offset": "s",
    "max-length": "l",
}


@dataclass(frozen=True)
class _Entry:
    """A run of bytes that the chain has in one way."""

    start: int
    length: int
    data: bool
    zero: bool
    depth: int
    present: bool
    offset: int | None
    filename: str | None

    def followed_by(self, other: _Entry) -> bool:
        """Whether the two are one run."""
        same = (self.data, self.zero, self.depth, self.present, self.filename)
        if same != (other.data, other.zero, other.depth, other.present, other.filename):
            return False
        if self.offset is None or other.offset is None:
            return self.offset is other.offset
        return self.offset + self.length == other.offset


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:s:l:U", _LONG)
    start = parse_size("start offset", arguments.get("s") or "0")
    length = arguments.get("l")
    most = parse_size("max length", length) if length is not None else None
    as_json = arguments.json()
    filename = arguments.operand()
    arguments.add_objects()
    node = ImageChoice.of(arguments).open(filename)
    try:
        end = node.size if most is None else min(start + most, node.size)
        if as_json:
            _print_json(_merged(_entries(node, start, end)), start)
        else:
            _print_human(_merged(_entries(node, start, end)))
    finally:
        node.release()
    return 0


def _entries(node: Node, start: int, end: int) -> Iterator[_Entry]:
    from pyvm.block.status import chain_status

    while start < end:
        try:
            extent = chain_status(node, start, end - start)
        except OSError as error:
            raise ImgError(f"Failed to read image metadata: {error.strerror}") from None
        name = extent.node.filename if extent.offset is not None and extent.node is not None else None
        yield _Entry(start, extent.length, extent.data, extent.zero, extent.depth, extent.present, extent.offset, name)
        start += extent.length


def _merged(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    current: _Entry | None = None
    for entry in entries:
        if current is not None and current.followed_by(entry):
            current = replace(current, length=current.length + entry.length)
            continue
        if current is not None:
            yield current
        current = entry
    if current is not None:
        yield current


def _print_human(entries: Iterator[_Entry]) -> None:
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for it in entries:
        if not it.data or it.zero:
            continue
        if it.offset is None:
            raise ImgError("File contains external, encrypted or compressed clusters.")
        print(f"{_hexadecimal(it.start):<16}{_hexadecimal(it.length):<16}{_hexadecimal(it.offset):<16}{it.filename}")


def _hexadecimal(number: int) -> str:
    return hex(number) if number else "0"


def _print_json(entries: Iterator[_Entry], start: int) -> None:
    separator = "["
    nothing = _Entry(start, 0, False, False, 0, False, None, None)
    for it in chain((next(entries, nothing),), entries):
        place = f', "offset": {it.offset}' if it.offset is not None else ""
        sys.stdout.write(
            f'{separator}{{ "start": {it.start}, "length": {it.length}, "depth": {it.depth},'
            f' "present": {_boolean(it.present)}, "zero": {_boolean(it.zero)}, "data": {_boolean(it.data)}{place}}}'
        )
        separator = ",\n"
    sys.stdout.write("]\n")


def _boolean(value: bool) -> str:
    return "true" if value else "false"
