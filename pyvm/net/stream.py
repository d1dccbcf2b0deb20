"""The back ends `stream` and `socket` with a connection: frames go to one other program, which has the other end.

A server serves one client at a time, and the next one when that has gone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pyvm.chardev.address import Listener
from pyvm.mainloop import MainLoop
from pyvm.net.client import Frame, NetClient, Offload
from pyvm.net.framed import FramedConnection

_ACCEPT_RETRY_SECONDS = 1.0
Named = Callable[[socket.socket, bool], tuple[str, Mapping[str, Any] | None]]
"""Returns what `info network` shows for a connection, accepted where the flag says so, and its SocketAddress."""


class StreamNet(NetClient):
    """A link over a connection; `named` says what the connection is called."""

    def __init__(
        self, name: str, kind: str, loop: MainLoop, named: Named, emit: Callable[[str, Mapping[str, Any]], None]
    ) -> None:
        super().__init__(name, kind)
        self._loop = loop
        self._named = named
        self._emit = emit
        self._listener: Listener | None = None
        self._attempt: socket.socket | None = None
        self._connection: FramedConnection | None = None
        self._accepting = False
        self._closed = False

    # ---- How the connection comes about

    def serve(self, listener: Listener) -> None:
        """Wait for clients."""
        self._listener = listener
        for item in listener.sockets:
            item.setblocking(False)
        self._accept_more()

    def begin(self, connection: socket.socket, *, accepted: bool = False) -> None:
        """Use a connection that is there."""
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.info, address = self._named(connection, accepted)
        self._connection = FramedConnection(
            self._loop, connection, self.send, self.send_end, self._room, self._disconnected
        )
        if address is not None:
            self._emit("NETDEV_STREAM_CONNECTED", {"netdev-id": self.name, "addr": dict(address)})
        self._room()

    def connect_to(self, family: int, address: Any) -> OSError | None:
        """Begin to connect; return what prevents that at once."""
        attempt = socket.socket(family, socket.SOCK_STREAM)
        attempt.setblocking(False)
        code = attempt.connect_ex(address)
        if code == errno.EINPROGRESS:
            self._attempt = attempt
            self._loop.add_writer(attempt.fileno(), self._connected)
            return None
        if code:
            attempt.close()
            return OSError(code, "")
        self.begin(attempt)
        return None

    def _connected(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        self._loop.remove_writer(attempt.fileno())
        if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            attempt.close()
            self.info = "connection error" if self.kind == "stream" else ""
        else:
            self.begin(attempt)

    def _accept_more(self) -> None:
        if self._listener is not None and not self._accepting and self._connection is None and not self._closed:
            self._accepting = True
            for item in self._listener.sockets:
                self._loop.add_reader(item.fileno(), self._accept, item)

    def _stop_accepting(self) -> None:
        if self._listener is not None and self._accepting:
            self._accepting = False
            for item in self._listener.sockets:
                self._loop.remove_reader(item.fileno())

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            self._stop_accepting()  # out of descriptors: the client waits
            self._loop.call_later(_ACCEPT_RETRY_SECONDS, self._accept_more)
            return
        self._stop_accepting()
        self.begin(connection, accepted=True)

    def _disconnected(self) -> None:
        self._connection = None
        self.info = ""
        if self.kind == "stream":
            self._emit("NETDEV_STREAM_DISCONNECTED", {"netdev-id": self.name})
        self._room()
        self._accept_more()

    def close(self) -> None:
        """Close all sockets."""
        self._closed = True
        self._stop_accepting()
        if self._listener is not None:
            self._listener.close()
        if self._attempt is not None:
            self._loop.remove_writer(self._attempt.fileno())
            self._attempt.close()
            self._attempt = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- Frames

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Send a frame of the peer to the other program; lost where there is none."""
        del offload
        return self._connection is None or self._connection.send(frame)

    def resume(self) -> None:
        """The peer takes frames again."""
        if self._connection is not None:
            self._connection.resume()

    def _room(self) -> None:
        if self.peer is not None:
            self.peer.resume()
