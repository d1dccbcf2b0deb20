"""Object types: their parents, the interfaces that they implement, and their properties.

The types stand as text in :mod:`pyvm.qom.type_text` and its neighbours, and are parsed when somebody first asks.  Which
machine and CPU types there are follows from what ``-machine`` and ``-cpu`` take.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MACHINE_SUFFIX = "-machine"
CPU_SUFFIX = "-x86_64-cpu"
_MACHINE_MODEL = "pc-i440fx-machine"
_CPU_MODEL = "model-x86_64-cpu"
SYSTEM_MEMORY = "/machine/unattached/system[0]"
"""The path of all that a vCPU sees as memory."""
UNSET: Any = object()
"""The default of a property that has none."""

_HEADER = re.compile(r"(?P<name>\S+)(?: : (?P<parent>\S+))?(?P<marks>(?: [+~]\S+)*)(?P<abstract> abstract)?")
_PROPERTY = re.compile(r"(?P<names>.+?) : (?P<kind>[^=|]+?)(?: =(?P<default>[^|]+?))?(?: \| (?P<description>.+))?")
_LEGACY = "legacy-"
"""What the names of old views of properties begin with: text for what once was read and written as text."""
_NO_VIEW = ("link<bus>", "link<hotplug-handler>", "link<irq>")
_HIDDEN = frozenset({"type", "realized", "hotpluggable", "hotplugged", "parent_bus"})


class PropertyInfo:
    """A property of a type: its kind as clients see it, its default or :data:`UNSET`, and what it is about."""

    __slots__ = ("default", "description", "kind", "name")

    def __init__(self, name: str, kind: str, default: Any = UNSET, description: str | None = None) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.description = description

    def as_info(self, *, with_default: bool = False) -> dict[str, Any]:
        """Return an ObjectPropertyInfo."""
        info: dict[str, Any] = {"name": self.name, "type": self.kind}
        if self.description is not None:
            info["description"] = self.description
        if with_default and self.default is not UNSET:
            info["default-value"] = self.default
        return info


class ObjectType:
    """A type; `proxied` is another type whose properties its objects have, too, because they hold such an object."""

    __slots__ = ("abstract", "interfaces", "name", "own", "parent", "proxied")

    def __init__(
        self,
        name: str,
        parent: ObjectType | None,
        *,
        interfaces: Iterable[str] = (),
        proxied: ObjectType | None = None,
        abstract: bool = False,
        own: Mapping[str, PropertyInfo] | None = None,
    ) -> None:
        self.name = name
        self.parent = parent
        self.interfaces = tuple(interfaces)
        self.proxied = proxied
        self.abstract = abstract
        self.own: dict[str, PropertyInfo] = dict(own or {})

    def ancestry(self) -> Iterator[ObjectType]:
        """Return the type, its parent, and so on."""
        kind: ObjectType | None = self
        while kind is not None:
            yield kind
            kind = kind.parent

    def implements(self, name: str) -> bool:
        """Whether the type is `name`, descends from it, or implements that interface."""
        return any(kind.name == name or name in kind.interfaces for kind in self.ancestry())

    @property
    def properties(self) -> dict[str, PropertyInfo]:
        """All properties by name, inherited ones first."""
        found: dict[str, PropertyInfo] = {}
        for kind in reversed(list(self.ancestry())):
            if kind.proxied is not None:
                found.update(
                    (name, item)
                    for name, item in kind.proxied.properties.items()
                    if name not in found and not name.startswith(_LEGACY)
                )
            found.update(kind.own)
        return found

    @property
    def device_properties(self) -> list[PropertyInfo]:
        """What `-device` may set or show: all properties but those of every device, and QEMU's old views of some."""
        return [item for name, item in self.properties.items() if name not in _HIDDEN and not name.startswith(_LEGACY)]

    @property
    def class_properties(self) -> list[PropertyInfo]:
        """What is known without an object: all properties, but for an abstract type those that are no object's."""
        if not self.abstract:
            return list(self.properties.values())
        kinds = reversed(list(self.ancestry()))
        return [item for kind in kinds for item in kind.own.values() if not item.kind.startswith("child<")]


class TypeRegistry:
    """All types, in the order of their definition: parents come before their children."""

    def __init__(self, texts: Iterable[str]) -> None:
        from json import loads

        self._value = loads
        self._types: dict[str, ObjectType] = {}
        for text in texts:
            self._parse(text)

    def _parse(self, text: str) -> None:
        current: ObjectType | None = None
        for line in text.splitlines():
            if line.startswith("  ") and current is not None:
                self._add_properties(current, line.strip())
            elif line:
                current = self._add_type(line)

    def _add_type(self, line: str) -> ObjectType:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ValueError(f"cannot understand {line!r}")
        marks = match["marks"].split()
        proxied = [self._types[mark[1:]] for mark in marks if mark[0] == "~"]
        return self.define(
            ObjectType(
                match["name"],
                None if match["parent"] is None else self._types[match["parent"]],
                interfaces=[mark[1:] for mark in marks if mark[0] == "+"],
                proxied=proxied[0] if proxied else None,
                abstract=match["abstract"] is not None,
            )
        )

    def _add_properties(self, kind: ObjectType, line: str) -> None:
        match = _PROPERTY.fullmatch(line)
        if match is None:
            raise ValueError(f"{kind.name}: cannot understand {line!r}")
        default = UNSET if match["default"] is None else self._value(match["default"])
        for name in match["names"].split():
            kind.own[name] = PropertyInfo(name, match["kind"], default, match["description"])

    def define(self, kind: ObjectType) -> ObjectType:
        """Add a type; raises ValueError where the name is taken."""
        if kind.name in self._types:
            raise ValueError(f"type {kind.name} is defined twice")
        self._types[kind.name] = kind
        return kind

    def replace(self, template: str, names: Iterable[str]) -> None:
        """Put a type for each of `names` in place of `template`, which says what they have in common."""
        model = self._types.pop(template)
        for name in names:
            self.define(ObjectType(name, model.parent, interfaces=model.interfaces, own=model.own))

    def get(self, name: str) -> ObjectType | None:
        """Return a type by its name, or None where there is none."""
        return self._types.get(name)

    def __getitem__(self, name: str) -> ObjectType:
        return self._types[name]

    def __iter__(self) -> Iterator[ObjectType]:
        return iter(self._types.values())

    def implementing(self, name: str, *, abstract: bool) -> list[ObjectType]:
        """Return the types that are or implement `name`, the abstract ones only where they are wanted."""
        return [kind for kind in self if kind.implements(name) and (abstract or not kind.abstract)]


@functools.cache
def load() -> TypeRegistry:
    """Return the types that pyvm has."""
    from pyvm.config import MACHINE_TYPES
    from pyvm.cpu.cpuid import model_names
    from pyvm.qom import type_text, type_text_cpu, type_text_devices, type_text_guards

    registry = TypeRegistry((type_text.TEXT, type_text_devices.TEXT, type_text_guards.TEXT, type_text_cpu.TEXT))
    machines = [name + MACHINE_SUFFIX for name in MACHINE_TYPES if name.startswith("pc-")]
    registry.replace(_MACHINE_MODEL, machines)
    registry.replace(_CPU_MODEL, (name + CPU_SUFFIX for name in model_names()))
    for name in ("max", "host"):
        own = registry[name + CPU_SUFFIX].own
        for flag, default in (("migratable", True), ("host-cache-info", False)):
            own[flag] = PropertyInfo(flag, "bool", default)
    registry["host" + CPU_SUFFIX].parent = registry["max" + CPU_SUFFIX]
    _add_legacy_views(registry)
    return registry


def _add_legacy_views(registry: TypeRegistry) -> None:
    """Give devices the old views: of links, which cannot be read, and of the place on a PCI bus."""
    for kind in registry:
        if not kind.implements("device"):
            continue
        for name, item in list(kind.own.items()):
            is_link = item.kind.startswith("link<") and item.kind not in _NO_VIEW
            if is_link or (kind.name, name) == ("pci-device", "addr"):
                kind.own = _with_view(kind.own, _LEGACY + name)


def _with_view(own: dict[str, PropertyInfo], name: str) -> dict[str, PropertyInfo]:
    """Return properties and one more, in the place where QEMU's hash table has it."""
    from pyvm.hash_order import HashOrder

    order = list(reversed(list(HashOrder([*own, name]))))
    before = order[: order.index(name)]
    view = PropertyInfo(name, "str")
    found: dict[str, PropertyInfo] = {} if before else {name: view}
    for known, item in own.items():
        found[known] = item
        if before and known == before[-1]:
            found[name] = view
    return found
