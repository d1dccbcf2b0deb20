"""Copying by the host: ``copy_file_range`` between plain files, which may share blocks instead of copying them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.tools.img.console import Progress
from pyvm.tools.img.copying import Pace, Settings
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import as_file
from pyvm.tools.img.runs import Content, Disks, Run

if TYPE_CHECKING:
    from pyvm.block.node import Node

_MOST = 16 << 20
"""Most bytes asked for at once."""


class HostCopier:
    """Copies the disk `source` to `target`, where they are plain files by the host."""

    def __init__(self, source: Disks, target: Node, settings: Settings, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._progress = progress
        self._pace = Pace(settings.rate)

    def run(self) -> None:
        """Copy everything.  Raises ImgError."""
        layout = self._settings.layout
        total = 0
        if self._progress.enabled:
            total = sum(run.end - run.start for run in self._source.runs(layout) if self._counts(run))
        done = 0
        for run in self._source.runs(layout):
            if run.content is Content.DATA:
                self._copy(run)
            elif run.content is Content.ZERO and not self._settings.target_is_zero:
                self._zero(run)
            if self._counts(run):
                done += run.end - run.start
                self._progress.part(done, total)

    def _counts(self, run: Run) -> bool:
        return run.content is Content.DATA or (run.content is Content.ZERO and not self._settings.target_is_zero)

    def _zero(self, run: Run) -> None:
        try:
            self._target.write_zeroes(run.start, run.end - run.start, False)
        except OSError as error:
            raise ImgError(f"error while writing at byte {run.start}: {error.strerror}") from None

    def _copy(self, run: Run) -> None:
        start = self._copy_on_host(run)
        while start < run.end:
            count = min(_MOST, run.end - start)
            buffer = memoryview(bytearray(count))
            try:
                self._source.read(start, buffer)
            except OSError as error:
                raise ImgError(f"error while reading at byte {start}: {error.strerror}") from None
            try:
                self._target.writev(start, (buffer,))
            except OSError as error:
                raise ImgError(f"error while writing at byte {start}: {error.strerror}") from None
            self._pace.sent(count)
            start += count

    def _copy_on_host(self, run: Run) -> int:
        """Copy what the host can; return how far that is."""
        target = self._target
        if run.node is None or target.driver != "raw" or target.file is None:
            return run.start
        begin = target.block_status(0, target.size) if target.size else None
        origin, into = as_file(run.node), as_file(target.file)
        if origin is None or into is None or begin is None or begin.offset is None:
            return run.start
        position = run.start
        while position < run.end:
            place = run.place + position - run.start
            try:
                count = into.copy_range(origin, place, begin.offset + position, min(_MOST, run.end - position))
            except OSError:
                break
            if not count:
                break
            self._pace.sent(count)
            position += count
        return position
