"""Hubs: each frame that comes in at one port goes out at all others."""

from __future__ import annotations

from collections import deque

from pyvm.net.client import Frame, NetClient, Offload

_WAITING_LIMIT = 256
"""Most frames that wait at a port whose peer has no room; more are lost."""


class Hub:
    """A hub by its number; ports come and go."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ports: list[HubPort] = []
        self._made = 0

    def add_port(self, name: str | None) -> HubPort:
        """Return a new port, called after its number where it is given no name."""
        port = HubPort(self, name or f"hub{self.number}port{self._made}")
        self._made += 1
        self.ports.append(port)
        return port


class HubPort(NetClient):
    """A port; its peer is what is plugged in there."""

    def __init__(self, hub: Hub, name: str) -> None:
        super().__init__(name, "hubport")
        self._hub = hub
        self._waiting: deque[Frame] = deque()
        self._passing = False
        """Whether a frame that this port got is on its way: what comes back meanwhile runs in circles."""

    @property
    def hub_of_port(self) -> int | None:
        """The hub's number."""
        return self._hub.number

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Pass a frame on to all other ports."""
        del offload
        if self._passing:
            return True
        self._passing = True
        try:
            for port in self._hub.ports:
                if port is not self:
                    port.pass_on(frame)
        finally:
            self._passing = False
        return True

    def batch_end(self) -> None:
        """Pass the end of a run of frames on."""
        if self._passing:
            return
        self._passing = True
        try:
            for port in self._hub.ports:
                if port is not self:
                    port.send_end()
        finally:
            self._passing = False

    def pass_on(self, frame: Frame) -> None:
        """Send a frame out of this port, now or when the peer has room."""
        if not self._waiting and self.send(frame):
            return
        if len(self._waiting) < _WAITING_LIMIT:
            self._waiting.append(bytes(frame))

    def resume(self) -> None:
        """Send what waits."""
        while self._waiting and self.send(self._waiting[0]):
            self._waiting.popleft()

    def peer_changed(self) -> None:
        """What waits was for another peer."""
        self._waiting.clear()

    def close(self) -> None:
        """Leave the hub."""
        if self in self._hub.ports:
            self._hub.ports.remove(self)
