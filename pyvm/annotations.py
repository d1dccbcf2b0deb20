"""The part of :mod:`typing` for modules that commands import as they start, which lasts as long as all of their work.

To import typing, and what that imports, takes as long as a dozen modules of pyvm.  Type checkers find typing's own
names here.  A running program finds something that costs nothing: annotations are not evaluated, and aliases of types
only have to be made without an error.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import (
        Any,
        ClassVar,
        Generic,
        Literal,
        NamedTuple,
        NoReturn,
        Protocol,
        TypeVar,
        dataclass_transform,
        overload,
    )
else:
    from operator import itemgetter

    _OFTEN = 64

    class _Form:
        """What may have parameters."""

        def __getitem__(self, parameters):  # noqa: ANN001, ANN204
            return object

    Any = NoReturn = object
    ClassVar = Literal = _Form()

    class Protocol:
        """What classes only look like; nobody asks at run time which do."""

    class Generic:
        """A class with parameters, which make no difference at run time."""

        def __class_getitem__(cls, parameters):  # noqa: ANN001, ANN204
            return cls

    def TypeVar(name, **limits):  # noqa: ANN001, ANN003, ANN201, N802
        """Return what stands for a type."""
        return object

    def dataclass_transform(**facts):  # noqa: ANN003, ANN201
        """Return a decorator that says something to type checkers alone."""
        return lambda function: function

    def overload(function):  # noqa: ANN001, ANN201
        """Mark a signature of a function; the last definition is the one that is called."""
        return function

    class _NamedTupleType(type):
        def __new__(cls, name, bases, namespace):  # noqa: ANN001, ANN204
            fields = tuple(namespace.get("__annotations__", ())) if bases != (tuple,) else ()
            if fields:
                defaults = {it: namespace[it] for it in fields if it in namespace}
                namespace["_field_defaults"], namespace["_defaults"] = defaults, tuple(defaults.values())
                namespace.update((it, property(itemgetter(index))) for index, it in enumerate(fields))
                namespace["_fields"] = namespace["__match_args__"] = fields
            namespace.setdefault("__slots__", ())
            return super().__new__(cls, name, bases, namespace)

    def _generate(fields, defaults):  # noqa: ANN001, ANN202
        """Return a constructor that is as fast as there is."""
        arguments = ", ".join(it + f"=_defaults['{it}']" * (it in defaults) for it in fields)
        code = f"lambda _type, {arguments}: _new(_type, ({', '.join(fields)},))"
        return eval(code, {"_new": tuple.__new__, "_defaults": defaults})

    class NamedTuple(tuple, metaclass=_NamedTupleType):
        """A tuple whose members have names, and the last ones maybe defaults.

        No code is generated for a class until it is used a lot.
        """

        _fields = _defaults = ()
        _uses = 0
        _field_defaults = {}  # noqa: RUF012

        def __new__(cls, *values, **named):  # noqa: ANN002, ANN003, ANN204, D102
            cls._uses += 1
            if cls._uses == _OFTEN:
                cls.__new__ = _generate(cls._fields, cls._field_defaults)
            missing = len(cls._fields) - len(values)
            if named:
                values = cls._complete(values, named)
            elif missing:
                if not 0 < missing <= len(cls._defaults):
                    raise TypeError(f"{cls.__name__} has other members than {len(values)}")
                values += cls._defaults[-missing:]
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, values, named):  # noqa: ANN001, ANN206
            fields, count = cls._fields, len(values)
            given = {**cls._field_defaults, **named}
            given.update(zip(fields, values, strict=False))
            twice = not named.keys().isdisjoint(fields[:count])
            if twice or count > len(fields) or given.keys() != set(fields):
                raise TypeError(f"{cls.__name__} has other members than {count} and {', '.join(named)}")
            return [given[name] for name in fields]

        def _asdict(self):  # noqa: ANN202
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):  # noqa: ANN003, ANN202
            values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
            if changes:
                raise TypeError(f"{type(self).__name__} has no {', '.join(changes)}")
            return tuple.__new__(type(self), values)

        def __repr__(self):  # noqa: ANN204
            members = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({members})"

        def __getnewargs__(self):  # noqa: ANN204
            return tuple(self)


__all__ = [
    "TYPE_CHECKING",
    "Any",
    "ClassVar",
    "Generic",
    "Literal",
    "NamedTuple",
    "NoReturn",
    "Protocol",
    "TypeVar",
    "dataclass_transform",
    "overload",
]
