"""What a page differs by from what was sent of it last: XBZRLE.

The two are combined by exclusive or, which leaves zeros where they agree, and the result is written as pairs: how many
bytes agree, how many do not, and the latter as they are now.  Both numbers are u16, little-endian.  What agrees up to
the end of the page is left out.

Only who keeps what was sent can write deltas: :class:`PageCache` does, for as many pages as there is room for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from pyvm.memory import PAGE_SIZE
from pyvm.migration.stream import StreamError

if TYPE_CHECKING:
    from pyvm.migration.stream import Buffer

_PAIR = struct.Struct("<HH")
_GAP = 4
"""Bytes that agree but are fewer than the numbers of a pair take."""
_RUNS = 64
"""A page that differs in more places is better sent as it is."""


def encode(old: Buffer, new: Buffer) -> bytes | None:
    """Return what `new`, a page, differs by; None where that is no gain."""
    import numpy as np

    now = np.frombuffer(new, dtype=np.uint8)
    places = np.flatnonzero(np.frombuffer(old, dtype=np.uint8) != now)
    if not len(places):
        return b""
    breaks = np.flatnonzero(np.diff(places) > _GAP)
    if len(breaks) >= _RUNS or len(places) > PAGE_SIZE // 2:
        return None
    starts = [int(places[0]), *places[breaks + 1].tolist()]
    ends = [*(places[breaks] + 1).tolist(), int(places[-1]) + 1]
    parts, at = [], 0
    for start, end in zip(starts, ends, strict=True):
        parts += [_PAIR.pack(start - at, end - start), now[start:end].tobytes()]
        at = end
    return b"".join(parts)


def apply(delta: memoryview, page: memoryview) -> None:
    """Change a page by what :func:`encode` returned.  Raises StreamError, with the page half changed."""
    place = at = 0
    while place < len(delta):
        if place + _PAIR.size > len(delta):
            raise StreamError("a delta is cut off")
        same, count = _PAIR.unpack_from(delta, place)
        place += _PAIR.size
        at += same
        if at + count > len(page) or place + count > len(delta):
            raise StreamError("a delta goes beyond its page")
        page[at : at + count] = delta[place : place + count]
        place += count
        at += count


class PageCache:
    """What was sent of pages last; `size` bytes of it, the oldest ones making room."""

    def __init__(self, size: int) -> None:
        self._limit = max(1, size // PAGE_SIZE)
        self._pages: dict[tuple[int, int], bytes] = {}
        self.pages = self.bytes = self.misses = self.overflows = 0
        """Pages sent as deltas, the bytes these had, pages that were not there, and those that differed too much."""

    def delta(self, block: int, page: int, new: memoryview) -> bytes | None:
        """Return what a page differs by, to be sent now; None where it must be sent as it is.  It is noted as sent."""
        key = block, page
        old = self._pages.pop(key, None)
        found = None
        if old is None:
            self.misses += 1
        else:
            found = encode(old, new)
            if found is None:
                self.overflows += 1
            else:
                self.pages += 1
                self.bytes += len(found)
        self.keep(block, page, bytes(new))
        return found

    def keep(self, block: int, page: int, content: bytes) -> None:
        """Note what is sent of a page."""
        if len(self._pages) >= self._limit and (block, page) not in self._pages:
            del self._pages[next(iter(self._pages))]
        self._pages[block, page] = content

    def figures(self, size: int, passes: int) -> dict[str, Any]:
        """Return an XBZRLECacheStats of a cache of `size` bytes."""
        asked = self.pages + self.misses + self.overflows
        return {
            "cache-size": size,
            "bytes": self.bytes,
            "pages": self.pages,
            "cache-miss": self.misses,
            "cache-miss-rate": self.misses / asked if asked and passes > 1 else 0.0,
            "encoding-rate": self.pages * PAGE_SIZE / self.bytes if self.bytes else 0.0,
            "overflow": self.overflows,
        }

    def forget(self, block: int, page: int) -> None:
        """A page was sent in another way."""
        self._pages.pop((block, page), None)
