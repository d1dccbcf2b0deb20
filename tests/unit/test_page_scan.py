"""Which pages of memory hold something, and that as bits."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.migration.page_scan import PAGE, packed, runs, unpacked, used_pages

PAGES = st.lists(st.booleans(), max_size=600).map(bytes)


@settings(max_examples=50)
@given(PAGES, st.integers(0, PAGE - 1))
def test_used_pages(pages: bytes, place: int) -> None:
    memory = bytearray(len(pages) * PAGE)
    for index, used in enumerate(pages):
        memory[index * PAGE + place] = used
    assert used_pages(memoryview(memory)) == pages


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
