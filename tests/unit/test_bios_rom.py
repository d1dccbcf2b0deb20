"""The ROM image: entry points, traps and tables."""

from __future__ import annotations

import pytest

from pyvm.firmware.bios import rom
from pyvm.firmware.bios.rom import Jump, Trap, _Assembler
from tests.unit.bios_rig import Rig


@pytest.fixture(scope="module")
def image() -> rom.Rom:
    return rom.build()


def at(image: rom.Rom, offset: int, length: int) -> bytes:
    start = rom.SEGMENT_BASE + offset - rom.ROM_START
    return image.data[start : start + length]


def test_size_and_checksum(image: rom.Rom) -> None:
    assert len(image.data) == 0x8000
    assert sum(image.data) & 0xFF == 0


@pytest.mark.parametrize(
    ("offset", "service"),
    [
        (0xE05B, "post"), (0xE3FE, "disk"), (0xE739, "serial"), (0xE82E, "keyboard"), (0xEC59, "diskette"),
        (0xEFD2, "printer"), (0xF065, "video"), (0xF841, "memory_size"), (0xF84D, "equipment"), (0xF859, "system"),
        (0xFE6E, "clock"), (0xFF54, "print_screen"),
    ],
)  # fmt: skip
def test_stub_is_a_trap_at_its_conventional_place(image: rom.Rom, offset: int, service: str) -> None:
    assert at(image, offset, 2) == bytes((0xE6, rom.TRAP_PORT))
    assert image.services[rom.SEGMENT_BASE + offset + 2] == service
    if service != "post":
        assert at(image, offset + 2, 1) == b"\xcf"


def test_fixed_contents(image: rom.Rom) -> None:
    assert at(image, 0xFFF0, 5) == b"\xea\x5b\xe0\x00\xf0"
    assert at(image, 0xFFF5, 8)[2:3] == b"/"
    assert at(image, 0xFFFE, 1) == b"\xfc"
    assert at(image, 0xFF53, 1) == b"\xcf"
    assert at(image, 0xEFC7, 5) == bytes((0xAF, 0x02, 0x25, 0x02, 18))
    assert at(image, 0xE6F5, 4) == bytes((8, 0, 0xFC, 0))
    # The letter A of the 8 by 8 font: dots, and none in the line below it.
    glyph = at(image, 0xFA6E + 8 * ord("A"), 8)
    assert any(glyph[:7])
    assert glyph[7] == 0


def test_int_19_jumps_to_its_trap(image: rom.Rom) -> None:
    code = at(image, 0xE6F2, 3)
    target = 0xE6F5 + int.from_bytes(code[1:], "little", signed=True)
    assert code[0] == 0xE9
    assert target & 0xFFFF == image.labels["int19_load"]


def test_routines_may_not_overlap() -> None:
    assembler = _Assembler()
    assembler.code("one", Trap("a"), at=0xF000)
    with pytest.raises(ValueError, match="two at 0xf001"):
        assembler.table("two", b"xx", at=0xF001)


def test_jumps_reach_their_targets() -> None:
    assembler = _Assembler()
    assembler.code("here", Jump("there"), Jump("here", rom.JC), at=0xF000)
    assembler.code("there", rom.IRET, at=0xE000)
    data = assembler.assemble().data[0x7000:]
    assert data[:3] == b"\xe9" + (0xE000 - 0xF003 & 0xFFFF).to_bytes(2, "little")
    assert data[3:5] == bytes((0x72, 0x100 - 5))


def test_vectors_lead_to_the_stubs() -> None:
    rig = Rig()
    labels = rig.bios.core.rom.labels
    for vector, label in ((0x10, "int10"), (0x13, "int13"), (0x08, "int08"), (0x74, "int74"), (0x1E, "diskette_table")):
        assert rig.memory.read_u32(4 * vector) == 0xF0000000 | labels[label]
    assert rig.memory.read_u32(4 * 0x80) == 0xF000FF53
    assert rig.memory.read_u32(4 * 0x60) == 0
    assert rig.memory.read(0xF8000, 0x8000) == rig.bios.core.rom.data


def test_other_addresses_are_no_traps() -> None:
    rig = Rig()
    registers = rig.trap("int12", eax=0)
    assert registers.ax == 639
    registers.eip += 1
    registers.eax = 0
    rig.bios.call(registers)
    assert registers.eax == 0


def test_a_stack_that_is_no_memory_harms_nobody() -> None:
    rig = Rig()
    registers = rig.trap("int15", eax=0x2403, ss=0xA000, esp=0)
    assert registers.bx == 3
