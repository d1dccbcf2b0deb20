"""What a character device back end and its front end owe each other.

A back end (socket, pty, file ...) is the host's side; a front end (UART, virtio-serial port, monitor) is the guest's
or pyvm's side.  Flow control works in both directions and nothing is lost: a back end takes as many bytes as it can
and says when it can take more; it asks the front end how much that can take before it reads from the host.
All calls are made with the machine lock held, from the main loop or the vCPU thread.  Only :meth:`Chardev.close` must
come from the main loop's thread.
"""

from __future__ import annotations

import enum
import os
import sys
from abc import ABC, abstractmethod
from typing import Protocol

from pyvm.records import record

Buffer = bytes | bytearray | memoryview


class ChardevError(Exception):
    """A back end cannot be made as asked; the message is one line for the person at the prompt."""


class ChardevEvent(enum.Enum):
    """What can happen to a back end, as a front end hears of it."""

    OPENED = "opened"
    """A peer is there: connected, or always there as with a file."""
    CLOSED = "closed"
    """The peer went away; it may come back."""
    BREAK = "break"
    """The person or peer sent a break condition."""
    MUX_IN = "mux-in"
    """A multiplexer now gives its input to this front end."""
    MUX_OUT = "mux-out"
    """A multiplexer took its input away from this front end."""


class Frontend(Protocol):
    """What uses a back end."""

    def can_receive(self) -> int:
        """Return how many bytes :meth:`receive` can take now; 0 holds the host's side back."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the host, at most as many as :meth:`can_receive` said."""

    def event(self, event: ChardevEvent) -> None:
        """Hear what happened to the back end."""

    def writable(self) -> None:
        """The back end took less than was offered, and now it can take more."""


@record(frozen=True)
class LineParameters:
    """How a serial line frames its characters."""

    baud: int
    data_bits: int = 8
    parity: str = "N"
    """N, E or O."""
    stop_bits: int = 1


@record(frozen=True)
class ModemLines:
    """The levels of a serial line's modem inputs, true where asserted."""

    cts: bool
    dsr: bool
    dcd: bool
    ri: bool


class Chardev(ABC):
    """Base of all back ends.  Subclasses move the bytes: they have :meth:`_write`, and call the front end."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.frontend: Frontend | None = None
        self.frontend_open = False
        """Whether the front end uses the device now; a guest's port may be there and not be open."""
        self._log_fd = -1

    @property
    @abstractmethod
    def filename(self) -> str:
        """Return how `query-chardev` describes the back end, e.g. ``unix:/tmp/a.sock,server=on``."""

    @property
    def connected(self) -> bool:
        """Whether a peer is there; a back end without the notion always has one."""
        return True

    def port(self) -> Chardev:
        """Return what one more front end attaches to: the device itself, or a new port of a multiplexer."""
        return self

    def attach(self, frontend: Frontend) -> None:
        """Connect the one front end; it hears OPENED at once where a peer is there.

        Raises ValueError where another front end is attached already.
        """
        if self.frontend is not None:
            raise ValueError(f"Device '{self.label}' is in use")
        self.frontend = frontend
        self.frontend_open = True
        if self.connected:
            frontend.event(ChardevEvent.OPENED)
        self.accept_input()

    def detach(self) -> None:
        """Disconnect the front end; input waits on the host's side from now on."""
        self.frontend = None
        self.frontend_open = False

    def set_open(self, is_open: bool) -> None:
        """The front end says whether the guest has its side open; it has, until the front end says otherwise.

        A socket peer that leaves while the guest's side is closed takes what it sent with it, as a caller who hangs up
        before anybody lifts the receiver.
        """
        self.frontend_open = is_open

    def log_to(self, path: str, append: bool) -> None:
        """Copy everything written to the device into the file `path`; raises ChardevError."""
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        try:
            self._log_fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise ChardevError(f"Could not create '{path}': {error.strerror}") from error

    def write(self, data: Buffer) -> int:
        """Take bytes for the host; return how many were taken.

        Where that is less than all, the front end keeps the rest and hears :meth:`Frontend.writable` later.  Without a
        peer a back end takes and drops everything, as a wire that ends nowhere does.
        """
        taken = self._write(data)
        if self._log_fd >= 0:
            self._log(data[:taken])
        return taken

    def send_fd(self) -> int:
        """Return a socket to which the front end may send by itself what it would :meth:`write`; -1 where it may not.

        It must not block there, and offers to write() what the socket did not take.
        """
        return -1

    @abstractmethod
    def _write(self, data: Buffer) -> int:
        """Do the work of :meth:`write`."""

    def _log(self, data: Buffer) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._log_fd, view) :]
        except OSError as error:
            report(f"chardev {self.label}: log file closed: {error.strerror}")
            self._close_log()

    def _close_log(self) -> None:
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def accept_input(self) -> None:  # noqa: B027 - for most of them it means nothing
        """The front end can receive again after it had said 0.

        Never calls :meth:`Frontend.receive` itself, so a device may call this from inside a register handler.
        """

    def take_fds(self) -> list[int]:
        """Return the file descriptors that the peer passed last; the caller owns and closes them."""
        return []

    def set_line_parameters(self, parameters: LineParameters) -> None:  # noqa: B027 - for most of them it means nothing
        """The guest programmed its serial line; means something for a real line only."""

    def set_break(self, on: bool) -> None:  # noqa: B027 - for most of them it means nothing
        """The guest holds its serial line in the break condition, or lets it go."""

    def modem_lines(self) -> ModemLines | None:
        """Return the modem inputs of a real serial line, None for everything else."""
        return None

    def set_modem_control(self, dtr: bool, rts: bool) -> None:  # noqa: B027 - for most of them it means nothing
        """The guest drives its modem outputs; means something for a real serial line only."""

    def close(self) -> None:
        """Give back all host resources; may be called twice."""
        self._close_log()


def report(message: str) -> None:
    """Tell the person at the prompt something that is no error of a command."""
    try:
        sys.stderr.write(f"pyvm: {message}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # no stderr, and nobody to tell
