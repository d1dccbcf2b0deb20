"""I/O limits: leaky buckets, and groups of disks that share them.

Each limit is a bucket that every request pours its bytes (`bps`) or its count (`iops`) into, and that leaks at the
average rate.  A request has to wait while a bucket is fuller than it may be: 100 ms worth of the average, or with a
burst rate (`max`) that rate for `max-length` seconds; a long burst has a second bucket that leaks at the burst rate, so
that not all of it is spent at once.

Disks of a group take turns.  Time is the guest's clock: limits mean nothing while the guest does not run, and whoever
waits for requests to end lets them pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from itertools import product
from typing import Protocol

from pyvm.block.errors import BlockError
from pyvm.block.limit_names import BUCKETS, LIMIT_NAMES
from pyvm.clock import NANOSECONDS, Clock
from pyvm.records import field, record

MAX_VALUE = 1_000_000_000_000_000
"""Highest limit."""
_SHARE = 10
"""Without a burst rate a bucket holds a tenth of a second."""

_RELEVANT = {
    False: ("bps-total", "iops-total", "bps-read", "iops-read"),
    True: ("bps-total", "iops-total", "bps-write", "iops-write"),
}


class Gate(Protocol):
    """Something that requests of a disk have to pass."""

    def enter(self, is_write: bool, length: int, admitted: Callable[[], None]) -> bool:
        """Return whether the request may go on at once; otherwise `admitted` is called when it may."""

    def release(self) -> None:
        """Let everything go that waits here, whatever the limits."""


@record(eq=False)
class _Bucket:
    average: int = 0
    """Units in a second; 0: no limit."""
    burst: int = 0
    burst_length: int = 1
    """Seconds."""
    level: float = 0.0
    burst_level: float = 0.0

    def leak(self, elapsed: int) -> None:
        self.level = max(self.level - self.average * elapsed / NANOSECONDS, 0.0)
        if self.burst_length > 1:
            self.burst_level = max(self.burst_level - self.burst * elapsed / NANOSECONDS, 0.0)

    def wait(self) -> int:
        """Return how many ns it takes until there is room."""
        if not self.average:
            return 0
        room = self.burst * self.burst_length if self.burst else self.average / _SHARE
        if self.level > room:
            return int((self.level - room) * NANOSECONDS / self.average)
        if self.burst_length > 1:
            room = self.burst / _SHARE
            if self.burst_level > room:
                return int((self.burst_level - room) * NANOSECONDS / self.burst)
        return 0

    def add(self, units: float) -> None:
        self.level += units
        if self.burst_length > 1:
            self.burst_level += units


@record(frozen=True)
class Limits:
    """Limits as they are asked for; :data:`LIMIT_NAMES` has the names.  What is not named is not limited."""

    values: Mapping[str, int] = field(default_factory=dict)

    def get(self, name: str) -> int:
        """Return a value, or what it is when nothing is said."""
        return self.values.get(name, 1 if name.endswith("-max-length") else 0)

    @property
    def enabled(self) -> bool:
        """Whether anything is limited."""
        return any(self.get(name) for name in BUCKETS)

    def check(self) -> None:
        """Raise BlockError for limits that make no sense."""
        for unit, suffix in product(("bps", "iops"), ("", "-max")):
            total, read, write = (self.get(f"{unit}-{what}{suffix}") for what in ("total", "read", "write"))
            if total and (read or write):
                raise BlockError("bps/iops/max total values and read/write values cannot be used at the same time")
        if self.get("iops-size") and not any(self.get(name) for name in BUCKETS if name.startswith("iops")):
            raise BlockError("iops size requires an iops value to be set")
        for name in BUCKETS:
            _check_bucket(self.get(name), self.get(f"{name}-max"), self.get(f"{name}-max-length"))

    def report(self) -> dict[str, int]:
        """Return all limits, with what was not said, as query-block and `qom-get` of a group have them."""
        return {name: self.get(name) for name in LIMIT_NAMES}


def _check_bucket(average: int, burst: int, length: int) -> None:
    if average > MAX_VALUE or burst > MAX_VALUE:
        raise BlockError(f"bps/iops/max values must be within [0, {MAX_VALUE}]")
    if not length:
        raise BlockError("the burst length cannot be 0")
    if length > 1 and not burst:
        raise BlockError("burst length set without burst rate")
    if burst and length > MAX_VALUE // burst:
        raise BlockError("burst length too high for this burst rate")
    if burst and not average:
        raise BlockError("bps_max/iops_max require corresponding bps/iops values")
    if burst and burst < average:
        raise BlockError("bps_max/iops_max cannot be lower than bps/iops")


class ThrottleGroup:
    """Limits that hold for all its members together."""

    def __init__(self, name: str, clock: Clock, limits: Limits | None = None) -> None:
        self.name = name
        self.limits = Limits()
        self.members: list[ThrottleMember] = []
        self.filters = 0
        """How many filter nodes name it."""
        self._clock = clock
        self._lock = threading.Lock()
        """Guards the buckets; requests are counted on any thread."""
        self._buckets = {name: _Bucket() for name in BUCKETS}
        self._leaked = clock.now()
        self._turn = {False: 0, True: 0}
        self._timers = {False: clock.timer(lambda: self._open(False)), True: clock.timer(lambda: self._open(True))}
        self.configure(limits or Limits())

    def configure(self, limits: Limits) -> None:
        """Put other limits in force, all buckets empty.  Raises BlockError."""
        limits.check()
        with self._lock:
            self.limits = limits
            self._buckets = {
                name: _Bucket(limits.get(name), limits.get(f"{name}-max"), limits.get(f"{name}-max-length"))
                for name in BUCKETS
            }
            self._leaked = self._clock.now()
        for is_write in (False, True):
            self._timers[is_write].cancel()
            self._open(is_write)

    @property
    def in_use(self) -> bool:
        """Whether a disk or a node keeps to it."""
        return bool(self.members or self.filters)

    # ---- Buckets

    def take(self, is_write: bool, length: int) -> int:
        """Count a request and return 0, or do not count it and return how many ns it has to wait at least."""
        with self._lock:
            wait = self._wait(is_write)
            if not wait:
                self._count(is_write, length)
            return wait

    def _wait(self, is_write: bool) -> int:
        now = self._clock.now()
        elapsed, self._leaked = max(now - self._leaked, 0), now
        for bucket in self._buckets.values():
            if bucket.average:
                bucket.leak(elapsed)
        return max(self._buckets[name].wait() for name in _RELEVANT[is_write])

    def _count(self, is_write: bool, length: int) -> None:
        unit = self.limits.get("iops-size")
        operations = length / unit if unit and length > unit else 1.0
        for name in _RELEVANT[is_write]:
            self._buckets[name].add(length if name.startswith("bps") else operations)

    # ---- Members and their turns

    def enter(self, member: ThrottleMember, is_write: bool, length: int, admitted: Callable[[], None]) -> bool:
        """Return whether a request may go on at once; otherwise `admitted` is called when it may."""
        if not self.limits.enabled:
            return True
        if not self._waiting(is_write):
            wait = self.take(is_write, length)
            if not wait:
                return True
            self._timers[is_write].arm(self._clock.now() + max(wait, 1))
        member.queues[is_write].append((length, admitted))
        return False

    def _waiting(self, is_write: bool) -> bool:
        return any(member.queues[is_write] for member in self.members)

    def _next(self, is_write: bool) -> ThrottleMember | None:
        """Return the member whose turn it is: the next one, from the last on, that has something to do."""
        count = len(self.members)
        for step in range(1, count + 1):
            index = (self._turn[is_write] + step) % count
            if self.members[index].queues[is_write]:
                self._turn[is_write] = index
                return self.members[index]
        return None

    def _open(self, is_write: bool) -> None:
        """Let those go for which there is room now."""
        while self._waiting(is_write):
            before = self._turn[is_write]
            member = self._next(is_write)
            assert member is not None
            length, admitted = member.queues[is_write][0]
            wait = self.take(is_write, length) if self.limits.enabled else 0
            if wait:
                self._turn[is_write] = before
                self._timers[is_write].arm(self._clock.now() + max(wait, 1))
                return
            member.queues[is_write].popleft()
            admitted()

    def release(self, member: ThrottleMember) -> None:
        """Let all requests of `member` go."""
        for is_write in (False, True):
            queue = member.queues[is_write]
            while queue:
                length, admitted = queue.popleft()
                with self._lock:
                    self._count(is_write, length)
                admitted()
            if not self._waiting(is_write):
                self._timers[is_write].cancel()


class ThrottleMember:
    """A disk's place in a group: a :class:`Gate`."""

    def __init__(self, group: ThrottleGroup) -> None:
        self.group = group
        self.queues: dict[bool, deque[tuple[int, Callable[[], None]]]] = {False: deque(), True: deque()}
        group.members.append(self)

    def enter(self, is_write: bool, length: int, admitted: Callable[[], None]) -> bool:
        """Return whether the request may go on at once; otherwise `admitted` is called when it may."""
        return self.group.enter(self, is_write, length, admitted)

    def release(self) -> None:
        """Let everything go that waits here, whatever the limits."""
        self.group.release(self)

    def leave(self) -> None:
        """Leave the group; what waits goes."""
        self.release()
        self.group.members.remove(self)


class ThrottleGroups:
    """All groups by name.  Those of `-object` stay; others last as long as they have members."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._groups: dict[str, ThrottleGroup] = {}
        self._objects: set[str] = set()

    def add(self, name: str, limits: Limits) -> ThrottleGroup:
        """Make the group of a `throttle-group` object.  Raises BlockError."""
        if name in self._groups:
            raise BlockError(f"A group with this name already exists: {name}")
        limits.check()
        group = self._groups[name] = ThrottleGroup(name, self._clock, limits)
        self._objects.add(name)
        return group

    def remove(self, name: str) -> None:
        """The object of a group is gone; the group is, too, unless it has members."""
        self._objects.discard(name)
        if not self._groups[name].in_use:
            del self._groups[name]

    def find(self, name: str) -> ThrottleGroup | None:
        """Return the group with this name."""
        return self._groups.get(name)

    def join(self, name: str, limits: Limits) -> ThrottleMember:
        """Return a place in the group `name`, made where there is none, and put `limits` in force for it."""
        limits.check()
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = ThrottleGroup(name, self._clock)
        group.configure(limits)
        return ThrottleMember(group)

    def leave(self, member: ThrottleMember) -> None:
        """Give a place back; a group that nothing holds is gone."""
        member.leave()
        group = member.group
        if not group.in_use and group.name not in self._objects:
            self._groups.pop(group.name, None)
