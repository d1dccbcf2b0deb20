"""Page tables as a debugger walks them."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.cpu import paging
from pyvm.cpu.paging import Mapping, TooManyTablesError, mappings, translate
from pyvm.cpu.registers import RegisterState
from pyvm.memory import GuestMemory, pc_ram_blocks

SIZE = 4 << 20
P = paging.PRESENT
L = P | paging.LARGE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(SIZE, pc_ram_blocks(SIZE))
    yield made
    made.close()


def flat() -> RegisterState:
    return RegisterState(cr0=1)


def two_level(cr3: int = 0x1000, pse: bool = True) -> RegisterState:
    return RegisterState(cr0=1 | paging.CR0_PG, cr3=cr3, cr4=paging.CR4_PSE if pse else 0)


def pae(cr3: int = 0x1000) -> RegisterState:
    return RegisterState(cr0=1 | paging.CR0_PG, cr3=cr3, cr4=paging.CR4_PAE)


def long(cr3: int = 0x1000) -> RegisterState:
    return RegisterState(cr0=1 | paging.CR0_PG, cr3=cr3, cr4=paging.CR4_PAE, efer=0x500)


def test_without_paging(memory: GuestMemory) -> None:
    assert translate(memory, flat(), 0x12345) == 0x12345
    assert translate(memory, RegisterState(a20_mask=0xFFEFFFFF), 0x112345) == 0x12345
    assert mappings(memory, flat()) is None


def test_two_levels(memory: GuestMemory) -> None:
    memory.write_u32(0x1000, 0x2000 | P)
    memory.write_u32(0x1000 + 4 * 1023, 0x400000 | 1 << 13 | L)
    memory.write_u32(0x2000 + 4 * 5, 0x30000 | P)
    memory.write_u32(0x2000 + 4 * 6, 0x31000 | P)
    state = two_level()
    assert translate(memory, state, 0x5123) == 0x30123
    assert translate(memory, state, 0x4123) is None
    assert translate(memory, state, 0x400000) is None
    assert translate(memory, state, 0xFFC00042) == (1 << 32) + 0x400042
    assert translate(memory, state, 1 << 32) is None
    assert mappings(memory, state) == [
        Mapping(0x5000, 0x30000, 0x2000),
        Mapping(0xFFC00000, (1 << 32) + 0x400000, 4 << 20),
    ]


def test_large_pages_are_there_when_they_are_switched_on(memory: GuestMemory) -> None:
    memory.write_u32(0x1000, 0x2000 | L)
    memory.write_u32(0x2000, 0x3000 | P)
    assert translate(memory, two_level(pse=False), 0x10) == 0x3010
    assert translate(memory, two_level(), 0x10) == (1 << 32) + 0x10


def test_pae(memory: GuestMemory) -> None:
    memory.write_u64(0x1000 + 8 * 3, 0x2000 | P)
    memory.write_u64(0x2000, 0x3000 | P)
    memory.write_u64(0x2008, 0x200000 | L)
    memory.write_u64(0x3000, 1 << 63 | 0x123456000 | P)
    state = pae()
    assert translate(memory, state, 0xC0000FFF) == 0x123456FFF
    assert translate(memory, state, 0xC0212345) == 0x212345
    assert mappings(memory, state) == [
        Mapping(0xC0000000, 0x123456000, 0x1000),
        Mapping(0xC0200000, 0x200000, 2 << 20),
    ]


def test_four_levels(memory: GuestMemory) -> None:
    memory.write_u64(0x1000 + 8 * 511, 0x2000 | P)
    memory.write_u64(0x2000 + 8 * 510, 0x3000 | P)
    memory.write_u64(0x2000 + 8 * 511, 0x40000000 | L)
    memory.write_u64(0x3000, 0x4000 | P)
    memory.write_u64(0x4000, 0x9000 | P)
    state = long()
    assert translate(memory, state, 0xFFFF_FFFF_8000_0123) == 0x9123
    assert translate(memory, state, 0xFFFF_FFFF_C000_0000) == 0x40000000
    assert translate(memory, state, 0x1000) is None
    assert mappings(memory, state) == [
        Mapping(0xFFFF_FFFF_8000_0000, 0x9000, 0x1000),
        Mapping(0xFFFF_FFFF_C000_0000, 0x40000000, 1 << 30),
    ]


def test_tables_where_no_memory_is(memory: GuestMemory) -> None:
    for state in (long(0x7FFFFFFFF000), two_level(0xA0000), pae(0xFFFFFFE0)):
        assert translate(memory, state, 0x1000) is None
        assert mappings(memory, state) == []


def test_tables_that_are_their_own_tables_end(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "TABLE_LIMIT", 600)
    for index in range(512):
        memory.write_u64(0x1000 + 8 * index, 0x1000 | P)
    with pytest.raises(TooManyTablesError):
        mappings(memory, long())
    assert translate(memory, long(), 0x1234) == 0x1234


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([two_level, pae, long]),
    st.integers(0, (1 << 52) - 1),
    st.integers(0, (1 << 64) - 1),
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, (1 << 64) - 1)), max_size=8),
)
def test_any_tables_are_walked(make: object, cr3: int, linear: int, entries: list[tuple[int, int]]) -> None:
    with mock.patch.object(paging, "TABLE_LIMIT", 64):
        _walk_any(make, cr3, linear, entries)


def _walk_any(make: object, cr3: int, linear: int, entries: list[tuple[int, int]]) -> None:
    memory = GuestMemory(1 << 20, pc_ram_blocks(1 << 20))
    try:
        for index, entry in entries:
            memory.write_u64(0x1000 + 8 * index, entry)
        for root in (cr3, 0x1000):
            state = make(root)  # type: ignore[operator]
            found = translate(memory, state, linear)
            assert found is None or 0 <= found < 1 << 53
            try:
                for mapping in (mappings(memory, state) or [])[:100]:
                    assert translate(memory, state, mapping.linear) == mapping.physical
            except TooManyTablesError:
                pass
    finally:
        memory.close()
