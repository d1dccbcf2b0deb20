"""Virtio entropy device (virtio 1.2, section 5.4): fills the driver's buffers with random bytes.

One queue, no features, no configuration space.  The bytes come from a source handed in; `max-bytes` in each `period`
of milliseconds, counted on the guest's clock, can be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pyvm.clock import Clock
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.constants import ID_ENTROPY
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.state import StateError, optional, uint

_QUEUE_SIZE = 8
_NANOSECONDS_PER_MS = 1_000_000
_REQUEST_LIMIT = 64 * 1024
"""At most so many bytes for one buffer: the driver must take fewer than it asked for, and the machine lock is held."""

UNLIMITED = (1 << 63) - 1
DEFAULT_PERIOD = 1 << 16


class RngState(VirtioState):
    """Migratable state; the deadline is in ns of guest time."""

    quota: int = uint(63)
    period_end: int | None = optional(uint(64))


class VirtioRng(VirtioDevice[RngState]):
    """An entropy device.

    `source(count)` returns up to `count` random bytes, fewer or none where it has no more at present; then
    :meth:`source_ready` is to be called later.  `period` is in milliseconds.  Raises ValueError for bad limits.
    """

    device_id = ID_ENTROPY
    name = "virtio-rng"
    state_type = RngState
    PROPERTIES: ClassVar[Properties] = {
        "max-bytes": Property("uint64", UNLIMITED, "bytes to give to the guest in each period"),
        "period": Property("uint32", DEFAULT_PERIOD, "length of a period in milliseconds"),
        "rng": Property("link<rng-backend>", None, "ID of the rng backend object; a built-in one where not set"),
    }

    def __init__(
        self,
        clock: Clock,
        source: Callable[[int], bytes],
        *,
        max_bytes: int = UNLIMITED,
        period: int = DEFAULT_PERIOD,
    ) -> None:
        if not 0 <= max_bytes <= UNLIMITED:
            raise ValueError("'max-bytes' parameter must be non-negative, and less than 2^63")
        if period <= 0:
            raise ValueError("'period' parameter expects a positive integer")
        super().__init__([_QUEUE_SIZE], 0, 0)
        self._clock = clock
        self._source = source
        self._max_bytes = max_bytes
        self._period = period * _NANOSECONDS_PER_MS
        self._quota = max_bytes
        self._timer = clock.timer(self._period_over)

    def handle_queue(self, queue: VirtQueue) -> None:
        """Fill buffers while there are quota and bytes."""
        while self._quota > 0 and (chain := queue.pop()) is not None:
            wanted = min(chain.writable_bytes, self._quota, _REQUEST_LIMIT)
            data = self._source(wanted)[:wanted] if wanted else b""
            if wanted and not data:
                queue.rewind(chain)
                break
            done = chain.scatter(data)
            self._use_quota(done)
            queue.push(chain, done)
        queue.flush()

    def source_ready(self) -> None:
        """The source has bytes again after it had none."""
        if self.running:
            self.handle_queue(self.queues[0])

    def _use_quota(self, count: int) -> None:
        if self._max_bytes == UNLIMITED:
            return
        self._quota -= count
        if self._timer.deadline is None:
            self._timer.arm(self._clock.now() + self._period)

    def _period_over(self) -> None:
        self._quota = self._max_bytes
        self.source_ready()

    def save_device(self) -> RngState:
        """Return quota and the end of the period."""
        return RngState(quota=self._quota, period_end=self._timer.deadline)

    def check_device(self, state: RngState) -> None:
        """Raise :class:`StateError` where quota was used and nothing would renew it."""
        if state.quota > self._max_bytes:
            raise StateError(f"{self.name}: quota {state.quota} is above the limit of {self._max_bytes}")
        if state.quota < self._max_bytes and state.period_end is None:
            raise StateError(f"{self.name}: quota is used, but no period runs")

    def load_device(self, state: RngState) -> None:
        """Take over quota and period."""
        self._quota = state.quota
        self._timer.cancel()
        if state.period_end is not None:
            self._timer.arm(state.period_end)
