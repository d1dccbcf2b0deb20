"""Copying images: threads read, find zeros and compress; the main thread writes, in order."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyvm.tools.img.console import Progress, warn
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.runs import Content, Disks, Layout, aligned
from pyvm.tools.img.workers import Ticket, Workers
from pyvm.tools.img.zeros import find_runs, is_zero

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.node import Node

_CHUNK = 2 << 20
"""Most bytes of one read."""
_SECTOR = 512


@dataclass(frozen=True)
class Settings:
    """How to copy."""

    layout: Layout = field(default_factory=Layout)
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


@dataclass(slots=True)
class _Piece:
    """A part of a chunk: zeros, data, or a cluster of data in compressed form (empty where it does not get smaller)."""

    start: int
    end: int
    zero: bool
    packed: bytes = b""


@dataclass(slots=True)
class _Chunk:
    """What was read."""

    buffer: bytearray
    pieces: list[_Piece]
    errors: list[tuple[int, str]]
    """Which sectors could not be read, and why."""


@dataclass(slots=True)
class _Task:
    """A run that is on its way; data has a ticket for what is read."""

    start: int
    end: int
    content: Content
    ticket: Ticket[_Chunk] | None = None


class Copier:
    """Copies the disk `source` to `target`.

    Only the main thread uses these; each reading thread opens the source once more with `open_source`.
    """

    def __init__(
        self, source: Disks, open_source: Callable[[], Disks], target: Node, settings: Settings, progress: Progress
    ) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._progress = progress
        self._compress = settings.compress
        self._workers: Workers[Disks, _Chunk] = Workers(
            min(settings.in_flight, os.cpu_count() or 1), open_source, Disks.close
        )
        self._pending: deque[_Task] = deque()
        self._buffers: list[bytearray] = []
        self._done = 0
        self._total = 0
        self._pace = Pace(settings.rate)

    def run(self) -> None:
        """Copy everything.  Raises ImgError."""
        if self._progress.enabled:
            self._total = sum(end - start for start, end, content in self._runs() if self._counts(content))
        try:
            for start, end, content in self._runs():
                step = self._chunk_size if self._is_written(content) else end - start
                for part in range(start, end, step):
                    self._begin(part, min(part + step, end), content)
            while self._pending:
                self._finish_one()
        finally:
            self._workers.close()

    @property
    def _chunk_size(self) -> int:
        return max(_CHUNK, self._compress.cluster_size if self._compress is not None else 0)

    def _runs(self) -> Iterator[tuple[int, int, Content]]:
        unit = self._compress.cluster_size if self._compress is not None else 1
        return aligned(self._source.runs(self._settings.layout), unit, self._source.size, self._chunk_size)

    def _counts(self, content: Content) -> bool:
        """Whether what is there counts in the progress."""
        return content is Content.DATA or (content is Content.ZERO and not self._settings.target_is_zero)

    def _is_written(self, content: Content) -> bool:
        """Whether bytes are written, and not only the fact that there are zeros."""
        return content is Content.DATA or (content is Content.ZERO and not self._settings.sparse)

    def _begin(self, start: int, end: int, content: Content) -> None:
        if len(self._pending) >= self._settings.in_flight:
            self._finish_one()
        ticket = None
        if content is Content.DATA:
            buffer = self._buffers.pop() if self._buffers else bytearray(self._chunk_size)
            ticket = self._workers.submit(lambda source: self._read(source, start, end, buffer))
        self._pending.append(_Task(start, end, content, ticket))

    # ---- In the threads

    def _read(self, source: Disks, start: int, end: int, buffer: bytearray) -> _Chunk:
        length = end - start
        chunk = _Chunk(buffer, [], [])
        with memoryview(buffer) as view:
            self._fill(source, start, view[:length], chunk)
        if self._compress is not None:
            chunk.pieces = list(self._packed(self._compress, buffer, length))
        elif self._settings.sparse:
            runs = find_runs(buffer, length, self._settings.unit, self._settings.sparse)
            chunk.pieces = [_Piece(*run) for run in runs]
        else:
            chunk.pieces = [_Piece(0, length, False)]
        return chunk

    def _fill(self, source: Disks, start: int, view: memoryview, chunk: _Chunk) -> None:
        try:
            source.read(start, view)
            return
        except OSError as error:
            if not self._settings.layout.salvage:
                raise ImgError(f"error while reading at byte {start}: {error.strerror}") from None
        for position in range(0, len(view), _SECTOR):
            part = view[position : position + _SECTOR]
            try:
                source.read(start + position, part)
            except OSError as error:
                part[:] = bytes(len(part))
                chunk.errors.append((start + position, str(error.strerror)))

    def _packed(self, target: Qcow2Node, buffer: bytearray, length: int) -> Iterator[_Piece]:
        """Yield the clusters of a chunk in compressed form, and those that are zeros."""
        unit = target.cluster_size
        with memoryview(buffer) as view:
            for start in range(0, length, unit):
                end = min(start + unit, length)
                if self._settings.sparse and is_zero(buffer, start, end):
                    yield _Piece(start, end, True)
                    continue
                data = view[start:end] if end - start == unit else bytes(view[start:end]).ljust(unit, b"\0")
                yield _Piece(start, end, False, target.compress(data) or b"")

    # ---- In the main thread

    def _finish_one(self) -> None:
        task = self._pending.popleft()
        try:
            if task.ticket is not None:
                self._write_chunk(task, task.ticket.wait())
            elif self._is_written(task.content):
                self._write(task.start, memoryview(bytes(task.end - task.start)))
            elif task.content is Content.ZERO:
                self._write_zeroes(task.start, task.end)
        except OSError as error:
            raise ImgError(f"error while writing at byte {task.start}: {error.strerror}") from None
        if self._counts(task.content):
            self._done += task.end - task.start
            self._progress.part(self._done, self._total)

    def _write_chunk(self, task: _Task, chunk: _Chunk) -> None:
        for position, reason in chunk.errors:
            if not self._settings.layout.quiet:
                warn(f"error while reading offset {position}: {reason}")
        with memoryview(chunk.buffer) as view:
            for piece in chunk.pieces:
                start = task.start + piece.start
                if piece.zero:
                    self._write_zeroes(start, task.start + piece.end)
                elif self._compress is not None and piece.packed and self._is_cluster(start, task.start + piece.end):
                    self._compress.write_compressed(start, view[piece.start : piece.end], packed=piece.packed)
                    self._written(piece.end - piece.start)
                else:
                    self._write(start, view[piece.start : piece.end])
        self._buffers.append(chunk.buffer)

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
