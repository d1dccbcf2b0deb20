"""How fast the guest writes to its memory: checksums of pages, before and after some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyvm.memory import PAGE_SIZE, GuestMemory
from pyvm.monitor.machine import Scheduler

_GIB = 1 << 30
_MIB = 1 << 20
_SLICE = 2048
"""Pages in one go: others want the main loop, too."""

Checksums = dict[int, int]
"""Offset of a page in RAM -> its checksum."""


class DirtyRate:
    """One measurement after the other; all in the main loop, with the machine lock held."""

    def __init__(self, memory: Callable[[], GuestMemory], scheduler: Scheduler) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self.measuring = False
        self._rate: int | None = None
        self._started = 0
        self._seconds = 0
        self._samples = 0
        self._all = False

    def start(self, seconds: int, samples: int, *, all_pages: bool) -> None:
        """Begin to measure: `samples` pages of each GiB, or all of them."""
        self.measuring = True
        self._rate = None
        self._started = int(time.monotonic())
        self._seconds, self._samples, self._all = seconds, 0 if all_pages else samples, all_pages
        self._sum(self._pages(), {}, self._wait)

    def _pages(self) -> list[int]:
        """Return the offsets of the pages to look at."""
        size = self._memory().size
        count = size // PAGE_SIZE
        if not self._all:
            from random import sample

            wanted = max(1, self._samples * size // _GIB)
            return sorted(sample(range(0, size, PAGE_SIZE), min(wanted, count)))
        return list(range(0, count * PAGE_SIZE, PAGE_SIZE))

    def _sum(self, pages: list[int], found: Checksums, done: Callable[[Checksums], None]) -> None:
        """Find the checksums of some pages, then of the rest."""
        from zlib import crc32

        mapping = memoryview(self._memory().mapping)
        with mapping:
            for offset in pages[:_SLICE]:
                with mapping[offset : offset + PAGE_SIZE] as page:
                    found[offset] = crc32(page)
        rest = pages[_SLICE:]
        if rest:
            self._scheduler.call_soon(self._sum, rest, found, done)
        else:
            done(found)

    def _wait(self, before: Checksums) -> None:
        self._scheduler.call_later(self._seconds, self._sum, list(before), {}, lambda after: self._end(before, after))

    def _end(self, before: Checksums, after: Checksums) -> None:
        changed = sum(after[offset] != value for offset, value in before.items())
        dirty = self._memory().size * changed // max(len(before), 1)
        self._rate = dirty // _MIB // self._seconds
        self.measuring = False

    def info(self) -> dict[str, Any]:
        """Return a DirtyRateInfo; the rate is in MiB per second."""
        status = "measuring" if self.measuring else "unstarted" if self._rate is None else "measured"
        info: dict[str, Any] = {
            "status": status,
            "start-time": self._started,
            "calc-time": self._seconds,
            "sample-pages": self._samples,
            "mode": "dirty-bitmap" if self._all else "page-sampling",
        }
        if self._rate is not None:
            info["dirty-rate"] = self._rate
        return info
