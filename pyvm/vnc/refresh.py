"""When the screen is looked at: only while a viewer waits for it to change, and seldom where it does not.

After a change the next look comes soon; without one the looks grow rarer, until somebody types or points.  Looking
takes the machine's lock, so a picture that takes long to draw is drawn less often.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyvm.vnc.input import pointer_is_absolute

if TYPE_CHECKING:
    from pyvm.input import InputRouter
    from pyvm.vnc.connection import Connection
    from pyvm.vnc.screen import Screen

SHORTEST: Final = 0.03
"""Seconds from one look to the next while the screen changes."""
STEP: Final = 0.03
"""Seconds that are added with every look that finds nothing new."""
LONGEST: Final = 0.5
SHARE: Final = 0.2
"""The part of the time that may be spent on drawing."""


class Timers(Protocol):
    """A loop that calls back after a time in seconds."""

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Any:
        """Return a handle with a method `cancel`."""


class Refresher:
    """Looks at the screen for all viewers of a machine."""

    def __init__(
        self,
        timers: Timers,
        screen: Screen,
        router: InputRouter,
        viewers: Callable[[], Iterable[Connection]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timers = timers
        self._screen = screen
        self._router = router
        self._viewers = viewers
        self._now = now
        self._timer: Any = None
        self._due = 0.0
        self._earliest = 0.0
        self._interval = SHORTEST
        self._looking = False

    def wake(self, *, soon: bool = False) -> None:
        """A viewer waits for an update, or wants one as soon as there can be one."""
        if self._looking:
            return
        if self._timer is None:
            self._arm(self._earliest)
        elif soon:
            self._advance(self._earliest)

    def nudge(self) -> None:
        """Somebody types or points: the screen will change soon."""
        self._interval = SHORTEST
        self._advance(max(self._earliest, self._now() + SHORTEST))

    def _advance(self, due: float) -> None:
        """Look then, if that is earlier than it would be."""
        if self._timer is not None and self._due > due:
            self._timer.cancel()
            self._arm(due)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        now = self._now()
        self._due = max(due, now)
        self._timer = self._timers.call_later(self._due - now, self._look)

    def _look(self) -> None:
        self._timer = None
        viewers = list(self._viewers())
        if not any(viewer.session.wants_update for viewer in viewers):
            if not viewers:
                self._screen.forget()
            return
        begun = self._now()
        tiles = self._screen.refresh()
        end = self._now()
        self._interval = SHORTEST if tiles is not None else min(self._interval + STEP, LONGEST)
        self._earliest = end + max(SHORTEST, (end - begun) / SHARE)
        absolute = pointer_is_absolute(self._router)
        self._looking = True  # what a viewer is left wanting is for the next look
        for viewer in viewers:
            if tiles is not None:
                viewer.session.screen_changed(tiles)
            viewer.session.pointer_changed(absolute)
            viewer.session.serve()
            viewer.pump()
        self._looking = False
        if any(viewer.session.wants_update for viewer in self._viewers()):
            self._arm(max(self._earliest, end + self._interval))
