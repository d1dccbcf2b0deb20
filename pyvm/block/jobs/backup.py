"""Job *backup*: copies a disk as it is when the job is started, whatever the guest writes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.drivers.copy_before_write import CopyBeforeWriteNode
from pyvm.block.errors import BlockError
from pyvm.block.jobs import surgery
from pyvm.block.jobs.block_job import BlockJob, JobOptions, OnError, check_nodes_together
from pyvm.block.jobs.read_ahead import CopyError, bounded_look
from pyvm.block.jobs.waits import Body
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, Access, Node
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.jobs.manager import Jobs

BitmapMode = Literal["on-success", "never", "always"]
_LOOK = 64


@record
class BackupOptions:
    """What is backed up how."""

    sync: Literal["full", "top", "none", "bitmap"]
    bitmap: DirtyBitmap | None = None
    bitmap_mode: BitmapMode | None = None
    compress: bool = False
    on_source_error: OnError = "report"
    on_target_error: OnError = "report"
    max_chunk: int = 0
    """Most bytes that are copied at once; 0: as many as there are in a step."""
    max_workers: int = 64
    """How many copies may be on their way; one reads and writes in turns."""
    use_copy_range: bool = False
    """Whether the host copies, where it can."""


class BackupJob(BlockJob):
    """Copies `source` to `target`."""

    kind: ClassVar[str] = "backup"

    def __init__(self, jobs: Jobs, options: JobOptions, source: Node, target: Node, backup: BackupOptions) -> None:
        self.backup = backup
        self.source, self.target = source, target
        self._failure: OSError | None = None
        self._late: list[CopyError] = []
        """Writes that failed after they counted as done."""
        context = check_nodes_together(jobs, source, (target,))
        bitmap = backup.bitmap
        jobs.check_identifier(options.id)
        self.filter = CopyBeforeWriteNode(source.hold(), target.hold(), graph=jobs.storage.graph)
        self.copier = self.filter.copier
        self.copier.compress = backup.compress
        self.copier.on_host = backup.use_copy_range
        if bitmap is not None:
            bitmap.freeze()
        try:
            self._insert(jobs, options)
        except BlockError:
            if bitmap is not None:
                bitmap.reclaim()
            raise
        try:
            self._create(jobs, options, context)
        except BlockError:
            if bitmap is not None:
                bitmap.reclaim()
            surgery.drop_filter(jobs.storage, self.filter)
            raise
        if backup.max_workers > 1:
            self.ahead.put_off(target, self._write_has_failed)
        if backup.sync == "bitmap" and bitmap is not None:
            self.copier.wanted.clear_all()
            self.copier.wanted.merge(bitmap)

    def _insert(self, jobs: Jobs, options: JobOptions) -> None:
        if self.backup.max_chunk and self.backup.max_chunk < self.copier.cluster:
            limit, unit = self.backup.max_chunk, self.copier.cluster
            self._give_up_filter()
            raise BlockError(f"Required max-chunk ({limit}) is less than backup cluster size ({unit})")
        try:
            surgery.insert_filter(jobs.storage, self.filter, options.filter_name)
        except surgery.NotMadeError as error:
            raise BlockError(f"Could not create node: {error}") from None
        except BlockError as error:
            raise BlockError(f"Could not replace node: {error}") from None

    def _give_up_filter(self) -> None:
        self.source.other_bitmaps.remove(self.copier.wanted)
        for child in self.filter.children:
            child.node.references -= 1

    def _create(self, jobs: Jobs, options: JobOptions, context: object) -> None:
        super().__init__(jobs, options, context)  # type: ignore[arg-type]
        try:
            self.use(self.filter, Access(NO_PERMISSIONS, ALL_PERMISSIONS), "main node")
            self.use(self.target, Access(NO_PERMISSIONS, ALL_PERMISSIONS), "target")
        except BlockError:
            self.forget()
            self.let_nodes_go()
            raise

    # ---- What clients see

    @property
    def current_progress(self) -> int:
        """How much was copied, by this job or on behalf of the guest's writes."""
        return self.copier.copied

    @property
    def total_progress(self) -> int:
        """How much there is altogether."""
        return self.copier.copied + self.copier.wanted.count

    # ---- The body

    def start(self) -> None:
        """Begin, with a pause: the disks stand still until everything is in its place, and :meth:`let_go` is called."""
        self.pauses += 1
        super().start()

    def body(self) -> Body:
        """Copy everything that is wanted, or wait for the end where only what is overwritten is."""
        if self.backup.sync == "none":
            while not self.stopping:
                yield from self.sleep(None)
            self.check_still_wanted()
        if self.backup.sync == "top":
            yield from self._skip_unallocated()
        while self.copier.wanted.any:
            self.check_still_wanted()
            yield from self._round()
            self._raise_failure()
        self.check_still_wanted()

    def refuse_soft_cancel(self, force: bool) -> bool:
        """It always gives up at once."""
        self.target.cancel_in_flight()
        return super().refuse_soft_cancel(force)

    def limit(self, moved: int) -> Body:
        """Wait as long as the speed limit wants: a pause meanwhile makes that no shorter, another limit does."""
        speed = self.pace.speed
        until = self.host.now() + (self.pace.account(moved, self.host.now()) if moved else 0.0)
        yield from self.pause_point()
        while (seconds := until - self.host.now()) > 0 and self.pace.speed == speed and not self.stopping:
            yield from self.sleep(seconds)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _skip_unallocated(self) -> Body:
        offset = 0
        while offset < self.source.size:
            found: int | None = yield from self.do(_looker(self, offset))
            self.check_still_wanted()
            assert found is not None
            offset = found
            yield from self.pause_point()

    def look(self, offset: int) -> int:
        """Find out for some clusters whether they are wanted; return how far this looked."""
        for _ in range(_LOOK):
            if offset >= self.source.size:
                break
            length = bounded_look(self.source, self.source.size - offset)
            offset = self.copier.drop_unallocated(offset, length)
        return offset

    def _round(self) -> Body:
        failures: list[CopyError] = []
        moved: list[int] = []
        try:
            moved = yield self.io(*[self._copy_some] * self.batch)
        except CopyError as error:
            failures.append(error)
        failures += self._late
        self._late = []
        for failure in failures:
            policy = self.backup.on_source_error if failure.of_read else self.backup.on_target_error
            if self.handle(policy, failure.of_read, failure.error) == "report":
                self._failure = failure.error
                return
        if failures:
            yield from self.sleep(0.1)
        yield from self.limit(sum(moved))

    def _write_has_failed(self, offset: int, length: int, error: OSError) -> None:
        """What was on its way to the copy is not there; with the lock of the context held."""
        self.copier.wanted.set(offset, length)
        self.copier.copied -= length
        self._late.append(CopyError(error, False))

    def _copy_some(self) -> int:
        if self._late:
            return 0  # what failed is tried again another time
        limit = self.step_bytes
        if self.backup.max_chunk:
            limit = min(limit, self.backup.max_chunk)
        self.ahead.enabled = self.backup.max_workers > 1 and not self.pace.speed
        return self.copier.copy(0, self.source.size, max(limit, self.copier.cluster), self.ahead) or 0

    # ---- The end

    def commit(self) -> None:
        """The bitmap begins anew, where it is to."""
        self._settle_bitmap(good=True)

    def abort(self) -> None:
        """What was not copied stays in the bitmap."""
        self._settle_bitmap(good=False)

    def _settle_bitmap(self, *, good: bool) -> None:
        bitmap, mode = self.backup.bitmap, self.backup.bitmap_mode
        if bitmap is None:
            return
        if (good or mode == "always") and mode != "never":
            bitmap.abdicate()
            if not good:
                bitmap.merge(self.copier.wanted)
        else:
            bitmap.reclaim()

    def clean(self) -> None:
        """Take the filter out, and let all nodes go."""
        self.filter.stopped = True
        surgery.drop_filter(self.storage, self.filter)
        super().clean()


def _looker(job: BackupJob, offset: int) -> Callable[[], int]:
    return lambda: job.look(offset)
