"""The fonts of text modes: code page 437 in cells of 16, 14 and 8 rows.

`font.txt` beside this module holds the letters as art that can be read and edited; its head explains the notation.
Letters with accents are composed here, lines and blocks are drawn by rule for each height, and the smaller cells are
made from the tall one by leaving out the rows that say least; `font8.txt` has what needs a hand in 8 rows.

A glyph is a list of rows, each an integer of eight bits, the leftmost dot in bit 7.

The fonts are drawn when the art changes, by ``python -m pyvm.firmware.bios.font``; a machine reads the files that this
leaves, through :mod:`pyvm.firmware.bios.fonts`.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final

from pyvm.records import record

Glyph = list[int]

_HERE: Final = Path(__file__).parent
GLYPHS: Final = 256
_WIDTH: Final = 8
_CONTROLS: Final = "\0☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_HOUSE: Final = 0x7F
_EMPTY: Final = "\0 \xa0"
_TOP_OF_INTEGRAL: Final = "⌠"
_BOTTOM_OF_INTEGRAL: Final = "⌡"

_ROW: Final = re.compile(r" ?(\d+) +((?:[.#]{8} *)+)")
_COMPOSITION: Final = re.compile(r"(\S+) = (\S+) (\S+)")


def font_8x16() -> bytes:
    """Return the font of 16 rows: 256 glyphs of 16 bytes."""
    return _font(_TALL)


def font_8x14() -> bytes:
    """Return the font of 14 rows: 256 glyphs of 14 bytes."""
    return _font(_MEDIUM)


def font_8x8() -> bytes:
    """Return the font of 8 rows: 256 glyphs of 8 bytes."""
    return _font(_SHORT)


def characters() -> str:
    """Return the 256 characters of code page 437, those of the control codes too."""
    upper = bytes(range(0x20, GLYPHS)).decode("cp437")
    text = _CONTROLS + upper
    return text[:_HOUSE] + "⌂" + text[_HOUSE + 1 :]


def _font(cell: _Cell) -> bytes:
    glyphs = _Glyphs(cell)
    return b"".join(bytes(glyphs.find(character)) for character in characters())


@record(frozen=True)
class _Cell:
    """A height, and the first rows of capitals, of those under an accent, of small letters, and of tails."""

    height: int
    capitals: int
    accented: int
    small: int
    tails: int


_TALL: Final = _Cell(16, 2, 3, 5, 12)
_MEDIUM: Final = _Cell(14, 1, 3, 4, 11)
_SHORT: Final = _Cell(8, 0, 2, 2, 7)
_SHORT_TAILS: Final = 3  # how many rows of the tall cell's tails the short one has a row for


class _Glyphs:
    """The glyphs for one cell."""

    def __init__(self, cell: _Cell) -> None:
        self._cell = cell
        self._art: dict[str, Glyph] = {}
        self._drawn: dict[str, Glyph] = {}
        self._compositions: dict[str, tuple[str, str]] = {}
        self._read("font.txt", self._art, _TALL.height)
        if cell is _SHORT:
            self._read("font8.txt", self._drawn, _SHORT.height)

    def _read(self, name: str, art: dict[str, Glyph], height: int) -> None:
        names: list[str] = []
        for line in _HERE.joinpath(name).read_text("utf-8").splitlines():
            if row := _ROW.fullmatch(line):
                for glyph, dots in zip(names, row[2].split(), strict=True):
                    art[glyph][int(row[1])] = int(dots.replace(".", "0").replace("#", "1"), 2)
            elif made := _COMPOSITION.fullmatch(line):
                self._compositions[made[1]] = made[2], made[3]
            elif not line.startswith("#"):
                names = line.split()
                art.update((glyph, [0] * height) for glyph in names)

    def find(self, character: str) -> Glyph:
        """Return the glyph of a character; raises KeyError where there is none."""
        if character in _EMPTY:
            return [0] * self._cell.height
        name = unicodedata.name(character)
        if name.startswith("BOX DRAWINGS"):
            return box(name, self._cell.height)
        if name.endswith((" BLOCK", " SHADE")):
            return block(name, self._cell.height)
        return self._glyph(character)

    def _glyph(self, name: str) -> Glyph:
        """Return a glyph that is drawn or composed; also one that is a part only."""
        if name in self._drawn:
            return self._drawn[name]
        if name not in self._compositions:
            return self._fitted(name)
        first, second = self._compositions[name]
        operation = _OPERATIONS.get(first)
        if operation is not None:
            return operation(self._glyph(second))
        return self._composed(self._glyph(first), self._glyph(second))

    def _composed(self, letter: Glyph, accent: Glyph) -> Glyph:
        cell = self._cell
        above = slice(cell.capitals, cell.small)
        if any(letter[above]) and any(accent[above]):
            # A capital makes room for its accent, which rises to the top of the cell.
            capital = shortened(letter[cell.capitals : cell.tails], cell.tails - cell.accented)
            letter = [0] * cell.accented + capital + letter[cell.tails :]
            accent = accent[cell.capitals :] + [0] * cell.capitals
        return [a | b for a, b in zip(letter, accent, strict=True)]

    def _fitted(self, name: str) -> Glyph:
        """Bring a drawn glyph from 16 rows to those of the cell."""
        rows, height = self._art[name], self._cell.height
        if name == _TOP_OF_INTEGRAL:  # its halves meet at the edge of the cell, whatever the height
            return [*rows[1:], rows[-1]][:height]
        if name == _BOTTOM_OF_INTEGRAL:
            return rows[-height:]
        if self._cell is not _SHORT:
            spare = (_TALL.height - height) // 2
            return rows[spare : spare + height]
        capitals = shortened(rows[_TALL.capitals : _TALL.small], _SHORT.small)
        small = shortened(rows[_TALL.small : _TALL.tails], _SHORT.tails - _SHORT.small)
        return capitals + small + shortened(rows[_TALL.tails : _TALL.tails + _SHORT_TAILS], 1)


def shortened(rows: Glyph, height: int) -> Glyph:
    """Return `rows` with as many left out as makes `height`: first those that repeat a neighbour most often."""
    rows = list(rows)
    while len(rows) > height:
        del rows[min(range(len(rows)), key=lambda place: _loss(rows, place))]
    return rows


def _loss(rows: Glyph, place: int) -> tuple[int, int, int]:
    """Return how much a glyph loses with one of its rows; less is better."""
    neighbours = [rows[near] for near in (place - 1, place + 1) if 0 <= near < len(rows)]
    change = min((rows[place] ^ other).bit_count() for other in neighbours)
    run = 1
    for step in (-1, 1):
        near = place + step
        while 0 <= near < len(rows) and rows[near] == rows[place]:
            run, near = run + 1, near + step
    return change, -run, abs(2 * place - len(rows) + 1)


def _mirrored(rows: Glyph) -> Glyph:
    return [int(f"{row:08b}"[::-1], 2) for row in rows]


def _flipped(rows: Glyph) -> Glyph:
    return rows[::-1]


def _turned(rows: Glyph) -> Glyph:
    return _mirrored(_flipped(rows))


def _inverted(rows: Glyph) -> Glyph:
    return [row ^ 0xFF for row in rows]


_OPERATIONS: Final = {"mirror": _mirrored, "flip": _flipped, "turn": _turned, "invert": _inverted}


# -- lines ----------------------------------------------------------------------------------------------------------

_SINGLE: Final = 1
_DOUBLE: Final = 2
_ARMS: Final = {
    "UP": ("up",),
    "DOWN": ("down",),
    "LEFT": ("left",),
    "RIGHT": ("right",),
    "VERTICAL": ("up", "down"),
    "HORIZONTAL": ("left", "right"),
}
_OPPOSITE: Final = {"up": "down", "down": "up", "left": "right", "right": "left"}


def _arms(name: str) -> dict[str, int]:
    """Return the weight of each arm of a line drawing character, from its Unicode name."""
    words = name.removeprefix("BOX DRAWINGS ").split()
    general = _DOUBLE if words[0] == "DOUBLE" and words[1] in _ARMS else _SINGLE
    arms = {}
    for part in " ".join(words).split(" AND "):
        weight = general
        if part.endswith(" DOUBLE"):
            weight = _DOUBLE
        elif part.endswith(" SINGLE"):
            weight = _SINGLE
        for word in part.split():
            arms.update(dict.fromkeys(_ARMS.get(word, ()), weight))
    return arms


def box(name: str, height: int) -> Glyph:
    """Return a line drawing character: single lines are two dots wide, double ones two lines around them."""
    arms = _arms(name)
    grid = [[False] * _WIDTH for _ in range(height)]
    for arm, weight in arms.items():
        vertical = arm in ("up", "down")
        length, across = (height, _WIDTH) if vertical else (_WIDTH, height)
        backward = arm in ("up", "left")
        sides = ("left", "right") if vertical else ("up", "down")
        middle = across // 2
        lines = (middle - 2, middle + 1) if weight == _DOUBLE else (middle - 1, middle)
        for number, line in enumerate(lines):
            # How far the line begins from the middle of the cell: positive towards its own end.
            start = _start(arms, arm, sides[number], sides[1 - number])
            for step in range(start, length // 2):
                place = length // 2 - 1 - step if backward else length // 2 + step
                row, column = (place, line) if vertical else (line, place)
                grid[row][column] = True
    return [int("".join("01"[dot] for dot in row), 2) for row in grid]


def _start(arms: dict[str, int], arm: str, near: str, far: str) -> int:
    """Return where a line of an arm begins; `near` is the arm on its own side, `far` that on the other.

    0 is the first place beyond the middle, 1 the nearer line of a double arm across, -1 and -2 what lies behind the
    middle: the corner with a single arm, and the farther line of a double one.
    """
    through = _OPPOSITE[arm] in arms
    if arms[arm] == _DOUBLE:
        if near in arms:
            return 1 if arms[near] == _DOUBLE else 0
        if through:
            return 0
        return {_DOUBLE: -2, _SINGLE: -1}.get(arms.get(far, 0), 0)
    across = [arms[side] for side in (near, far) if side in arms]
    if through or not across:
        return 0
    if _DOUBLE in across:
        return 1 if len(across) == 2 else -2
    return -1


# -- blocks ---------------------------------------------------------------------------------------------------------

_SHADES: Final = {"LIGHT SHADE": (0x88, 0x22), "MEDIUM SHADE": (0xAA, 0x55), "DARK SHADE": (0x77, 0xDD)}


def block(name: str, height: int) -> Glyph:
    """Return a block or a shade, by its Unicode name."""
    if name in _SHADES:
        return [_SHADES[name][row % 2] for row in range(height)]
    top, bottom = range(height // 2), range(height // 2, height)
    rows, dots = {
        "FULL BLOCK": (range(height), 0xFF),
        "UPPER HALF BLOCK": (top, 0xFF),
        "LOWER HALF BLOCK": (bottom, 0xFF),
        "LEFT HALF BLOCK": (range(height), 0xF0),
        "RIGHT HALF BLOCK": (range(height), 0x0F),
    }[name]
    return [dots if row in rows else 0 for row in range(height)]


def main() -> None:
    """Write the fonts to the files that machines read."""
    for drawn in (font_8x8(), font_8x14(), font_8x16()):
        _HERE.joinpath(f"font{len(drawn) // GLYPHS}.bin").write_bytes(drawn)


if __name__ == "__main__":
    main()
