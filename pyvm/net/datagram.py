"""The back ends `dgram`, and `socket` with UDP or a multicast group: each frame is one datagram."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from pyvm.mainloop import MainLoop
from pyvm.net.client import Frame, NetClient, Offload

_LARGEST = 65536 + 64
_BATCH = 64


class DatagramNet(NetClient):
    """A link over datagrams to `destination`, or over a socket that is connected where that is None."""

    def __init__(
        self,
        name: str,
        kind: str,
        loop: MainLoop,
        made: socket.socket,
        destination: Any,
        info: str,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name, kind)
        self.info = info
        self._loop = loop
        self._socket = made
        self._destination = destination
        self._on_close = closed
        self._held: bytes | None = None
        """A frame for which the peer has no room."""
        made.setblocking(False)
        loop.add_reader(made.fileno(), self._readable)

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Send a frame; what the host cannot send is lost, as datagrams are."""
        del offload
        try:
            if self._destination is None:
                self._socket.send(frame)
            else:
                self._socket.sendto(frame, self._destination)
        except OSError:
            return True
        return True

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                frame = self._socket.recv(_LARGEST)
            except OSError:
                break
            if not self.send(frame):
                self._held = frame
                self._loop.remove_reader(self._socket.fileno())
                break
        self.send_end()

    def resume(self) -> None:
        """The peer takes frames again."""
        if self._held is not None and self.send(self._held):
            self._held = None
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._on_close()


def remover(path: bytes) -> Callable[[], None]:
    """Return what removes the file of a socket."""

    def remove() -> None:
        try:
            os.unlink(path)
        except OSError:
            pass  # it is gone already

    return remove
