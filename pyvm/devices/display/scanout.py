"""What all pictures of the screen need: the colours of pixel values, and where the lines begin in display memory.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem", sections "Attribute Controller" and
"CRT Controller Registers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyvm.devices.display import registers as r
from pyvm.devices.display.dac import COLOURS, DacState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvm.devices.display.vga import VgaState

    Array = NDArray[Any]
    Picture = NDArray[np.uint8]
    """Height x width x (red, green, blue)."""


def colours(dac: DacState) -> Picture:
    """Return the colour of each of the 256 pixel values, the mask on them applied."""
    import numpy as np

    values: Picture = np.frombuffer(dac.palette, np.uint8).reshape(COLOURS, 3)
    if not dac.wide:
        values = (values << 2 | (values & 1) * 3).astype(np.uint8)  # the lowest bit fills up
    chosen: Picture = values[np.arange(COLOURS) & dac.mask]
    return chosen


def colours_of_16(state: VgaState) -> Picture:
    """Return the colour of each of the 16 values that go through the attribute controller's palette."""
    import numpy as np

    values = np.array(state.attribute[: r.ATC_PALETTE_SIZE], np.intp)
    select = state.attribute[r.ATC_COLOUR_SELECT]
    if state.attribute[r.ATC_MODE] & r.ATC_MODE_SELECT_5_4:
        values = values & 0x0F | (select & 0x0F) << 4
    else:
        values = values & 0x3F | (select & 0x0C) << 4
    return colours(state.dac)[values]


@dataclass(frozen=True)
class Scan:
    """For each line of the screen: the address of its first word, the row in its characters, and where it lies."""

    address: Array
    row: Array
    below: Array
    """Whether the line is below the line compare, in the part that begins at address 0."""


def scan(state: VgaState, height: int) -> Scan:
    """Return where the CRT controller finds each of `height` lines."""
    import numpy as np

    crtc = state.crtc
    max_scan, overflow = crtc[r.CRTC_MAX_SCAN], crtc[r.CRTC_OVERFLOW]
    rows = (max_scan & r.MAX_SCAN_ROWS) + 1
    double = int(bool(max_scan & r.MAX_SCAN_DOUBLE))
    compare = crtc[r.CRTC_LINE_COMPARE] | (overflow & 0x10) << 4 | (max_scan & r.MAX_SCAN_LINE_COMPARE) << 3
    preset = crtc[r.CRTC_PRESET_ROW]
    start = (crtc[r.CRTC_START_HIGH] << 8 | crtc[r.CRTC_START_LOW]) + (preset >> 5 & 3)
    line = np.arange(height)
    below = line > compare
    line = np.where(below, line - compare - 1 >> double, (line >> double) + (preset & 0x1F) % rows)
    address = np.where(below, 0, start) + line // rows * (2 * crtc[r.CRTC_OFFSET])
    return Scan(address, line % rows, below)
