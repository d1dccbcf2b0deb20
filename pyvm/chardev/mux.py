"""Several front ends on one back end: `mux`, with keys to switch between them.

All front ends write to the back end; one of them, in focus, gets its input.  The escape key (Ctrl-A unless set
otherwise) and one more key are a command to the multiplexer.  Keys are heard even while the guest takes no input: a
bounded amount of type-ahead is kept for each front end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyvm.chardev.base import Buffer, Chardev, ChardevError, ChardevEvent, Frontend
from pyvm.mainloop import MainLoop

MAX_PORTS = 4
TYPE_AHEAD = 4096
"""Most bytes kept for a front end that does not take them; then the back end is held back, and the escape key too."""

CTRL_A = 1

_COMMANDS = (
    ("h", "print this help"),
    ("x", "exit emulator"),
    ("s", "save disk data back to file (not available)"),
    ("t", "toggle console timestamps"),
    ("b", "send break (magic sysrq)"),
    ("c", "switch between console and monitor"),
)


class MuxPort(Chardev):
    """What one front end of a multiplexer attaches to."""

    def __init__(self, mux: MuxChardev) -> None:
        super().__init__(mux.label)
        self.mux = mux
        self.typed = bytearray()
        self.starved = False

    @property
    def filename(self) -> str:
        """Return the name that all ports share."""
        return self.mux.filename

    @property
    def connected(self) -> bool:
        """Whether the shared back end has a peer."""
        return self.mux.connected

    def attach(self, frontend: Frontend) -> None:
        """Connect the front end and give it the focus."""
        super().attach(frontend)
        self.mux.focus(self)

    def detach(self) -> None:
        """Disconnect the front end; the port is gone with it."""
        super().detach()
        self.mux.remove(self)

    def set_open(self, is_open: bool) -> None:
        """Take note, also for the multiplexer as a whole."""
        super().set_open(is_open)
        self.mux.update_open()

    def _write(self, data: Buffer) -> int:
        taken = self.mux.write_from_port(data)
        self.starved = taken < len(data)
        return taken

    def accept_input(self) -> None:
        """Deliver type-ahead soon."""
        self.mux.schedule_delivery()

    def take_fds(self) -> list[int]:
        """Return the descriptors that the shared peer passed."""
        return self.mux.backend.take_fds()

    def close(self) -> None:
        """Give the port up."""
        self.detach()
        super().close()


class MuxChardev(Chardev):
    """The multiplexer: the one front end of its back end, and the back end of up to four front ends."""

    def __init__(
        self,
        label: str,
        backend: Chardev,
        loop: MainLoop,
        *,
        escape: int = CTRL_A,
        on_quit: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over `backend`; `on_quit` is called for the exit key.  Raises ChardevError where it is in use."""
        super().__init__(label)
        self.backend = backend
        self.escape = escape
        self.on_quit = on_quit
        self._loop = loop
        self._ports: list[MuxPort] = []
        self._focus: MuxPort | None = None
        self._escaped = False
        self._scheduled = False
        self._pending = bytearray()
        self._timestamps = False
        self._line_start = False
        self._epoch = 0.0
        try:
            backend.attach(self)
        except ValueError as error:
            raise ChardevError(f"mux: {error}") from error

    @property
    def filename(self) -> str:
        """Return the kind of back end; its own back end has a name of its own."""
        return "mux"

    @property
    def connected(self) -> bool:
        """Whether the back end behind has a peer."""
        return self.backend.connected

    @property
    def in_use(self) -> bool:
        """Whether any front end is attached."""
        return any(port.frontend is not None for port in self._ports)

    def port(self) -> Chardev:
        """Return a new port for one more front end; raises ChardevError where there are four already."""
        if len(self._ports) >= MAX_PORTS:
            raise ChardevError(f"too many uses of multiplexed chardev '{self.label}' (maximum is {MAX_PORTS})")
        port = MuxPort(self)
        self._ports.append(port)
        return port

    def attach(self, frontend: Frontend) -> None:
        """Attach `frontend` to a new port; raises ValueError where there is none left."""
        try:
            self.port().attach(frontend)
        except ChardevError as error:
            raise ValueError(str(error)) from error

    def remove(self, port: MuxPort) -> None:
        """Forget a port whose front end is gone; another one gets the focus."""
        if port in self._ports:
            self._ports.remove(port)
        self.update_open()
        if self._focus is port:
            self._focus = None
            others = [other for other in self._ports if other.frontend is not None]
            if others:
                self.focus(others[0])

    def update_open(self) -> None:
        """Take note of whether any front end is open."""
        self.frontend_open = any(port.frontend_open for port in self._ports)

    def focus(self, port: MuxPort) -> None:
        """Give the input to the front end on `port`."""
        if self._focus is not port:
            previous, self._focus = self._focus, port
            if previous is not None and previous.frontend is not None:
                previous.frontend.event(ChardevEvent.MUX_OUT)
            if port.frontend is not None:
                port.frontend.event(ChardevEvent.MUX_IN)
        self.update_open()
        self.schedule_delivery()

    # Input: from the back end to the port in focus.

    def can_receive(self) -> int:
        """Return how much fits into the type-ahead, whichever front end it turns out to be for."""
        if self._focus is None:
            return 0
        return max(TYPE_AHEAD - max(len(port.typed) for port in self._ports), 0)

    def receive(self, data: bytes) -> None:
        """Sort input into text for the front end in focus and commands to the multiplexer."""
        position = 0
        while position < len(data):
            if self._escaped:
                self._escaped = False
                self._command(data[position])
                position += 1
                continue
            found = data.find(self.escape, position)
            end = len(data) if found < 0 else found
            self._typed(data[position:end])
            self._escaped = found >= 0
            position = end + 1

    def _typed(self, text: bytes) -> None:
        port = self._focus
        if port is None or not text:
            return  # the front end left just now
        port.typed += text
        self._deliver_to(port)

    @staticmethod
    def _deliver_to(port: MuxPort) -> None:
        """Hand over type-ahead until none is left or the front end refuses: only then will it ask for more."""
        while port.typed and port.frontend is not None and (room := port.frontend.can_receive()) > 0:
            text = bytes(port.typed[:room])
            del port.typed[:room]
            port.frontend.receive(text)

    def schedule_delivery(self) -> None:
        """Deliver type-ahead soon, and let the back end read on."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        for port in list(self._ports):
            self._deliver_to(port)
        if self.can_receive() > 0:
            self.backend.accept_input()

    def _command(self, key: int) -> None:
        if key == self.escape:
            self._typed(bytes([key]))
            return
        match chr(key):
            case "h" | "?":
                self._print(self._help())
            case "x":
                self._print(b"QEMU: Terminated\n\r")
                self.on_quit()
            case "s":
                self._print(b"pyvm: save is not available\n\r")
            case "t":
                self._timestamps = not self._timestamps
                self._line_start = False
                self._epoch = time.monotonic()
            case "b":
                if self._focus is not None and self._focus.frontend is not None:
                    self._focus.frontend.event(ChardevEvent.BREAK)
            case "c":
                self._focus_next()

    def _help(self) -> bytes:
        name = f"C-{chr(self.escape + 96)}" if 1 <= self.escape <= 26 else f"0x{self.escape:02x}"
        rows = [*_COMMANDS, (name, f"sends {name}")]
        return b"\n\r" + "".join(f"{name} {key:<4} {meaning}\n\r" for key, meaning in rows).encode()

    def _focus_next(self) -> None:
        candidates = [port for port in self._ports if port.frontend is not None]
        if self._focus in candidates and len(candidates) > 1:
            self.focus(candidates[(candidates.index(self._focus) + 1) % len(candidates)])

    # Output: from all ports to the back end.

    def _write(self, data: Buffer) -> int:
        return self.write_from_port(data)

    def write_from_port(self, data: Buffer) -> int:
        """Write a front end's output, after what the multiplexer itself has to say."""
        if self._pending and not self._flush():
            return 0
        return self._write_stamped(data) if self._timestamps else self.backend.write(data)

    def _write_stamped(self, data: Buffer) -> int:
        """Write output with the time before each line; what is stamped counts as taken and waits here if it must."""
        taken = 0
        while taken < len(data) and self._flush():
            text = bytes(data[taken : taken + TYPE_AHEAD])
            taken += len(text)
            stamp = self._stamp()
            if self._line_start:
                self._pending += stamp
            self._line_start = text.endswith(b"\n")
            lines = text[:-1] if self._line_start else text
            self._pending += lines.replace(b"\n", b"\n" + stamp) + text[len(lines) :]
        self._flush()
        return taken

    def _stamp(self) -> bytes:
        milliseconds = int((time.monotonic() - self._epoch) * 1000)
        seconds, milliseconds = divmod(milliseconds, 1000)
        return b"[%02d:%02d:%02d.%03d] " % (seconds // 3600, seconds // 60 % 60, seconds % 60, milliseconds)

    def _print(self, text: bytes) -> None:
        if len(self._pending) < TYPE_AHEAD:  # a peer that asks for help for ever and reads nothing gets no more
            self._pending += text
        self._flush()

    def _flush(self) -> bool:
        """Write the multiplexer's own output; true when all of it went."""
        if self._pending:
            del self._pending[: self.backend.write(bytes(self._pending))]
        return not self._pending

    def writable(self) -> None:
        """The back end takes more: let every front end that was left with something offer it again."""
        if not self._flush():
            return
        for port in list(self._ports):
            if port.starved and port.frontend is not None:
                port.starved = False
                port.frontend.writable()

    def event(self, event: ChardevEvent) -> None:
        """Pass on what happened: a break to the front end in focus, the rest to all."""
        ports = [self._focus] if event is ChardevEvent.BREAK else list(self._ports)
        if event is ChardevEvent.CLOSED:
            self._escaped = False
        for port in ports:
            if port is not None and port.frontend is not None:
                port.frontend.event(event)

    def close(self) -> None:
        """Let the back end go; whoever made it closes it."""
        if self.backend.frontend is self:
            self.backend.detach()
        self._ports.clear()
        self._focus = None
        super().close()
