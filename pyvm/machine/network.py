"""A machine's networks: its back ends and cards, and what monitors ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.chardev.base import Chardev, ChardevError
from pyvm.errors import ConfigError, MissingError
from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError, device_not_found
from pyvm.net.client import NetClient
from pyvm.net.make import NetHost, make_netdev
from pyvm.net.nic import NicClient, parse_mac
from pyvm.net.registry import NetSet
from pyvm.options import warn

if TYPE_CHECKING:
    from pyvm.clock import Clock
    from pyvm.config import DeviceConfig, MachineConfig
    from pyvm.devices.e1000.function import E1000Function
    from pyvm.devices.properties import DeviceModel
    from pyvm.devices.virtio.net import VirtioNet
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice
    from pyvm.memory import GuestMemory
    from pyvm.net.announce import Announcer, AnnounceTimes
    from pyvm.net.user.backend import UserBackend

_VIRTIO_SWITCHES = frozenset(
    "csum guest_csum gso guest_tso4 guest_tso6 guest_ecn guest_ufo guest_announce host_tso4 host_tso6 host_ecn "
    "host_ufo mrg_rxbuf status ctrl_vq ctrl_rx ctrl_vlan ctrl_rx_extra ctrl_mac_addr ctrl_guest_offloads".split()
)


class Network:
    """The networks of one machine."""

    def __init__(self, pc: Pc) -> None:
        self.clients = NetSet()
        self._pc = pc
        self.host = NetHost(pc.mainloop, pc.clock, self.clients, self._emit, self._find_chardev)
        self._announcers: dict[str, Announcer] = {}
        self._watched: dict[NicClient, bool] = {}
        """Cards, and whether the next change of their filter is told: each is told once until somebody asks."""

    def _emit(self, name: str, data: Mapping[str, Any]) -> None:
        self._pc.events.emit(name, dict(data))

    def create(self, config: MachineConfig) -> None:
        """Make the back ends of the command line.  Raises ConfigError."""
        for item in config.netdevs:
            try:
                client = make_netdev(self.host, item.options)
            except ConfigError as error:
                text = str(error)
                if text.startswith("Duplicate ID"):
                    text += " for netdev"
                raise ConfigError(f"{item.origin}: {text}" if item.origin else text) from None
            client.is_netdev = item.listed

    def _find_chardev(self, text: str, label: str) -> Chardev:
        from pyvm.chardev.uri import ChardevReference, parse_uri

        failed = ConfigError(f"Could not open guest forwarding device '{text}'")
        devices = self._pc.chardev_set
        try:
            parsed = parse_uri(label, text)
            if isinstance(parsed, ChardevReference):
                found = devices.find(parsed.id)
                if found is None:
                    raise failed
                return found
            return devices.add(parsed)
        except ChardevError as error:
            raise ConfigError(str(error)) from None

    def warn(self) -> None:
        """Tell the person at the prompt of links that lead nowhere."""
        for text in self.clients.warnings():
            warn(f"warning: {text}")

    def close(self) -> None:
        """Give back what the host lent."""
        for announcer in self._announcers.values():
            announcer.stop()
        self.clients.close()

    # ---- Cards

    def make_client(self, model: DeviceModel, device: DeviceConfig, values: Mapping[str, Any]) -> NicClient:
        """Return the link of a new card, with its peer.  Raises ConfigError."""
        from pyvm.devices.properties import in_use, not_found

        name = values["netdev"]
        peer = None
        if name is not None:
            peer = self.clients.find_netdev(name)
            if peer is None:
                raise not_found(model, "netdev", name)
            if peer.peer is not None:
                raise in_use(model, "netdev", name)
        mac = None
        if values["mac"] is not None:
            mac = parse_mac(values["mac"])
            if mac is None:
                kind = "virtio-net-device" if model.name.startswith("virtio") else model.name
                raise ConfigError(f"Property '{kind}.mac' doesn't take value '{values['mac']}'")
        model_name = model.name.removesuffix("-non-transitional").removesuffix("-transitional")
        client = NicClient(device.id or self.clients.card_name(model_name), model_name, self.clients.take_mac(mac))
        self.clients.add(client)
        if peer is not None:
            client.connect(peer)
        return client

    def make_virtio(self, model: DeviceModel, device: DeviceConfig, values: Mapping[str, Any]) -> VirtioNet:
        """Return a new virtio card.  Raises ConfigError, and ValueError for values that cannot be."""
        from pyvm.devices.virtio.net import VirtioNet

        client = self.make_client(model, device, values)
        try:
            card = VirtioNet(
                self._clock,
                client,
                rx_queue_size=values["rx_queue_size"],
                tx_queue_size=values["tx_queue_size"],
                mtu=values["host_mtu"],
                speed=values["speed"],
                duplex=values["duplex"],
                mq=values["mq"],
                **{name: values[name] for name in _VIRTIO_SWITCHES},
            )
        except BaseException:
            self.drop_client(client)
            raise
        card.on_filter_change = lambda: self._filter_changed(client)
        return card

    def make_e1000(
        self, model: DeviceModel, device: DeviceConfig, values: Mapping[str, Any], memory: GuestMemory
    ) -> E1000Function:
        """Return a new Intel card.  Raises ConfigError."""
        from pyvm.devices.e1000.function import E1000Function

        client = self.make_client(model, device, values)
        return E1000Function(
            *(model.name, self._clock, memory, client),
            mitigation=values["mitigation"],
            autonegotiation=values["autonegotiation"],
        )

    @property
    def _clock(self) -> Clock:
        return self._pc.clock

    def drop_client(self, client: NicClient) -> None:
        """A card has gone."""
        self._watched.pop(client, None)
        self.clients.give_mac_back(client.mac)
        self.clients.remove(client)

    def _filter_changed(self, client: NicClient) -> None:
        if not self._watched.get(client):
            return
        self._watched[client] = False
        data: dict[str, Any] = {"path": self._path(client)}
        if self._device(client).config.id is not None:
            data = {"name": client.name, **data}
        self._pc.events.emit("NIC_RX_FILTER_CHANGED", data)

    def _device(self, client: NicClient) -> PluggedDevice:
        for device in self._pc.plugger.plugged.devices:
            if getattr(getattr(device.made, "device", device.made), "client", None) is client:
                return device
        raise MissingError(f"Device '{client.name}' not found")

    def _path(self, client: NicClient) -> str:
        found = self._pc.model.qom.plugged.object_of(self._device(client))
        inner = found.children().get("virtio-backend")
        return found.path if inner is None else inner.path

    # ---- What monitors ask

    def add_netdev(self, options: Mapping[str, Any], find_fd: Callable[[str], int]) -> None:
        """Make a back end; raises QmpError."""
        self.host.find_fd = find_fd
        try:
            make_netdev(self.host, options)
        except ConfigError as error:
            raise QmpError(str(error)) from None

    def remove_netdev(self, name: str) -> None:
        """Take a back end away; raises QmpError where there is none of that name."""
        found = self.clients.find_netdev(name)
        if found is None:
            raise device_not_found(name)
        if not found.is_netdev:
            raise QmpError(f"Device '{name}' is not a netdev")
        for item in list(found.filters):
            self._pc.model.objects.remove(item.id)
        self.clients.remove(found)

    def set_link(self, name: str, up: bool) -> None:
        """Connect or pull out a cable; raises QmpError where there is no such client."""
        found = self.clients.find(name)
        if found is None:
            raise QmpError(f"Device '{name}' not found", DEVICE_NOT_FOUND)
        self.clients.set_link(found, up)

    def rx_filters(self, name: str | None) -> list[dict[str, Any]]:
        """Return the receive filters of one card or all; raises QmpError."""
        if name is not None and self.clients.find(name) is None:
            raise QmpError(f"invalid net client name: {name}")
        found = []
        for client in self.clients:
            if name is not None and client.name != name:
                continue
            if not isinstance(client, NicClient):
                if name is not None:
                    raise QmpError(f"net client({name}) isn't a NIC")
                continue
            info = client.card.rx_filter()
            if info is None:
                if name is not None:
                    raise QmpError(f"net client({name}) doesn't support rx-filter querying")
                continue
            self._watched[client] = True
            found.append({"name": client.name, **info})
        return found

    def cards(self, names: Sequence[str] | None) -> Iterable[NicClient]:
        """Return the cards of these names, or all."""
        return [
            client
            for client in self.clients
            if isinstance(client, NicClient) and (names is None or client.name in names)
        ]

    def announce(self, times: AnnounceTimes, names: Sequence[str] | None, identifier: str) -> None:
        """Announce cards, now and in rounds; what was begun under the same identifier ends."""
        from pyvm.net.announce import Announcer

        before = self._announcers.pop(identifier, None)
        if before is not None:
            before.stop()
        announcer = self._announcers[identifier] = Announcer(self._pc.mainloop, times, lambda: self.cards(names))
        announcer.run()

    def user_networks(self) -> list[UserBackend]:
        """Return the back ends `user`."""
        found: list[Any] = [client for client in self.clients if client.kind == "user"]
        return found

    def user_network(self, name: str | None) -> UserBackend:
        """Return a back end `user` by its name, or the first; raises QmpError."""
        networks = self.user_networks()
        if name is not None:
            client: NetClient | None = self.clients.find(name)
            if client is None:
                raise QmpError(f"unrecognized netdev id '{name}'")
            if client.kind != "user":
                raise QmpError("invalid device specified")
            return next(network for network in networks if network is client)
        if not networks:
            raise QmpError("user mode network stack not in use")
        return networks[0]
