"""Pictures of the Bochs display interface's modes: packed pixels of 8 to 32 bits, and four planes.

Bochs VBE display API, version 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvm.devices.display import registers as r
from pyvm.devices.display.graphics import BAND, fetch, pixels_planar
from pyvm.devices.display.scanout import colours, colours_of_16

if TYPE_CHECKING:
    from pyvm.devices.display.dispi import Dispi
    from pyvm.devices.display.scanout import Array, Picture
    from pyvm.devices.display.vga import VgaState

_PLANES: Final = 4  # the depth that is not packed


def draw_packed(state: VgaState, dispi: Dispi, vram: memoryview) -> Picture:
    """Return the picture of a mode of the display interface."""
    import numpy as np

    height, width = dispi.height, dispi.width
    memory = np.frombuffer(vram, np.uint8)
    address = dispi.start + dispi.pitch * np.arange(height)
    length = width * ((dispi.depth + 7) // 8)
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        band = slice(top, top + BAND)
        if dispi.depth == _PLANES:
            planes = state.attribute[r.ATC_PLANES] & 0xF
            pixels = fetch(memory.reshape(-1, 4), address[band] // 4, width // 8, pixels_planar, planes)
            picture[band] = colours_of_16(state)[pixels]
        else:
            shape = len(picture[band]), length
            first = memory[int(address[top]) :]
            lines = np.lib.stride_tricks.as_strided(first, shape, (dispi.pitch, 1), writeable=False)
            picture[band] = _pixels(state, lines, dispi.depth)
    return picture


def _pixels(state: VgaState, lines: Array, depth: int) -> Array:
    """Return the colours of whole lines of packed pixels."""
    import numpy as np

    if depth == 8:
        return colours(state.dac)[lines]
    big = state.big_endian
    if depth >= 24:
        components = lines.reshape(len(lines), -1, depth // 8)
        if big:
            return components[..., depth // 8 - 3 :]
        return components[..., 2::-1]
    values = np.ascontiguousarray(lines).view(">u2" if big else "<u2")
    green_bits = depth - 10
    found = np.stack((values >> 5 + green_bits << 3, values >> 5 << 8 - green_bits, values << 3), axis=-1)
    found = found.astype(np.uint8) & np.array([0xF8, 0x100 - (1 << 8 - green_bits), 0xF8], np.uint8)
    if depth == 16 and not big:
        # The other formats keep their lowest bits clear, in QEMU's pictures too.
        found |= found >> np.array([5, green_bits, 5], np.uint8)
    return found
