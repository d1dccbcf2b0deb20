"""Threads that read, look for zeros and compress, while one of them at a time writes in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Condition, Lock, Thread

from pyvm.annotations import Generic, TypeVar

C = TypeVar("C")
J = TypeVar("J")


class Relay(Generic[C, J]):
    """Does the first half of jobs in several threads, the caller's among them, and the second half in order.

    `prepare` is given a job and the context of its thread: `context` in the caller's, and what `begin` makes in the
    others, which `end` gives up in the end.  `finish` is given one job after the other, by any of the threads.  Up to
    `count` threads run, as jobs come, and at most `ahead` jobs wait to be finished.

    What the first half raises is raised again when it is the job's turn.
    """

    def __init__(
        self,
        count: int,
        ahead: int,
        *,
        context: C,
        begin: Callable[[], C],
        end: Callable[[C], None],
        prepare: Callable[[C, J], None],
        finish: Callable[[J], None],
    ) -> None:
        self._count = count
        self._ahead = max(ahead, count)
        self._context = context
        self._begin = begin
        self._end = end
        self._prepare = prepare
        self._finish = finish
        self._threads: list[Thread] = []
        self._taking = Lock()
        self._taken = 0
        self._state = Condition(Lock())
        """For all that follows."""
        self._prepared: dict[int, tuple[J, BaseException | None]] = {}
        self._next = 0
        """Whose turn it is."""
        self._finishing = False
        self._waiting = 0
        self._error: BaseException | None = None
        """Why nothing is done any more."""

    def run(self, jobs: Iterator[J]) -> None:
        """Do all jobs; raises what a job raises, which is the last one then."""
        self._jobs = jobs
        try:
            self._work(self._context)
        except BaseException as error:  # noqa: BLE001 - also when it is interrupted, the others have to stop
            self._stop(error)
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _stop(self, error: BaseException) -> None:
        with self._state:
            self._error = self._error or error
            self._state.notify_all()

    def _run_thread(self) -> None:
        try:
            context = self._begin()
            try:
                self._work(context)
            finally:
                self._end(context)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the caller
            self._stop(error)

    def _work(self, context: C) -> None:
        while self._error is None:
            with self._taking:
                job = next(self._jobs, None)
                if job is None:
                    return
                number = self._taken
                self._taken += 1
                if number and len(self._threads) + 1 < self._count:
                    thread = Thread(target=self._run_thread, name=f"worker-{len(self._threads)}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
            error = None
            try:
                self._prepare(context, job)
            except Exception as caught:  # noqa: BLE001 - it is raised when it is the job's turn
                error = caught
            if self._hand_over(number, job, error):
                self._finish_all()

    def _hand_over(self, number: int, job: J, error: Exception | None) -> bool:
        """Say that a job is prepared; return whether this thread is to finish those that are."""
        with self._state:
            self._prepared[number] = job, error
            while self._error is None:
                if not self._finishing and self._next in self._prepared:
                    self._finishing = True
                    return True
                if len(self._prepared) < self._ahead:
                    return False
                self._waiting += 1
                self._state.wait()
                self._waiting -= 1
            return False

    def _finish_all(self) -> None:
        """Finish jobs as long as the next one is prepared."""
        while True:
            job, error = self._prepared.pop(self._next)
            if error is not None:
                raise error
            self._finish(job)
            with self._state:
                self._next += 1
                if self._waiting:
                    self._state.notify()
                if self._error is not None or self._next not in self._prepared:
                    self._finishing = False
                    return
