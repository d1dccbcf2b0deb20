"""The source of a migration: sends the memory of a guest that runs, then stops it and sends the rest.

Passes over memory follow one another, each with the pages that were written during the one before.  When what is left
can be sent within the limit on downtime, the guest stops, and the last pages and the state of all components go.  Where
the other side can answer, it says that it has become the machine before this one stops being it: "LOAD" comes back, and
"STRT" goes out; until then any failure leaves the source as it was.

Where somebody asks for it, the guest stops at once, and memory follows it (:mod:`pyvm.migration.outgoing_late`).

All of it runs in a thread of its own, which holds no lock while it sends; what concerns the machine it has the main
loop do (:class:`Host`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.errors import ConfigError
from pyvm.memory import PAGE_SIZE
from pyvm.migration import progress as states
from pyvm.migration.loop_calls import MachineEndedError, MainLoopCalls
from pyvm.migration.multifd import TOKEN_SIZE, ChannelSet
from pyvm.migration.page_sender import Packing, PageSender
from pyvm.migration.pages import BATCH, ZLIB
from pyvm.migration.progress import Progress
from pyvm.migration.stream import (
    ANSWER_LIMIT,
    FAILED_ANSWER,
    LOADED_ANSWER,
    START_ORDER,
    SYNC,
    RecordReader,
    Section,
    StreamError,
    StreamWriter,
)
from pyvm.migration.worker import MigrationThread
from pyvm.printable import printable

if TYPE_CHECKING:
    from pyvm.migration.channel import Channel
    from pyvm.migration.delta import PageCache
    from pyvm.migration.dirty import DirtyPages
    from pyvm.migration.pages import PageNumbers
    from pyvm.migration.settings import MigrationSettings
    from pyvm.migration.transport import Target

_SLICE = 0.1
"""Seconds for which a share of the bandwidth is given out."""
_SHORT_PASS = 0.1
"""A pass that took no longer leaves so little behind that nobody needs to look before the guest is stopped."""
_THROTTLE_PASSES = 2
_HUNG_UP = (errno.EPIPE, errno.ECONNRESET)
_OTHER_SIDE = "the other side failed"
_MILLISECONDS = 1000


Batches = Callable[[Callable[[], int]], "Iterator[tuple[int, PageNumbers]]"]
"""Yields numbers of pages by block, as many at a time as it is told."""


class MigrationCancelledError(Exception):
    """Somebody gave the migration up."""


class Host(Protocol):
    """The machine that moves.  Called in the main loop, with the machine lock held, but for :meth:`prepare`."""

    def prepare(self) -> None:
        """Load what all of it needs, while the guest runs undisturbed; called in the thread of the migration."""

    def header(self) -> dict[str, Any]:
        """Return what the header of the stream says of the machine."""

    def dirty_pages(self) -> DirtyPages:
        """Return what knows which pages are to be sent."""

    def check_movable(self) -> None:
        """Raise ConfigError where something keeps the machine from moving just now."""

    def stop_to_move(self) -> None:
        """Stop the guest: from now on nothing changes but by this migration."""

    def hold(self) -> None:
        """Let nothing change for a moment: the guest stops, and disks have no requests under way."""

    def let_go(self) -> None:
        """The guest goes on as it was."""

    def pin_memory(self, pinned: bool) -> None:
        """Have devices give no memory back to the host, or let them do so again."""

    def give_disks_up(self) -> None:
        """Let another process have the disks.  Raises ConfigError."""

    def sections(self) -> list[Section]:
        """Return the state of all that is not memory."""

    def moved(self) -> None:
        """The other side is the machine now."""

    def stay(self) -> None:
        """It has failed: take the disks back, and run if the guest ran."""

    def not_resumed(self, reason: str) -> None:
        """A migration whose connection was broken could not be taken up."""

    def slow_down(self, percentage: int) -> None:
        """Let the guest run for less of the time."""


class Outgoing(MigrationThread):
    """One migration to somewhere else; made in the main loop."""

    memory_may_follow = False
    """Whether memory may come behind the machine, where somebody asks for it."""

    def __init__(
        self,
        host: Host,
        loop: MainLoopCalls,
        target: Target,
        connect: Callable[[], Channel],
        settings: MigrationSettings,
        on_status: Callable[[str], None],
        on_pass: Callable[[int], None],
    ) -> None:
        """`on_status` and `on_pass` are called in the main loop with each new state, and before each pass."""
        super().__init__("live_migration", on_status)
        self._host = host
        self._loop = loop
        self._target = target
        self._connect = connect
        self._settings = settings
        self._capabilities = settings.capabilities
        self._on_pass = on_pass
        self.progress = Progress(0)
        self.error = ""
        """Why it failed."""
        self.cache: PageCache | None = None
        self._channel: Channel | None = None
        self._channels: ChannelSet | None = None
        self._pool: list[Channel] = []
        self._sender: PageSender | None = None
        self._dirty: DirtyPages | None = None
        self._woken = threading.Event()
        self._cancelled = False
        self._continued = False
        self._postcopy = False
        self._stopped = False
        self._token = os.urandom(TOKEN_SIZE)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters, which may change while it is under way."""
        return self._settings.parameters

    # ---- From the main loop

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self.status in states.RUNNING

    def cancel(self) -> None:
        """Give it up soon.  Raises ConfigError where it is too late for that."""
        if self.status in states.RUNNING - {states.CANCELLING}:
            self._enter(states.CANCELLING)
            self._cancelled = True
            self.abort()

    def abort(self) -> None:
        """Tear its connections down; from any thread."""
        self._woken.set()
        for channel in (self._channel, *self._pool):
            if channel is not None:
                channel.abort()

    def go_on(self) -> None:
        """Go on behind the pause before the switch-over."""
        self._continued = True
        self._woken.set()

    def start_postcopy(self) -> None:
        """Show from the switch-over on that only what can come late is to be sent still: bitmaps."""
        self._postcopy = True
        self._woken.set()

    def retune(self) -> None:
        """Parameters were changed."""

    def pause(self) -> bool:
        """Break the connection of one in which memory comes late; return whether it is such a one."""
        return False

    def resume(self, connect: Callable[[], Channel]) -> None:
        """Take one up whose connection was broken.  Raises ConfigError where it was not."""
        raise ConfigError("Cannot resume if there is no paused migration")

    def close(self) -> None:
        """The machine ends: give it up, and wait for the thread, which must not need the machine any more."""
        self._cancelled = True
        self.abort()

    # ---- The thread

    def _main(self) -> None:
        try:
            self._run()
        except MigrationCancelledError:
            self._end(states.CANCELLED, "")
        except Exception as error:  # noqa: BLE001 - whatever it was: the machine stays where it is, and says why
            self._end(states.CANCELLED if self._cancelled else states.FAILED, self._reason(error))
        finally:
            self._close_channels()

    def _reason(self, error: Exception) -> str:
        """Return what went wrong: what the other side says of it, where that has hung up."""
        if isinstance(error, OSError) and error.errno in _HUNG_UP and self._channel is not None:
            try:
                self._hear_answer(self._channel)
            except StreamError as answer:
                if str(answer).startswith(_OTHER_SIDE):
                    return str(answer)
            except OSError:
                pass
        return (error.strerror if isinstance(error, OSError) else None) or str(error)

    def _close_channels(self) -> None:
        if self._sender is not None:
            self._sender.close()
        if self._channels is not None:
            if self.status != states.COMPLETED:
                self.abort()
            self._channels.close()
        else:
            for channel in self._pool:
                channel.close()
        if self._channel is not None:
            self._channel.close()
        self._sender = self._channels = self._dirty = None  # they see the machine's memory

    def _end(self, status: str, error: str) -> None:
        def leave() -> None:
            self.error = error
            if self._dirty is not None:
                self._dirty.end()
            if self.progress.throttle:
                self._host.slow_down(0)
            if self._stopped:
                self._host.stay()
            self._left()
            self._enter(status)

        with suppress(MachineEndedError):
            self._loop.call(leave)

    def _left(self) -> None:
        """Nothing comes of it; in the main loop."""

    def _run(self) -> None:
        self._channel = self._connected()
        self._host.prepare()
        if self._cancelled:
            raise MigrationCancelledError
        self._connect_more()
        dirty = self._dirty = self._loop.call(self._begin)
        writer = self._open_stream(dirty)
        for block, numbers in dirty.untouched():
            self._main_sender.send_zeroes(block, numbers)
        self._send_live(dirty, writer)
        self._switch_over(dirty, writer)

    def _connected(self) -> Channel:
        """Return the main connection.  Raises OSError, ConfigError."""
        return self._connect()

    def _connect_more(self) -> None:
        if not self._capabilities["multifd"]:
            return
        if not self._target.can_have_channels:
            raise ConfigError("multifd is not supported by current protocol")
        for _ in range(self.parameters["multifd-channels"]):
            self._pool.append(self._connect())
            if self._cancelled:
                raise MigrationCancelledError

    def _begin(self) -> DirtyPages:
        self._host.check_movable()
        dirty = self._host.dirty_pages()
        dirty.start()
        self.progress.total = sum(map(len, dirty.views))
        self.progress.remaining_pages = dirty.remaining()
        self._activate()
        return dirty

    def _open_stream(self, dirty: DirtyPages) -> StreamWriter:
        channel = self._channel
        assert channel is not None
        header = {
            **self._loop.call(self._host.header),
            "ram": [[name, len(view)] for name, view in zip(dirty.names, dirty.views, strict=True)],
            "page-size": PAGE_SIZE,
            "answers": self._is_answered(channel),
            "channels": len(self._pool),
            "token": self._token,
            "late": self.memory_may_follow,
        }
        writer = StreamWriter(channel, header)
        packing = Packing()
        if self._capabilities["compress"] and self.parameters["compress-level"]:
            packing = Packing(ZLIB, self.parameters["compress-level"], self.parameters["compress-threads"])
        if self._capabilities["xbzrle"]:
            from pyvm.migration.delta import PageCache

            self.cache = PageCache(self.parameters["xbzrle-cache-size"])
        self._sender = PageSender(channel, dirty.views, packing, self.cache)
        self._sender.counts.bytes = writer.written
        self.progress.counts = [self._sender.counts]
        if self._pool:
            own = Packing.for_channels(self.parameters)
            self._channels = ChannelSet(self._token, self._pool, lambda each: PageSender(each, dirty.views, own))
            self.progress.counts += self._channels.counts
        return writer

    def _is_answered(self, channel: Channel) -> bool:
        """Return whether the other side says what has become of it."""
        return channel.two_way

    def _activate(self) -> None:
        self.progress.set_up()
        self._next_pass()
        if not self._cancelled:
            self._enter(states.ACTIVE)

    def _next_pass(self) -> None:
        self.progress.passes += 1
        self._on_pass(self.progress.passes)

    @property
    def _main_sender(self) -> PageSender:
        assert self._sender is not None
        return self._sender

    # ---- While the guest runs

    def _send_live(self, dirty: DirtyPages, writer: StreamWriter) -> None:
        busy_passes = 0
        while True:
            started, before = time.monotonic(), self.progress.transferred
            self._send_pass(dirty, limited=True)
            self._end_pass(writer)
            if self._in_a_hurry:
                return
            took = time.monotonic() - started
            if took < _SHORT_PASS and not self._capabilities["pause-before-switchover"]:
                return
            written = self._loop.call(lambda: self._sync(dirty))
            sent = self.progress.transferred - before
            self._measure(written, sent, took)
            if self._main_sender.deltas is False:
                self._main_sender.deltas = True
            left = self.progress.remaining_pages * PAGE_SIZE
            if left <= self.progress.bandwidth * self.parameters["downtime-limit"] / _MILLISECONDS:
                return
            if self._capabilities["auto-converge"]:
                busy_passes = self._converge(written * PAGE_SIZE, sent, busy_passes)

    @property
    def _in_a_hurry(self) -> bool:
        """Whether the guest is to stop at once, whatever is left."""
        return self._postcopy and self.memory_may_follow

    def _sync(self, dirty: DirtyPages) -> int:
        self._next_pass()
        count = dirty.sync()
        self.progress.remaining_pages = dirty.remaining()
        return count

    def _measure(self, written: int, sent: int, took: float) -> None:
        self.progress.dirty_rate = int(written / took)
        self.progress.bandwidth = max(sent / took, 1.0)
        left = self.progress.remaining_pages * PAGE_SIZE
        self.progress.expected_downtime = int(left / self.progress.bandwidth * _MILLISECONDS)

    def _converge(self, written: int, sent: int, busy_passes: int) -> int:
        """Slow the guest down where it writes too much of what was sent; return for how many passes it has."""
        if written * 100 <= sent * self.parameters["throttle-trigger-threshold"]:
            return busy_passes
        busy_passes += 1
        if busy_passes < _THROTTLE_PASSES:
            return busy_passes
        throttle = self.progress.throttle
        step = self.parameters["cpu-throttle-increment"] if throttle else self.parameters["cpu-throttle-initial"]
        if throttle and self.parameters["cpu-throttle-tailslow"]:
            needed = 100 - int((100 - throttle) * sent / max(written, 1) / 2)
            step = min(step, max(needed - throttle, 0))
        self.progress.throttle = min(throttle + step, self.parameters["max-cpu-throttle"])
        self._loop.call(lambda: self._host.slow_down(self.progress.throttle))
        return 0

    def _send_pass(self, dirty: DirtyPages, *, limited: bool) -> None:
        sender = self._channels or self._main_sender
        for block, numbers in self._paced(dirty.take) if limited else dirty.take(lambda: BATCH):
            sender.send(block, numbers)
            self.progress.remaining_pages -= len(numbers)

    def _paced(self, take: Batches) -> Iterator[tuple[int, PageNumbers]]:
        """Yield what is to be sent, no faster than the bandwidth allows."""
        started, base = time.monotonic(), self.progress.transferred

        def batch() -> int:
            return min(BATCH, max(1, int(self.parameters["max-bandwidth"] * _SLICE) // PAGE_SIZE))

        for block, numbers in take(batch):
            yield block, numbers
            while True:
                if self._cancelled:
                    raise MigrationCancelledError
                if self._in_a_hurry:
                    return
                sent, now = self.progress.transferred - base, time.monotonic()
                ahead = sent / max(self.parameters["max-bandwidth"], 1) - (now - started)
                self._note_rate(sent, now - started)
                if ahead <= _SLICE / 2:
                    break
                self._woken.wait(min(ahead, 1.0))
                self._woken.clear()

    def _note_rate(self, sent: int, seconds: float) -> None:
        if seconds > _SLICE:
            self.progress.bandwidth = sent / seconds
            self.progress.pages_rate = self.progress.pages / seconds
            self.progress.expected_downtime = self.progress.expected_downtime or self.parameters["downtime-limit"]

    def _end_pass(self, writer: StreamWriter) -> None:
        if self._channels is not None:
            self._channels.sync()
            self._count(writer, lambda: writer.record(SYNC))

    def _count(self, writer: StreamWriter, write: Callable[[], None]) -> None:
        before = writer.written
        write()
        self._main_sender.counts.bytes += writer.written - before

    # ---- When it stands still

    def _switch_over(self, dirty: DirtyPages, writer: StreamWriter) -> None:
        pauses, postcopy, follows = self._capabilities["pause-before-switchover"], self._postcopy, self._in_a_hurry
        if postcopy and not pauses:
            self._loop.call(lambda: self._enter(states.POSTCOPY_ACTIVE))
        self._loop.call(self._stop_guest)
        if pauses:
            self._pause(states.POSTCOPY_ACTIVE if postcopy else states.DEVICE)
        sections = self._loop.call(lambda: self._last_look(dirty))
        if follows:
            self._let_follow(dirty, writer, sections)
            return
        self._send_pass(dirty, limited=False)
        self._send_state(writer, sections)
        assert self._channel is not None
        if self._channel.two_way:
            self._hear_answer(self._channel)
        else:
            self._channel.finish()
        self._loop.call(lambda: self._complete(dirty, writer))

    def _let_follow(self, dirty: DirtyPages, writer: StreamWriter, sections: list[Section]) -> None:
        """Send the state, and memory behind it."""
        raise NotImplementedError

    def _send_state(self, writer: StreamWriter, sections: list[Section]) -> None:
        self._end_pass(writer)
        for section in sections:
            self._count(writer, lambda section=section: writer.section(section))  # type: ignore[misc]
        self._count(writer, writer.end)
        if self._channels is not None:
            self._channels.end()

    def _stop_guest(self) -> None:
        if self._cancelled:
            raise MigrationCancelledError
        if self.progress.throttle:
            self._host.slow_down(0)
        self._stopped = True
        self._host.stop_to_move()
        self.progress.stopped()

    def _pause(self, behind: str) -> None:
        self._loop.call(lambda: self._enter(states.PRE_SWITCHOVER))
        while not self._continued:
            self._woken.wait()
            self._woken.clear()
            if self._cancelled:
                raise MigrationCancelledError
        self._loop.call(lambda: self._enter(behind))

    def _last_look(self, dirty: DirtyPages) -> list[Section]:
        self._host.check_movable()
        self._host.give_disks_up()
        sections = self._host.sections()
        self._sync(dirty)
        dirty.compare_others()
        return sections

    def _hear_answer(self, channel: Channel) -> None:
        """Wait until the other side has become the machine.  Raises StreamError where it could not."""
        reader = RecordReader(channel)
        try:
            head = reader.head()
        except StreamError:
            raise StreamError("the other side has ended before it was the machine") from None
        if head.length > ANSWER_LIMIT:
            raise StreamError("the other side answered something that makes no sense")
        body = reader.body(head)
        if head.kind == FAILED_ANSWER:
            raise StreamError(f"{_OTHER_SIDE}: {printable(bytes(body))}")
        if head.kind != LOADED_ANSWER:
            raise StreamError("the other side answered something that makes no sense")

    def _complete(self, dirty: DirtyPages, writer: StreamWriter) -> None:
        if self._cancelled:
            raise MigrationCancelledError
        assert self._channel is not None
        if self._channel.two_way:
            writer.record(START_ORDER)
        self._stopped = False
        dirty.end()
        self._moved()

    def _moved(self) -> None:
        self.progress.completed()
        self._host.moved()
        self._enter(states.COMPLETED)
