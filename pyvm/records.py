"""Plain records: what :mod:`dataclasses` gives a class, without generating code for it.

Most records are made when pyvm starts, and few of a kind; a dataclass costs half a millisecond for each class, whether
or not one is made of it, and there are over a hundred.  Here a class costs next to nothing, and making or comparing
records takes a little longer.  Where records are made while the guest runs, a dataclass with slots is better.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.annotations import Any, TypeVar, dataclass_transform, overload

_Class = TypeVar("_Class", bound=type)
_Record = TypeVar("_Record")
_Made = TypeVar("_Made")

_REQUIRED: Any = object()
_MEMBERS = "__record_members__"


class _Factory:
    """The default of a member that each record has its own of."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


@overload
def field(*, default: _Made) -> _Made: ...


@overload
def field(*, default_factory: Callable[[], _Made]) -> _Made: ...


def field(*, default: Any = None, default_factory: Callable[[], Any] | None = None) -> Any:
    """Return the default of a member: `default`, or for each record what `default_factory` makes."""
    return default if default_factory is None else _Factory(default_factory)


@overload
def record(cls: _Class, /) -> _Class: ...


@overload
def record(*, eq: bool = True, frozen: bool = False, kw_only: bool = False) -> Callable[[_Class], _Class]: ...


@dataclass_transform(field_specifiers=(field,))
def record(cls: Any = None, /, *, eq: bool = True, frozen: bool = False, kw_only: bool = False) -> Any:
    """Make a class whose annotations are the members of its records.

    Records have a constructor, compare by value within their class unless `eq` is False, and show their members.
    `frozen` ones cannot be changed, and are hashable; `kw_only` ones are made with the names of all members.
    `__post_init__` is called as dataclasses do.
    """

    def decorate(cls: _Class) -> _Class:
        members: dict[str, Any] = dict(getattr(cls, _MEMBERS, {}))
        # Not by inspect: to import that takes longer than all classes that are made here.
        for name, kind in cls.__dict__.get("__annotations__", {}).items():  # noqa: RUF063
            if str(kind).startswith("ClassVar"):
                continue
            members[name] = cls.__dict__.get(name, _REQUIRED)
            if isinstance(members[name], _Factory):
                delattr(cls, name)
        setattr(cls, _MEMBERS, members)
        methods: dict[str, Any] = {"__init__": _init_by_name if kw_only else _init, "__repr__": _shown}
        methods["__match_args__"] = () if kw_only else tuple(members)
        if eq:
            methods |= {"__eq__": _equal, "__hash__": _hash if frozen else None}
        if frozen:
            methods |= {"__setattr__": _refuse_change, "__delattr__": _refuse_change}
        for name, method in methods.items():
            if cls.__dict__.get(name) is None:
                setattr(cls, name, method)
        return cls

    return decorate if cls is None else decorate(cls)


def replace(record: _Record, **changes: Any) -> _Record:
    """Return a copy of a record with other values for some members; raises TypeError for a member that is none."""
    return type(record)(**{**vars(record), **changes})


def _init(self: Any, *positional: Any, **named: Any) -> None:
    members = getattr(self, _MEMBERS)
    if len(positional) > len(members):
        raise TypeError(f"{type(self).__name__} takes {len(members)} values, not {len(positional)}")
    given = dict(zip(members, positional, strict=False))
    if not given.keys().isdisjoint(named):
        raise TypeError(f"{type(self).__name__} got a member twice: {', '.join(sorted(given.keys() & named))}")
    _init_by_name(self, **given, **named)


def _init_by_name(self: Any, **given: Any) -> None:
    values = vars(self)
    for name, default in getattr(self, _MEMBERS).items():
        if name in given:
            values[name] = given.pop(name)
        elif default is _REQUIRED:
            raise TypeError(f"{type(self).__name__} needs '{name}'")
        else:
            values[name] = default.make() if isinstance(default, _Factory) else default
    if given:
        raise TypeError(f"{type(self).__name__} has no '{next(iter(given))}'")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _equal(self: Any, other: object) -> bool:
    return bool(vars(self) == vars(other)) if type(self) is type(other) else NotImplemented


def _shown(self: Any) -> str:
    members = ", ".join(f"{name}={getattr(self, name)!r}" for name in getattr(self, _MEMBERS))
    return f"{type(self).__qualname__}({members})"


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name in getattr(self, _MEMBERS)))


def _refuse_change(self: Any, name: str, value: object = None) -> None:
    raise AttributeError(f"'{name}' of a {type(self).__name__} cannot be changed")
