"""How far a migration is: what `query-migrate` shows, and the figures behind it.

The thread that sends counts; the main loop shows.  Each figure has one writer.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from pyvm.memory import PAGE_SIZE

_MEGABIT = 1e6
_BITS = 8
_MILLISECONDS = 1000

NONE, SETUP, ACTIVE, PRE_SWITCHOVER, DEVICE = "none", "setup", "active", "pre-switchover", "device"
POSTCOPY_ACTIVE, POSTCOPY_PAUSED, POSTCOPY_RECOVER = "postcopy-active", "postcopy-paused", "postcopy-recover"
CANCELLING, CANCELLED, COMPLETED, FAILED = "cancelling", "cancelled", "completed", "failed"

POSTCOPY = frozenset({POSTCOPY_ACTIVE, POSTCOPY_PAUSED, POSTCOPY_RECOVER})
"""States in which memory comes behind the machine."""
RUNNING = POSTCOPY | {SETUP, ACTIVE, PRE_SWITCHOVER, DEVICE, CANCELLING}
"""States in which a migration is under way."""
_WITH_FIGURES = (RUNNING - {SETUP}) | {COMPLETED}


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


class LateFigures(Protocol):
    """What was sent of memory behind the machine."""

    @property
    def left(self) -> int:
        """Pages that are still to be sent."""

    @property
    def requests(self) -> int:
        """How often the other side has asked for pages."""

    @property
    def zero(self) -> int:
        """Pages sent as zeros."""

    @property
    def normal(self) -> int:
        """Pages sent with data."""

    @property
    def bytes(self) -> int:
        """All that was sent."""


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
        self.late: LateFigures | None = None
        self._going_on: float | None = None
        self._while_stopped: int | None = None

    # ---- What happens

    def set_up(self) -> None:
        """The connection stands."""
        self._set_up = time.monotonic()

    def stopped(self) -> None:
        """The guest has stopped for the rest of it."""
        self._stopped = time.monotonic()
        self.before_stop = self.transferred

    def going_on(self) -> None:
        """The guest goes on, here or over there."""
        self._going_on = time.monotonic()
        self._while_stopped = self.transferred - self.before_stop

    def completed(self) -> None:
        """All is done."""
        self._ended = time.monotonic()
        self._going_on = self._going_on or self._ended
        self.remaining_pages = 0
        seconds = max(self._ended - (self._set_up or self._started), 1e-3)
        self.bandwidth = self.transferred / seconds
        self.pages_rate = 0

    # ---- Figures

    def _sum(self, figure: str) -> int:
        return sum(getattr(counts, figure) for counts in self.counts)

    def _late(self, figure: str) -> int:
        return 0 if self.late is None else int(getattr(self.late, figure))

    @property
    def _zero(self) -> int:
        return self._sum("zero") + self._late("zero")

    @property
    def _normal(self) -> int:
        return self._sum("normal") + self._late("normal")

    @property
    def transferred(self) -> int:
        """Bytes sent."""
        return self._sum("bytes") + self._late("bytes")

    @property
    def pages(self) -> int:
        """Pages sent, in whatever way."""
        return self._zero + self._normal

    def times(self) -> dict[str, int]:
        """Return the members of MigrationInfo that are times, in ms."""
        now = self._ended or time.monotonic()
        times = {"total-time": _milliseconds(now - self._started)}
        if self._set_up is not None:
            times["setup-time"] = _milliseconds(self._set_up - self._started)
        if self._ended is not None:
            times["downtime"] = _milliseconds((self._going_on or self._ended) - (self._stopped or self._ended))
        else:
            times["expected-downtime"] = self.expected_downtime
        return times

    def ram(self, *, multifd: bool) -> dict[str, Any]:
        """Return a MigrationStats."""
        transferred, first = self.transferred, self.counts[0].bytes if self.counts else 0
        behind = transferred - self.before_stop if self._stopped is not None else 0
        late = behind if self.late is not None else 0
        stopped = behind - late if self._while_stopped is None or late else self._while_stopped
        return {
            "transferred": transferred,
            "remaining": (self.remaining_pages + self._late("left")) * PAGE_SIZE,
            "total": self.total,
            "duplicate": self._zero,
            "skipped": 0,
            "normal": self._normal,
            "normal-bytes": self._normal * PAGE_SIZE,
            "dirty-pages-rate": self.dirty_rate,
            "mbps": self.bandwidth * _BITS / _MEGABIT,
            "dirty-sync-count": self.passes,
            "postcopy-requests": self._late("requests"),
            "page-size": PAGE_SIZE,
            "multifd-bytes": self._sum("bytes") - first if multifd else 0,
            "pages-per-second": int(self.pages_rate),
            "precopy-bytes": transferred - stopped - late,
            "downtime-bytes": stopped,
            "postcopy-bytes": late,
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
