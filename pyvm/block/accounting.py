"""What a disk did: the counters of query-blockstats.

Times are host time in ns.  A request counts once, when its device hears of its end; one that was held back after an
error and repeated has taken all of that time.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any


class Operation(IntEnum):
    """What is counted apart.  Writing zeros is a write."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    UNMAP = 3


_PREFIX = {Operation.READ: "rd", Operation.WRITE: "wr", Operation.FLUSH: "flush", Operation.UNMAP: "unmap"}
_NANOSECONDS = 1_000_000_000


class _Window:
    """Latencies of one stretch of time."""

    __slots__ = ("count", "expires", "highest", "lowest", "total")

    def __init__(self, expires: int) -> None:
        self.restart(expires)

    def restart(self, expires: int) -> None:
        self.expires = expires
        self.count = self.total = self.highest = 0
        self.lowest = 0


class _TimedAverage:
    """Latencies of about the last `period` ns: two windows, each twice as long as it is asked about, take turns."""

    def __init__(self, period: int, now: int) -> None:
        self.period = period
        self._windows = (_Window(now + period), _Window(now + period // 2))

    def _oldest(self, now: int) -> _Window:
        for window in self._windows:
            if window.expires <= now:
                behind = (now - window.expires) // self.period + 1
                window.restart(window.expires + behind * self.period)
        return min(self._windows, key=lambda window: window.expires)

    def add(self, value: int, now: int) -> None:
        self._oldest(now)
        for window in self._windows:
            window.lowest = min(window.lowest, value) if window.count else value
            window.highest = max(window.highest, value)
            window.total += value
            window.count += 1

    def read(self, now: int) -> tuple[int, int, int, int, int]:
        """Return lowest, highest, average and total value, and the time that they are from."""
        window = self._oldest(now)
        elapsed = self.period - (window.expires - now)
        average = window.total // window.count if window.count else 0
        return window.lowest, window.highest, average, window.total, elapsed


class _Histogram:
    """How many requests took how long."""

    def __init__(self, boundaries: Sequence[int]) -> None:
        self.boundaries = list(boundaries)
        self.bins = [0] * (len(boundaries) + 1)

    def add(self, value: int) -> None:
        self.bins[bisect_right(self.boundaries, value)] += 1


class BlockStats:
    """The counters of one disk, each a list by :class:`Operation`."""

    def __init__(
        self,
        *,
        account_invalid: bool = True,
        account_failed: bool = True,
        now: Callable[[], int] = time.monotonic_ns,
        latency: int | None = None,
    ) -> None:
        """`now` returns the time in ns; `latency` is what each request takes by agreement, None: what it takes."""
        self._now = now
        self._latency = latency
        self.account_invalid = account_invalid
        self.account_failed = account_failed
        self.bytes = [0] * len(Operation)
        self.operations = [0] * len(Operation)
        self.failed = [0] * len(Operation)
        self.invalid = [0] * len(Operation)
        self.merged = [0] * len(Operation)
        self.total_time = [0] * len(Operation)
        self.highest_offset = 0
        """The end of what was written farthest behind."""
        self._last_access = 0
        self._intervals: list[tuple[int, list[_TimedAverage]]] = []
        self._histograms: dict[Operation, _Histogram] = {}
        self._detailed = False

    def start(self) -> int:
        """Return what :meth:`done` and :meth:`fail` need to know of the start of a request."""
        return self._now()

    def done(self, operation: int, length: int, started: int) -> None:
        """A request was carried out."""
        now = self._now()
        self.bytes[operation] += length
        self.operations[operation] += 1
        elapsed = now - started if self._latency is None else self._latency
        self.total_time[operation] += elapsed
        self._last_access = now
        if self._detailed:
            self._note(operation, elapsed, now)

    def fail(self, operation: int, started: int) -> None:
        """A request failed, and its device hears of that."""
        self.failed[operation] += 1
        if self.account_failed:
            now = self._now()
            elapsed = now - started if self._latency is None else self._latency
            self.total_time[operation] += elapsed
            self._last_access = now
            if self._detailed:
                self._note(operation, elapsed, now)

    def refuse(self, operation: int) -> None:
        """A request was not one: outside of the disk, or not in whole blocks."""
        self.invalid[operation] += 1
        if self.account_invalid:
            self._last_access = self._now()

    def merge(self, operation: int, count: int) -> None:
        """A device carried out `count` more requests together with another one."""
        self.merged[operation] += count

    def _note(self, operation: int, latency: int, now: int) -> None:
        for _, averages in self._intervals:
            averages[operation].add(latency, now)
        histogram = self._histograms.get(Operation(operation))
        if histogram is not None:
            histogram.add(latency)

    # ---- Intervals and histograms

    def add_interval(self, seconds: int) -> None:
        """Tell about the requests of the last `seconds` apart (`stats-intervals`)."""
        now = self._now()
        self._intervals.append((seconds, [_TimedAverage(seconds * _NANOSECONDS, now) for _ in Operation]))
        self._detailed = True

    def set_histogram(self, operation: Operation, boundaries: Sequence[int] | None) -> None:
        """Count requests by their latency, between these boundaries in ns; None: no longer."""
        if boundaries is None:
            self._histograms.pop(operation, None)
        else:
            self._histograms[operation] = _Histogram(boundaries)
        self._detailed = bool(self._intervals or self._histograms)

    def report(self) -> dict[str, Any]:
        """Return the `stats` of query-blockstats."""
        report: dict[str, Any] = {}
        for operation, prefix in _PREFIX.items():
            if operation is not Operation.FLUSH:
                report[f"{prefix}_bytes"] = self.bytes[operation]
            report[f"{prefix}_operations"] = self.operations[operation]
            report[f"{prefix}_total_time_ns"] = self.total_time[operation]
            if operation is not Operation.FLUSH:
                report[f"{prefix}_merged"] = self.merged[operation]
            report[f"failed_{prefix}_operations"] = self.failed[operation]
            report[f"invalid_{prefix}_operations"] = self.invalid[operation]
        report["wr_highest_offset"] = self.highest_offset
        if self._last_access:
            report["idle_time_ns"] = self._now() - self._last_access
        report["account_invalid"] = self.account_invalid
        report["account_failed"] = self.account_failed
        report["timed_stats"] = [self._interval_report(*interval) for interval in self._intervals]
        for operation, histogram in self._histograms.items():
            name = "flush" if operation is Operation.FLUSH else _PREFIX[operation]
            report[f"{name}_latency_histogram"] = {"boundaries": histogram.boundaries, "bins": histogram.bins}
        return report

    def _interval_report(self, seconds: int, averages: list[_TimedAverage]) -> dict[str, Any]:
        report: dict[str, Any] = {"interval_length": seconds}
        now = self._now()
        for operation in (Operation.READ, Operation.WRITE, Operation.FLUSH):
            prefix = _PREFIX[operation]
            lowest, highest, average, total, elapsed = averages[operation].read(now)
            report[f"min_{prefix}_latency_ns"] = lowest
            report[f"max_{prefix}_latency_ns"] = highest
            report[f"avg_{prefix}_latency_ns"] = average
            if operation is not Operation.FLUSH:
                report[f"avg_{prefix}_queue_depth"] = total / elapsed if elapsed else 0.0
        return report
