"""Checks values from the wire against the schema, with QEMU's error texts, and makes typed records of them.

For each type a checker is compiled when it is first needed: a function that takes a value and where it stands, and
returns what the handler gets.  The place is a chain of names and list indexes that becomes text only in an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from pyvm.json.text import modified_utf8
from pyvm.monitor.errors import QmpError
from pyvm.monitor.schema.model import (
    AlternateType,
    ArrayType,
    Builtin,
    Command,
    EnumType,
    Event,
    Member,
    ObjectType,
    Schema,
    SchemaError,
    Type,
    load,
)
from pyvm.monitor.schema.record import Record, python_name, record_class
from pyvm.wire_order import wire_order

Place = tuple[Any, str | int] | None
"""Where a value stands: the place of the container and the name or index in it; None is the whole."""
Checker = Callable[[Any, Place], Any]
"""Returns the checked value; raises :class:`QmpError` where it is not of the type."""
_Fields = dict[str, Any]


def full_name(place: Place) -> str:
    """Return a place as text: ``keys[0].data``."""
    names: list[str] = []
    while place is not None:
        place, name = place
        names.append(f"[{name}]" if isinstance(name, int) else f".{name}")
    return "".join(reversed(names)).removeprefix(".")


def last_name(place: Place) -> str:
    """Return the last name of a place; a list's item has none, which QEMU shows as ``null``."""
    return place[1] if place is not None and isinstance(place[1], str) else "null"


def _wrong_type(place: Place, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{full_name(place)}', expected: {expected}")


def _unexpected(place: Place, name: str) -> QmpError:
    return QmpError(f"Parameter '{full_name((place, name))}' is unexpected")


def _check_str(value: Any, place: Place) -> str:
    if type(value) is not str:
        raise _wrong_type(place, "string")
    return value


def _check_bool(value: Any, place: Place) -> bool:
    if type(value) is not bool:
        raise _wrong_type(place, "boolean")
    return value


def _check_number(value: Any, place: Place) -> float:
    if type(value) is not float and type(value) is not int:
        raise _wrong_type(place, "number")
    return float(value)


def _check_null(value: Any, place: Place) -> None:
    if value is not None:
        raise _wrong_type(place, "null")


def _check_any(value: Any, place: Place) -> Any:
    return value


def _check_int(value: Any, place: Place) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise _wrong_type(place, "integer")
    return value


def _check_uint(value: Any, place: Place) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise QmpError(f"Parameter '{full_name(place)}' expects uint64")
    # Negative numbers wrap, as they did when there were no unsigned numbers on the wire.
    return value % (1 << 64)


def _check_range(name: str, bits: int, signed: bool) -> Checker:
    inner = _check_int if signed else _check_uint
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)

    def check(value: Any, place: Place) -> int:
        number: int = inner(value, place)
        if not low <= number < high:
            raise QmpError(f"Parameter '{last_name(place)}' expects {name}_t")
        return number

    return check


def _builtin_checker(name: str) -> Checker:
    plain: dict[str, Checker] = {
        "str": _check_str,
        "bool": _check_bool,
        "number": _check_number,
        "null": _check_null,
        "any": _check_any,
        "int": _check_int,
        "int64": _check_int,
        "uint64": _check_uint,
        "size": _check_uint,
    }
    if name in plain:
        return plain[name]
    return _check_range(name, int(name.removeprefix("u").removeprefix("int")), not name.startswith("u"))


def _enum_checker(kind: EnumType) -> Checker:
    values = frozenset(value.name for value in kind.values)

    def check(value: Any, place: Place) -> str:
        if type(value) is not str:
            raise _wrong_type(place, "string")
        if value not in values:
            raise QmpError(f"Parameter '{last_name(place)}' does not accept value '{value}'")
        return value

    return check


def _json_type(value: Any) -> str:
    return {
        str: "string",
        bool: "boolean",
        int: "int",
        float: "number",
        dict: "object",
        list: "array",
        type(None): "null",
    }[type(value)]


class Validator:
    """Checkers for the types of one schema, each compiled once."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._checkers: dict[str, Checker] = {}
        self._arguments: dict[str, Callable[[dict[str, Any]], _Fields]] = {}

    def checker(self, kind: Type) -> Checker:
        """Return the checker of a type that has a name."""
        found = self._checkers.get(kind.name)
        if found is None:

            def later(value: Any, place: Place) -> Any:
                return self._checkers[kind.name](value, place)

            # A type may contain itself: until its checker is there, users get one that looks it up.
            self._checkers[kind.name] = later
            found = self._checkers[kind.name] = self._compile(kind)
        return found

    def check(self, type_name: str, value: Any) -> Any:
        """Check a value against the type of that name; raise :class:`QmpError` where it is none."""
        return self.checker(self.schema.type(type_name))(value, None)

    def arguments(self, command: Command, values: dict[str, Any]) -> _Fields:
        """Check a command's arguments and return them as keyword arguments for its handler.

        Arguments that are a type of their own come as one record named `arguments`; a plain command's come as they
        are, a raw command's unchecked.
        Raises :class:`QmpError` for the first thing that is wrong.
        """
        compiled = self._arguments.get(command.name)
        if compiled is None:
            compiled = self._arguments[command.name] = self._compile_arguments(command)
        return compiled(values)

    def check_event(self, event: Event, values: Mapping[str, Any]) -> None:
        """Check an event's data; raise :class:`QmpError` where the schema does not have it so."""
        self._object_fields(event.arguments)(dict(values), None)

    def _compile_arguments(self, command: Command) -> Callable[[dict[str, Any]], _Fields]:
        if command.raw:
            return lambda values: {"arguments": values}
        if command.plain:
            return self._compile_plain(command)
        if command.boxed:
            check = self.checker(command.arguments)
            return lambda values: {"arguments": check(values, None)}
        if not command.arguments.members:
            return _no_arguments
        fields = self._object_fields(command.arguments)
        return lambda values: fields(values, None)[1]

    def _compile_plain(self, command: Command) -> Callable[[dict[str, Any]], _Fields]:
        check = self.checker(command.arguments)

        def checked(values: dict[str, Any]) -> _Fields:
            check(values, None)
            return {"arguments": values}

        return checked

    def _compile(self, kind: Type) -> Checker:
        if isinstance(kind, Builtin):
            return _builtin_checker(kind.name)
        if isinstance(kind, EnumType):
            return _enum_checker(kind)
        if isinstance(kind, ArrayType):
            return self._array_checker(kind)
        if isinstance(kind, AlternateType):
            return self._alternate_checker(kind)
        if isinstance(kind, ObjectType):
            return self._object_checker(kind)
        raise SchemaError(f"type {kind.name} cannot be checked")

    def _array_checker(self, kind: ArrayType) -> Checker:
        element = self.checker(kind.element)

        def check(value: Any, place: Place) -> list[Any]:
            if type(value) is not list:
                raise _wrong_type(place, "array")
            return [element(item, (place, index)) for index, item in enumerate(value)]

        return check

    def _alternate_checker(self, kind: AlternateType) -> Checker:
        branches = {branch.type.json_type: self.checker(branch.type) for branch in kind.branches}
        if "number" in branches:
            branches.setdefault("int", branches["number"])

        def check(value: Any, place: Place) -> Any:
            branch = branches.get(_json_type(value))
            if branch is None:
                raise QmpError(f"Invalid parameter type for '{last_name(place)}', expected: {kind.name}")
            return branch(value, place)

        return check

    def _object_checker(self, kind: ObjectType) -> Checker:
        fields = self._object_fields(kind)

        def check(value: Any, place: Place) -> Record:
            if type(value) is not dict:
                raise _wrong_type(place, "object")
            made, members = fields(value, place)
            record = made()
            for name, member in members.items():
                setattr(record, name, member)
            return record

        return check

    def _object_fields(self, kind: ObjectType) -> Callable[[dict[str, Any], Place], tuple[type[Record], _Fields]]:
        """Return a function that checks an object's members and returns the record's class and its attributes."""
        common = self._member_checkers(kind.members)
        tag = kind.tag.name if kind.tag is not None else None
        plain = record_class(kind.name, tuple(python_name(member.name) for member in kind.members))
        classes: dict[str, tuple[type[Record], list[_MemberChecker]]] = {}
        no_more: list[_MemberChecker] = []

        def variant(case: str) -> tuple[type[Record], list[_MemberChecker]]:
            """Return the class for one variant, and the checkers of the members that it adds."""
            added = kind.variants[case].type if case in kind.variants else None
            if added is None:
                return plain, []
            if not isinstance(added, ObjectType) or added.tag is not None:
                raise SchemaError(f"{kind.name}: variant {added.name} is no struct")
            names = [python_name(member.name) for member in (*kind.members, *added.members)]
            return record_class(f"{kind.name}_{case}", tuple(names)), self._member_checkers(added.members)

        def check(values: dict[str, Any], place: Place) -> tuple[type[Record], _Fields]:
            result: _Fields = {}
            seen = _check_members(common, values, place, result)
            made, added = plain, no_more
            if tag is not None:
                case: str = values[tag]
                if case not in classes:
                    classes[case] = variant(case)
                made, added = classes[case]
                seen += _check_members(added, values, place, result)
            if seen != len(values):
                raise _unexpected(place, _first_unexpected(values, {member[0] for member in (*common, *added)}))
            return made, result

        return check

    def _member_checkers(self, members: tuple[Member, ...]) -> list[_MemberChecker]:
        return [
            (member.name, python_name(member.name), member.optional, self.checker(member.type)) for member in members
        ]


@functools.cache
def validator() -> Validator:
    """Return the checkers of pyvm's schema."""
    return Validator(load())


_MemberChecker = tuple[str, str, bool, Checker]
_MISSING = object()


def _no_arguments(values: dict[str, Any]) -> _Fields:
    if values:
        raise _unexpected(None, _first_unexpected(values, set()))
    return {}


def _check_members(members: list[_MemberChecker], values: dict[str, Any], place: Place, result: _Fields) -> int:
    """Check these members of `values` into `result`; return how many were there."""
    seen = 0
    for name, attribute, optional, check in members:
        value = values.get(name, _MISSING)
        if value is not _MISSING:
            result[attribute] = check(value, (place, name))
            seen += 1
        elif optional:
            result[attribute] = None
        else:
            raise QmpError(f"Parameter '{full_name((place, name))}' is missing")
    return seen


def _first_unexpected(values: dict[str, Any], known: set[str]) -> str:
    """Return which of the members that are not known QEMU would complain of.

    It copies the members into a hash table of GLib and takes the first that is left over.  A table of up to seven
    members has eight slots and is walked in their order; larger ones are not imitated.
    """
    names = wire_order(values)
    if len(names) < _SLOTS:
        slots: list[str | None] = [None] * _SLOTS
        for name in names:
            index, step = _slot(name), 0
            while slots[index] is not None:
                step += 1
                index = (index + step) % _SLOTS
            slots[index] = name
        names = [name for name in slots if name is not None]
    return next(name for name in names if name not in known)


_SLOTS = 8


def _slot(name: str) -> int:
    """Return the slot in which a member is looked for first."""
    value = 5381
    for byte in modified_utf8(name):
        value = value * 33 + (byte if byte < 128 else byte - 256)
    return (max(value % (1 << 32), 2) * 11) % (1 << 32) % 7
