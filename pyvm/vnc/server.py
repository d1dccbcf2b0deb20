"""One VNC display: where it listens, who may come in, and who is there.  RFC 6143, sections 7.1 and 7.3.1."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from pyvm.chardev.address import FdAddress, FindFd, Listener, SocketAddress, inherited_socket, listen
from pyvm.vnc.connection import Connection
from pyvm.vnc.input import Keyboard, Locks, Pointer
from pyvm.vnc.protocol import XVP_RESET, XVP_SHUTDOWN, Security
from pyvm.vnc.session import Session

if TYPE_CHECKING:
    from pyvm.input import InputRouter, KeyInput
    from pyvm.mainloop import MainLoop
    from pyvm.pace import Pace
    from pyvm.vnc.options import VncOptions
    from pyvm.vnc.refresh import Refresher
    from pyvm.vnc.screen import Screen

_FAMILIES: Final = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6", socket.AF_UNIX: "unix"}
_ACCEPT_RETRY_SECONDS: Final = 1.0
NEVER: Final = (1 << 63) - 1
"""A password ends at that time, in seconds since the epoch, if nobody says otherwise."""

Place = dict[str, Any]
"""An end of a connection, as QMP shows it."""


def place_of(name: object, family: int) -> Place:
    """Return an address as getsockname(2) gives it."""
    host, service = "", ""
    if isinstance(name, tuple):
        host, service = str(name[0]), str(name[1])
    elif isinstance(name, str):
        service = name
    elif isinstance(name, bytes):
        service = name[1:].decode("utf-8", "replace")
    return {
        "host": host,
        "service": service,
        "family": _FAMILIES.get(socket.AddressFamily(family), "unknown"),
        "websocket": False,
    }


class VncHost:
    """What the displays of a machine have in common."""

    def __init__(
        self,
        loop: MainLoop,
        router: InputRouter,
        pace: Pace,
        *,
        emit: Callable[[str, Place], None],
        title: str,
        power_off: Callable[[], None],
        reset: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.router = router
        self.pace = pace
        self.emit = emit
        self.title = title
        self.power_off = power_off
        self.reset = reset
        self.locks = Locks()


class VncServer:
    """One display.  Raises ChardevError where it cannot listen."""

    def __init__(self, host: VncHost, options: VncOptions, screen: Screen, refresher: Refresher) -> None:
        self.options = options
        self.screen = screen
        self.connections: list[Connection] = []
        self.secret: bytes | None = None
        """The password, None where there is none: nobody that needs one gets in."""
        self.expires = NEVER
        self._host = host
        self._refresher = refresher
        self._listeners: list[Listener] = []

    # ---- Where it listens

    def listen(self, addresses: Iterable[SocketAddress], find_fd: FindFd | None = None) -> None:
        """Listen at these addresses and nowhere else; those who are connected stay so.  Raises ChardevError."""
        self._stop_listening()
        try:
            for address in addresses:
                if isinstance(address, FdAddress):
                    self._listeners.append(Listener([inherited_socket(address, find_fd)]))
                else:
                    self._listeners.append(listen(address))
        except BaseException:
            self._stop_listening()
            raise
        for listening in self._sockets():
            listening.setblocking(False)
            self._host.loop.add_reader(listening.fileno(), self._accept, listening)

    def _sockets(self) -> list[socket.socket]:
        return [listening for listener in self._listeners for listening in listener.sockets]

    def _stop_listening(self) -> None:
        for listening in self._sockets():
            self._host.loop.remove_reader(listening.fileno())
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _accept(self, listening: socket.socket) -> None:
        try:
            wire, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors or memory.  The viewer waits on; asking again at once would only burn time.
            self._host.loop.remove_reader(listening.fileno())
            self._host.loop.call_later(_ACCEPT_RETRY_SECONDS, self._accept_again, listening)
            return
        self.add(wire)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._sockets():
            self._host.loop.add_reader(listening.fileno(), self._accept, listening)

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._stop_listening()
        for connection in list(self.connections):
            connection.close()

    # ---- Who is there

    def add(self, wire: socket.socket, *, trusted: bool = False) -> None:
        """Serve a viewer; one that is `trusted` needs no password."""
        keyboard = Keyboard(self._key, self._host.locks if self.options.lock_key_sync else None)
        session = Session(self, keyboard, Pointer(self._host.router), trusted=trusted)
        connection = Connection(
            self._host.loop, wire, session, self._host.pace, on_wanting=self._wanting, on_closed=self._closed
        )
        try:
            connection.place = place_of(wire.getpeername(), wire.family)
        except OSError:
            connection.place = place_of(None, wire.family)  # gone already
        self.connections.append(connection)
        self._emit("VNC_CONNECTED", connection)
        connection.begin()
        connecting = [other for other in self.connections if other.session.shared is None]
        if len(connecting) > self.options.connections:
            self._drop(connecting[0])

    def _wanting(self, connection: Connection) -> None:
        self._refresher.wake(soon=connection.session.updates.insistent)

    def _key(self, event: KeyInput) -> None:
        self._host.router.type(event, self.options.key_delay_ms)

    def _closed(self, connection: Connection) -> None:
        connection.session.keyboard.lift_all()
        connection.session.pointer.lift_all()
        self.connections.remove(connection)
        self._emit("VNC_DISCONNECTED", connection)

    def _drop(self, connection: Connection) -> None:
        """End a connection once the present message has been dealt with."""
        self._host.loop.call_soon(connection.close)

    def _emit(self, event: str, connection: Connection) -> None:
        if self.places:
            server = {**self.places[0], "auth": self.security.name.lower()}
            self._host.emit(event, {"server": server, "client": dict(connection.place)})

    # ---- What sessions ask for

    @property
    def security(self) -> Security:
        """What a viewer has to show."""
        return Security.VNC if self.options.password else Security.NONE

    @property
    def title(self) -> str:
        """The name of the desktop."""
        return self._host.title

    @property
    def power_control(self) -> bool:
        """Whether viewers may switch the machine off and reset it."""
        return self.options.power_control

    @property
    def lights(self) -> int:
        """The lights of the keyboard."""
        return self._host.locks.leds

    def password(self) -> bytes | None:
        """Return the password, None where none is valid now."""
        return self.secret if time.time() < self.expires else None

    def admit(self, session: Session, shared: bool) -> bool:
        """Return whether a viewer may come in, and send those away that it wants to be without."""
        policy = self.options.share
        others = [one for one in self.connections if one.session is not session and one.session.shared is not None]
        if policy == "force-shared" and not shared:
            return False
        if policy == "allow-exclusive":
            if not shared:
                for other in others:
                    self._drop(other)
            elif any(other.session.shared is False for other in others):
                return False
        if len(others) >= self.options.connections:
            return False
        self._emit("VNC_INITIALIZED", next(one for one in self.connections if one.session is session))
        return True

    def touched(self) -> None:
        """Somebody types or points."""
        self._refresher.nudge()

    def power(self, action: int) -> bool:
        """Switch the machine off or reset it; return whether that is possible."""
        if action == XVP_SHUTDOWN:
            self._host.power_off()
        elif action == XVP_RESET:
            self._host.reset()
        else:
            return False
        return True

    # ---- What monitors ask for

    @property
    def places(self) -> list[Place]:
        """Where it listens, in the order of listening."""
        found = []
        for listener in self._listeners:
            for listening in listener.sockets:
                found.append(place_of(listening.getsockname(), listening.family))
        return found

    @property
    def clients(self) -> list[Place]:
        """Who is connected, the latest first."""
        return [connection.place for connection in reversed(self.connections)]
