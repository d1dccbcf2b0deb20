"""What drives and their devices say to each other, and the requests that are on their way between them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.block.breakpoints import Suspended
from pyvm.block.context import Work
from pyvm.block.errors import BlockError
from pyvm.block.node import DetectZeroes, Node, Pending
from pyvm.block.vectors import Buffers, is_zero
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

Done = Callable[[int], None]
"""Takes 0 or an errno; called exactly once, with the machine lock held, possibly before the request's call returns."""

READ, WRITE, FLUSH, DISCARD, ZEROES = range(5)


class BackendDevice(Protocol):
    """What a backend tells its device."""

    tray_open: bool
    medium_locked: bool

    def media_changed(self, loaded: bool) -> None:
        """There is another medium, or none.  A device with a tray opens or closes it."""

    def eject_requested(self, force: bool) -> None:
        """Somebody wants the medium: the guest is asked, or with `force` just told."""

    def resized(self) -> None:
        """The medium has another size."""


@record
class BackendEvents:
    """What backends tell the machine."""

    emit: Callable[[str, dict[str, Any]], None] = lambda name, data: None
    """Takes an event and its data."""
    stop: Callable[[], None] = lambda: None
    """The guest must stop (run state `io-error`), as a request cannot go on."""
    now: Callable[[], int] = monotonic_ns
    """The time that requests are accounted for by, in ns."""
    latency: int | None = None
    """What each is said to have taken, where no time passes by itself."""


@record
class MediumOptions:
    """How a medium is opened that a person puts into a drive without saying more: as the last one was."""

    read_only: bool = True
    detect_zeroes: DetectZeroes = "off"
    unmap: bool = False
    direct: bool = False
    no_flush: bool = False


class Request(Work):
    """One request on its way."""

    __slots__ = (
        "backend",
        "buffers",
        "done",
        "durable",
        "error",
        "gate",
        "kind",
        "length",
        "node",
        "offset",
        "pending",
        "started",
        "suspended",
        "unmap",
    )

    def __init__(
        self, backend: BlockBackend, node: Node, kind: int, offset: int, length: int, buffers: Buffers, done: Done
    ) -> None:
        self.backend = backend
        self.node = node
        self.kind = kind
        self.offset = offset
        self.length = length
        self.buffers = buffers
        self.done = done
        self.unmap = False
        self.durable = False
        self.error = 0
        self.gate = 0
        self.started = 0
        self.suspended: Suspended | None = None
        self.pending: Pending | None = None

    @property
    def overlaps(self) -> bool:
        """Whether it may begin before what came before it is done: the guest waits before it asks for an order."""
        return self.kind in (READ, WRITE)

    def run(self) -> bool:
        """Carry it out, or begin it; return whether it was only begun."""
        try:
            if self.backend.overlaps and self._start(self.node):
                return True
            self._perform(self.node, self.kind)
            if self.durable:
                self.node.flush()
        except OSError as error:
            self.error = error.errno or errno.EIO
        except BlockError:
            self.error = errno.EIO
        except Suspended as stop:
            self.suspended = stop
        else:
            self.error = 0
        return False

    def _start(self, node: Node) -> bool:
        """Begin it, where that can be done; return whether it was."""
        if self.kind == READ:
            self.pending = node.start_readv(self.offset, self.buffers)
        elif self.kind == WRITE and not self.durable and self.backend.detect_zeroes == "off":
            self.pending = node.start_writev(self.offset, self.buffers)
        return self.pending is not None

    def _perform(self, node: Node, kind: int) -> None:
        if kind == READ:
            node.readv(self.offset, self.buffers)
        elif kind == WRITE:
            detect = self.backend.detect_zeroes
            if detect != "off" and is_zero(self.buffers):
                node.write_zeroes(self.offset, self.length, detect == "unmap")
            else:
                node.writev(self.offset, self.buffers)
        elif kind == FLUSH:
            node.flush()
        elif kind == DISCARD:
            node.discard(self.offset, self.length)
        else:
            node.write_zeroes(self.offset, self.length, self.unmap)

    def finish(self) -> None:
        """Wait for what was begun."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        try:
            pending.wait()
        except OSError as error:
            self.error = error.errno or errno.EIO
        else:
            self.error = 0

    def fail(self) -> None:
        """A driver is broken."""
        self.error = errno.EIO

    def complete(self) -> None:
        """Tell the drive."""
        stop, self.suspended = self.suspended, None
        if stop is not None:
            stop.park(lambda: self.backend.context.submit(self))
        else:
            self.backend.ended(self)
