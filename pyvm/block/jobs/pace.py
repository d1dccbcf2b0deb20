"""How fast a job may go: so many bytes a second, counted in slices of time."""

from __future__ import annotations

SLICE = 0.1
"""Seconds."""


class Pace:
    """A limit in bytes a second; 0: none."""

    def __init__(self) -> None:
        self.speed = 0
        self._start = 0.0
        self._end = 0.0
        self._moved = 0

    def set(self, speed: int) -> None:
        """Have another limit from now on."""
        self.speed = speed
        self._end = 0.0

    def account(self, count: int, now: float) -> float:
        """So many bytes were moved; return how many seconds to wait before the next are."""
        if not self.speed:
            return 0.0
        quota = max(self.speed * SLICE, 1)
        if self._end < now:
            self._start, self._end = now, now + SLICE
            self._moved = 0
        self._moved += count
        if self._moved < quota:
            return 0.0
        self._end = self._start + self._moved / quota * SLICE
        return self._end - now
