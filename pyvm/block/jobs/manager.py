"""All jobs of a machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.jobs.job import Job, JobHost
from pyvm.block.jobs.states import State
from pyvm.block.node import UNUSED
from pyvm.options import is_identifier

if TYPE_CHECKING:
    from pyvm.block.graph import User
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage, StorageEvents


class StorageHost:
    """A machine as jobs see it, by way of its disks."""

    def __init__(self, events: StorageEvents) -> None:
        self._events = events

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Send an event."""
        self._events.emit(name, data)

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the main loop."""
        self._events.call_soon(function, *arguments)

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Any:
        """Call a function in the main loop after some time."""
        later = self._events.call_later
        if later is None:
            raise RuntimeError("a machine without timers has no jobs")
        return later(seconds, function, *arguments)

    def now(self) -> float:
        """Return the host's time in seconds."""
        return time.monotonic()


class Jobs:
    """The jobs of a machine, the newest first, as queries list them."""

    def __init__(self, host: JobHost, storage: Storage) -> None:
        self.host = host
        self.storage = storage
        self._jobs: list[Job] = []
        self._thread = threading.current_thread()
        self._left: list[User] = []

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    def check_identifier(self, identifier: str) -> None:
        """Raise BlockError unless a new job can be called so."""
        if not is_identifier(identifier):
            raise BlockError(f"Invalid job ID '{identifier}'")
        if self.find(identifier) is not None:
            raise BlockError(f"Job ID '{identifier}' already in use")

    def find(self, identifier: str) -> Job | None:
        """Return a job by its ID."""
        return next((job for job in self._jobs if job.id == identifier), None)

    @property
    def in_main_loop(self) -> bool:
        """Whether the caller is the thread in which jobs are made: not a virtual CPU that resets a device."""
        return threading.current_thread() is self._thread

    def add(self, job: Job) -> None:
        """Take in a new job."""
        self._jobs.insert(0, job)

    def remove(self, job: Job) -> None:
        """Forget a job."""
        self._jobs.remove(job)

    @property
    def blocks_migration(self) -> bool:
        """Whether the machine cannot be moved now: jobs work on images that only this process has open."""
        return any(not job.completed and not job.at_rest for job in self._jobs)

    def using(self, node: Node) -> list[Job]:
        """Return the jobs that work on a node."""
        return [job for job in self._jobs if node in getattr(job, "nodes", ())]

    def cancel_on(self, node: Node | None) -> None:
        """Cancel the jobs that work on a node whose drive goes away."""
        for job in self.using(node) if node is not None else ():
            job.cancel(False)

    def leave_behind(self, node: Node) -> None:
        """Have an unnamed user hold a node until the machine ends."""
        self._left.append(self.storage.graph.attach(node, "an unnamed block device", UNUSED))
        node.hold()

    def end_all(self) -> None:
        """Cancel everything, and wait for it: the machine ends."""
        for worker in self.storage.graph.workers:
            if worker.stand_still():
                worker.come_to_rest()
        for job in self:
            if job in self._jobs and job.state is not State.CONCLUDED:
                job.cancel(True)
                if job.started:
                    job.finish()
        for user in self._left:
            self.storage.graph.detach(user)
            self.storage.release(user.node)
        self._left = []
