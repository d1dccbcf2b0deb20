"""Copying images: threads read, find zeros and compress, and one of them at a time writes, in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain

from pyvm.annotations import TYPE_CHECKING, NamedTuple
from pyvm.tools.img.console import Progress, warn
from pyvm.tools.img.direct import Batch, find_way
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.runs import Content, Disks, Layout, Run, aligned
from pyvm.tools.img.workers import Relay
from pyvm.tools.img.zeros import find_runs, is_zero

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.node import Node

_CHUNK = 2 << 20
"""Most bytes of one read."""
_MOST_READ_AHEAD = 3
"""Most chunks in memory where reading them is all that there is to do before they are written: few stay in caches."""
_SECTOR = 512


class Settings(NamedTuple):
    """How to copy."""

    layout: Layout = Layout()
    sparse: int = 4096
    """Least bytes of zeros that become a hole; 0: everything is written."""
    unit: int = 4096
    """Unit in which zeros are looked for."""
    target_is_zero: bool = False
    """Whether the target reads as zeros where nothing is written."""
    in_flight: int = 8
    """How many chunks are on their way at once."""
    rate: int = 0
    """Most bytes to write in a second; 0: no limit."""
    write_through: bool = False
    """Whether each write is on stable storage before the next."""
    compress: Qcow2Node | None = None
    """The target, where clusters are written compressed."""


class _Task:
    """A run that is on its way."""

    __slots__ = ("buffer", "content", "end", "errors", "packed", "pieces", "start")

    def __init__(self, start: int, end: int, content: Content) -> None:
        self.start = start
        self.end = end
        self.content = content
        self.buffer: bytearray | None = None
        """What was read."""
        self.pieces: Iterable[tuple[int, int, bool]] = ()
        """Where in it data and zeros are: start, end, whether it is zeros."""
        self.packed: dict[int, bytes] = {}
        """The clusters in compressed form that get smaller by it, by where they start in the buffer."""
        self.errors: list[tuple[int, str]] = []
        """Which sectors could not be read, and why."""

    @property
    def length(self) -> int:
        """How many bytes of the disk it is."""
        return self.end - self.start


class Copier:
    """Copies the disk `source` to `target`.

    Several threads read.  Where `source` is not made for that, each opens it once more with `open_source`.
    """

    def __init__(
        self, source: Disks, open_source: Callable[[], Disks], target: Node, settings: Settings, progress: Progress
    ) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._progress = progress
        self._compress = settings.compress
        self._open_source = open_source
        simple = settings.target_is_zero and 0 < settings.sparse <= settings.unit and not settings.layout.salvage
        simple = simple and not settings.rate and not settings.write_through and settings.compress is None
        self._direct = find_way(source, target, settings.unit) if simple else None
        self._buffers: list[bytearray] = []
        self._done = 0
        self._total = 0
        self._pace = Pace(settings.rate)
        salvage = settings.layout.salvage
        self._in_flight = 1 if salvage else settings.in_flight  # one after the other: what is wrong is said in order

    def run(self) -> None:
        """Copy everything.  Raises ImgError."""
        # What cannot be looked up is said twice then, as scripts may know it.
        if self._progress.enabled or self._settings.layout.salvage:
            self._total = sum(end - start for start, end, content in self._runs() if self._counts(content))
        count = min(self._in_flight, os.cpu_count() or 1)
        if self._source.takes_threads or count == 1:
            self._relay(count, self._source, lambda: self._source, lambda _: None)
            return
        # Any thread asks the source what is where, while the others read.
        own = self._open_source()
        try:
            self._relay(count, own, self._open_source, Disks.close)
        finally:
            own.close()

    def _relay(self, count: int, own: Disks, begin: Callable[[], Disks], end: Callable[[Disks], None]) -> None:
        ahead = self._in_flight
        relay: Relay[Disks, _Task | Batch] = Relay(
            count,
            ahead if self._compress is not None else min(ahead, _MOST_READ_AHEAD),
            context=own,
            begin=begin,
            end=end,
            prepare=self._prepare,
            finish=self._finish,
        )
        try:
            relay.run(self._tasks())
        finally:
            if self._direct is not None:
                with suppress(OSError):  # what is left over is leaked, and there is an error that says more
                    self._direct.abandon()

    @property
    def _chunk_size(self) -> int:
        return max(_CHUNK, self._compress.cluster_size if self._compress is not None else 0)

    def _runs(self, runs: Iterator[Run] | None = None, start: int = 0) -> Iterator[tuple[int, int, Content]]:
        """Yield all runs, or those given, which begin at `start`."""
        unit = self._compress.cluster_size if self._compress is not None else 1
        runs = self._source.runs(self._settings.layout) if runs is None else runs
        most = 1 if self._settings.layout.salvage else self._chunk_size
        return aligned(runs, unit, self._source.size, most, start)

    def _counts(self, content: Content) -> bool:
        """Whether what is there counts in the progress."""
        return content is Content.DATA or (content is Content.ZERO and not self._settings.target_is_zero)

    def _is_written(self, content: Content) -> bool:
        """Whether bytes are written, and not only the fact that there are zeros."""
        return content is Content.DATA or (content is Content.ZERO and not self._settings.sparse)

    def _tasks(self) -> Iterator[_Task | Batch]:
        """Yield what there is to do."""
        runs = self._source.runs(self._settings.layout)
        position = 0
        if self._direct is not None:
            yield from self._direct.batches(runs)
            if self._direct.rest is None:
                return
            position = self._direct.rest.start
            runs = chain((self._direct.rest,), runs)
        for start, end, content in self._runs(runs, position):
            if self._is_written(content):
                step = self._chunk_size
                for part in range(start, end, step):
                    yield _Task(part, min(part + step, end), content)
            elif self._counts(content):
                yield _Task(start, end, content)

    # ---- In any thread

    def _prepare(self, source: Disks, task: _Task | Batch) -> None:
        if isinstance(task, Batch):
            assert self._direct is not None
            try:
                self._direct.copy(task)
            except OSError as error:
                raise ImgError(f"error while writing at byte {task.start}: {error.strerror}") from None
            return
        if task.content is not Content.DATA and not (self._compress is not None and self._is_written(task.content)):
            return
        length = task.length
        try:
            task.buffer = self._buffers.pop()
        except IndexError:
            task.buffer = bytearray(self._chunk_size)
        with memoryview(task.buffer) as view:
            if task.content is Content.DATA:
                self._fill(source, task, view[:length])
            else:
                view[:length] = bytes(length)
        if self._compress is not None:
            task.pieces = list(self._packed(self._compress, task, length))
        elif self._settings.sparse:
            task.pieces = list(find_runs(task.buffer, length, self._settings.unit, self._settings.sparse))
        else:
            task.pieces = ((0, length, False),)

    def _fill(self, source: Disks, task: _Task, view: memoryview) -> None:
        try:
            source.read(task.start, view)
            return
        except OSError as error:
            if not self._settings.layout.salvage:
                raise ImgError(f"error while reading at byte {task.start}: {error.strerror}") from None
        for position in range(0, len(view), _SECTOR):
            part = view[position : position + _SECTOR]
            try:
                source.read(task.start + position, part)
            except OSError as error:
                part[:] = bytes(len(part))
                task.errors.append((task.start + position, str(error.strerror)))

    def _packed(self, target: Qcow2Node, task: _Task, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the clusters of a chunk, with those that are not zeros compressed."""
        unit = target.cluster_size
        buffer = task.buffer or bytearray()
        with memoryview(buffer) as view:
            for start in range(0, length, unit):
                end = min(start + unit, length)
                if self._settings.sparse and is_zero(buffer, start, end):
                    yield start, end, True
                    continue
                data = view[start:end] if end - start == unit else bytes(view[start:end]).ljust(unit, b"\0")
                packed = target.compress(data)
                if packed is not None:
                    task.packed[start] = packed
                yield start, end, False

    # ---- In one thread at a time, in order

    def _finish(self, task: _Task | Batch) -> None:
        try:
            if isinstance(task, Batch):
                assert self._direct is not None
                self._direct.settle(task)
            elif task.buffer is not None:
                self._write_chunk(task, task.buffer)
            elif self._is_written(task.content):
                self._write(task.start, memoryview(bytes(task.end - task.start)))
            else:
                self._write_zeroes(task.start, task.end)
        except OSError as error:
            raise ImgError(f"error while writing at byte {task.start}: {error.strerror}") from None
        self._done += task.length
        self._progress.part(self._done, self._total)

    def _write_chunk(self, task: _Task, buffer: bytearray) -> None:
        for position, reason in task.errors:
            if not self._settings.layout.quiet:
                warn(f"error while reading offset {position}: {reason}")
        with memoryview(buffer) as view:
            for first, last, zero in task.pieces:
                start, end = task.start + first, task.start + last
                packed = task.packed.get(first)
                if zero:
                    self._write_zeroes(start, end)
                elif self._compress is not None and packed is not None and self._is_cluster(start, end):
                    self._compress.write_compressed(start, view[first:last], packed=packed)
                    self._written(last - first)
                else:
                    self._write(start, view[first:last])
        self._buffers.append(buffer)

    def _is_cluster(self, start: int, end: int) -> bool:
        """Whether a range is a whole cluster of the target, as far as that reaches."""
        cluster = self._target.cluster_size
        return end - start == cluster or end == self._target.size

    def _write(self, start: int, data: memoryview) -> None:
        self._target.writev(start, (data,))
        self._written(len(data))

    def _written(self, count: int) -> None:
        if self._settings.write_through:
            self._target.flush()
        self._pace.sent(count)

    def _write_zeroes(self, start: int, end: int) -> None:
        if not self._settings.target_is_zero:
            self._target.write_zeroes(start, end - start, False)


class Pace:
    """Keeps to a rate in bytes a second; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._sent = 0
        self._began = 0.0

    def sent(self, count: int) -> None:
        """Wait where `count` bytes more are faster than the rate allows."""
        if not self._rate:
            return
        now = time.monotonic()
        self._began = self._began or now
        self._sent += count
        early = self._sent / self._rate - (now - self._began)
        if early > 0:
            time.sleep(early)
