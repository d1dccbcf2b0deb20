"""All character devices of a machine, by name; where they are made and ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvm.chardev.address import FindFd
from pyvm.chardev.base import Chardev, ChardevError
from pyvm.chardev.file import FileChardev, PipeChardev
from pyvm.chardev.mux import CTRL_A, MuxChardev
from pyvm.chardev.null import NullChardev
from pyvm.chardev.options import (
    ChardevOptions,
    FileOptions,
    MuxOptions,
    NullOptions,
    PipeOptions,
    PtyOptions,
    RingbufOptions,
    SerialOptions,
    SocketOptions,
    StdioOptions,
    UdpOptions,
    VcOptions,
)
from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.mainloop import MainLoop


def open_chardev(options: ChardevOptions, loop: MainLoop, *, find_fd: FindFd | None = None) -> Chardev:
    """Make the back end that `options` describe, without the multiplexer that they may ask for; raises ChardevError.

    `find_fd` returns descriptors that have names.  A `mux` is made by :class:`ChardevSet`, which knows its back end.
    """
    chardev = _open(options, loop, find_fd)
    if options.logfile is not None:
        try:
            chardev.log_to(options.logfile, options.logappend)
        except ChardevError:
            chardev.close()
            raise
    return chardev


def _open(options: ChardevOptions, loop: MainLoop, find_fd: FindFd | None) -> Chardev:
    # Imported where used: each machine has few of these, and every import lengthens the start.
    match options:
        case NullOptions():
            return NullChardev(options.id)
        case VcOptions():
            return NullChardev(options.id, "vc")
        case RingbufOptions():
            return RingbufChardev(options.id, options.size, options.kind)
        case FileOptions():
            return FileChardev(options.id, loop, options.path, append=options.append, input_path=options.input_path)
        case PipeOptions():
            return PipeChardev(options.id, loop, options.path)
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
    raise ChardevError(f"chardev: '{options.id}' cannot be made on its own")


@dataclass(frozen=True)
class ChardevInfo:
    """One character device as `query-chardev` shows it."""

    label: str
    filename: str
    frontend_open: bool
    """Whether a device uses it and, where that can be, has it opened."""


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
    ) -> None:
        """`escape` is the key of every multiplexer (`-echr`), `on_quit` what its exit key does."""
        self._loop = loop
        self._escape = escape
        self._on_quit = on_quit
        self._find_fd = find_fd
        self._daemonized = daemonized
        self._devices: dict[str, Chardev] = {}

    def __iter__(self) -> Iterator[Chardev]:
        return iter(list(self._devices.values()))

    def find(self, identifier: str) -> Chardev | None:
        """Return the device of that name, None where there is none; a front end attaches to its `port()`."""
        return self._devices.get(identifier)

    def add(self, options: ChardevOptions) -> Chardev:
        """Make a device, with its multiplexer where asked for; raises ChardevError."""
        if options.id in self._devices:
            raise ChardevError(f"Duplicate ID '{options.id}' for chardev")
        if self._daemonized and isinstance(options, StdioOptions):
            raise ChardevError("cannot use stdio with -daemonize")
        if isinstance(options, MuxOptions):
            base = self.find(options.chardev)
            if base is None:
                raise ChardevError(f"mux: base chardev {options.chardev} not found")
            if isinstance(base, MuxChardev):
                raise ChardevError(f"mux: base chardev {options.chardev} is a multiplexer itself")
            return self._add_mux(options.id, base)
        if not options.mux:
            chardev = open_chardev(options, self._loop, find_fd=self._find_fd)
            self._devices[options.id] = chardev
            return chardev
        base_id = f"{options.id}-base"
        if base_id in self._devices:
            raise ChardevError(f"Duplicate ID '{base_id}' for chardev")
        base = open_chardev(options, self._loop, find_fd=self._find_fd)
        base.label = base_id
        self._devices[base_id] = base
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
        del self._devices[identifier]
        chardev.close()
        if isinstance(chardev, MuxChardev) and chardev.backend.label == f"{identifier}-base":
            self._devices.pop(chardev.backend.label, None)
            chardev.backend.close()

    def query(self) -> list[ChardevInfo]:
        """Describe all devices, in the order in which they were made."""
        return [ChardevInfo(each.label, each.filename, each.frontend_open) for each in self._devices.values()]

    def close_all(self) -> None:
        """Close every device, multiplexers before what is behind them."""
        for chardev in reversed(self._devices.values()):
            chardev.close()
        self._devices.clear()
