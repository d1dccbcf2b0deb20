"""The writer of QEMU's JSON dialect.

Objects come out in the order of QEMU's hash table, as there are clients and test suites that compare text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from pyvm.json.text import LONG, quote
from pyvm.wire_order import wire_order

_LEAVES = {True: "true", False: "false", None: "null"}
_CACHED_SHAPES = 1024


class _Writer:
    """Writes values; remembers the member order and the punctuation of objects by their keys."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def write(self, value: Any, pretty: bool) -> str:
        """Return `value` as JSON text; walks without recursion, as an echoed `id` may be nested deeply."""
        parts: list[str] = []
        append = parts.append
        pending: list[tuple[Iterator[tuple[str, Any]], str]] = []
        items: Iterator[tuple[str, Any]] = iter((("", value),))
        closing = ""
        while True:
            for prefix, item in items:
                append(prefix)
                kind = type(item)
                if kind is str:
                    append(quote(item))
                elif kind is bool or item is None:
                    append(_LEAVES[item])
                elif kind is int:
                    append(str(item))
                elif kind is dict or kind is list:
                    pending.append((items, closing))
                    items, closing = self._enter(item, len(pending) if pretty else 0)
                    break
                else:
                    append(_other(item))
            else:
                append(closing)
                if not pending:
                    return "".join(parts)
                items, closing = pending.pop()

    def _enter(self, item: Any, depth: int) -> tuple[Iterator[tuple[str, Any]], str]:
        """Return the members of a container with what goes before each, and what closes it; `depth` 0: compact."""
        opening, closing = "{}" if type(item) is dict else "[]"
        separator = ", "
        if depth:
            line = "\n" + "    " * depth
            opening, separator, closing = opening + line, "," + line, line[:-4] + closing
        if not item:
            return iter(()), opening[0] + closing
        if type(item) is list:
            return zip(chain((opening,), repeat(separator)), item, strict=False), closing
        if depth:
            keys = wire_order(item)
            prefixes = [f"{separator if index else opening}{quote(key)}: " for index, key in enumerate(keys)]
            return zip(prefixes, [item[key] for key in keys], strict=True), closing
        ordered, cached = self._shape(tuple(item))
        return zip(cached, [item[key] for key in ordered], strict=True), closing

    def _shape(self, keys: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        shape = self._shapes.get(keys)
        if shape is None:
            ordered = wire_order(keys)
            prefixes = [f"{', ' if index else '{'}{quote(key)}: " for index, key in enumerate(ordered)]
            shape = tuple(ordered), tuple(prefixes)
            if len(keys) <= 16:
                if len(self._shapes) >= _CACHED_SHAPES:
                    self._shapes.clear()
                self._shapes[keys] = shape
        return shape


def _other(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.17g}"
    if isinstance(item, str):
        return quote(str.__str__(item))
    if isinstance(item, int):
        return str(int(item))
    raise TypeError(f"a {type(item).__name__} has no JSON form")


_writer = _Writer()
_PIECE = 4096
"""Characters of a long string that are written at once."""


def _mark(number: int) -> str:
    return f"\ue000 long string {number} \ue000"


def encode_pieces(reply: dict[str, Any], pretty: bool = False) -> Iterator[bytes] | None:
    """Return a reply as :func:`encode` has it, in pieces, where a long string is in it; else None.

    Strings are looked for where clients can have them put: as `id`, as what is returned, and in the text of an error.
    """
    texts: list[str] = []

    def marked(value: Any) -> Any:
        if not isinstance(value, str) or len(value) <= LONG:
            return value
        texts.append(value)
        return _mark(len(texts) - 1)

    short = {name: marked(value) for name, value in reply.items()}
    if "error" in reply:
        short["error"] = {name: marked(value) for name, value in reply["error"].items()}
    return _pieces(encode(short, pretty), texts) if texts else None


def _pieces(frame: bytes, texts: list[str]) -> Iterator[bytes]:
    marks = [quote(_mark(number))[1:-1].encode("ascii") for number in range(len(texts))]
    for number in sorted(range(len(texts)), key=lambda number: frame.find(marks[number])):
        before, _, frame = frame.partition(marks[number])
        yield before
        text = texts[number]
        for start in range(0, len(text), _PIECE):
            yield quote(text[start : start + _PIECE])[1:-1].encode("ascii")
    yield frame


def encode(value: Any, pretty: bool = False) -> bytes:
    """Return `value` as one line as QEMU writes it, or on several lines where `pretty`; CR LF ends each."""
    text = _writer.write(value, pretty)
    if pretty:
        text = text.replace("\n", "\r\n")
    return (text + "\r\n").encode("ascii")
