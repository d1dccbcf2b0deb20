"""Which pages of memory hold something, and that as bits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.migration.page_scan import PAGE, both, numbered, packed, runs, union, unpacked, used_pages

PAGES = st.lists(st.booleans(), max_size=600).map(bytes)


@settings(max_examples=50)
@given(PAGES, st.integers(0, PAGE - 1))
def test_used_pages(pages: bytes, place: int) -> None:
    memory = bytearray(len(pages) * PAGE)
    for index, used in enumerate(pages):
        memory[index * PAGE + place] = used
    assert used_pages(memoryview(memory)) == pages


def test_used_pages_are_whole_ones() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        used_pages(memoryview(bytes(PAGE + 1)))
    with pytest.raises(TypeError):
        used_pages("x" * PAGE)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=100))
def test_sets(pages: list[tuple[bool, bool]]) -> None:
    one, other = bytes(a for a, _ in pages), bytes(b for _, b in pages)
    assert union(one, other) == bytes(a or b for a, b in pages)
    assert both(one, bytearray(other)) == bytes(a and b for a, b in pages)


@settings(max_examples=30)
@given(st.binary(max_size=100), st.integers(0, 255))
def test_numbered(numbers: bytes, number: int) -> None:
    assert numbered(numbers, number) == bytes(it == number for it in numbers)


@given(PAGES)
def test_runs(pages: bytes) -> None:
    found = runs(pages)
    shown = bytearray(len(pages))
    for start, end in found:
        assert 0 <= start < end
        shown[start // PAGE : end // PAGE] = b"\x01" * ((end - start) // PAGE)
    assert shown == pages
    assert all(before < after for (_, before), (after, _) in itertools.pairwise(found))


@given(PAGES)
def test_bits(pages: bytes) -> None:
    bits = packed(pages)
    assert len(bits) == -(-len(pages) // 8)
    assert [bits[index // 8] >> index % 8 & 1 for index in range(len(pages))] == list(pages)
    assert unpacked(bits, len(pages)) == pages
