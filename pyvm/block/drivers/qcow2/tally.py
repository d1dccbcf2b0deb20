"""Counting how often clusters are referred to, with memory that the size of the file bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]

_MERGE_EVERY = 1 << 21
"""Most references in memory that have not been counted yet."""


class Tally:
    """How often each cluster is referred to.  References are merged now and then, so memory is bounded by the file."""

    def __init__(self) -> None:
        import numpy as np

        self._numbers = np.zeros(0, np.uint64)
        self._counts = np.zeros(0, np.uint64)
        self._waiting: list[tuple[Numbers, int | Numbers]] = []
        self._length = 0

    def add(self, numbers: Numbers, times: int | Numbers = 1) -> None:
        """Each of these clusters is referred to so many times more, for each time that it is named."""
        self._waiting.append((numbers, times))
        self._length += len(numbers)
        if self._length > _MERGE_EVERY:
            self._merge()

    def add_range(self, first: int, count: int, times: int = 1) -> None:
        """As :meth:`add`, for clusters in a row."""
        import numpy as np

        self.add(np.arange(first, first + count, dtype=np.uint64), times)

    def _merge(self) -> None:
        import numpy as np

        if not self._waiting:
            return
        numbers = np.concatenate([it for it, _ in self._waiting])
        counts = np.concatenate([np.full(len(it), times, np.uint64) for it, times in self._waiting])
        self._waiting, self._length = [], 0
        if bool(np.any(numbers[1:] <= numbers[:-1])):
            numbers, inverse = np.unique(numbers, return_inverse=True)
            sums = np.zeros(len(numbers), np.uint64)
            np.add.at(sums, inverse, counts)
            counts = sums
        # Both are in order now, so nothing of what is known already has to be sorted again.
        places = np.searchsorted(self._numbers, numbers)
        known = np.zeros(len(numbers), bool)
        inside = places < len(self._numbers)
        known[inside] = self._numbers[places[inside]] == numbers[inside]
        self._counts[places[known]] += counts[known]
        self._numbers = np.insert(self._numbers, places[~known], numbers[~known])
        self._counts = np.insert(self._counts, places[~known], counts[~known])

    def totals(self) -> tuple[Numbers, Numbers]:
        """Return the clusters that are referred to, in order, and how often."""
        self._merge()
        return self._numbers, self._counts
