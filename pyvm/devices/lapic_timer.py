"""The timer of a local APIC: one-shot, periodic, and TSC-deadline mode.

Specification: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, section 11.5.4.  The timer's
input clock is 1 GHz, so it counts nanoseconds before the divider.  Counts are computed from guest time when read; a
timer is armed only while an expiry would interrupt.  Late ticks are dealt with as `pyvm.devices.ticks` says.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from pyvm.clock import NANOSECONDS, Clock, muldiv
from pyvm.devices.ticks import next_tick
from pyvm.state import State, flag, integer, optional, uint

DIVIDE_WRITABLE = 0x0B
_TIME_LIMIT = 1 << 80


class TimerMode(enum.IntEnum):
    """Bits 18-17 of the timer's LVT entry."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


TIMER_MODES = tuple(TimerMode)


class LapicTimerState(State):
    """Registers of the timer.  `start` and `expiry` are in ns of guest time."""

    mode: int = integer(0, 3)
    masked: bool = flag(True)
    divide: int = uint(4)
    initial: int = uint(32)
    start: int | None = optional(integer(-_TIME_LIMIT, _TIME_LIMIT))
    deadline: int = uint(64)
    expiry: int | None = optional(integer(-_TIME_LIMIT, _TIME_LIMIT))
    tsc_offset: int = integer(-(1 << 64), 1 << 64)


class LapicTimer:
    """The timer; `expired` is called for each interrupt it makes.

    `start` is the time at which the count was `initial`, None while the timer stands still.  The guest's TSC runs at
    `tsc_hz` from guest time 0, plus `tsc_offset`.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None], tsc_hz: int) -> None:
        self._clock = clock
        self._expired = expired
        self._tsc_hz = tsc_hz
        self._timer = clock.timer(self._due)
        self._tsc_offset = 0
        self._clear()

    def _clear(self) -> None:
        self._mode = TimerMode.ONE_SHOT
        self._masked = True
        self._divide = 0
        self._shift = 1
        self._initial = 0
        self._start: int | None = None
        self._deadline = 0

    def reset(self) -> None:
        """Return to the state after power-on or INIT; the TSC goes on."""
        self._clear()
        self._timer.cancel()

    def save(self) -> LapicTimerState:
        """Return a copy of the state."""
        return LapicTimerState(
            mode=int(self._mode),
            masked=self._masked,
            divide=self._divide,
            initial=self._initial,
            start=self._start,
            deadline=self._deadline,
            expiry=self._timer.deadline,
            tsc_offset=self._tsc_offset,
        )

    def load(self, state: LapicTimerState) -> None:
        """Take over a checked `state`."""
        self._mode = TIMER_MODES[state.mode]
        self._masked = state.masked
        self._set_divide(state.divide)
        self._initial = state.initial
        self._start = state.start if state.initial else None
        self._deadline = state.deadline
        self._tsc_offset = state.tsc_offset
        if state.expiry is None:
            self._timer.cancel()
        else:
            self._timer.arm(state.expiry)

    def configure(self, mode: TimerMode, masked: bool) -> None:
        """Take the mode and mask of the timer's LVT entry."""
        if mode == self._mode and masked == self._masked:
            return
        self._catch_up()
        now = self._clock.now()
        if mode != self._mode:
            if TimerMode.TSC_DEADLINE in (mode, self._mode):
                self._start = None
                self._deadline = 0
            else:
                self._restart(now, self.current())
            self._mode = mode
        self._masked = masked
        self._arm(now)

    def _restart(self, now: int, current: int) -> None:
        """Let the count go on from `current`, at a new speed or in a new mode; 0 stays 0."""
        self._start = now - (self._initial - current << self._shift) if current else None

    @property
    def initial(self) -> int:
        """The initial count register."""
        return self._initial

    def set_initial(self, value: int) -> None:
        """Write the initial count: the timer starts over, or stops where it is 0.  Ignored in TSC-deadline mode."""
        if self._mode == TimerMode.TSC_DEADLINE:
            return
        self._catch_up()
        now = self._clock.now()
        self._initial = value
        self._start = now if value else None
        self._arm(now)

    def current(self) -> int:
        """Return the current count register."""
        if self._start is None:
            return 0
        elapsed = max(self._clock.now() - self._start, 0) >> self._shift
        if self._mode == TimerMode.PERIODIC:
            return self._initial - elapsed % self._initial
        return max(self._initial - elapsed, 0)

    @property
    def divide(self) -> int:
        """The divide configuration register."""
        return self._divide

    @divide.setter
    def divide(self, value: int) -> None:
        """Change the divider; the count goes on from where it is."""
        self._catch_up()
        now = self._clock.now()
        current = self.current()
        self._set_divide(value & DIVIDE_WRITABLE)
        self._restart(now, current)
        self._arm(now)

    def _set_divide(self, value: int) -> None:
        self._divide = value
        self._shift = (value & 3 | value >> 1 & 4) + 1 & 7  # 0 divides by 2, ... 6 by 128, and 7 by 1

    @property
    def tsc_offset(self) -> int:
        """What the guest's TSC shows beyond `tsc_hz` x guest time."""
        return self._tsc_offset

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        self._catch_up()
        self._tsc_offset = value
        if self._mode == TimerMode.TSC_DEADLINE:
            self._arm(self._clock.now())

    @property
    def deadline(self) -> int:
        """The TSC deadline MSR: 0 once it has passed, and in other modes."""
        self._catch_up()
        if self._deadline and self._masked and self._clock.now() >= self._deadline_time():
            self._deadline = 0
        return self._deadline

    @deadline.setter
    def deadline(self, tsc: int) -> None:
        if self._mode != TimerMode.TSC_DEADLINE:
            return
        self._catch_up()
        self._deadline = tsc
        self._arm(self._clock.now())

    def _deadline_time(self) -> int:
        ticks = self._deadline - self._tsc_offset
        return ticks if self._tsc_hz == NANOSECONDS else -muldiv(-ticks, NANOSECONDS, self._tsc_hz)

    def _arm(self, now: int) -> None:
        """Arm the timer for the next expiry after `now`, where it would interrupt."""
        if self._mode == TimerMode.TSC_DEADLINE:
            self._arm_deadline(now)
        elif self._start is None or self._masked or self._mode == TimerMode.RESERVED:
            self._timer.cancel()
        elif self._mode == TimerMode.PERIODIC:
            self._timer.arm(next_tick(self._start, self._initial << self._shift, now))
        else:
            expiry = self._start + (self._initial << self._shift)
            if expiry > now:
                self._timer.arm(expiry)
            else:  # it expired while it was masked
                self._start = None
                self._timer.cancel()

    def _arm_deadline(self, now: int) -> None:
        if not self._deadline:
            self._timer.cancel()
            return
        expiry = self._deadline_time()
        if expiry > now:
            if self._masked:
                self._timer.cancel()
            else:
                self._timer.arm(expiry)
            return
        self._deadline = 0
        self._timer.cancel()
        if not self._masked:
            self._expired()

    def _due(self) -> None:
        if self._mode == TimerMode.PERIODIC:
            self._arm(self._clock.now())
        else:
            self._start = None
            self._deadline = 0
        self._expired()

    def _catch_up(self) -> None:
        """Deliver an expiry that is due before the guest changes something."""
        deadline = self._timer.deadline
        if deadline is not None and deadline <= self._clock.now():
            self._timer.cancel()
            self._due()
