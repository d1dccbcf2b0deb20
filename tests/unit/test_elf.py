"""ELF parsing and loading."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import elf
from pyvm.firmware.elf import ElfImage, ReadAt
from pyvm.firmware.errors import BootError
from tests.unit.firmware_images import MIB, Elf, Segment, machine, outcome, pvh_note


def reader(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def parse(data: bytes) -> ElfImage:
    return elf.parse(reader(data))


@pytest.mark.parametrize("bits", [32, 64])
def test_headers(bits: int) -> None:
    image = parse(Elf(0x100010, [Segment(2 * MIB, b"b" * 5, 9), Segment(MIB, b"a" * 20)], bits).build())
    assert (image.bits, image.entry) == (bits, 0x100010)
    assert [(header.physical, header.file_size, header.memory_size) for header in image.loads] == [
        (MIB, 20, 20),
        (2 * MIB, 5, 9),
    ]
    assert image.physical_end == 2 * MIB + 9
    assert image.physical_entry() == 0x100010


def test_virtual_entry_point_becomes_physical() -> None:
    image = parse(Elf(0xFFFFFFFF81000040, [Segment(MIB, bytes(100), virtual=0xFFFFFFFF81000000)]).build())
    assert image.physical_entry() == MIB + 0x40


def test_entry_point_outside_all_segments() -> None:
    image = parse(Elf(0x5000000, [Segment(MIB, bytes(100))]).build())
    with pytest.raises(BootError, match="lies in none"):
        image.physical_entry()


@pytest.mark.parametrize("piece", [1000, 4096, 70_001, 1 << 20])
def test_load_from_pieces(piece: int) -> None:
    memory, e820 = machine()
    first, second = b"\x11" * 100_000 + bytes(200_000) + b"\x22" * 5, b"\x33" * 123
    data = Elf(MIB, [Segment(MIB, first, len(first) + 10_000), Segment(4 * MIB + 77, second, 99_999)]).build()
    memory.write(MIB, b"\xff" * (4 * MIB))  # what a reset finds
    elf.load_pieces(memory, e820, (data[start : start + piece] for start in range(0, len(data), piece)))
    assert memory.read(MIB, len(first) + 10_000) == first + bytes(10_000)
    assert memory.read(4 * MIB + 77, 99_999) == second + bytes(99_999 - len(second))
    assert memory.read(4 * MIB + 76, 1) == b"\xff"


def test_load_from_file_leaves_the_rest_alone() -> None:
    memory, e820 = machine()
    data = Elf(MIB, [Segment(MIB, b"\x55" * 3_000_000)], 32).build() + b"debug information"
    changed: list[tuple[int, int]] = []
    memory.on_write = lambda gpa, length: changed.append((gpa, length))
    elf.load_file(memory, e820, reader(data), parse(data))
    assert memory.read(MIB, 3_000_001) == b"\x55" * 3_000_000 + b"\0"
    assert (MIB, 3_000_000) in changed  # stale code is dropped


def test_pages_of_zeros_take_no_host_memory() -> None:
    import os

    memory, e820 = machine()
    memory.write(2 * MIB, b"\xff" * (8 * MIB))
    data = Elf(2 * MIB, [Segment(2 * MIB, bytes(4 * MIB) + b"\1", 8 * MIB)]).build()
    elf.load_pieces(memory, e820, [data])
    assert os.fstat(memory.fd).st_blocks * 512 < 1 * MIB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\x7fELG" + data[4:], "not an ELF file"),
        (lambda data: data[:5] + b"\2" + data[6:], "little-endian"),
        (lambda data: data[:4] + b"\3" + data[5:], "little-endian"),
        (lambda data: data[:16] + b"\1" + data[17:], "type 1 is not an executable"),
        (lambda data: data[:18] + b"\xb7" + data[19:], "machine 183"),
        (lambda data: data[:56] + b"\0\0" + data[58:], "0 program headers"),
        (lambda data: data[:56] + b"\xff\xff" + data[58:], "65535 program headers"),
        (lambda data: data[:40], "cut short"),
        (lambda data: data[:100], "cut short"),
        (lambda data: data[:-1], "cut short"),
    ],
)
def test_damaged_files(change: object, message: str) -> None:
    memory, e820 = machine()
    data = Elf(MIB, [Segment(MIB, b"\x90" * 64)]).build()
    assert callable(change)
    with pytest.raises(BootError, match=message):
        elf.load_pieces(memory, e820, [change(data)])


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "0 program headers"),
        ([Segment(MIB, b"", 0)], "nothing to load"),
        ([Segment(MIB, b"x" * 10, 5)], "longer in the file"),
        ([Segment(0x8000, b"x")], "below 1 MiB"),
        ([Segment(MIB, b"x", 16 * MIB)], "does not fit in memory"),
        ([Segment(0xFFFFFFFFFFFFF000, b"x", 0x2000)], "does not fit in memory"),
        ([Segment(5 << 30, b"x")], "does not fit in memory"),
        ([Segment(MIB, b"x", 0x2000), Segment(MIB + 0x1000, b"y")], "overlap"),
    ],
)
def test_bad_segments(segments: list[Segment], message: str) -> None:
    memory, e820 = machine()
    with pytest.raises(BootError, match=message):
        elf.load_pieces(memory, e820, [Elf(MIB, segments).build()])


def test_no_pieces_at_all() -> None:
    memory, e820 = machine()
    with pytest.raises(BootError, match="not an ELF file"):
        elf.load_pieces(memory, e820, [])


def test_notes() -> None:
    data = pvh_note(0x1234) + (b"\5\0\0\0\3\0\0\0\7\0\0\0Abcd\0\0\0\0xyz\0")
    file = Elf(MIB, [Segment(0, data, type=4), Segment(MIB, b"x")]).build()
    found = list(elf.notes(parse(file), reader(file)))
    assert found == [(b"Xen", 18, b"\x34\x12\0\0"), (b"Abcd", 7, b"xyz")]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bits=st.sampled_from([32, 64]))
def test_hostile_headers(data: st.DataObject, bits: int) -> None:
    file = bytearray(Elf(MIB, [Segment(0, pvh_note(MIB), type=4), Segment(MIB, b"\x90" * 40)], bits).build())
    for position in data.draw(st.lists(st.integers(4, len(file) - 1), min_size=1, max_size=6)):
        file[position] = data.draw(st.integers(0, 255))
    memory, e820 = machine(2)
    content = bytes(file[: data.draw(st.integers(0, len(file)))]) if data.draw(st.booleans()) else bytes(file)

    def load() -> None:
        image = elf.load_pieces(memory, e820, [content])
        list(elf.notes(image, reader(content)))
        image.physical_entry()

    assert "\n" not in outcome(load)
