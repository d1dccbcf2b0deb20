"""Commands about the object model: the tree of objects, types, and objects that users create."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError, device_not_found, unsupported
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.machine.user_objects import UserObjects
    from pyvm.qom.tree import QomObject

COMMANDS = CommandTable()


class ObjectTree(Protocol):
    """The objects of a machine."""

    def resolve(self, path: str) -> QomObject:
        """Return the object at a path, absolute or partial; raises QmpError."""


class ObjectModel(Protocol):
    """What the commands use of a machine."""

    @property
    def qom(self) -> ObjectTree:
        """The tree of all objects."""

    @property
    def objects(self) -> UserObjects:
        """The objects that users created."""


@runtime_checkable
class ObjectOwner(Protocol):
    """A machine that consists of objects."""

    @property
    def model(self) -> ObjectModel:
        """The objects."""


def _model(context: Context) -> ObjectModel:
    """Return the objects of the machine; raises QmpError where it has none."""
    if not isinstance(context.machine, ObjectOwner):
        raise unsupported()
    return context.machine.model


def _object(context: Context, path: str) -> QomObject:
    """Return the object at a path; a path that leads to several is one that leads to none."""
    from pyvm.qom.tree import AmbiguousPath

    try:
        return _model(context).qom.resolve(path)
    except AmbiguousPath:
        raise device_not_found(path) from None


@COMMANDS.command("qom-list")
def qom_list(context: Context, path: str) -> list[dict[str, Any]]:
    """Return the properties of an object, its children among them."""
    found = _model(context).qom.resolve(path)
    return [{"name": item.name, "type": item.kind} for item in found.properties()]


@COMMANDS.command("qom-get")
def qom_get(context: Context, path: str, property: str) -> Any:  # noqa: A002 - the name that the schema gives it
    """Return the value of a property."""
    return _object(context, path).get(property)


@COMMANDS.command("qom-set")
def qom_set(context: Context, path: str, property: str, value: Any) -> None:  # noqa: A002 - as above
    """Set a property."""
    _object(context, path).put(property, value)


@COMMANDS.command("qom-list-types")
def qom_list_types(context: Context, implements: str | None, abstract: bool | None) -> list[dict[str, Any]]:
    """Return the types that are or implement another, the abstract ones where they are wanted."""
    from pyvm.qom.types import load

    infos = []
    wanted = "object" if implements is None else implements
    for kind in reversed(load().implementing(wanted, abstract=bool(abstract))):
        info: dict[str, Any] = {"name": kind.name}
        if kind.abstract:
            info["abstract"] = True
        if kind.parent is not None:
            info["parent"] = kind.parent.name
        infos.append(info)
    return infos


@COMMANDS.command("qom-list-properties")
def qom_list_properties(context: Context, typename: str) -> list[dict[str, Any]]:
    """Return the properties that objects of a type have."""
    from pyvm.qom.types import load

    kind = load().get(typename)
    if kind is None:
        raise QmpError(f"Class '{typename}' not found", DEVICE_NOT_FOUND)
    return [item.as_info() for item in kind.class_properties]


@COMMANDS.command("object-add")
def object_add(context: Context, arguments: dict[str, Any]) -> None:
    """Create an object."""
    properties = {name: value for name, value in arguments.items() if name not in ("qom-type", "id")}
    _model(context).objects.add(arguments["qom-type"], arguments["id"], properties)


@COMMANDS.command("object-del")
def object_del(context: Context, id: str) -> None:  # noqa: A002 - the name that the schema gives it
    """Delete an object."""
    _model(context).objects.remove(id)
