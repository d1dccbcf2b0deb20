"""Requests to an NBD export and their replies.

Specification: "The NBD protocol", chapter "Transmission phase".  Several requests may be on their way at once, from one
thread or from several: a reply says by its cookie which of them it is for, and replies come in any order, those in
several chunks also mixed.  One of the threads that wait receives for all.  Data goes straight from and into the
callers' buffers.  The server may be hostile: what it says about lengths, offsets and cookies is checked before anything
is done with it, and a server that breaks the protocol has its connection closed.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

from pyvm.block.drivers.nbd_handshake import ExportInfo
from pyvm.block.drivers.nbd_protocol import (
    CHUNK_ERROR,
    CHUNK_HOLE,
    CHUNK_IS_ERROR,
    CHUNK_OFFSET,
    EXTENT,
    LENGTH,
    MAX_ERROR_CHUNK,
    MAX_EXTENTS,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    ReplyFlag,
    ReplyType,
    to_errno,
)
from pyvm.block.drivers.nbd_stream import ConnectionLost, Receiver, Stream
from pyvm.block.vectors import Buffers, Cursor, behind, fill_zero, total

_MOST_IN_FLIGHT = 16
"""Most requests without a reply; another one waits."""
_MAX_ERRORS = 64
"""Most chunks of one reply that tell of errors."""
_COOKIES = 1 << 64

_F = TypeVar("_F", bound="Flight")


class Connection:
    """A connection to an export on which requests can be made, by several threads at once.

    What makes a request returns as soon as it is sent; its :meth:`Flight.wait` returns once it is done.  Both raise
    ConnectionLost where the connection is of no more use, and the latter OSError with the server's error.
    """

    def __init__(self, stream: Stream, info: ExportInfo) -> None:
        self.info = info
        self._stream = stream
        self._receiver = Receiver(stream)
        self._cookie = 0
        self._sending = threading.Lock()
        """Keeps what is sent in one piece."""
        self._changed = threading.Condition(threading.Lock())
        """Guards what follows; told of where somebody may go on who waits."""
        self._flights: dict[int, Flight] = {}
        """Requests whose replies are not in, by their cookies."""
        self._receiving = False
        """Whether a thread receives: for itself, and for all others."""
        self._lost: str | None = None
        """Why the connection is of no more use."""

    # ---- Requests

    def read(self, offset: int, buffers: Buffers) -> Flight:
        """Begin to fill all buffers, of which there are at most `info.max_block` bytes."""
        length = total(buffers)
        return self._start(Command.READ, 0, offset, length, _Data(self, offset, buffers, length))

    def write(self, offset: int, buffers: Buffers, fua: bool = False) -> Flight:
        """Begin to write all buffers; with `fua` they are on stable storage once it is done."""
        flags = CommandFlag.FUA if fua else 0
        return self._start(Command.WRITE, flags, offset, total(buffers), _Nothing(self), buffers)

    def flush(self) -> Flight:
        """Begin to put on stable storage all that was done before."""
        return self._start(Command.FLUSH, 0, 0, 0, _Nothing(self))

    def trim(self, offset: int, length: int) -> Flight:
        """Say that the range is of no more use."""
        return self._start(Command.TRIM, 0, offset, length, _Nothing(self))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> Flight:
        """Begin to let the range read as zeros; without `unmap` it keeps its room."""
        flags = 0 if unmap else CommandFlag.NO_HOLE
        return self._start(Command.WRITE_ZEROES, flags, offset, length, _Nothing(self))

    def block_status(self, offset: int, length: int) -> Status:
        """Ask for the first run of bytes, and its flags in the context agreed on."""
        assert self.info.context is not None
        status = Status(self, self.info.context, self.info.min_block, length)
        return self._start(Command.BLOCK_STATUS, CommandFlag.REQ_ONE, offset, length, status)

    def close(self, polite: bool = True) -> None:
        """End the connection.  Requests that are on their way, of other threads, find it lost."""
        if not polite:
            self._lose("the connection was closed")
        with self._sending:
            if polite and self._lost is None:
                try:
                    self._stream.send(REQUEST.pack(REQUEST_MAGIC, 0, Command.DISCONNECT, self._next_cookie(), 0, 0))
                except ConnectionLost:
                    pass
            self._lose("the connection was closed")
            # Nobody may be left in a call with a descriptor that will be another file's.
            with self._changed:
                self._changed.wait_for(lambda: not self._receiving)
            self._stream.close()

    # ---- Sending

    def _next_cookie(self) -> int:
        self._cookie = (self._cookie + 1) % _COOKIES
        return self._cookie

    def _start(self, command: Command, flags: int, offset: int, length: int, flight: _F, data: Buffers = ()) -> _F:
        with self._sending:
            self._make_way(bool(data))
            cookie = self._next_cookie()
            with self._changed:
                if self._lost is not None:
                    raise ConnectionLost(self._lost)
                self._flights[cookie] = flight
            try:
                self._stream.send(REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length), *data)
            except BaseException as error:
                self._lose(error.reason if isinstance(error, ConnectionLost) else "a request was cut short")
                self.receive_until(lambda: flight.over)
                raise
        return flight

    def _make_way(self, with_data: bool) -> None:
        """Wait until another request may be sent; with the lock for sending held.

        No data is sent while data is to come: a server may wait for us to take that in before it takes anything, and
        we would wait for each other.
        """
        flights = self._flights
        if len(flights) >= _MOST_IN_FLIGHT:
            self.receive_until(lambda: len(flights) < _MOST_IN_FLIGHT)
        if with_data and flights:
            self.receive_until(lambda: not any(it.brings_data for it in tuple(flights.values())))

    # ---- Receiving

    def receive_until(self, settled: Callable[[], bool]) -> None:
        """Return once `settled`, which some reply or the loss of the connection leads to."""
        changed = self._changed
        with changed:
            changed.wait_for(lambda: settled() or not self._receiving)
            if settled():
                return
            self._receiving = True
        try:
            while not settled():
                self._take_in()
        except ConnectionLost as error:
            self._lose(error.reason)
        except BaseException:
            self._lose("a reply was not taken in")
            raise
        finally:
            with changed:
                self._receiving = False
                self._end_lost()
                changed.notify_all()

    def _lose(self, reason: str) -> None:
        """The connection is of no more use, to nobody."""
        with self._changed:
            self._lost = self._lost or reason
            if not self._receiving:
                self._end_lost()
            self._changed.notify_all()
        self._stream.shut_down()

    def _end_lost(self) -> None:
        """Let all requests fail where the connection is lost; while somebody receives, their buffers may be written."""
        if self._lost is not None:
            for flight in self._flights.values():
                flight.end(ConnectionLost(self._lost))
            self._flights.clear()

    def _end(self, cookie: int, flight: Flight, error: int) -> None:
        """All of a reply is in."""
        with self._changed:
            del self._flights[cookie]
            flight.end(_server_error(error) if error else None)
            self._changed.notify_all()

    def _find(self, cookie: int) -> Flight:
        flight = self._flights.get(cookie)
        if flight is None:
            raise ConnectionLost("a reply to a request that nobody waits for")
        return flight

    def _take_in(self) -> None:
        """Receive a simple reply, or a chunk of a structured one."""
        start = self._receiver.take(SIMPLE_REPLY.size)
        (magic,) = LENGTH.unpack_from(start)
        if magic == STRUCTURED_REPLY_MAGIC and self.info.structured:
            self._take_chunk(bytes(start) + self._receiver.take(STRUCTURED_REPLY.size - SIMPLE_REPLY.size))
            return
        if magic != SIMPLE_REPLY_MAGIC:
            raise ConnectionLost(f"invalid magic of a reply: 0x{magic:08x}")
        _, error, cookie = SIMPLE_REPLY.unpack(start)
        flight = self._find(cookie)
        if flight.begun or (self.info.structured and flight.brings_data):
            raise ConnectionLost("simple reply when structured reply chunk was expected")
        if not error:
            flight.take_simple(self._receiver)
        self._end(cookie, flight, error)

    def _take_chunk(self, start: bytes) -> None:
        _, flags, kind, cookie, length = STRUCTURED_REPLY.unpack(start)
        flight = self._find(cookie)
        flight.begun = True
        if kind & CHUNK_IS_ERROR:
            flight.told.append(self._take_error(kind, length))
        elif kind == ReplyType.NONE:
            if length or not flags & ReplyFlag.DONE:
                raise ConnectionLost("an empty chunk that is not empty, or not the last")
        else:
            flight.take(self._receiver, kind, length)
        if flags & ReplyFlag.DONE:
            if not flight.told:
                flight.check_complete()
            self._end(cookie, flight, flight.told[0] if flight.told else 0)
        elif len(flight.told) > _MAX_ERRORS:
            raise ConnectionLost("too many errors in one reply")

    def _take_error(self, kind: int, length: int) -> int:
        if not CHUNK_ERROR.size <= length <= MAX_ERROR_CHUNK:
            raise ConnectionLost(f"an error chunk of {length} bytes")
        payload = self._receiver.take(length)
        error, text = CHUNK_ERROR.unpack_from(payload)
        known = {ReplyType.ERROR: 0, ReplyType.ERROR_OFFSET: CHUNK_OFFSET.size}
        rest = length - CHUNK_ERROR.size - text
        if rest < 0 or not error or rest != known.get(kind, rest):  # type: ignore[call-overload]
            raise ConnectionLost("an error chunk without an error, or of a wrong length")
        return int(error)


def _server_error(error: int) -> OSError:
    number = to_errno(error)
    return OSError(number, os.strerror(number))


class Flight(ABC):
    """A request on its way, and what it waits for."""

    brings_data = False
    """Whether there is data in its reply, which must be structured then where that was agreed on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._error: OSError | None = None
        self.over = False
        """Whether it is done, or has failed."""
        self.begun = False
        """Whether a chunk of the reply has come."""
        self.told: list[int] = []
        """The errors in the chunks that have come."""

    def wait(self) -> None:
        """Return once it is done.  Raises OSError with the server's error, and ConnectionLost."""
        if not self.over:
            self._connection.receive_until(lambda: self.over)
        if self._error is not None:
            raise self._error

    def end(self, error: OSError | None) -> None:
        """It is done, or has failed."""
        self._error = error
        self.over = True

    def take_simple(self, receiver: Receiver) -> None:  # noqa: B027 - most have no data
        """A simple reply without an error has come, up to its data."""

    @abstractmethod
    def take(self, receiver: Receiver, kind: int, length: int) -> None:
        """Receive the payload of a chunk that is neither empty nor an error."""

    def check_complete(self) -> None:  # noqa: B027 - most need nothing more
        """The last chunk has come, and none was an error: raise ConnectionLost if something is missing."""


class _Nothing(Flight):
    """Just success."""

    def take(self, receiver: Receiver, kind: int, length: int) -> None:
        raise ConnectionLost(f"a chunk of type {kind} that was not asked for")


class _Data(Flight):
    """Data for buffers, in any number of chunks and any order."""

    brings_data = True

    def __init__(self, connection: Connection, offset: int, buffers: Buffers, length: int) -> None:
        super().__init__(connection)
        self._offset = offset
        self._buffers = buffers
        self._length = length
        self._left = length
        self._starts: list[int] = []
        """Runs that are there, apart from one another, in order: where each starts, and ends."""
        self._ends: list[int] = []

    def take_simple(self, receiver: Receiver) -> None:
        receiver.fill(self._buffers)

    def take(self, receiver: Receiver, kind: int, length: int) -> None:
        if kind == ReplyType.OFFSET_DATA and length > CHUNK_OFFSET.size:
            (offset,) = CHUNK_OFFSET.unpack(receiver.take(CHUNK_OFFSET.size))
            receiver.fill(self._section(offset, length - CHUNK_OFFSET.size))
        elif kind == ReplyType.OFFSET_HOLE and length == CHUNK_HOLE.size:
            offset, count = CHUNK_HOLE.unpack(receiver.take(CHUNK_HOLE.size))
            fill_zero(self._section(offset, count))
        else:
            raise ConnectionLost(f"a chunk of type {kind} and {length} bytes in reply to a read")

    def check_complete(self) -> None:
        if self._left:
            raise ConnectionLost(f"a reply to a read without {self._left} of its bytes")

    def _section(self, offset: int, count: int) -> Buffers:
        """Return where a run of bytes goes.  It must be asked for, and not have come before."""
        start = offset - self._offset
        end = start + count
        if not count or start < 0 or end > self._length:
            raise ConnectionLost("data that was not asked for")
        self._note(start, end)
        if count == self._length:
            return self._buffers
        return Cursor(behind(self._buffers, start)).take(count)

    def _note(self, start: int, end: int) -> None:
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        if (index < len(starts) and starts[index] < end) or (index and ends[index - 1] > start):
            raise ConnectionLost("the same data twice")
        self._left -= end - start
        after = index < len(starts) and starts[index] == end
        before = index and ends[index - 1] == start
        if before and after:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif before:
            ends[index - 1] = end
        elif after:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)


class Status(Flight):
    """The first run of a block status: its length, at most what was asked about, and its flags."""

    brings_data = True

    def __init__(self, connection: Connection, context: int, alignment: int, limit: int) -> None:
        super().__init__(connection)
        self._context = context
        self._alignment = alignment
        self._limit = limit
        self.length = 0
        self.flags = 0

    def take_simple(self, receiver: Receiver) -> None:
        """Refuse: there is no simple reply to this."""
        raise ConnectionLost("a block status without any")

    def take(self, receiver: Receiver, kind: int, length: int) -> None:
        """Receive the runs, of which the first counts."""
        extents, odd = divmod(length - LENGTH.size, EXTENT.size)
        if kind != ReplyType.BLOCK_STATUS or odd or not 0 < extents <= MAX_EXTENTS:
            raise ConnectionLost(f"a chunk of type {kind} and {length} bytes in reply to a block status")
        payload = receiver.take(length)
        (context,) = LENGTH.unpack_from(payload)
        if context != self._context or self.length:
            raise ConnectionLost("a block status that was not asked for")
        self.length, self.flags = EXTENT.unpack_from(payload, LENGTH.size)
        if not self.length:
            raise ConnectionLost("a block status for a run of no bytes")
        if self.length < self._alignment:
            # Some servers tell of less than what can be asked for.
            self.length, self.flags = self._alignment, 0
        self.length -= self.length % self._alignment

    def check_complete(self) -> None:
        """Raise ConnectionLost where no run has come."""
        if not self.length:
            raise ConnectionLost("a block status without any")
        self.length = min(self.length, self._limit)
