"""Requests to an NBD export and their replies.

Specification: "The NBD protocol", chapter "Transmission phase".  One request is on its way at a time.  Data goes
straight from and into the caller's buffers.  The server may be hostile: what it says about lengths, offsets and cookies
is checked before anything is done with it, and a server that breaks the protocol has its connection closed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_left

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
    TransmissionFlag,
    to_errno,
)
from pyvm.block.drivers.nbd_stream import ConnectionLost, Stream
from pyvm.block.vectors import Buffers, Cursor, behind, fill_zero, total

_MAX_ERRORS = 64
"""Most chunks of one reply that tell of errors."""
_COOKIES = 1 << 64


class Connection:
    """A connection to an export on which requests can be made.

    Requests raise OSError with the server's error, or ConnectionLost where the connection is of no more use.
    """

    def __init__(self, stream: Stream, info: ExportInfo) -> None:
        self.info = info
        self._stream = stream
        self._cookie = 0

    def can(self, flag: TransmissionFlag) -> bool:
        """Whether the export has a feature."""
        return flag in self.info.flags

    def read(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers, of which there are at most `info.max_block` bytes."""
        length = total(buffers)
        self._send(Command.READ, 0, offset, length)
        self._finish(_Data(self._stream, offset, buffers, length))

    def write(self, offset: int, buffers: Buffers, fua: bool = False) -> None:
        """Write all buffers; with `fua` they are on stable storage then."""
        flags = CommandFlag.FUA if fua else 0
        self._send(Command.WRITE, flags, offset, total(buffers), buffers)
        self._finish(_Nothing())

    def flush(self) -> None:
        """Return when all that was written before is on stable storage."""
        self._send(Command.FLUSH, 0, 0, 0)
        self._finish(_Nothing())

    def trim(self, offset: int, length: int) -> None:
        """Say that the range is of no more use."""
        self._send(Command.TRIM, 0, offset, length)
        self._finish(_Nothing())

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; without `unmap` it keeps its room."""
        self._send(Command.WRITE_ZEROES, 0 if unmap else CommandFlag.NO_HOLE, offset, length)
        self._finish(_Nothing())

    def block_status(self, offset: int, length: int) -> tuple[int, int]:
        """Return the length of the first run of bytes, and its flags in the context agreed on."""
        assert self.info.context is not None
        self._send(Command.BLOCK_STATUS, CommandFlag.REQ_ONE, offset, length)
        reply = _Status(self._stream, self.info.context, self.info.min_block)
        self._finish(reply)
        return min(reply.length, length), reply.flags

    def close(self, polite: bool = True) -> None:
        """End the connection."""
        if polite:
            try:
                self._send(Command.DISCONNECT, 0, 0, 0)
            except ConnectionLost:
                pass
        self._stream.close()

    # ---- One request

    def _send(self, command: Command, flags: int, offset: int, length: int, data: Buffers = ()) -> None:
        self._cookie = (self._cookie + 1) % _COOKIES
        self._stream.send(REQUEST.pack(REQUEST_MAGIC, flags, command, self._cookie, offset, length), *data)

    def _finish(self, reply: _Reply) -> None:
        """Take the reply in, whichever form it has."""
        start = self._stream.receive(SIMPLE_REPLY.size)
        (magic,) = LENGTH.unpack_from(start)
        if magic == STRUCTURED_REPLY_MAGIC and self.info.structured:
            self._finish_structured(start, reply)
            return
        if magic != SIMPLE_REPLY_MAGIC:
            raise ConnectionLost(f"invalid magic of a reply: 0x{magic:08x}")
        _, error, cookie = SIMPLE_REPLY.unpack(start)
        self._check_cookie(cookie)
        if self.info.structured and reply.needs_structure:
            raise ConnectionLost("simple reply when structured reply chunk was expected")
        if error:
            raise _server_error(error)
        reply.take_simple()

    def _finish_structured(self, start: bytes, reply: _Reply) -> None:
        error = 0
        errors = 0
        while True:
            start += self._stream.receive(STRUCTURED_REPLY.size - len(start))
            magic, flags, kind, cookie, length = STRUCTURED_REPLY.unpack(start)
            if magic != STRUCTURED_REPLY_MAGIC:
                raise ConnectionLost(f"invalid magic inside of a reply: 0x{magic:08x}")
            self._check_cookie(cookie)
            if kind & CHUNK_IS_ERROR:
                told = self._take_error(kind, length)
                error = error or told
                errors += 1
            elif kind == ReplyType.NONE:
                if length or not flags & ReplyFlag.DONE:
                    raise ConnectionLost("an empty chunk that is not empty, or not the last")
            else:
                reply.take(kind, length)
            if flags & ReplyFlag.DONE:
                break
            if errors > _MAX_ERRORS:
                raise ConnectionLost("too many errors in one reply")
            start = b""
        if error:
            raise _server_error(error)
        reply.check_complete()

    def _take_error(self, kind: int, length: int) -> int:
        if not CHUNK_ERROR.size <= length <= MAX_ERROR_CHUNK:
            raise ConnectionLost(f"an error chunk of {length} bytes")
        payload = self._stream.receive(length)
        error, text = CHUNK_ERROR.unpack_from(payload)
        known = {ReplyType.ERROR: 0, ReplyType.ERROR_OFFSET: CHUNK_OFFSET.size}
        rest = length - CHUNK_ERROR.size - text
        if rest < 0 or not error or rest != known.get(kind, rest):  # type: ignore[call-overload]
            raise ConnectionLost("an error chunk without an error, or of a wrong length")
        return int(error)

    def _check_cookie(self, cookie: int) -> None:
        if cookie != self._cookie:
            raise ConnectionLost("a reply to another request")


def _server_error(error: int) -> OSError:
    number = to_errno(error)
    return OSError(number, os.strerror(number))


class _Reply(ABC):
    """What a request waits for."""

    needs_structure = False
    """Whether the reply must be structured where that was agreed on."""

    def take_simple(self) -> None:  # noqa: B027 - most have no data
        """A simple reply without an error has come, up to its data."""

    @abstractmethod
    def take(self, kind: int, length: int) -> None:
        """Receive the payload of a chunk that is neither empty nor an error."""

    def check_complete(self) -> None:  # noqa: B027 - most need nothing more
        """The last chunk has come, and none was an error: raise ConnectionLost if something is missing."""


class _Nothing(_Reply):
    """Just success."""

    def take(self, kind: int, length: int) -> None:
        raise ConnectionLost(f"a chunk of type {kind} that was not asked for")


class _Data(_Reply):
    """Data for buffers, in any number of chunks and any order."""

    needs_structure = True

    def __init__(self, stream: Stream, offset: int, buffers: Buffers, length: int) -> None:
        self._stream = stream
        self._offset = offset
        self._buffers = buffers
        self._length = length
        self._left = length
        self._starts: list[int] = []
        """Runs that are there, apart from one another, in order: where each starts, and ends."""
        self._ends: list[int] = []

    def take_simple(self) -> None:
        self._stream.receive_into(self._buffers)

    def take(self, kind: int, length: int) -> None:
        if kind == ReplyType.OFFSET_DATA and length > CHUNK_OFFSET.size:
            (offset,) = CHUNK_OFFSET.unpack(self._stream.receive(CHUNK_OFFSET.size))
            self._stream.receive_into(self._section(offset, length - CHUNK_OFFSET.size))
        elif kind == ReplyType.OFFSET_HOLE and length == CHUNK_HOLE.size:
            offset, count = CHUNK_HOLE.unpack(self._stream.receive(CHUNK_HOLE.size))
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


class _Status(_Reply):
    """The first run of a block status."""

    needs_structure = True

    def __init__(self, stream: Stream, context: int, alignment: int) -> None:
        self._stream = stream
        self._context = context
        self._alignment = alignment
        self.length = 0
        self.flags = 0

    def take_simple(self) -> None:
        raise ConnectionLost("a block status without any")

    def take(self, kind: int, length: int) -> None:
        extents, odd = divmod(length - LENGTH.size, EXTENT.size)
        if kind != ReplyType.BLOCK_STATUS or odd or not 0 < extents <= MAX_EXTENTS:
            raise ConnectionLost(f"a chunk of type {kind} and {length} bytes in reply to a block status")
        payload = self._stream.receive(length)
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
        if not self.length:
            raise ConnectionLost("a block status without any")
