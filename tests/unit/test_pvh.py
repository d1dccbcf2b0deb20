"""ELF kernels with a PVH entry point."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bootstate import EntryMode
from pyvm.firmware.errors import BootError
from pyvm.firmware.loader import load_kernel
from tests.unit.firmware_images import MIB, Elf, Segment, machine, outcome, pvh_note, save

CODE = b"\x90" * 64


def kernel(entry: int = MIB + 8, note: bytes | None = None, bits: int = 64) -> bytes:
    notes = pvh_note(MIB + 8) if note is None else note
    return Elf(entry, [Segment(0, notes, type=4), Segment(MIB, CODE, 8192)], bits).build()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("note_size", [4, 8])
def test_boot(tmp_path: Path, bits: int, note_size: int) -> None:
    memory, e820 = machine()
    path = save(tmp_path, "vmlinux", kernel(0x12345, pvh_note(MIB + 8, note_size), bits))
    initrd = save(tmp_path, "initrd", b"r" * 9000)
    state = load_kernel(memory, path, initrd, "root=/dev/vda", e820, 0xF0000)
    assert state.mode is EntryMode.PROTECTED32
    assert state.registers["rip"] == MIB + 8
    assert (state.cr0, state.cr4, state.efer, state.registers["rflags"]) == (0x11, 0, 0, 2)
    assert (state.tr.limit, state.tr.base) == (0x67, 0)
    assert memory.read(MIB, 8192) == CODE.ljust(8192, b"\0")
    info = struct.unpack("<IIIIQQQQII", memory.read(state.registers["rbx"], 56))
    magic, version, flags, count, modules, command, rsdp, memory_map, entries, reserved = info
    assert (magic, version, flags, count, rsdp, reserved) == (0x336EC578, 1, 0, 1, 0xF0000, 0)
    assert memory.read(command, 14) == b"root=/dev/vda\0"
    address, size, arguments, _ = struct.unpack("<QQQQ", memory.read(modules, 32))
    assert (size, arguments) == (9000, 0)
    assert memory.read(address, size) == b"r" * 9000
    expected = b"".join(struct.pack("<QQII", entry.start, entry.length, entry.type, 0) for entry in e820)
    assert memory.read(memory_map, 24 * entries) == expected


def test_without_initrd(tmp_path: Path) -> None:
    memory, e820 = machine()
    state = load_kernel(memory, save(tmp_path, "vmlinux", kernel()), None, "", e820, 0)
    info = struct.unpack("<IIIIQQ", memory.read(state.registers["rbx"], 32))
    assert info[3:5] == (0, 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (kernel(note=b""), "is not a Linux bzImage"),
        (kernel(note=pvh_note(MIB)[:-1]), "is not a Linux bzImage"),
        (kernel(note=pvh_note(MIB).replace(b"Xen", b"Foo")), "is not a Linux bzImage"),
        (kernel(note=pvh_note(0x9000000)), "lies in none of the segments"),
        (kernel()[:-1], "cut short"),
        (Elf(MIB, [Segment(0, pvh_note(MIB), type=4), Segment(MIB, CODE, 1 << 40)]).build(), "does not fit"),
    ],
)
def test_broken_kernels(tmp_path: Path, image: bytes, message: str) -> None:
    memory, e820 = machine()
    with pytest.raises(BootError, match=message):
        load_kernel(memory, save(tmp_path, "vmlinux", image), None, "", e820, 0)


def test_what_does_not_fit(tmp_path: Path) -> None:
    memory, e820 = machine(4)
    path = save(tmp_path, "vmlinux", kernel())
    with pytest.raises(BootError, match="initrd of 3145728 bytes does not fit"):
        load_kernel(memory, path, save(tmp_path, "initrd", bytes(3 * MIB)), "", e820, 0)
    with pytest.raises(BootError, match="command line"):
        load_kernel(memory, path, None, "x" * 700_000, e820, 0)


@settings(max_examples=150, deadline=None)
@given(note=st.binary(max_size=64), prefix=st.booleans())
def test_hostile_notes(tmp_path_factory: pytest.TempPathFactory, note: bytes, prefix: bool) -> None:
    memory, e820 = machine(4)
    data = pvh_note(MIB)[:12] + note if prefix else note
    path = save(tmp_path_factory.getbasetemp(), "hostile-pvh", kernel(note=data))
    assert "\n" not in outcome(lambda: load_kernel(memory, path, None, "", e820, 0))
