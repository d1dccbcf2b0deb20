"""Announcements: cards tell switches and neighbours where they are, by RARP frames and by the guest itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyvm.mainloop import MainLoop
from pyvm.net import packets as p
from pyvm.net.nic import NicClient
from pyvm.records import record

_RARP_REQUEST = 3
_SMALLEST_FRAME = 60
_MILLISECONDS = 1000


@record(frozen=True)
class AnnounceTimes:
    """When announcements are sent: `rounds` times, first after `initial` ms, then each `step` ms later up to `max`."""

    initial: int = 50
    max: int = 550
    rounds: int = 5
    step: int = 100

    def delay(self, round_number: int) -> int:
        """Return the milliseconds before a round, the second being number 1."""
        return max(min(self.initial + (round_number - 1) * self.step, self.max), 0)


class Announcer:
    """Sends one set of announcements; `cards` returns those that are to be announced."""

    def __init__(self, loop: MainLoop, times: AnnounceTimes, cards: Callable[[], Iterable[NicClient]]) -> None:
        self._loop = loop
        self._times = times
        self._cards = cards
        self._done = 0
        self._stopped = False

    def run(self) -> None:
        """Send a round, and have the next one sent."""
        if self._stopped or self._done >= self._times.rounds:
            return
        self._done += 1
        for card in self._cards():
            card.send(rarp_frame(card.mac))
            card.send_end()
            card.announce()
        if self._done < self._times.rounds:
            self._loop.call_later(self._times.delay(self._done) / _MILLISECONDS, self.run)

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True


def rarp_frame(mac: bytes) -> bytes:
    """Return a RARP request from and for a MAC address, which teaches switches where that is."""
    unknown = bytes(4)
    packet = p.arp_packet(_RARP_REQUEST, (mac, unknown), (mac, unknown))
    return (p.ETHERNET.pack(p.BROADCAST_MAC, mac, p.ETHERTYPE_RARP) + packet).ljust(_SMALLEST_FRAME, b"\0")
