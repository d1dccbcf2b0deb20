"""Int 10h AH=11: character generators.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 10h AH=11 "Character generator".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import fonts
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.firmware.bios.vga import CRTC_DISPLAY_END, SEQUENCER, SEQUENCER_FONTS, Vga
from pyvm.firmware.bios.video_modes import Layout, modes

_VECTOR_UPPER: Final = 4 * 0x1F
_VECTOR_GRAPHICS: Final = 4 * 0x43
_MAX_HEIGHT: Final = 32
_STANDARD: Final = {0x01: 14, 0x02: 8, 0x04: 16, 0x22: 14, 0x23: 8, 0x24: 16}
_ADJUST: Final = 0x10
_ROWS: Final = {1: 14, 2: 25, 3: 43}
_TEXT_LINES: Final = 400
# AL=30: what BH asks for, as a name in the ROM or an interrupt vector
_POINTERS: Final = {
    2: "font_8x14", 3: "font_8x8", 5: "no_alternates", 6: "font_8x16", 7: "no_alternates",
}  # fmt: skip


class Fonts:
    """The functions, by AL."""

    def __init__(self, core: Core, vga: Vga, set_cursor_shape: Callable[[int], None]) -> None:
        self._core = core
        self._bda = core.bda
        self._vga = vga
        self._set_cursor_shape = set_cursor_shape

    def load_standard(self, height: int, block: int) -> None:
        """Load one of the fonts in ROM."""
        self._vga.load_font(fonts.font(height), height, 0, block)

    def call(self, registers: Registers) -> None:
        """Serve int 10h AH=11."""
        function = registers.al
        if function == 0x30:
            self._information(registers)
        elif function == 0x03:
            self._vga.write_indexed(SEQUENCER, SEQUENCER_FONTS, registers.bl)
        elif function == 0x20:
            self._set_vector(_VECTOR_UPPER, registers.es, registers.bp)
        elif function in (0x21, 0x22, 0x23, 0x24):
            self._use_for_graphics(registers, function)
        elif function & ~_ADJUST in (0x00, 0x01, 0x02, 0x04):
            self._load(registers, function)

    def _load(self, registers: Registers, function: int) -> None:
        kind = function & ~_ADJUST
        if kind:
            height = _STANDARD[kind]
            self.load_standard(height, registers.bl)
        else:
            height = registers.bh
            if not 1 <= height <= _MAX_HEIGHT:
                return
            count = min(registers.cx, fonts.CHARACTERS)
            glyphs = self._core.read_at(registers.es, registers.bp, count * height)
            self._vga.load_font(glyphs, height, registers.dx & 0xFF, registers.bl)
        if function & _ADJUST:
            self._fit_screen(height)

    def _fit_screen(self, height: int) -> None:
        """Let a text mode show as many rows of the new height as there is room for."""
        mode = modes().get(self._bda.byte(area.VIDEO_MODE))
        if mode is None or mode.layout is not Layout.TEXT:
            return
        rows = _TEXT_LINES // height
        self._vga.set_character_height(height)
        crtc = self._vga.crtc
        self._vga.write_indexed(crtc, CRTC_DISPLAY_END, rows * height - 1 & 0xFF)
        self._bda.set_byte(area.VIDEO_LAST_ROW, rows - 1)
        self._bda.set_word(area.CHARACTER_HEIGHT, height)
        size = rows * self._bda.word(area.VIDEO_COLUMNS) * 2
        self._bda.set_word(area.VIDEO_PAGE_SIZE, (size + 0xFF) & ~0xFF)
        self._set_cursor_shape(self._bda.word(area.CURSOR_SHAPE))

    def _set_vector(self, place: int, segment: int, offset: int) -> None:
        self._core.memory.write_u32(place, segment << 16 | offset)

    def _use_for_graphics(self, registers: Registers, function: int) -> None:
        """AL=21-24: characters of graphics modes; BL or DL says how many rows there are then."""
        if function == 0x21:
            height = registers.cx
            if not 1 <= height <= _MAX_HEIGHT:
                return
            self._set_vector(_VECTOR_GRAPHICS, registers.es, registers.bp)
        else:
            height = _STANDARD[function]
            self._set_vector(_VECTOR_GRAPHICS, SEGMENT, self._core.rom.labels[f"font_8x{height}"])
        rows = _ROWS.get(registers.bl, registers.dl) or 25
        self._bda.set_word(area.CHARACTER_HEIGHT, height)
        self._bda.set_byte(area.VIDEO_LAST_ROW, rows - 1)

    def _information(self, registers: Registers) -> None:
        kind = registers.bh
        if kind in (0, 1):
            pointer = self._core.memory.read_u32(_VECTOR_UPPER if kind == 0 else _VECTOR_GRAPHICS)
            registers.es, registers.bp = pointer >> 16, pointer & 0xFFFF
        elif kind == 4:
            registers.es = SEGMENT
            registers.bp = self._core.rom.labels["font_8x8"] + len(fonts.font(8)) // 2
        elif kind in _POINTERS:
            registers.es, registers.bp = SEGMENT, self._core.rom.labels[_POINTERS[kind]]
        else:
            return
        registers.cx = self._bda.word(area.CHARACTER_HEIGHT)
        registers.dl = self._bda.byte(area.VIDEO_LAST_ROW)
