"""A clock for tests of what devices do when the host was too slow to run their timers in time."""

from __future__ import annotations

from pyvm.clock import ManualClock


class LateClock(ManualClock):
    """A clock stepped by hand that can also pass timers by."""

    def stall(self, nanoseconds: int) -> None:
        """Let time pass without running a timer: the host does something else."""
        self._now += nanoseconds

    def wake(self) -> None:
        """Run all timers that are due, at the present time."""
        self.queue.run_expired(self._now)
