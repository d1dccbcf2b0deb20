"""Pictures of the VGA's graphics modes.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem", section "Graphics Modes".  Modes differ
in how a word of the four planes becomes eight or four pixels.  As in QEMU's pictures, a pixel of a 320-column mode is
two pixels wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pyvm.devices.display import registers as r
from pyvm.devices.display.retrace import shown_lines
from pyvm.devices.display.scanout import Scan, colours, colours_of_16, scan

if TYPE_CHECKING:
    from pyvm.devices.display.scanout import Array, Picture
    from pyvm.devices.display.vga import VgaState

BAND: Final = 128  # lines that are drawn at once, so that the arrays in between stay small
_A13_SHIFT: Final = 12  # where the bits of the row scan counter enter the address in word mode


def _half_rate(state: VgaState) -> bool:
    """Whether each pixel of a mode with up to 16 colours is two pixels wide."""
    return bool(state.sequencer[r.SEQ_CLOCK] & r.CLOCK_HALF)


def _shift(state: VgaState) -> int:
    return (state.graphics[r.GC_MODE] & r.MODE_SHIFT) >> 5


def graphics_size(state: VgaState) -> tuple[int, int]:
    """Return height and width of a graphics mode."""
    width = 8 * (state.crtc[r.CRTC_H_DISPLAY] + 1)
    return shown_lines(bytes(state.crtc)), width << (_half_rate(state) and _shift(state) < r.SHIFT_256)


def draw_graphics(state: VgaState, vram: memoryview) -> Picture:
    """Return the picture of a graphics mode."""
    import numpy as np

    height, width = graphics_size(state)
    words = np.frombuffer(vram, np.uint8).reshape(-1, 4)
    lines = scan(state, height)
    address = _interleaved(state, lines)
    shift = _shift(state)
    if shift >= r.SHIFT_256:
        pixels, wide, palette = _pixels_256, 2, colours(state.dac)
    else:
        pixels = pixels_planar if shift == r.SHIFT_PLANAR else _pixels_cga
        wide, palette = 1 + _half_rate(state), colours_of_16(state)
    planes = state.attribute[r.ATC_PLANES] & 0xF
    pan = _panning(state, lines, 4 if shift >= r.SHIFT_256 else 8)
    columns = np.arange(width // wide)
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        band = slice(top, top + BAND)
        found = fetch(words, address[band], state.crtc[r.CRTC_H_DISPLAY] + 2, pixels, planes)
        if pan[band].any():
            found = np.take_along_axis(found, columns + pan[band, None], axis=1)
        else:
            found = found[:, : len(columns)]
        picture[band] = palette[np.repeat(found, wide, axis=1)]
    return picture


def _panning(state: VgaState, lines: Scan, pixels: int) -> Array:
    """Return by how many pixels each line is shifted to the left; a word has `pixels` of them."""
    import numpy as np

    pan = (state.attribute[r.ATC_PANNING] & 7) * pixels // 8
    still = lines.below & bool(state.attribute[r.ATC_MODE] & r.ATC_MODE_PAN_COMPARE)
    return np.where(still, 0, np.intp(pan))


def fetch(words: Array, address: Array, count: int, pixels: Callable[[Array, int], Array], planes: int) -> Array:
    """Return the pixels of `count` words from each address on."""
    import numpy as np

    places = (address[:, None] + np.arange(count)) % len(words)
    found: Array = pixels(words[places], planes).reshape(len(address), -1)
    return found


def pixels_planar(words: Array, planes: int) -> Array:
    """Eight pixels in a word: a bit of each in every plane, the leftmost in bit 7."""
    import numpy as np

    bits = np.unpackbits(words[..., None], axis=-1)
    weights = np.array([1 << plane & planes for plane in range(4)], np.uint8)
    found: Array = np.bitwise_or.reduce(bits * weights[:, None], axis=-2)
    return found


def _pixels_cga(words: Array, planes: int) -> Array:
    """Eight pixels in a word: four in planes 0 and 2, then four in planes 1 and 3, two bits of each in a plane."""
    import numpy as np

    pairs = words[..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3
    return np.concatenate([pairs[..., half, :] | pairs[..., half + 2, :] << 2 for half in range(2)], axis=-1) & planes


def _pixels_256(words: Array, planes: int) -> Array:
    """Four pixels in a word: one in each plane."""
    return words


def _interleaved(state: VgaState, lines: Scan) -> Array:
    """Return the addresses with the row scan counter in bits 13 and 14, where the mode says so, as the CGA has it."""
    address, row, mode = lines.address, lines.row, state.crtc[r.CRTC_MODE]
    low = _A13_SHIFT + bool(mode & r.CRTC_MODE_BYTE)
    if not mode & r.CRTC_MODE_A13:
        address = address & ~(1 << low) | (row & 1) << low
    if not mode & r.CRTC_MODE_A14:
        address = address & ~(2 << low) | (row & 2) << low
    return address
