"""The statistics of an 8254x (8254x manual, 13.7): counters that reading clears; they stay at their largest value."""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.devices.e1000 import registers as r
from pyvm.net.client import Frame

_CHECK_SEQUENCE = 4
_LARGEST = 0xFFFFFFFF
_LARGEST64 = (1 << 64) - 1
_BROADCAST = b"\xff" * 6
_WIDE = frozenset((r.GORCL, r.GOTCL, r.TORL, r.TOTL))
"""Counters of two words; the low one is cleared along with the high one."""


class Statistics:
    """The counters of one card."""

    def __init__(self) -> None:
        self.words = [0] * r.STATISTICS_WORDS

    def reset(self) -> None:
        """Clear all."""
        self.words[:] = [0] * r.STATISTICS_WORDS

    def read(self, offset: int) -> int:
        """Return a counter, and clear it."""
        index = (offset - r.STATISTICS) // 4
        value = self.words[index]
        if offset in _WIDE:
            return value
        self.words[index] = 0
        if offset - 4 in _WIDE:
            self.words[index - 1] = 0
        return value

    def count(self, offset: int) -> None:
        """Count one more."""
        index = (offset - r.STATISTICS) // 4
        self.words[index] = min(self.words[index] + 1, _LARGEST)

    def _add(self, offset: int, number: int) -> None:
        index = (offset - r.STATISTICS) // 4
        total = min(self.words[index] + (self.words[index + 1] << 32) + number, _LARGEST64)
        self.words[index], self.words[index + 1] = total & _LARGEST, total >> 32

    def received(self, frame: Frame) -> None:
        """Count a frame that the guest got."""
        self._frame(frame, (r.TPR, r.GPRC), (r.TORL, r.GORCL), r.PRC64, (r.BPRC, r.MPRC))

    def sent(self, frame: Frame) -> None:
        """Count a frame that the guest sent."""
        self._frame(frame, (r.TPT, r.GPTC), (r.TOTL, r.GOTCL), r.PTC64, (r.BPTC, r.MPTC))

    def _frame(
        self, frame: Frame, packets: Sequence[int], octets: Sequence[int], lengths: int, groups: tuple[int, int]
    ) -> None:
        length = len(frame) + _CHECK_SEQUENCE
        for offset in packets:
            self.count(offset)
        for offset in octets:
            self._add(offset, length)
        self.count(lengths + 4 * sum(length > limit for limit in r.LENGTH_LIMITS))
        if frame[0] & 1:
            self.count(groups[0] if bytes(frame[:6]) == _BROADCAST else groups[1])
