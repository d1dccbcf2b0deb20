"""The registers of a VGA, as the BIOS programs them.

IBM Personal System/2 Hardware Interface Technical Reference, "Video subsystem".  Loading a font: plane 2 holds the
dots of characters, 32 bytes a character; it is reached through the window at 0xa0000 while the sequencer and the
graphics controller are set for plain access to that plane.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.video_modes import VideoMode

ATTRIBUTE: Final = 0x3C0
ATTRIBUTE_READ: Final = 0x3C1
MISCELLANEOUS_WRITE: Final = 0x3C2
VIDEO_ENABLE: Final = 0x3C3
SEQUENCER: Final = 0x3C4
DAC_MASK: Final = 0x3C6
DAC_READ_INDEX: Final = 0x3C7
DAC_WRITE_INDEX: Final = 0x3C8
DAC_DATA: Final = 0x3C9
MISCELLANEOUS_READ: Final = 0x3CC
GRAPHICS: Final = 0x3CE
CRTC_COLOUR: Final = 0x3D4
CRTC_MONO: Final = 0x3B4
_COLOUR_EMULATION: Final = 1 << 0  # of the miscellaneous output register
_STATUS_BEHIND_CRTC: Final = 6
_PALETTE_ON: Final = 0x20  # of the attribute index: the screen shows the palette

SEQUENCER_MAP_MASK: Final = 2
SEQUENCER_FONTS: Final = 3
SEQUENCER_MEMORY: Final = 4
GRAPHICS_SET_RESET: Final = 0
GRAPHICS_ENABLE_SET_RESET: Final = 1
GRAPHICS_ROTATE: Final = 3
GRAPHICS_READ_MAP: Final = 4
GRAPHICS_MODE: Final = 5
GRAPHICS_MISCELLANEOUS: Final = 6
GRAPHICS_BIT_MASK: Final = 8
CRTC_SCAN_LINES: Final = 0x09
CRTC_CURSOR_START: Final = 0x0A
CRTC_CURSOR_END: Final = 0x0B
CRTC_START: Final = 0x0C  # high byte, low byte behind it
CRTC_CURSOR: Final = 0x0E
CRTC_SYNC_END: Final = 0x11
CRTC_DISPLAY_END: Final = 0x12
CRTC_OFFSET: Final = 0x13
CRTC_WRITE_PROTECT: Final = 0x80
CRTC_REGISTERS: Final = 25
ATTRIBUTE_REGISTERS: Final = 21
GRAPHICS_REGISTERS: Final = 9
ATTRIBUTE_MODE: Final = 0x10
ATTRIBUTE_OVERSCAN: Final = 0x11
ATTRIBUTE_COLOUR_SELECT: Final = 0x14
ATTRIBUTE_BLINK: Final = 0x08
DAC_SIZE: Final = 256

FONT_WINDOW: Final = 0xA0000
FONT_SLOT: Final = 32
FONT_OFFSETS: Final = (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000)


class Vga:
    """The registers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outb = core.outb
        self._inb = core.inb

    @property
    def crtc(self) -> int:
        """The CRTC's index port, which depends on colour or monochrome emulation."""
        return CRTC_COLOUR if self._inb(MISCELLANEOUS_READ) & _COLOUR_EMULATION else CRTC_MONO

    def read_indexed(self, port: int, index: int) -> int:
        """Read a register of the sequencer, graphics controller or CRTC."""
        self._outb(port, index)
        return self._inb(port + 1)

    def write_indexed(self, port: int, index: int, value: int) -> None:
        """Write a register of the sequencer, graphics controller or CRTC."""
        self._outb(port, index)
        self._outb(port + 1, value)

    def _reset_flip_flop(self) -> None:
        """Have the attribute controller take the next byte as an index."""
        self._inb(self.crtc + _STATUS_BEHIND_CRTC)

    def read_attribute(self, index: int) -> int:
        """Read a register of the attribute controller."""
        self._reset_flip_flop()
        self._outb(ATTRIBUTE, index & 0x1F | _PALETTE_ON)
        value = self._inb(ATTRIBUTE_READ)
        self._reset_flip_flop()
        return value

    def write_attribute(self, index: int, value: int) -> None:
        """Write a register of the attribute controller; the screen stays on."""
        self._reset_flip_flop()
        self._outb(ATTRIBUTE, index & 0x1F)
        self._outb(ATTRIBUTE, value)
        self._outb(ATTRIBUTE, _PALETTE_ON)

    # -- DAC --------------------------------------------------------------------------------------------------------

    def write_colours(self, first: int, colours: bytes) -> None:
        """Load colours, 3 bytes each."""
        self._outb(DAC_WRITE_INDEX, first)
        for value in colours:
            self._outb(DAC_DATA, value)

    def read_colours(self, first: int, count: int) -> bytes:
        """Return colours, 3 bytes each."""
        self._outb(DAC_READ_INDEX, first)
        return bytes(self._inb(DAC_DATA) for _ in range(3 * count))

    # -- modes ------------------------------------------------------------------------------------------------------

    def set_mode(self, mode: VideoMode, colours: bytes | None) -> None:
        """Program all registers for a mode; without `colours` the palette stays as it is."""
        self._outb(VIDEO_ENABLE, 1)
        self._reset_flip_flop()
        self._outb(ATTRIBUTE, 0)  # screen off
        if colours is not None:
            self._outb(DAC_MASK, 0xFF)
            self.write_colours(0, colours)
            for index, value in enumerate(mode.attribute):
                self.write_attribute(index, value)
        else:
            self.write_attribute(ATTRIBUTE_MODE, mode.attribute[ATTRIBUTE_MODE])
        self.write_attribute(ATTRIBUTE_COLOUR_SELECT, 0)
        self.write_indexed(SEQUENCER, 0, 1)
        for index, value in enumerate(mode.sequencer):
            self.write_indexed(SEQUENCER, index + 1, value)
        self._outb(MISCELLANEOUS_WRITE, mode.miscellaneous)
        self.write_indexed(SEQUENCER, 0, 3)
        for index, value in enumerate(mode.graphics):
            self.write_indexed(GRAPHICS, index, value)
        crtc = self.crtc
        self.write_indexed(crtc, CRTC_SYNC_END, mode.crtc[CRTC_SYNC_END] & ~CRTC_WRITE_PROTECT)
        for index, value in enumerate(mode.crtc):
            self.write_indexed(crtc, index, value)
        self._reset_flip_flop()
        self._outb(ATTRIBUTE, _PALETTE_ON)

    def write_crtc_word(self, index: int, value: int) -> None:
        """Write a CRTC register pair, the high byte first: the display's start, or the cursor's place."""
        crtc = self.crtc
        self.write_indexed(crtc, index, value >> 8 & 0xFF)
        self.write_indexed(crtc, index + 1, value & 0xFF)

    # -- fonts ------------------------------------------------------------------------------------------------------

    def load_font(self, glyphs: bytes, height: int, first: int, block: int) -> None:
        """Load characters from `first` on, `height` lines each, into one of the 8 font blocks."""
        saved = self._open_fonts()
        base = FONT_WINDOW + FONT_OFFSETS[block & 7]
        for index in range(len(glyphs) // height):
            code = first + index
            if code > 0xFF:
                break
            glyph = glyphs[index * height : (index + 1) * height]
            self._core.write(base + code * FONT_SLOT, glyph)
        self._close_fonts(saved)

    def _open_fonts(self) -> list[tuple[int, int, int]]:
        """Give the window to plane 2; return the registers to restore."""
        wanted = (
            (SEQUENCER, SEQUENCER_MAP_MASK, 0x04),
            (SEQUENCER, SEQUENCER_MEMORY, 0x07),
            (GRAPHICS, GRAPHICS_READ_MAP, 0x02),
            (GRAPHICS, GRAPHICS_MODE, 0x00),
            (GRAPHICS, GRAPHICS_MISCELLANEOUS, 0x04),
            (GRAPHICS, GRAPHICS_ENABLE_SET_RESET, 0x00),
            (GRAPHICS, GRAPHICS_ROTATE, 0x00),
            (GRAPHICS, GRAPHICS_BIT_MASK, 0xFF),
        )
        saved = [(port, index, self.read_indexed(port, index)) for port, index, _ in wanted]
        for port, index, value in wanted:
            self.write_indexed(port, index, value)
        return saved

    def _close_fonts(self, saved: list[tuple[int, int, int]]) -> None:
        for port, index, value in saved:
            self.write_indexed(port, index, value)

    def set_character_height(self, height: int) -> None:
        """Tell the CRTC how many lines a character has."""
        crtc = self.crtc
        value = self.read_indexed(crtc, CRTC_SCAN_LINES)
        self.write_indexed(crtc, CRTC_SCAN_LINES, value & 0xE0 | height - 1 & 0x1F)
