"""Memory that comes behind the machine: postcopy.

The machine stops, its state goes over, and it runs on the other side at once.  Pages of RAM that were not sent, or were
written again, follow: those first that somebody over there waits for, the others in between.  A page is missing in the
sense of the host's kernel, so whoever touches it sleeps until it is there, whatever he is: the guest, a device, or a
system call that reads a disk into RAM.  He may hold the interpreter's lock.  Therefore all of this is done by threads
that never need it, in `pyvm/native`: :class:`pyvm.native.PageServer` is the source's, :class:`pyvm.native.PageTaker`
the destination's; what Python does with them, it does before and behind.

On the wire, behind the last page that goes ahead::

    source       "LATE": a bit for each page of guest RAM that is to come, the lowest first
                 sections with the state, "DONE"
    both         source: "PAGE", plain or zeros, of the first block; destination: "WANT": u32 block, u32 page, u32 1
    destination  "LOAD": it has the state; until then the source can stay what it is
    source       "STRT": from here on the other side is the machine
    source       "DONE": all pages were sent
    destination  "HERE": all pages have come

A connection that breaks behind "STRT" can be taken up by another one, which the source makes.  It begins as those of
`multifd` do, with the token of the stream and a number that no other has; then the destination says what is still
missing, "HAVE", as in "LATE".  The native thread accepts it by itself: Python might be waiting for a page.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
from typing import TYPE_CHECKING

from pyvm.memory import PAGE_SIZE
from pyvm.migration.multifd import greeting
from pyvm.migration.stream import (
    ANSWER_LIMIT,
    FAILED_ANSWER,
    LOADED_ANSWER,
    RecordReader,
    StreamError,
    pack_record,
)
from pyvm.native import PageServer, PageTaker, check_missing
from pyvm.printable import printable

if TYPE_CHECKING:
    from pyvm.migration.channel import Channel
    from pyvm.migration.transport import Listening

PRESENT, ALL_HERE = b"HAVE", b"HERE"
_RESUMING = 0xFFFF_FFFF
"""The number of a connection that takes up a broken one."""
_MADV_REMOVE = 9
_GLANCE = 250
"""Milliseconds after which who waits looks whether the machine has ended meanwhile."""


def bits_size(size: int) -> int:
    """Return how many bytes a set of the pages of `size` bytes has."""
    return -(-(size // PAGE_SIZE) // 8)


def remove(memory: memoryview, first: int, pages: int) -> None:
    """Let pages be missing in the kernel's sense.  Raises OSError where this is no memory that can be shared."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + first * PAGE_SIZE
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_SIZE), _MADV_REMOVE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def check_memory(memory: memoryview) -> None:
    """Raise OSError unless pages of this memory, of which nobody needs the first any more, can come late."""
    check_missing(memory)
    remove(memory, 0, 1)


# ---- The source


class LateSource:
    """Sends the rest of guest RAM, which does not change any more.  For the thread of the migration."""

    def __init__(self, memory: memoryview, bits: bytearray, token: bytes) -> None:
        self._size = len(bits)
        self._token = token
        self.server = PageServer(memory, bits)
        self._channel: Channel | None = None
        self._thread: threading.Thread | None = None
        self._answer: tuple[bytes, bytes] | None = None
        self._error: Exception | None = None

    def serve(self, channel: Channel, *, release: bool = False) -> None:
        """Begin to send over a connection; `release`: what was sent is given back to the host."""
        channel.hurry()
        self._channel = channel
        self._answer = self._error = None
        self._thread = threading.Thread(
            target=self._serve, args=(channel.fileno(), release), name="postcopy", daemon=True
        )
        self._thread.start()

    def _serve(self, descriptor: int, release: bool) -> None:
        try:
            self._answer = self.server.serve(descriptor, release=release)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            self._error = error

    def await_loaded(self) -> None:
        """Return when the other side has the state.  Raises StreamError, OSError."""
        self._wait()
        if not self.server.loaded:
            self._end()
            raise StreamError("the other side answered something that makes no sense")

    def _wait(self) -> None:
        os.eventfd_read(self.server.fileno())

    def begin(self) -> None:
        """The other side is the machine from now on."""
        self.server.begin()

    def await_end(self) -> None:
        """Return when all pages are over there.  Raises StreamError, OSError."""
        kind, _ = self._end()
        if kind != ALL_HERE:
            raise StreamError("the other side answered something that makes no sense")

    def _end(self) -> tuple[bytes, bytes]:
        """Return the other side's last word, when it comes.  Raises StreamError, OSError."""
        assert self._thread is not None
        self._thread.join()
        if isinstance(self._error, ValueError):
            raise StreamError(str(self._error)) from None
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        kind, body = self._answer
        if kind == FAILED_ANSWER:
            raise StreamError(f"the other side failed: {printable(body)}")
        return kind, body

    def take_up(self, channel: Channel) -> None:
        """Have the other side say over a new connection what it has not.  Raises StreamError, OSError."""
        channel.write(greeting(self._token, _RESUMING))
        reader = RecordReader(channel)
        head = reader.head()
        if head.kind != PRESENT or head.length != self._size:
            raise StreamError("the other side answered something that makes no sense")
        self.server.want(reader.body(head))

    def close(self) -> None:
        """Give the memory back; the connection was torn down, or has nothing to do."""
        if self._thread is not None:
            if self._thread.is_alive() and self._channel is not None:
                self._channel.abort()
            self._thread.join()
        self.server.close()


# ---- The destination


class LateTarget:
    """Takes the rest of guest RAM.  For the thread of the migration, but for :meth:`interrupt`."""

    def __init__(self, memory: memoryview, bits: bytearray, token: bytes, channel: Channel) -> None:
        """From now on pages come over a connection when they are needed.  Raises StreamError where they cannot."""
        try:
            self._taker = PageTaker(memory, bits, token, channel.fileno())
        except OSError as error:
            raise StreamError(f"memory cannot come late here: {error.strerror}") from None
        self._poll = select.poll()
        self._poll.register(self._taker.fileno(), select.POLLIN)

    def listen(self, listening: Listening) -> None:
        """Have a broken connection be taken up by one that comes from there, and from nowhere else."""
        descriptors = listening.filenos()
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        self._taker.listen(descriptors)

    def take_up(self, channel: Channel) -> None:
        """Have a broken connection be taken up by this one."""
        self._taker.take_up(channel.fileno())

    def watch(self, thread: int) -> None:
        """Measure for how long the thread of this id waits for pages."""
        self._taker.watch(thread)

    def loaded(self) -> None:
        """Tell the source that the state is loaded."""
        self._taker.send(pack_record(LOADED_ANSWER))

    def failed(self, reason: str) -> None:
        """Tell the source why nothing comes of it."""
        text = reason.encode(errors="replace")[:ANSWER_LIMIT]
        self._taker.send(pack_record(FAILED_ANSWER, text) + text)

    def wait(self) -> tuple[str, str]:
        """Return soon what has become of it, and what broke the connection; see :meth:`PageTaker.look`."""
        self._poll.poll(_GLANCE)
        return self._taker.look()

    @property
    def waited(self) -> int:
        """For how long the thread that is watched has waited, in ms."""
        return self._taker.waited // 1_000_000

    def interrupt(self) -> None:
        """Break the connection; from any thread."""
        self._taker.interrupt()

    def close(self) -> None:
        """End it; what has not come is zeros."""
        self._taker.close()
