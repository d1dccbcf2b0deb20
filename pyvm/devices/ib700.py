"""The watchdog timer of iBASE's IB700 single-board computers: two ports, and a timeout that is one of sixteen.

iBASE IB700 user's manual, "Watchdog timer configuration": a write to port 0x443 starts the timer with the timeout that
its low four bits stand for, a write to port 0x441 stops it.  What a timeout means is the machine's policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from pyvm.clock import NANOSECONDS, Clock
from pyvm.devices.properties import Properties
from pyvm.state import State, optional, uint

STOP_PORT: Final = 0x441  # write-only
START_PORT: Final = 0x443  # write-only: timeout
PORTS: Final = 2  # that each of the registers answers at

TIMEOUT_MASK: Final = 0x0F
_LONGEST: Final = 30  # seconds, for 0; each further number is two seconds less


class Ib700State(State):
    """When the timer runs out, in ns of guest time; None while it is stopped."""

    deadline: int | None = optional(uint(64))


class Ib700:
    """The watchdog.  `on_timeout` is called when the guest was silent for too long."""

    PROPERTIES: ClassVar[Properties] = {}

    def __init__(self, clock: Clock, on_timeout: Callable[[], None]) -> None:
        self._clock = clock
        self._timer = clock.timer(on_timeout)

    def read(self, offset: int, size: int) -> int:
        """Read either register: nobody answers."""
        return (1 << (8 * size)) - 1

    def start(self, offset: int, size: int, value: int) -> None:
        """Write the start register: count down from the timeout that is wanted."""
        if offset == 0:
            seconds = _LONGEST - 2 * (value & TIMEOUT_MASK)
            self._timer.arm(self._clock.now() + seconds * NANOSECONDS)

    def stop(self, offset: int, size: int, value: int) -> None:
        """Write the stop register."""
        if offset == 0:
            self._timer.cancel()

    def reset(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def save(self) -> Ib700State:
        """Return when the timer runs out."""
        return Ib700State(self._timer.deadline)

    def load(self, state: Ib700State) -> None:
        """Take over a saved state; raises StateError where it is not one."""
        state.check()
        self._timer.cancel()
        if state.deadline is not None:
            self._timer.arm(state.deadline)
