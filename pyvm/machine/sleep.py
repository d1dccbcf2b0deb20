r"""Suspend-to-RAM: what goes on while a machine sleeps, and what its firmware does when it wakes.

Of the hardware only the real-time clock works on in S3 (ACPI specification 6.5, section 7.4.2.4 "System \_S3 State").
Guest time stands still meanwhile, and is put forward by the length of the sleep when that is over: so nothing else can
happen to the guest, and a machine that is saved in its sleep goes on sleeping where it is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.clock import NANOSECONDS
from pyvm.devices.acpi.pm import WakeReason

if TYPE_CHECKING:
    from pyvm.clock import RunningClock
    from pyvm.eventloop import Handle
    from pyvm.machine.board import Board
    from pyvm.mainloop import MainLoop


class Sleep:
    """The sleep of one machine.  `wake` is called when the clock's alarm goes off."""

    def __init__(
        self, mainloop: MainLoop, clock: RunningClock, board: Board, wake: Callable[[WakeReason], None]
    ) -> None:
        self._mainloop = mainloop
        self._clock = clock
        self._board = board
        self._wake = wake
        self._since: int | None = None
        self._alarm: Handle | None = None

    def begin(self) -> None:
        """The machine is asleep from now on; its clock may wake it, where the guest wants that."""
        self._cancel()
        self._since = time.monotonic_ns()
        if self._board.acpi.wake_enabled(WakeReason.RTC):
            left = self._board.rtc.until_alarm()
            if left is not None:
                self._alarm = self._mainloop.call_later(left / NANOSECONDS, self._wake, WakeReason.RTC)

    def end(self) -> None:
        """The machine sleeps no longer: let the time pass that it has slept."""
        self._cancel()
        if self._since is not None:
            self._clock.set(self._clock.now() + time.monotonic_ns() - self._since)
            self._since = None

    def _cancel(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
