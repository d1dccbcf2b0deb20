"""Devices and buses as objects of the tree: the properties of their types, with the values that the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.schema.model import SchemaError
from pyvm.monitor.schema.validate import validator
from pyvm.qom.tree import Children, Property, QomObject
from pyvm.qom.types import UNSET, ObjectType, PropertyInfo, load

Values = Callable[[str], Any]
"""Returns the value of a property by its name; raises KeyError where the type's default holds."""

_ZERO = {"bool": False, "str": "", "string": ""}
_CHECKED_AS = {"string": "str", "uint64_t": "uint64", "int32_t": "int32"}
_READ_ONLY = frozenset({"type", "parent_bus", "hotplugged", "hotpluggable"})
_NEVER_REALIZED = "System"
"""The kind of bus that nobody realizes: it is there before anything else."""
_UNSET_INDEX = frozenset({"bootindex", "bootindexA", "bootindexB"})


def check_kind(kind: str, name: str, value: Any) -> None:
    """Raise QmpError where `value` cannot be that of a property of this kind."""
    try:
        checked = validator().schema.type(_CHECKED_AS.get(kind, kind))
    except SchemaError:
        return
    validator().checker(checked)(value, (None, name))


def default_of(item: PropertyInfo) -> Any:
    """Return what a property is where nothing was said."""
    if item.default is not UNSET:
        return item.default
    if item.name in _UNSET_INDEX:
        return -1
    return "" if item.kind.startswith("link<") else _ZERO.get(item.kind, 0)


class TypedObject(QomObject):
    """An object whose properties are those of its type; values come from a function."""

    def __init__(
        self,
        kind: ObjectType,
        values: Values,
        put: Callable[[str, Any], None] | None = None,
        *,
        extra: Iterable[Property] = (),
        children: Children | None = None,
        links: Callable[[], Mapping[str, QomObject]] | None = None,
        hidden: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """`put` takes a property's name and its checked value; it raises QmpError.

        `hidden` returns names of properties that the type has and the object does not have any more.
        """
        super().__init__(kind.name, extra, children=children, links=links)
        self._hidden = hidden
        self.kind = kind
        self._values = values
        self._put = put

    def properties(self) -> Iterator[Property]:
        """Return all properties: those of the type first."""
        others: set[str] = {*self.children(), *self.links(), *self._properties, *self._hidden()}
        seen: set[str] = set()
        for name, item in self.kind.properties.items():
            if not item.kind.startswith("child<") and name not in others:
                seen.add(name)
                yield Property(name, item.kind, *((self._getter(item), self._setter(item)) if self.shows(item) else ()))
        for other in super().properties():
            if other.name not in seen:
                yield other

    def shows(self, item: PropertyInfo) -> bool:
        """Whether a property can be read: QEMU's old views of others mostly cannot."""
        return item.kind != "str" or not item.name.startswith("legacy-")

    def _getter(self, item: PropertyInfo) -> Callable[[], Any]:
        return lambda: self.value(item)

    def value(self, item: PropertyInfo) -> Any:
        """Return the value of a property of the type."""
        if item.name == "type":
            return self.type
        try:
            return self._values(item.name)
        except KeyError:
            return default_of(item)

    def _setter(self, item: PropertyInfo) -> Callable[[Any], None] | None:
        if self._put is None or item.name in _READ_ONLY:
            return None
        put = self._put

        def check_and_put(value: Any) -> None:
            self.check(item, value)
            put(item.name, value)

        return check_and_put

    def check(self, item: PropertyInfo, value: Any) -> None:
        """Raise QmpError where a value is not of a property's kind."""
        check_kind(item.kind, item.name, value)


class DeviceObject(TypedObject):
    """A device, which has been on its bus since it was made: most properties are settled."""

    def __init__(
        self,
        kind: str,
        values: Mapping[str, Any] | None = None,
        *,
        identifier: str | None = None,
        bus: QomObject | None = None,
        getters: Mapping[str, Callable[[], Any]] | None = None,
        setters: Mapping[str, Callable[[Any], None]] | None = None,
        hotplugged: bool = False,
        hotpluggable: bool = False,
        extra: Iterable[Property] = (),
        children: Children | None = None,
    ) -> None:
        super().__init__(load()[kind], self._value, self._put_settled, extra=extra, children=children)
        self.identifier = identifier
        self.bus = bus
        self._given = values or {}
        self._getters: dict[str, Callable[[], Any]] = {
            "parent_bus": lambda: "" if self.bus is None else self.bus.path,
            "realized": lambda: True,
            "hotplugged": lambda: hotplugged,
            "hotpluggable": lambda: hotpluggable,
            **(getters or {}),
        }
        self._setters = dict(setters or {})

    def fetch(self, name: str, getter: Callable[[], Any]) -> None:
        """Have the value of a property of the type fetched by `getter` from now on."""
        self._getters[name] = getter

    def _value(self, name: str) -> Any:
        getter = self._getters.get(name)
        if getter is not None:
            return getter()
        value = self._given[name]
        if value is None:
            raise KeyError(name)
        item = self.kind.properties[name]
        return f"/objects/{value}" if item.kind.startswith("link<") else value

    def shows(self, item: PropertyInfo) -> bool:
        """Whether a property can be read."""
        return item.name in self._getters or super().shows(item)

    def check(self, item: PropertyInfo, value: Any) -> None:
        """Raise QmpError for a property that cannot change any more, or a value of the wrong kind."""
        if item.name not in self._setters and item.name != "realized":
            self._refuse(item)
        super().check(item, value)

    def _refuse(self, item: PropertyInfo) -> None:
        what = "link property" if item.kind.startswith("link<") else "property"
        who = "anonymous device" if self.identifier is None else f"device '{self.identifier}'"
        raise QmpError(f"Attempt to set {what} '{item.name}' on {who} (type '{self.type}') after it was realized")

    def _put_settled(self, name: str, value: Any) -> None:
        if name == "realized" and name not in self._setters:
            if not value:
                raise QmpError(f"Device '{self.identifier or self.type}' cannot be taken off its bus")
            return
        self._setters[name](value)


class BusObject(QomObject):
    """A bus; `devices` returns the objects on it by number."""

    def __init__(
        self,
        kind: str,
        devices: Callable[[], Mapping[int, QomObject]] = dict,
        *,
        hotplug: Callable[[], str] = str,
        extra: Iterable[Property] = (),
    ) -> None:
        """`hotplug` returns the path of what plugs devices in while the machine runs, or nothing."""
        super().__init__(
            kind,
            (
                Property("realized", "bool", lambda: kind != _NEVER_REALIZED),
                Property("hotplug-handler", "link<hotplug-handler>", hotplug),
                *extra,
            ),
            links=lambda: {f"child[{number}]": device for number, device in devices().items()},
        )
