"""Int 10h on a VGA, and without one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bios import fonts
from pyvm.firmware.bios.video_modes import Layout, Palette, modes, palette
from tests.unit.bios_rig import BUFFER, FRAME_BUFFER, Rig

TEXT_MODES = [number for number, mode in modes().items() if mode.layout is Layout.TEXT]
GRAPHICS_MODES = [number for number, mode in modes().items() if mode.layout is not Layout.TEXT]


@pytest.fixture
def rig() -> Rig:
    return Rig(vga=True)


def indexed(rig: Rig, port: int, index: int) -> int:
    rig.ports.write(port, 1, index)
    return rig.ports.read(port + 1, 1)


def type_text(rig: Rig, text: bytes) -> None:
    for value in text:
        rig.call(0x10, eax=0x0E00 | value, ebx=7)


def cursor(rig: Rig, page: int = 0) -> tuple[int, int]:
    registers = rig.call(0x10, eax=0x0300, ebx=page << 8)
    return registers.dh, registers.dl


class TestText:
    def test_post_leaves_mode_3(self, rig: Rig) -> None:
        registers = rig.call(0x10, eax=0x0F00)
        assert (registers.al, registers.ah, registers.bh) == (3, 80, 0)
        assert rig.text(0).startswith("pyvm BIOS")
        assert rig.call(0x11).ax & 0x30 == 0x20

    def test_teletype(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0003)
        type_text(rig, b"one\r\ntwo\b\bX")
        assert (rig.text(0), rig.text(1)) == ("one", "tXo")
        assert cursor(rig) == (1, 2)

    def test_scrolling(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0003)
        type_text(rig, b"".join(b"line %d\r\n" % number for number in range(30)))
        assert [rig.text(row) for row in (0, 23, 24)] == ["line 6", "line 29", ""]

    def test_wrapping(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0003)
        type_text(rig, b"x" * 81)
        assert rig.text(1) == "x"

    def test_cells(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0200, edx=0x0A4F)
        rig.call(0x10, eax=0x0941, ebx=0x1E, ecx=3)
        assert rig.mmio.read(0xB8000 + 2 * (10 * 80 + 79), 4) == 0x1E411E41
        assert cursor(rig) == (10, 79)
        registers = rig.call(0x10, eax=0x0800)
        assert (registers.al, registers.ah) == (0x41, 0x1E)
        rig.call(0x10, eax=0x0A42, ecx=1)
        assert rig.call(0x10, eax=0x0800).ax == 0x1E42

    def test_windows(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0003)
        for row in range(6):
            rig.call(0x10, eax=0x0200, edx=row << 8)
            rig.call(0x10, eax=0x0930 + row, ebx=7, ecx=10)
        rig.call(0x10, eax=0x0601, ebx=0x1700, ecx=0x0102, edx=0x0305)
        assert [rig.text(row) for row in range(5)] == ["0" * 10, "1122221111", "2233332222", "33    3333", "4" * 10]
        assert rig.mmio.read(0xB8000 + 160 * 3 + 4, 2) == 0x1720
        rig.call(0x10, eax=0x0702, ebx=0x0700, ecx=0x0000, edx=0x0409)
        assert [rig.text(row) for row in range(5)] == ["", "", "0" * 10, "1122221111", "2233332222"]
        rig.call(0x10, eax=0x0600, ebx=0x0700, ecx=0, edx=0xFFFF)
        assert not any(rig.text(row) for row in range(25))

    def test_strings(self, rig: Rig) -> None:
        rig.memory.write(BUFFER, b"a\x1eb\x2f")
        rig.call(0x10, eax=0x1303, ecx=2, edx=0x0203, ebp=BUFFER)
        assert rig.mmio.read(0xB8000 + 2 * (160 + 3), 4) == 0x2F621E61
        assert cursor(rig) == (2, 5)
        rig.memory.write(BUFFER, b"xyz")
        rig.call(0x10, eax=0x1300, ebx=0x07, ecx=3, edx=0x0600, ebp=BUFFER)
        assert rig.text(6) == "xyz"
        assert cursor(rig) == (2, 5)

    def test_pages(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0200, ebx=0x0100, edx=0x0102)
        rig.call(0x10, eax=0x0958, ebx=0x0107, ecx=1)
        assert rig.mmio.read(0xB8000 + 0x1000 + 2 * 82, 1) == 0x58
        rig.call(0x10, eax=0x0501)
        assert indexed(rig, 0x3D4, 0x0C) << 8 | indexed(rig, 0x3D4, 0x0D) == 0x800
        assert indexed(rig, 0x3D4, 0x0E) << 8 | indexed(rig, 0x3D4, 0x0F) == 0x800 + 82
        assert rig.call(0x10, eax=0x0F00).bh == 1
        rig.call(0x10, eax=0x0509)
        assert rig.call(0x10, eax=0x0F00).bh == 1

    def test_cursor_shapes(self, rig: Rig) -> None:
        assert (indexed(rig, 0x3D4, 0x0A), indexed(rig, 0x3D4, 0x0B)) == (0x0E, 0x0F)
        rig.call(0x10, eax=0x0100, ecx=0x0007)  # a block
        assert (indexed(rig, 0x3D4, 0x0A), indexed(rig, 0x3D4, 0x0B)) == (1, 0x0F)
        rig.call(0x10, eax=0x0100, ecx=0x2000)
        assert indexed(rig, 0x3D4, 0x0A) & 0x20
        assert rig.call(0x10, eax=0x0300).cx == 0x2000

    def test_small_characters_make_more_rows(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x1112)
        assert (rig.bda(0x84), rig.bda(0x85, 2)) == (49, 8)
        type_text(rig, b"\n" * 60 + b"end")
        assert rig.text(49) == "end"
        registers = rig.call(0x10, eax=0x1130, ebx=0x0600)
        glyph = rig.memory.read(registers.es * 16 + registers.bp + 16 * ord("A"), 16)
        assert glyph == fonts.font(16)[16 * ord("A") : 16 * ord("B")]

    def test_fonts_are_in_plane_2(self, rig: Rig) -> None:
        assert rig.vga is not None
        rig.vga.sync_text()
        place = 4 * 32 * ord("A") + 2
        assert rig.vga.vram.view[place : place + 64 : 4].tobytes() == fonts.font(16)[16 * ord("A") : 16 * ord("B")]
        rig.memory.write(BUFFER, bytes(range(16)))
        rig.call(0x10, eax=0x1100, ebx=0x1000, ecx=1, edx=ord("A"), ebp=BUFFER)
        assert rig.vga.vram.view[place : place + 64 : 4].tobytes() == bytes(range(16))


class TestModes:
    @pytest.mark.parametrize("number", sorted(modes()))
    def test_registers(self, rig: Rig, number: int) -> None:
        rig.call(0x10, eax=number)
        mode = modes()[number]
        assert rig.call(0x10, eax=0x0F00).ax == mode.columns << 8 | number
        crtc = rig.bda(0x63, 2)
        assert crtc == (0x3B4 if number in (7, 0x0F) else 0x3D4)
        for index in range(10):
            assert indexed(rig, crtc, index) == mode.crtc[index]
        for index, value in enumerate(mode.graphics):
            assert indexed(rig, 0x3CE, index) == value
        assert (rig.bda(0x84), rig.bda(0x85, 2)) == (mode.rows - 1, mode.character_height)

    @pytest.mark.parametrize("number", GRAPHICS_MODES)
    def test_dots(self, rig: Rig, number: int) -> None:
        rig.call(0x10, eax=number)
        colour = (1 << modes()[number].bits) - 1
        if number == 0x0F:
            colour = 5  # the planes of this mode
        rig.call(0x10, eax=0x0C00 | colour, ecx=13, edx=7)
        assert rig.call(0x10, eax=0x0D00, ecx=13, edx=7).al == colour
        assert rig.call(0x10, eax=0x0D00, ecx=14, edx=7).al == 0
        rig.call(0x10, eax=0x0C00 | colour, ecx=0xFFFF, edx=0xFFFF)
        assert rig.call(0x10, eax=0x0D00, ecx=0xFFFF, edx=0xFFFF).al == 0

    @pytest.mark.parametrize("number", GRAPHICS_MODES)
    def test_characters(self, rig: Rig, number: int) -> None:
        rig.call(0x10, eax=number)
        rig.call(0x10, eax=0x0200, edx=0x0302)
        rig.call(0x10, eax=0x0951, ebx=1, ecx=2)
        assert rig.call(0x10, eax=0x0800).al == 0x51
        rig.call(0x10, eax=0x0601, ecx=0, edx=0x0509)
        rig.call(0x10, eax=0x0200, edx=0x0203)
        assert rig.call(0x10, eax=0x0800).al == 0x51
        rig.call(0x10, eax=0x0701, ecx=0, edx=0x0509)
        assert rig.call(0x10, eax=0x0800).al in (0, 0x20)
        rig.call(0x10, eax=0x0200, edx=0x0303)
        assert rig.call(0x10, eax=0x0800).al == 0x51

    def test_exclusive_or(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x12)
        rig.call(0x10, eax=0x09DB, ebx=0x0F, ecx=1)
        rig.call(0x10, eax=0x09DB, ebx=0x8A, ecx=1)
        assert rig.call(0x10, eax=0x0D00, ecx=3, edx=3).al == 0x05

    def test_memory_is_kept_on_request(self, rig: Rig) -> None:
        type_text(rig, b"kept")
        rig.call(0x10, eax=0x0083)
        assert "kept" in "".join(rig.text(row) for row in range(25))
        assert rig.call(0x10, eax=0x0F00).al == 0x83

    def test_unknown_modes_change_nothing(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0055)
        assert rig.call(0x10, eax=0x0F00).al == 3

    def test_palettes(self) -> None:
        vga = palette(Palette.VGA)
        assert vga[3 * 6 : 3 * 7] == bytes((0x2A, 0x15, 0))
        assert vga[3 * 31 : 3 * 32] == b"\x3f\x3f\x3f"
        assert vga[3 * 32 : 3 * 33] == b"\0\0\x3f"
        assert vga[3 * 40 : 3 * 41] == b"\x3f\0\0"
        assert palette(Palette.EGA)[3 * 0x14 : 3 * 0x15] == bytes((0x2A, 0x15, 0))
        assert all(len(palette(kind)) == 768 for kind in Palette)


class TestColours:
    def test_one_and_all(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x1010, ebx=5, ecx=0x2A15, edx=0x0700)
        registers = rig.call(0x10, eax=0x1015, ebx=5)
        assert (registers.dh, registers.ch, registers.cl) == (7, 0x2A, 0x15)
        rig.memory.write(BUFFER, bytes(range(6)))
        rig.call(0x10, eax=0x1012, ebx=254, ecx=2, edx=BUFFER)
        rig.call(0x10, eax=0x1017, ebx=254, ecx=2, edx=BUFFER + 16)
        assert rig.memory.read(BUFFER + 16, 6) == bytes(range(6))
        rig.call(0x10, eax=0x101B, ebx=255, ecx=1)
        registers = rig.call(0x10, eax=0x1015, ebx=255)
        assert registers.dh == registers.ch == registers.cl

    def test_palette_registers(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x1000, ebx=0x2B03)
        assert rig.call(0x10, eax=0x1007, ebx=3).bh == 0x2B
        rig.call(0x10, eax=0x1001, ebx=0x0900)
        assert rig.call(0x10, eax=0x1008).bh == 9
        rig.memory.write(BUFFER, bytes(range(16)) + b"\x3f")
        rig.call(0x10, eax=0x1002, edx=BUFFER)
        rig.call(0x10, eax=0x1009, edx=BUFFER + 32)
        assert rig.memory.read(BUFFER + 32, 17) == bytes(range(16)) + b"\x3f"
        rig.call(0x10, eax=0x1003, ebx=0)
        assert not rig.call(0x10, eax=0x1007, ebx=0x10).bh & 8
        rig.call(0x10, eax=0x1013, ebx=0x0100)
        rig.call(0x10, eax=0x1013, ebx=0x0701)
        assert rig.call(0x10, eax=0x101A).bx == 0x0701


class TestState:
    def test_display_combination(self, rig: Rig) -> None:
        registers = rig.call(0x10, eax=0x1A00)
        assert (registers.al, registers.bx) == (0x1A, 8)

    def test_alternate(self, rig: Rig) -> None:
        assert rig.call(0x10, eax=0x1200, ebx=0x10).bx == 3
        assert rig.call(0x10, eax=0x1201, ebx=0x34).al == 0x12
        assert rig.bda(0x87) & 1
        assert rig.call(0x10, eax=0x1207, ebx=0x34).al == 7

    def test_information(self, rig: Rig) -> None:
        assert rig.call(0x10, eax=0x1B00, edi=BUFFER).al == 0x1B
        data = rig.memory.read(BUFFER, 64)
        assert (data[4], data[5], data[0x22], data[0x25]) == (3, 80, 25, 8)
        offset, segment = struct.unpack_from("<HH", data)
        assert rig.memory.read(segment * 16 + offset, 3) == b"\xff\xe0\x0f"

    def test_save_and_restore(self, rig: Rig) -> None:
        blocks = rig.call(0x10, eax=0x1C00, ecx=7).bx
        rig.memory.write(BUFFER, b"\xee" * 64 * blocks)
        rig.call(0x10, eax=0x1C01, ebx=BUFFER, ecx=7)
        colour = rig.call(0x10, eax=0x1015, ebx=4)
        rig.call(0x10, eax=0x0012)
        rig.call(0x10, eax=0x1010, ebx=4)
        rig.call(0x10, eax=0x1C02, ebx=BUFFER, ecx=7)
        assert rig.call(0x10, eax=0x0F00).al == 3
        assert indexed(rig, 0x3D4, 1) == 0x4F
        assert indexed(rig, 0x3CE, 6) == 0x0E
        again = rig.call(0x10, eax=0x1015, ebx=4)
        assert (again.dh, again.cx) == (colour.dh, colour.cx)


class TestVbe:
    def test_controller_information(self, rig: Rig) -> None:
        rig.memory.write(BUFFER, b"VBE2")
        assert rig.call(0x10, eax=0x4F00, edi=BUFFER, es=0).ax == 0x004F
        signature, version, _, _, offset, segment, memory = struct.unpack(
            "<4sHIIHHH", rig.memory.read(BUFFER, 20)[:20]
        )[:7]
        assert (signature, version, memory) == (b"VESA", 0x0300, 256)
        numbers = struct.unpack("<100H", rig.memory.read(segment * 16 + offset, 200))
        listed = numbers[: numbers.index(0xFFFF)]
        assert 0x118 in listed
        assert list(listed) == sorted(set(listed))
        for number in listed:
            assert rig.call(0x10, eax=0x4F01, ecx=number, edi=BUFFER).ax == 0x004F

    def test_old_callers_get_256_bytes(self, rig: Rig) -> None:
        rig.memory.write(BUFFER, b"\xee" * 512)
        rig.call(0x10, eax=0x4F00, edi=BUFFER)
        assert rig.memory.read(BUFFER + 256, 256) == b"\xee" * 256
        assert rig.memory.read(BUFFER + 255, 1) == b"\0"

    def test_mode_information(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x4F01, ecx=0x144, edi=BUFFER)
        data = rig.memory.read(BUFFER, 256)
        assert struct.unpack_from("<HHH", data, 16) == (4096, 1024, 768)
        assert (data[25], data[27]) == (32, 6)
        assert struct.unpack_from("<I", data, 40)[0] == FRAME_BUFFER

    def test_a_linear_mode(self, rig: Rig) -> None:
        assert rig.vga is not None
        assert rig.call(0x10, eax=0x4F02, ebx=0x4118).ax == 0x004F
        assert rig.call(0x10, eax=0x4F03).bx == 0x4118
        assert rig.call(0x10, eax=0x4F05, edx=2).ax == 0x034F
        registers = rig.call(0x10, eax=0x4F06, ebx=1)
        assert (registers.bx, registers.cx) == (3072, 1024)
        registers = rig.call(0x10, eax=0x4F06, ebx=0, ecx=1280)
        assert (registers.bx, registers.cx) == (3840, 1280)
        assert rig.call(0x10, eax=0x4F07, ecx=16, edx=100).ax == 0x004F
        registers = rig.call(0x10, eax=0x4F07, ebx=1)
        assert (registers.cx, registers.dx) == (16, 100)
        assert rig.call(0x10, eax=0x4F07, ecx=0, edx=0xFFFF).ax == 0x014F
        assert rig.call(0x10, eax=0x4F02, ebx=3).ax == 0x004F
        assert rig.call(0x10, eax=0x4F03).bx == 3
        assert rig.call(0x10, eax=0x0F00).al == 3

    def test_banks(self, rig: Rig) -> None:
        assert rig.vga is not None
        rig.call(0x10, eax=0x4F02, ebx=0x0101)
        assert rig.call(0x10, eax=0x4F05, edx=3).ax == 0x004F
        rig.mmio.write(0xA0005, 1, 0x77)
        assert rig.vga.vram.view[0x30005] == 0x77
        assert rig.call(0x10, eax=0x4F05, ebx=0x0100).dx == 3
        assert rig.call(0x10, eax=0x4F05, edx=256).ax == 0x014F
        assert rig.call(0x10, eax=0x4F08, ebx=0x0800).bh == 8
        rig.memory.write(BUFFER, b"\x10\x20\x30\0")
        assert rig.call(0x10, eax=0x4F09, ecx=1, edx=9, edi=BUFFER).ax == 0x004F
        rig.call(0x10, eax=0x4F09, ebx=1, ecx=1, edx=9, edi=BUFFER + 8)
        assert rig.memory.read(BUFFER + 8, 4) == b"\x10\x20\x30\0"

    def test_save_and_restore(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x4F02, ebx=0x4112)
        assert rig.call(0x10, eax=0x4F04, ecx=15, edx=0).ax == 0x004F
        rig.call(0x10, eax=0x4F04, ecx=15, edx=1, ebx=BUFFER)
        rig.call(0x10, eax=0x0003)
        rig.call(0x10, eax=0x4F04, ecx=15, edx=2, ebx=BUFFER)
        assert rig.call(0x10, eax=0x4F03).bx == 0x4112
        assert rig.call(0x10, eax=0x4F06, ebx=1).cx == 640

    def test_monitor(self, rig: Rig) -> None:
        assert rig.call(0x10, eax=0x4F15, ebx=1, edi=BUFFER).ax == 0x004F
        assert rig.memory.read_u64(BUFFER) == 0x00FFFFFFFFFFFF00

    @pytest.mark.parametrize("mode", [0x01FF, 0x4102, 0x0118 | 1 << 11, 0x0099])
    def test_modes_that_are_not_there(self, rig: Rig, mode: int) -> None:
        assert rig.call(0x10, eax=0x4F02, ebx=mode).ax == 0x014F
        assert rig.call(0x10, eax=0x4F03).bx == 3


class TestWithoutAdapter:
    def test_text_is_on_the_console_alone(self) -> None:
        rig = Rig()
        type_text(rig, b"hello")
        assert rig.line.output.endswith(b"hello")
        rig.call(0x10, eax=0x0200, edx=0x0000)
        rig.call(0x10, eax=0x0941, ebx=7, ecx=1)
        assert rig.call(0x10, eax=0x0800).ax == 0x0741
        assert rig.call(0x10, eax=0x1A00).al == 0
        assert rig.call(0x10, eax=0x4F00, edi=BUFFER).ax == 0x4F00
        rig.call(0x10, eax=0x0013)
        assert rig.call(0x10, eax=0x0F00).al == 3


RIG_FOR_FUZZ = Rig(vga=True)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_registers(data: st.DataObject) -> None:
    rig = RIG_FOR_FUZZ
    word = st.integers(0, 0xFFFF)
    rig.memory.write(0x449, data.draw(st.binary(min_size=30, max_size=30)))
    rig.memory.write(0x484, data.draw(st.binary(min_size=7, max_size=7)))
    functions = (*range(0x14), 0x1A, 0x1B, 0x1C, 0x4F)
    rig.call(
        0x10,
        eax=data.draw(st.sampled_from(functions)) << 8 | data.draw(st.integers(0, 0x30)),
        ebx=data.draw(word),
        ecx=data.draw(word) & 0xFF if data.draw(st.booleans()) else data.draw(st.integers(0, 40)),
        edx=data.draw(word),
        ebp=data.draw(word),
        edi=data.draw(word),
        es=data.draw(st.sampled_from((0, 0x1000, 0x9FFF, 0xB800, 0xFFFF))),
    )
    rig.bios.install()
    rig.bios.video.set_mode(3)
