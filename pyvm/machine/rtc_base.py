"""What the real-time clock shows at guest time 0: `-rtc base=,clock=`.

Guest time stands still while the machine is stopped.  Whether the clock does as well is the user's choice: with
`clock=vm` it does; with `clock=host` it is right by the host's clock whenever the guest runs, and with `clock=rt` it
goes on as the host's steady clock does, whatever the host's date is set to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyvm.clock import NANOSECONDS

if TYPE_CHECKING:
    from pyvm.clock import Clock
    from pyvm.config import RtcConfig


class RtcBase:
    """The base of one machine's clock; it changes only while the machine is stopped."""

    def __init__(self, config: RtcConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._stopped: tuple[int, int] | None = None
        """Host time and guest time when the machine was stopped."""
        self._passed = 0
        """How many ns the clock went on while guest time stood still."""
        self._start = config.base if isinstance(config.base, int) else self._date()

    def __call__(self) -> int:
        """Return what the clock shows at guest time 0, in seconds since 1970."""
        return self._start + (self._passed + NANOSECONDS // 2) // NANOSECONDS

    @property
    def _follows_date(self) -> bool:
        return self._config.clock == "host" and not isinstance(self._config.base, int)

    def _date(self) -> int:
        """Return the base by which the clock shows the host's date, UTC or local."""
        now = (time.time_ns() - self._clock.now()) // NANOSECONDS
        return now + time.localtime(now).tm_gmtoff if self._config.base == "localtime" else now

    def _host_time(self) -> int:
        return time.time_ns() if self._config.clock == "host" else time.monotonic_ns()

    def stopped(self) -> None:
        """Guest time stands still from now on."""
        if self._stopped is None:
            self._stopped = self._host_time(), self._clock.now()

    def about_to_run(self) -> None:
        """Guest time goes on: catch up with the host."""
        if self._follows_date:
            self._start = self._date()
        elif self._stopped is not None and self._config.clock != "vm":
            host, guest = self._stopped
            self._passed += self._host_time() - host - (self._clock.now() - guest)
        self._stopped = None
