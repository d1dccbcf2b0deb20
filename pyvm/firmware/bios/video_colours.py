"""Int 10h AH=10 and 0B: the palette, the DAC and the border.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 10h AH=10 "Set palette registers".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.vga import (
    ATTRIBUTE_BLINK,
    ATTRIBUTE_COLOUR_SELECT,
    ATTRIBUTE_MODE,
    ATTRIBUTE_OVERSCAN,
    DAC_MASK,
    DAC_SIZE,
    Vga,
)

_PALETTE_REGISTERS: Final = 16
_PAGE_SIZE_16: Final = 0x80  # of the attribute mode register: the DAC is divided into 16 pages
GREY_SUMMING: Final = 1 << 1  # of the video options
CGA_GRAPHICS: Final = (4, 5, 6)
_RED, _GREEN, _BLUE = 30, 59, 11  # per cent of brightness


def grey(colour: bytes) -> bytes:
    """Return the grey that is as bright as a colour."""
    level = (_RED * colour[0] + _GREEN * colour[1] + _BLUE * colour[2] + 50) // 100
    return bytes((min(level, 0x3F),)) * 3


class Colours:
    """The functions, by AL."""

    def __init__(self, core: Core, vga: Vga) -> None:
        self._core = core
        self._bda = core.bda
        self._vga = vga
        self._functions: dict[int, Callable[[Registers], None]] = {
            0x00: lambda registers: self._set_one(registers.bl, registers.bh),
            0x01: lambda registers: self._set_one(ATTRIBUTE_OVERSCAN, registers.bh),
            0x02: self._set_all,
            0x03: self._set_blink,
            0x07: self._get_one,
            0x08: self._get_border,
            0x09: self._get_all,
            0x10: self._set_colour,
            0x12: self._set_colours,
            0x13: self._set_page,
            0x15: self._get_colour,
            0x17: self._get_colours,
            0x18: lambda registers: self._core.outb(DAC_MASK, registers.bl),
            0x19: self._get_mask,
            0x1A: self._get_page,
            0x1B: self._make_grey,
        }

    def call(self, registers: Registers) -> None:
        """Serve int 10h AH=10."""
        function = self._functions.get(registers.al)
        if function is not None:
            function(registers)

    def _set_one(self, index: int, value: int) -> None:
        if index <= ATTRIBUTE_COLOUR_SELECT:
            self._vga.write_attribute(index, value)

    def _set_all(self, registers: Registers) -> None:
        values = self._core.read_at(registers.es, registers.dx, _PALETTE_REGISTERS + 1)
        for index, value in enumerate(values[:_PALETTE_REGISTERS]):
            self._vga.write_attribute(index, value)
        self._vga.write_attribute(ATTRIBUTE_OVERSCAN, values[_PALETTE_REGISTERS])

    def _set_blink(self, registers: Registers) -> None:
        """AL=03: bit 7 of attributes is blinking (BL=1) or bright background."""
        blink = registers.bl & 1
        value = self._vga.read_attribute(ATTRIBUTE_MODE) & ~ATTRIBUTE_BLINK
        self._vga.write_attribute(ATTRIBUTE_MODE, value | (ATTRIBUTE_BLINK if blink else 0))
        mode = self._bda.byte(area.CGA_MODE)
        self._bda.set_byte(area.CGA_MODE, mode | 0x20 if blink else mode & ~0x20)

    def _get_one(self, registers: Registers) -> None:
        if registers.bl <= ATTRIBUTE_COLOUR_SELECT:
            registers.bh = self._vga.read_attribute(registers.bl)

    def _get_border(self, registers: Registers) -> None:
        registers.bh = self._vga.read_attribute(ATTRIBUTE_OVERSCAN)

    def _get_all(self, registers: Registers) -> None:
        values = [self._vga.read_attribute(index) for index in (*range(_PALETTE_REGISTERS), ATTRIBUTE_OVERSCAN)]
        self._core.write_at(registers.es, registers.dx, bytes(values))

    def _greys_wanted(self) -> bool:
        return bool(self._bda.byte(area.VIDEO_OPTIONS) & GREY_SUMMING)

    def _set_colour(self, registers: Registers) -> None:
        colour = bytes((registers.dh, registers.ch, registers.cl))
        self._vga.write_colours(registers.bl, grey(colour) if self._greys_wanted() else colour)

    def _set_colours(self, registers: Registers) -> None:
        count = min(registers.cx, DAC_SIZE)
        colours = self._core.read_at(registers.es, registers.dx, 3 * count)
        if self._greys_wanted():
            colours = b"".join(grey(colours[index : index + 3]) for index in range(0, len(colours), 3))
        self._vga.write_colours(registers.bl, colours)

    def _get_colour(self, registers: Registers) -> None:
        registers.dh, registers.ch, registers.cl = self._vga.read_colours(registers.bl, 1)

    def _get_colours(self, registers: Registers) -> None:
        count = min(registers.cx, DAC_SIZE)
        self._core.write_at(registers.es, registers.dx, self._vga.read_colours(registers.bl, count))

    def _set_page(self, registers: Registers) -> None:
        """AL=13: choose between 4 pages of 64 and 16 of 16 colours (BL=0), or one of the pages (BL=1)."""
        mode = self._vga.read_attribute(ATTRIBUTE_MODE)
        if registers.bl == 0:
            self._vga.write_attribute(ATTRIBUTE_MODE, mode & ~_PAGE_SIZE_16 | (registers.bh & 1) << 7)
        elif registers.bl == 1:
            page = registers.bh if mode & _PAGE_SIZE_16 else registers.bh << 2
            self._vga.write_attribute(ATTRIBUTE_COLOUR_SELECT, page & 0x0F)

    def _get_page(self, registers: Registers) -> None:
        small = self._vga.read_attribute(ATTRIBUTE_MODE) >> 7 & 1
        page = self._vga.read_attribute(ATTRIBUTE_COLOUR_SELECT) & 0x0F
        registers.bl, registers.bh = small, page if small else page >> 2

    def _get_mask(self, registers: Registers) -> None:
        registers.bl = self._core.inb(DAC_MASK)

    def _make_grey(self, registers: Registers) -> None:
        first, count = registers.bl, min(registers.cx, DAC_SIZE - registers.bl)
        colours = self._vga.read_colours(first, count)
        greys = (grey(colours[index : index + 3]) for index in range(0, len(colours), 3))
        self._vga.write_colours(first, b"".join(greys))

    def cga_palette(self, registers: Registers) -> None:
        """AH=0B: border and background (BH=0), or one of the two palettes of modes 4 and 5 (BH=1)."""
        vga = self._vga
        if registers.bh == 0:
            colour = registers.bl & 0x07 | (registers.bl & 0x08) << 1
            vga.write_attribute(ATTRIBUTE_OVERSCAN, colour)
            if self._bda.byte(area.VIDEO_MODE) in CGA_GRAPHICS:
                vga.write_attribute(0, colour)
            for index in range(1, 4):
                vga.write_attribute(index, vga.read_attribute(index) & ~0x10 | registers.bl & 0x10)
        elif registers.bh == 1:
            for index in range(1, 4):
                vga.write_attribute(index, vga.read_attribute(index) & ~1 | registers.bl & 1)
