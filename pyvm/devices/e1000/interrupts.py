"""Interrupts of an 8254x (8254x manual, 3.2.7, 3.4.3 and 13.4.17 to 13.4.21): causes, mask, and what puts them off.

ITR keeps interrupts apart.  Besides, the interrupt for a frame can be put off by some time, in case more frames follow,
but not by more than a second, longer time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.clock import Clock
from pyvm.devices.e1000 import registers as r
from pyvm.irq import IrqLine


class Delay:
    """A cause that is put off while more of its kind follow."""

    def __init__(self, clock: Clock, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._timer = clock.timer(self.expire)
        self.limit: int | None = None
        """When it is told in any case."""

    @property
    def deadline(self) -> int | None:
        """When it is told if nothing follows, None where nothing is put off."""
        return self._timer.deadline

    def put_off(self, ticks: int, longest: int) -> None:
        """Tell it `ticks` from now, and no later than `longest` ticks after the first; 0: no such limit."""
        now = self._clock.now()
        if longest and self.limit is None:
            self.limit = now + longest * r.DELAY_TICK
        deadline = now + ticks * r.DELAY_TICK
        self._timer.arm(deadline if self.limit is None else min(deadline, self.limit))

    def expire(self) -> None:
        """Tell it now, if it was put off or not."""
        self.cancel()
        self._fire()

    def cancel(self) -> None:
        """Forget it."""
        self._timer.cancel()
        self.limit = None

    def load(self, deadline: int | None, limit: int | None) -> None:
        """Take over when it is to be told."""
        self.cancel()
        if deadline is not None:
            self._timer.arm(deadline)
            self.limit = limit


class Interrupts:
    """Causes and mask of one card; without `mitigation` ITR has no effect."""

    def __init__(self, clock: Clock, line: IrqLine, *, mitigation: bool = True) -> None:
        self._clock = clock
        self._line = line
        self._mitigation = mitigation
        self._throttle = clock.timer(self._update)
        self.causes = 0
        self.mask = 0
        self.interval = 0
        """Least time between two interrupts, in ticks of ITR."""

    @property
    def deadline(self) -> int | None:
        """Before when there is no other interrupt, None where there may be one at any time."""
        return self._throttle.deadline

    def raise_causes(self, causes: int) -> None:
        """Something has happened."""
        self.causes |= causes
        self._update()

    def take(self) -> int:
        """Return the causes, and forget them: a read of ICR."""
        causes, self.causes = self.causes, 0
        self._line.set(False)
        return causes

    def clear(self, causes: int) -> None:
        """Forget some causes: a write to ICR."""
        self.causes &= ~causes
        self._update()

    def set_mask(self, mask: int) -> None:
        """Let these causes interrupt, and no others."""
        self.mask = mask
        self._update()

    def _update(self) -> None:
        if not self.causes & self.mask:
            self._line.set(False)
        elif not self._line.level and self._throttle.deadline is None:
            self._line.set(True)
            if self.interval and self._mitigation:
                self._throttle.arm(self._clock.now() + self.interval * r.ITR_TICK)

    def reset(self) -> None:
        """Forget all."""
        self._throttle.cancel()
        self.causes = self.mask = self.interval = 0
        self._line.set(False)

    @property
    def asserted(self) -> bool:
        """Whether the card interrupts now."""
        return self._line.level

    def load(self, causes: int, mask: int, interval: int, deadline: int | None, *, asserted: bool) -> None:
        """Take over a checked state, and drive the line."""
        self._throttle.cancel()
        self.causes, self.mask, self.interval = causes, mask, interval
        if deadline is not None:
            self._throttle.arm(deadline)
        self._line.set(asserted and bool(causes & mask))
