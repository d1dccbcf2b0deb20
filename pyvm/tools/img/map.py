"""``pyvm-img map``: where an image and what is below it has its data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from pyvm.block.status import ChainExtent, chain_status
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


class _Entry(NamedTuple):
    """A run of bytes that the chain has in one way."""

    start: int
    extent: ChainExtent
    filename: str | None

    def followed_by(self, other: _Entry) -> bool:
        """Whether the two are one run."""
        mine, its = self.extent, other.extent
        same = (mine.data, mine.zero, mine.depth, mine.present, self.filename)
        if same != (its.data, its.zero, its.depth, its.present, other.filename):
            return False
        if mine.offset is None or its.offset is None:
            return mine.offset is its.offset
        return mine.offset + mine.length == its.offset

    def longer(self, length: int) -> _Entry:
        """Return the run with `length` bytes more."""
        return self._replace(extent=self.extent._replace(length=self.extent.length + length))


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
    while start < end:
        try:
            extent = chain_status(node, start, end - start, ask_filters=False)
        except OSError as error:
            raise ImgError(f"Failed to read image metadata: {error.strerror}") from None
        if extent.layer is not None and extent.layer.size <= start:
            # What is behind the end of a shorter backing file is nowhere, and the layer above knows that.
            extent = extent._replace(depth=extent.depth - 1, present=False)
        name = extent.node.filename if extent.offset is not None and extent.node is not None else None
        yield _Entry(start, extent, name)
        start += extent.length


def _merged(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    current: _Entry | None = None
    for entry in entries:
        if current is not None and current.followed_by(entry):
            current = current.longer(entry.extent.length)
            continue
        if current is not None:
            yield current
        current = entry
    if current is not None:
        yield current


def _print_human(entries: Iterator[_Entry]) -> None:
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for start, extent, filename in entries:
        if not extent.data or extent.zero:
            continue
        if extent.offset is None:
            raise ImgError("File contains external, encrypted or compressed clusters.")
        columns = (f"{_hexadecimal(number):<16}" for number in (start, extent.length, extent.offset))
        print(f"{''.join(columns)}{filename}")


def _hexadecimal(number: int) -> str:
    return hex(number) if number else "0"


def _print_json(entries: Iterator[_Entry], start: int) -> None:
    separator = "["
    nothing = _Entry(start, ChainExtent(0, False, False, 0, False, None, None, None), None)
    for at, extent, _ in chain((next(entries, nothing),), entries):
        place = f', "offset": {extent.offset}' if extent.offset is not None else ""
        sys.stdout.write(
            f'{separator}{{ "start": {at}, "length": {extent.length}, "depth": {extent.depth},'
            f' "present": {_boolean(extent.present)}, "zero": {_boolean(extent.zero)},'
            f' "data": {_boolean(extent.data)}{place}}}'
        )
        separator = ",\n"
    sys.stdout.write("]\n")


def _boolean(value: bool) -> str:
    return "true" if value else "false"
