"""All network clients of one machine: back ends, hubs with their ports, and network cards."""

from __future__ import annotations

from collections.abc import Iterator

from pyvm.net.client import NetClient
from pyvm.net.hub import Hub, HubPort

_FIRST_MAC = bytes((0x52, 0x54, 0x00, 0x12, 0x34, 0x56))


class NetSet:
    """The clients in the order in which they came."""

    def __init__(self) -> None:
        self._clients: list[NetClient] = []
        self._hubs: dict[int, Hub] = {}
        self._macs: list[bytes] = []

    def __iter__(self) -> Iterator[NetClient]:
        return iter(list(self._clients))

    def find(self, name: str) -> NetClient | None:
        """Return a client by its name."""
        return next((client for client in self._clients if client.name == name), None)

    def find_netdev(self, name: str) -> NetClient | None:
        """Return a back end that can be named, by its ID."""
        found = self.find(name)
        return found if found is not None and found.kind != "nic" else None

    def card_name(self, model: str) -> str:
        """Return a name for a card that was given none."""
        return f"{model}.{sum(client.model == model for client in self._clients)}"

    def add(self, client: NetClient) -> None:
        """Take in a client."""
        self._clients.append(client)

    def remove(self, client: NetClient) -> None:
        """Take a client away, and give back what the host lent.

        A card keeps what it was connected to, as a cable that is dead.
        """
        if client in self._clients:
            self._clients.remove(client)
        client.close()
        peer = client.peer
        if peer is not None and peer.kind == "nic":
            client.link_down = peer.link_down = True
            peer.link_changed()
        else:
            client.disconnect()

    def hub_port(self, number: int, name: str | None) -> HubPort:
        """Return a new port of a hub, which is made where it is not there yet."""
        port = self._hubs.setdefault(number, Hub(number)).add_port(name)
        self._clients.append(port)
        return port

    # ---- MAC addresses

    def take_mac(self, wanted: bytes | None) -> bytes:
        """Return the address for a new card: `wanted`, or the first of QEMU's that no card has."""
        mac = wanted
        number = int.from_bytes(_FIRST_MAC, "big")
        while mac is None or (wanted is None and mac in self._macs):
            mac = number.to_bytes(6, "big")
            number += 1
        self._macs.append(mac)
        return mac

    def give_mac_back(self, mac: bytes) -> None:
        """A card has gone."""
        if mac in self._macs:
            self._macs.remove(mac)

    # ---- Link state

    def set_link(self, client: NetClient, up: bool) -> None:
        """Connect or pull out the cable of a client; a card at the other end sees that too."""
        client.link_down = not up
        client.link_changed()
        peer = client.peer
        if peer is not None:
            if peer.kind == "nic":
                peer.link_down = not up
            peer.link_changed()

    # ---- For people

    def text(self) -> str:
        """Return what `info network` shows."""
        text = ""
        for hub in reversed(self._hubs.values()):
            if hub.ports:
                text += f"hub {hub.number}\n"
            for port in reversed(hub.ports):
                text += f" \\ {port.name}" + (f": {_line(port.peer)}" if port.peer is not None else "\n")
        for client in self._clients:
            if client.hub is not None or client.hub_of_port is not None:
                continue
            if client.peer is None or client.kind == "nic":
                text += _line(client)
            if client.peer is not None and client.kind == "nic":
                text += f" \\ {_line(client.peer)}"
                for queue in range(1, client.peer.queues):
                    text += f"{client.name}: index={queue},type=nic,\n \\ {_line(client.peer, queue)}"
        return text

    def warnings(self) -> Iterator[str]:
        """Yield what is odd about the links: ends that lead nowhere."""
        for hub in self._hubs.values():
            for port in hub.ports:
                if port.peer is None:
                    yield f"hub port {port.name} has no peer"
            peers = [port.peer for port in hub.ports if port.peer is not None]
            cards = sum(peer.kind == "nic" for peer in peers)
            if cards and cards == len(peers):
                yield f"hub {hub.number} is not connected to host network"
            elif peers and not cards:
                yield f"hub {hub.number} with no nics"
        for client in self._clients:
            if client.peer is None:
                yield f"{'nic' if client.kind == 'nic' else 'netdev'} {client.name} has no peer"

    def close(self) -> None:
        """Let all go, the newest first."""
        while self._clients:
            self.remove(self._clients[-1])


def _line(client: NetClient, queue: int | None = None) -> str:
    index = client.queue_index if queue is None else queue
    filters = "".join(f"  - {item.id}: type={item.kind}{item.description}\n" for item in client.filters)
    head = f"{client.name}: index={index},type={client.kind},{client.info}\n"
    return head + (f"filters:\n{filters}" if filters else "")
