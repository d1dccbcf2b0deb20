"""How much of the main loop's time the clients of all monitors may take while the guest runs.

The guest needs the main loop's lock for each access to a device.  A client that sends one command after another would
keep the loop busy, and leave the guest little but the moments in which the loop looks for more to do.  So what clients
have the loop do is added up, and paid off at a fixed rate; whose turn comes while there is debt waits for its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.6
"""The part of the time that clients may take in the long run."""
BURST = 0.004
"""Seconds of work that may be done at once without any pause."""
TURN = 0.001
"""Seconds of work of one client before others get their turn."""


class Pace:
    """Adds up the work of all clients; all times in seconds."""

    def __init__(
        self,
        hurried: Callable[[], bool],
        *,
        work: Callable[[], float] = time.thread_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hurried` says whether somebody else needs the main loop's time, `work` what this thread has worked."""
        self._hurried = hurried
        self._work = work
        self._now = now
        self._debt = 0.0
        self._paid = now()

    def begin(self) -> float:
        """Begin a turn; return what :meth:`over` and :meth:`charge` want."""
        return self._work()

    def over(self, begun: float) -> bool:
        """Return whether a turn has taken its time."""
        return self._work() - begun > TURN

    def charge(self, begun: float) -> None:
        """Add the work of a turn to the debt."""
        now = self._now()
        self._debt = max(self._debt - (now - self._paid) * SHARE, 0.0) + self._work() - begun
        self._paid = now

    def pause(self) -> float:
        """Return how long the next turn has to wait."""
        debt = self._debt - (self._now() - self._paid) * SHARE - BURST
        return debt / SHARE if debt > 0 and self._hurried() else 0.0
