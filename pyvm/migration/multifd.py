"""Several connections for the pages of one migration: the capability `multifd`.

Each further connection begins with a greeting that names the migration it belongs to, then carries records of pages.
A page may go over one connection in one pass and over another in the next, so passes must not mix: at the end of each,
every connection carries a record "SYNC", and the receiver goes on behind that of the main one when it has them all.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyvm.migration.page_sender import PageSender
from pyvm.migration.pages import PageReader, Target
from pyvm.migration.progress import PageCounts
from pyvm.migration.stream import DONE, PAGES, SYNC, RecordReader, StreamError, pack_record

if TYPE_CHECKING:
    from pyvm.migration.channel import Channel
    from pyvm.migration.pages import PageNumbers

_GREETING = struct.Struct("<8s16sI")
_MAGIC = b"pyvmchan"
TOKEN_SIZE = 16
_WAITING = 4
"""Batches that wait for a connection at most."""
_POLL = 0.2

MakeSender = Callable[["Channel"], PageSender]


def greeting(token: bytes, number: int) -> bytes:
    """Return how a further connection of a migration begins."""
    return _GREETING.pack(_MAGIC, token, number)


class ChannelSet:
    """The further connections of a source: whoever is free sends the next batch."""

    def __init__(self, token: bytes, channels: Sequence[Channel], make_sender: MakeSender) -> None:
        """Raises OSError."""
        self._channels = channels
        self._jobs: queue.Queue[tuple[int, PageNumbers] | None] = queue.Queue(_WAITING * len(channels))
        self._failure: Exception | None = None
        self._threads: list[threading.Thread] = []
        self.counts: list[PageCounts] = []
        for number, channel in enumerate(channels):
            channel.write(greeting(token, number))
            sender = make_sender(channel)
            self.counts.append(sender.counts)
            thread = threading.Thread(target=self._run, args=(sender,), name=f"multifdsend_{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, sender: PageSender) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._failure is None:
                    sender.send(*job)
            except Exception as error:  # noqa: BLE001 - whatever it was: the migration fails
                self._failure = self._failure or error
            finally:
                self._jobs.task_done()

    def send(self, block: int, numbers: PageNumbers) -> None:
        """Let one of them send pages.  Raises OSError where one of them has failed."""
        while self._failure is None:
            try:
                self._jobs.put((block, numbers), timeout=_POLL)
            except queue.Full:
                continue
            return
        raise self._failure

    def sync(self) -> None:
        """End a pass.  Raises OSError."""
        self._jobs.join()
        if self._failure is not None:
            raise self._failure
        for channel in self._channels:
            channel.write(pack_record(SYNC))

    def end(self) -> None:
        """Write the end of all streams.  Raises OSError."""
        for channel in self._channels:
            channel.write(pack_record(DONE))

    def abort(self) -> None:
        """Tear all connections down; from any thread."""
        for channel in self._channels:
            channel.abort()

    def close(self) -> None:
        """Give all connections back; they were torn down, or have nothing to do."""
        self._failure = self._failure or OSError("the connection was torn down")
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for channel in self._channels:
            channel.close()
        self._failure = OSError("the connection was torn down")  # another's traceback sees the machine's memory


class Receivers:
    """The further connections of a destination: a thread for each puts the pages where they belong."""

    def __init__(self, blocks: Sequence[Target], count: int) -> None:
        self._blocks = blocks
        self._count = count
        self._channels: list[Channel] = []
        self._coming: Channel | None = None
        """One that has not said yet what it is."""
        self._threads: list[threading.Thread] = []
        self._passed = 0
        self._changed = threading.Condition()
        self._synced = [0] * count
        self._ended = 0
        self._failure: Exception | None = None

    def add(self, channel: Channel, token: bytes) -> None:
        """Take a connection over, whose greeting is read here.  Raises StreamError, OSError."""
        reader = RecordReader(channel)
        self._coming = channel
        try:
            magic, given, number = _GREETING.unpack(reader.take(_GREETING.size))
            if magic != _MAGIC or given != token or number != len(self._channels):
                raise StreamError("a connection that does not belong to this migration")
        except BaseException:
            channel.close()
            raise
        finally:
            self._coming = None
        self._channels.append(channel)
        thread = threading.Thread(target=self._run, args=(reader, number), name=f"multifdrecv_{number}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, reader: RecordReader, number: int) -> None:
        pages = PageReader(self._blocks)
        try:
            while self._read_one(reader, pages, number):
                pass
        except Exception as error:  # noqa: BLE001 - whatever it was: the migration fails, and nobody waits for this thread
            self._failure = self._failure or error
        finally:
            with self._changed:
                self._ended += 1
                self._changed.notify_all()

    def _read_one(self, reader: RecordReader, pages: PageReader, number: int) -> bool:
        head = reader.head()
        if head.kind == PAGES:
            pages.read(head, reader)
            return True
        reader.body(head)
        if head.kind == SYNC:
            with self._changed:
                self._synced[number] += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._passed >= self._synced[number] or self._failure is not None)
            return self._failure is None
        if head.kind == DONE:
            return False
        raise StreamError(f"a record of kind {head.kind!r} does not belong in a connection for pages")

    def sync(self) -> None:
        """Wait for the end of a pass in all connections.  Raises StreamError, OSError."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or min(self._synced) > self._passed)
            if self._failure is not None:
                raise self._failure
            if min(self._synced) <= self._passed:
                raise StreamError("a connection for pages has ended too early")
            self._passed += 1
            self._changed.notify_all()

    @property
    def _broken(self) -> bool:
        return self._failure is not None or self._ended > 0

    @property
    def missing(self) -> int:
        """How many connections are still to come."""
        return self._count - len(self._channels)

    def abort(self) -> None:
        """Tear all connections down; from any thread."""
        for channel in (self._coming, *self._channels):
            if channel is not None:
                channel.abort()

    def close(self) -> None:
        """Give all connections back, and forget the machine's memory."""
        self.abort()
        with self._changed:
            self._failure = self._failure or StreamError("the migration has ended")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for channel in self._channels:
            channel.close()
        self._blocks = ()
        self._failure = StreamError("the migration has ended")
