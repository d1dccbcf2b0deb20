"""Migratable state as checked records.

Every device, node and job keeps what must survive a save in a small record derived from :class:`State`.  `save()`
returns such a record and `load()` takes one.  A record may have come from a file or a network peer, so nothing in it is
believed: :meth:`State.from_dict` and :meth:`State.check` verify each field against the bounds declared beside it.

Host resources (file descriptors, threads, callbacks) never appear in a record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, dataclass_transform

Checker = Callable[[str, Any], Any]
"""Takes the field's path and the plain value; returns the value for the record or raises :class:`StateError`."""


class StateError(ValueError):
    """A state record does not describe a state that this machine can be in."""


class _Field:
    """What a record knows of one of its fields.  `default` makes the default where it is callable."""

    __slots__ = ("_default", "check")

    def __init__(self, default: Any, check: Checker) -> None:
        self._default = default
        self.check = check

    def default(self) -> Any:
        return self._default() if callable(self._default) else self._default


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
        try:
            return [item(path, element) for element in value]
        except StateError:
            # Which one is wrong is a matter for the message only.
            return [item(f"{path}[{index}]", element) for index, element in enumerate(value)]

    return check


def uint(bits: int, default: int = 0) -> Any:
    """A field holding an unsigned integer of `bits` bits."""
    return _Field(default, _check_int(0, (1 << bits) - 1))


def integer(low: int, high: int, default: int = 0) -> Any:
    """A field holding an integer in `low`..`high`, both included."""
    return _Field(default, _check_int(low, high))


def flag(default: bool = False) -> Any:
    """A field holding a boolean."""
    return _Field(default, _check_bool)


def text(limit: int, default: str = "") -> Any:
    """A field holding a string of at most `limit` characters."""
    return _Field(default, _check_str(limit))


def blob(limit: int, *, exact: bool = False) -> Any:
    """A field holding at most `limit` bytes, or just `limit` bytes, first zero, where `exact`."""
    if exact:
        return _Field(bytes(limit), _check_blob(limit, limit))
    return _Field(b"", _check_blob(0, limit))


def record(kind: type[State]) -> Any:
    """A field holding a record of class `kind`."""
    return _Field(kind, _check_record(kind))


def optional(inner: Any) -> Any:
    """A field holding None, its default, or what the field `inner` holds."""
    check: Checker = inner.check
    return _Field(None, lambda path, value: None if value is None else check(path, value))


def optional_record(find: Callable[[], type[State]]) -> Any:
    """A field holding None, its default, or a record of the class that `find` returns, not called before there is one.

    So what few machines have need not be imported for the others.
    """
    return _Field(None, lambda path, value: None if value is None else _check_record(find())(path, value))


def array(inner: Any, length: int) -> Any:
    """A field holding just `length` items as the field `inner` describes them."""
    first: Any = inner.default()
    default = (lambda: [first] * length) if isinstance(first, int) else lambda: [inner.default() for _ in range(length)]
    return _Field(default, _check_list(inner.check, length, length))


def sequence(inner: Any, limit: int) -> Any:
    """A field holding up to `limit` items as the field `inner` describes them; empty by default."""
    return _Field(list, _check_list(inner.check, 0, limit))


@dataclass_transform()
class State:
    """Base of all state records; the fields of a subclass are made by this module's functions.

    Records compare by value and need no decorator: there are many of them, and generating
    code for each, as dataclasses do, was a third of the time that pyvm took to start.
    """

    _fields: ClassVar[dict[str, _Field]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, _Field)}
        for name in own:
            delattr(cls, name)
        cls._fields = {**cls._fields, **own}

    def __init__(self, *positional: Any, **named: Any) -> None:
        if len(positional) > len(self._fields) or not named.keys() <= self._fields.keys():
            raise TypeError(f"{type(self).__name__} has no such fields")
        values = dict(zip(self._fields, positional, strict=False)) | named
        for name, field in self._fields.items():
            setattr(self, name, values[name] if name in values else field.default())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # records change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def check(self, path: str = "") -> None:
        """Verify every field against its declared bounds; raise :class:`StateError` naming the first that fails."""
        path = path or type(self).__name__
        for name, field in self._fields.items():
            setattr(self, name, field.check(f"{path}.{name}", getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts, lists, integers, strings, bytes, booleans and None."""
        return {name: _plain(getattr(self, name)) for name in self._fields}

    @classmethod
    def from_dict(cls, values: Any, path: str = "") -> Self:
        """Build a checked record from plain values; absent fields keep their defaults, unknown ones are refused."""
        path = path or cls.__name__
        if not isinstance(values, dict):
            raise StateError(f"{path}: expected a record, got {type(values).__name__}")
        fields = cls._fields
        unknown = sorted(str(name) for name in values if name not in fields)
        if unknown:
            raise StateError(f"{path}: unknown field {unknown[0]!r}")
        return cls(**{name: fields[name].check(f"{path}.{name}", value) for name, value in values.items()})

    def copy(self) -> Self:
        """Return an independent copy, nested records and lists included."""
        return type(self)(**{name: _copied(getattr(self, name)) for name in self._fields})


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
