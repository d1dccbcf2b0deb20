"""The main loop: an event loop under the machine lock.

All device, block and monitor state is guarded by one lock.  The main loop holds it whenever it runs Python and drops
it while it sleeps; the vCPU thread holds it except while guest code runs.  So a callback here may touch any device.

Guest timers reach the loop through a timerfd.  Arming an earlier deadline, from whichever thread, is one system call
and wakes nobody before it is due.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from pyvm.clock import RunningClock
from pyvm.eventloop import EventLoop, Handle
from pyvm.native import open_timer, set_timer


class TimerFd:
    """A file descriptor that becomes readable at a time of the host's monotonic clock."""

    def __init__(self) -> None:
        self.fd = open_timer()

    def set(self, deadline: int | None) -> None:
        """Become readable at `deadline` ns of the monotonic clock, at once where that is past; None: never."""
        set_timer(self.fd, deadline)

    def acknowledge(self) -> None:
        """Become unreadable until the next deadline."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class MainLoop:
    """The event loop of one machine: file descriptors, guest timers, and calls from the vCPU thread."""

    def __init__(self, clock: RunningClock) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.loop = EventLoop(self.lock)
        self._timerfd = TimerFd()
        self._timerfd_deadline: int | None = None
        self.loop.add_reader(self._timerfd.fd, self._timers_due)
        clock.queue.on_earlier = self.arm_timers

    def run(self) -> None:
        """Run until :meth:`stop`; the calling thread is the main loop's from now on."""
        with self.lock:
            self.loop.run_forever()

    def stop(self) -> None:
        """Let :meth:`run` return; from any thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def close(self) -> None:
        """Give back the loop's descriptors; after :meth:`run` has returned."""
        self.loop.remove_reader(self._timerfd.fd)
        self._timerfd.close()
        with self.lock:
            self.loop.close()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in the main loop, soon; from any thread."""
        self.loop.call_soon_threadsafe(callback, *args)

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Handle:
        """Run a callback after `seconds` of host time; from the main loop only."""
        return self.loop.call_later(seconds, callback, *args)

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> None:
        """Call back whenever `fd` can be read; with the lock held, from any thread."""
        self.loop.add_reader(fd, callback, *args)

    def remove_reader(self, fd: int) -> None:
        """End :meth:`add_reader`."""
        self.loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[..., object], *args: object) -> None:
        """Call back whenever `fd` can be written; with the lock held, from any thread."""
        self.loop.add_writer(fd, callback, *args)

    def remove_writer(self, fd: int) -> None:
        """End :meth:`add_writer`."""
        self.loop.remove_writer(fd)

    def arm_timers(self) -> None:
        """Bring the timerfd in line with the first guest timer; after the clock was started, stopped or set, too."""
        deadline = self.clock.queue.next_deadline() if self.clock.running else None
        host_deadline = None if deadline is None else deadline - self.clock.offset
        if host_deadline != self._timerfd_deadline:
            self._timerfd_deadline = host_deadline
            self._timerfd.set(host_deadline)

    def _timers_due(self) -> None:
        self._timerfd.acknowledge()
        self._timerfd_deadline = None
        if self.clock.running:
            self.clock.queue.run_expired(self.clock.now())
        self.arm_timers()
