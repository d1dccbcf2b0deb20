"""What commands work on: the open image, where output goes, and the requests that nobody has waited for yet."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.block.backend import BlockBackend
from pyvm.block.breakpoints import Suspended
from pyvm.block.context import Work
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.secrets import Secrets
from pyvm.tools.io.numbers import CommandError, show_size, show_time

if TYPE_CHECKING:
    pass

Output = Callable[[str], None]
_MISALIGNMENT = 16


class Lock(Protocol):
    """The machine lock."""

    def acquire(self) -> bool:
        """Take it."""

    def release(self) -> None:
        """Give it back."""


class Session:
    """One user's commands.  The machine lock `lock` is held whenever one of them runs.

    `out` and `err` are given lines with their ends.  `table` has the commands that there are.  `backend` is the open
    image, None where there is none.
    """

    def __init__(
        self,
        out: Output,
        err: Output,
        table: Mapping[str, Any],
        backend: BlockBackend | None = None,
        *,
        lock: Lock | None = None,
        misalign: bool = False,
    ) -> None:
        self.out = out
        self.err = err
        self.table = table
        self.backend = backend
        self.lock = lock
        self.misalign = misalign
        """Whether buffers start at odd addresses, which the host's O_DIRECT does not take."""
        self.secrets = Secrets()
        """What images that are opened here may use."""
        self.opened = False
        """Whether the image was opened here, and is not somebody else's."""
        self.change_options: Callable[[Node, dict[str, Any]], None] | None = None
        """Gives an open node other options; None where nobody can."""
        self.ended = False
        """Whether the person has had enough."""

    @property
    def node(self) -> Node:
        """The root node of the open image."""
        if self.backend is None or self.backend.node is None:
            raise CommandError("no file open, try 'help open'")
        return self.backend.node

    def call(self, request: Callable[[Node], Any]) -> Any:
        """Do something with the root node, behind all that is in flight.  Raises OSError or BlockError."""
        node, backend = self.node, self.backend
        assert backend is not None
        backend.drain()
        with backend.context.lock:
            return request(node)

    def buffer(self, length: int, value: int) -> memoryview:
        """Return a buffer with all bytes `value`."""
        if not self.misalign:
            return memoryview(bytearray(bytes((value,)) * length))
        return memoryview(bytearray(bytes((value,)) * (length + _MISALIGNMENT)))[_MISALIGNMENT:]

    def submit(self, request: Callable[[Node], None], completed: Callable[[int], None]) -> None:
        """Have something done with the root node; `completed` is given the errno, or 0."""
        node, backend = self.node, self.backend
        assert backend is not None
        backend.in_flight += 1
        backend.context.submit(_Request(backend, node, request, completed))

    def pause(self, seconds: float) -> None:
        """Let time pass.  Requests that are on their way end meanwhile."""
        if self.lock is not None:
            self.lock.release()
        try:
            sleep(seconds)
        finally:
            if self.lock is not None:
                self.lock.acquire()

    def drain(self) -> None:
        """Return when all requests are done."""
        if self.backend is not None:
            self.backend.drain()


class _Request(Work):
    """A request that nobody waits for."""

    __slots__ = ("_backend", "_completed", "_error", "_node", "_request", "_suspended")

    def __init__(
        self,
        backend: BlockBackend,
        node: Node,
        request: Callable[[Node], None],
        completed: Callable[[int], None],
    ) -> None:
        self._backend = backend
        self._node = node
        self._request = request
        self._completed = completed
        self._error = 0
        self._suspended: Suspended | None = None

    def run(self) -> None:
        try:
            self._request(self._node)
        except OSError as error:
            self._error = error.errno or errno.EIO
        except BlockError:
            self.fail()
        except Suspended as stop:
            self._suspended = stop

    def fail(self) -> None:
        self._error = errno.EIO

    def complete(self) -> None:
        stop, self._suspended = self._suspended, None
        if stop is not None:
            stop.park(lambda: self._backend.context.submit(self))
            return
        self._backend.in_flight -= 1
        self._completed(self._error)


class Stopwatch:
    """Measures a request, and reports it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._started = perf_counter()
        self._seconds = 0.0

    def stop(self) -> None:
        """The request is done."""
        self._seconds = max(perf_counter() - self._started, 1e-9)

    def report(self, what: str, offset: int, length: int, *, machine: bool) -> None:
        """Print how long it took, for people or for a machine."""
        seconds = self._seconds
        if machine:
            self._session.out(
                f"{length},1,{show_time(seconds, full=True)},{length / seconds:.3f},{1 / seconds:.3f}\n",
            )
            return
        self._session.out(f"{what} {length}/{length} bytes at offset {offset}\n")
        self._session.out(
            f"{show_size(length)}, 1 ops; {show_time(seconds)}"
            f" ({show_size(length / seconds)}/sec and {1 / seconds:.4f} ops/sec)\n",
        )


def dump(session: Session, data: memoryview, offset: int) -> None:
    """Print the bytes of a buffer, and as characters those that are letters or digits."""
    for start in range(0, len(data), 16):
        row = bytes(data[start : start + 16])
        characters = "".join(chr(byte) if byte < 128 and chr(byte).isalnum() else "." for byte in row)
        session.out(f"{offset + start:08x}:  {''.join(f'{byte:02x} ' for byte in row)} {characters}\n")


def describe(error: OSError) -> str:
    """Return what went wrong."""
    return os.strerror(error.errno) if error.errno else str(error)
