"""I/O contexts: where the requests of disks are carried out.

A context has one worker thread, started with the first request, and a lock.  The worker does node I/O under that lock
and without the machine lock, and takes the machine lock only to tell the devices; it does both for many requests at a
time where many wait.  Requests are carried out in the order in which they came, so a flush covers every write that came
before it; reads and writes of which others do the work, a server far away, are on their way together.

Lock order: whoever holds the machine lock may take a context's lock, never the other way round.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

_BATCH = 32
_BATCH_NS = 500_000
"""A batch ends after so many requests or so much time, and before work that takes long: those that are done do not wait
for ever for those behind."""


class Work(ABC):
    """Something to be done in a context."""

    __slots__ = ()

    @property
    def overlaps(self) -> bool:
        """Whether it may begin before what came before it is done."""
        return False

    @property
    def takes_long(self) -> bool:
        """Whether it is better to tell of what is done before it begins."""
        return False

    @abstractmethod
    def run(self) -> bool | None:
        """Do it, with the context's lock held; return whether something goes on, for which :meth:`finish` waits."""

    def finish(self) -> None:  # noqa: B027 - most have nothing that goes on
        """Wait for what :meth:`run` has begun; the context's lock was held all the while."""

    @abstractmethod
    def fail(self) -> None:
        """:meth:`run` or :meth:`finish` raised what it should not have."""

    @abstractmethod
    def complete(self) -> None:
        """Tell whoever waits for it; with the machine lock held."""


class ContextLock:
    """A reentrant lock that shows whether somebody waits for it: long work ends sooner then."""

    __slots__ = ("_lock", "waiting")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waiting = 0
        """How many threads wait."""

    def acquire(self, blocking: bool = True) -> bool:
        """Take it; return False where that would mean to wait, and the caller does not."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        self.waiting += 1
        try:
            return self._lock.acquire()
        finally:
            self.waiting -= 1

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def run(work: Work) -> None:
    """Do what is to be done, with the context's lock held."""
    if _begin(work):
        _finish(work)


def _begin(work: Work) -> bool | None:
    try:
        return work.run()
    except Exception:  # noqa: BLE001 - a broken driver must not take the thread with it
        _complain()
        work.fail()
        return False


def _finish(work: Work) -> None:
    try:
        work.finish()
    except Exception:  # noqa: BLE001 - as above
        _complain()
        work.fail()


def _complain() -> None:
    """Show the exception that is being handled."""
    from traceback import print_exc

    print_exc(file=sys.stderr)


class InlineContext:
    """A context without a thread: work is done when it is given."""

    def __init__(self) -> None:
        self.name = ""
        self.lock = ContextLock()
        self._queue: deque[Work] = deque()
        self._running = False

    def submit(self, work: Work) -> None:
        """Do `work`; behind what is being done, where this is called from the completion of other work."""
        self._queue.append(work)
        if not self._running:
            self._work_off()

    def _work_off(self) -> None:
        before, self._running = self._running, True
        try:
            while self._queue:
                work = self._queue.popleft()
                with self.lock:
                    run(work)
                work.complete()
        finally:
            self._running = before

    @property
    def contended(self) -> bool:
        """Whether somebody waits until long work lets him in between."""
        return bool(self._queue)

    def attempt(self, action: Callable[[], bool]) -> bool:
        """Nothing is attempted, as there is no thread whose waking would be spared."""
        del action
        return False

    def borrow(self) -> bool:
        """Return False: work is done where it is given."""
        return False

    def settle(self, settled: Callable[[], bool]) -> None:
        """Do work until `settled`; also from within a completion."""
        while not settled() and self._queue:
            self._work_off()

    def close(self) -> None:
        """Nothing is left to do."""


class IoContext:
    """A context with a worker thread.  Methods are called with the machine lock held."""

    def __init__(self, machine_lock: Any, name: str = "") -> None:
        self.name = name
        """The ID of the `iothread` object; empty for the main context."""
        self.lock = ContextLock()
        self.thread: threading.Thread | None = None
        self._machine_lock = machine_lock
        self._queue: deque[Work] = deque()
        self._finished: deque[Work] = deque()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._awake = False
        self._closing = False

    @property
    def contended(self) -> bool:
        """Whether somebody waits until long work lets him in between: another request, or who wants the lock."""
        return bool(self._queue) or self.lock.waiting > 0

    def submit(self, work: Work) -> None:
        """Have `work` done."""
        self._queue.append(work)
        if not self._awake:
            self._awake = True
            if self.thread is None:
                self._start()
            self._wake.release()

    def attempt(self, action: Callable[[], bool]) -> bool:
        """Take `action`, which does not wait, right now where nothing comes before it; return whether it was done.

        What a hit in the host's page cache takes is less than waking the worker for it.
        """
        if self._awake or not self.lock.acquire(blocking=False):
            return False
        try:
            return action()
        finally:
            self.lock.release()

    def borrow(self) -> bool:
        """Let the caller's thread do work itself, where nothing comes before it; return whether it may.

        Then it holds :attr:`lock`, does the work without the machine lock, releases the lock, and completes the work
        with the machine lock.  Whoever settles meanwhile waits for the lock, and so for the work.
        """
        return not self._awake and self.lock.acquire(blocking=False)

    def _start(self) -> None:
        self.thread = threading.Thread(target=self._serve, name=self.name or "block", daemon=True)
        self.thread.start()

    def start(self) -> None:
        """Start the thread before there is work, as an `iothread` object does."""
        if self.thread is None:
            self._start()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            while True:
                with self.lock:
                    self._run_some()
                with self._machine_lock:
                    self._complete()
                    if not self._queue:
                        # Under the machine lock nobody can submit now.
                        self._awake = False
                        if self._closing:
                            return
                        break

    def _run_some(self) -> None:
        queue, finished = self._queue, self._finished
        begun: list[Work] = []
        end = monotonic_ns() + _BATCH_NS
        for _ in range(_BATCH):
            if not queue:
                break
            if queue[0].takes_long and (begun or finished):
                break
            work = queue.popleft()
            if begun and not work.overlaps:
                self._finish_all(begun)
            if _begin(work):
                begun.append(work)
            else:
                finished.append(work)
            if monotonic_ns() >= end:
                break
        self._finish_all(begun)

    def _finish_all(self, begun: list[Work]) -> None:
        for work in begun:
            _finish(work)
            self._finished.append(work)
        begun.clear()

    def _complete(self) -> None:
        finished = self._finished
        while finished:
            finished.popleft().complete()

    def settle(self, settled: Callable[[], bool]) -> None:
        """Return once `settled`, or when there is nothing left to do.

        This thread helps instead of waiting: it does what waits in the queue as soon as the worker lets it, and
        completes what is done.  So the machine lock is kept throughout, and nothing else happens meanwhile.
        """
        while not settled():
            with self.lock:
                self._run_some()
            if not self._finished and not self._queue:
                return
            self._complete()

    def close(self) -> None:
        """Do what is left, and end the thread."""
        self.settle(lambda: False)
        self._closing = True
        if self.thread is not None and not self._awake:
            self._awake = True
            self._wake.release()


Context = InlineContext | IoContext
