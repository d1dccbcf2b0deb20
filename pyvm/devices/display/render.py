"""Pictures of the screen: registers and display memory to an array of RGB pixels.

The three kinds of modes have modules of their own: :mod:`~pyvm.devices.display.text`,
:mod:`~pyvm.devices.display.graphics`, :mod:`~pyvm.devices.display.packed`.  In each, every line of the screen begins at
an address of its own, and all pixels of many lines are found at once.  Pictures have the size that QEMU's have; there
is no border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvm.devices.display import registers as r
from pyvm.devices.display.dispi import Dispi
from pyvm.devices.display.graphics import draw_graphics, graphics_size
from pyvm.devices.display.packed import draw_packed
from pyvm.devices.display.text import draw_text, text_size

if TYPE_CHECKING:
    from pyvm.devices.display.scanout import Picture
    from pyvm.devices.display.vga import VgaState

NOTHING_SHOWN: Final = "Guest has not initialized the display (yet)."
_IDLE_HEIGHT: Final = 480
_IDLE_WIDTH: Final = 640
_IDLE_COLOUR: Final = 0xAA
_GLYPH_ROWS: Final = 16
SMALLEST_MODE: Final = 64 * 64  # pixels; fewer come from registers that nobody has programmed


def render(state: VgaState, vram: memoryview) -> Picture:
    """Return what the adapter shows; `vram` is all its memory, up to date."""
    dispi = Dispi(len(vram), lambda clear: None)
    dispi.load(state.dispi)
    graphics = bool(state.graphics[r.GC_MISC] & r.MISC_GRAPHICS)
    blank = not state.attribute_index & r.ATC_PAS
    if dispi.enabled:
        return _blank(dispi.height, dispi.width) if blank else draw_packed(state, dispi, vram)
    height, width = graphics_size(state) if graphics else text_size(state)
    if height * width < SMALLEST_MODE:
        return idle()
    if blank or state.sequencer[r.SEQ_CLOCK] & r.CLOCK_SCREEN_OFF:
        return _blank(height, width)
    return (draw_graphics if graphics else draw_text)(state, vram)


def _blank(height: int, width: int) -> Picture:
    import numpy as np

    return np.zeros((height, width, 3), np.uint8)


def idle(message: str = NOTHING_SHOWN) -> Picture:
    """Return the picture for a screen that nobody has set a mode for: one line of ASCII text in its middle."""
    import numpy as np

    from pyvm.firmware.bios.fonts import font

    glyphs = np.frombuffer(font(_GLYPH_ROWS), np.uint8).reshape(256, _GLYPH_ROWS)
    text = glyphs[np.frombuffer(message.encode("ascii"), np.uint8)]
    dots = np.unpackbits(text.T.copy(), axis=1)
    picture = _blank(_IDLE_HEIGHT, _IDLE_WIDTH)
    top, left = (_IDLE_HEIGHT - _GLYPH_ROWS) // 2, (_IDLE_WIDTH - dots.shape[1]) // 2
    picture[top : top + _GLYPH_ROWS, left : left + dots.shape[1]] = dots[:, :, None] * _IDLE_COLOUR
    return picture
