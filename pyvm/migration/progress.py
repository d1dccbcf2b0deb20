"""How far a migration is: what `query-migrate` shows, and the figures behind it.

The thread that sends counts; the main loop shows.  Each figure has one writer.
"""

from __future__ import annotations

import time
from typing import Any

from pyvm.memory import PAGE_SIZE

_MEGABIT = 1e6
_BITS = 8
_MILLISECONDS = 1000

NONE, SETUP, ACTIVE, PRE_SWITCHOVER, DEVICE = "none", "setup", "active", "pre-switchover", "device"
POSTCOPY_ACTIVE = "postcopy-active"
CANCELLING, CANCELLED, COMPLETED, FAILED = "cancelling", "cancelled", "completed", "failed"

RUNNING = frozenset({SETUP, ACTIVE, POSTCOPY_ACTIVE, PRE_SWITCHOVER, DEVICE, CANCELLING})
"""States in which a migration is under way."""
_WITH_FIGURES = frozenset({ACTIVE, POSTCOPY_ACTIVE, PRE_SWITCHOVER, DEVICE, CANCELLING, COMPLETED})


class PageCounts:
    """What was sent of pages, by one connection."""

    def __init__(self) -> None:
        self.zero = self.normal = 0
        """Pages that were sent as zeros, and with data."""
        self.compressed = self.compressed_bytes = 0
        self.bytes = 0
        """All that was sent."""
        self.busy = 0
        """How often there was more to compress than threads to do it."""


class Progress:
    """One migration as its source sees it."""

    def __init__(self, total: int) -> None:
        self.total = total
        """Bytes of RAM."""
        self.counts: list[PageCounts] = []
        """By connection, the main one first."""
        self.passes = 0
        self.remaining_pages = 0
        self.dirty_rate = 0
        """Pages that the guest writes in a second."""
        self.bandwidth = 0.0
        """Bytes a second, lately."""
        self.pages_rate = 0.0
        self.expected_downtime = 0
        """In ms."""
        self.throttle = 0
        """By how many per cent the guest is slowed down."""
        self._started = time.monotonic()
        self._set_up: float | None = None
        self._ended: float | None = None
        self._stopped: float | None = None
        self.before_stop = 0
        """Bytes that were sent before the guest stopped."""

    # ---- What happens

    def set_up(self) -> None:
        """The connection stands."""
        self._set_up = time.monotonic()

    def stopped(self) -> None:
        """The guest has stopped for the rest of it."""
        self._stopped = time.monotonic()
        self.before_stop = self.transferred

    def completed(self) -> None:
        """All is done."""
        self._ended = time.monotonic()
        self.remaining_pages = 0
        seconds = max(self._ended - (self._set_up or self._started), 1e-3)
        self.bandwidth = self.transferred / seconds
        self.pages_rate = 0

    # ---- Figures

    def _sum(self, figure: str) -> int:
        return sum(getattr(counts, figure) for counts in self.counts)

    @property
    def transferred(self) -> int:
        """Bytes sent."""
        return self._sum("bytes")

    @property
    def pages(self) -> int:
        """Pages sent, in whatever way."""
        return self._sum("zero") + self._sum("normal")

    def times(self) -> dict[str, int]:
        """Return the members of MigrationInfo that are times, in ms."""
        now = self._ended or time.monotonic()
        times = {"total-time": _milliseconds(now - self._started)}
        if self._set_up is not None:
            times["setup-time"] = _milliseconds(self._set_up - self._started)
        if self._ended is not None:
            times["downtime"] = _milliseconds(self._ended - (self._stopped or self._ended))
        else:
            times["expected-downtime"] = self.expected_downtime
        return times

    def ram(self, *, multifd: bool) -> dict[str, Any]:
        """Return a MigrationStats."""
        transferred, first = self.transferred, self.counts[0].bytes if self.counts else 0
        late = transferred - self.before_stop if self._stopped is not None else 0
        return {
            "transferred": transferred,
            "remaining": self.remaining_pages * PAGE_SIZE,
            "total": self.total,
            "duplicate": self._sum("zero"),
            "skipped": 0,
            "normal": self._sum("normal"),
            "normal-bytes": self._sum("normal") * PAGE_SIZE,
            "dirty-pages-rate": self.dirty_rate,
            "mbps": self.bandwidth * _BITS / _MEGABIT,
            "dirty-sync-count": self.passes,
            "postcopy-requests": 0,
            "page-size": PAGE_SIZE,
            "multifd-bytes": transferred - first if multifd else 0,
            "pages-per-second": int(self.pages_rate),
            "precopy-bytes": transferred - late,
            "downtime-bytes": late,
            "postcopy-bytes": 0,
            "dirty-sync-missed-zero-copy": 0,
        }

    def compression(self) -> dict[str, Any]:
        """Return a CompressionStats."""
        pages, size = self._sum("compressed"), self._sum("compressed_bytes")
        return {
            "pages": pages,
            "busy": self._sum("busy"),
            "busy-rate": self._sum("busy") / pages if pages else 0.0,
            "compressed-size": size,
            "compression-rate": pages * PAGE_SIZE / size if size else 0.0,
        }


def _milliseconds(seconds: float) -> int:
    return int(seconds * _MILLISECONDS)


def shows_figures(status: str) -> bool:
    """Return whether `query-migrate` shows figures in this state."""
    return status in _WITH_FIGURES
