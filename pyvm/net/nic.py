"""A network card's end of its link: what carries frames between a card and its peer."""

from __future__ import annotations

from typing import Any, Protocol

from pyvm.net.client import Frame, NetClient, Offload

_MAC_LENGTH = 6


class Card(Protocol):
    """A network card, as its link sees it."""

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame; return False where there is no room now, and then call `resume` of the link's peer."""

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame on one of several queues."""

    def send_waiting(self) -> None:
        """The peer takes frames again."""

    def link_changed(self, up: bool) -> None:
        """The link came or went."""

    def announce(self) -> None:
        """Let the guest tell the network where it is."""

    def rx_filter(self) -> dict[str, Any] | None:
        """Return an RxFilterInfo without its name; None where the card's filter cannot be asked for."""


class _NoCard:
    """Stands in until the card is there."""

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        return True

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        return True

    def send_waiting(self) -> None:
        pass

    def link_changed(self, up: bool) -> None:
        pass

    def announce(self) -> None:
        pass

    def rx_filter(self) -> dict[str, Any] | None:
        return None


class NicClient(NetClient):
    """The client of one card."""

    offloads = True

    def __init__(self, name: str, model: str, mac: bytes) -> None:
        super().__init__(name, "nic", model)
        self.is_netdev = False
        self.mac = mac
        self.card: Card = _NoCard()
        self.show_mac(mac)

    def show_mac(self, mac: bytes) -> None:
        """Show another MAC address to people."""
        self.info = f"model={self.model},macaddr={mac_text(mac)}"

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Hand a frame to the card."""
        return self.card.receive(frame, offload)

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Hand a frame to one of the card's queues."""
        return self.card.receive_on(queue, frame, offload)

    def resume(self) -> None:
        """Let the card send what it kept."""
        self.card.send_waiting()

    def link_changed(self) -> None:
        """Tell the card."""
        self.card.link_changed(not self.link_down)

    def announce(self) -> None:
        """Tell the card."""
        self.card.announce()

    def room(self) -> None:
        """The card has room again after it refused a frame."""
        if self.peer is not None:
            self.peer.resume()


def mac_text(mac: bytes) -> str:
    """Return a MAC address as text."""
    return ":".join(f"{byte:02x}" for byte in mac)


def parse_mac(text: str) -> bytes | None:
    """Return the MAC address that `text` is, with colons or dashes; None where it is none."""
    parts = text.replace("-", ":").split(":")
    if len(parts) != _MAC_LENGTH or not all(0 < len(part) <= 2 for part in parts):
        return None
    try:
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        return None
