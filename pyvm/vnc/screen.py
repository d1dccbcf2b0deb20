"""What the screen shows, as an array of pixels, and which of its tiles have changed since somebody looked last.

The adapter's registers and the display memory that it shows are compared with what they were; only where they differ
the picture is drawn.  So a screen on which nothing happens costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pyvm.records import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyvm.devices.display.scanout import Picture
    from pyvm.devices.display.vga import Vga, VgaState
    from pyvm.vnc.pixels import Pixels

    Tiles = NDArray[np.bool_]
    """Rows x columns of tiles: what of the screen is meant."""

TILE_HEIGHT: Final = 16
TILE_WIDTH: Final = 32
NO_ADAPTER: Final = "This VM has no graphic display device."
_LEGACY_MEMORY: Final = 256 << 10
"""Display memory that the modes of a VGA show."""


@record(frozen=True)
class Area:
    """A rectangle of pixels."""

    x: int
    y: int
    width: int
    height: int

    def within(self, width: int, height: int) -> Area:
        """Return the part of it that is on a screen of this size."""
        x, y = min(self.x, width), min(self.y, height)
        return Area(x, y, min(self.width, width - x), min(self.height, height - y))

    def joined(self, other: Area) -> Area:
        """Return the smallest area that contains both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        return Area(x, y, right - x, max(self.y + self.height, other.y + other.height) - y)

    @property
    def empty(self) -> bool:
        """Whether there is no pixel in it."""
        return not (self.width and self.height)


def tiles_of(width: int, height: int, value: bool = False) -> Tiles:
    """Return the tiles of a screen of this size, all or none of them meant."""
    import numpy as np

    return np.full((-(-height // TILE_HEIGHT), -(-width // TILE_WIDTH)), value)


def tiles_in(area: Area) -> tuple[slice, slice]:
    """Return the index of all tiles that an area touches."""
    return (
        slice(area.y // TILE_HEIGHT, -(-(area.y + area.height) // TILE_HEIGHT)),
        slice(area.x // TILE_WIDTH, -(-(area.x + area.width) // TILE_WIDTH)),
    )


def tiles_inside(area: Area, width: int, height: int) -> tuple[slice, slice]:
    """Return the index of all tiles that an area covers wholly, on a screen of this size."""
    right, bottom = area.x + area.width, area.y + area.height
    return (
        slice(-(-area.y // TILE_HEIGHT), -(-bottom // TILE_HEIGHT) if bottom >= height else bottom // TILE_HEIGHT),
        slice(-(-area.x // TILE_WIDTH), -(-right // TILE_WIDTH) if right >= width else right // TILE_WIDTH),
    )


def areas_of(tiles: Tiles, width: int, height: int) -> Iterator[Area]:
    """Yield areas that together are these tiles of a screen: runs of tiles, equal ones below each other joined."""
    import numpy as np

    edges = np.diff(np.pad(tiles, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]
    open_runs: dict[tuple[int, int], tuple[int, int]] = {}
    for row, left, right in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True):
        top, end = open_runs.get((left, right), (row, row))
        if end != row:
            yield _area(left, right, top, end, width, height)
            top = row
        open_runs[left, right] = top, row + 1
    for (left, right), (top, end) in open_runs.items():
        yield _area(left, right, top, end, width, height)


def _area(left: int, right: int, top: int, end: int, width: int, height: int) -> Area:
    x, y = left * TILE_WIDTH, top * TILE_HEIGHT
    return Area(x, y, min(right * TILE_WIDTH, width) - x, min(end * TILE_HEIGHT, height) - y)


class Screen:
    """The screen of one display adapter, or one that says that there is none."""

    def __init__(self, adapter: Callable[[], Vga | None]) -> None:
        self._adapter = adapter
        self._state: VgaState | None = None
        self._memory: NDArray[Any] | None = None
        self._drawn = False
        self._pixels: Pixels | None = None

    @property
    def pixels(self) -> Pixels:
        """The picture that was drawn last: an array that nobody changes."""
        if self._pixels is None:
            self.refresh()
        assert self._pixels is not None
        return self._pixels

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    def refresh(self) -> Tiles | None:
        """Draw what is shown now; return the tiles that have changed, all where the size has, None where none."""
        picture = self._draw()
        if picture is None:
            return None
        before, after = self._pixels, _pixels(picture)
        self._pixels = after
        if before is None or before.shape != after.shape:
            return tiles_of(self.width, self.height, True)
        tiles = _changed(before, after)
        return tiles if tiles.any() else None

    def forget(self) -> None:
        """Keep no memory for comparisons: nobody looks."""
        self._state = self._memory = None

    def _draw(self) -> Picture | None:
        """Return the picture, or None where what it is drawn from has not changed."""
        import numpy as np

        from pyvm.devices.display.render import idle, render

        vga = self._adapter()
        if vga is None:
            if self._drawn:
                return None
            self._drawn = True
            return idle(NO_ADAPTER)
        state = vga.save()
        shown = _shown(state, vga.vram.view)
        if state == self._state and self._memory is not None and np.array_equal(shown, self._memory):
            return None
        # A copy from before the drawing: what the guest writes meanwhile is found to differ the next time.
        self._state, self._memory = state, shown.copy()
        return render(state, vga.vram.view)


def _shown(state: VgaState, vram: memoryview) -> NDArray[Any]:
    """Return the part of display memory that the picture is made of."""
    import numpy as np

    from pyvm.devices.display.dispi import Dispi

    dispi = Dispi(len(vram), lambda clear: None)
    dispi.load(state.dispi)
    memory = np.frombuffer(vram, np.uint8)
    if not dispi.enabled:
        return memory[:_LEGACY_MEMORY]
    return memory[dispi.start : dispi.start + dispi.pitch * dispi.height]


def _pixels(picture: Picture) -> Pixels:
    """Return a picture of three bytes a pixel as numbers 0xRRGGBB."""
    import numpy as np

    wide = np.zeros((*picture.shape[:2], 4), np.uint8)
    wide[..., 2::-1] = picture
    return wide.view("<u4")[..., 0]


def _changed(before: Pixels, after: Pixels) -> Tiles:
    """Return the tiles in which two pictures of one size differ."""
    import numpy as np

    height, width = after.shape
    differ = before != after
    rows = np.logical_or.reduceat(differ, np.arange(0, height, TILE_HEIGHT), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, width, TILE_WIDTH), axis=1)
