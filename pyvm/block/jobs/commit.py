"""Job *commit* of images that are not in use by themselves: what some layers have is written into the one below them.

In the end these layers are gone from the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.filename import name_of
from pyvm.block.jobs import surgery
from pyvm.block.jobs.block_job import ZERO_BYTES, BlockJob, JobOptions, OnError, check_nodes_together
from pyvm.block.jobs.pace import SLICE
from pyvm.block.jobs.read_ahead import CopyError
from pyvm.block.jobs.waits import Body
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, UNUSED, Access, Child, Node, Permission, Role
from pyvm.block.status import skip_filters
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.jobs.manager import Jobs

_CHUNK = 512 << 10
"""Most of the disk that one step goes over where the speed is limited."""


class CommitTop(FilterNode):
    """Stands in front of the topmost layer that is written down: those above do not mind what happens below."""

    driver: ClassVar[str] = "commit_top"

    def __init__(self, file: Node) -> None:
        super().__init__(file, read_only=True)
        self.children = [Child(Role.FILTERED, file, "backing")]

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Let everything be done below."""
        return UNUSED


@record
class CommitOptions:
    """What is written where."""

    base: Node
    top: Node
    on_error: OnError = "report"
    backing_file: str | None = None
    """The name of `base` for the header of the image above; None: the one by which one would open it."""


@record
class _Step:
    length: int
    copied: bool = False
    error: OSError | None = None
    of_read: bool = False


class CommitJob(BlockJob):
    """Writes what is between `base` and `top` into `base`; `root` is the disk with this chain."""

    kind: ClassVar[str] = "commit"

    def __init__(self, jobs: Jobs, options: JobOptions, root: Node, commit: CommitOptions) -> None:
        self.commit_options = commit
        self.base, self.top = commit.base, commit.top
        self._offset = 0
        self._failed = False
        self._dropped = False
        context = check_nodes_together(jobs, root, (commit.base,))
        super().__init__(jobs, options, context)
        storage = self.storage
        self._was_read_only = self.base.read_only
        self.filter: CommitTop | None = None
        try:
            if self._was_read_only:
                storage.set_read_only(self.base, False)
            filter_node = CommitTop(self.top.hold())
            surgery.insert_filter(storage, filter_node, options.filter_name)
            self.filter = filter_node
            self._use_nodes(root)
        except BlockError:
            self.forget()
            self.clean()
            raise

    def _use_nodes(self, root: Node) -> None:
        nodes = surgery.chain(self.top)
        readable = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED
        used = Permission.CONSISTENT_READ | Permission.WRITE
        if self.base.size < self.top.size:
            used |= Permission.RESIZE
        self.use(root, Access(NO_PERMISSIONS, ALL_PERMISSIONS), "main node")
        between = Permission.WRITE_UNCHANGED | Permission.WRITE | Permission.RESIZE
        for node in nodes[: nodes.index(self.base)]:
            # A filter right above the base shows what that does.
            same = skip_filters(node) is skip_filters(self.base)
            shared = between | Permission.CONSISTENT_READ if same else between
            self.use(node, Access(NO_PERMISSIONS, shared), "intermediate node")
        self.use(self.base, Access(used, readable), "base")

    # ---- The body

    def body(self) -> Body:
        """Write everything down."""
        size = self.top.size
        self.remaining = size
        if self.base.size < size:
            yield from self.do(lambda: self.base.truncate(size))
        while self._offset < size:
            self.check_still_wanted()
            self._failed = False
            steps: list[_Step] = yield self.io(*[self._step] * self.batch)
            moved = 0
            for step in steps:
                self.progress(step.length)
                moved += step.length if step.copied else 0
                if step.error is None:
                    continue
                if self.handle(self.commit_options.on_error, step.of_read, step.error) == "report":
                    raise step.error
                yield from self.sleep(SLICE)
            yield from self.limit(moved)
        # So that little is left to be written once everything has to stand still.
        yield from self.do(self.base.flush)

    def _step(self) -> _Step:
        offset = self._offset
        if offset >= self.top.size or self._failed:
            return _Step(0)
        try:
            length, copied = self._copy(offset)
        except CopyError as failure:
            self._failed = True
            return _Step(0, error=failure.error, of_read=failure.of_read)
        self._offset += length
        return _Step(length, copied)

    def _copy(self, offset: int) -> tuple[int, bool]:
        """Write down what there is; return how far that goes, and whether there was anything.  Raises CopyError."""
        try:
            extent = self.ahead.status(self.top, offset, _CHUNK if self.pace.speed else ZERO_BYTES, self.base)
        except OSError as error:
            raise CopyError(error, True) from None
        length = extent.length
        if extent.present and extent.zero:
            try:
                self.base.write_zeroes(offset, length, True)
            except OSError as error:
                raise CopyError(error, False) from None
        elif extent.present:
            length = min(length, self.step_bytes)
            self.ahead.copy(self.top, offset, length, offset if self.pace.speed else self.top.size, self.base)
        return length, extent.present

    # ---- The end

    def prepare(self) -> None:
        """Take the layers out of the chain.  Raises OSError or BlockError."""
        made = self.filter
        assert made is not None
        storage = self.storage
        self.share_all()
        storage.drain()
        with storage.quiet():
            self.base.flush()
        base = self.base
        while base.implicit and base.file is not None:
            base = base.file
        name = self.commit_options.backing_file or name_of(base)
        for parent, _ in list(self.graph.parents(made)):
            surgery.rename_backing(storage, parent, name, base.driver)
        origin = self.base.inherits_from
        while origin is not None and origin is not self.top:
            origin = origin.inherits_from
        surgery.replace_node(storage, made, self.base)
        if origin is not None:
            # What takes the place of an image that was opened with the one above follows that from now on.
            self.base.inherits_from = self.top.inherits_from
        self.filter = None
        storage.release(made)
        self._dropped = True

    def clean(self) -> None:
        """Let all nodes go, and the base be as it was."""
        if self.filter is not None:
            made, self.filter = self.filter, None
            self.share_all()
            surgery.drop_filter(self.storage, made)
        base = self.base.hold()
        super().clean()
        if self._was_read_only and not base.read_only:
            self.storage.set_read_only(base, True)
        self.storage.release(base)
