"""Int 10h: the screen.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 10h; Ralf Brown's Interrupt List,
INTERRUP.A.  What is written with these functions also appears on the serial console, where there is one; a machine
without a display adapter has only that.  VBE (AH=4F) is in :mod:`.vbe`, palette and font functions in
:mod:`.video_colours` and :mod:`.video_fonts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.console import SerialConsole
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.pci import Pci
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.firmware.bios.screen import BLANK, PLAIN, Screen, ShadowScreen, make_screen
from pyvm.firmware.bios.vbe import Vbe
from pyvm.firmware.bios.vga import CRTC_CURSOR, CRTC_CURSOR_END, CRTC_CURSOR_START, CRTC_START, Vga
from pyvm.firmware.bios.video_colours import Colours
from pyvm.firmware.bios.video_fonts import Fonts
from pyvm.firmware.bios.video_modes import Layout, VideoMode, modes, palette
from pyvm.firmware.bios.video_state import StateFunctions

TEXT_80X25: Final = 3
KEEP_MEMORY: Final = 0x80
MONO_TEXT: Final = 7
COLOUR_ANALOG: Final = 0x08  # display combination code
_BELL, _BACKSPACE, _LINE_FEED, _RETURN = 0x07, 0x08, 0x0A, 0x0D
_CURSOR_OFF: Final = 0x20
_EMULATED_HEIGHT: Final = 8
_VGA_SWITCHES: Final = 0xF9
_VGA_OPTIONS: Final = 0x51  # VGA, 400 lines
_VIDEO_CONTROL: Final = 0x60  # 256 KiB
_WRITE_ATTRIBUTES: Final = 2
_MOVE_CURSOR: Final = 1


class Video:
    """The service; `console` is the serial line that shows the same."""

    def __init__(self, core: Core, pci: Pci) -> None:
        self._core = core
        self._bda = core.bda
        self.console = SerialConsole(core)
        self.vga = Vga(core)
        self.vbe = Vbe(core, pci, self.vga)
        self._shadow = ShadowScreen(core)
        self._present: bool | None = None
        colours = Colours(core, self.vga)
        self.fonts = Fonts(core, self.vga, self.set_cursor_shape)
        state = StateFunctions(core, self.vga, self.vbe)
        self._functions: dict[int, Callable[[Registers], None]] = {
            0x00: self._set_mode,
            0x01: lambda registers: self.set_cursor_shape(registers.cx),
            0x02: self._set_cursor,
            0x03: self._get_cursor,
            0x04: self._light_pen,
            0x05: self._set_page,
            0x06: lambda registers: self._scroll(registers, registers.al),
            0x07: lambda registers: self._scroll(registers, -registers.al),
            0x08: self._read_cell,
            0x09: lambda registers: self._write_cells(registers, registers.bl),
            0x0A: lambda registers: self._write_cells(registers, None),
            0x0C: self._write_dot,
            0x0D: self._read_dot,
            0x0E: self._teletype,
            0x0F: self._get_mode,
            0x13: self._write_string,
        }
        self._adapter_functions: dict[int, Callable[[Registers], None]] = {
            0x0B: colours.cga_palette,
            0x10: colours.call,
            0x11: self.fonts.call,
            0x12: state.alternate,
            0x1A: state.display_combination,
            0x1B: state.information,
            0x1C: state.save_restore,
            0x4F: self._vbe,
        }

    def call(self, registers: Registers) -> None:
        """Serve int 10h; unknown functions change nothing, by which programs know that they are not there."""
        function = self._functions.get(registers.ah)
        if function is None and self._has_adapter():
            function = self._adapter_functions.get(registers.ah)
        if function is not None:
            function(registers)

    def _has_adapter(self) -> bool:
        if self._present is None:
            self._present = self.vbe.find_adapter()
        return self._present

    def find_adapter(self) -> None:
        """Look for the adapter anew; at POST.  In a machine that was restored, that is done at the first call."""
        self._present = None

    # -- the screen now ---------------------------------------------------------------------------------------------

    def _mode(self) -> VideoMode:
        """Return the mode that is set; text stands for what this BIOS does not know."""
        number = self._bda.byte(area.VIDEO_MODE)
        return modes().get(number) or modes()[TEXT_80X25]

    @property
    def screen(self) -> Screen:
        """The screen as programs see it now.

        In a VBE mode, and without an adapter, it is one of characters that only the console shows.
        """
        if not self._has_adapter() or self.vbe.active:
            return self._shadow
        return make_screen(self._core, self._mode(), self.vga)

    def _page(self) -> int:
        return self._bda.byte(area.VIDEO_PAGE) & 7

    def cursor(self, page: int) -> tuple[int, int]:
        """Return the cursor's row and column on a page."""
        value = self._bda.word(area.CURSOR_POSITIONS + 2 * (page & 7))
        return value >> 8, value & 0xFF

    def move_cursor(self, page: int, row: int, column: int) -> None:
        """Put the cursor of a page somewhere."""
        page &= 7
        self._bda.set_word(area.CURSOR_POSITIONS + 2 * page, (row & 0xFF) << 8 | column & 0xFF)
        if page == self._page() and self._has_adapter():
            size = self._bda.word(area.VIDEO_PAGE_SIZE)
            place = page * size // 2 + row * self.screen.columns + column
            self.vga.write_crtc_word(CRTC_CURSOR, place)

    # -- modes and pages --------------------------------------------------------------------------------------------

    def _set_mode(self, registers: Registers) -> None:
        number = registers.al & ~KEEP_MEMORY
        mode = modes().get(number)
        if mode is None or (mode.layout is not Layout.TEXT and not self._has_adapter()):
            return
        self.set_mode(number, clear=not registers.al & KEEP_MEMORY)
        # What old programs expect of the CRTC's mode register.
        registers.al = 0x20 if number > MONO_TEXT else 0x3F if number == 6 else 0x30

    def set_mode(self, number: int, *, clear: bool = True) -> None:
        """Set one of the modes of :mod:`.video_modes`."""
        mode = modes()[number]
        if self._has_adapter():
            self.vbe.leave()
            keep_palette = self._bda.byte(area.VIDEO_OPTIONS) & 0x08
            self.vga.set_mode(mode, None if keep_palette else palette(mode.palette))
            if mode.layout is Layout.TEXT:
                self.fonts.load_standard(mode.character_height, 0)
            if clear:
                self._clear(mode)
        self._describe_mode(mode, clear)
        self.set_cursor_shape(0x0607)
        for page in range(area.VIDEO_PAGES):
            self.move_cursor(page, 0, 0)
        if clear:
            self._shadow.scroll(0, (0, 0, mode.rows - 1, mode.columns - 1), 0, PLAIN)
            self.console.clear()

    def _clear(self, mode: VideoMode) -> None:
        """Blank the mode's memory; in planar modes the register values of the mode reach all planes."""
        if mode.layout is Layout.TEXT or mode.layout is Layout.CGA:
            blank = bytes((BLANK, PLAIN)) if mode.layout is Layout.TEXT else b"\0\0"
            self._core.write(mode.base, blank * 0x4000)
        else:
            self._core.write(mode.base, bytes(0x10000))

    def _describe_mode(self, mode: VideoMode, clear: bool) -> None:
        bda = self._bda
        bda.set_byte(area.VIDEO_MODE, mode.number)
        bda.set_word(area.VIDEO_COLUMNS, mode.columns)
        bda.set_word(area.VIDEO_PAGE_SIZE, mode.page_size)
        bda.set_word(area.VIDEO_PAGE_START, 0)
        bda.set_byte(area.VIDEO_PAGE, 0)
        mono = mode.number in (MONO_TEXT, 0x0F)
        bda.set_word(area.CRTC_PORT, 0x3B4 if mono else 0x3D4)
        bda.set_byte(area.VIDEO_LAST_ROW, mode.rows - 1)
        bda.set_word(area.CHARACTER_HEIGHT, mode.character_height)
        bda.set_byte(area.VIDEO_CONTROL, _VIDEO_CONTROL | (0 if clear else KEEP_MEMORY))
        bda.set_byte(area.VIDEO_SWITCHES, _VGA_SWITCHES)
        bda.set_byte(area.VIDEO_OPTIONS, bda.byte(area.VIDEO_OPTIONS) & 0x0E | _VGA_OPTIONS)
        bda.set_byte(area.DISPLAY_COMBINATION, COLOUR_ANALOG if self._has_adapter() else 0)
        cga = {0: 0x2C, 1: 0x28, 2: 0x2D, 3: 0x29, 4: 0x2A, 5: 0x2E, 6: 0x1E, 7: 0x29}
        bda.set_byte(area.CGA_MODE, cga.get(mode.number, 0x29))
        bda.set_byte(area.CGA_PALETTE, 0x3F if mode.number == 6 else 0x30)
        equipment = bda.word(area.EQUIPMENT) & ~area.EQUIPMENT_VIDEO
        kind = area.EQUIPMENT_VIDEO_MONO if mono else area.EQUIPMENT_VIDEO_COLOUR
        bda.set_word(area.EQUIPMENT, equipment | kind)
        name = f"font_8x{mode.character_height}"
        self._core.memory.write_u32(4 * 0x43, SEGMENT << 16 | self._core.rom.labels[name])

    def _get_mode(self, registers: Registers) -> None:
        keep = self._bda.byte(area.VIDEO_CONTROL) & KEEP_MEMORY
        registers.al = self._bda.byte(area.VIDEO_MODE) & ~KEEP_MEMORY | keep
        registers.ah = self._bda.word(area.VIDEO_COLUMNS)
        registers.bh = self._bda.byte(area.VIDEO_PAGE)

    def _set_page(self, registers: Registers) -> None:
        page, mode = registers.al, self._mode()
        if page >= mode.pages:
            return
        start = page * self._bda.word(area.VIDEO_PAGE_SIZE)
        self._bda.set_word(area.VIDEO_PAGE_START, start)
        self._bda.set_byte(area.VIDEO_PAGE, page)
        if self._has_adapter():
            self.vga.write_crtc_word(CRTC_START, start // 2 if mode.layout is Layout.TEXT else start)
        self.move_cursor(page, *self.cursor(page))

    # -- cursor -----------------------------------------------------------------------------------------------------

    def set_cursor_shape(self, shape: int) -> None:
        """Set the first and the last line of the cursor, as of a character with 8 lines where that is emulated."""
        self._bda.set_word(area.CURSOR_SHAPE, shape)
        if not self._has_adapter():
            return
        first, last = shape >> 8 & 0x3F, shape & 0x1F
        height = self._bda.word(area.CHARACTER_HEIGHT)
        if not self._bda.byte(area.VIDEO_CONTROL) & area.VIDEO_NO_CURSOR_EMULATION and 8 < height <= 32:
            first, last = _emulated_shape(first, last, height)
        crtc = self.vga.crtc
        self.vga.write_indexed(crtc, CRTC_CURSOR_START, first)
        self.vga.write_indexed(crtc, CRTC_CURSOR_END, last)

    def _set_cursor(self, registers: Registers) -> None:
        if registers.bh < area.VIDEO_PAGES:
            self.move_cursor(registers.bh, registers.dh, registers.dl)

    def _get_cursor(self, registers: Registers) -> None:
        page = registers.bh
        registers.cx = self._bda.word(area.CURSOR_SHAPE)
        registers.dh, registers.dl = self.cursor(page) if page < area.VIDEO_PAGES else (0, 0)

    def _light_pen(self, registers: Registers) -> None:
        """AH=04: there is none."""
        registers.ah = 0

    # -- characters -------------------------------------------------------------------------------------------------

    def _scroll(self, registers: Registers, lines: int) -> None:
        screen = self.screen
        top, left = registers.ch, registers.cl
        bottom, right = min(registers.dh, screen.rows - 1), min(registers.dl, screen.columns - 1)
        if top <= bottom and left <= right:
            self._scroll_window(screen, self._page(), (top, left, bottom, right), lines, registers.bh)

    def _scroll_window(
        self, screen: Screen, page: int, window: tuple[int, int, int, int], lines: int, attribute: int
    ) -> None:
        """Scroll a window of the screen, and show the result on the console."""
        screen.scroll(page, window, lines, attribute)
        if page != self._page() or not self.console.active:
            return
        top, left, bottom, right = window
        whole = (top, left, bottom, right) == (0, 0, screen.rows - 1, screen.columns - 1)
        if whole and (lines == 0 or abs(lines) >= screen.rows):
            self.console.clear()
            return
        if whole and lines > 0:
            for _ in range(lines):
                self.console.line_feed(screen.rows - 1, screen.rows)
            return
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                code, colour = screen.read(page, row, column)
                self.console.character(row, column, code, colour, screen.columns)

    def _read_cell(self, registers: Registers) -> None:
        row, column = self.cursor(registers.bh)
        registers.al, registers.ah = self.screen.read(registers.bh, row, column)

    def _write_cells(self, registers: Registers, attribute: int | None) -> None:
        """AH=09 and 0A: write a character CX times; graphics modes want its colour in both."""
        screen, page = self.screen, registers.bh & 7
        row, column = self.cursor(page)
        graphics = self._has_adapter() and self._mode().layout is not Layout.TEXT
        colour = registers.bl if graphics else attribute
        screen.write(page, row, column, registers.al, colour, registers.cx)
        if page != self._page() or not self.console.active:
            return
        cells = min(registers.cx, screen.columns * screen.rows)
        if (row, column, registers.al) == (0, 0, BLANK) and cells == screen.columns * screen.rows:
            self.console.clear()
        else:
            for index in range(cells):
                where = divmod(row * screen.columns + column + index, screen.columns)
                if where[0] >= screen.rows:
                    break
                shown = screen.read(page, *where)[1] if colour is None else PLAIN if graphics else colour
                self.console.character(*where, registers.al, shown, screen.columns)

    def _teletype(self, registers: Registers) -> None:
        graphics = self._has_adapter() and self._mode().layout is not Layout.TEXT
        self._type(self._page(), registers.al, registers.bl if graphics else None)

    def print(self, text: str) -> None:
        """Write a line or more at the cursor, for the BIOS itself."""
        for value in text.replace("\n", "\r\n").encode("cp437", "replace"):
            self._type(self._page(), value, PLAIN)

    def _type(self, page: int, code: int, attribute: int | None) -> None:
        """Write a character at the cursor and move on, as a terminal does."""
        screen = self.screen
        row, column = self.cursor(page)
        if code == _BELL:
            self.console.bell()
            return
        if code == _BACKSPACE:
            column = max(column - 1, 0)
        elif code == _RETURN:
            column = 0
        elif code == _LINE_FEED:
            row += 1
            self._console_line_feed(page, row - 1)
        else:
            screen.write(page, row, column, code, attribute)
            if page == self._page() and self.console.active:
                shown = screen.read(page, row, column)[1] if attribute is None else PLAIN
                self.console.character(row, column, code, shown, screen.columns)
            column += 1
            if column >= screen.columns:
                column = 0
                row += 1
                self._console_line_feed(page, row - 1)
        if row >= screen.rows:
            row = screen.rows - 1
            self._scroll_up(screen, page, row)
        self.move_cursor(page, row, column)

    def _console_line_feed(self, page: int, row: int) -> None:
        if page == self._page():
            self.console.line_feed(row, self.screen.rows)

    def _scroll_up(self, screen: Screen, page: int, last: int) -> None:
        """Scroll by one line; the console has done so by itself, at its line feed."""
        text = not self._has_adapter() or self._mode().layout is Layout.TEXT
        attribute = screen.read(page, last, screen.columns - 1)[1] if text else 0
        screen.scroll(page, (0, 0, last, screen.columns - 1), 1, attribute)

    def _write_string(self, registers: Registers) -> None:
        """AH=13: a string at es:bp, with attributes in it where AL says so."""
        option, page = registers.al, registers.bh & 7
        if option > 3:
            return
        step = 2 if option & _WRITE_ATTRIBUTES else 1
        saved = self.cursor(page)
        self.move_cursor(page, registers.dh, registers.dl)
        text = self._core.read(linear(registers.es, registers.bp), registers.cx * step)
        for index in range(0, len(text), step):
            self._type(page, text[index], text[index + 1] if step == 2 else registers.bl)
        if not option & _MOVE_CURSOR:
            self.move_cursor(page, *saved)

    # -- dots -------------------------------------------------------------------------------------------------------

    def _write_dot(self, registers: Registers) -> None:
        self.screen.write_dot(registers.bh, registers.cx, registers.dx, registers.al)

    def _read_dot(self, registers: Registers) -> None:
        registers.al = self.screen.read_dot(registers.bh, registers.cx, registers.dx)

    def _vbe(self, registers: Registers) -> None:
        self.vbe.call(registers, self.set_mode)


def _emulated_shape(first: int, last: int, height: int) -> tuple[int, int]:
    """Return the lines of a cursor on characters of `height` lines, of one meant for characters of 8 lines."""
    if last >= _EMULATED_HEIGHT or first >= _CURSOR_OFF:
        return first, last
    scaled = (last + 1) * height // _EMULATED_HEIGHT - 1
    if last == first + 1:
        return scaled - 1, scaled
    return max((first + 1) * height // _EMULATED_HEIGHT - 1, 0), scaled
