"""State records: every field is checked against what its declaration allows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.state import (
    State,
    StateError,
    array,
    blob,
    flag,
    integer,
    optional,
    record,
    sequence,
    text,
    uint,
)


class Inner(State):
    """A record within a record."""

    level: int = integer(-3, 3)
    on: bool = flag(True)


class Outer(State):
    """A field of each kind."""

    byte: int = uint(8, 7)
    name: str = text(4, "abc")
    data: bytes = blob(3)
    exact: bytes = blob(2, exact=True)
    inner: Inner = record(Inner)
    maybe: int | None = optional(uint(4))
    pair: list[int] = array(uint(8, 1), 2)
    inners: list[Inner] = array(record(Inner), 2)
    some: list[Inner] = sequence(record(Inner), 2)


PLAIN = {
    "byte": 255,
    "name": "",
    "data": b"xyz",
    "exact": b"ab",
    "inner": {"level": -3, "on": False},
    "maybe": 15,
    "pair": [0, 255],
    "inners": [{"level": 1, "on": True}, {"level": 2, "on": False}],
    "some": [{"level": 3, "on": False}],
}


def test_defaults() -> None:
    outer = Outer()
    outer.check()
    assert (outer.byte, outer.name, outer.data, outer.exact, outer.maybe) == (7, "abc", b"", b"\0\0", None)
    assert outer.pair == [1, 1]
    assert outer.some == []
    assert outer.inners[0] is not outer.inners[1]
    assert Outer().inner is not outer.inner


def test_there_and_back() -> None:
    outer = Outer.from_dict(PLAIN)
    assert outer.to_dict() == PLAIN
    assert Outer.from_dict(outer.to_dict()) == outer
    assert isinstance(outer.some[0], Inner)


def test_a_copy_shares_nothing() -> None:
    outer = Outer.from_dict(PLAIN)
    copy = outer.copy()
    copy.inner.level = 0
    copy.pair[0] = 9
    copy.some[0].level = 0
    copy.some.append(Inner())
    assert outer.to_dict() == PLAIN


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("byte", 256, "Outer.byte: 256 is outside 0..255"),
        ("byte", -1, "Outer.byte: -1 is outside 0..255"),
        ("byte", True, "Outer.byte: expected an integer, got bool"),
        ("byte", 1.0, "Outer.byte: expected an integer, got float"),
        ("name", "abcde", "Outer.name: expected a string of at most 4 characters"),
        ("name", b"abc", "Outer.name: expected a string"),
        ("data", b"1234", "Outer.data: expected 0..3 bytes"),
        ("data", "abc", "Outer.data: expected 0..3 bytes"),
        ("exact", b"1", "Outer.exact: expected 2..2 bytes"),
        ("inner", None, "Outer.inner: expected a record, got NoneType"),
        ("inner", {"level": 4}, "Outer.inner.level: 4 is outside -3..3"),
        ("inner", {"on": 1}, "Outer.inner.on: expected a boolean, got int"),
        ("inner", {"off": 1}, "Outer.inner: unknown field 'off'"),
        ("maybe", 16, "Outer.maybe: 16 is outside 0..15"),
        ("pair", [1], "Outer.pair: expected a list of 2..2 items"),
        ("pair", (1, 2), "Outer.pair: expected a list of 2..2 items"),
        ("pair", [1, 256], r"Outer.pair\[1\]: 256 is outside"),
        ("some", [{}, {}, {}], "Outer.some: expected a list of 0..2 items"),
        ("some", [{"level": 9}], r"Outer.some\[0\].level: 9 is outside"),
        ("bytes", 1, "Outer: unknown field 'bytes'"),
    ],
)
def test_refusals(field: str, value: object, message: str) -> None:
    with pytest.raises(StateError, match=message):
        Outer.from_dict({**PLAIN, field: value})
    if field in PLAIN and not isinstance(value, dict) and field != "some":
        outer = Outer.from_dict(PLAIN)
        setattr(outer, field, value)
        with pytest.raises(StateError, match=message):
            outer.check()


def test_a_record_that_was_changed_within_is_refused() -> None:
    outer = Outer.from_dict(PLAIN)
    outer.inner.level = 100
    with pytest.raises(StateError, match=r"^Outer\.inner\.level"):
        outer.check()
    with pytest.raises(StateError, match=r"^machine\.inner\.level"):
        outer.check("machine")


@pytest.mark.parametrize("value", [None, [], "x", 5])
def test_only_a_dict_makes_a_record(value: object) -> None:
    with pytest.raises(StateError, match="expected a record"):
        Outer.from_dict(value)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("abc", max_size=6) | st.binary(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["level", "on", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*PLAIN, "other"]), VALUES, max_size=4))
def test_anything_is_a_good_record_or_refused(values: dict[str, Any]) -> None:
    try:
        outer = Outer.from_dict(values)
    except StateError:
        return
    outer.check()
    assert Outer.from_dict(outer.to_dict()).to_dict() == outer.to_dict()
