"""The tree of objects: paths, children, and properties that can be read and set.

An object does not hold its properties' values: each property has a function that fetches it, and perhaps one that
sets it, so what clients see is always what the machine is.  Objects whose children come and go make them when asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pyvm.hash_order import HashOrder
from pyvm.monitor.errors import QmpError, device_not_found

Getter = Callable[[], Any]
Setter = Callable[[Any], None]
Children = Callable[[], Mapping[str, "QomObject"]]


class AmbiguousPath(QmpError):  # noqa: N818 - what it is
    """A partial path leads to more than one object."""


class Property:
    """One property of an object, as clients see it; one without `get` or `put` cannot be read or set."""

    __slots__ = ("get", "kind", "name", "put")

    def __init__(self, name: str, kind: str, get: Getter | None = None, put: Setter | None = None) -> None:
        self.name = name
        self.kind = kind
        self.get = get
        self.put = put


class QomObject:
    """An object of the tree: its type, properties of its own, and children by name."""

    def __init__(
        self,
        type_name: str,
        properties: Iterable[Property] = (),
        *,
        children: Children | None = None,
        links: Callable[[], Mapping[str, QomObject]] | None = None,
    ) -> None:
        """`children` returns the children that the object has now, `links` the objects that it refers to now."""
        self.type = type_name
        self.parent: QomObject | None = None
        self.name = ""
        self._fixed: dict[str, QomObject] = {}
        self._children = children
        self._links = links
        self._properties = {item.name: item for item in properties}

    def add(self, name: str, child: QomObject) -> QomObject:
        """Make an object a child for good."""
        child.parent, child.name = self, name
        self._fixed[name] = child
        return child

    def drop(self, child: QomObject) -> None:
        """Let go of a child that was added."""
        del self._fixed[child.name]

    def own(self, item: Property) -> None:
        """Give the object one more property."""
        self._properties[item.name] = item

    @property
    def path(self) -> str:
        """The canonical path."""
        if self.parent is None:
            return "/"
        return f"{self.parent.path.rstrip('/')}/{self.name}"

    def children(self) -> dict[str, QomObject]:
        """Return the children by name."""
        found = dict(self._fixed)
        if self._children is not None:
            for name, child in self._children().items():
                child.parent, child.name = self, name
                found[name] = child
        return found

    def links(self) -> dict[str, QomObject]:
        """Return the objects that this one refers to, by the names of the properties."""
        return {} if self._links is None else dict(self._links())

    def properties(self) -> Iterator[Property]:
        """Return all properties: the type, the object's own, links and children."""
        yield Property("type", "string", lambda: self.type)
        linked = self.links()
        yield from (item for item in self._properties.values() if item.name not in linked)
        for name, target in linked.items():
            own = self._properties.get(name)
            kind = f"link<{target.type}>" if own is None else own.kind
            yield Property(name, kind, _path_of(target), None if own is None else own.put)
        children = self.children()
        for name in reversed(list(HashOrder(children))):
            child = children[name]
            yield Property(name, f"child<{child.type}>", _path_of(child))

    def property(self, name: str) -> Property:
        """Return a property by its name; raises QmpError where there is none."""
        for item in self.properties():
            if item.name == name:
                return item
        raise QmpError(f"Property '{self.type}.{name}' not found")

    def get(self, name: str) -> Any:
        """Return the value of a property; raises QmpError."""
        item = self.property(name)
        if item.get is None:
            raise QmpError(f"Property '{self.type}.{name}' is not readable")
        return item.get()

    def put(self, name: str, value: Any) -> None:
        """Set a property; raises QmpError."""
        item = self.property(name)
        if item.put is None:
            raise QmpError(f"Property '{self.type}.{name}' is not writable")
        item.put(value)

    def step(self, name: str) -> QomObject | None:
        """Return the child, or the object referred to, of that name."""
        return self.children().get(name) or self.links().get(name)


def _path_of(target: QomObject) -> Getter:
    return lambda: target.path


def container(children: Children | None = None) -> QomObject:
    """Return an object that only holds others."""
    return QomObject("container", children=children)


def resolve(root: QomObject, path: str) -> QomObject:
    """Return the object at an absolute path, or the only one whose path ends in a partial one; raises QmpError."""
    parts = path.split("/")
    if path.startswith("/"):
        found = [_walk(root, parts)]
    else:
        found = list(_find(root, parts, 2))
    if len(found) > 1:
        raise AmbiguousPath(f"Path '{path}' is ambiguous")
    if not found or found[0] is None:
        raise device_not_found(path)
    return found[0]


def _walk(start: QomObject, parts: Iterable[str]) -> QomObject | None:
    here: QomObject | None = start
    for part in parts:
        if part and here is not None:
            here = here.step(part)
    return here


def _find(start: QomObject, parts: list[str], limit: int) -> Iterator[QomObject]:
    """Yield up to `limit` objects at or below `start` from where the path leads somewhere."""
    found = _walk(start, parts)
    if found is not None:
        yield found
        limit -= 1
    for child in start.children().values():
        if limit <= 0:
            return
        for found in _find(child, parts, limit):
            yield found
            limit -= 1
            if limit <= 0:
                return
