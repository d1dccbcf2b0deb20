"""What jobs on nodes have in common: speed, errors, events, and what others must not do with their nodes meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pyvm.block.draining import take_leave
from pyvm.block.errors import BlockError
from pyvm.block.jobs.job import Job, Transaction
from pyvm.block.jobs.pace import Pace
from pyvm.block.jobs.read_ahead import ReadAhead
from pyvm.block.jobs.states import Verb
from pyvm.block.jobs.waits import Body, Io, Step, Wait
from pyvm.block.node import UNUSED
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.context import Context
    from pyvm.block.graph import User
    from pyvm.block.jobs.manager import Jobs
    from pyvm.block.node import Access, Node

OnError = Literal["report", "ignore", "enospc", "stop", "auto"]
STEP_BYTES = 1 << 20
"""Most data that one step moves: so long the guest may have to wait for its own requests."""
BULK_BYTES = 4 << 20
"""The same where the host copies it quickly, and nobody has waited for a while."""
ZERO_BYTES = 16 << 20
"""Most zeros that one step writes."""
BATCH = 64
"""Steps between two looks at what else there is to do."""


@record
class JobOptions:
    """What every job on nodes takes."""

    id: str
    speed: int = 0
    auto_finalize: bool = True
    auto_dismiss: bool = True
    filter_name: str | None = None
    transaction: Transaction | None = None


class BlockJob(Job):
    """A job on nodes.  A kind of it makes its changes to the graph before it is started."""

    is_block_job = True

    def __init__(self, jobs: Jobs, options: JobOptions, context: Context) -> None:
        if options.speed < 0:
            raise BlockError("Parameter 'speed' expects a non-negative value")
        super().__init__(
            jobs,
            options.id,
            auto_finalize=options.auto_finalize,
            auto_dismiss=options.auto_dismiss,
            transaction=options.transaction,
        )
        self.storage = jobs.storage
        self.graph = jobs.storage.graph
        self.context = context
        self.pace = Pace()
        self.pace.set(options.speed)
        self.io_status: Literal["ok", "failed", "nospace"] = "ok"
        self.ahead = ReadAhead()
        """How its source is read."""
        self.nodes: list[Node] = []
        """The nodes that others must leave as they are."""
        self._users: list[User] = []
        self.graph.workers.append(self)

    # ---- Nodes

    def use(self, node: Node, access: Access, name: str) -> None:
        """Use a node, and keep others from changing it.  Raises BlockError."""
        user = self.graph.attach(node, f"{self.kind} job '{self.id}'", access, name)
        user.stays = True
        self._users.append(user)
        node.hold()
        if node not in self.nodes:
            self.nodes.append(node)
        self.graph.block(node, self, f"block device is in use by block job: {self.kind}")

    def use_as_device(self, node: Node, access: Access, *, stays: bool = True) -> None:
        """Use a node as a disk does, which is what errors call it."""
        user = self.graph.attach(node, "an unnamed block device", access, "root")
        user.stays = stays
        self._users.append(user)
        node.hold()

    def share_all(self) -> None:
        """Be in nobody's way any more, as the nodes are about to take other places."""
        for user in self._users:
            user.access = UNUSED

    def let_nodes_go(self) -> None:
        """Use no node any more."""
        self.ahead.close()
        self._retire()
        users, self._users = self._users, []
        for user in users:
            if user.name == "root":
                take_leave(self.graph, user.node)
            self.graph.detach(user)
        self.graph.unblock(self)
        self.nodes = []
        for user in users:
            self.storage.release(user.node)

    def clean(self) -> None:
        """Let all nodes go."""
        self.let_nodes_go()

    def forget(self) -> None:
        """Nobody wants to know of it any more."""
        super().forget()
        self._retire()

    def _retire(self) -> None:
        if self in self.graph.workers:
            self.graph.workers.remove(self)

    # ---- Work

    def io(self, *steps: Step) -> Io:
        """Return what to wait for where steps are to be done in the nodes' context."""
        return Io(self.context, list(steps), self.ahead.end_turn)

    def do(self, step: Step) -> Generator[Wait, Any, Any]:
        """Have a step done that cannot be left out, and return what it returned: None where the job gives up first."""
        while not self.stopping:
            yield from self.pause_point()
            results = yield self.io(step)
            if results:
                return results[0]
        return None

    @property
    def batch(self) -> int:
        """How many steps to do at a time: one where the speed is limited, as each has to wait for its turn."""
        return 1 if self.pace.speed else BATCH

    @property
    def step_bytes(self) -> int:
        """Most data that the next step moves."""
        return BULK_BYTES if self.ahead.in_bulk and not self.pace.speed else STEP_BYTES

    def limit(self, moved: int) -> Body:
        """Wait for as long as the speed limit wants after `moved` bytes; a pause is taken here in any case."""
        seconds = self.pace.account(moved, self.host.now()) if moved else 0.0
        if seconds:
            yield from self.sleep(seconds)
        else:
            yield from self.pause_point()

    # ---- What clients see

    def describe_block_job(self) -> dict[str, Any]:
        """Return the BlockJobInfo."""
        info: dict[str, Any] = {
            "type": self.kind,
            "device": self.id,
            "len": self.total_progress,
            "busy": self.busy,
            "paused": self.paused,
            "offset": self.current_progress,
            "speed": self.pace.speed,
            "io-status": self.io_status,
            "ready": self.ready,
            "status": self.state.value,
            "auto-finalize": self.auto_finalize,
            "auto-dismiss": self.auto_dismiss,
        }
        if self.error is not None:
            info["error"] = self.error
        return info

    def _figures(self) -> dict[str, Any]:
        return {
            "type": self.kind,
            "device": self.id,
            "len": self.total_progress,
            "offset": self.current_progress,
            "speed": self.pace.speed,
        }

    def tell_ready(self) -> None:
        """BLOCK_JOB_READY."""
        self.host.emit("BLOCK_JOB_READY", self._figures())

    def tell_pending(self) -> None:
        """BLOCK_JOB_PENDING."""
        self.host.emit("BLOCK_JOB_PENDING", {"type": self.kind, "id": self.id})

    def tell_end(self) -> None:
        """BLOCK_JOB_CANCELLED or BLOCK_JOB_COMPLETED."""
        if self.stopping:
            self.host.emit("BLOCK_JOB_CANCELLED", self._figures())
            return
        data = self._figures()
        if self.error is not None:
            data["error"] = self.error
        self.host.emit("BLOCK_JOB_COMPLETED", data)

    # ---- Errors, and what a person does about them

    def handle(self, policy: OnError, is_read: bool, error: OSError) -> str:
        """Do about an error what the policy says; return ``report``, ``ignore`` or ``stop``."""
        number = error.errno or errno.EIO
        action = policy
        if policy in ("enospc", "auto"):
            action = "stop" if number == errno.ENOSPC else "report"
        self.host.emit(
            "BLOCK_JOB_ERROR", {"device": self.id, "operation": "read" if is_read else "write", "action": action}
        )
        if action == "stop":
            if not self.user_paused:
                # What resumes it is a person, who has looked after the cause.
                self.pauses += 1
                self.user_paused = True
            if self.io_status == "ok":
                self.io_status = "nospace" if number == errno.ENOSPC else "failed"
        return action

    def resumed_by_user(self) -> None:
        """A person lets it go on: the error is of the past."""
        self.io_status = "ok"

    def set_speed(self, speed: int) -> None:
        """Limit it to so many bytes a second, 0: not at all.  Raises BlockError."""
        self.check(Verb.SET_SPEED)
        if speed < 0:
            raise BlockError("Parameter 'speed' expects a non-negative value")
        before = self.pace.speed
        self.pace.set(speed)
        if speed and speed <= before:
            return
        # It may wait for longer than it has to now.
        self.enter()

    def cancel_by_device(self, force: bool) -> None:
        """End it, as `block-job-cancel` does; raises BlockError."""
        if self.user_paused and not force:
            raise BlockError(f"The block job for device '{self.id}' is currently paused")
        self.cancel_by_user(force)

    def check_still_wanted(self) -> None:
        """Raise OSError where it was cancelled."""
        if self.stopping:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def check_nodes_together(jobs: Jobs, source: Node, others: Iterable[Node]) -> Context:
    """Return the context in which a job on these nodes works; raises BlockError where disks have them apart."""
    storage = jobs.storage
    context = storage.context_of(source)
    for node in others:
        other = storage.context_of(node)
        if other is not context and other is not storage.context:
            raise BlockError("Cannot change iothread of active block backend")
    return context
