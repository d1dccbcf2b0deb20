"""Migratable state as checked records.

Every device, node and job keeps what must survive a save in a small dataclass derived from :class:`State`.  `save()`
returns such a record and `load()` takes one.  A record may have come from a file or a network peer, so nothing in it is
believed: :meth:`State.from_dict` and :meth:`State.check` verify each field against the bounds declared beside it.

Host resources (file descriptors, threads, callbacks) never appear in a record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

Checker = Callable[[str, Any], Any]
"""Takes the field's path and the plain value; returns the value for the record or raises :class:`StateError`."""


class StateError(ValueError):
    """A state record does not describe a state that this machine can be in."""


def _field(default: Any, check: Checker) -> Any:
    metadata = {"check": check}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _check_int(low: int, high: int) -> Checker:
    def check(path: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise StateError(f"{path}: expected an integer, got {type(value).__name__}")
        if not low <= value <= high:
            raise StateError(f"{path}: {value} is outside {low}..{high}")
        return value

    return check


def _check_bool(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise StateError(f"{path}: expected a boolean, got {type(value).__name__}")
    return value


def _check_str(limit: int) -> Checker:
    def check(path: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise StateError(f"{path}: expected a string of at most {limit} characters")
        return value

    return check


def _check_blob(low: int, high: int) -> Checker:
    def check(path: str, value: Any) -> bytes:
        if not isinstance(value, (bytes, bytearray)) or not low <= len(value) <= high:
            raise StateError(f"{path}: expected {low}..{high} bytes")
        return bytes(value)

    return check


def _check_record(kind: type[State]) -> Checker:
    def check(path: str, value: Any) -> State:
        if isinstance(value, kind):
            value.check(path)
            return value
        return kind.from_dict(value, path)

    return check


def _check_list(item: Checker, low: int, high: int) -> Checker:
    def check(path: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise StateError(f"{path}: expected a list of {low}..{high} items")
        return [item(f"{path}[{index}]", element) for index, element in enumerate(value)]

    return check


def uint(bits: int, default: int = 0) -> Any:
    """A field holding an unsigned integer of `bits` bits."""
    return _field(default, _check_int(0, (1 << bits) - 1))


def integer(low: int, high: int, default: int = 0) -> Any:
    """A field holding an integer in `low`..`high`, both included."""
    return _field(default, _check_int(low, high))


def flag(default: bool = False) -> Any:
    """A field holding a boolean."""
    return _field(default, _check_bool)


def text(limit: int, default: str = "") -> Any:
    """A field holding a string of at most `limit` characters."""
    return _field(default, _check_str(limit))


def blob(limit: int, *, exact: bool = False) -> Any:
    """A field holding at most `limit` bytes, or just `limit` bytes, first zero, where `exact`."""
    if exact:
        return _field(bytes(limit), _check_blob(limit, limit))
    return _field(b"", _check_blob(0, limit))


def record(kind: type[State]) -> Any:
    """A field holding a record of class `kind`."""
    return _field(kind, _check_record(kind))


def optional(inner: Any) -> Any:
    """A field holding None, its default, or what the field `inner` holds."""
    check: Checker = inner.metadata["check"]
    return _field(None, lambda path, value: None if value is None else check(path, value))


def array(inner: Any, length: int) -> Any:
    """A field holding just `length` items as the field `inner` describes them."""
    check: Checker = inner.metadata["check"]

    def default() -> list[Any]:
        if inner.default_factory is not dataclasses.MISSING:
            return [inner.default_factory() for _ in range(length)]
        return [inner.default] * length

    return _field(default, _check_list(check, length, length))


def sequence(inner: Any, limit: int) -> Any:
    """A field holding up to `limit` items as the field `inner` describes them; empty by default."""
    return _field(list, _check_list(inner.metadata["check"], 0, limit))


@dataclass
class State:
    """Base of all state records; subclasses are dataclasses whose fields are made by this module's functions."""

    def check(self, path: str = "") -> None:
        """Verify every field against its declared bounds; raise :class:`StateError` naming the first that fails."""
        path = path or type(self).__name__
        for entry in dataclasses.fields(self):
            name = f"{path}.{entry.name}"
            setattr(self, entry.name, entry.metadata["check"](name, getattr(self, entry.name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts, lists, integers, strings, bytes, booleans and None."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Any, path: str = "") -> Self:
        """Build a checked record from plain values; absent fields keep their defaults, unknown ones are refused."""
        path = path or cls.__name__
        if not isinstance(values, dict):
            raise StateError(f"{path}: expected a record, got {type(values).__name__}")
        entries = {entry.name: entry for entry in dataclasses.fields(cls)}
        unknown = sorted(str(name) for name in values if name not in entries)
        if unknown:
            raise StateError(f"{path}: unknown field {unknown[0]!r}")
        checked = {name: entries[name].metadata["check"](f"{path}.{name}", value) for name, value in values.items()}
        return cls(**checked)

    def copy(self) -> Self:
        """Return an independent copy, nested records and lists included."""
        return type(self)(**{entry.name: _copied(getattr(self, entry.name)) for entry in dataclasses.fields(self)})


def _plain(value: Any) -> Any:
    if isinstance(value, State):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, State):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
