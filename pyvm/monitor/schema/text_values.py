"""Values that were typed as text, such as those of ``-object``, made into what they are by the schema."""

from __future__ import annotations

from typing import Any

from pyvm.errors import ConfigError
from pyvm.monitor.schema.model import ArrayType, Member, ObjectType, Type
from pyvm.options import parse_boolean, parse_size

_MOST_NUMBERS = 65536


def typed_members(kind: ObjectType, values: dict[str, Any]) -> dict[str, Any]:
    """Return the members of an object with their values typed; names that it does not have stay text.

    Raises ConfigError for text that cannot be a value of the member's type.
    """
    members = {member.name: member for member in _members(kind, values)}
    return {
        name: _typed(members[name].type, name, value) if name in members else value for name, value in values.items()
    }


def _members(kind: ObjectType, values: dict[str, Any]) -> list[Member]:
    variant = kind.variants.get(str(values.get(kind.tag.name))) if kind.tag is not None else None
    added = [] if variant is None else list(_object(variant.type).members)
    return [*kind.members, *added]


def _object(kind: Type) -> ObjectType:
    assert isinstance(kind, ObjectType), kind
    return kind


def _typed(kind: Type, name: str, value: Any) -> Any:
    if isinstance(kind, ObjectType):
        return typed_members(kind, value) if isinstance(value, dict) else value
    if isinstance(kind, ArrayType):
        if kind.element.json_type == "int":
            return _numbers(name, value if isinstance(value, list) else [value])
        return [_typed(kind.element, name, item) for item in value] if isinstance(value, list) else value
    if not isinstance(value, str):
        return value
    if kind.json_type == "boolean":
        return parse_boolean(name, value)
    if kind.name == "size":
        return _size(name, value)
    if kind.json_type == "int":
        return _number(name, value, signed=not kind.name.startswith("u"))
    return value


def _size(name: str, text: str) -> int:
    try:
        return parse_size(name, text)
    except ConfigError:
        raise ConfigError(f"Parameter '{name}' expects a size value") from None


def _number(name: str, text: str, *, signed: bool) -> int:
    """Return a number in decimal, or in hexadecimal after ``0x``, or in octal after ``0``."""
    body = text[1:] if text[:1] in ("-", "+") else text
    base = 16 if body[:2].lower() == "0x" else 8 if body[:1] == "0" and body != "0" else 10
    digits = body[2:] if base == 16 else body
    error = ConfigError(f"Parameter '{name}' expects {'an int64' if signed else 'a uint64'} value")
    if not digits.isascii() or not digits.isalnum() or len(digits) > 64:
        raise error
    try:
        number = int(digits, base) * (-1 if text.startswith("-") else 1)
    except ValueError:
        raise error from None
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
    if not low <= number <= high:
        raise error
    return number


def _numbers(name: str, items: list[Any]) -> list[int]:
    """Return numbers given one by one or as ranges such as ``0-3``."""
    numbers: list[int] = []
    for item in items:
        first, dash, last = str(item).partition("-")
        error = ConfigError(f"Parameter '{name}' expects a uint64 value or range")
        try:
            low = _number(name, first, signed=False)
            high = _number(name, last, signed=False) if dash else low
        except ConfigError:
            raise error from None
        if high < low or high - low >= _MOST_NUMBERS:
            raise error
        numbers.extend(range(low, high + 1))
    return numbers
