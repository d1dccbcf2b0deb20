"""Job *mirror*: copies a disk, keeps the copy up to date, and in the end lets it take the disk's place.

With the copy below the disk this is the job *commit* of an image that is in use.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, ClassVar, Literal

from pyvm.block import bitmaps
from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.errors import BlockError
from pyvm.block.jobs import surgery
from pyvm.block.jobs.block_job import (
    BATCH,
    BULK_BYTES,
    STEP_BYTES,
    ZERO_BYTES,
    BlockJob,
    JobOptions,
    OnError,
    check_nodes_together,
)
from pyvm.block.jobs.mirror_filter import MirrorTop
from pyvm.block.jobs.pace import SLICE
from pyvm.block.jobs.read_ahead import CopyError, bounded_look
from pyvm.block.jobs.states import State
from pyvm.block.jobs.waits import Body
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, UNUSED, Access, Node, Permission
from pyvm.block.reopen import all_below
from pyvm.block.replacing import can_replace
from pyvm.block.status import chain_status, skip_filters
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.jobs.manager import Jobs

DEFAULT_BUFFER = 16 << 20
_LOOK_NS = 2_000_000
"""So long one step asks what is allocated: the guest waits behind it."""


@record
class MirrorOptions:
    """What is mirrored how."""

    sync: Literal["full", "top", "none"]
    base: Node | None = None
    """With ``top``, what is below the disk, which the copy will stand on."""
    granularity: int = 0
    buffer: int = 0
    on_source_error: OnError = "report"
    on_target_error: OnError = "report"
    unmap: bool = True
    write_blocking: bool = False
    replaces: str | None = None
    backing: Literal["source", "open", "leave"] = "leave"
    """What the copy stands on in the end: what the source does, what its header names, or what it is."""
    zero_target: bool = False
    """Whether nobody knows that the target reads as zeros."""
    read_only_before: bool = False
    """Whether the target was opened for writing only for this."""


@record
class _Done:
    """What came of one step."""

    length: int = 0
    accounted: int = 0
    error: OSError | None = None
    of_read: bool = False


class MirrorJob(BlockJob):
    """Copies `source` to `target`."""

    kind: ClassVar[str] = "mirror"
    can_complete: ClassVar[bool] = True
    ends_at_once: ClassVar[bool] = False

    def __init__(self, jobs: Jobs, options: JobOptions, source: Node, target: Node, mirror: MirrorOptions) -> None:
        self.mirror = mirror
        self.source, self.target = source, target
        commit = target in all_below(source)
        granularity = mirror.granularity or bitmaps.default_granularity(target)
        self._unit = max(granularity, target.cluster_size or 0)
        self._budget = mirror.buffer or DEFAULT_BUFFER
        self._commit = commit
        self._cursor = 0
        self._left = 0
        self._failed = False
        self._synced = False
        self._complete_wanted = False
        self._pivoting = False
        self._failure: OSError | None = None
        self._late: list[tuple[int, OSError]] = []
        """How much of what counts as copied could not be written, and why."""
        self._wrote = False
        self._to_replace: Node | None = None
        bitmap = DirtyBitmap(source.size, granularity)
        context = check_nodes_together(jobs, source, (target,))
        jobs.check_identifier(options.id)
        filter_node = MirrorTop(source.hold(), target, bitmap, self._unit, commit=commit)
        surgery.insert_filter(jobs.storage, filter_node, options.filter_name)
        self.filter = filter_node
        self.bitmap = bitmap
        try:
            super().__init__(jobs, options, context)
        except BlockError:
            surgery.drop_filter(jobs.storage, filter_node)
            raise
        try:
            self._use_nodes(commit)
        except BlockError:
            self.forget()
            self.let_nodes_go()
            surgery.drop_filter(self.storage, filter_node)
            raise
        bitmaps.attach(source, bitmap)
        self.ahead.put_off(target, self._write_has_failed)
        filter_node.active = mirror.write_blocking
        filter_node.on_error = lambda error: self.host.call_soon(self._active_write_failed, error)

    def _use_nodes(self, commit: bool) -> None:
        """Say what is done with which node; raises BlockError."""
        readable = Permission.CONSISTENT_READ | Permission.WRITE | Permission.WRITE_UNCHANGED
        used = Permission.WRITE
        shared = Permission.WRITE_UNCHANGED
        if commit:
            shared |= Permission.CONSISTENT_READ | Permission.WRITE
            if self.target.size < self.source.size:
                used |= Permission.RESIZE
        self.use_as_device(self.target, Access(used, shared))
        main = NO_PERMISSIONS if commit else Permission.CONSISTENT_READ
        self.use(self.filter, Access(main, readable), "main node")
        self.use(self.source, Access(NO_PERMISSIONS, readable), "source")
        self.use(self.target, UNUSED, "target")
        if commit:
            nodes = surgery.chain(self.source)
            for node in nodes[1 : nodes.index(self.target)] if self.target in nodes else ():
                same = skip_filters(node) is skip_filters(self.target)
                hidden = NO_PERMISSIONS if same else Permission.CONSISTENT_READ
                self.use(node, Access(NO_PERMISSIONS, ALL_PERMISSIONS & ~hidden), "intermediate node")

    # ---- The body

    def body(self) -> Body:
        """Copy what is dirty, until the copy is up to date and somebody wants the end."""
        yield from self._begin()
        while True:
            self._raise_failure()
            yield from self.pause_point()
            self.check_still_wanted()
            if self.bitmap.any:
                yield from self._round()
                continue
            if not self._synced:
                yield from self._flush_target()
                if self._unsettled():
                    continue
                self._synced = True
                self.remaining = 0
                self.become(State.READY)
                self.tell_ready()
            if self._complete_wanted or self.cancelled:
                if self._stand_still():
                    yield from self._flush_target()
                    if not self._unsettled():
                        break
                    self.filter.active = self.mirror.write_blocking
                continue
            yield from self.sleep(SLICE)
        self._pivoting = self._complete_wanted
        self.pauses += 1  # what follows does not take any I/O

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _unsettled(self) -> bool:
        """Whether an error is to be dealt with first, or something was written meanwhile."""
        return self._failure is not None or self.pauses > 0 or self.bitmap.any

    def _begin(self) -> Body:
        """Find out what has to be copied."""
        if not self._commit and self.target.size != self.source.size:
            raise BlockError("Source and target image have different sizes")
        if self.target.size < self.source.size:
            yield from self.do(lambda: self.target.truncate(self.source.size))
        if self.mirror.sync == "none":
            return
        if self.mirror.zero_target and not self.target.unmap:
            self.bitmap.set_all()
            self.remaining = self.bitmap.count
            return
        if self.mirror.zero_target:
            offset = 0
            while offset < self.target.size:
                count = min(self._budget, self.target.size - offset)
                yield from self.do(_zero(self.target, offset, count))
                self.check_still_wanted()
                yield from self.pause_point()
                offset += count
            self._wrote = True
        yield from self._find_allocated()
        self.remaining = self.bitmap.count

    def _find_allocated(self) -> Body:
        while self._cursor < self.source.size:
            yield self.io(*[self._mark_allocated] * BATCH)
            self.check_still_wanted()
            yield from self.pause_point()
        self._cursor = 0

    def _mark_allocated(self) -> None:
        """Make dirty what is allocated from the cursor on: one step."""
        until = monotonic_ns() + _LOOK_NS
        most = bounded_look(self.source, self.source.size)
        while self._cursor < self.source.size:
            offset = self._cursor
            extent = chain_status(self.source, offset, min(most, self.source.size - offset), self.mirror.base)
            if extent.present:
                self.bitmap.set(offset, extent.length)
            self._cursor += extent.length
            if monotonic_ns() >= until:
                break

    def _round(self) -> Body:
        """Copy some of what is dirty."""
        # Only a job whose speed is limited has to look at the clock after so many bytes.
        self._left = self._budget if self.pace.speed else max(self._budget, BATCH * BULK_BYTES)
        self._failed = False
        results: list[_Done] = yield self.io(*[self.copy_some] * BATCH)
        accounted = sum(it.accounted for it in results)
        late, self._late = self._late, []
        self.done += sum(it.length for it in results) - sum(length for length, _ in late)
        self.remaining = self.bitmap.count
        failed = bool(late)
        for _, error in late:
            self._fail(error, False)
        for it in results:
            if it.error is not None:
                failed = True
                self._fail(it.error, it.of_read)
        if self._failure is None:
            yield from self.limit(accounted)
            if failed and not self.stopping:
                yield from self.sleep(SLICE)

    def _fail(self, error: OSError, of_read: bool) -> None:
        if self._failure is not None:
            return
        policy = self.mirror.on_source_error if of_read else self.mirror.on_target_error
        if self.handle(policy, of_read, error) == "report":
            self._failure = error

    def _write_has_failed(self, offset: int, length: int, error: OSError) -> None:
        """What was on its way to the copy is not there; with the lock of the context held."""
        self.bitmap.set(offset, length)
        self._failed = True
        self._late.append((length, error))

    def _active_write_failed(self, error: OSError) -> None:
        """The guest's write did not get to the copy."""
        if not self.body_over:
            self._fail(error, False)
            self.enter()

    def copy_some(self) -> _Done:
        """Copy a run of dirty units: one step."""
        found = self.bitmap.run(self._cursor, self._left) if self._cursor < self.bitmap.size else None
        if found is None and self._failed:
            return _Done()  # what failed is tried again another time
        if found is None:
            self._cursor = 0
            found = self.bitmap.run(0, self._left)
        if found is None or self._left <= 0:
            return _Done()
        start, end = found[0] // self._unit * self._unit, -(-sum(found) // self._unit) * self._unit
        end = min(end, self.bitmap.size)
        self._wrote = True
        try:
            end, is_data = self._copy(start, end, sum(found))
        except CopyError as failure:
            end = min(end, start + self._most(STEP_BYTES))
            self._cursor = end
            self._left -= end - start
            self._failed = True
            return _Done(error=failure.error, of_read=failure.of_read)
        self.bitmap.clear(start, end - start)
        self._cursor = end
        self._left -= end - start
        return _Done(end - start, 0 if not is_data and self.target.unmap else end - start)

    def _most(self, limit: int) -> int:
        """Return how many bytes in whole units a step does where `limit` bytes are most, but one unit in any case."""
        return max(limit // self._unit * self._unit, self._unit)

    def _copy(self, start: int, end: int, dirty_end: int) -> tuple[int, bool]:
        """Copy the first of a run of units; return the end of that, and whether it was data.  Raises CopyError."""
        try:
            extent = self.ahead.status(self.source, start, end - start)
        except (OSError, BlockError) as error:
            raise CopyError(error, True) from None
        end = min(end, start + self._most(extent.length))
        # A unit that is only partly zeros is copied.
        if (extent.data and not extent.zero) or extent.length < end - start:
            end = min(end, start + self._most(self.step_bytes))
            self.ahead.copy(self.source, start, end - start, end if self.pace.speed else dirty_end, self.target)
            return end, True
        end = min(end, start + self._most(ZERO_BYTES))
        try:
            self.target.write_zeroes(start, end - start, self.mirror.unmap)
        except (OSError, BlockError) as error:
            raise CopyError(error, False) from None
        return end, False

    def _flush_target(self) -> Body:
        """Make the copy safe; an error is dealt with, and the copy not in order then."""
        if not self._wrote:
            return
        try:
            yield self.io(self.target.flush)
        except OSError as error:
            self._fail(error, False)
            if self._failure is None:
                yield from self.sleep(SLICE)

    def _stand_still(self) -> bool:
        """Let no write of the guest be done from now on that the copy does not have, too; return False if one was."""
        self.storage.settle()
        with self.storage.quiet():
            if self.bitmap.any:
                return False
            self.filter.active = True
        return True

    @property
    def at_rest(self) -> bool:
        """Whether the copy is up to date.  Another process may have the disk then: a commit needs it in the end."""
        return self.ready and not self._commit and not self.bitmap.any

    # ---- Commands

    def refuse_soft_cancel(self, force: bool) -> bool:
        """Once the copy is up to date, it ends in good order unless it is forced not to."""
        if force or not self.ready:
            self.target.cancel_in_flight()
        return force or not self.ready

    def complete(self) -> None:
        """Let the copy take the disk's place soon.  Raises BlockError."""
        name = self.mirror.replaces
        if name is not None:
            node = self.graph.nodes.get(name)
            if node is None:
                raise BlockError(f"Failed to find node with node-name='{name}'")
            self._to_replace = node.hold()
        self._complete_wanted = True
        if not self.paused:
            self.enter()

    # ---- The end

    def prepare(self) -> None:
        """Let the copy take the disk's place where that is wanted.  Raises OSError or BlockError."""
        if not self._pivoting:
            return
        storage, target = self.storage, self.target
        storage.settle()
        if self.bitmap.any:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replaced = self._to_replace or self.source
        self._check_replaced(replaced)
        self.filter.active = False
        self.filter.stopped = True
        self.share_all()
        self._give_backing()
        if target.read_only != replaced.read_only:
            storage.set_read_only(target, replaced.read_only)
        try:
            # With the source goes the filter in front of it, which shows the copy then until it is taken out.
            surgery.replace_node(storage, replaced, target)
        except BlockError as error:
            sys.stderr.write(f"pyvm: {error}\n")
            raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from None
        self._pivoted = True

    _pivoted = False

    def _check_replaced(self, replaced: Node) -> None:
        """Raise OSError where somebody uses by now what the copy is to replace."""
        if not can_replace(self.graph, self.source, replaced):
            sys.stderr.write(
                f"pyvm: Can no longer replace '{replaced.name}' by '{self.target.name}', because it can no longer be"
                " guaranteed that doing so would not lead to an abrupt change of visible data\n"
            )
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _give_backing(self) -> None:
        """Let the copy stand on what it is to stand on."""
        mirror, target = self.mirror, self.target
        if not hasattr(target, "set_backing"):
            return
        if mirror.backing == "source":
            surgery.set_backing(self.storage, target, self.source if mirror.sync == "none" else mirror.base)
        elif mirror.backing == "open" and target.backing is None:
            opened = surgery.open_backing(self.storage, target)
            if opened is not None:
                surgery.set_backing(self.storage, target, opened)
                self.storage.release(opened)  # the target holds it

    def clean(self) -> None:
        """Take the filter out, and let all nodes go."""
        self.filter.active = False
        self.filter.stopped = True
        self.share_all()
        bitmaps.detach(self.source, self.bitmap)
        self.graph.refresh()
        surgery.drop_filter(self.storage, self.filter)
        read_only = self.mirror.read_only_before and not self._pivoted
        target = self.target.hold()
        if self._to_replace is not None:
            self.storage.release(self._to_replace)
        super().clean()
        if read_only:
            self.storage.set_read_only(target, True)
        self.storage.release(target)


def _zero(node: Node, offset: int, length: int) -> Callable[[], None]:
    return lambda: node.write_zeroes(offset, length, True)


class ActiveCommitJob(MirrorJob):
    """Writes what an image that is in use has into one below it, which takes its place in the end."""

    kind: ClassVar[str] = "commit"
