"""Dirty bitmaps against a list of units."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.bitmaps import DirtyBitmap

UNIT = 512
SIZE = 150 * UNIT - 100
COUNT = 150

Changes = list[tuple[bool, int, int]]
changes = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=6)


def made(changes: Changes) -> tuple[DirtyBitmap, list[bool]]:
    bitmap, model = DirtyBitmap(SIZE, UNIT), [False] * COUNT
    for dirty, offset, length in changes:
        end = min(offset + length, SIZE)
        (bitmap.set if dirty else bitmap.clear)(offset, end - offset)
        for number in range(COUNT):
            first, last = number * UNIT, min((number + 1) * UNIT, SIZE)
            if first < end and offset < last and (dirty or (offset <= first and last <= end)):
                model[number] = dirty
    return bitmap, model


@settings(max_examples=60, deadline=None)
@given(changes, st.integers(0, SIZE - 1), st.booleans())
def test_a_bitmap_is_as_it_was_made(changes: Changes, offset: int, dirty: bool) -> None:
    bitmap, model = made(changes)
    assert [bitmap.is_dirty(number * UNIT) for number in range(COUNT)] == model
    assert bitmap.count == sum(model) * UNIT
    assert bitmap.any == any(model)
    found = [number for number in range(offset // UNIT, COUNT) if model[number] == dirty]
    assert bitmap.next(offset, dirty) == (max(found[0] * UNIT, offset) if found else None)
    again = DirtyBitmap(SIZE, UNIT)
    again.load(bitmap.content())
    assert again.bits == bitmap.bits


@settings(max_examples=40, deadline=None)
@given(changes, changes, st.integers(1, 2 * SIZE))
def test_two_become_one_and_change_their_size(first: Changes, second: Changes, size: int) -> None:
    (bitmap, model), (other, added) = made(first), made(second)
    bitmap.merge(other)
    both = [one or two for one, two in zip(model, added, strict=True)]
    assert [bitmap.is_dirty(number * UNIT) for number in range(COUNT)] == both
    bitmap.resize(size)
    units = -(-size // UNIT)
    assert [bitmap.is_dirty(number * UNIT) for number in range(units)] == (both + [False] * units)[:units]
    assert bitmap.count == sum(both[:units]) * UNIT


def test_a_search_goes_on_over_long_runs() -> None:
    bitmap = DirtyBitmap(1 << 30, UNIT)
    bitmap.set((1 << 30) - UNIT, UNIT)
    assert bitmap.next(UNIT) == (1 << 30) - UNIT
    bitmap.set_all()
    bitmap.clear((1 << 30) - 2 * UNIT, UNIT)
    assert bitmap.run(5, 1 << 30) == (5, (1 << 30) - 2 * UNIT - 5)
