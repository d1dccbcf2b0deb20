"""Pictures of the screen: what tells each mode from the others, by hand-made screens."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyvm.devices.display.render import idle, render
from pyvm.firmware.bios.font import font_8x16
from tests.unit.vga_support import LFB, MODES, Ours, dispi_mode, load_font, set_colours, set_mode

# Colour n of the DAC is the grey n / 63, so that a picture shows pixel values.
GREYS = [value & 0x3F for value in range(256) for _ in range(3)]


def grey(value: int) -> int:
    return value << 2 | (value & 1) * 3


def made(mode: str) -> Ours:
    adapter = Ours()
    set_colours(adapter, GREYS)
    set_mode(adapter, mode)
    for index in range(16):  # pixel values of 16-colour modes are DAC indices
        attribute(adapter, index, index)
    return adapter


def attribute(adapter: Ours, index: int, value: int) -> None:
    adapter.inb(0x3BA)
    adapter.inb(0x3DA)
    adapter.outb(0x3C0, index | 0x20)
    adapter.outb(0x3C0, value)


def crtc(adapter: Ours, **registers: int) -> None:
    numbers = {"cursor": 0x0A, "end": 0x0B, "high": 0x0C, "low": 0x0D, "place": 0x0F, "preset": 8, "underline": 0x14}
    base = 0x3D4 if adapter.inb(0x3CC) & 1 else 0x3B4
    for name, value in registers.items():
        adapter.outw(base, value << 8 | numbers[name])


def split(adapter: Ours, line: int) -> None:
    """Show what is at address 0 below `line`."""
    adapter.outw(0x3D4, (line & 0xFF) << 8 | 0x18)
    adapter.outw(0x3D4, (0x0F | (line >> 8) << 4) << 8 | 0x07)
    adapter.outw(0x3D4, 0x0F09)


def values(adapter: Ours) -> NDArray[np.uint8]:
    """Return the picture as DAC indices."""
    picture = adapter.screen()
    assert (picture == picture[:, :, :1]).all()
    return picture[:, :, 0] >> 2


def text_screen(text: bytes, attributes: int = 0x07, mode: str = "text") -> Ours:
    adapter = made(mode)
    load_font(adapter, font_8x16(), 16)
    crtc(adapter, cursor=0x20)
    adapter.fill(0xB8000, b"".join(bytes((code, attributes)) for code in text))
    return adapter


def glyph(code: int) -> NDArray[np.uint8]:
    rows = np.frombuffer(font_8x16(), np.uint8).reshape(256, 16, 1)
    return np.unpackbits(rows[code], axis=1)


# ---- Text


def test_a_character_and_its_colours() -> None:
    picture = values(text_screen(b"A", 0x5E))
    assert picture.shape == (400, 720)
    assert (picture[:16, :8] == np.where(glyph(0x41), 0xE, 0x5)).all()
    assert (picture[:16, 8] == 0x5).all()
    assert (picture[16:] == 0).all()


def test_lines_join_in_the_ninth_column() -> None:
    adapter = text_screen(b"\xc4\xb3\xe0", 0x0F)
    picture = values(adapter)
    assert (picture[:16, 8] == picture[:16, 7]).all()
    assert picture[:16, 8].any()
    attribute(adapter, 0x10, 0x08)
    assert not values(adapter)[:16, 8].any()


@pytest.mark.parametrize(("mode", "cell", "width"), [("text8", 8, 640), ("text40", 16, 640)])
def test_other_cells(mode: str, cell: int, width: int) -> None:
    picture = values(text_screen(b"AB", 0x0F, mode))
    assert picture.shape == (400, width)
    expected = np.hstack([np.repeat(glyph(code), cell // 8, axis=1) for code in b"AB"])
    assert (picture[:16, : 2 * cell] == expected * 0xF).all()


def test_attribute_bit_3_chooses_the_font() -> None:
    adapter = text_screen(b"A")
    other = bytes(value ^ 0xFF for value in font_8x16())
    load_font(adapter, other, 16, block=2)
    adapter.outw(0x3C4, 0x0403)
    adapter.fill(0xB8000, b"A\x07A\x0f")
    picture = values(adapter)
    assert (picture[:16, :8] == glyph(0x41) * 7).all()
    assert (picture[:16, 9:17] == (1 - glyph(0x41)) * 0xF).all()


def test_the_cursor_has_its_rows_and_the_colour_of_the_character() -> None:
    adapter = text_screen(b"   ", 0x1C)
    crtc(adapter, cursor=13, end=14, place=1)
    picture = values(adapter)
    assert (picture[13:15, 9:18] == 0xC).all()
    assert (picture[:13, 9:18] == 1).all()
    assert (picture[15, 9:18] == 1).all()
    crtc(adapter, cursor=14, end=13)
    assert (values(adapter)[:16, :27] == 1).all()
    crtc(adapter, cursor=0x20, end=15)
    assert (values(adapter)[:16, :27] == 1).all()


def test_monochrome_text_is_underlined() -> None:
    adapter = made("mono")
    crtc(adapter, cursor=0x20, underline=13)
    adapter.fill(0xB0000, b" \x01 \x07 \x71")
    picture = values(adapter)
    assert (picture[13, :9] == 1).all()
    assert not picture[13, 9:18].any()
    assert (picture[13, 18:27] == 7).all()
    assert not np.delete(picture[:16, :18], 13, axis=0).any()


def test_text_begins_at_the_start_address_and_again_below_the_split() -> None:
    adapter = text_screen(b"".join(bytes([65 + row]) * 80 for row in range(25)), 0x0F)
    crtc(adapter, low=160)
    picture = values(adapter)
    assert (picture[:16, :8] == glyph(67) * 0xF).all()
    split(adapter, 39)
    picture = values(adapter)
    assert (picture[16:32, :8] == glyph(68) * 0xF).all()
    assert (picture[32:40, :8] == glyph(69)[:8] * 0xF).all()
    assert (picture[40:56, :8] == glyph(65) * 0xF).all()


def test_smooth_scrolling_of_text() -> None:
    adapter = text_screen(b"A" * 80 + b"B" * 80 + b"C", 0x0F)
    still = values(adapter)
    crtc(adapter, preset=5)
    assert (values(adapter)[:27] == still[5:32]).all()
    crtc(adapter, preset=0x20)
    assert (values(adapter)[:32, :711] == still[:32, 9:]).all()
    crtc(adapter, preset=0)
    attribute(adapter, 0x13, 2)  # 9-dot characters: 8 is none, 0 is one
    assert (values(adapter)[:16, :717] == still[:16, 3:]).all()
    split(adapter, 15)
    attribute(adapter, 0x10, 0x2C)
    moved = values(adapter)
    assert (moved[:16, :717] == still[:16, 3:]).all()
    assert (moved[16:32] == still[:16]).all()


def test_rows_that_do_not_fit_are_not_shown() -> None:
    adapter = text_screen(b"A")
    adapter.outw(0x3D4, 0x4D09)  # 14 lines a row
    assert values(adapter).shape == (28 * 14, 720)


# ---- Graphics


def test_mode_13h() -> None:
    adapter = made("mode13")
    adapter.fill(0xA0000, bytes(range(64)))
    picture = values(adapter)
    assert picture.shape == (400, 640)
    assert (picture[:2, :128] == np.repeat(np.arange(64), 2)).all()
    assert not picture[2:].any()
    attribute(adapter, 0x13, 2)  # half a pixel more each
    assert (values(adapter)[:2, :126] == np.repeat(np.arange(1, 64), 2)).all()
    adapter.outb(0x3C6, 0x0F)
    assert values(adapter).max() == 0x0F


def test_planar_pixels_have_a_bit_in_each_plane() -> None:
    adapter = made("mode12")
    for plane, value in enumerate((0x80, 0x40, 0x20, 0x10)):
        adapter.outw(0x3C4, 0x0100 << plane | 2)
        adapter.writeb(0xA0000, value)
    assert list(values(adapter)[0, :8]) == [1, 2, 4, 8, 0, 0, 0, 0]
    attribute(adapter, 0x12, 0b1101)
    assert list(values(adapter)[0, :4]) == [1, 0, 4, 8]
    attribute(adapter, 0x13, 3)
    assert list(values(adapter)[0, :4]) == [8, 0, 0, 0]


def test_cga_lines_alternate_between_two_banks() -> None:
    adapter = made("cga4")
    adapter.writeb(0xB8000, 0b00011011)
    adapter.writeb(0xBA000, 0b11100100)
    adapter.writeb(0xB8050, 0b01010101)
    picture = values(adapter)
    assert picture.shape == (400, 640)
    assert list(picture[0, :8:2]) == list(picture[1, 1:8:2]) == [0, 1, 2, 3]
    assert list(picture[2, :8:2]) == list(picture[3, :8:2]) == [3, 2, 1, 0]
    assert list(picture[4, :8:2]) == [1, 1, 1, 1]


def test_a_split_starts_a_row_of_its_own() -> None:
    adapter = made("mode13")
    adapter.fill(0xA0000, b"\x01" * 320 + b"\x02" * 320)
    adapter.outw(0x3D4, 0x640D)  # the second row is 80 words on
    adapter.outw(0x3D4, 0x500D)
    adapter.outw(0x3D4, 0x0418)
    adapter.outw(0x3D4, 0x0F07)
    adapter.outw(0x3D4, 0x0109)
    assert list(values(adapter)[:9, 0]) == [2, 2, 0, 0, 0, 1, 1, 2, 2]


# ---- Packed pixels

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("depth", "data"),
    [
        (16, "ffff00f8e0071f00"),
        (24, "ffffff0000ff00ff00ff0000"),
        (32, "ffffff000000ff0000ff0000ff000000"),
    ],
)
def test_true_colour(depth: int, data: str) -> None:
    adapter = Ours()
    dispi_mode(adapter, 320, 200, depth)
    adapter.fill(LFB, bytes.fromhex(data))
    picture = adapter.screen()
    assert picture.shape == (200, 320, 3)
    assert [tuple(pixel) for pixel in picture[0, :5].tolist()] == [WHITE, RED, GREEN, BLUE, (0, 0, 0)]


def test_a_window_on_a_larger_frame_buffer() -> None:
    adapter = Ours()
    set_colours(adapter, GREYS)
    dispi_mode(adapter, 64, 48, 8, virt_width=256, x=8, y=3)
    adapter.fill(LFB + 3 * 256 + 8, b"\x21")
    adapter.fill(LFB + (3 + 47) * 256 + 8 + 63, b"\x22")
    picture = values(adapter)
    assert (picture[0, 0], picture[47, 63], np.count_nonzero(picture)) == (0x21, 0x22, 2)


@pytest.mark.parametrize(("depth", "lines"), [(4, 2097), (32, 262)])
def test_the_largest_frame_buffers_are_drawn(depth: int, lines: int) -> None:
    adapter = Ours()
    dispi_mode(adapter, 16000, 65535, depth)
    adapter.fill(LFB + (lines - 1) * 2000 * depth, b"\xff" * 4)
    picture = adapter.screen()
    assert picture.shape == (lines, 16000, 3)
    assert picture[-1, 0].all() == (depth == 32)  # the DAC holds black only


# ---- No picture


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_blank_screen_has_the_size_of_the_mode(mode: str) -> None:
    adapter = made(mode)
    adapter.fill(0xA0000, b"\xff" * 256)
    shape = adapter.screen().shape
    adapter.inb(0x3BA)
    adapter.inb(0x3DA)
    adapter.outb(0x3C0, 0)
    blank = adapter.screen()
    assert blank.shape == shape
    assert not blank.any()
    adapter.outb(0x3C0, 0)
    adapter.inb(0x3BA)
    adapter.inb(0x3DA)
    adapter.outb(0x3C0, 0x20)
    adapter.outw(0x3C4, int(MODES[mode]["seq"][:2], 16) << 8 | 0x2001)
    assert not adapter.screen().any()


def test_without_a_mode_the_picture_says_so() -> None:
    picture = Ours().screen()
    assert picture.shape == (480, 640, 3)
    assert (picture == idle()).all()
    assert set(np.unique(picture)) == {0, 0xAA}


def test_pictures_do_not_change_what_they_show() -> None:
    adapter = text_screen(b"A")
    state = adapter.vga.save()
    before = bytes(adapter.vga.vram.view)
    assert (render(state, adapter.vga.vram.view) == adapter.screen()).all()
    assert adapter.vga.save() == state
    assert bytes(adapter.vga.vram.view) == before
