"""The memory map."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.e820 import E820Entry, E820Type, highest_fit, is_usable, lowest_fit, pc_memory_map
from pyvm.memory import pc_ram_blocks

MIB = 1 << 20
GIB = 1 << 30
RAM, RESERVED = E820Type.RAM, E820Type.RESERVED


def ranges(mib: int, **options: bool) -> list[tuple[int, int, E820Type]]:
    return [(entry.start, entry.end, entry.type) for entry in pc_memory_map(pc_ram_blocks(mib * MIB), **options)]


def test_the_map_of_a_512_mib_machine() -> None:
    """What Linux prints as BIOS-provided map on an i440FX machine of this size."""
    assert ranges(512) == [
        (0, 0x9FC00, RAM),
        (0x9FC00, 0xA0000, RESERVED),
        (0xF0000, 0x100000, RESERVED),
        (0x100000, 0x1FFDD000, RAM),
        (0x1FFDD000, 0x20000000, RESERVED),
        (0xFFFC0000, 0x100000000, RESERVED),
        (0xFD00000000, 0x10000000000, RESERVED),
    ]


def test_large_machine() -> None:
    found = ranges(6 * 1024, hypertransport=False)
    assert (0x100000, 0xC0000000 - 0x23000, RAM) in found
    assert found[-1] == (4 * GIB, 7 * GIB, RAM)


def test_ram_into_the_hypertransport_window_goes_before_it() -> None:
    assert ranges(1 << 20)[-1] == (4 * GIB, (1 << 40) + GIB, RAM)


def test_tiny_machines_have_no_extended_memory() -> None:
    assert (0, 0x9FC00, RAM) in ranges(1)
    assert not [entry for entry in ranges(1) if entry[0] == MIB]


def test_packed_form() -> None:
    assert E820Entry(0x100000, 0x200000, RAM).pack() == struct.pack("<QQI", 0x100000, 0x200000, 1)


@settings(max_examples=100)
@given(st.integers(1, 1 << 21))
def test_entries_are_in_order_and_apart_and_ram_is_ram(mib: int) -> None:
    blocks = pc_ram_blocks(mib * MIB)
    entries = pc_memory_map(blocks)
    for before, behind in pairwise(entries):
        assert before.end <= behind.start
    for entry in entries:
        assert entry.length > 0
        if entry.type is RAM:
            assert any(block.gpa <= entry.start and entry.end <= block.end for block in blocks)


@pytest.mark.parametrize(
    ("length", "floor", "ceiling", "expected"),
    [
        (0x1000, 0, 4 * GIB, 0x1FFDC000),
        (0x1001, 0, 4 * GIB, 0x1FFDB000),
        (0x1000, 0, 0x200000, 0x1FF000),
        (0x1000, 0, 0x90000, 0x8F000),
        (0x1FEDD000, 0x100000, 4 * GIB, 0x100000),
        (0x1FEDD001, 0x100000, 4 * GIB, None),
        (0x1000, 0x1FFDC001, 4 * GIB, None),
    ],
)
def test_highest_fit(length: int, floor: int, ceiling: int, expected: int | None) -> None:
    entries = pc_memory_map(pc_ram_blocks(512 * MIB))
    assert highest_fit(entries, length, floor=floor, ceiling=ceiling) == expected


@settings(max_examples=200)
@given(st.integers(1, 8000), st.integers(0, 1 << 34), st.integers(0, 1 << 34), st.integers(1, 1 << 33))
def test_fits_are_usable_and_within_bounds(mib: int, floor: int, ceiling: int, length: int) -> None:
    entries = pc_memory_map(pc_ram_blocks(mib * MIB))
    high = highest_fit(entries, length, floor=floor, ceiling=ceiling)
    low = lowest_fit(entries, length, floor=floor, ceiling=ceiling)
    assert (high is None) == (low is None)
    if high is None or low is None:
        return
    assert low <= high
    for address in (low, high):
        assert address % 4096 == 0
        assert floor <= address
        assert address + length <= ceiling
        assert is_usable(entries, address, length)
