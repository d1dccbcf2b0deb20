"""The life of one job, and of several that succeed or fail together.

A job is made, started, and has a body that does the work (see :mod:`.waits`).  When the body is over, the job waits for
the others of its transaction; then, by itself or when it is told to, what all of them did takes effect.  If one fails,
all are undone.  Clients hear of every change of state.

Everything here happens in the main loop, with the machine lock held.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pyvm.block.errors import BlockError
from pyvm.block.jobs.states import State, Verb, check_transition, check_verb
from pyvm.block.jobs.waits import Aside, Body, Io, Sleep, Wait

if TYPE_CHECKING:
    from pyvm.block.jobs.manager import Jobs


class JobHost(Protocol):
    """What jobs need of the machine."""

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Send an event."""

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the main loop; from any thread."""

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Any:
        """Call a function in the main loop after some time; returns what has a method `cancel`."""

    def now(self) -> float:
        """Return the host's time in seconds."""


class Transaction:
    """Jobs that wait for each other; a job that nobody put into one has its own."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.aborting = False

    def succeeded(self) -> None:
        """One of them has done its work: go on once all have."""
        if any(not job.completed for job in self.jobs):
            return
        if any(job.error is not None for job in self.jobs):
            return
        for job in self._each():
            job.become(State.PENDING)
            if not job.auto_finalize:
                job.tell_pending()
        if all(job.auto_finalize for job in self.jobs):
            self.finalize()

    def finalize(self) -> None:
        """Let what all of them did take effect."""
        for job in self._each():
            job.prepare_to_finalize()
            if job.error is not None:
                self.abort(job)
                return
        for job in self._each():
            job.finalize_alone()

    def abort(self, failed: Job) -> None:
        """One has failed or was cancelled: so do the others."""
        if self.aborting:
            return
        self.aborting = True
        for job in self._each():
            if job is not failed:
                job.request_cancel(True)
        self._abort_next()

    def _abort_next(self) -> None:
        """Undo those that have come to an end, in their order; the others call this when they do."""
        while self.jobs:
            job = self.jobs[0]
            if not job.completed and job.started:
                job.on_completed = self._abort_next
                job.enter()
                return
            job.completed = True
            job.finalize_alone()

    def _each(self) -> list[Job]:
        return list(self.jobs)


class Job:
    """One job.  Kinds of jobs derive from this, and have a :meth:`body`."""

    kind: ClassVar[str] = ""
    """Its type for clients."""
    can_complete: ClassVar[bool] = False
    """Whether it goes on until it is told to end."""
    is_block_job: ClassVar[bool] = False
    ends_at_once: ClassVar[bool] = True
    """Whether one that is cancelled while it waits for nothing is over before the command is."""

    def __init__(
        self,
        jobs: Jobs,
        identifier: str,
        *,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
        transaction: Transaction | None = None,
    ) -> None:
        jobs.check_identifier(identifier)
        self.jobs = jobs
        self.host: JobHost = jobs.host
        self.id = identifier
        self.state = State.UNDEFINED
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.transaction = transaction or Transaction()
        self.done = 0
        """How much is done, in the job's unit."""
        self.remaining = 0
        """How much is left, as far as one knows."""
        self.error: str | None = None
        self.errno = 0
        self.pauses = 0
        """How many want it to pause."""
        self.user_paused = False
        self.cancelled = False
        self.force_cancelled = False
        self.completed = False
        """Whether the body is over, and the main loop knows."""
        self.body_over = False
        self.started = False
        self.on_completed: Callable[[], None] | None = None
        self._body: Body | None = None
        self._wait: Wait | None = None
        self._running = False
        jobs.add(self)
        self.become(State.CREATED)
        self.transaction.jobs.append(self)

    # ---- What kinds of jobs have of their own

    def body(self) -> Body:
        """Do the work; raises OSError or BlockError where it fails."""
        raise RuntimeError("a job without work")

    def prepare(self) -> None:
        """Before anything takes effect: what may fail.  Raises OSError or BlockError."""

    def commit(self) -> None:
        """Let what was done take effect."""

    def abort(self) -> None:
        """Undo what was done."""

    def clean(self) -> None:
        """Give everything back; comes last, in any case."""

    def refuse_soft_cancel(self, force: bool) -> bool:
        """Return whether the end is forced when somebody cancels the job: for most it always is."""
        del force
        return True

    def complete(self) -> None:
        """End once it can be."""
        raise BlockError(f"The active block job '{self.id}' cannot be completed")

    def resumed_by_user(self) -> None:
        """A person lets it go on."""

    def tell_pending(self) -> None:
        """Clients must finalize it."""

    def tell_end(self) -> None:
        """Clients are told how it ended."""

    # ---- What clients see

    @property
    def current_progress(self) -> int:
        """How much is done."""
        return self.done

    @property
    def total_progress(self) -> int:
        """How much there is altogether, as far as one knows."""
        return self.done + self.remaining

    @property
    def busy(self) -> bool:
        """Whether it does something right now."""
        return self._running or (self._wait is not None and not self._wait.interruptible)

    @property
    def at_rest(self) -> bool:
        """Whether it has nothing left to do on images, and waits to be told how to end."""
        return False

    @property
    def ready(self) -> bool:
        """Whether it only keeps up with changes."""
        return self.state in (State.READY, State.STANDBY)

    @property
    def paused(self) -> bool:
        """Whether somebody wants it to pause."""
        return self.pauses > 0

    def describe(self) -> dict[str, Any]:
        """Return the JobInfo."""
        info = {
            "id": self.id,
            "type": self.kind,
            "status": self.state.value,
            "current-progress": self.current_progress,
            "total-progress": self.total_progress,
        }
        if self.error is not None:
            info["error"] = self.error
        return info

    def progress(self, count: int) -> None:
        """So much more was done of what was left."""
        self.done += count
        self.remaining -= count

    def become(self, state: State) -> None:
        """Go on to another state."""
        check_transition(self.state, state)
        self.state = state
        self.host.emit("JOB_STATUS_CHANGE", {"id": self.id, "status": state.value})

    # ---- Running

    def start(self) -> None:
        """Begin; the body runs at once, until it has to wait."""
        self.started = True
        self.become(State.RUNNING)
        self._body = self._lead()
        self.proceed(None, None)

    def _lead(self) -> Body:
        yield from self.pause_point()
        yield from self.body()

    def pause_point(self) -> Body:
        """Stay here for as long as somebody wants a pause, and the job is not cancelled."""
        if not self.pauses or self.stopping:
            return
        before = self.state
        self.become(State.STANDBY if before is State.READY else State.PAUSED)
        while self.pauses and not self.stopping:
            yield Sleep()
        self.become(before)

    def sleep(self, seconds: float | None) -> Body:
        """Wait; less where somebody wakes the job, and for a pause as long as that takes."""
        if not self.stopping and not self.pauses:
            yield Sleep(seconds)
        yield from self.pause_point()

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled, and gives up what it does."""
        return self.cancelled and self.force_cancelled

    def proceed(self, result: Any, error: Exception | None) -> None:
        """Let the body go on with what it waited for."""
        body = self._body
        if body is None:
            return
        self._wait = None
        self._running = True
        try:
            wait = body.send(result) if error is None else body.throw(error)
        except StopIteration:
            self._over(None)
        except (OSError, BlockError) as failure:
            self._over(failure)
        except Exception as failure:  # noqa: BLE001 - a broken job must not take the machine with it
            traceback.print_exc(file=sys.stderr)
            self._over(failure)
        else:
            self._wait = wait
            wait.begin(self)
        finally:
            self._running = False

    def enter(self) -> None:
        """Wake it where it sleeps."""
        wait = self._wait
        if wait is not None and wait.interruptible:
            wait.stop()
            self.proceed(None, None)

    def finish(self) -> None:
        """Return once the body is over, and what follows is done: the machine ends, or its images change."""
        while not self.body_over:
            wait = self._wait
            if isinstance(wait, (Io, Aside)):
                wait.finish()
            elif wait is not None:
                self.enter()
            if wait is self._wait:
                return  # it waits for somebody else
        self.has_ended()

    def wake(self, wait: Wait) -> None:
        """A timer has expired: go on unless that is of the past."""
        if self._wait is wait:
            self.proceed(None, None)

    def _over(self, failure: Exception | None) -> None:
        """The body has ended; what follows is done soon, as this may be in the middle of a command."""
        self._body = None
        self.body_over = True
        if failure is not None:
            self.fail(failure)
        self.host.call_soon(self.has_ended)

    def fail(self, failure: Exception) -> None:
        """Remember why it fails."""
        if isinstance(failure, OSError):
            self.errno = failure.errno or errno.EIO
            text = failure.strerror or str(failure)
        else:
            self.errno = errno.EINVAL
            text = str(failure).partition("\n")[0]
        if self.error is None:
            self.error = text

    def _update_result(self) -> None:
        if self.error is None and self.stopping:
            self.error, self.errno = os.strerror(errno.ECANCELED), errno.ECANCELED
        if self.error is not None and self.state is not State.ABORTING:
            self.become(State.ABORTING)

    def has_ended(self) -> None:
        """The body is over: go on together with the others of the transaction."""
        if self.completed:
            return
        self.completed = True
        self._update_result()
        if self.error is not None:
            if self.on_completed is not None:
                called, self.on_completed = self.on_completed, None
                called()
            else:
                self.transaction.abort(self)
            return
        self.become(State.WAITING)
        if self.on_completed is not None:
            called, self.on_completed = self.on_completed, None
            called()
        else:
            self.transaction.succeeded()

    def prepare_to_finalize(self) -> None:
        """Do what may fail before anything takes effect."""
        try:
            self.prepare()
        except (OSError, BlockError) as failure:
            self.fail(failure)
        self._update_result()

    def finalize_alone(self) -> None:
        """Let what it did take effect, or undo it; the job is over then."""
        self._update_result()
        if self.error is None:
            self.commit()
        else:
            self.abort()
        self.clean()
        if self.started:
            self.tell_end()
        self.transaction.jobs.remove(self)
        self.become(State.CONCLUDED)
        if self.auto_dismiss or not self.started:
            self.forget()

    def forget(self) -> None:
        """Nobody wants to know of it any more."""
        if self in self.transaction.jobs:
            self.transaction.jobs.remove(self)
        self.become(State.NULL)
        self.jobs.remove(self)

    # ---- Commands

    def check(self, verb: Verb) -> None:
        """Raise BlockError where this cannot be asked now."""
        check_verb(self.id, self.state, verb)

    def pause(self) -> None:
        """Pause, as a person wants it; raises BlockError."""
        self.check(Verb.PAUSE)
        if self.user_paused:
            raise BlockError("Job is already paused")
        self.user_paused = True
        self.hold()

    def hold(self) -> None:
        """Want it to pause; nothing more is started once it has come to a place where it can."""
        self.pauses += 1
        if not self.pauses - 1:
            self.enter()

    def let_go(self) -> None:
        """End :meth:`hold`."""
        self.pauses -= 1
        if not self.pauses:
            self.enter()

    def stand_still(self) -> bool:
        """Pause as the nodes are to stand still; return whether there is anything to pause."""
        if self.body_over or self._running or not self.started:
            return False
        self.hold()
        return True

    def come_to_rest(self) -> None:
        """Return once it has come to a place where it pauses, or is over."""
        while isinstance(wait := self._wait, (Io, Aside)):
            wait.finish()
            if wait is self._wait:
                return  # it waits for somebody else

    def go_on(self) -> None:
        """End :meth:`stand_still`; bodies of jobs set timers, so this is for the main loop."""
        if self.jobs.in_main_loop:
            self.let_go()
        else:
            self.host.call_soon(self.let_go)

    def resume(self) -> None:
        """End :meth:`pause`; raises BlockError."""
        if not self.user_paused or self.pauses <= 0:
            raise BlockError("Can't resume a job that was not paused")
        self.check(Verb.RESUME)
        self.resumed_by_user()
        self.user_paused = False
        self.let_go()

    def cancel_by_user(self, force: bool) -> None:
        """End it before its time; raises BlockError."""
        self.check(Verb.CANCEL)
        self.cancel(force)
        if self.body_over and self.ends_at_once:
            self.has_ended()

    def cancel(self, force: bool) -> None:
        """End it before its time; without `force`, a job that only keeps up with changes ends in good order."""
        if self.state is State.CONCLUDED:
            self.forget()
            return
        self.request_cancel(force)
        if not self.started:
            self.has_ended()
        elif self.body_over:
            # What is done can only be undone by force.
            if self.stopping and self.completed:
                self.transaction.abort(self)
        else:
            self.enter()

    def request_cancel(self, force: bool) -> None:
        """Remember that it is to end, and wake nobody."""
        force = self.refuse_soft_cancel(force)
        if self.user_paused:
            self.resumed_by_user()
            self.user_paused = False
            self.pauses -= 1
        if force or not self.body_over:
            self.cancelled = True
            self.force_cancelled |= force

    def complete_by_user(self) -> None:
        """End once it can be, with effect; raises BlockError."""
        self.check(Verb.COMPLETE)
        if self.cancelled or not self.can_complete:
            raise BlockError(f"The active block job '{self.id}' cannot be completed")
        self.complete()

    def finalize(self) -> None:
        """Let what was done take effect; raises BlockError."""
        self.check(Verb.FINALIZE)
        self.transaction.finalize()

    def dismiss(self) -> None:
        """Forget a job that is over; raises BlockError."""
        self.check(Verb.DISMISS)
        self.forget()
