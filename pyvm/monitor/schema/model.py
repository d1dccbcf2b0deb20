"""What the schema says: its types, commands and events, parsed from the chapters' text when first asked for.

A chapter is split into definitions by one regular expression; a definition is parsed when somebody needs it.  So a
client that only asks for the run state never pays for the block layer's hundred types.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

BUILTINS = {
    "str": "string",
    "number": "number",
    "int": "int",
    "int8": "int",
    "int16": "int",
    "int32": "int",
    "int64": "int",
    "uint8": "int",
    "uint16": "int",
    "uint32": "int",
    "uint64": "int",
    "size": "int",
    "bool": "boolean",
    "null": "null",
    "any": "value",
}
"""Built-in types and the JSON type that introspection shows for each."""

CHAPTERS = (
    "sockets",
    "run-state",
    "block",
    "block-core",
    "block-jobs",
    "job",
    "dirty-bitmaps",
    "block-create",
    "transaction",
    "block-export",
    "char",
    "dump",
    "net",
    "rocker",
    "tpm",
    "display",
    "spice",
    "vnc",
    "migration",
    "ui",
    "display-update",
    "xen",
    "dirty-rate",
    "trace",
    "control",
    "introspect",
    "qom",
    "qdev",
    "machine",
    "machine-info",
    "machine-target",
    "replay",
    "yank",
    "misc",
    "misc-target",
    "acpi",
    "pci",
    "stats",
    "virtio",
)
"""Chapters in the order in which introspection lists what they define."""


class SchemaError(Exception):
    """The text of the schema is wrong: an error of pyvm, found by its tests."""


class Name:
    """An enum value, or the common part of whatever has a name: with features such as ``deprecated``."""

    __slots__ = ("features", "name")

    def __init__(self, name: str, features: tuple[str, ...] = ()) -> None:
        self.name = name
        self.features = features

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Member(Name):
    """A member of an object type, a branch of an alternate, or a variant of a union, named for its value of the tag."""

    __slots__ = ("_schema", "optional", "type_name")

    def __init__(self, name: str, schema: Schema, type_name: str, optional: bool, features: tuple[str, ...]) -> None:
        super().__init__(name, features)
        self._schema = schema
        self.type_name = type_name
        self.optional = optional

    @property
    def type(self) -> Type:
        """The member's type; looked up when asked for, as types may contain themselves."""
        return self._schema.type(self.type_name)


class Type(Name):
    """Base of all types."""

    __slots__ = ()

    @property
    def json_type(self) -> str:
        """The JSON type of the type's values, as an alternate tells its branches apart."""
        return "object"


class Builtin(Type):
    """A type that the notation knows by itself."""

    __slots__ = ()

    @property
    def json_type(self) -> str:
        """As the notation's table says."""
        return BUILTINS[self.name]


class EnumType(Type):
    """A string out of a list."""

    __slots__ = ("values",)

    def __init__(self, name: str, features: tuple[str, ...], values: Sequence[Name]) -> None:
        super().__init__(name, features)
        self.values = tuple(values)

    @property
    def json_type(self) -> str:
        """Enum values are strings."""
        return "string"


class ArrayType(Type):
    """A list of values of one type."""

    __slots__ = ("element",)

    def __init__(self, element: Type) -> None:
        super().__init__(f"[{element.name}]")
        self.element = element

    @property
    def json_type(self) -> str:
        """Lists are arrays."""
        return "array"


class ObjectType(Type):
    """A struct or a union; `name` is empty for arguments that are written out with their command or event."""

    __slots__ = ("members", "tag", "variants")

    def __init__(
        self,
        name: str,
        features: tuple[str, ...] = (),
        members: Sequence[Member] = (),
        tag: Member | None = None,
        variants: Sequence[Member] = (),
    ) -> None:
        super().__init__(name, features)
        self.members = tuple(members)
        """All members but those of the variants; a base's come first."""
        self.tag = tag
        self.variants = {variant.name: variant for variant in variants}
        """For a union, what each value of `tag` adds; a value that is not named adds nothing."""


class AlternateType(Type):
    """One of several types, told apart by the JSON type of the value."""

    __slots__ = ("branches",)

    def __init__(self, name: str, features: tuple[str, ...], branches: Sequence[Member]) -> None:
        super().__init__(name, features)
        self.branches = tuple(branches)


EMPTY = ObjectType("")
"""The object without members: what a command takes or returns where nothing else is said."""


class Command(Name):
    """A command: what it takes and returns, and when it may be used."""

    __slots__ = ("arguments", "boxed", "chapter", "oob", "plain", "preconfig", "raw", "returns")

    def __init__(
        self,
        name: str,
        features: tuple[str, ...],
        chapter: str,
        arguments: ObjectType,
        returns: Type,
        options: Iterable[str],
    ) -> None:
        super().__init__(name, features)
        self.chapter = chapter
        self.arguments = arguments
        self.returns = returns
        self.preconfig = "preconfig" in options
        self.oob = "oob" in options
        self.raw = "raw" in options
        self.plain = "plain" in options
        """The handler takes the arguments as they came, once they were checked."""
        self.boxed = bool(arguments.name)
        """The arguments are a type of their own, and the handler takes them as one record."""


class Event(Name):
    """An event and the type of its `data`."""

    __slots__ = ("arguments",)

    def __init__(self, name: str, features: tuple[str, ...], arguments: ObjectType) -> None:
        super().__init__(name, features)
        self.arguments = arguments


_DEFINITION = re.compile(r"^(enum|struct|union|alternate|command|event) +(\S+) *(.*)((?:\n(?:[ #].*)?)*)", re.MULTILINE)
_HEADER = re.compile(r"(?:: (?P<base>\S+))? *(?:by (?P<tag>\S+))? *(?:-> (?P<returns>\S+))? *(?P<words>.*)")
_MEMBER = re.compile(r"(?P<case>case )?(?P<name>[^\s?:]+)(?P<optional>\?)?: (?P<type>\S+)(?P<words>.*)")
_OPTIONS = frozenset({"preconfig", "oob", "raw", "plain"})


class _Definition:
    """One definition's text: the first line's rest, and the lines below it."""

    __slots__ = ("body", "chapter", "header", "kind", "name")

    def __init__(self, match: re.Match[str], chapter: str) -> None:
        self.kind, self.name, self.header, self.body = match.groups()
        self.chapter = chapter

    def lines(self) -> Iterator[str]:
        for line in self.body.split("\n"):
            content = line.partition("#")[0].strip()
            if content:
                yield content


class Schema:
    """The types, commands and events of some chapters."""

    def __init__(self, chapters: Iterable[tuple[str, str]], conditions: frozenset[str] = frozenset()) -> None:
        """`chapters` are pairs of name and text; definitions with a condition not in `conditions` are left out.

        Raises :class:`SchemaError` where a name is defined twice.
        """
        self._conditions = conditions
        self._definitions: dict[str, dict[str, _Definition]] = {"type": {}, "command": {}, "event": {}}
        self._types: dict[str, Type] = {name: Builtin(name) for name in BUILTINS}
        self._commands: dict[str, Command] = {}
        self._events: dict[str, Event] = {}
        self._entities: list[tuple[str, str]] = []
        for chapter, text in chapters:
            self._index(chapter, text)

    def _index(self, chapter: str, text: str) -> None:
        for match in _DEFINITION.finditer(text):
            definition = _Definition(match, chapter)
            if "if=" in definition.header and not self._present(definition.header.split()):
                continue
            index = self._definitions.get(definition.kind, self._definitions["type"])
            if definition.name in index:
                raise SchemaError(f"{definition.kind} {definition.name} is defined twice")
            index[definition.name] = definition
            if definition.kind in ("command", "event"):
                self._entities.append((definition.kind, definition.name))

    def _present(self, words: Iterable[str]) -> bool:
        return all(word[3:] in self._conditions for word in words if word.startswith("if="))

    @property
    def command_names(self) -> Iterable[str]:
        """The names of all commands, in the order of their definition."""
        return self._definitions["command"].keys()

    @property
    def event_names(self) -> Iterable[str]:
        """The names of all events, in the order of their definition."""
        return self._definitions["event"].keys()

    @property
    def type_names(self) -> Iterable[str]:
        """The names of all types but the built-in ones and arrays, in the order of their definition."""
        return self._definitions["type"].keys()

    def entities(self) -> list[tuple[str, str]]:
        """Return all commands and events as pairs of kind and name, in the order of their definition."""
        return list(self._entities)

    def type(self, name: str) -> Type:
        """Return a type by its name, `[name]` for an array; raise :class:`SchemaError` where there is none."""
        found = self._types.get(name)
        if found is None:
            if name.startswith("["):
                found = ArrayType(self.type(name[1:-1]))
            else:
                definition = self._definitions["type"].get(name)
                if definition is None:
                    raise SchemaError(f"type {name} is not defined")
                found = self._parse_type(definition)
            self._types[name] = found
        return found

    def command(self, name: str) -> Command | None:
        """Return a command by its name, or None where there is none."""
        command = self._commands.get(name)
        if command is None and (definition := self._definitions["command"].get(name)) is not None:
            header, options, features = self._header(definition)
            arguments = self._arguments(definition, header["base"])
            returns = self.type(header["returns"]) if header["returns"] else EMPTY
            command = Command(name, features, definition.chapter, arguments, returns, options)
            self._commands[name] = command
        return command

    def event(self, name: str) -> Event | None:
        """Return an event by its name, or None where there is none."""
        event = self._events.get(name)
        if event is None and (definition := self._definitions["event"].get(name)) is not None:
            header, _, features = self._header(definition)
            event = Event(name, features, self._arguments(definition, header["base"]))
            self._events[name] = event
        return event

    def _header(self, definition: _Definition) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
        match = _HEADER.fullmatch(definition.header)
        if match is None:
            raise SchemaError(f"{definition.name}: cannot understand {definition.header!r}")
        options, features = self._words(match["words"], definition.name)
        return match.groupdict(), options, features

    def _words(self, text: str, name: str) -> tuple[list[str], tuple[str, ...]]:
        """Split the words behind a name into options and features."""
        options, features = [], []
        for word in text.split():
            if word.startswith("!"):
                features.append(word[1:])
            elif word in _OPTIONS:
                options.append(word)
            elif not word.startswith("if="):
                raise SchemaError(f"{name}: cannot understand {word!r}")
        return options, tuple(features)

    def _arguments(self, definition: _Definition, base: str | None) -> ObjectType:
        members, _ = self._members(definition)
        if base:
            named = self.type(base)
            if not isinstance(named, ObjectType) or members:
                raise SchemaError(f"{definition.name}: {base} cannot be the arguments")
            return named
        return ObjectType("", (), members) if members else EMPTY

    def _parse_type(self, definition: _Definition) -> Type:
        header, _, features = self._header(definition)
        name = definition.name
        if definition.kind == "enum":
            return EnumType(name, features, list(self._enum_values(definition)))
        if definition.kind == "alternate":
            return AlternateType(name, features, self._members(definition)[0])
        members, variants = self._members(definition)
        if header["base"]:
            base = self.type(header["base"])
            if not isinstance(base, ObjectType) or base.tag is not None:
                raise SchemaError(f"{name}: {base.name} cannot be a base")
            members = [*base.members, *members]
        tag = next((member for member in members if member.name == header["tag"]), None)
        if (definition.kind == "union") != isinstance(tag and tag.type, EnumType) or bool(variants) > bool(tag):
            raise SchemaError(f"{name}: a union has an enum member to go by, and a struct has none")
        return ObjectType(name, features, members, tag, variants)

    def _enum_values(self, definition: _Definition) -> Iterator[Name]:
        for line in definition.lines():
            words = line.split()
            if any(word.startswith(("!", "if=")) for word in words):
                if self._present(words[1:]):
                    yield Name(words[0], self._words(" ".join(words[1:]), definition.name)[1])
            else:
                yield from map(Name, words)

    def _members(self, definition: _Definition) -> tuple[list[Member], list[Member]]:
        members: list[Member] = []
        variants: list[Member] = []
        for line in definition.lines():
            match = _MEMBER.fullmatch(line)
            if match is None:
                raise SchemaError(f"{definition.name}: cannot understand {line!r}")
            if not self._present(match["words"].split()):
                continue
            features = self._words(match["words"], definition.name)[1]
            member = Member(match["name"], self, match["type"], match["optional"] is not None, features)
            (variants if match["case"] else members).append(member)
        return members, variants


def host_conditions() -> frozenset[str]:
    """Return the conditions of the schema that hold on this host."""
    return frozenset({"linux"} if sys.platform.startswith("linux") else ())


@functools.cache
def load() -> Schema:
    """Return pyvm's schema."""
    texts = []
    for chapter in CHAPTERS:
        module = importlib.import_module(f"pyvm.monitor.schema.chapters.{chapter.replace('-', '_')}")
        texts.append((chapter, module.TEXT))
    return Schema(texts, host_conditions())
