"""What is on the screen: characters in text memory and dots in graphics memory.

A screen reads and writes character cells at (page, row, column) and moves blocks of them, whatever the mode's memory
looks like.  Positions outside the screen are ignored; page numbers are taken modulo 8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import fonts
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import linear
from pyvm.firmware.bios.vga import (
    GRAPHICS,
    GRAPHICS_BIT_MASK,
    GRAPHICS_MODE,
    GRAPHICS_READ_MAP,
    GRAPHICS_ROTATE,
    SEQUENCER,
    SEQUENCER_MAP_MASK,
    Vga,
)
from pyvm.firmware.bios.video_modes import Layout, VideoMode

BLANK: Final = 0x20
PLAIN: Final = 0x07
_XOR: Final = 0x80  # of a colour in graphics modes
_GRAPHICS_FONT_VECTOR: Final = 0x43 * 4
_CGA_BANK: Final = 0x2000
_ROTATE_XOR: Final = 0x18
_DEFAULT_GRAPHICS_MODE: Final = 0
_ALL_PLANES: Final = 0x0F


class Screen(ABC):
    """One screen; `columns` and `rows` are read anew at each use, for programs change them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._bda = core.bda

    @property
    def columns(self) -> int:
        """Characters in a row."""
        return min(self._bda.word(area.VIDEO_COLUMNS) or 80, 256)

    @property
    def rows(self) -> int:
        """Rows of characters."""
        return min((self._bda.byte(area.VIDEO_LAST_ROW) or 24) + 1, 128)

    @abstractmethod
    def read(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Return the character and the attribute in a cell."""

    @abstractmethod
    def write(self, page: int, row: int, column: int, code: int, attribute: int | None, count: int = 1) -> None:
        """Store a character in `count` cells from there on; without an attribute it keeps what is there."""

    @abstractmethod
    def scroll(self, page: int, window: tuple[int, int, int, int], lines: int, attribute: int) -> None:
        """Move a window (top, left, bottom, right) up, or down where `lines` is negative; 0 clears it all."""

    def read_dot(self, page: int, x: int, y: int) -> int:
        """Return a dot's colour; 0 in text modes."""
        return 0

    def write_dot(self, page: int, x: int, y: int, colour: int) -> None:
        """Set a dot; with bit 7 of the colour, combine it by exclusive or.  Text modes have no dots."""
        return


class TextScreen(Screen):
    """Text modes: a character and an attribute for each cell."""

    def __init__(self, core: Core, mode: VideoMode) -> None:
        super().__init__(core)
        self._base = mode.base

    def _cell(self, page: int, row: int, column: int) -> int:
        size = self._bda.word(area.VIDEO_PAGE_SIZE)
        offset = (page & 7) * size + 2 * (row * self.columns + column)
        return self._base + (offset & 0x7FFE)

    def read(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Return the character and the attribute in a cell."""
        value = self._core.machine.mmio.read(self._cell(page, row, column), 2)
        return value & 0xFF, value >> 8 & 0xFF

    def write(self, page: int, row: int, column: int, code: int, attribute: int | None, count: int = 1) -> None:
        """Store a character in some cells."""
        store = self._core.machine.mmio.write
        for index in range(min(count, self.rows * self.columns)):
            cell = self._cell(page, row, column + index)
            if attribute is None:
                store(cell, 1, code)
            else:
                store(cell, 2, code | attribute << 8)

    def scroll(self, page: int, window: tuple[int, int, int, int], lines: int, attribute: int) -> None:
        """Move a window of cells."""
        top, left, bottom, right = window
        length = 2 * (right - left + 1)
        height = bottom - top + 1
        blank = bytes((BLANK, attribute)) * (length // 2)
        moved = height - abs(lines) if lines and abs(lines) < height else 0
        order = range(moved) if lines > 0 else range(moved - 1, -1, -1)
        for index in order:
            source = top + index + max(lines, 0)
            target = top + index - min(lines, 0)
            self._copy(self._cell(page, source, left), self._cell(page, target, left), length)
        empty = range(top + moved, bottom + 1) if lines >= 0 else range(top, top + height - moved)
        for row in empty:
            self._store(self._cell(page, row, left), blank)

    def _copy(self, source: int, target: int, length: int) -> None:
        load, store = self._core.machine.mmio.read, self._core.machine.mmio.write
        whole = length & ~7
        for index in range(0, whole, 8):
            store(target + index, 8, load(source + index, 8))
        for index in range(whole, length, 2):
            store(target + index, 2, load(source + index, 2))

    def _store(self, target: int, data: bytes) -> None:
        store = self._core.machine.mmio.write
        whole = len(data) & ~7
        for index in range(0, whole, 8):
            store(target + index, 8, int.from_bytes(data[index : index + 8], "little"))
        for index in range(whole, len(data), 2):
            store(target + index, 2, int.from_bytes(data[index : index + 2], "little"))


class ShadowScreen(Screen):
    """The screen of a machine without a display adapter: cells that only the serial console shows."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._cells: dict[tuple[int, int, int], tuple[int, int]] = {}

    def read(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Return the character and the attribute in a cell."""
        return self._cells.get((page & 7, row, column), (BLANK, PLAIN))

    def write(self, page: int, row: int, column: int, code: int, attribute: int | None, count: int = 1) -> None:
        """Store a character in some cells."""
        columns, rows = self.columns, self.rows
        for place in range(row * columns + column, row * columns + column + min(count, rows * columns)):
            where = (page & 7, *divmod(place, columns))
            if where[1] < rows:
                self._cells[where] = (code, self.read(*where)[1] if attribute is None else attribute)

    def scroll(self, page: int, window: tuple[int, int, int, int], lines: int, attribute: int) -> None:
        """Move a window of cells."""
        top, left, bottom, right = window
        before = dict(self._cells)
        for row in range(top, bottom + 1):
            source = row + lines
            inside = lines != 0 and top <= source <= bottom
            for column in range(left, right + 1):
                old = before.get((page & 7, source, column), (BLANK, attribute)) if inside else (BLANK, attribute)
                self._cells[page & 7, row, column] = old


class GraphicsScreen(Screen):
    """Graphics modes: characters are drawn with the font that interrupt vector 43h points to."""

    def __init__(self, core: Core, mode: VideoMode) -> None:
        super().__init__(core)
        self._mode = mode
        self._stride = mode.bytes_per_row

    @property
    def _height(self) -> int:
        return min(max(self._bda.word(area.CHARACTER_HEIGHT), 1), 32)

    @property
    def _lines(self) -> int:
        """Lines of dots on the screen."""
        return self._mode.rows * self._mode.character_height

    def _glyph(self, code: int) -> bytes:
        vector = self._core.memory.read_u32(_GRAPHICS_FONT_VECTOR)
        return self._core.read(linear(vector >> 16, vector & 0xFFFF) + code * self._height, self._height)

    @abstractmethod
    def read_line(self, page: int, x: int, y: int, width: int) -> list[int]:
        """Return the colours of some dots, `x` and `width` multiples of 8."""

    @abstractmethod
    def write_line(self, page: int, x: int, y: int, colours: list[int], combine: bool) -> None:
        """Set some dots, `x` and their number multiples of 8; `combine` them by exclusive or."""

    def read(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Look up the character whose dots are those on the screen; 0 where there is none."""
        height = self._height
        dots = bytearray()
        for line in range(height):
            colours = self.read_line(page, 8 * column, row * height + line, 8)
            dots.append(sum((colour != 0) << (7 - index) for index, colour in enumerate(colours)))
        for code in range(fonts.CHARACTERS):
            if self._glyph(code) == dots:
                return code, 0
        return 0, 0

    def write(self, page: int, row: int, column: int, code: int, attribute: int | None, count: int = 1) -> None:
        """Draw a character some times, to the end of its row at most."""
        colour = PLAIN if attribute is None else attribute
        combine = bool(colour & _XOR) and self._mode.bits < 8
        colour &= (1 << self._mode.bits) - 1
        glyph = self._glyph(code)
        count = min(count, self.columns - column)
        if row >= self.rows or count <= 0:
            return
        for line, dots in enumerate(glyph):
            colours = [colour if dots >> (7 - bit) & 1 else 0 for bit in range(8)] * count
            y = row * self._height + line
            if y < self._lines:
                self.write_line(page, 8 * column, y, colours, combine)

    def scroll(self, page: int, window: tuple[int, int, int, int], lines: int, attribute: int) -> None:
        """Move a window of cells."""
        top, left, bottom, right = window
        height = self._height
        total = (bottom - top + 1) * height
        distance = abs(lines) * height
        moved = total - distance if lines and distance < total else 0
        first, width = top * height, right - left + 1
        order = range(moved) if lines > 0 else range(moved - 1, -1, -1)
        for index in order:
            source = first + index + (distance if lines > 0 else 0)
            target = first + index + (distance if lines < 0 else 0)
            if max(source, target) < self._lines:
                self.copy_line(page, 8 * left, source, target, 8 * width)
        start = first + moved if lines >= 0 else first
        colours = [attribute & (1 << self._mode.bits) - 1] * (8 * width)
        for y in range(start, min(start + total - moved, self._lines)):
            self.write_line(page, 8 * left, y, colours, False)

    def copy_line(self, page: int, x: int, source: int, target: int, width: int) -> None:
        """Copy dots from one line to another."""
        self.write_line(page, x, target, self.read_line(page, x, source, width), False)

    def read_dot(self, page: int, x: int, y: int) -> int:
        """Return a dot's colour."""
        if x >= 8 * self._mode.columns or y >= self._lines:
            return 0
        return self.read_line(page, x & ~7, y, 8)[x & 7]

    def write_dot(self, page: int, x: int, y: int, colour: int) -> None:
        """Set a dot."""
        if x >= 8 * self._mode.columns or y >= self._lines:
            return
        colours = self.read_line(page, x & ~7, y, 8)
        mask = (1 << self._mode.bits) - 1
        combine = colour & _XOR and self._mode.bits < 8
        colours[x & 7] = colours[x & 7] ^ colour & mask if combine else colour & mask
        self.write_line(page, x & ~7, y, colours, False)


class CgaScreen(GraphicsScreen):
    """Modes 4, 5 and 6: odd lines lie 8 KiB behind even ones, one or two bits a dot."""

    def _line(self, y: int) -> int:
        return self._mode.base + (y & 1) * _CGA_BANK + (y >> 1) * 80

    def _span(self, x: int, y: int, width: int) -> tuple[int, int]:
        per_byte = 8 // self._mode.bits
        return self._line(y) + x // per_byte, width // per_byte

    def read_line(self, page: int, x: int, y: int, width: int) -> list[int]:
        """Return the colours of some dots."""
        address, length = self._span(x, y, width)
        bits = self._mode.bits
        mask = (1 << bits) - 1
        return [
            value >> shift & mask for value in self._core.read(address, length) for shift in range(8 - bits, -1, -bits)
        ]

    def write_line(self, page: int, x: int, y: int, colours: list[int], combine: bool) -> None:
        """Set some dots."""
        bits, per_byte = self._mode.bits, 8 // self._mode.bits
        if combine:
            old = self.read_line(page, x, y, len(colours))
            colours = [new ^ before for new, before in zip(colours, old, strict=True)]
        data = bytearray()
        for index in range(0, len(colours), per_byte):
            value = 0
            for colour in colours[index : index + per_byte]:
                value = value << bits | colour
            data.append(value)
        self._core.write(self._span(x, y, len(colours))[0], data)


class PlanarScreen(GraphicsScreen):
    """The 16-colour modes: a bit of a dot's colour in each of four planes."""

    def __init__(self, core: Core, mode: VideoMode, vga: Vga) -> None:
        super().__init__(core, mode)
        self._vga = vga

    def _address(self, page: int, x: int, y: int) -> int:
        size = self._bda.word(area.VIDEO_PAGE_SIZE)
        return self._mode.base + ((page & 7) * size + y * self._stride + x // 8 & 0xFFFF)

    def _graphics(self, index: int, value: int) -> None:
        self._vga.write_indexed(GRAPHICS, index, value)

    def read_line(self, page: int, x: int, y: int, width: int) -> list[int]:
        """Return the colours of some dots, plane by plane."""
        address, length = self._address(page, x, y), width // 8
        colours = [0] * width
        self._graphics(GRAPHICS_MODE, 0)
        for plane in range(4):
            self._graphics(GRAPHICS_READ_MAP, plane)
            for index, value in enumerate(self._core.read(address, length)):
                for bit in range(8):
                    colours[8 * index + bit] |= (value >> (7 - bit) & 1) << plane
        return colours

    def write_line(self, page: int, x: int, y: int, colours: list[int], combine: bool) -> None:
        """Set some dots, plane by plane."""
        address = self._address(page, x, y)
        self._graphics(GRAPHICS_MODE, 0)
        self._graphics(GRAPHICS_BIT_MASK, 0xFF)
        self._graphics(GRAPHICS_ROTATE, _ROTATE_XOR if combine else 0)
        for plane in range(4):
            self._vga.write_indexed(SEQUENCER, SEQUENCER_MAP_MASK, 1 << plane)
            for index in range(0, len(colours), 8):
                value = 0
                for colour in colours[index : index + 8]:
                    value = value << 1 | colour >> plane & 1
                if combine:
                    self._core.read(address + index // 8, 1)
                self._core.write(address + index // 8, bytes((value,)))
        self._graphics(GRAPHICS_ROTATE, 0)
        self._vga.write_indexed(SEQUENCER, SEQUENCER_MAP_MASK, _ALL_PLANES)

    def copy_line(self, page: int, x: int, source: int, target: int, width: int) -> None:
        """Copy dots by way of the latches, four planes at a time."""
        self._graphics(GRAPHICS_MODE, 1)
        load, store = self._core.machine.mmio.read, self._core.machine.mmio.write
        start, end = self._address(page, x, source), self._address(page, x, target)
        for index in range(width // 8):
            load(start + index, 1)
            store(end + index, 1, 0)
        self._graphics(GRAPHICS_MODE, _DEFAULT_GRAPHICS_MODE)


class PackedScreen(GraphicsScreen):
    """Mode 13h: a byte a dot."""

    def _address(self, x: int, y: int) -> int:
        return self._mode.base + y * self._stride + x

    def read_line(self, page: int, x: int, y: int, width: int) -> list[int]:
        """Return the colours of some dots."""
        return list(self._core.read(self._address(x, y), width))

    def write_line(self, page: int, x: int, y: int, colours: list[int], combine: bool) -> None:
        """Set some dots."""
        if combine:
            old = self.read_line(page, x, y, len(colours))
            colours = [new ^ before for new, before in zip(colours, old, strict=True)]
        self._core.write(self._address(x, y), bytes(colours))


def make_screen(core: Core, mode: VideoMode, vga: Vga) -> Screen:
    """Return the screen of a mode."""
    if mode.layout is Layout.TEXT:
        return TextScreen(core, mode)
    if mode.layout is Layout.CGA:
        return CgaScreen(core, mode)
    if mode.layout is Layout.PLANAR:
        return PlanarScreen(core, mode, vga)
    return PackedScreen(core, mode)
