"""The fonts of text modes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bios import fonts
from pyvm.firmware.bios.font import block, box, characters, font_8x8, font_8x14, font_8x16, shortened

FONTS = {8: font_8x8(), 14: font_8x14(), 16: font_8x16()}
CODES = {character: code for code, character in enumerate(characters())}
BLANK = "\0 \xa0"
heights = pytest.mark.parametrize("height", sorted(FONTS))


def glyph(character: str, height: int) -> list[int]:
    code = CODES[character]
    return list(FONTS[height][height * code : height * (code + 1)])


def mirrored(rows: list[int]) -> list[int]:
    return [int(f"{row:08b}"[::-1], 2) for row in rows]


def test_the_characters_are_those_of_code_page_437() -> None:
    text = characters()
    assert len(text) == len(CODES) == 256
    assert text[0x20:0x7F].encode("ascii") == bytes(range(0x20, 0x7F))
    assert text[0x80:].encode("cp437") == bytes(range(0x80, 0x100))
    assert (text[1], text[0x1F], text[0x7F]) == ("☺", "▼", "⌂")


@heights
def test_machines_have_the_fonts_as_they_are_drawn_now(height: int) -> None:
    assert fonts.font(height) == FONTS[height], "run `python -m pyvm.firmware.bios.font`"


@heights
def test_each_character_has_a_glyph_of_its_own(height: int) -> None:
    font = FONTS[height]
    assert len(font) == 256 * height
    seen: dict[bytes, str] = {}
    for character in CODES:
        rows = bytes(glyph(character, height))
        if character in BLANK:
            assert not any(rows)
            continue
        assert any(rows), character
        assert seen.setdefault(rows, character) == character


@heights
def test_letters_and_digits_do_not_touch_their_neighbours(height: int) -> None:
    for character in CODES:
        if character.isascii() and character.isalnum():
            assert not any(row & 1 for row in glyph(character, height)), character


@heights
def test_letters_stand_on_one_line(height: int) -> None:
    baseline = {8: 6, 14: 10, 16: 11}[height]
    for character in CODES:
        if character.isascii() and character.isalnum() and character not in "Qgjpqy":
            last = max(place for place, row in enumerate(glyph(character, height)) if row)
            assert last == baseline, character
    for character in "gjpqy":
        assert any(glyph(character, height)[baseline + 1 :])


@heights
def test_pairs_mirror_each_other(height: int) -> None:
    for one, other in ("()", "[]", "{}", "<>", "/\\", "«»", "►◄", "→←", "≥≤", "⌐¬"):
        assert glyph(other, height) == mirrored(glyph(one, height))
    for one, other in ("↑↓", "▲▼"):
        assert glyph(other, height) == glyph(one, height)[::-1]
    assert glyph("◘", height) == [row ^ 0xFF for row in glyph("•", height)]


@heights
def test_letters_with_accents_keep_the_letter(height: int) -> None:
    baseline = {8: 6, 14: 10, 16: 11}[height]
    x_height = {8: 2, 14: 4, 16: 5}[height]
    for character in CODES:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) < 2 or parts[0] == "i" or not parts[0].isalpha():
            continue
        letter, whole = glyph(parts[0], height), glyph(character, height)
        if parts[0].islower():
            assert whole[x_height : baseline + 1] == letter[x_height : baseline + 1], character
            assert whole != letter
        else:
            assert whole[baseline] & letter[baseline] == letter[baseline], character
            assert any(whole[: x_height - 1])


ARMS = {"up": (0, slice(None)), "down": (-1, slice(None))}


@heights
def test_lines_meet_at_the_edges_of_their_cells(height: int) -> None:
    """What leaves a cell on one side enters the next one in the same dots, for each weight."""
    edges: dict[str, set[tuple[int, ...]]] = {"vertical": set(), "horizontal": set()}
    for character in CODES:
        if not unicodedata.name(character, "").startswith("BOX DRAWINGS"):
            continue
        rows = glyph(character, height)
        for row in (rows[0], rows[-1]):
            edges["vertical"].add((row,))
        for bit in (0x80, 0x01):
            edges["horizontal"].add(tuple(place for place, row in enumerate(rows) if row & bit))
    middle = height // 2
    assert edges["vertical"] == {(0,), (0b00011000,), (0b00100100,)}
    assert edges["horizontal"] == {(), (middle - 1, middle), (middle - 2, middle + 1)}


def art(rows: list[int]) -> list[str]:
    return [f"{row:08b}".replace("0", ".").replace("1", "#") for row in rows]


@pytest.mark.parametrize(
    ("character", "rows"),
    [
        ("┼", ["...##...", "...##...", "...##...", "########", "########", "...##...", "...##...", "...##..."]),
        ("╬", ["..#..#..", "..#..#..", "###..###", "........", "........", "###..###", "..#..#..", "..#..#.."]),
        ("╔", ["........", "........", "..######", "..#.....", "..#.....", "..#..###", "..#..#..", "..#..#.."]),
        ("╩", ["..#..#..", "..#..#..", "###..###", "........", "........", "########", "........", "........"]),
        ("╓", ["........", "........", "........", "..######", "..######", "..#..#..", "..#..#..", "..#..#.."]),
        ("╡", ["...##...", "...##...", "#####...", "...##...", "...##...", "#####...", "...##...", "...##..."]),
        ("╟", ["..#..#..", "..#..#..", "..#..#..", "..#..###", "..#..###", "..#..#..", "..#..#..", "..#..#.."]),
        ("╫", ["..#..#..", "..#..#..", "..#..#..", "########", "########", "..#..#..", "..#..#..", "..#..#.."]),
        ("╒", ["........", "........", "...#####", "...##...", "...##...", "...#####", "...##...", "...##..."]),
    ],
)
def test_how_lines_join(character: str, rows: list[str]) -> None:
    assert art(box(unicodedata.name(character), 8)) == rows


@heights
def test_halves_make_a_whole(height: int) -> None:
    full = block("FULL BLOCK", height)
    assert full == [0xFF] * height
    for one, other in (("UPPER HALF BLOCK", "LOWER HALF BLOCK"), ("LEFT HALF BLOCK", "RIGHT HALF BLOCK")):
        assert [a ^ b for a, b in zip(block(one, height), block(other, height), strict=True)] == full
    dots = [sum(map(int.bit_count, block(f"{shade} SHADE", height))) for shade in ("LIGHT", "MEDIUM", "DARK")]
    assert dots == [height * 2, height * 4, height * 6]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=16), st.integers(1, 16))
def test_shortening_leaves_rows_out_and_nothing_else(rows: list[int], height: int) -> None:
    short = shortened(rows, height)
    assert len(short) == min(height, len(rows))
    rest = iter(rows)
    assert all(row in rest for row in short)  # in their order
