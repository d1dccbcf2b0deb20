"""A viewer's connection: the socket under a :class:`~pyvm.vnc.session.Session`, on the main loop.

Input is read in small parts and output made in pieces, one at a time, so that nobody waits long for his turn.  What
all viewers have the loop do is limited while the guest runs (:mod:`pyvm.pace`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pyvm.vnc.protocol import ProtocolError

if TYPE_CHECKING:
    from pyvm.mainloop import MainLoop
    from pyvm.pace import Pace
    from pyvm.vnc.session import Session

READ_SIZE: Final = 1024


class Connection:
    """One viewer.  `on_wanting` is called when it waits for an update, `on_closed` when the connection has ended."""

    def __init__(
        self,
        loop: MainLoop,
        wire: socket.socket,
        session: Session,
        pace: Pace,
        *,
        on_wanting: Callable[[Connection], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.session = session
        self.wire = wire
        self.place: dict[str, Any] = {}
        """Where the viewer is, as monitors show it."""
        self._loop = loop
        self._pace = pace
        self._on_wanting = on_wanting
        self._on_closed = on_closed
        self._pending = memoryview(b"")
        self._writing = False
        self._paused: Any = None
        self.closed = False
        wire.setblocking(False)
        if wire.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # gone already
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self) -> None:
        """Greet the viewer and listen to it."""
        self._loop.add_reader(self.wire.fileno(), self._readable)
        self.pump()

    # ---- Input

    def _readable(self) -> None:
        if self._wait():
            return
        begun = self._pace.begin()
        try:
            data = self.wire.recv(READ_SIZE)
            if not data:
                self.close()
                return
            self.session.receive(data)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError):
            self.close()
            return
        finally:
            self._pace.charge(begun)
        if not self.closed:
            self.pump()

    # ---- Output

    def pump(self) -> None:
        """Send what there is to be sent, as far as the viewer takes it and one turn goes."""
        if self.closed or self._wait():
            return
        begun = self._pace.begin()
        more = self._send(begun)
        self._pace.charge(begun)
        if more is None:
            return
        if not more and self.session.over:
            self.close()
            return
        if self.session.wants_update:
            self._on_wanting(self)
        if more is not self._writing:
            self._writing = more
            if more:
                self._loop.add_writer(self.wire.fileno(), self.pump)
            else:
                self._loop.remove_writer(self.wire.fileno())

    def _send(self, begun: float) -> bool | None:
        """Send for one turn; return whether there is more, None where the viewer has gone."""
        while True:
            if not self._pending:
                self._pending = memoryview(self.session.output())
                if not self._pending:
                    return False
            try:
                sent = self.wire.send(self._pending)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                self.close()
                return None
            self._pending = self._pending[sent:]
            if self._pace.over(begun):
                return True

    # ---- Turns

    def _wait(self) -> bool:
        """Return whether the viewer has to wait, because all of them had too much of the loop's time."""
        if self._paused is not None:
            return True
        seconds = self._pace.pause()
        if not seconds:
            return False
        self._loop.remove_reader(self.wire.fileno())
        self._loop.remove_writer(self.wire.fileno())
        self._writing = False
        self._paused = self._loop.call_later(seconds, self._go_on)
        return True

    def _go_on(self) -> None:
        self._paused = None
        if not self.closed:
            self._loop.add_reader(self.wire.fileno(), self._readable)
            self.pump()

    def close(self) -> None:
        """End the connection."""
        if self.closed:
            return
        self.closed = True
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self.wire.fileno())
        self._loop.remove_writer(self.wire.fileno())
        self.wire.close()
        self._pending = memoryview(b"")
        self._on_closed(self)
