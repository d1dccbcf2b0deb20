"""virtio-net: frames both ways, offloads, the receive filter, link state, state, hostile drivers."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.virtio import net_registers as r
from pyvm.devices.virtio.constants import F_VERSION_1
from pyvm.devices.virtio.net import NetState, VirtioNet
from pyvm.net.client import GSO_TCPV4, MAX_FRAME, NEEDS_CSUM, NO_OFFLOADS, Offload, Offloads
from pyvm.net.nic import NicClient
from pyvm.state import StateError
from tests.unit.net_support import Peer
from tests.unit.virtio_driver import Harness, SplitDriver, start

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
RX, TX, CONTROL = range(3)
USUAL = r.F_MRG_RXBUF | r.F_STATUS | r.F_CTRL_VQ | r.F_CTRL_RX | r.F_CTRL_VLAN | r.F_CTRL_RX_EXTRA | r.F_CTRL_MAC_ADDR
HEADER = bytes(12)


class Card(Harness):
    """A card with its driver and its peer."""

    peer: Peer
    client: NicClient


def card(
    features: int = USUAL,
    *,
    offloads: bool = True,
    packed: bool = False,
    size: int = 16,
    queues: int = 1,
    **options: Any,
) -> Card:
    peer = Peer()
    peer.queues = queues
    peer.offloads = offloads
    client = NicClient("nic0", "virtio-net-pci", MAC)
    client.connect(peer)
    device = VirtioNet(ManualClock(), client, **options)
    h = start(device, features, size=size, packed=packed)
    h.__class__ = Card
    assert isinstance(h, Card)
    h.peer, h.client = peer, client
    return h


def frame(target: bytes = MAC, size: int = 60, kind: bytes = b"\x08\x00") -> bytes:
    return (target + OTHER + kind).ljust(size, b"p")


def command(h: Card, kind: int, number: int, data: bytes) -> int:
    """Carry out a command; return what the device says."""
    buffer = h.rings[CONTROL].add([bytes((kind, number)), data] if data else [bytes((kind, number))], [1])
    h.kick(CONTROL)
    assert h.rings[CONTROL].collect() == [buffer]
    return buffer.data(h.memory)[0]


def send(h: Card, data: bytes, header: bytes = HEADER) -> None:
    h.rings[TX].add([header, data])
    h.kick(TX)
    h.rings[TX].collect()


# ---- Frames


@pytest.mark.parametrize("packed", [False, True])
def test_frames_are_sent(packed: bool) -> None:
    h = card(packed=packed)
    send(h, frame())
    assert h.peer.frames == [frame()]
    assert h.peer.offload == [None]
    assert h.interrupts == [TX]
    assert h.peer.batches == 2  # once when it began, with nothing


def test_a_header_and_its_frame_may_be_split_anyhow() -> None:
    h = card()
    whole = HEADER + frame(size=200)
    h.rings[TX].add([whole[:5], whole[5:40], whole[40:]])
    h.kick(TX)
    assert h.peer.frames == [frame(size=200)]


def test_what_is_left_to_do_goes_with_the_frame() -> None:
    h = card(USUAL | r.F_CSUM | r.F_HOST_TSO4)
    offload = Offload(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    send(h, frame(size=5000), r.HEADER.pack(*offload) + b"\0\0")
    assert h.peer.offload == [offload]


def test_an_offload_that_was_not_negotiated_is_not_passed_on() -> None:
    h = card()
    send(h, frame(), r.HEADER.pack(*Offload(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)) + b"\0\0")
    assert h.peer.offload == [None]


@pytest.mark.parametrize("size", [0, 13, MAX_FRAME + 1])
def test_frames_of_impossible_length_are_dropped(size: int) -> None:
    h = card()
    h.rings[TX].add([HEADER, (h.arena.take(size), size)] if size else [HEADER])
    h.kick(TX)
    assert h.peer.frames == []
    assert len(h.rings[TX].collect()) == 1


def test_a_peer_without_room_gets_the_frame_later() -> None:
    h = card()
    h.peer.room = False
    send(h, frame())
    send(h, frame(size=70))
    assert h.rings[TX].collect() == []
    h.peer.make_room()
    assert h.peer.frames == [frame(), frame(size=70)]
    assert len(h.rings[TX].collect()) == 2


def test_a_frame_is_received() -> None:
    h = card()
    buffer = h.rings[RX].add([], [1526])
    assert h.peer.send(frame())
    assert h.rings[RX].collect() == [buffer]
    assert buffer.data(h.memory) == bytes(10) + b"\1\0" + frame()
    assert h.interrupts == [RX]


def test_a_long_frame_takes_several_buffers() -> None:
    h = card(USUAL | r.F_GUEST_CSUM | r.F_GUEST_TSO4)
    buffers = [h.rings[RX].add([], [1000]) for _ in range(6)]
    offload = Offload(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    data = bytes(range(256)) * 16
    assert h.peer.send(data, offload)
    used = h.rings[RX].collect()
    assert used == buffers[:5]
    whole = b"".join(buffer.data(h.memory) for buffer in used)
    assert whole == r.HEADER_WITH_COUNT.pack(*offload, 5) + data


def test_without_mergeable_buffers_a_frame_that_does_not_fit_is_lost() -> None:
    h = card(USUAL & ~r.F_MRG_RXBUF)
    buffer = h.rings[RX].add([], [100, 100])
    assert h.peer.send(frame(size=500))
    assert h.rings[RX].collect() == []
    assert h.peer.send(frame(size=150))
    assert h.rings[RX].collect() == [buffer]
    assert buffer.data(h.memory)[12:] == frame(size=150)


def test_frames_wait_at_the_sender_for_buffers() -> None:
    h = card()
    assert not h.peer.send(frame(size=2000))
    h.rings[RX].add([], [1000])
    h.kick(RX)
    assert h.peer.resumed == 1
    assert not h.peer.send(frame(size=2000))
    h.rings[RX].add([], [1500])
    h.kick(RX)
    assert h.peer.resumed == 2
    assert h.peer.send(frame(size=2000))
    assert len(h.rings[RX].collect()) == 2
    h.kick(RX)
    assert h.peer.resumed == 2


def test_frames_wait_while_the_machine_is_stopped() -> None:
    h = card()
    h.rings[RX].add([], [1526])
    h.device.pause()
    assert not h.peer.send(frame())
    h.device.resume()
    assert h.peer.resumed == 1
    assert h.peer.send(frame())


def test_without_a_driver_frames_are_lost() -> None:
    h = card()
    h.device.set_status(0)
    assert h.peer.send(frame())


def test_a_sender_that_waits_is_told_when_the_driver_goes() -> None:
    h = card()
    assert not h.peer.send(frame())
    h.device.set_status(0)
    assert h.peer.resumed == 1


def test_old_drivers_have_a_shorter_header() -> None:
    peer = Peer()
    client = NicClient("nic0", "virtio-net-pci", MAC)
    client.connect(peer)
    device = VirtioNet(ManualClock(), client)
    h = start(device, driver_ok=False)
    device.set_status(0)
    device.write_features(0, legacy=True)
    ring = SplitDriver(h.arena, 16)
    for queue in device.queues[:2]:
        queue.set_size(16)
        ring = SplitDriver(h.arena, 16)
        h.rings[queue.index] = ring
        queue.desc, queue.driver, queue.device = ring.addresses
        device.enable_queue(queue.index)
    device.set_status(7)
    h.rings[TX].add([bytes(10), frame()])
    h.kick(TX)
    assert peer.frames == [frame()]
    buffer = h.rings[RX].add([], [1526])
    peer.send(frame())
    assert h.rings[RX].collect() == [buffer]
    assert buffer.data(h.memory) == bytes(10) + frame()


# ---- Features and configuration


def test_offloads_are_offered_where_the_peer_does_them() -> None:
    many = r.F_CSUM | r.F_GUEST_CSUM | r.F_HOST_TSO4 | r.F_HOST_TSO6 | r.F_GUEST_TSO4 | r.F_GUEST_TSO6
    assert card().device.offered_features & many == many
    assert card(offloads=False).device.offered_features & (many | r.F_CTRL_GUEST_OFFLOADS) == 0
    without = card(csum=False, guest_csum=False).device.offered_features
    assert without & many == 0
    controls = r.F_CTRL_RX | r.F_CTRL_VLAN | r.F_CTRL_RX_EXTRA | r.F_CTRL_MAC_ADDR
    without = card(USUAL & ~(r.F_CTRL_VQ | controls), ctrl_vq=False).device.offered_features
    assert without & (controls | r.F_GUEST_ANNOUNCE) == 0


def test_the_peer_hears_what_the_driver_takes() -> None:
    h = card(USUAL | r.F_GUEST_CSUM | r.F_GUEST_TSO4 | r.F_CTRL_GUEST_OFFLOADS)
    assert h.peer.peer_offloads == Offloads(checksum=True, tso4=True)
    assert command(h, r.CTRL_GUEST_OFFLOADS, 0, struct.pack("<Q", r.F_GUEST_CSUM)) == r.CTRL_OK
    assert h.peer.peer_offloads == Offloads(checksum=True)
    assert command(h, r.CTRL_GUEST_OFFLOADS, 0, struct.pack("<Q", r.F_GUEST_TSO6)) == r.CTRL_ERROR
    h.device.set_status(0)
    assert h.peer.peer_offloads == NO_OFFLOADS


def test_a_frame_with_more_to_do_than_the_driver_takes_is_lost() -> None:
    h = card()
    h.rings[RX].add([], [1526])
    assert h.peer.send(frame(), Offload(NEEDS_CSUM, 0, 0, 0, 34, 16))
    assert h.rings[RX].collect() == []


def test_configuration_space() -> None:
    h = card(host := USUAL | r.F_MTU | r.F_SPEED_DUPLEX, mtu=9000, speed=1000, duplex="full")
    assert h.device.has(host)
    assert h.device.config() == MAC + struct.pack("<HHHIB", 1, 1, 9000, 1000, 1)
    assert card().device.config() == MAC + b"\1\0"
    assert card(USUAL & ~r.F_STATUS, status=False).device.config_size == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rx_queue_size": 100}, "Invalid rx_queue_size (= 100), must be a power of 2 between 256 and 1024."),
        ({"tx_queue_size": 2048}, "Invalid tx_queue_size (= 2048), must be a power of 2 between 256 and 1024."),
        ({"duplex": "both"}, "'duplex' must be 'half' or 'full'"),
        ({"speed": -2}, "'speed' must be between 0 and INT_MAX"),
    ],
)
def test_impossible_properties(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"queue_size|duplex|speed") as caught:
        VirtioNet(ManualClock(), NicClient("n", "m", MAC), **options)
    assert str(caught.value) == message


def test_the_link_goes_down_and_up() -> None:
    h = card()
    h.client.link_down = True
    h.client.link_changed()
    assert h.config_interrupts == [1]
    assert h.device.config()[6] == 0
    send(h, frame())
    assert h.peer.frames == []
    assert h.peer.send(frame())
    h.client.link_down = False
    h.client.link_changed()
    assert h.device.config()[6] == 1


def test_announcing_is_asked_for_and_acknowledged() -> None:
    h = card(USUAL | r.F_GUEST_ANNOUNCE)
    h.client.announce()
    assert h.device.config()[6] == r.STATUS_LINK_UP | r.STATUS_ANNOUNCE
    assert h.config_interrupts
    assert command(h, r.CTRL_ANNOUNCE, r.ANNOUNCE_ACK, b"") == r.CTRL_OK
    assert h.device.config()[6] == r.STATUS_LINK_UP
    assert command(h, r.CTRL_ANNOUNCE, r.ANNOUNCE_ACK, b"") == r.CTRL_ERROR
    other = card()
    other.client.announce()
    assert other.device.config()[6] == r.STATUS_LINK_UP


# ---- The receive filter


def received(h: Card, *frames: bytes) -> list[bool]:
    """Return which of the frames the driver got."""
    found = []
    for item in frames:
        h.rings[RX].add([], [1526])
        assert h.peer.send(item)
        found.append(bool(h.rings[RX].collect()))
    return found


def test_everything_passes_until_the_driver_says_otherwise() -> None:
    h = card()
    assert received(h, frame(), frame(OTHER), frame(BROADCAST), frame(b"\1\0\x5e\0\0\1")) == [True] * 4
    assert command(h, r.CTRL_RX, r.RX_PROMISC, b"\0") == r.CTRL_OK
    assert received(h, frame(), frame(OTHER), frame(BROADCAST), frame(b"\1\0\x5e\0\0\1")) == [True, False, True, False]


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        (r.RX_ALLMULTI, [True, False, True, True]),
        (r.RX_ALLUNI, [True, True, True, False]),
        (r.RX_NOMULTI, [True, False, True, False]),
        (r.RX_NOUNI, [False, False, True, False]),
        (r.RX_NOBCAST, [True, False, False, False]),
    ],
)
def test_switches(switch: int, expected: list[bool]) -> None:
    h = card()
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    assert command(h, r.CTRL_RX, switch, b"\1") == r.CTRL_OK
    assert received(h, frame(), frame(OTHER), frame(BROADCAST), frame(b"\1\0\x5e\0\0\1")) == expected


def tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(table)) + b"".join(table) for table in (unicast, multicast))


def test_tables_of_addresses() -> None:
    h = card()
    changes: list[bool] = []
    h.device.on_filter_change = lambda: changes.append(True)
    group = b"\1\0\x5e\0\0\1"
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    assert command(h, r.CTRL_MAC, r.MAC_TABLE_SET, tables([OTHER], [group])) == r.CTRL_OK
    assert received(h, frame(OTHER), frame(group), frame(b"\2\0\0\0\0\2")) == [True, True, False]
    info = h.device.rx_filter()
    assert (info["unicast-table"], info["multicast-table"]) == (["02:00:00:00:00:01"], ["01:00:5e:00:00:01"])
    assert len(changes) == 2


def test_more_addresses_than_the_filter_holds_let_all_through() -> None:
    h = card()
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    many = [b"\2\0\0\0\1" + bytes((n,)) for n in range(65)]
    assert command(h, r.CTRL_MAC, r.MAC_TABLE_SET, tables(many, [])) == r.CTRL_OK
    assert received(h, frame(OTHER), frame(b"\1\0\x5e\0\0\1")) == [True, False]
    info = h.device.rx_filter()
    assert (info["unicast-overflow"], info["multicast-overflow"]) == (True, False)


def test_the_address_changes() -> None:
    h = card()
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    assert command(h, r.CTRL_MAC, r.MAC_ADDR_SET, OTHER) == r.CTRL_OK
    assert received(h, frame(OTHER), frame()) == [True, False]
    assert h.client.info == "model=virtio-net-pci,macaddr=02:00:00:00:00:01"
    h.device.set_status(0)
    assert h.client.info == "model=virtio-net-pci,macaddr=52:54:00:12:34:56"


def test_vlans() -> None:
    h = card()
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    tagged = frame(kind=b"\x81\x00\x20\x05")
    assert received(h, tagged) == [False]
    assert command(h, r.CTRL_VLAN, r.VLAN_ADD, struct.pack("<H", 5)) == r.CTRL_OK
    assert received(h, tagged) == [True]
    assert h.device.rx_filter()["vlan-table"] == [5]
    assert command(h, r.CTRL_VLAN, r.VLAN_DEL, struct.pack("<H", 5)) == r.CTRL_OK
    assert received(h, tagged) == [False]
    assert h.device.rx_filter()["vlan"] == "none"


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (r.CTRL_RX, 9, b"\1"),
        (r.CTRL_RX, r.RX_PROMISC, b""),
        (r.CTRL_MAC, r.MAC_ADDR_SET, b"12345"),
        (r.CTRL_MAC, r.MAC_TABLE_SET, b"\xff\xff\xff\xff"),
        (r.CTRL_MAC, r.MAC_TABLE_SET, tables([OTHER], [])[:-1]),
        (r.CTRL_MAC, r.MAC_TABLE_SET, tables([], []) + b"x"),
        (r.CTRL_MAC, 7, b"x"),
        (r.CTRL_VLAN, r.VLAN_ADD, b"\xff\xff"),
        (r.CTRL_VLAN, 2, b"\1\0"),
        (r.CTRL_VLAN, r.VLAN_ADD, b"\1"),
        (r.CTRL_MQ, 0, b"\1\0"),
        (r.CTRL_GUEST_OFFLOADS, 0, bytes(8)),
        (77, 0, b""),
    ],
)
def test_commands_that_cannot_be_carried_out(kind: int, number: int, data: bytes) -> None:
    assert command(card(), kind, number, data) == r.CTRL_ERROR


def test_the_filter_as_clients_see_it_without_a_driver() -> None:
    client = NicClient("nic0", "virtio-net-pci", MAC)
    info = VirtioNet(ManualClock(), client).rx_filter()
    assert (info["promiscuous"], info["vlan"], info["vlan-table"][:2]) == (True, "all", [4095, 4094])
    assert (info["main-mac"], info["unicast"], info["multicast"]) == ("52:54:00:12:34:56", "normal", "normal")


# ---- Bad drivers


def test_a_chain_without_a_header_breaks_the_device() -> None:
    h = card()
    h.rings[TX].add([b"short"])
    h.kick(TX)
    assert h.errors == ["virtio-net: virtio-net header not in first element"]
    assert h.peer.send(frame())


def test_a_command_without_room_for_the_answer_breaks_the_device() -> None:
    h = card()
    h.rings[CONTROL].add([b"\0\0\1"])
    h.kick(CONTROL)
    assert h.device.broken


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_driver_does_harm(data: st.DataObject) -> None:
    h = card(USUAL | r.F_CSUM | r.F_GUEST_CSUM | r.F_HOST_TSO4 | r.F_GUEST_TSO4, size=8)
    for _ in range(data.draw(st.integers(1, 10))):
        ring = data.draw(st.integers(0, 2))
        action = data.draw(st.integers(0, 3))
        if action == 0 and len(h.rings[ring].outstanding) < 3:
            h.rings[ring].add([data.draw(st.binary(max_size=40))], [data.draw(st.integers(1, 64))])
        elif action == 1:
            h.memory.write(h.rings[ring].addresses[0], data.draw(st.binary(max_size=64)))
        elif action == 2:
            h.peer.room = data.draw(st.booleans())
            h.peer.send(data.draw(st.binary(max_size=300)), data.draw(st.sampled_from([None, Offload(1, 1)])))
        h.kick(ring)
    h.device.set_status(0)
    assert not h.device.broken


# ---- Several queues


def command_on(h: Card, index: int, data: bytes) -> int:
    buffer = h.rings[index].add([bytes((r.CTRL_MQ, r.MQ_VQ_PAIRS_SET)), data], [1])
    h.kick(index)
    h.rings[index].collect()
    return buffer.data(h.memory)[0]


def test_each_pair_carries_the_frames_of_a_queue_of_the_peer() -> None:
    h = card(USUAL | r.F_MQ, queues=4, mq=True)
    assert len(h.device.queues) == 9
    assert h.device.config_read(8, 2) == 4
    buffers = [h.rings[index].add([], [1526]) for index in (0, 2, 4)]
    h.rings[3].add([HEADER, frame()])
    h.kick(3)
    assert h.peer.frames == []  # the driver has not said that it uses this pair
    assert [command_on(h, 8, number.to_bytes(2, "little")) for number in (0, 5, 3)] == [1, 1, 0]
    assert h.peer.received_on == [1]
    h.rings[5].add([HEADER, frame()])
    h.kick(5)
    assert h.peer.received_on == [1, 2]
    for queue, buffer in enumerate(buffers):
        assert h.peer.send(frame(), None, queue)
        assert h.rings[2 * queue].collect() == [buffer]
    h.device.set_status(0)
    assert h.device.save().pairs == 1


def test_a_driver_that_does_not_know_of_pairs_has_control_behind_the_first() -> None:
    h = card(USUAL, queues=2, mq=True)
    assert command(h, r.CTRL_RX, r.RX_PROMISC, b"\0") == 0
    assert command(h, r.CTRL_MQ, r.MQ_VQ_PAIRS_SET, b"\2\0") == 1
    buffer = h.rings[RX].add([], [1526])
    assert h.peer.send(frame(), None, 1)
    assert h.rings[RX].collect() == [buffer]


def test_pairs_survive_and_cannot_be_more_than_there_are() -> None:
    h = card(USUAL | r.F_MQ, queues=2, mq=True)
    assert command_on(h, 4, b"\2\0") == 0
    state: NetState = h.device.save()
    assert state.pairs == 2
    h.device.load(state)
    assert h.device.save() == state
    state.pairs = 3
    with pytest.raises(StateError):
        h.device.load(state)


# ---- State


def test_state_survives() -> None:
    h = card(USUAL | r.F_GUEST_CSUM | r.F_GUEST_ANNOUNCE)
    command(h, r.CTRL_RX, r.RX_PROMISC, b"\0")
    command(h, r.CTRL_RX, r.RX_NOBCAST, b"\1")
    command(h, r.CTRL_MAC, r.MAC_TABLE_SET, tables([OTHER], [b"\1\0\x5e\0\0\1"]))
    command(h, r.CTRL_VLAN, r.VLAN_ADD, b"\5\0")
    h.client.announce()
    state = h.device.save()
    other = VirtioNet(ManualClock(), NicClient("nic0", "virtio-net-pci", MAC))
    other.client.connect(Peer())
    other = VirtioNet(ManualClock(), other.client)
    other.attach(h.memory, h.device.offered_features, lambda index: None, lambda: None)
    other.load(state)
    assert other.save() == state
    assert other.rx_filter() == h.device.rx_filter()
    assert other.client.peer is not None
    assert other.client.peer.peer_offloads == Offloads(checksum=True)


@pytest.mark.parametrize(
    "change",
    [
        {"guest_offloads": r.F_GUEST_TSO4},
        {"unicast": [[0] * 6] * 40, "multicast": [[1] * 6] * 40},
        {"mac": [0] * 5},
        {"vlans": [4096]},
        {"features": F_VERSION_1 | 1 << 50},
    ],
)
def test_states_that_cannot_be(change: dict[str, Any]) -> None:
    h = card()
    state: NetState = h.device.save()
    for name, value in change.items():
        setattr(state, name, value)
    with pytest.raises(StateError):
        h.device.load(state)
