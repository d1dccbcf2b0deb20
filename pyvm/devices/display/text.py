"""Pictures of text modes.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem", section "Alphanumeric Modes".  As in
QEMU's pictures there are whole rows only, characters of 40-column modes are 16 pixels wide, and nothing blinks: the
cursor is on, and attribute bit 7 is the intensity of the background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvm.devices.display import registers as r
from pyvm.devices.display.retrace import shown_lines
from pyvm.devices.display.scanout import Scan, colours_of_16, scan

if TYPE_CHECKING:
    from pyvm.devices.display.scanout import Array, Picture
    from pyvm.devices.display.vga import VgaState

_BLOCK_SIZE: Final = 0x2000  # of one font, in words
_GLYPH_SIZE: Final = 32  # of one character in it
_FONT_PLANE: Final = 2
_JOINED: Final = (0xB0, 0xDF)  # characters whose ninth column repeats the eighth
_UNDERLINE_BITS: Final = 0x77
_UNDERLINED: Final = 0x01


def _cell_width(state: VgaState) -> int:
    clock = state.sequencer[r.SEQ_CLOCK]
    if clock & r.CLOCK_HALF:
        return 16
    return 8 if clock & r.CLOCK_8_DOT else 9


def text_size(state: VgaState) -> tuple[int, int]:
    """Return height and width of a text mode."""
    max_scan = state.crtc[r.CRTC_MAX_SCAN]
    rows = (max_scan & r.MAX_SCAN_ROWS) + 1
    lines = shown_lines(bytes(state.crtc))
    return lines - lines % rows, (state.crtc[r.CRTC_H_DISPLAY] + 1) * _cell_width(state)


def draw_text(state: VgaState, vram: memoryview) -> Picture:
    """Return the picture of a text mode."""
    import numpy as np

    height, width = text_size(state)
    cell = _cell_width(state)
    columns = state.crtc[r.CRTC_H_DISPLAY] + 1
    words = np.frombuffer(vram, np.uint8).reshape(-1, 4)
    lines = scan(state, height)
    places = lines.address[:, None] + np.arange(columns + 1)  # one more, for panning
    codes, attributes = words[places, 0].astype(np.intp), words[places, 1]
    glyphs = words[_font(state, attributes) + codes * _GLYPH_SIZE + lines.row[:, None], _FONT_PLANE]
    dots = _dots(state, codes, glyphs, cell)
    solid = _cursor(state, places, lines) | _underline(state, attributes, lines)
    dots |= solid[:, :, None]
    values = np.where(dots, attributes[:, :, None] & 0xF, attributes[:, :, None] >> 4)
    values = (values & state.attribute[r.ATC_PLANES]).reshape(height, -1)
    shift = _panning(state, lines, cell)
    if shift.any():
        values = np.take_along_axis(values, np.arange(width) + shift[:, None], axis=1)
    picture: Picture = colours_of_16(state)[values[:, :width]]
    return picture


def _font(state: VgaState, attributes: Array) -> Array:
    """Return the address of the font of each character: attribute bit 3 chooses between two."""
    import numpy as np

    select = state.sequencer[r.SEQ_CHAR_MAP]
    block_b = (select & 3) << 1 | select >> 4 & 1
    block_a = (select >> 2 & 3) << 1 | select >> 5 & 1
    return np.where(attributes & 8, np.intp(block_a * _BLOCK_SIZE), np.intp(block_b * _BLOCK_SIZE))


def _dots(state: VgaState, codes: Array, glyphs: Array, cell: int) -> Array:
    """Return which dots of each character's row are in the foreground."""
    import numpy as np

    dots: Array = np.unpackbits(glyphs[:, :, None], axis=2).astype(bool)
    if cell == 16:
        return np.repeat(dots, 2, axis=2)
    if cell == 9:
        joined = (codes >= _JOINED[0]) & (codes <= _JOINED[1])
        joined &= bool(state.attribute[r.ATC_MODE] & r.ATC_MODE_LINE_GRAPHICS)
        return np.concatenate((dots, (dots[:, :, 7] & joined)[:, :, None]), axis=2)
    return dots


def _cursor(state: VgaState, places: Array, lines: Scan) -> Array:
    """Return which rows of which characters the cursor covers."""
    crtc = state.crtc
    first, last = crtc[r.CRTC_CURSOR_START], crtc[r.CRTC_CURSOR_END] & 0x1F
    here = places == (crtc[r.CRTC_CURSOR_HIGH] << 8 | crtc[r.CRTC_CURSOR_LOW])
    rows = (lines.row >= first & 0x1F) & (lines.row <= last) & (not first & r.CURSOR_OFF)
    covered: Array = here & rows[:, None]
    return covered


def _underline(state: VgaState, attributes: Array, lines: Scan) -> Array:
    """Return which rows of which characters are underlined, as monochrome modes do by the attribute."""
    row = lines.row == state.crtc[r.CRTC_UNDERLINE] & 0x1F
    mono = bool(state.attribute[r.ATC_MODE] & r.ATC_MODE_MONO)
    marked: Array = ((attributes & _UNDERLINE_BITS) == _UNDERLINED) & (row & mono)[:, None]
    return marked


def _panning(state: VgaState, lines: Scan, cell: int) -> Array:
    """Return by how many pixels each line is shifted to the left."""
    import numpy as np

    pan = state.attribute[r.ATC_PANNING]
    if cell == 9:
        pan = pan + 1 if pan < 8 else 0
    else:
        pan = (pan & 7) * (cell // 8)
    still = lines.below & bool(state.attribute[r.ATC_MODE] & r.ATC_MODE_PAN_COMPARE)
    return np.where(still, 0, np.intp(pan))
