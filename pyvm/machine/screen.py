"""How large the guest's screen is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.devices.display.vga import Vga

NO_SCREEN = (640, 480)


def screen_size(displays: Sequence[Vga]) -> tuple[int, int]:
    """Return width and height of what the first adapter shows, in pixels."""
    if not displays:
        return NO_SCREEN
    from pyvm.devices.display import registers as r
    from pyvm.devices.display.dispi import Dispi
    from pyvm.devices.display.graphics import graphics_size
    from pyvm.devices.display.render import SMALLEST_MODE
    from pyvm.devices.display.text import text_size

    vga = displays[0]
    state = vga.save()
    dispi = Dispi(vga.vram.size, lambda clear: None)
    dispi.load(state.dispi)
    if dispi.enabled:
        return dispi.width, dispi.height
    graphics = bool(state.graphics[r.GC_MISC] & r.MISC_GRAPHICS)
    height, width = graphics_size(state) if graphics else text_size(state)
    return (width, height) if height * width >= SMALLEST_MODE else NO_SCREEN
