"""Threads that read, look for zeros and compress while the main thread writes."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Generic, Literal, TypeVar

C = TypeVar("C")
R = TypeVar("R")


class Ticket(Generic[R]):
    """What a job will return."""

    def __init__(self) -> None:
        self._answer: SimpleQueue[tuple[Literal[True], R] | tuple[Literal[False], BaseException]] = SimpleQueue()

    def succeed(self, result: R) -> None:
        """Say what the job returned."""
        self._answer.put((True, result))

    def fail(self, error: BaseException) -> None:
        """Say what the job raised."""
        self._answer.put((False, error))

    def wait(self) -> R:
        """Return what the job returned, or raise what it raised; once only."""
        answer = self._answer.get()
        if answer[0]:
            return answer[1]
        raise answer[1]


class Workers(Generic[C, R]):
    """Up to `count` threads, each with a context of its own that `begin` makes and `end` gives up.

    A block node is used by one thread at a time, so the context of a thread is where its nodes are.  Threads are
    started as jobs come, and end with :meth:`close`.
    """

    def __init__(self, count: int, begin: Callable[[], C], end: Callable[[C], None]) -> None:
        self._count = count
        self._begin = begin
        self._end = end
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[tuple[Callable[[C], R], Ticket[R]] | None] = SimpleQueue()

    def submit(self, job: Callable[[C], R]) -> Ticket[R]:
        """Have a thread run `job` with its context."""
        ticket: Ticket[R] = Ticket()
        self._jobs.put((job, ticket))
        if len(self._threads) < self._count:
            thread = Thread(target=self._run, name=f"worker-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return ticket

    def _run(self) -> None:
        try:
            context = self._begin()
        except BaseException as error:  # noqa: BLE001 - who waits for a job has to hear of it
            while (item := self._jobs.get()) is not None:
                item[1].fail(error)
            return
        while (item := self._jobs.get()) is not None:
            job, ticket = item
            try:
                ticket.succeed(job(context))
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                ticket.fail(error)
        self._end(context)

    def close(self) -> None:
        """Let jobs that have not begun go undone, and return when all threads have ended."""
        while not self._jobs.empty():
            self._jobs.get()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
