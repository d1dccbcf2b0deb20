"""One connection of a migration: descriptors that a thread of its own reads or writes, and that can be torn down.

Guest, monitor and main loop go on while such a thread waits; :meth:`Channel.abort`, from any thread, lets it raise.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import subprocess
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pyvm.migration.stream import Buffer

_IOV_LIMIT = 512
_PATIENCE = 10.0
"""Seconds that a command has to end after its input has."""
_FIONREAD = 0x541B
_SHORT_QUEUE = 128 << 10
"""Bytes."""


class ChannelError(OSError):
    """A connection has failed; says how."""


class Channel:
    """A stream of bytes to or from the other side; `what` says in errors what it is.

    It behaves as the files that :mod:`pyvm.migration.stream` reads and writes.  All methods but :meth:`abort` are for
    one thread.
    """

    def __init__(self, descriptor: int, what: str, *, two_way: bool = False, process: Any = None) -> None:
        self._fd = descriptor
        self._what = what
        self.two_way = two_way
        """Whether the other side can answer."""
        self._process: subprocess.Popen[bytes] | None = process
        # A socket can be shut down under whoever waits in the kernel, which then needs one call for all that it wants.
        os.set_blocking(descriptor, two_way)
        self._socket = socket.socket(fileno=descriptor) if two_way else None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll: Any = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._lock = threading.Lock()
        self._aborted = False
        self.sent = 0
        """Bytes written so far."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def hurry(self) -> None:
        """Have little lie in the host on its way, so that what is urgent need not wait behind it."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SHORT_QUEUE)

    # ---- Writing

    def write(self, data: Buffer, /) -> None:
        """Write all of `data`.  Raises OSError."""
        self.writelines([data])

    def writelines(self, parts: Iterable[Buffer], /) -> None:
        """Write all parts, one behind the other.  Raises OSError."""
        waiting = [memoryview(part) for part in parts if len(part)]
        while waiting:
            try:
                count = os.writev(self._fd, waiting[:_IOV_LIMIT])
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except OSError as error:
                raise self._failed("write to", error) from None
            self._check()
            self.sent += count
            while waiting and count >= len(waiting[0]):
                count -= len(waiting.pop(0))
            if count:
                waiting[0] = waiting[0][count:]

    def finish(self) -> None:
        """Return when all has gone out: what a command did not read, or a disk could not take, is an error.

        Raises OSError.
        """
        if self._process is None:
            with suppress(OSError):  # no file
                if stat.S_ISREG(os.fstat(self._fd).st_mode):
                    os.fsync(self._fd)
            return
        self._drain()
        self._close_descriptor()
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return
        if status:
            raise ChannelError(errno.EIO, f"Unable to write to {self._what}: it ended with status {status}")

    def _drain(self) -> None:
        """Return when the other end of a pipe has read everything."""
        import fcntl
        import struct

        poll = select.poll()
        poll.register(self._fd, 0)
        poll.register(self._wake, select.POLLIN)
        while struct.unpack("i", fcntl.ioctl(self._fd, _FIONREAD, bytes(4)))[0]:
            if any(fd == self._fd for fd, _ in poll.poll(2)):
                raise self._failed("write to", OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
            self._check()

    # ---- Reading

    def readinto(self, target: memoryview, /) -> int:
        """Fill the start of `target` with what is there, at least a byte; 0 at the end.  Raises OSError."""
        while True:
            try:
                if self._socket is not None:
                    return self._received(self._socket.recv_into(target, 0, socket.MSG_WAITALL))
                return os.readv(self._fd, [target])
            except BlockingIOError:
                self._wait(select.POLLIN)
            except OSError as error:
                raise self._failed("read from", error) from None

    def _received(self, count: int) -> int:
        if not count:
            self._check()
        return count

    # ---- Both

    def _wait(self, events: int) -> None:
        self._poll.register(self._fd, events)
        self._poll.poll()
        self._check()

    def _check(self) -> None:
        if self._aborted:
            raise ChannelError(errno.ECANCELED, "the connection was torn down")

    def _failed(self, action: str, error: OSError) -> OSError:
        self._check()
        return ChannelError(error.errno or errno.EIO, f"Unable to {action} {self._what}: {error.strerror}")

    def abort(self) -> None:
        """Tear the connection down: whoever uses it gets an error; from any thread."""
        with self._lock:
            self._aborted = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            if self._socket is not None and self._fd >= 0:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _close_descriptor(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
            if self._socket is not None:
                self._socket.detach()
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give the connection back."""
        self._close_descriptor()
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        if self._process is not None:
            _reap(self._process)
            self._process = None


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command that has lost its input or output; one that goes on is left to itself."""
    if process.poll() is None:
        threading.Thread(target=process.wait, name="migration-command", daemon=True).start()
