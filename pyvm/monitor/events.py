"""Events: from the machine to all monitors, at most as often as each may come.

Some events can follow one another faster than a client wants to know.  After such an event is sent, later ones of the
same kind wait for the rest of its period, and only the last of them is sent when that is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyvm.monitor.machine import Scheduler

SECOND = 1.0

THROTTLED: dict[str, tuple[float, str | None]] = {
    "RTC_CHANGE": (SECOND, None),
    "WATCHDOG": (SECOND, None),
    "BALLOON_CHANGE": (SECOND, None),
    "QUORUM_REPORT_BAD": (SECOND, "node-name"),
    "QUORUM_FAILURE": (SECOND, None),
    "VSERPORT_CHANGE": (SECOND, "id"),
    "MEMORY_DEVICE_SIZE_CHANGE": (SECOND, "qom-path"),
}
"""Event -> its period in seconds, and the member of its data by which occurrences are told apart."""

_Key = tuple[str, Any]
EventSink = Callable[["EventMessage"], None]
"""Takes an event for one client."""
EventCheck = Callable[[str, dict[str, Any]], None]
"""Verifies the name and data of an event; raises where the schema has them otherwise."""


class EventMessage:
    """One event as it goes to the clients; put into text once for all of them."""

    __slots__ = ("_compact", "message")

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self._compact: bytes | None = None

    def text(self, pretty: bool) -> bytes:
        """Return the line, or the lines, to send."""
        from pyvm.json.writer import encode

        if pretty:
            return encode(self.message, pretty=True)
        if self._compact is None:
            self._compact = encode(self.message)
        return self._compact


class EventBus:
    """Takes events from the machine, holds back what comes too often, and hands the rest to the monitors.

    :meth:`emit` may be called from the main loop and from the vCPU thread, with the machine lock held.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        now: Callable[[], int] = time.time_ns,
        check: EventCheck | None = None,
    ) -> None:
        """`now` is the host's wall clock in ns; `check` is called for each event, for tests."""
        self._scheduler = scheduler
        self._now = now
        self._check = check
        self._sinks: list[EventSink] = []
        self._held: dict[_Key, EventMessage | None] = {}
        """Kinds of events whose period is not over, each with the event that waits for its end."""

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Hand all events to `sink` from now on; the returned function ends that."""
        self._sinks.append(sink)
        return lambda: self._sinks.remove(sink)

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Send an event with its data, at once or, where it is throttled, at the end of its period."""
        if self._check is not None:
            self._check(name, data or {})
        seconds, nanoseconds = divmod(self._now(), 1_000_000_000)
        stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        message: dict[str, Any] = {"event": name, "timestamp": stamp}
        if data:
            message["data"] = data
        event = EventMessage(message)
        if name not in THROTTLED:
            self._send(event)
            return
        member = THROTTLED[name][1]
        key = (name, None if member is None else (data or {}).get(member))
        if key in self._held:
            self._held[key] = event
        else:
            self._send(event)
            self._hold(key)

    def _send(self, event: EventMessage) -> None:
        for sink in tuple(self._sinks):
            sink(event)

    def _hold(self, key: _Key) -> None:
        self._held[key] = None
        # The vCPU thread may be here, and only the main loop may set timers.
        self._scheduler.call_soon(self._scheduler.call_later, THROTTLED[key[0]][0], self._period_over, key)

    def _period_over(self, key: _Key) -> None:
        event = self._held.pop(key)
        if event is not None:
            self._send(event)
            self._hold(key)
