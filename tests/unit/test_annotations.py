"""What stands for typing at run time: named tuples behave as typing's do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm import annotations


class Light(annotations.NamedTuple):
    """One that is made without code."""

    start: int
    end: int = 7
    name: str = ""

    @property
    def length(self) -> int:
        """A member that is worked out."""
        return self.end - self.start


class Usual(typing.NamedTuple):
    """The same of typing's kind."""

    start: int
    end: int = 7
    name: str = ""


class Bare(annotations.NamedTuple):
    """One that has to be given everything."""

    one: int
    other: int


VALUES = st.integers(0, 3)
NAMED = st.dictionaries(st.sampled_from(["start", "end", "name", "more"]), VALUES, max_size=4)


def result(make: Callable[..., tuple[Any, ...]], values: list[int], named: dict[str, int]) -> tuple[Any, ...] | None:
    try:
        return tuple(make(*values, **named))
    except TypeError:
        return None


@settings(max_examples=60)
@given(st.lists(VALUES, max_size=4), NAMED)
def test_made_and_refused_like_typings(values: list[int], named: dict[str, int]) -> None:
    class Fresh(annotations.NamedTuple):
        start: int
        end: int = 7
        name: str = ""

    wanted = result(Usual, values, named)
    assert result(Fresh, values, named) == wanted
    # This one has a generated constructor before long.
    assert result(Light, values, named) == wanted


def test_members() -> None:
    for number in range(100):
        it = Light(number, name="a")
        assert (it.start, it.end, it.name, it.length) == (*it, 7 - number) == (number, 7, "a", 7 - number)
    assert it == Usual(99, name="a")
    assert hash(it) == hash(Usual(99, name="a"))
    assert repr(it) == "Light(start=99, end=7, name='a')"
    assert not hasattr(it, "__dict__")
    with pytest.raises(AttributeError):
        it.start = 3  # type: ignore[misc]
    match it:
        case Light(99, end, "a"):
            assert end == 7
        case _:
            pytest.fail("it does not match")


def test_copies() -> None:
    it = Light(1, 2)
    assert it._replace(end=5) == (1, 5, "")
    assert type(it._replace()) is Light
    assert it._asdict() == {"start": 1, "end": 2, "name": ""}
    for other in (copy.copy(it), copy.deepcopy(it), pickle.loads(pickle.dumps(it))):
        assert type(other) is Light
        assert other == it
    with pytest.raises(TypeError):
        it._replace(more=1)  # type: ignore[call-arg]


def test_without_defaults() -> None:
    assert Bare(1, 2) == Bare(other=2, one=1) == (1, 2)
    for values in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError):
            Bare(*values)  # type: ignore[call-arg]


def test_what_converts_images_starts_without_typing() -> None:
    modules = "tools.img.convert tools.img.copying block.open block.create block.drivers.qcow2.driver".split()
    names = ", ".join(f"pyvm.{name}" for name in modules)
    code = f"import sys; old = set(sys.modules); import {names}; print({{'typing', 're'}} & (set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
