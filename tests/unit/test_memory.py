"""Guest RAM and the maps of device registers."""

from __future__ import annotations

import mmap
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.memory import (
    FOUR_GIB,
    PAGE_SIZE,
    GuestMemory,
    GuestMemoryError,
    IoSpace,
    OverlapError,
    RamBlock,
    pc_ram_blocks,
)

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory():
    memory = GuestMemory(
        4 * PAGE_SIZE, [RamBlock(0, 2 * PAGE_SIZE, 0), RamBlock(0x10000, 2 * PAGE_SIZE, 2 * PAGE_SIZE)]
    )
    yield memory
    memory.close()


# ---- RAM


def test_reads_and_writes_of_each_width(memory: GuestMemory) -> None:
    memory.write(0x10, bytes(range(1, 9)))
    assert memory.read(0x10, 8) == bytes(range(1, 9))
    assert memory.read_u16(0x10) == 0x0201
    assert memory.read_u32(0x10) == 0x04030201
    assert memory.read_u64(0x10) == 0x0807060504030201
    memory.write_u16(0x11, 0xBBAA)
    memory.write_u32(0x20, 0xDDCCBBAA)
    memory.write_u64(0x28, 0x1122334455667788)
    assert memory.read(0x10, 4) == b"\x01\xaa\xbb\x04"
    assert memory.read(0x20, 16) == bytes.fromhex("aabbccdd00000000 8877665544332211")


def test_blocks_are_where_they_should_be(memory: GuestMemory) -> None:
    memory.write(0x10000, b"second")
    assert memory.mapping[2 * PAGE_SIZE : 2 * PAGE_SIZE + 6] == b"second"
    assert memory.offset(0x10FFF, 1) == 3 * PAGE_SIZE - 1


def test_views_are_the_memory_itself(memory: GuestMemory) -> None:
    written: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: written.append((gpa, length))
    view = memory.view(0x100, 4)
    view[:] = b"view"
    assert memory.read(0x100, 4) == b"view"
    assert written == []
    memory.written(0x100, 4)
    memory.write(8, memoryview(b"xx"))
    memory.write_u16(1, 0)
    memory.write_u32(2, 0)
    memory.write_u64(3, 0)
    memory.write(9, b"")
    assert written == [(0x100, 4), (8, 2), (1, 2), (2, 4), (3, 8), (9, 0)]
    view.release()


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (2 * PAGE_SIZE, 1),
        (2 * PAGE_SIZE - 1, 2),
        (0xFFFF, 1),
        (0xFFFF, 2),
        (0x12000, 1),
        (0, 2 * PAGE_SIZE + 1),
        (-1, 1),
        (-8, 16),
        (1 << 64, 1),
        (0, 1 << 64),
        (5, -1),
    ],
)
def test_what_is_not_ram_of_one_block_is_refused(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(GuestMemoryError) as error:
        memory.read(gpa, length)
    assert (error.value.gpa, error.value.length) == (gpa, length)
    with pytest.raises(GuestMemoryError):
        memory.view(gpa, length)
    with pytest.raises(GuestMemoryError):
        memory.discard(gpa, length)


@pytest.mark.parametrize("gpa", [2 * PAGE_SIZE - 1, 0x12000 - 1, 1 << 64, -1])
def test_words_across_the_end_are_refused_and_nothing_is_written(memory: GuestMemory, gpa: int) -> None:
    before = bytes(memory.mapping)
    written: list[int] = []
    memory.on_write = lambda gpa, length: written.append(gpa)
    for read in (memory.read_u16, memory.read_u32, memory.read_u64):
        with pytest.raises(GuestMemoryError):
            read(gpa)
    for write in (memory.write_u16, memory.write_u32, memory.write_u64):
        with pytest.raises(GuestMemoryError):
            write(gpa, 0xFF)
    with pytest.raises(GuestMemoryError):
        memory.write(gpa, b"12")
    assert bytes(memory.mapping) == before
    assert written == []


def resident(memory: GuestMemory) -> int:
    """Return how many bytes the host holds for the memory."""
    return os.fstat(memory.fd).st_blocks * 512


def test_discarded_pages_go_back_to_the_host(memory: GuestMemory) -> None:
    for block in memory.blocks:
        memory.write(block.gpa, b"\xff" * block.size)
    assert resident(memory) == 4 * PAGE_SIZE
    written: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: written.append((gpa, length))
    memory.discard(PAGE_SIZE, PAGE_SIZE)
    memory.discard(0x10000, 2 * PAGE_SIZE)
    assert resident(memory) == PAGE_SIZE
    assert memory.read(PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert memory.read(0x10000, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    assert memory.read(0, PAGE_SIZE) == b"\xff" * PAGE_SIZE
    assert written == [(PAGE_SIZE, PAGE_SIZE), (0x10000, 2 * PAGE_SIZE)]


@pytest.mark.parametrize(("gpa", "length"), [(1, PAGE_SIZE), (0, 100), (0, 0), (PAGE_SIZE, PAGE_SIZE - 1)])
def test_only_whole_pages_are_discarded(memory: GuestMemory, gpa: int, length: int) -> None:
    memory.write(0, b"\x55" * 2 * PAGE_SIZE)
    with pytest.raises(GuestMemoryError):
        memory.discard(gpa, length)
    assert memory.read(0, 2 * PAGE_SIZE) == b"\x55" * 2 * PAGE_SIZE


def test_memory_in_use_is_not_closed_under_its_user() -> None:
    memory = GuestMemory(PAGE_SIZE, [RamBlock(0, PAGE_SIZE, 0)])
    view = memory.view(0, 16)
    with pytest.raises(BufferError):
        memory.close()
    view.release()
    assert isinstance(memory.mapping, mmap.mmap)


@settings(max_examples=100, deadline=None)
@given(st.integers(MIB, 64 * GIB).map(lambda size: size & -PAGE_SIZE))
def test_where_a_pc_shows_its_ram(size: int) -> None:
    blocks = pc_ram_blocks(size)
    assert blocks[0].gpa == 0
    position = 0
    for block in blocks:
        assert block.gpa >= position
        assert block.size > 0
        position = block.end
        assert not (block.gpa < 0xC0000 and block.end > 0xA0000)  # the legacy VGA window
        assert block.end <= 0xE0000000 or block.gpa >= FOUR_GIB  # the PCI hole
        assert block.offset + block.size <= size
    offsets = sorted((block.offset, block.size) for block in blocks)
    assert sum(length for _, length in offsets) == size - min(0x20000, max(0, size - 0xA0000))
    assert all(first[0] + first[1] <= second[0] for first, second in pairwise(offsets))


@pytest.mark.parametrize(
    ("size", "ends"),
    [
        (512 * MIB, [0xA0000, 512 * MIB]),
        (0xE0000000 - PAGE_SIZE, [0xA0000, 0xE0000000 - PAGE_SIZE]),
        (0xE0000000, [0xA0000, 0xC0000000, FOUR_GIB + 0x20000000]),
        (8 * GIB, [0xA0000, 0xC0000000, FOUR_GIB + 5 * GIB]),
    ],
)
def test_ram_above_the_pci_hole(size: int, ends: list[int]) -> None:
    assert [block.end for block in pc_ram_blocks(size)] == ends


# ---- Registers


class Registers:
    """Registers that remember accesses and behave as memory."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size))
        return int.from_bytes(self.content[offset : offset + size], "little") | 1 << 8 * size

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size))
        self.content[offset : offset + size] = value.to_bytes(size, "little")


def test_unassigned_addresses_read_all_ones() -> None:
    space = IoSpace("I/O")
    assert [space.read(0x80, size) for size in (1, 2, 4, 8)] == [0xFF, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1]
    space.write(0x80, 4, 1)
    assert space.find(0x80) is None
    assert space.regions() == []


def test_finding_at_the_borders() -> None:
    space = IoSpace("I/O")
    registers = Registers(16)
    low = space.add(0x10, 16, registers.read, registers.write, "low")
    high = space.add(0x20, 16, registers.read, registers.write, "high")
    assert [space.find(address) for address in (0xF, 0x10, 0x1F, 0x20, 0x2F, 0x30)] == [
        None,
        low,
        low,
        high,
        high,
        None,
    ]


@pytest.mark.parametrize(("base", "size"), [(0x10, 16), (0xF, 2), (0x1F, 1), (0x1F, 100), (0, 0x100), (0x14, 4)])
def test_overlaps_are_refused(base: int, size: int) -> None:
    space = IoSpace("I/O")
    registers = Registers(16)
    space.add(0x10, 16, registers.read, registers.write, "uart")
    with pytest.raises(OverlapError, match=f"^I/O: new at {base:#x} would overlap uart at 0x10$"):
        space.add(base, size, registers.read, registers.write, "new")
    assert [region.name for region in space.regions()] == ["uart"]
    space.add(0x20, 1, registers.read, registers.write, "behind")
    space.add(0xF, 1, registers.read, registers.write, "before")
    assert [region.name for region in space.regions()] == ["before", "uart", "behind"]


def test_removing() -> None:
    space = IoSpace("memory")
    registers = Registers(16)
    first = space.add(0x10, 16, registers.read, registers.write, "a")
    space.remove(first)
    assert space.read(0x10, 1) == 0xFF
    with pytest.raises(ValueError, match="memory: a is not mapped"):
        space.remove(first)
    again = space.add(0x10, 16, registers.read, registers.write, "a")
    with pytest.raises(ValueError, match="not mapped"):
        space.remove(first)
    space.remove(again)


@pytest.mark.parametrize(
    ("low", "high", "offset", "size", "log"),
    [
        (1, 8, 0, 8, [(0, 8)]),
        (1, 4, 0, 8, [(0, 4), (4, 4)]),
        (1, 1, 2, 4, [(2, 1), (3, 1), (4, 1), (5, 1)]),
        (4, 4, 1, 1, [(0, 4)]),
        (4, 4, 6, 2, [(4, 4)]),
        (4, 4, 0, 8, [(0, 4), (4, 4)]),
        (2, 2, 0, 1, [(0, 2)]),
        (1, 8, 14, 4, [(14, 2)]),
        (1, 8, 12, 8, [(12, 4)]),
        (1, 2, 15, 2, [(15, 1)]),
    ],
)
def test_accesses_are_split_and_widened(
    low: int, high: int, offset: int, size: int, log: list[tuple[int, int]]
) -> None:
    space = IoSpace("memory")
    registers = Registers(16)
    registers.content[:] = bytes(range(0x10, 0x20))
    space.add(0x100, 16, registers.read, registers.write, "x", min_access=low, max_access=high)
    inside = bytes(range(0x10, 0x20))[offset : offset + size]
    assert space.read(0x100 + offset, size) == int.from_bytes(inside.ljust(size, b"\xff"), "little")
    assert [entry[1:] for entry in registers.log] == log
    registers.log.clear()
    space.write(0x100 + offset, size, int.from_bytes(b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"[:size], "little"))
    assert [entry[1:] for entry in registers.log] == log
    assert (
        registers.content[offset : min(offset + size, 16)]
        == b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"[: min(size, 16 - offset)]
    )


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 15),
    st.sampled_from([1, 2, 4, 8]),
    st.data(),
)
def test_any_access_reaches_handlers_with_legal_sizes_only(
    low: int, high: int, offset: int, size: int, data: st.DataObject
) -> None:
    """Registers that cannot be accessed in part are reached at aligned addresses only: the processor splits others."""
    high = max(low, high)
    if low > 1:
        offset &= -size
    space = IoSpace("memory")

    def read(at: int, width: int) -> int:
        assert low <= width <= high
        assert 0 <= at <= 16 - width
        return 0x1FF

    def write(at: int, width: int, value: int) -> None:
        read(at, width)
        assert 0 <= value < 1 << 8 * width

    space.add(0x1000, 16, read, write, "x", min_access=low, max_access=high)
    assert 0 <= space.read(0x1000 + offset, size) < 1 << 8 * size
    space.write(0x1000 + offset, size, data.draw(st.integers(0, (1 << 8 * size) - 1)))
