"""Virtio memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host.

Queues: 0 inflate, 1 deflate, 2 statistics, then free page reporting where that is offered.  Pages are always 4 KiB.
Pages of an inflated balloon and free pages that the guest reports really go back to the host, in runs as long as
possible; they read as zeros when the guest uses them again.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from pyvm.clock import NANOSECONDS, Clock
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.constants import ID_BALLOON
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.ring import Chain
from pyvm.memory import PAGE_SIZE, GuestMemoryError
from pyvm.state import StateError, array, optional, uint

# Feature bits (5.5.3)
F_MUST_TELL_HOST = 1 << 0
F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_PAGE_POISON = 1 << 4
F_REPORTING = 1 << 5

# Configuration space (5.5.4): u32 num_pages, actual, free_page_hint_cmd_id, poison_val
_CONFIG = struct.Struct("<IIII")
_CONFIG_SIZE_BASIC = 8

_QUEUE_SIZE = 128
_REPORTING_QUEUE_SIZE = 32
_INFLATE = 0
_DEFLATE = 1
_STATS = 2

# Statistics (5.5.6.3): u16 tag, u64 value, packed
_STATISTIC = struct.Struct("<HQ")
STATISTICS = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
)
"""QEMU's names, in the order of the tags."""
_UNKNOWN = (1 << 64) - 1
_STATISTICS_LIMIT = 64 * _STATISTIC.size
_MAX_INTERVAL = (1 << 32) - 1

_PAGES_LIMIT = 64 * 1024
"""Most page numbers in one buffer; drivers send 256 to 1024."""
_RUNS_PER_TURN = 4096
"""After so many runs given back, others get a turn at the machine lock."""


class BalloonState(VirtioState):
    """Migratable state; sizes in pages, the deadline in ns of guest time, the interval in seconds."""

    num_pages: int = uint(32)
    actual: int = uint(32)
    poison: int = uint(32)
    statistics: list[int] = array(uint(64, _UNKNOWN), len(STATISTICS))
    last_update: int = uint(63)
    interval: int = uint(32)
    next_poll: int | None = optional(uint(64))


class VirtioBalloon(VirtioDevice[BalloonState]):
    """A balloon.  `wall_time` returns seconds since the epoch, for the time of the last statistics."""

    device_id = ID_BALLOON
    name = "virtio-balloon"
    state_type = BalloonState
    PROPERTIES: ClassVar[Properties] = {
        "deflate-on-oom": Property("bool", False, "the guest may take memory back instead of killing processes"),
        "free-page-reporting": Property("bool", False, "the guest reports free pages, which go back to the host"),
        "page-poison": Property("bool", True, "the guest says how it fills free pages"),
        "guest-stats-polling-interval": Property("int", 0, "seconds between two polls of statistics; 0: none"),
    }

    def __init__(
        self,
        clock: Clock,
        *,
        deflate_on_oom: bool = False,
        free_page_reporting: bool = False,
        page_poison: bool = True,
        must_tell_host: bool = False,
        wall_time: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        features = F_STATS_VQ
        features |= F_DEFLATE_ON_OOM if deflate_on_oom else 0
        features |= F_REPORTING if free_page_reporting else 0
        features |= F_PAGE_POISON if page_poison else 0
        features |= F_MUST_TELL_HOST if must_tell_host else 0
        sizes = [_QUEUE_SIZE] * 3 + ([_REPORTING_QUEUE_SIZE] if free_page_reporting else [])
        super().__init__(sizes, features, _CONFIG.size if page_poison else _CONFIG_SIZE_BASIC)
        self._clock = clock
        self._wall_time = wall_time
        self._num_pages = 0
        self._actual = 0
        self._poison = 0
        self._statistics = [_UNKNOWN] * len(STATISTICS)
        self._last_update = 0
        self._held: Chain | None = None
        self._interval = 0
        self._timer = clock.timer(self._poll)
        self._runs = 0
        self._next_turn = clock.timer(self._continue)
        self.on_change: Callable[[int], None] = lambda actual: None
        """Told the guest's memory in bytes, less the balloon, when the guest changes the balloon."""

    # The host's side

    @property
    def actual(self) -> int:
        """Return the guest's memory in bytes, less the balloon."""
        return max(self.memory.total - self._actual * PAGE_SIZE, 0)

    def set_target(self, target: int) -> None:
        """Ask the guest to inflate or deflate until it has `target` bytes; all it has where that is more."""
        self._num_pages = (self.memory.total - min(max(target, 0), self.memory.total)) // PAGE_SIZE
        self.config_changed()

    @property
    def polling_interval(self) -> int:
        """Return the seconds between two polls of statistics; 0 where there are none."""
        return self._interval

    def set_polling_interval(self, seconds: int) -> None:
        """Poll statistics every `seconds`, first at once; 0 ends it.  Raises ValueError for impossible values."""
        if seconds < 0:
            raise ValueError("timer value must be greater than zero")
        if seconds > _MAX_INTERVAL:
            raise ValueError("timer value is too big")
        was_polling = self._interval > 0
        self._interval = seconds
        if not seconds:
            self._timer.cancel()
        else:
            self._timer.arm(self._clock.now() + (seconds * NANOSECONDS if was_polling else 0))

    def guest_stats(self) -> dict[str, int | dict[str, int]]:
        """Return the last statistics as QEMU's `guest-stats` property shows them; -1 for what the guest did not say."""
        values = (-1 if value == _UNKNOWN else value for value in self._statistics)
        return {"stats": dict(zip(STATISTICS, values, strict=True)), "last-update": self._last_update}

    # Queues

    def handle_queue(self, queue: VirtQueue) -> None:
        """Work on what the guest made available."""
        if queue.index == _STATS:
            self._take_statistics(queue)
            return
        self._runs = 0
        while self._runs < _RUNS_PER_TURN and (chain := queue.pop()) is not None:
            if queue.index == _INFLATE:
                self._inflate(chain)
            elif queue.index != _DEFLATE:
                self._take_free_pages(chain)
            queue.push(chain, 0)
        queue.flush()
        if self._runs >= _RUNS_PER_TURN:
            self._next_turn.arm(self._clock.now())

    def _continue(self) -> None:
        """Go on with what was left for another turn."""
        for queue in self.queues:
            if self.running and queue.index != _STATS:
                self.handle_queue(queue)

    def _inflate(self, chain: Chain) -> None:
        """Give back the pages of an array of u32 page numbers."""
        if chain.readable_bytes > _PAGES_LIMIT * 4:
            self.fail("too many pages for the balloon in one request")
            return
        data = b"".join(chain.readable)
        numbers = {number for (number,) in struct.iter_unpack("<I", data[: len(data) & ~3])}
        self._discard((number * PAGE_SIZE, PAGE_SIZE) for number in sorted(numbers))

    def _take_free_pages(self, chain: Chain) -> None:
        """Give back reported pages, unless the guest relies on what it filled them with (5.5.6.7)."""
        if self._poison and self.has(F_PAGE_POISON):
            return
        ranges = []
        for gpa, length in chain.writable.pieces:
            start = -(-gpa // PAGE_SIZE) * PAGE_SIZE
            end = (gpa + length) // PAGE_SIZE * PAGE_SIZE
            if end > start:
                ranges.append((start, end - start))
        self._discard(sorted(ranges))

    def _discard(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Give back ranges of (GPA, length) in order of GPA, adjacent ones together."""
        start = end = 0
        for gpa, length in ranges:
            if gpa <= end and end:
                end = max(end, gpa + length)
                continue
            self._discard_run(start, end)
            start, end = gpa, gpa + length
        self._discard_run(start, end)

    def _discard_run(self, start: int, end: int) -> None:
        if end > start:
            self._runs += 1
            try:
                self.memory.discard(start, end - start)
            except (GuestMemoryError, OSError):
                # Not RAM, or the host cannot: the guest gave the pages away either way, so nothing is lost.
                return

    # Statistics

    def _take_statistics(self, queue: VirtQueue) -> None:
        """Read the guest's statistics and keep the buffer: giving it back asks for new ones."""
        while (chain := queue.pop()) is not None:
            if self._held is not None:
                queue.push(self._held, 0)
            self._held = chain
            self._parse_statistics(chain.gather(_STATISTICS_LIMIT))
        queue.flush()

    def _parse_statistics(self, data: bytes) -> None:
        self._statistics = [_UNKNOWN] * len(STATISTICS)
        whole = len(data) - len(data) % _STATISTIC.size
        for tag, value in _STATISTIC.iter_unpack(data[:whole]):
            if tag < len(STATISTICS):
                self._statistics[tag] = value
        self._last_update = max(self._wall_time(), 0)
        if self._interval:
            self._timer.arm(self._clock.now() + self._interval * NANOSECONDS)

    def _poll(self) -> None:
        """Ask for new statistics, now if the guest can be asked."""
        queue = self.queues[_STATS]
        if self._held is None and self.running:
            self._take_statistics(queue)
        if self._held is not None and self.running:
            queue.push(self._held, 0)
            self._held = None
            queue.flush()
        else:
            self._timer.arm(self._clock.now() + self._interval * NANOSECONDS)

    # Device life

    def reset_device(self) -> None:
        """Forget the statistics buffer and what the guest said; the target is the host's and stays."""
        self._held = None
        self._actual = 0
        self._poison = 0

    def reset_queue(self, queue: VirtQueue) -> None:
        """Forget the statistics buffer with its queue."""
        if queue.index == _STATS:
            self._held = None

    def config(self) -> bytes:
        """Return the configuration space."""
        return _CONFIG.pack(self._num_pages, self._actual, 0, self._poison)[: self.config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Take the guest's word for the size of the balloon and for its poison value; legacy drivers write bytes."""
        image = bytearray(_CONFIG.pack(self._num_pages, self._actual, 0, self._poison))
        image[offset : offset + len(data)] = data
        _, actual, _, poison = _CONFIG.unpack(image)
        if self.has(F_PAGE_POISON):
            self._poison = poison
        if actual != self._actual:
            self._actual = actual
            self.on_change(self.actual)

    # State

    def save_device(self) -> BalloonState:
        """Return the balloon's size and statistics; the statistics buffer goes back to its ring."""
        if self._held is not None:
            self.queues[_STATS].rewind(self._held)
            self._held = None
        return BalloonState(
            num_pages=self._num_pages,
            actual=self._actual,
            poison=self._poison,
            statistics=list(self._statistics),
            last_update=self._last_update,
            interval=self._interval,
            next_poll=self._timer.deadline,
        )

    def check_device(self, state: BalloonState) -> None:
        """Raise :class:`StateError` where polling would not go on, or the balloon is larger than memory."""
        if state.num_pages > self.memory.total // PAGE_SIZE:
            raise StateError(f"{self.name}: target of {state.num_pages} pages is more than there is memory")
        if (state.interval == 0) != (state.next_poll is None):
            raise StateError(f"{self.name}: polling interval and time of the next poll disagree")

    def load_device(self, state: BalloonState) -> None:
        """Take over the balloon's size and statistics."""
        self._num_pages = state.num_pages
        self._actual = state.actual
        self._poison = state.poison
        self._statistics = list(state.statistics)
        self._last_update = state.last_update
        self._interval = state.interval
        self._timer.cancel()
        if state.next_poll is not None:
            self._timer.arm(state.next_poll)
