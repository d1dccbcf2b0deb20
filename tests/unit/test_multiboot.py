"""Multiboot kernels."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import multiboot
from pyvm.firmware.bootstate import BootState, EntryMode
from pyvm.firmware.errors import BootError
from pyvm.firmware.loader import load_kernel
from pyvm.memory import GuestMemory
from tests.unit.firmware_images import MIB, Elf, Segment, machine, outcome, save

MAGIC = 0x1BADB002


def header(flags: int = 0, *addresses: int) -> bytes:
    return struct.pack(f"<III{len(addresses)}I", MAGIC, flags, -(MAGIC + flags) & 0xFFFFFFFF, *addresses)


def elf_kernel(flags: int = 3) -> bytes:
    return Elf(MIB + 0x20, [Segment(MIB, header(flags) + b"\x90" * 100, 5000)], 32).build()


def boot(directory: Path, image: bytes, cmdline: str = "", modules: str | None = None) -> tuple[GuestMemory, BootState]:
    memory, e820 = machine()
    return memory, load_kernel(memory, save(directory, "kernel", image), modules, cmdline, e820, 0xF0000)


def info_field(memory: GuestMemory, state: BootState, offset: int) -> int:
    return memory.read_u32(state.registers["rbx"] + offset)


def text_at(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, 200).split(b"\0")[0]


def test_elf_kernel(tmp_path: Path) -> None:
    memory, state = boot(tmp_path, elf_kernel(), "one two")
    assert state.mode is EntryMode.PROTECTED32
    assert (state.registers["rax"], state.registers["rip"]) == (0x2BADB002, MIB + 0x20)
    assert (state.cr0 & 0x80000001, state.registers["rflags"] & 0x200) == (1, 0)
    assert memory.read(MIB + 12, 4) == b"\x90" * 4
    assert info_field(memory, state, 0) == 0b1001001101
    assert info_field(memory, state, 4) == 639
    assert info_field(memory, state, 8) == (16 * MIB - 0x23000 - MIB) // 1024
    assert text_at(memory, info_field(memory, state, 16)) == f"{tmp_path}/kernel one two".encode()
    assert text_at(memory, info_field(memory, state, 64)) == b"pyvm"
    assert info_field(memory, state, 20) == 0


def test_memory_map(tmp_path: Path) -> None:
    memory, state = boot(tmp_path, elf_kernel())
    length, address = info_field(memory, state, 44), info_field(memory, state, 48)
    data = memory.read(address, length)
    found, position = [], 0
    while position < length:
        size, start, extent, kind = struct.unpack_from("<IQQI", data, position)
        found.append((start, extent, kind))
        position += size + 4
    _, e820 = machine()
    assert found == [(entry.start, entry.length, entry.type) for entry in e820]


def test_address_fields(tmp_path: Path) -> None:
    code = b"\xf4" * 200
    fields = header(1 << 16, MIB + 0x10, MIB, MIB + 100, MIB + 300, MIB + 0x40)
    image = b"#" * 500 + b"\0" * 12 + bytes(0x10)
    image = image + fields + code
    memory, state = boot(tmp_path, image)
    assert state.registers["rip"] == MIB + 0x40
    body = (bytes(0x10) + fields + code)[:100]
    assert memory.read(MIB, 301) == body + bytes(201)


def test_address_fields_with_open_ends(tmp_path: Path) -> None:
    fields = header(1 << 16, 2 * MIB, 2 * MIB, 0, 0, 2 * MIB + 32)
    memory, state = boot(tmp_path, fields + b"\xf4" * 50)
    assert memory.read(2 * MIB, len(fields) + 51) == fields + b"\xf4" * 50 + b"\0"
    assert state.registers["rip"] == 2 * MIB + 32


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (header(1 << 16, MIB, 2 * MIB, 0, 0, MIB), "load_addr"),
        (header(1 << 16, 2 * MIB, MIB, 0, 0, MIB), "load_addr"),
        (header(1 << 16, MIB, MIB, MIB + 5000, 0, MIB), "load_end_addr"),
        (header(1 << 16, MIB, MIB, MIB - 1, 0, MIB), "load_end_addr"),
        (header(1 << 16, MIB, MIB, 0, 0, MIB + 5000), "entry_addr"),
        (header(1 << 16, MIB, MIB, 0, 0xFFFFFFFF, MIB), "does not fit in memory"),
        (header(1 << 16, 0x8000, 0x8000, 0, 0, 0x8000), "below 1 MiB"),
        (header(1 << 16), "cut short"),
        (header(0) + bytes(100), "not an ELF file"),
        (header(8) + bytes(100), "features that are not known here: 0x8"),
        (Elf(MIB, [Segment(0x1000, header() + bytes(99))], 32).build(), "below 1 MiB"),
    ],
)
def test_broken_kernels(tmp_path: Path, image: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message):
        boot(tmp_path, image)


def test_a_wish_for_video_is_left_unfulfilled(tmp_path: Path) -> None:
    memory, state = boot(tmp_path, elf_kernel(4))
    assert info_field(memory, state, 0) & (1 << 11 | 1 << 12) == 0


def test_header_must_be_aligned_valid_and_near_the_start() -> None:
    assert multiboot.find_header(b"\0\0" + header()) is None
    assert multiboot.find_header(header()[:8] + b"\1\2\3\4") is None
    assert multiboot.find_header(bytes(8180) + header()) is not None
    assert multiboot.find_header(bytes(8184) + header()) is None
    wrong_then_right = header()[:8] + bytes(4) + header(2)
    found = multiboot.find_header(wrong_then_right)
    assert found is not None
    assert (found.offset, found.flags) == (12, 2)


def test_modules(tmp_path: Path) -> None:
    first = save(tmp_path, "first", b"1" * 5000)
    second = save(tmp_path, "se,cond", b"2" * 10)
    memory, state = boot(tmp_path, elf_kernel(), "", f"{first} a=b c,{second.replace(',', ',,')}")
    assert info_field(memory, state, 20) == 2
    table = info_field(memory, state, 24)
    modules = [struct.unpack("<IIII", memory.read(table + 16 * index, 16)) for index in range(2)]
    for (start, end, text, reserved), data, arguments in zip(
        modules, (b"1" * 5000, b"2" * 10), (f"{first} a=b c", second), strict=True
    ):
        assert start % 4096 == 0
        assert memory.read(start, end - start) == data
        assert text_at(memory, text) == arguments.encode()
        assert reserved == 0
    assert modules[0][0] >= MIB + 5000
    assert modules[0][1] <= modules[1][0]


def test_modules_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="could not open module file"):
        boot(tmp_path, elf_kernel(), "", f"{tmp_path}/none")
    large = save(tmp_path, "large", bytes(16 * MIB))
    with pytest.raises(BootError, match="does not fit in memory"):
        boot(tmp_path, elf_kernel(), "", large)
    small = save(tmp_path, "small", b"x")
    with pytest.raises(BootError, match="more than 224"):
        boot(tmp_path, elf_kernel(), "", ",".join([small] * 225))
    with pytest.raises(BootError, match="too long"):
        boot(tmp_path, elf_kernel(), "x" * 700_000)


def test_splitting_of_the_module_list() -> None:
    assert multiboot.split_modules("a,,b c,d,") == ["a,b c", "d"]
    assert multiboot.split_modules("") == []


@settings(max_examples=200, deadline=None)
@given(
    flags=st.sampled_from([0, 1 << 16]),
    addresses=st.lists(st.integers(0, 0xFFFFFFFF) | st.integers(MIB - 64, MIB + 256), min_size=5, max_size=5),
    offset=st.integers(0, 20),
)
def test_hostile_address_fields(
    tmp_path_factory: pytest.TempPathFactory, flags: int, addresses: list[int], offset: int
) -> None:
    memory, e820 = machine(2)
    image = bytes(4 * offset) + header(flags, *addresses) + b"\x90" * 64
    path = save(tmp_path_factory.getbasetemp(), "hostile-multiboot", image)
    assert "\n" not in outcome(lambda: load_kernel(memory, path, None, "", e820, 0))
