"""Virtio network card (virtio 1.2, section 5.1): frames between guest RAM and a network client.

Queues: 0 receive, 1 transmit, and so on for each pair that the other side has; then control.  A driver that does not
know of pairs has the first one, and control at 2.

Checksums and segmentation are left to the other side where it can do that: a frame then has up to 64 KiB, and its
header says what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pyvm.clock import Clock
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio import net_registers as r
from pyvm.devices.virtio.constants import F_VERSION_1, ID_NET, MAX_QUEUES, STATUS_DRIVER_OK
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.net_control import NetControl
from pyvm.devices.virtio.net_filter import MAC_LENGTH, TABLE_LIMIT, VLANS, RxFilter
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.ring import Chain
from pyvm.net.client import ETHERNET_HEADER, MAX_FRAME, NO_OFFLOADS, Frame, Offload, Offloads
from pyvm.net.nic import NicClient
from pyvm.state import StateError, array, flag, integer, sequence, uint

_PAIR = 2
"""Queues of a pair: receive, which have even numbers, and transmit."""
_MOST_PAIRS = MAX_QUEUES // _PAIR - 1
_CONTROL_SIZE = 64
_SIZES = (256, 512, 1024)
_DUPLEX_UNKNOWN = 0xFF
_SPEED_UNKNOWN = 0xFFFFFFFF
_DUPLEX = {None: _DUPLEX_UNKNOWN, "half": 0, "full": 1}
_BUFFERS_LIMIT = 128
"""Most buffers for one frame; drivers need 45 for the longest with the smallest buffers that they use."""
_FRAMES_PER_TURN = 1024
"""After so many frames sent, others get a turn at the machine lock."""

_SWITCHES = {
    "csum": r.F_CSUM,
    "guest_csum": r.F_GUEST_CSUM,
    "gso": r.F_GSO,
    "guest_tso4": r.F_GUEST_TSO4,
    "guest_tso6": r.F_GUEST_TSO6,
    "guest_ecn": r.F_GUEST_ECN,
    "guest_ufo": r.F_GUEST_UFO,
    "guest_announce": r.F_GUEST_ANNOUNCE,
    "host_tso4": r.F_HOST_TSO4,
    "host_tso6": r.F_HOST_TSO6,
    "host_ecn": r.F_HOST_ECN,
    "host_ufo": r.F_HOST_UFO,
    "mrg_rxbuf": r.F_MRG_RXBUF,
    "status": r.F_STATUS,
    "ctrl_vq": r.F_CTRL_VQ,
    "ctrl_rx": r.F_CTRL_RX,
    "ctrl_vlan": r.F_CTRL_VLAN,
    "ctrl_rx_extra": r.F_CTRL_RX_EXTRA,
    "ctrl_mac_addr": r.F_CTRL_MAC_ADDR,
    "ctrl_guest_offloads": r.F_CTRL_GUEST_OFFLOADS,
}
"""Properties that offer a feature, all on by default."""
_NEEDS_CONTROL = (
    r.F_CTRL_RX
    | r.F_CTRL_VLAN
    | r.F_CTRL_RX_EXTRA
    | r.F_CTRL_MAC_ADDR
    | r.F_CTRL_GUEST_OFFLOADS
    | r.F_GUEST_ANNOUNCE
    | r.F_MQ
)


class NetState(VirtioState):
    """Migratable state."""

    mac: list[int] = array(uint(8), MAC_LENGTH)
    promiscuous: bool = flag()
    all_multicast: bool = flag()
    all_unicast: bool = flag()
    no_multicast: bool = flag()
    no_unicast: bool = flag()
    no_broadcast: bool = flag()
    unicast_overflow: bool = flag()
    multicast_overflow: bool = flag()
    unicast: list[list[int]] = sequence(array(uint(8), MAC_LENGTH), TABLE_LIMIT)
    multicast: list[list[int]] = sequence(array(uint(8), MAC_LENGTH), TABLE_LIMIT)
    vlans: list[int] = sequence(uint(12), VLANS)
    """The VLANs that are let through."""
    announcing: bool = flag()
    guest_offloads: int = uint(64)
    pairs: int = integer(1, _MOST_PAIRS, 1)


def _check_options(queue_sizes: Mapping[str, int], speed: int, duplex: str | None) -> None:
    """Raise ValueError where the user wants what cannot be."""
    for which, size in queue_sizes.items():
        if size not in _SIZES:
            raise ValueError(f"Invalid {which}_queue_size (= {size}), must be a power of 2 between 256 and 1024.")
    if duplex not in _DUPLEX:
        raise ValueError("'duplex' must be 'half' or 'full'")
    if speed < -1:
        raise ValueError("'speed' must be between 0 and INT_MAX")


class VirtioNet(VirtioDevice[NetState]):
    """A card whose link is `client`; `client.mac` is its address.

    `switches` are QEMU's properties that offer a feature.  Raises ValueError for values that cannot be.
    """

    device_id = ID_NET
    name = "virtio-net"
    state_type = NetState
    PROPERTIES: ClassVar[Properties] = {
        "mac": Property("macaddr", None, "Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56"),
        "netdev": Property("netdev", None, "ID of a netdev to use as a backend"),
        "bootindex": Property("int32", None, "place in the order in which the firmware tries to boot"),
        **{name: Property("bool", True, "on/off") for name in _SWITCHES},
        "rx_queue_size": Property("uint16", 256, "entries of the receive queue"),
        "tx_queue_size": Property("uint16", 256, "entries of the transmit queue"),
        "host_mtu": Property("uint16", 0, "MTU that the guest is told; 0: none"),
        "speed": Property("int32", -1, "speed in Mbit/s that the guest is told"),
        "duplex": Property("str", None, "half or full"),
        "mq": Property("bool", False, "on/off"),
    }

    def __init__(
        self,
        clock: Clock,
        client: NicClient,
        *,
        rx_queue_size: int = 256,
        tx_queue_size: int = 256,
        mtu: int = 0,
        speed: int = -1,
        duplex: str | None = None,
        mq: bool = False,
        **switches: bool,
    ) -> None:
        _check_options({"rx": rx_queue_size, "tx": tx_queue_size}, speed, duplex)
        features = r.F_MAC | (r.F_MTU if mtu else 0)
        features |= r.F_MQ if mq else 0
        features |= r.F_SPEED_DUPLEX if speed >= 0 or duplex is not None else 0
        for name, bit in _SWITCHES.items():
            features |= bit if switches.get(name, True) else 0
        features &= ~self._beyond(features, client)
        size = next(end for bit, end in r.CONFIG_ENDS if features & bit)
        self.most_pairs = min(client.peer.queues if client.peer is not None else 1, _MOST_PAIRS)
        """How many pairs of queues there are."""
        self._pairs = 1
        """How many the driver uses."""
        sizes = (rx_queue_size, tx_queue_size) * self.most_pairs
        super().__init__((*sizes, _CONTROL_SIZE), features, size)
        self.client = client
        self.filter = RxFilter(client.mac)
        self.control = NetControl(self)
        self.announcing = False
        self.guest_offloads = 0
        """The offloads that the driver takes now, as feature bits."""
        self.on_filter_change: Callable[[], None] = lambda: None
        """Told when the driver changed the receive filter."""
        self._mtu = mtu
        self._speed = speed if speed >= 0 else _SPEED_UNKNOWN
        self._duplex = _DUPLEX[duplex]
        self._header = r.HEADER
        self._mergeable = False
        self._refused = False
        """Whether the peer waits for room in the receive queue."""
        self._clock = clock
        self._next_turn = clock.timer(self.send_waiting)
        client.card = self

    @staticmethod
    def _beyond(features: int, client: NicClient) -> int:
        """Return the features that cannot be: the peer takes no offloads, or another feature is missing."""
        missing = 0
        if client.peer is None or not client.peer.offloads:
            missing |= r.HOST_OFFLOADS | r.GUEST_OFFLOADS | r.F_CTRL_GUEST_OFFLOADS
        else:
            missing |= (
                r.F_GUEST_UFO | r.F_HOST_UFO
            )  # large datagrams are of no use: they are rare, and few drivers left
        if not features & r.F_CSUM:
            missing |= r.HOST_OFFLOADS
        if not features & r.F_GUEST_CSUM:
            missing |= r.GUEST_OFFLOADS
        if not features & r.F_CTRL_VQ:
            missing |= _NEEDS_CONTROL
        return missing

    # Configuration

    def config(self) -> bytes:
        """Return the configuration space."""
        status = r.STATUS_LINK_UP if not self.client.link_down else 0
        status |= r.STATUS_ANNOUNCE if self.announcing else 0
        data = r.CONFIG.pack(self.filter.mac, status, self.most_pairs, self._mtu, self._speed, self._duplex)
        return data[: self.config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a MAC address that an old driver writes."""
        if not self.has(F_VERSION_1) and not self.has(r.F_CTRL_MAC_ADDR) and offset < MAC_LENGTH:
            mac = bytearray(self.filter.mac)
            mac[offset : offset + len(data)] = data
            self.set_mac(bytes(mac[:MAC_LENGTH]))

    def set_mac(self, mac: bytes) -> None:
        """Have another MAC address."""
        self.filter.mac = mac
        self.client.show_mac(mac)

    def features_changed(self) -> None:
        """Follow what the driver accepted: header, VLANs, offloads."""
        self._mergeable = self.has(r.F_MRG_RXBUF)
        with_count = self._mergeable or self.has(F_VERSION_1)
        self._header = r.HEADER_WITH_COUNT if with_count else r.HEADER
        self.filter.set_vlans(not self.has(r.F_CTRL_VLAN))
        self.set_guest_offloads(self.features & r.GUEST_OFFLOADS)

    def set_guest_offloads(self, offloads: int) -> None:
        """Leave these to the driver from now on; feature bits."""
        self.guest_offloads = offloads
        if not offloads & r.F_GUEST_CSUM:
            taken = NO_OFFLOADS
        else:
            taken = Offloads(
                checksum=True,
                tso4=bool(offloads & r.F_GUEST_TSO4),
                tso6=bool(offloads & r.F_GUEST_TSO6),
                ecn=bool(offloads & r.F_GUEST_ECN),
                ufo=bool(offloads & r.F_GUEST_UFO),
            )
        self.client.tell_offloads(taken)

    # Queues

    def handle_queue(self, queue: VirtQueue) -> None:
        """Work on what the driver made available."""
        if queue.index == self._control_index:
            self.control.handle(queue)
        elif queue.index >= _PAIR * self._pairs:
            return
        elif queue.index % _PAIR:
            self._transmit(queue)
        elif self._refused:
            self._refused = False
            self.client.room()

    @property
    def _control_index(self) -> int:
        return _PAIR * (self.most_pairs if self.has(r.F_MQ) else 1)

    def use_pairs(self, pairs: int) -> None:
        """Use so many pairs of queues from now on."""
        self._pairs = pairs
        self.send_waiting()

    def _transmit(self, queue: VirtQueue) -> None:
        """Send all frames, until the peer has no room."""
        header = self._header.size
        client = self.client
        offloads = self.features & r.F_CSUM
        for _ in range(_FRAMES_PER_TURN):
            chain = queue.pop()
            if chain is None:
                break
            total = chain.readable_bytes
            if total < header:
                self.fail("virtio-net header not in first element")
                return
            offload = None
            if ETHERNET_HEADER <= total - header <= MAX_FRAME:
                data = b"".join(chain.readable)
                if offloads and (data[0] or data[1]):
                    offload = Offload(*r.HEADER.unpack_from(data))
                if not client.send(memoryview(data)[header:], offload, queue.index // _PAIR):
                    queue.rewind(chain)
                    break
            queue.push(chain, 0)
        else:
            self._next_turn.arm(self._clock.now())
        queue.flush()
        client.send_end()

    def send_waiting(self) -> None:
        """Go on with sending."""
        for index in range(1, _PAIR * self._pairs, _PAIR):
            if self.running:
                self._transmit(self.queues[index])

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Put a frame into the driver's buffers; return False where there is no room for it now."""
        return self.receive_on(0, frame, offload)

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Do the same on the pair of that number, or on one that the driver uses in its place."""
        return self._receive(self.queues[_PAIR * (queue % self._pairs)], frame, offload)

    def _receive(self, queue: VirtQueue, frame: Frame, offload: Offload | None) -> bool:
        if not self.running:
            self._refused = bool(self.status & STATUS_DRIVER_OK) and not self.broken
            return not self._refused  # without a driver it is lost
        if len(frame) < ETHERNET_HEADER or not self.filter.accepts(frame) or not self._takes(offload):
            return True
        needed = self._header.size + len(frame)
        chains, room = self._buffers(queue, needed)
        if self.broken:
            return True  # the driver broke the ring
        if room < needed:
            if chains:
                queue.rewind(chains[0])
                if not self._mergeable or len(chains) >= _BUFFERS_LIMIT:
                    return True  # the driver's buffers are too small for this frame, which is lost
            self._refused = True
            return False
        self._fill(queue, chains, frame, offload)
        return True

    def _takes(self, offload: Offload | None) -> bool:
        """Whether the driver takes what is left to do for a frame; it may have changed its mind since it was asked."""
        return offload is None or bool(self.guest_offloads & r.F_GUEST_CSUM)

    def _buffers(self, queue: VirtQueue, needed: int) -> tuple[list[Chain], int]:
        """Pop chains until they have room for `needed` bytes; return them and their room."""
        chains: list[Chain] = []
        room = 0
        while room < needed and len(chains) < _BUFFERS_LIMIT:
            chain = queue.pop()
            if chain is None:
                break
            chains.append(chain)
            room += chain.writable_bytes
            if not self._mergeable:
                break
        return chains, room

    def _fill(self, queue: VirtQueue, chains: list[Chain], frame: Frame, offload: Offload | None) -> None:
        fields: tuple[int, ...] = offload or (0, 0, 0, 0, 0, 0)
        if self._header is r.HEADER_WITH_COUNT:
            fields = (*fields, len(chains))
        head = self._header.pack(*fields)
        first = chains[0]
        if len(chains) == 1:
            queue.push(first, first.scatter(head + frame))
        else:
            view = memoryview(frame)
            done = first.writable_bytes - len(head)
            queue.push(first, first.scatter(head + view[:done]))
            for chain in chains[1:]:
                written = chain.scatter(view[done : done + chain.writable_bytes])
                queue.push(chain, written)
                done += written
        queue.flush()

    # The link

    def link_changed(self, up: bool) -> None:
        """Tell the driver."""
        del up
        if self.offered_features & r.F_STATUS:
            self.config_changed()

    def announce(self) -> None:
        """Ask the driver to announce itself."""
        if self.has(r.F_GUEST_ANNOUNCE) and self.has(r.F_CTRL_VQ) and self.status & STATUS_DRIVER_OK:
            self.announcing = True
            self.config_changed()

    def rx_filter(self) -> dict[str, Any]:
        """Return an RxFilterInfo without its name."""
        return self.filter.info(filters_vlans=self.has(r.F_CTRL_VLAN))

    # Device life

    def driver_ready(self, ready: bool) -> None:
        """A new driver finds empty buffers; what waited for room goes on, or is lost."""
        if not ready and self._refused:
            self._refused = False
            self.client.room()

    def reset_device(self) -> None:
        """Return to the card's own address and an open filter."""
        self.filter.reset()
        self.set_mac(self.client.mac)
        self.announcing = False
        self._pairs = 1
        self._next_turn.cancel()

    def save_device(self) -> NetState:
        """Return address, filter and offloads."""
        found = self.filter
        return NetState(
            mac=list(found.mac),
            promiscuous=found.promiscuous,
            all_multicast=found.all_multicast,
            all_unicast=found.all_unicast,
            no_multicast=found.no_multicast,
            no_unicast=found.no_unicast,
            no_broadcast=found.no_broadcast,
            unicast_overflow=found.unicast_overflow,
            multicast_overflow=found.multicast_overflow,
            unicast=[list(mac) for mac in found.unicast],
            multicast=[list(mac) for mac in found.multicast],
            vlans=[number for number in range(VLANS) if found.vlans[number]],
            announcing=self.announcing,
            guest_offloads=self.guest_offloads,
            pairs=self._pairs,
        )

    def check_device(self, state: NetState) -> None:
        """Raise :class:`StateError` where offloads are on that were not negotiated, or the tables are too long."""
        if state.guest_offloads & ~(state.features & r.GUEST_OFFLOADS):
            raise StateError(f"{self.name}: offloads {state.guest_offloads:#x} were not negotiated")
        if state.pairs > (self.most_pairs if state.features & r.F_MQ else 1):
            raise StateError(f"{self.name}: more pairs of queues in use than there are")
        if len(state.unicast) + len(state.multicast) > TABLE_LIMIT:
            raise StateError(f"{self.name}: more addresses than the filter has places")

    def load_device(self, state: NetState) -> None:
        """Take over address, filter and offloads."""
        found = self.filter
        self.set_mac(bytes(state.mac))
        for name in ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast",
                     "unicast_overflow", "multicast_overflow"):  # fmt: skip
            setattr(found, name, getattr(state, name))
        found.unicast = [bytes(mac) for mac in state.unicast]
        found.multicast = [bytes(mac) for mac in state.multicast]
        found.set_vlans(False)
        for number in state.vlans:
            found.vlans[number] = 1
        self.announcing = state.announcing
        self._pairs = state.pairs
        self.set_guest_offloads(state.guest_offloads)
