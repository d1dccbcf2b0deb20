"""Records: what a class gets, and how misuse is refused."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from pyvm.records import field, record, replace


@record
class Point:
    """A place."""

    x: int
    y: int = field(default=0)
    tags: list[str] = field(default_factory=list)
    count: ClassVar[int] = 3


@record(frozen=True, kw_only=True)
class Base:
    """What all have."""

    id: str
    flag: bool = False


@record(frozen=True, kw_only=True)
class Derived(Base):
    """One more member, without a default after one with a default."""

    path: str

    @property
    def shown(self) -> str:
        """The ID and the path."""
        return f"{self.id}:{self.path}"


@record(eq=False)
class Identity:
    """Compares by identity."""

    value: int


@record
class Checked:
    """Checks what it is given."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("the wrong way round")


def test_members_take_values_by_place_by_name_and_by_default() -> None:
    assert vars(Point(1)) == {"x": 1, "y": 0, "tags": []}
    assert vars(Point(1, tags=["a"], y=2)) == {"x": 1, "y": 2, "tags": ["a"]}
    assert vars(Derived(path="p", id="i")) == {"id": "i", "flag": False, "path": "p"}
    assert Derived(path="p", id="i").shown == "i:p"


def test_each_record_has_a_default_of_its_own() -> None:
    first, second = Point(1), Point(1)
    first.tags.append("a")
    assert second.tags == []
    assert not hasattr(Point, "tags")


@pytest.mark.parametrize(
    ("arguments", "named", "complaint"),
    [
        ((), {}, "Point needs 'x'"),
        ((1, 2, [], 4), {}, "Point takes 3 values, not 4"),
        ((1,), {"x": 1}, "Point got a member twice: x"),
        ((1,), {"z": 1}, "Point has no 'z'"),
    ],
)
def test_wrong_members_are_refused(arguments: tuple[object, ...], named: dict[str, object], complaint: str) -> None:
    with pytest.raises(TypeError, match=f"^{complaint}$"):
        Point(*arguments, **named)  # type: ignore[arg-type]


def test_members_of_a_record_by_name_have_no_places() -> None:
    with pytest.raises(TypeError):
        Base("i")  # type: ignore[call-arg]


def test_records_compare_by_value_within_their_class() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(1, 3)
    assert Base(id="i") != Derived(id="i", path="p")
    assert Point(1).__eq__(1) is NotImplemented
    assert Identity(1) != Identity(1)


def test_only_frozen_records_are_hashable_by_value() -> None:
    assert len({Base(id="i"), Base(id="i"), Base(id="j")}) == 2
    assert len({Identity(1), Identity(1)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_frozen_records_do_not_change() -> None:
    frozen = Base(id="i")
    with pytest.raises(AttributeError, match="'id' of a Base cannot be changed"):
        frozen.id = "j"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del frozen.id
    assert frozen == Base(id="i")


def test_replace_makes_a_checked_copy() -> None:
    point = Point(1, 2, ["a"])
    assert replace(point, x=5) == Point(5, 2, ["a"])
    assert point == Point(1, 2, ["a"])
    assert replace(Derived(id="i", path="p"), flag=True) == Derived(id="i", flag=True, path="p")
    with pytest.raises(TypeError, match="Point has no 'z'"):
        replace(point, z=1)
    with pytest.raises(ValueError, match="the wrong way round"):
        replace(Checked(1, 2), low=3)


def test_copies_and_pickles_are_equal() -> None:
    derived = Derived(id="i", path="p")
    assert copy.copy(derived) == copy.deepcopy(derived) == pickle.loads(pickle.dumps(derived)) == derived


def test_what_is_shown_names_class_and_members() -> None:
    assert repr(Point(1)) == "Point(x=1, y=0, tags=[])"


def test_patterns_match_members_by_place() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
        case _:
            pytest.fail("no match")
