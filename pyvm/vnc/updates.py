"""What of the screen one viewer is to be sent: RFC 6143, sections 7.5.3 and 7.6.1.

An update answers a request, and is made when there is something new in what was asked for.  It consists of rectangles
that are cut into pieces; each is written when the one before it has gone.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pyvm.vnc import protocol as p
from pyvm.vnc.encodings import Encoder
from pyvm.vnc.pixels import SERVER_FORMAT
from pyvm.vnc.protocol import Encoding
from pyvm.vnc.screen import TILE_HEIGHT, Area, areas_of, tiles_in, tiles_inside, tiles_of

if TYPE_CHECKING:
    from pyvm.vnc.pixels import Pixels
    from pyvm.vnc.screen import Screen, Tiles

PIECE: Final = 1 << 15
"""Most pixels of a rectangle, but for one line: so much is made at once."""
_ONE_SCREEN: Final = 1


class Updates:
    """One viewer's view of the screen."""

    def __init__(self, screen: Screen) -> None:
        self.form = SERVER_FORMAT
        self.encoding = Encoding.RAW
        self.encoder = Encoder()
        self.resizable: Encoding | None = None
        """How the viewer hears that the size has changed; where it cannot, it keeps seeing its first size."""
        self.notices: set[Encoding] = set()
        """Pseudo-encodings that the viewer is still to be sent."""
        self.refuse_size = False
        """Whether the viewer asked for another size and is still to be told that there is none."""
        self.width = self.height = 0
        """What the viewer thinks that the size is."""
        self._screen = screen
        self._stale: Tiles = tiles_of(0, 0)
        self._request: Area | None = None
        self._forced: Area | None = None
        # The update that is under way, as it was when it began.
        self._header = b""
        self._areas: deque[Area] = deque()
        self._picture: Pixels | None = None
        self._form = self.form
        self._encoding = self.encoding

    def begin(self) -> None:
        """The viewer learns the size now; it has seen nothing yet."""
        self._set_size(self._screen.width, self._screen.height)

    def _set_size(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._stale = tiles_of(width, height, True)

    # ---- What has changed, and what is wanted

    @property
    def wanted(self) -> bool:
        """Whether the viewer waits for an update that has not begun, and nothing stands before it."""
        return self._request is not None and not self.under_way

    @property
    def insistent(self) -> bool:
        """Whether the viewer wants an answer at once, not only when there is something new."""
        return self._forced is not None

    @property
    def under_way(self) -> bool:
        """Whether an update has begun, so that nothing else may be sent."""
        return bool(self._header or self._areas)

    def mark(self, tiles: Tiles) -> None:
        """These tiles of the screen have changed."""
        if self._fits:
            if tiles.shape == self._stale.shape:
                self._stale |= tiles
        else:
            self.mark_all()

    def mark_all(self) -> None:
        """The viewer is to see all anew."""
        self._stale[:] = True

    @property
    def _fits(self) -> bool:
        return (self._screen.width, self._screen.height) == (self.width, self.height)

    def request(self, area: Area, *, incremental: bool) -> None:
        """The viewer asks for what has changed in an area, or for all of it."""
        self._request = area if self._request is None else self._request.joined(area)
        if not incremental:
            self._forced = area if self._forced is None else self._forced.joined(area)

    # ---- What is sent

    def take_notices(self, absolute: bool, lights: int) -> bytes:
        """Return updates that tell the viewer something else than pixels."""
        if not self._fits and self.resizable is not None:
            self._set_size(self._screen.width, self._screen.height)
            self.notices.add(self.resizable)
        data = b""
        if Encoding.EXTENDED_DESKTOP_SIZE in self.notices:
            data += self._extended_size(0, 0)
        if self.refuse_size:
            self.refuse_size = False
            data += self._extended_size(p.RESIZE_BY_CLIENT, p.RESIZE_INVALID_LAYOUT)
        if Encoding.DESKTOP_SIZE in self.notices:
            data += p.update(1) + p.rectangle(0, 0, self.width, self.height, Encoding.DESKTOP_SIZE)
        if Encoding.EXTENDED_KEY_EVENT in self.notices:
            data += p.update(1) + p.rectangle(0, 0, self.width, self.height, Encoding.EXTENDED_KEY_EVENT)
        if Encoding.POINTER_MOTION_CHANGE in self.notices:
            motion = p.rectangle(absolute, 0, self.width, self.height, Encoding.POINTER_MOTION_CHANGE)
            data += p.update(1) + motion
        if Encoding.LED_STATE in self.notices:
            data += p.update(1) + p.rectangle(0, 0, 1, 1, Encoding.LED_STATE) + bytes((lights,))
        self.notices.clear()
        return data

    def _extended_size(self, reason: int, status: int) -> bytes:
        layout = p.SCREEN_LAYOUT.pack(_ONE_SCREEN, 0, 0, 0, self.width, self.height, 0)
        header = p.rectangle(reason, status, self.width, self.height, Encoding.EXTENDED_DESKTOP_SIZE)
        return p.update(1) + header + layout

    def serve(self) -> None:
        """Begin an update where the viewer waits for one, and there is something for it to see."""
        if self._request is not None and not self.under_way:
            self._begin_update(self._request)

    def _begin_update(self, request: Area) -> None:
        """Choose what the update contains; there is none where it would be empty and the viewer does not insist."""
        forced, wanted = self._forced, request.within(self.width, self.height)
        tiles = tiles_of(self.width, self.height)
        areas: list[Area] = []
        if not wanted.empty:
            index = tiles_in(wanted)
            tiles[index] = self._stale[index]
        if forced is not None:
            forced = forced.within(self.width, self.height)
            if not forced.empty:
                areas.append(forced)
                inside = tiles_inside(forced, self.width, self.height)
                tiles[inside] = False
                self._stale[inside] = False
        self._stale &= ~tiles
        areas += areas_of(tiles, self.width, self.height)
        if not areas and forced is None:
            return
        self._request = self._forced = None
        self._areas.extend(piece for area in areas for piece in _pieces(area))
        self._header = p.update(len(self._areas))
        self._picture, self._form, self._encoding = self._screen.pixels, self.form, self.encoding

    def next_piece(self) -> bytes:
        """Return the next part of the update that is under way, b"" where there is none."""
        parts, self._header = [self._header], b""
        room = PIECE
        while self._areas and (room == PIECE or self._areas[0].width * self._areas[0].height <= room):
            area = self._areas.popleft()
            room -= area.width * area.height
            parts.append(p.rectangle(area.x, area.y, area.width, area.height, self._encoding))
            parts.append(self.encoder.encode(self._encoding, self._form.convert(self._cut(area)), self._form))
        if not self._areas:
            self._picture = None
        return b"".join(parts)

    def _cut(self, area: Area) -> Pixels:
        """Return the pixels of an area; black where the screen is smaller than the viewer thinks."""
        assert self._picture is not None
        found: Pixels = self._picture[area.y : area.y + area.height, area.x : area.x + area.width]
        if found.shape == (area.height, area.width):
            return found
        import numpy as np

        whole = np.zeros((area.height, area.width), np.uint32)
        whole[: found.shape[0], : found.shape[1]] = found
        return whole


def _pieces(area: Area) -> list[Area]:
    lines = max(PIECE // area.width, 1)
    if lines > TILE_HEIGHT:
        lines -= lines % TILE_HEIGHT  # so that the tiles of encodings are whole
    bottom = area.y + area.height
    return [Area(area.x, y, area.width, min(lines, bottom - y)) for y in range(area.y, bottom, lines)]
