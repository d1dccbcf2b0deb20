"""What a job waits for.

The body of a job is a generator that runs in the main loop, with the machine lock held.  It yields one of these to
wait; what it waited for is the value of the yield, or is raised there.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from pyvm.block.breakpoints import Suspended
from pyvm.block.context import Context, Work

if TYPE_CHECKING:
    from pyvm.block.jobs.job import Job


class Wait(ABC):
    """Something that a job waits for."""

    interruptible = False
    """Whether a job may be woken before it is over; it is not busy then."""

    @abstractmethod
    def begin(self, job: Job) -> None:
        """Have `job` go on later."""

    def stop(self) -> None:  # noqa: B027 - most cannot be stopped
        """The job goes on now, and does not wait any more."""


Body = Generator[Wait, Any, None]


class Sleep(Wait):
    """Time that passes on the host; None: until somebody wakes the job."""

    interruptible = True

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._timer: Any = None

    def begin(self, job: Job) -> None:
        """Set a timer."""
        if self.seconds is not None:
            self._timer = job.host.call_later(max(self.seconds, 0.0), job.wake, self)

    def stop(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


Step = Callable[[], Any]
"""A small piece of I/O; it holds its context's lock, so the guest waits behind it."""

_TURN_NS = 50_000_000
"""So long steps follow one another without a look at the machine: taking its lock means to wait for it."""


class Io(Wait):
    """Steps of I/O in a context, one after the other; requests of the guest come in between.

    The result is the list of what the steps returned.  The first that raises ends it; so does somebody who wants the
    job to pause or to give up, so that steps that were not taken are for another time.
    """

    def __init__(
        self,
        context: Context,
        steps: list[Step],
        end_turn: Callable[[bool], None] = lambda contended: None,
        *,
        whole: bool = False,
    ) -> None:
        """`end_turn` is called, with the context's lock held, before anybody else may come in between.

        It is told whether somebody waits to do that.  With `whole`, the steps are all done or none, whoever wants what.
        """
        self.context = context
        self._whole = whole
        self._steps = steps
        self._end_turn = end_turn
        self._error: Exception | None = None
        self._over = False
        self._delivered = False
        self.results: list[Any] = []

    def begin(self, job: Job) -> None:
        """Have the first step done."""
        self._job = job
        if self._steps:
            self.context.submit(_Turn(self))
        else:
            self._end()

    @property
    def _goes_on(self) -> bool:
        job = self._job
        unfinished = self._error is None and len(self.results) < len(self._steps)
        return unfinished and (self._whole or (not job.pauses and not job.stopping))

    def take_steps(self) -> None:
        """Take steps until somebody waits for the context, or for as long as a turn is; with its lock held.

        Raises Suspended where a step is to stop: it is taken again then.
        """
        end = monotonic_ns() + _TURN_NS
        contended = False
        try:
            while self._goes_on:
                self.results.append(self._steps[len(self.results)]())
                contended = self.context.contended
                if contended or monotonic_ns() >= end:
                    break
        except Suspended:
            raise
        except Exception as error:  # noqa: BLE001 - it is the job's to look at
            self._error = error
        finally:
            self._end_turn(contended)

    def turn_done(self, turn: Work) -> None:
        """Steps were taken; called with the machine lock held, on the context's thread."""
        if self._goes_on:
            self.context.submit(turn)
        else:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._job.host.call_soon(self._deliver)

    def _deliver(self) -> None:
        if not self._delivered:
            self._delivered = True
            self._job.proceed(self.results, self._error)

    def finish(self) -> None:
        """Do all steps now, and let the job go on: the main loop waits for it."""
        self.context.settle(lambda: self._over)
        if self._over:
            self._deliver()


class Aside(Wait):
    """Work that may take long, and touches nothing that somebody else does: in a thread of its own, without a lock."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: Exception | None = None
        self._delivered = False

    def begin(self, job: Job) -> None:
        """Start a thread."""
        self._job = job
        self._thread = threading.Thread(target=self._work, name=f"job {job.id}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._result = self._step()
        except Exception as error:  # noqa: BLE001 - it is the job's to look at
            self._error = error
        self._job.host.call_soon(self._deliver)

    def _deliver(self) -> None:
        if not self._delivered:
            self._delivered = True
            self._job.proceed(self._result, self._error)

    def finish(self) -> None:
        """Wait for the thread, and let the job go on."""
        if self._thread is not None:
            self._thread.join()
            self._deliver()


class _Turn(Work):
    __slots__ = ("_io", "_suspended")

    def __init__(self, io: Io) -> None:
        self._io = io
        self._suspended: Suspended | None = None

    @property
    def takes_long(self) -> bool:
        """A turn lasts until somebody else wants the context."""
        return True

    def run(self) -> None:
        """Take steps."""
        try:
            self._io.take_steps()
        except Suspended as stop:
            self._suspended = stop

    def fail(self) -> None:
        """Cannot be: :meth:`run` raises nothing."""

    def complete(self) -> None:
        """Tell the job."""
        stop, self._suspended = self._suspended, None
        if stop is not None:
            stop.park(lambda: self._io.context.submit(self))
            return
        self._io.turn_done(self)
