"""Scatter-gather lists of guest RAM, compared with lists of memoryviews."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.memory import GuestMemory, GuestMemoryError, RamBlock
from pyvm.native import Vector

SIZE = 1 << 16
NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR = struct.Struct("<QIHH")
BLOCKS = [RamBlock(0, 0x8000, 0), RamBlock(0x10000, SIZE - 0x8000, 0x8000)]
"""RAM with a hole from 0x8000 to 0x10000."""

pieces = st.lists(
    st.tuples(st.integers(0, 0x17FFF), st.integers(0, 600)).filter(
        lambda it: any(block.gpa <= it[0] and sum(it) <= block.end for block in BLOCKS)
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def memory():
    memory = GuestMemory(SIZE, BLOCKS)
    memory.write(0, os.urandom(0x8000))
    memory.write(0x10000, os.urandom(0x8000))
    yield memory
    memory.close()


@settings(max_examples=150)
@given(given_pieces=pieces, start=st.integers(0, 8000), stop=st.integers(0, 8000))
def test_a_vector_is_a_list_of_views(
    memory: GuestMemory, given_pieces: list[tuple[int, int]], start: int, stop: int
) -> None:
    vector = memory.vector(given_pieces)
    expected = [memory.read(*piece) for piece in given_pieces]
    data = b"".join(expected)
    assert [bytes(view) for view in vector] == expected
    assert (len(vector), vector.nbytes, vector.pieces) == (len(expected), len(data), given_pieces)
    part = vector.span(start, stop)
    assert b"".join(part) == data[start:stop]
    assert part.nbytes == len(data[start:stop])
    assert [bytes(view) for view in vector[start % 5 : stop % 9]] == expected[start % 5 : stop % 9]
    assert [bytes(view) for view in vector[-3:]] == expected[-3:]
    assert b"".join(Vector.join([part, vector, part])) == data[start:stop] + data + data[start:stop]
    if expected:
        assert bytes(vector[-1]) == expected[-1]


def rows(descriptors: list[tuple[int, int, int, int]]) -> memoryview:
    return memoryview(b"".join(DESCRIPTOR.pack(*row) for row in descriptors))


@pytest.mark.parametrize("linked", [True, False])
@settings(max_examples=100)
@given(readable=pieces, writable=pieces)
def test_a_table_in_order(
    memory: GuestMemory, linked: bool, readable: list[tuple[int, int]], writable: list[tuple[int, int]]
) -> None:
    readable, writable = ([piece for piece in half if piece[1]] for half in (readable, writable))
    if not readable and not writable:
        return
    flags = [0] * len(readable) + [WRITE] * len(writable)
    table = []
    for number, ((gpa, length), flag) in enumerate(zip(readable + writable, flags, strict=True), 1):
        last = NEXT if number < len(flags) else 0
        table.append((gpa, length, flag | last, number) if linked else (gpa, length, 77, flag))
    # What stands behind the end of a list is nobody's business.
    found = memory.vectors_of_table(rows(table + [(1, 1, 1, 1)] * linked), linked=linked)
    assert found is not None
    assert [half.pieces for half in found] == [readable, writable]


@pytest.mark.parametrize(
    "descriptors",
    [
        [],
        [(0, 0, 0, 0)],
        [(0, 16, NEXT, 1)],
        [(0, 16, NEXT, 0), (0, 16, 0, 0)],
        [(0, 16, NEXT, 2), (0, 16, 0, 0), (0, 16, 0, 0)],
        [(0, 16, INDIRECT, 0)],
        [(0, 16, NEXT | WRITE, 1), (0, 16, 0, 0)],
        [(0x7FFF, 2, 0, 0)],
        [(0x8000, 1, 0, 0)],
        [(0x18000, 1, 0, 0)],
        [((1 << 64) - 1, 2, 0, 0)],
        [((1 << 64) - 1, (1 << 32) - 1, 0, 0)],
        [(0, 0x8000, NEXT, 1), (0x10000, 0x8000, NEXT, 2), (0, 1, 0, 0)],
    ],
)
def test_tables_that_need_a_closer_look(memory: GuestMemory, descriptors: list[tuple[int, int, int, int]]) -> None:
    assert memory.vectors_of_table(rows(descriptors), linked=True) is None


@settings(max_examples=200)
@given(data=st.binary(max_size=200), linked=st.booleans())
def test_hostile_tables(memory: GuestMemory, data: bytes, linked: bool) -> None:
    found = memory.vectors_of_table(memoryview(data), linked=linked)
    for vector in found or ():
        for gpa, length in vector.pieces:
            memory.view(gpa, length)


def test_pieces_outside_of_ram(memory: GuestMemory) -> None:
    for piece in ((0x7FFF, 2), (0x8000, 1), (0, -1)):
        with pytest.raises(GuestMemoryError):
            memory.vector([piece])


def test_wrong_use() -> None:
    ram = memoryview(bytearray(100))
    for wrong in ([(0, 0, 101)], [(0, 101, 0)], [(0, (1 << 64) - 1, 2)]):
        with pytest.raises(ValueError, match="not in the buffer"):
            Vector(ram, wrong)
    for bad in ([(0, 0)], [[0, 0, 1]], [(0, 0, "x")], 5):
        with pytest.raises(TypeError):
            Vector(ram, bad)
    for buffer in (bytearray(8), memoryview(b"read-only"), 5):
        with pytest.raises((TypeError, BufferError)):
            Vector(buffer, [])
    vector = Vector(ram, [(0, 0, 8), (0, 20, 8)])
    for index in (2, -3):
        with pytest.raises(IndexError):
            vector[index]
    with pytest.raises(TypeError):
        vector["x"]
    with pytest.raises(ValueError, match="no step"):
        vector[::2]
    with pytest.raises(ValueError, match="nothing to join"):
        Vector.join([])
    for several in ([vector, 5], [vector, Vector(memoryview(bytearray(8)), [])]):
        with pytest.raises(TypeError):
            Vector.join(several)


def test_a_vector_keeps_its_buffer() -> None:
    data = bytearray(8)
    vector = Vector(memoryview(data), [(0, 0, 8)])
    with pytest.raises(BufferError):
        data.append(1)
    del vector
    data.append(1)


def test_files(memory: GuestMemory, tmp_path: Path) -> None:
    data = os.urandom(3000)
    path = tmp_path / "file"
    path.write_bytes(data)
    vector = memory.vector([(0x100, 1000), (0x7000, 1), (0x10000, 1500)])
    with path.open("r+b") as file:
        assert vector.preadv(file.fileno(), 10) == 2501
        assert b"".join(vector) == data[10:2511]
        assert vector.preadv(file.fileno(), 1000, os.RWF_NOWAIT) == 2000
        assert vector[1:].pwritev(file.fileno(), 3000) == 1501
        assert Vector.join([memory.vector([(0, 1)])] * 5000).preadv(file.fileno(), 0) == os.sysconf("SC_IOV_MAX")
        with pytest.raises(OSError, match="Invalid"):
            vector.preadv(file.fileno(), -1)
        with pytest.raises(TypeError):
            vector.preadv(file.fileno())
        with pytest.raises((TypeError, ValueError)):
            vector.preadv("x", 0)
    assert path.read_bytes()[3000:] == b"".join(vector[1:])
    with pytest.raises(OSError, match="Bad file"):
        vector.pwritev(file_number_that_is_free(), 0)


def file_number_that_is_free() -> int:
    number = os.dup(0)
    os.close(number)
    return number
