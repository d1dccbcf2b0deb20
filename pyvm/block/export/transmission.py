"""One NBD client's requests and the replies to them.

Specification: "The NBD protocol", chapters "Transmission phase" and "Structured reply messages".  A thread of the
client's reads requests, with their data straight into buffers that are used again; the node's I/O context carries them
out, several at a time on their way; another thread sends the replies, with the data straight from the buffers.  How
many requests and how much data a client has on their way is limited: whoever does not take replies is not read from.
"""

from __future__ import annotations

import errno
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pyvm.block.drivers.nbd_protocol import (
    CHUNK_ERROR,
    CHUNK_OFFSET,
    MAX_PAYLOAD,
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
    from_errno,
)
from pyvm.block.drivers.nbd_stream import ConnectionLost, Receiver, Stream
from pyvm.block.export import actions
from pyvm.block.export.backend import AT_HAND_BYTES, Task
from pyvm.block.export.buffers import BufferPool
from pyvm.block.requests import DISCARD, FLUSH, READ, WRITE, ZEROES

if TYPE_CHECKING:
    from pyvm.block.export.handshake import Agreement

MAX_REQUESTS = 64
"""Most requests of a client that are on their way; more stay in its socket."""
MAX_BYTES = 64 << 20
"""Most data of a client that is on its way."""
INLINE_BYTES = 256 << 10
"""Longest request that the thread which reads requests carries out itself; longer ones go on while it reads more."""
_BATCH = 32
"""Most replies that are sent together."""
_BATCH_BYTES = 256 << 10

_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _CACHE, _ZEROES, _STATUS = (int(it) for it in Command)
_NAMES = {int(it): it.name.lower().replace("_", " ") for it in Command}
_FUA, _NO_HOLE, _DF, _REQ_ONE, _FAST_ZERO = (int(it) for it in CommandFlag)
_CHANGES = (_WRITE, _TRIM, _ZEROES)
_FAILURES = {
    _READ: "reading from file failed",
    _WRITE: "writing to file failed",
    _FLUSH: "flush failed",
    _TRIM: "discard failed",
    _CACHE: "caching data failed",
    _ZEROES: "writing to file failed",
    _STATUS: "unable to query block status",
}
_DONE = int(ReplyFlag.DONE)


class _Pending:
    """A request on its way."""

    __slots__ = ("buffer", "chunks", "command", "cookie", "cost", "error", "length", "offset", "text")

    def __init__(self, command: int, cookie: int, offset: int, length: int, cost: int) -> None:
        self.command = command
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.cost = cost
        self.buffer: memoryview | None = None
        """The data."""
        self.chunks: list[actions.Chunk] | None = None
        """What the reply has, where that is not just the data."""
        self.error = 0
        self.text = ""


class _Problem(Exception):  # noqa: N818 - the client's, not ours
    """A request cannot be carried out."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Transmission:
    """Serves one client from the end of the handshake; `lock` is the machine lock."""

    def __init__(self, stream: Stream, agreed: Agreement, lock: Any) -> None:
        self._stream = stream
        self._export = agreed.export
        self._structured = agreed.structured
        self._contexts = agreed.contexts
        self._lock = lock
        self._buffers = BufferPool()
        self._replies: SimpleQueue[_Pending | None] = SimpleQueue()
        self._reader = Receiver(stream)
        self._ready: list[_Pending] = []
        """Requests of which only the reply is missing."""
        self._ready_bytes = 0
        self._sender: threading.Thread | None = None
        self._sending = threading.Lock()
        """Held while a reply is sent."""
        self._room = threading.Condition(threading.Lock())
        """Guards the three that follow."""
        self._requests = 0
        self._bytes = 0
        self._waiting = False

    def run(self) -> None:
        """Serve the client until it leaves.  Raises ConnectionLost where it does so without a word."""
        try:
            self._serve()
        finally:
            self._stream.shut_down()
            for pending in self._ready:
                self._release(pending)
            self._settle()

    def _settle(self) -> None:
        """Wait until nothing is on its way, and end the sender."""
        with self._room:
            self._waiting = True
            while self._requests:
                self._room.wait()
        if self._sender is not None:
            self._replies.put(None)
            self._sender.join()

    # ---- Requests

    def _serve(self) -> None:
        reader, size, unpack = self._reader, REQUEST.size, REQUEST.unpack
        while True:
            if self._ready and not reader.holds(size):
                self._send_ready()
            magic, flags, command, cookie, offset, length = unpack(reader.take(size))
            if magic != REQUEST_MAGIC:
                raise ConnectionLost(f"invalid magic of a request: 0x{magic:08x}")
            if command == _DISCONNECT:
                return
            self._take(flags, command, cookie, offset, length)

    def _take(self, flags: int, command: int, cookie: int, offset: int, length: int) -> None:
        has_data = command in (_READ, _WRITE)
        cost = length if has_data and length <= MAX_PAYLOAD else 0
        self._reserve(cost)
        pending = _Pending(command, cookie, offset, length, cost)
        try:
            if has_data or command == _CACHE:
                self._check_length(length)
            if has_data:
                pending.buffer = self._buffers.take(length)
            if command == _WRITE and length:
                assert pending.buffer is not None
                if self._ready and not self._reader.holds(length):
                    self._send_ready()
                self._reader.fill((pending.buffer,))
            self._check(flags, command, offset, length)
        except _Problem as problem:
            pending.error, pending.text = problem.number, str(problem)
            self._answer(pending)
            # What follows cannot be told from data.
            if command == _WRITE and length > MAX_PAYLOAD:
                self._send_ready()
                raise ConnectionLost("a request with too much data") from None
        except ConnectionLost:
            self._release(pending)
            raise
        else:
            self._start(pending, flags)

    def _check_length(self, length: int) -> None:
        if length > MAX_PAYLOAD:
            raise _Problem(errno.EINVAL, f"len ({length}) is larger than max len ({MAX_PAYLOAD})")

    def _check(self, flags: int, command: int, offset: int, length: int) -> None:
        """Raise _Problem where a request makes no sense."""
        export = self._export
        if command in _CHANGES and TransmissionFlag.READ_ONLY in export.flags:
            raise _Problem(errno.EROFS, "Export is read-only")
        if command not in _NAMES:
            raise _Problem(errno.EINVAL, f"invalid request type ({command}) received")
        if offset + length > export.size:
            number = errno.ENOSPC if command in (_WRITE, _ZEROES) else errno.EINVAL
            text = f"operation past EOF; From: {offset}, Len: {length}, Size: {export.size}"
            raise _Problem(number, text)
        if flags & ~self._valid_flags(command):
            raise _Problem(errno.EINVAL, f"unsupported flags for command {_NAMES[command]} (got 0x{flags:x})")
        if command == _STATUS:
            if not length:
                raise _Problem(errno.EINVAL, "need non-zero length")
            if not self._contexts:
                raise _Problem(errno.EINVAL, "CMD_BLOCK_STATUS not negotiated")

    def _valid_flags(self, command: int) -> int:
        if command == _READ and self._structured:
            return _FUA | _DF
        if command == _ZEROES:
            return _FUA | _NO_HOLE | _FAST_ZERO
        if command == _STATUS:
            return _FUA | _REQ_ONE
        return _FUA

    def _start(self, pending: _Pending, flags: int) -> None:
        """Have a request carried out: right here where that spares waking another thread, and nothing comes before."""
        backend = self._export.backend
        command, length = pending.command, pending.length
        at_hand = command == _READ and not flags & _FUA and length <= AT_HAND_BYTES
        with self._lock:
            if self._export.node is None or self._export.shutting_down:
                self._release(pending)
                raise ConnectionLost("the export is gone")
            if at_hand and backend.read_now(pending.offset, _list(pending.buffer)):
                task = None
            else:
                task = self._task(pending, flags)
                if length > INLINE_BYTES or not backend.borrow():
                    backend.submit(task)
                    return
        if task is not None:
            task.done = lambda error: None
            backend.carry_out(task)
            with self._lock:
                task.complete()
            self._note_error(pending, task.error)
        self._answer(pending)

    def _task(self, pending: _Pending, flags: int) -> Task:
        """Return what is to be done."""
        command, offset, length = pending.command, pending.offset, pending.length
        export = self._export
        action: actions.Action | None = None
        kind = (READ, WRITE, FLUSH, FLUSH, DISCARD, READ, ZEROES, FLUSH)[command]
        durable = bool(flags & _FUA) or not export.backend.write_cache
        if command == _READ:
            if self._structured and not flags & _DF and length:
                pending.chunks = []
                action = actions.sparse_read(offset, length, pending.buffer, pending.chunks, flush=bool(flags & _FUA))
            elif flags & _FUA:
                action = actions.flushed_read(offset, pending.buffer)
        elif command == _CACHE:
            action = actions.cache(offset, length, export.writable)
        elif command == _ZEROES and flags & _FAST_ZERO:
            action = actions.fast_zeroes(offset, length, not flags & _NO_HOLE)
        elif command == _STATUS:
            pending.chunks = []
            most = 1 if flags & _REQ_ONE else actions.MAX_EXTENTS
            action = actions.status(export, self._contexts, offset, length, most, pending.chunks)

        def done(error: int) -> None:
            self._note_error(pending, error)
            self._reply(pending)

        task = Task(export.backend, kind, offset, length, _list(pending.buffer), done, action)
        task.unmap = not flags & _NO_HOLE
        # For reads, what has to be flushed is flushed before.
        task.durable = durable and command in _CHANGES and (command != _TRIM or bool(flags & _FUA))
        return task

    def _note_error(self, pending: _Pending, error: int) -> None:
        pending.error = error
        if error:
            pending.text = _FAILURES[pending.command]

    # ---- How much is on its way

    def _reserve(self, cost: int) -> None:
        if self._ready and self._is_full(cost):
            self._send_ready()
        with self._room:
            while self._is_full(cost):
                self._waiting = True
                self._room.wait()
            self._waiting = False
            self._requests += 1
            self._bytes += cost

    def _is_full(self, cost: int) -> bool:
        return self._requests >= MAX_REQUESTS or (self._bytes > 0 and self._bytes + cost > MAX_BYTES)

    def _release(self, pending: _Pending) -> None:
        buffer, pending.buffer = pending.buffer, None
        with self._room:
            if buffer is not None:
                self._buffers.give_back(buffer)
            self._requests -= 1
            self._bytes -= pending.cost
            if self._waiting:
                self._room.notify()

    # ---- Replies

    def _reply(self, pending: _Pending) -> None:
        """Have a reply sent; from any thread."""
        if self._sender is None:
            sender = threading.Thread(target=self._send_all, name="nbd-reply", daemon=True)
            try:
                sender.start()
            except RuntimeError:  # there are too many threads
                self._stream.shut_down()
                self._release(pending)
                return
            self._sender = sender
        self._replies.put(pending)

    def _answer(self, pending: _Pending) -> None:
        """Have a reply sent soon; from the thread that reads requests, before it waits for more of them."""
        self._ready.append(pending)
        self._ready_bytes += pending.cost
        if len(self._ready) >= _BATCH or self._ready_bytes >= _BATCH_BYTES:
            self._send_ready()

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, []
        self._ready_bytes = 0
        try:
            self._send(ready)
        finally:
            for pending in ready:
                self._release(pending)

    def _send(self, replies: list[_Pending]) -> None:
        parts: list[memoryview | bytes] = []
        for pending in replies:
            self._encode(pending, parts)
        with self._sending:
            self._stream.send(*parts)

    def _send_all(self) -> None:
        queue = self._replies
        while True:
            pending = queue.get()
            last = pending is None
            batch = [pending] if pending is not None else []
            while not last and len(batch) < _BATCH and not queue.empty():
                pending = queue.get()
                last = pending is None
                if pending is not None:
                    batch.append(pending)
            try:
                self._send(batch)
            except ConnectionLost:
                self._stream.shut_down()
            for one in batch:
                self._release(one)
            if last:
                return

    def _encode(self, pending: _Pending, parts: list[memoryview | bytes]) -> None:
        """Append a reply."""
        cookie = pending.cookie
        if pending.error:
            self._encode_error(pending, parts)
        elif pending.chunks is not None:
            last = len(pending.chunks) - 1
            for index, (kind, payload) in enumerate(pending.chunks):
                length = sum(map(len, payload))
                flags = _DONE if index == last else 0
                parts.append(STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length))
                parts += payload
        elif self._structured and pending.command == _READ:
            length = pending.length
            kind = ReplyType.OFFSET_DATA if length else ReplyType.NONE
            size = length + CHUNK_OFFSET.size if length else 0
            parts.append(STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, _DONE, kind, cookie, size))
            if length and pending.buffer is not None:
                parts += (CHUNK_OFFSET.pack(pending.offset), pending.buffer)
        else:
            parts.append(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie))
            if pending.command == _READ and pending.buffer is not None:
                parts.append(pending.buffer)

    def _encode_error(self, pending: _Pending, parts: list[memoryview | bytes]) -> None:
        error = from_errno(pending.error)
        if not self._structured:
            parts.append(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, pending.cookie))
            return
        text = pending.text.encode()
        size = CHUNK_ERROR.size + len(text)
        head = STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, _DONE, ReplyType.ERROR, pending.cookie, size)
        parts.append(head + CHUNK_ERROR.pack(error, len(text)) + text)


def _list(buffer: memoryview | None) -> tuple[memoryview, ...]:
    return () if buffer is None else (buffer,)
