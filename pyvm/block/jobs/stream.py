"""Job *stream*: what layers below an image have is put into the image, which does not need them then."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyvm.block.drivers.copy_on_read import CopyOnReadNode
from pyvm.block.errors import BlockError
from pyvm.block.filename import name_of
from pyvm.block.jobs import surgery
from pyvm.block.jobs.block_job import BlockJob, JobOptions, OnError, check_nodes_together
from pyvm.block.jobs.waits import Body
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, Access, Node, Permission
from pyvm.block.status import backing_of, skip_filters
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.jobs.manager import Jobs
    from pyvm.machine.storage import Storage

_CHUNK = 512 << 10


@record
class StreamOptions:
    """What is put where."""

    base: Node | None
    """What stays below the image; None: nothing."""
    on_error: OnError = "report"
    backing_file: str | None = None
    """The name of `base` for the header; None: the one by which one would open it."""


@record
class _Step:
    length: int
    copied: bool = False
    error: OSError | None = None


class StreamJob(BlockJob):
    """Puts into `top` what is between it and the base."""

    kind: ClassVar[str] = "stream"

    def __init__(self, jobs: Jobs, options: JobOptions, top: Node, stream: StreamOptions) -> None:
        self.stream = stream
        self.top = top
        image = skip_filters(top)
        assert image is not None
        self.image = image
        self._offset = 0
        self._failed = False
        self._data = bytearray(_CHUNK)
        self.filter: CopyOnReadNode | None = None
        chain = surgery.chain(top)
        self._between = chain[1 : chain.index(stream.base)] if stream.base is not None else chain[1:]
        self._above_base = [top, *self._between][-1]
        surgery.check_links(top, self._between)
        jobs.check_identifier(options.id)
        context = check_nodes_together(jobs, top, ())
        self._was_read_only = top.read_only
        if self._was_read_only:
            jobs.storage.set_read_only(top, False)
        try:
            self._insert_filter(jobs, options)
        except BlockError:
            self._restore(jobs.storage)
            raise
        try:
            super().__init__(jobs, options, context)
        except BlockError:
            surgery.drop_filter(jobs.storage, self.filter)  # type: ignore[arg-type]
            self._restore(jobs.storage)
            raise
        try:
            self._use_nodes()
        except BlockError:
            self.forget()
            self.clean()
            # As with QEMU, the image stays in use.
            jobs.leave_behind(top)
            raise

    def _insert_filter(self, jobs: Jobs, options: JobOptions) -> None:
        layers = [node for node in (self.top, *self._between) if not node.is_filter]
        bottom = layers[-1] if layers else self.top
        made = CopyOnReadNode(self.top.hold(), bottom=bottom)
        made.options = {"driver": "copy-on-read", "bottom": bottom.name}
        surgery.insert_filter(jobs.storage, made, options.filter_name)
        self.filter = made

    def _restore(self, storage: Storage) -> None:
        if self._was_read_only and not self.top.read_only:
            storage.set_read_only(self.top, True)

    def _base(self) -> Node | None:
        """Return what stays below the image: other jobs may have put something else in its place."""
        return surgery.backing_child(self._above_base) if self.stream.base is not None else None

    def _use_nodes(self) -> None:
        assert self.filter is not None
        self.use_as_device(self.filter, Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS), stays=False)
        self.use(self.filter, Access(NO_PERMISSIONS, ALL_PERMISSIONS), "main node")
        self.use(self.top, Access(NO_PERMISSIONS, ALL_PERMISSIONS), "active node")
        shared = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED
        for node in self._between:
            self.use(node, Access(NO_PERMISSIONS, shared), "intermediate node")

    # ---- The body

    def body(self) -> Body:
        """Put everything into the image."""
        if self.image.backing is None:
            return
        size = self.image.size
        self.remaining = size
        ignored: OSError | None = None
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
                action = self.handle(self.stream.on_error, True, step.error)
                if action == "report":
                    raise step.error
                if action == "ignore":
                    ignored = ignored or step.error
                    self._skip()
                else:
                    yield from self.pause_point()
            yield from self.limit(moved)
        if ignored is not None:
            # The image still needs what is below.
            raise ignored

    def _skip(self) -> None:
        length = min(_CHUNK, self.image.size - self._offset)
        self.progress(length)
        self._offset += length

    def _step(self) -> _Step:
        offset, image = self._offset, self.image
        if offset >= image.size or self._failed:
            return _Step(0)
        copied = False
        try:
            extent = image.block_status(offset, _CHUNK)
            length = extent.length
            below = backing_of(image)
            if not extent.allocated and below is not None:
                if offset < below.size:
                    found = self.ahead.status(below, offset, min(length, below.size - offset), self._base())
                    length, copied = found.length, found.present
                if copied and found.zero and offset % (image.cluster_size or 1) == 0:
                    image.write_zeroes(offset, length, False)
                elif copied:
                    assert self.filter is not None
                    self.filter.readv(offset, (memoryview(self._data)[:length],))
        except OSError as error:
            self._failed = True
            return _Step(0, error=error)
        self._offset += length
        return _Step(length, copied)

    # ---- The end

    def prepare(self) -> None:
        """Let the image stand on the base alone.  Raises OSError or BlockError."""
        storage = self.storage
        self.share_all()
        self._drop_filter()
        image, base = self.image, self._base()
        if image.backing is None:
            return
        surgery.set_backing(storage, image, base)
        shown = base
        while shown is not None and shown.implicit and shown.file is not None:
            shown = shown.file
        name, image_format = "", ""
        if shown is not None:
            unfiltered = skip_filters(shown) or shown
            name, image_format = self.stream.backing_file or name_of(unfiltered), unfiltered.driver
        surgery.rename_backing(storage, image, name, image_format)

    def _drop_filter(self) -> None:
        if self.filter is not None:
            made, self.filter = self.filter, None
            self.graph.unblock(self)
            surgery.drop_filter(self.storage, made)

    def clean(self) -> None:
        """Let all nodes go, and the image be as it was."""
        self.share_all()
        self._drop_filter()
        top = self.top.hold()
        super().clean()
        self._restore(self.storage)
        self.storage.release(top)
