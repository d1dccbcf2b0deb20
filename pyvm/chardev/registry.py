"""All character devices of a machine, by name; where they are made and ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pyvm.chardev.address import FindFd
from pyvm.chardev.base import Chardev, ChardevError
from pyvm.chardev.file import FileChardev, OpenFile, PipeChardev
from pyvm.chardev.mux import CTRL_A, MuxChardev
from pyvm.chardev.null import NullChardev
from pyvm.chardev.options import (
    ChardevOptions,
    FileOptions,
    MsmouseOptions,
    MuxOptions,
    NullOptions,
    ParallelOptions,
    PipeOptions,
    PtyOptions,
    RingbufOptions,
    SerialOptions,
    SocketOptions,
    SpicevmcOptions,
    StdioOptions,
    TestdevOptions,
    UdpOptions,
    VcOptions,
    VdagentOptions,
    WctabletOptions,
)
from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.hash_order import HashOrder
from pyvm.mainloop import MainLoop
from pyvm.records import record

if TYPE_CHECKING:
    import socket

    from pyvm.input import InputRouter


@record(frozen=True)
class ChardevHost:
    """What some back ends use of the machine."""

    input: InputRouter | None = None
    """Where mice find out what the person does."""
    exit: Callable[[int], None] = lambda status: None
    """Ends the process with an exit status that the guest chose."""
    screen_size: Callable[[], tuple[int, int]] = lambda: (640, 480)
    """Returns width and height of the guest's screen."""
    open_file: OpenFile | None = None
    """Opens files by names that may stand for descriptors that were passed; None: names are the host's."""


def open_chardev(
    options: ChardevOptions,
    loop: MainLoop,
    *,
    find_fd: FindFd | None = None,
    host: ChardevHost | None = None,
    connection: socket.socket | None = None,
) -> Chardev:
    """Make the back end that `options` describe, without the multiplexer that they may ask for; raises ChardevError.

    `find_fd` returns descriptors that have names, `connection` is what a socket is to connect to, where it is connected
    already.  A `mux` is made by :class:`ChardevSet`, which knows its back end.
    """
    if connection is not None and isinstance(options, SocketOptions):
        from pyvm.chardev.socket import SocketChardev

        chardev: Chardev = SocketChardev(options, loop, connection=connection)
    else:
        chardev = _open(options, loop, find_fd, host or ChardevHost())
    if options.logfile is not None:
        try:
            chardev.log_to(options.logfile, options.logappend)
        except ChardevError:
            chardev.close()
            raise
    return chardev


def _open(options: ChardevOptions, loop: MainLoop, find_fd: FindFd | None, host: ChardevHost) -> Chardev:
    # Imported where used: each machine has few of these, and every import lengthens the start.
    match options:
        case NullOptions():
            return NullChardev(options.id)
        case VcOptions():
            return NullChardev(options.id, "vc")
        case RingbufOptions():
            return RingbufChardev(options.id, options.size, options.kind)
        case FileOptions():
            return FileChardev(
                options.id,
                loop,
                options.path,
                append=options.append,
                input_path=options.input_path,
                open_file=host.open_file,
            )
        case PipeOptions():
            return PipeChardev(options.id, loop, options.path)
        case SocketOptions(websocket=True):
            from pyvm.chardev.websocket import WebSocketChardev

            return WebSocketChardev(options, loop, find_fd)
        case SocketOptions():
            from pyvm.chardev.socket import SocketChardev

            return SocketChardev(options, loop, find_fd)
        case UdpOptions():
            from pyvm.chardev.udp import UdpChardev

            return UdpChardev(options, loop)
        case StdioOptions():
            from pyvm.chardev.stdio import StdioChardev

            return StdioChardev(options.id, loop, signals=options.signal)
        case PtyOptions():
            from pyvm.chardev.pty import PtyChardev

            return PtyChardev(options.id, loop)
        case SerialOptions():
            from pyvm.chardev.serial import SerialChardev

            return SerialChardev(options.id, loop, options.path)
        case ParallelOptions():
            from pyvm.chardev.parallel import ParallelChardev

            return ParallelChardev(options.id, options.path)
    return _open_device(options, loop, host)


def _open_device(options: ChardevOptions, loop: MainLoop, host: ChardevHost) -> Chardev:
    """Return a back end that is a device itself, or the end of a protocol."""
    match options:
        case MsmouseOptions():
            from pyvm.chardev.msmouse import MsmouseChardev

            return MsmouseChardev(options.id, loop, host.input)
        case WctabletOptions():
            from pyvm.chardev.wctablet import WctabletChardev

            return WctabletChardev(options.id, loop, host.input)
        case SpicevmcOptions():
            return NullChardev(options.id, "spicevmc")
        case VdagentOptions():
            from pyvm.chardev.vdagent import VdagentChardev

            wanted = {"mouse": options.mouse, "clipboard": options.clipboard}
            return VdagentChardev(options.id, loop, host.input, **wanted, screen_size=host.screen_size)
        case TestdevOptions():
            from pyvm.chardev.testdev import TestdevChardev

            return TestdevChardev(options.id, host.exit)
    raise ChardevError(f"chardev: '{options.id}' cannot be made on its own")


@record(frozen=True)
class ChardevInfo:
    """One character device as `query-chardev` shows it."""

    label: str
    filename: str
    frontend_open: bool
    """Whether a device uses it and, where that can be, has it opened."""


@runtime_checkable
class SwappingFrontend(Protocol):
    """A front end that goes on with another back end."""

    def chardev_replaced(self, chardev: Chardev) -> None:
        """Attach to `chardev` instead of the one before, from which the front end has been detached."""


def _in_use(chardev: Chardev) -> bool:
    """Return whether a front end uses the device; a multiplexer does when somebody uses the multiplexer."""
    user = chardev.frontend
    return user.frontend_open if isinstance(user, MuxChardev) else chardev.frontend_open


class ChardevSet:
    """The character devices of one machine."""

    def __init__(
        self,
        loop: MainLoop,
        *,
        escape: int = CTRL_A,
        on_quit: Callable[[], None] = lambda: None,
        find_fd: FindFd | None = None,
        daemonized: bool = False,
        host: ChardevHost | None = None,
    ) -> None:
        """`escape` is the key of every multiplexer (`-echr`), `on_quit` what its exit key does."""
        self._loop = loop
        self._escape = escape
        self._on_quit = on_quit
        self._find_fd = find_fd
        self._daemonized = daemonized
        self._host = host
        self._devices: dict[str, Chardev] = {}
        self._order = HashOrder()

    def __iter__(self) -> Iterator[Chardev]:
        return iter(list(self._devices.values()))

    def find(self, identifier: str) -> Chardev | None:
        """Return the device of that name, None where there is none; a front end attaches to its `port()`."""
        return self._devices.get(identifier)

    def add(
        self, options: ChardevOptions, find_fd: FindFd | None = None, connection: socket.socket | None = None
    ) -> Chardev:
        """Make a device, with its multiplexer where asked for; raises ChardevError.

        `find_fd` knows the names that the descriptors of whoever asks have, by default those of the command line;
        `connection` is what a socket is to connect to, where it is connected already.
        """
        if options.id in self._devices:
            raise ChardevError(f"Duplicate ID '{options.id}' for chardev")
        if self._daemonized and isinstance(options, StdioOptions):
            raise ChardevError("cannot use stdio with -daemonize")
        chardev = self._add(options, find_fd or self._find_fd, connection)
        self._order.add(options.id)
        return chardev

    def _add(self, options: ChardevOptions, find_fd: FindFd | None, connection: socket.socket | None) -> Chardev:
        if isinstance(options, MuxOptions):
            base = self.find(options.chardev)
            if base is None:
                raise ChardevError(f"mux: base chardev {options.chardev} not found")
            if isinstance(base, MuxChardev):
                raise ChardevError(f"mux: base chardev {options.chardev} is a multiplexer itself")
            return self._add_mux(options.id, base)
        if not options.mux:
            chardev = open_chardev(options, self._loop, find_fd=find_fd, host=self._host, connection=connection)
            self._devices[options.id] = chardev
            return chardev
        base_id = f"{options.id}-base"
        if base_id in self._devices:
            raise ChardevError(f"Duplicate ID '{base_id}' for chardev")
        base = open_chardev(options, self._loop, find_fd=find_fd, host=self._host, connection=connection)
        base.label = base_id
        self._devices[base_id] = base
        self._order.add(base_id)
        return self._add_mux(options.id, base)

    def _add_mux(self, identifier: str, base: Chardev) -> Chardev:
        mux = MuxChardev(identifier, base, self._loop, escape=self._escape, on_quit=self._on_quit)
        self._devices[identifier] = mux
        return mux

    def remove(self, identifier: str) -> None:
        """Close a device that no front end uses; raises ChardevError."""
        chardev = self._devices.get(identifier)
        if chardev is None:
            raise ChardevError(f"Chardev '{identifier}' not found")
        if chardev.frontend is not None or (isinstance(chardev, MuxChardev) and chardev.in_use):
            raise ChardevError(f"Chardev '{identifier}' is busy")
        self._forget(identifier)
        chardev.close()
        if isinstance(chardev, MuxChardev) and chardev.backend.label == f"{identifier}-base":
            self._forget(chardev.backend.label)
            chardev.backend.close()

    def _forget(self, identifier: str) -> None:
        if self._devices.pop(identifier, None) is not None:
            self._order.discard(identifier, shrink=False)

    def check_replaceable(self, identifier: str) -> tuple[Chardev, SwappingFrontend | None]:
        """Return the device of that name and its front end; raises ChardevError where it cannot be replaced."""
        chardev = self._devices.get(identifier)
        if chardev is None:
            raise ChardevError(f"Chardev '{identifier}' does not exist")
        if isinstance(chardev, MuxChardev):
            raise ChardevError("Mux device hotswap not supported yet")
        frontend = chardev.frontend
        if frontend is None:
            return chardev, None
        if not isinstance(frontend, SwappingFrontend):
            raise ChardevError("Chardev user does not support chardev hotswap")
        return chardev, frontend

    def replace(self, options: ChardevOptions, find_fd: FindFd | None = None) -> Chardev:
        """Put another device in the place of the one of that name, for the front end that it has.

        Raises ChardevError, and leaves things as they were, where that cannot be done or the new one not be made.
        """
        old, frontend = self.check_replaceable(options.id)
        if isinstance(options, MuxOptions) or options.mux:
            raise ChardevError("Mux device hotswap not supported yet")
        new = open_chardev(options, self._loop, find_fd=find_fd or self._find_fd, host=self._host)
        if frontend is not None:
            old.detach()
            frontend.chardev_replaced(new)
        self._devices[options.id] = new
        self._order.discard(options.id, shrink=False)
        self._order.add(options.id)
        old.close()
        return new

    def query(self) -> list[ChardevInfo]:
        """Describe all devices, in the order in which QEMU lists them."""
        devices = [self._devices[name] for name in reversed(list(self._order))]
        return [ChardevInfo(each.label, each.filename, _in_use(each)) for each in devices]

    def close_all(self) -> None:
        """Close every device, multiplexers before what is behind them."""
        for chardev in reversed(self._devices.values()):
            chardev.close()
        self._devices.clear()
        self._order = HashOrder()
