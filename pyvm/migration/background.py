"""A machine saved while it works: the capability `background-snapshot`.

The guest stops for a moment, in which the state of its components is taken and its memory is protected against writes.
Then it goes on, and memory is written to the stream as it was at that moment: what the guest is about to change is
copied aside first, by a native thread (:class:`pyvm.native.PageKeeper`).  The machine stays what it is; the stream is
one like any other, and becomes a machine by ``-incoming``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.memory import PAGE_SIZE
from pyvm.migration import progress as states
from pyvm.migration.outgoing import MigrationCancelledError, Outgoing
from pyvm.migration.pages import BATCH
from pyvm.native import PageKeeper, check_protect

if TYPE_CHECKING:
    import numpy as np

    from pyvm.migration.channel import Channel
    from pyvm.migration.dirty import DirtyPages
    from pyvm.migration.pages import PageNumbers
    from pyvm.migration.stream import Section

_ASIDE = (64 << 20) // PAGE_SIZE
"""Pages that may lie aside before the guest is held up."""


def check_memory(memory: memoryview) -> None:
    """Raise ConfigError where the host cannot protect this memory."""
    try:
        check_protect(memory)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfigError("Background-snapshot is not compatible with guest memory configuration") from None
        raise ConfigError("Background-snapshot is not supported by host kernel") from None


class BackgroundSnapshot(Outgoing):
    """One snapshot to somewhere else; made in the main loop."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._keeper: PageKeeper | None = None
        self._sections: list[Section] = []
        self._unused: list[tuple[int, PageNumbers]] = []
        self._needed = bytearray()

    # ---- The thread

    def _run(self) -> None:
        channel = self._channel = self._connected()
        self._host.prepare()
        if self._cancelled:
            raise MigrationCancelledError
        pages = self._dirty = self._loop.call(self._take_moment)
        writer = self._open_stream(pages)
        for section in self._sections:
            self._count(writer, lambda section=section: writer.section(section))  # type: ignore[misc]
        for block, numbers in self._unused:
            self._main_sender.send_zeroes(block, numbers)
            self.progress.remaining_pages -= len(numbers)
        self._send_kept(pages)
        self._count(writer, writer.end)
        channel.finish()
        self._loop.call(self._complete_snapshot)

    def _take_moment(self) -> DirtyPages:
        """Take the state, and keep memory as it is now."""
        self._host.check_movable()
        self.progress.set_up()
        self._enter(states.ACTIVE)
        self.progress.stopped()
        self._host.hold()
        try:
            pages = self._host.dirty_pages()
            self.progress.total = sum(map(len, pages.views))
            self.progress.remaining_pages = pages.remaining()
            self._unused = list(pages.untouched())
            self._needed = pages.take_ram()
            self._sections = self._host.sections()
            self._keeper = PageKeeper(pages.views[0], self._needed, _ASIDE)
            self._host.pin_memory(True)
        finally:
            self._host.let_go()
            self.progress.going_on()
        return pages

    def _is_answered(self, channel: Channel) -> bool:
        return False  # who reads it becomes a machine of its own

    def _send_kept(self, pages: DirtyPages) -> None:
        keeper = self._keeper
        assert keeper is not None
        sender = self._main_sender
        for _, numbers in self._paced(lambda batch: self._kept_pages(keeper, batch)):
            keeper.take(numbers, sender.buffer)
            sender.send_copies(0, numbers)
            self.progress.remaining_pages -= len(numbers)
        self._send_pass(pages, limited=True)

    def _kept_pages(self, keeper: PageKeeper, batch: Callable[[], int]) -> Iterator[tuple[int, PageNumbers]]:
        """Yield pages of guest RAM, first those that lie aside."""
        import numpy as np

        left: np.ndarray[Any, np.dtype[np.bool_]] = np.unpackbits(
            np.frombuffer(self._needed, dtype=np.uint8), bitorder="little"
        ).astype(bool)
        aside = np.empty(BATCH, dtype=np.int64)
        rest, place = np.flatnonzero(left), 0
        while place < len(rest):
            count = keeper.saved(aside[: batch()])
            if count:
                numbers = aside[:count]
            else:
                part = rest[place : place + batch()]
                place += len(part)
                numbers = part[left[part]]
            if len(numbers):
                left[numbers] = False
                yield 0, numbers

    def _complete_snapshot(self) -> None:
        if self._cancelled:
            raise MigrationCancelledError
        self._keep_nothing()
        self.progress.completed()
        self._enter(states.COMPLETED)

    def _keep_nothing(self) -> None:
        self._host.pin_memory(False)
        if self._keeper is not None:
            self._keeper.close()

    def _left(self) -> None:
        self._keep_nothing()

    def _close_channels(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        super()._close_channels()
