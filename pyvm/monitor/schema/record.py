"""Typed records: what handlers receive for values of object types."""

from __future__ import annotations

import keyword
from typing import TYPE_CHECKING, Any


def python_name(name: str) -> str:
    """Return a schema name as a Python name: ``node-name`` becomes ``node_name``, ``class`` becomes ``class_``."""
    name = name.replace("-", "_").replace(".", "_")
    return name + "_" if keyword.iskeyword(name) or name[:1].isdigit() else name


class Record:
    """Base of all records; the schema makes one subclass for each struct, and for each variant of a union.

    Members are attributes, by their Python names.  An optional member that was not given is None.
    """

    __slots__: tuple[str, ...] = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __repr__(self) -> str:
        members = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({', '.join(members)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


def record_class(name: str, fields: tuple[str, ...]) -> type[Record]:
    """Make a subclass of :class:`Record` with these attributes."""
    return type(name, (Record,), {"__slots__": fields, "__doc__": f"A value of {name}."})
