"""Guest time: one clock that stops with the machine, and the timers that hang on it.

TSC, PIT, HPET, PM timer, LAPIC timer and RTC all read the same :class:`Clock`, so they never disagree.  The unit is
the nanosecond, from 0 when the machine is made.  :class:`RunningClock` follows the host's monotonic clock while the
machine runs; :class:`ManualClock` is stepped by hand, for tests.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

NANOSECONDS = 1_000_000_000


class Timer:
    """One callback that runs once when guest time reaches `deadline`; armed again it runs again."""

    __slots__ = ("_clock", "callback", "deadline")

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        """Run the callback when guest time reaches `deadline` ns; replaces an earlier deadline."""
        if deadline != self.deadline:
            self.deadline = deadline
            self._clock.queue.push(deadline, self)

    def cancel(self) -> None:
        """Forget the deadline; the callback does not run."""
        self.deadline = None


class TimerQueue:
    """Armed timers by deadline.  Entries of timers that were re-armed or cancelled stay until they surface."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._serial = 0
        self.on_earlier: Callable[[], None] = lambda: None
        """Called when a new deadline is earlier than all others: whoever sleeps until the first must wake."""

    def push(self, deadline: int, timer: Timer) -> None:
        """Add `timer` at `deadline` ns."""
        self._serial += 1
        heapq.heappush(self._heap, (deadline, self._serial, timer))
        if self._heap[0][2] is timer and self._heap[0][0] == deadline:
            self.on_earlier()
        elif len(self._heap) > 256 and len(self._heap) > 8 * self._live():
            self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
            heapq.heapify(self._heap)

    def _live(self) -> int:
        return 1 + sum(entry[2].deadline == entry[0] for entry in self._heap)

    def next_deadline(self) -> int | None:
        """Return the earliest deadline in ns, or None where no timer is armed."""
        heap = self._heap
        while heap and heap[0][2].deadline != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_expired(self, now: int) -> None:
        """Run the callbacks of all timers whose deadline is at or before `now` ns, earliest first."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            timer = heapq.heappop(self._heap)[2]
            timer.deadline = None
            timer.callback()


class Clock:
    """What devices know of time: read it, and hang timers on it."""

    def __init__(self) -> None:
        self.queue = TimerQueue()

    def now(self) -> int:
        """Return guest time in ns."""
        raise NotImplementedError

    def timer(self, callback: Callable[[], None]) -> Timer:
        """Return a new timer, not armed."""
        return Timer(self, callback)


class RunningClock(Clock):
    """Guest time that follows the host's monotonic clock while running and stands still while stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False
        self._frozen = 0
        self._offset = 0

    @property
    def offset(self) -> int:
        """Guest time less host monotonic time, in ns; means something while running."""
        return self._offset

    def now(self) -> int:
        """Return guest time in ns."""
        return time.monotonic_ns() + self._offset if self.running else self._frozen

    def start(self) -> None:
        """Let guest time pass."""
        if not self.running:
            self._offset = self._frozen - time.monotonic_ns()
            self.running = True
            self.queue.on_earlier()

    def stop(self) -> None:
        """Hold guest time where it is."""
        if self.running:
            self._frozen = self.now()
            self.running = False

    def set(self, now: int) -> None:
        """Step guest time to `now` ns; used when a saved machine is loaded into a stopped one."""
        if self.running:
            self._offset = now - time.monotonic_ns()
        self._frozen = now


class ManualClock(Clock):
    """Guest time that moves only when a test says so."""

    def __init__(self, now: int = 0) -> None:
        super().__init__()
        self._now = now

    def now(self) -> int:
        """Return guest time in ns."""
        return self._now

    def advance(self, nanoseconds: int) -> None:
        """Move guest time forward, running each timer at its own deadline."""
        end = self._now + nanoseconds
        while (deadline := self.queue.next_deadline()) is not None and deadline <= end:
            self._now = max(self._now, deadline)
            self.queue.run_expired(self._now)
        self._now = end


def muldiv(value: int, numerator: int, denominator: int) -> int:
    """Return value x numerator / denominator, rounded down: the one way ticks and nanoseconds are converted."""
    return value * numerator // denominator
