"""ICMP (RFC 792) from guests: echo requests are all that means something here."""

from __future__ import annotations

from pyvm.net import packets as p
from pyvm.net.user.echo import EchoRelay
from pyvm.net.user.stack import UserNet


class IcmpService:
    """All ICMP of one network."""

    def __init__(self, net: UserNet, echo: EchoRelay) -> None:
        self._echo = echo
        net.protocols[p.PROTO_ICMP] = self.receive

    def receive(self, source: bytes, destination: bytes, payload: memoryview, checked: bool) -> None:
        """Take a message of a guest."""
        del checked
        if len(source) == len(destination) == 4 and len(payload) >= p.ICMP.size and not p.words_sum(payload):
            self._echo.request(source, destination, bytes(payload))
