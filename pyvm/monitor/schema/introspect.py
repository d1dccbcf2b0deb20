"""The schema as `query-qmp-schema` shows it: names of types hidden behind numbers, integers of any width as ``int``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvm.monitor.schema.model import (
    EMPTY,
    AlternateType,
    ArrayType,
    Builtin,
    EnumType,
    Member,
    Name,
    ObjectType,
    Schema,
    Type,
)

Info = dict[str, Any]


def introspect(schema: Schema) -> list[Info]:
    """Return the SchemaInfo of all commands and events, and of the types that they lead to."""
    return _Introspection(schema).run()


def _info(name: str, meta_type: str, features: Iterable[str], **rest: Any) -> Info:
    info = {"name": name, "meta-type": meta_type, **rest}
    listed = list(features)
    return {**info, "features": listed} if listed else info


def _named(name: Name) -> Info:
    return {"name": name.name, "features": list(name.features)} if name.features else {"name": name.name}


class _Introspection:
    """One walk over the schema; a type gets its number when it is first referred to."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._numbers: dict[int, str] = {}
        self._listed: set[int] = set()
        self._used: list[Type] = []

    def run(self) -> list[Info]:
        """Return everything, commands and events by chapter first, types in the order of their first use."""
        infos = [self._entity(kind, name) for kind, name in self._schema.entities()]
        infos.extend(map(self._type, self._used))  # the list grows while it is walked
        return infos

    def _entity(self, kind: str, name: str) -> Info:
        if kind == "event":
            event = self._schema.event(name)
            assert event is not None
            return _info(name, kind, event.features, **{"arg-type": self._use(event.arguments)})
        command = self._schema.command(name)
        assert command is not None
        types = {"arg-type": self._use(command.arguments), "ret-type": self._use(command.returns)}
        return _info(name, kind, command.features, **types, **({"allow-oob": True} if command.oob else {}))

    def _use(self, kind: Type) -> str:
        """Return the name under which a type appears, and see that it does."""
        if kind.json_type == "int":
            kind = self._schema.type("int")
        elif isinstance(kind, ArrayType) and kind.element.json_type == "int":
            kind = self._schema.type("[int]")
        if id(kind) not in self._listed:
            self._listed.add(id(kind))
            self._used.append(kind)
        if isinstance(kind, Builtin):
            return kind.name
        if isinstance(kind, ArrayType):
            return f"[{self._use(kind.element)}]"
        return self._numbers.setdefault(id(kind), str(len(self._numbers)))

    def _type(self, kind: Type) -> Info:
        name = self._use(kind)
        if isinstance(kind, Builtin):
            return _info(name, "builtin", (), **{"json-type": kind.json_type})
        if isinstance(kind, ArrayType):
            return _info(name, "array", (), **{"element-type": self._use(kind.element)})
        if isinstance(kind, EnumType):
            values = [value.name for value in kind.values]
            return _info(name, "enum", kind.features, members=[_named(value) for value in kind.values], values=values)
        if isinstance(kind, AlternateType):
            branches = [{"type": self._use(branch.type)} for branch in kind.branches]
            return _info(name, "alternate", kind.features, members=branches)
        assert isinstance(kind, ObjectType)
        return _info(name, "object", kind.features, **self._members(kind))

    def _members(self, kind: ObjectType) -> Info:
        members: Info = {"members": [self._member(member) for member in kind.members]}
        if kind.tag is not None:
            assert isinstance(kind.tag.type, EnumType)
            # Variants that add something first, then all other values of the tag.
            others = [value.name for value in kind.tag.type.values if value.name not in kind.variants]
            members["tag"] = kind.tag.name
            members["variants"] = [
                {"case": case, "type": self._use(variant.type)} for case, variant in kind.variants.items()
            ] + [{"case": case, "type": self._use(EMPTY)} for case in others]
        return members

    def _member(self, member: Member) -> Info:
        info = _named(member)
        info["type"] = self._use(member.type)
        if member.optional:
            info["default"] = None
        return info
