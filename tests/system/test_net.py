"""Networks: links, hubs, sockets, dumps, their options and what monitors ask of them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.net.announce import AnnounceTimes, rarp_frame
from pyvm.net.client import NetClient
from pyvm.net.dump import FrameDump
from pyvm.net.make import NetHost, make_netdev
from pyvm.net.nic import NicClient, parse_mac
from pyvm.net.registry import NetSet
from tests.system.machine_rig import Machine
from tests.unit.net_support import GUEST_MAC, Loop, Peer

FRAME = b"\xff" * 6 + GUEST_MAC + b"\x08\x00" + b"x" * 46
LOOPBACK = "127.0.0.1"


class Bench:
    """Networks without a machine."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.clients = NetSet()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.fds: dict[str, int] = {}
        self.host = NetHost(
            self.loop, ManualClock(), self.clients, emit=lambda name, data: self.events.append((name, dict(data)))
        )
        self.host.find_fd = self.fds.__getitem__

    def make(self, kind: str, name: str = "n0", **options: Any) -> NetClient:
        return make_netdev(self.host, {"type": kind, "id": name, **options})

    def peer(self, client: NetClient, name: str = "peer", kind: str = "test") -> Peer:
        peer = Peer(name, kind)
        peer.connect(client)
        return peer

    def refused(self, kind: str, **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.make(kind, **options)
        return str(caught.value)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.clients.close()
    made.loop.close()


# ---- Links


def test_frames_meet_a_cable_that_is_pulled_out_or_not_there() -> None:
    left, right = Peer("left"), Peer("right")
    assert left.send(FRAME)
    left.connect(right)
    assert left.send(FRAME)
    clients = NetSet()
    clients.add(left)
    clients.add(right)
    clients.set_link(left, False)
    assert left.send(FRAME)
    assert right.send(FRAME)
    assert (right.frames, left.frames) == ([FRAME], [])
    clients.set_link(left, True)
    assert right.send(FRAME)
    assert left.frames == [FRAME]


def test_a_card_sees_the_link_of_its_back_end() -> None:
    clients = NetSet()
    card = NicClient("nic0", "model", GUEST_MAC)
    peer = Peer()
    card.connect(peer)
    clients.set_link(peer, False)
    assert card.link_down
    clients.set_link(card, False)
    clients.set_link(peer, True)
    assert not card.link_down


def test_a_card_whose_back_end_goes_has_a_dead_cable(bench: Bench) -> None:
    hub = bench.make("hubport", hubid=0)
    card = NicClient("nic0", "model", GUEST_MAC)
    bench.clients.add(card)
    card.connect(hub)
    bench.clients.remove(hub)
    assert card.link_down
    assert card.send(FRAME)
    assert bench.clients.find_netdev("n0") is None


def test_default_addresses_of_cards_are_not_given_twice() -> None:
    clients = NetSet()
    second = bytes.fromhex("525400123457")
    assert clients.take_mac(second) == second
    assert [clients.take_mac(None)[-1], clients.take_mac(None)[-1]] == [0x56, 0x58]
    clients.give_mac_back(second)
    assert clients.take_mac(None) == second


@pytest.mark.parametrize(
    ("text", "expected"),
    [("52:54:00:12:34:56", GUEST_MAC), ("52-54-0-12-34-56", GUEST_MAC), ("52:54", None), ("52:54:00:12:34:xx", None),
     ("52:54:00:12:34:567", None), ("", None)],
)  # fmt: skip
def test_mac_addresses(text: str, expected: bytes | None) -> None:
    assert parse_mac(text) == expected


# ---- Hubs


def test_a_hub_passes_frames_to_all_other_ports(bench: Bench) -> None:
    peers = [bench.peer(bench.make("hubport", f"h{n}", hubid=1), f"p{n}") for n in range(3)]
    bench.peer(bench.make("hubport", "other", hubid=2))
    assert peers[0].send(FRAME)
    peers[0].send_end()
    assert [len(peer.frames) for peer in peers] == [0, 1, 1]
    assert [peer.batches for peer in peers] == [0, 1, 1]


def test_a_port_whose_peer_is_slow_keeps_frames(bench: Bench) -> None:
    slow, fast, sender = (bench.peer(bench.make("hubport", f"h{n}", hubid=1)) for n in range(3))
    slow.room = False
    for _ in range(300):
        assert sender.send(FRAME)
    assert len(fast.frames) == 300
    slow.make_room()
    assert len(slow.frames) == 256


def test_frames_do_not_run_in_circles(bench: Bench) -> None:
    for number in range(2):
        bench.make("hubport", f"a{number}", hubid=0)
        bench.make("hubport", f"b{number}", hubid=1, netdev=f"a{number}")
    sender = bench.peer(bench.make("hubport", "s", hubid=0))
    receiver = bench.peer(bench.make("hubport", "r", hubid=1))
    assert sender.send(FRAME)
    assert 1 <= len(receiver.frames) <= 2


def test_hub_ports_are_refused(bench: Bench) -> None:
    assert bench.refused("hubport", hubid=0, netdev="zz") == "netdev 'zz' not found"
    bench.make("hubport", "a", hubid=0)
    bench.make("hubport", "b", hubid=1, netdev="a")
    assert bench.refused("hubport", hubid=2, netdev="a") == "netdev 'a' is in use"
    assert bench.refused("vde") == "network backend 'vde' is not compiled into this binary"
    with pytest.raises(ConfigError, match="Duplicate ID 'a'"):
        bench.make("hubport", "a", hubid=0)


# ---- Sockets


def wire(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


@pytest.mark.parametrize("kind", ["socket", "stream"])
def test_a_server_carries_frames_for_one_client_after_the_other(bench: Bench, tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "s")
    if kind == "stream":
        client = bench.make("stream", server=True, addr={"type": "unix", "path": path})
    else:
        client = bench.make("socket", listen=f"{LOOPBACK}:0")
        place = client._listener.sockets[0].getsockname()  # type: ignore[attr-defined]
    peer = bench.peer(client)
    assert peer.send(FRAME)  # lost: nobody is there
    for _ in range(2):
        with socket.socket(socket.AF_UNIX if kind == "stream" else socket.AF_INET) as connection:
            connection.connect(path if kind == "stream" else place)
            bench.loop.until(lambda: client.info)
            connection.sendall(wire(FRAME) + wire(FRAME)[:20])
            bench.loop.until(lambda: peer.frames)
            connection.sendall(wire(FRAME)[20:])
            bench.loop.until(lambda: len(peer.frames) == 2)
            assert peer.take() == [FRAME, FRAME]
            assert peer.send(FRAME)
            assert connection.recv(1000) == wire(FRAME)
        bench.loop.until(lambda: not client.info)
    if kind == "stream":
        events = [("NETDEV_STREAM_CONNECTED", {"netdev-id": "n0", "addr": {"type": "unix", "path": path}}),
                  ("NETDEV_STREAM_DISCONNECTED", {"netdev-id": "n0"})]  # fmt: skip
        assert bench.events == events * 2


def test_a_client_connects_and_hears_of_the_end(bench: Bench) -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        client = bench.make("stream", addr={"type": "inet", "host": LOOPBACK, "port": str(port)})
        peer = bench.peer(client)
        connection, _ = server.accept()
        with connection:
            bench.loop.until(lambda: client.info)
            assert client.info == f"tcp:{LOOPBACK}:{port}"
            connection.sendall(wire(FRAME))
            bench.loop.until(lambda: peer.frames)
        bench.loop.until(lambda: not client.info)
    address = {"type": "inet", "host": LOOPBACK, "port": str(port), "ipv4": True}
    assert bench.events[0] == ("NETDEV_STREAM_CONNECTED", {"netdev-id": "n0", "addr": address})


def test_an_address_that_does_not_work_is_a_link_without_an_end(bench: Bench) -> None:
    assert bench.make("stream", addr={"type": "unix", "path": "/nonexistent/x"}).info == "connection error"


def test_a_peer_without_room_stops_the_reading(bench: Bench) -> None:
    left, right = socket.socketpair()
    bench.fds["given"] = left.detach()
    peer = bench.peer(bench.make("socket", fd="given"))
    with right:
        peer.room = False
        right.sendall(wire(FRAME) * 3)
        bench.loop.settle()
        assert peer.frames == []
        peer.make_room()
        bench.loop.until(lambda: len(peer.frames) >= 3)
        assert peer.frames == [FRAME] * 3


def test_a_slow_program_makes_frames_wait(bench: Bench) -> None:
    left, right = socket.socketpair()
    bench.fds["given"] = left.detach()
    peer = bench.peer(bench.make("socket", fd="given"))
    sent = 0
    while peer.send(b"f" * 60000):
        sent += 1
        assert sent < 1000
    right.setblocking(False)
    received = 0

    def drain() -> bool:
        nonlocal received
        try:
            received += len(right.recv(1 << 20))
        except BlockingIOError:
            pass
        return received == sent * 60004

    with right:
        bench.loop.until(drain)
    assert peer.resumed


def test_nonsense_on_the_wire_ends_the_connection(bench: Bench) -> None:
    left, right = socket.socketpair()
    bench.fds["given"] = left.detach()
    peer = bench.peer(bench.make("socket", fd="given"))
    with right:
        right.sendall(b"\xff\xff\xff\xff nonsense")
        bench.loop.until(lambda: right.recv(10) == b"")
    assert peer.send(FRAME)
    assert peer.frames == []


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["socket", "dgram"])
def test_datagrams(bench: Bench, kind: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((LOOPBACK, 0))
        other.settimeout(60)
        port, own = other.getsockname()[1], free_port()
        if kind == "socket":
            client = bench.make("socket", udp=f"{LOOPBACK}:{port}", localaddr=f"{LOOPBACK}:{own}")
            assert client.info == f"socket: udp={LOOPBACK}:{port}"
        else:
            inet = {"type": "inet", "host": LOOPBACK}
            client = bench.make("dgram", local={**inet, "port": str(own)}, remote={**inet, "port": str(port)})
            assert client.info == f"udp={LOOPBACK}:{own}/{LOOPBACK}:{port}"
        peer = bench.peer(client)
        peer.send(FRAME)
        assert other.recv(1000) == FRAME
        peer.room = False
        other.sendto(FRAME, (LOOPBACK, own))
        bench.loop.settle()
        peer.make_room()
        bench.loop.until(lambda: peer.frames)
        assert peer.frames == [FRAME]


def test_datagrams_over_unix_sockets(bench: Bench, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    clients = []
    for own, other in ((0, 1), (1, 0)):
        local, remote = ({"type": "unix", "path": paths[place]} for place in (own, other))
        clients.append(bench.peer(bench.make("dgram", f"n{own}", local=local, remote=remote)))
    clients[0].send(FRAME)
    bench.loop.until(lambda: clients[1].frames)
    bench.clients.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("socket", {}, "exactly one of listen=, connect=, mcast= or udp= is required"),
        ("socket", {"listen": ":1", "connect": ":2"}, "exactly one of listen=, connect=, mcast= or udp= is required"),
        ("socket", {"udp": "127.0.0.1:1"}, "localaddr= is mandatory with udp="),
        ("socket", {"listen": ":1", "localaddr": "x"}, "localaddr= is only valid with mcast= or udp="),
        ("socket", {"listen": "zz"}, "host address 'zz' doesn't contain ':' separating host from port"),
        ("socket", {"mcast": "127.0.0.1:1"},
         "specified mcastaddr 127.0.0.1 (0x7f000001) does not contain a multicast address"),
        ("socket", {"listen": "192.0.2.1:1"}, "can't bind ip=192.0.2.1 to socket: Cannot assign requested address"),
        ("socket", {"fd": "987654"}, "can't get socket option SO_TYPE"),
        ("dgram", {}, "dgram requires local= parameter"),
        ("dgram", {"local": {"type": "inet", "host": "127.0.0.1", "port": "1"}},
         "type=inet or type=unix requires remote parameter"),
        ("dgram", {"local": {"type": "unix", "path": "y"}, "remote": {"type": "inet", "host": "1.2.3.4", "port": "1"}},
         "remote and local types must be the same"),
        ("tap", {"fd": "987654"}, "n0: Can't use file descriptor 987654: Bad file descriptor"),
        ("tap", {"fd": "0", "ifname": "x"},
         "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="),
        ("tap", {"queues": 0}, "queues must be between 1 and 256"),
        ("tap", {"vhost": True}, "vhost is not supported by pyvm yet"),
    ],
)  # fmt: skip
def test_refused_sockets(bench: Bench, kind: str, options: dict[str, Any], message: str) -> None:
    assert bench.refused(kind, **options) == message


@pytest.mark.parametrize("options", [{"fd": "named"}, {"fds": "named:other"}])
def test_descriptors_of_no_interface_are_closed(bench: Bench, options: dict[str, str]) -> None:
    given = bench.fds["named"], bench.fds["other"] = os.pipe()
    assert "Unable to query TUNGETIFF" in bench.refused("tap", **options)
    for name, fd in zip(("named", "other"), given, strict=True):
        taken = name in next(iter(options.values()))
        assert os.path.lexists(f"/proc/self/fd/{fd}") is not taken
        if not taken:
            os.close(fd)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_on_the_wire_do_harm(parts: list[bytes]) -> None:
    bench = Bench()
    left, right = socket.socketpair()
    bench.fds["given"] = left.detach()
    peer = bench.peer(bench.make("socket", fd="given"))
    with right:
        try:
            for part in parts:
                right.sendall(part)
                bench.loop.settle()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other side has had enough
        assert sum(map(len, peer.frames)) <= sum(map(len, parts))
    bench.clients.close()
    bench.loop.close()


# ---- Dumps and announcements


def test_frames_are_dumped_in_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "dump.pcap"
    left, right = Peer(), Peer()
    left.connect(right)
    dump = FrameDump("f0", str(path), lambda: 3_000_002_000, length=30)
    left.filters.append(dump)
    left.send(FRAME)
    right.send(FRAME)
    right.room = False
    left.send(FRAME)  # refused, and so not seen
    dump.close()
    data = path.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 30, 1)
    record = struct.pack("<IIII", 3, 2, 30, len(FRAME)) + FRAME[:30]
    assert data[24:] == record * 2


@pytest.mark.parametrize(("sent", "received", "count"), [(True, False, 1), (False, True, 1), (False, False, 0)])
def test_a_dump_of_one_direction(tmp_path: Path, sent: bool, received: bool, count: int) -> None:
    dump = FrameDump("f0", str(tmp_path / "dump"), lambda: 0, sent=sent, received=received)
    dump.frame(FRAME, received=True)
    dump.frame(FRAME, received=False)
    dump.enabled = False
    dump.frame(FRAME, received=True)
    dump.close()
    assert os.path.getsize(tmp_path / "dump") == 24 + count * (16 + len(FRAME))


def test_rounds_of_announcements() -> None:
    times = AnnounceTimes(50, 120, 5, 30)
    assert [times.delay(number) for number in range(1, 5)] == [50, 80, 110, 120]
    frame = rarp_frame(GUEST_MAC)
    assert len(frame) == 60
    assert frame[:14] == b"\xff" * 6 + GUEST_MAC + b"\x80\x35"


# ---- The command line and monitors

NET = ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,id=nic0")


def human(machine: Machine, line: str) -> str:
    return str(machine.execute("human-monitor-command", command_line=line)).replace("\r", "")


def test_options_become_records() -> None:
    config = parse_arguments(
        [
            *("-netdev", "user,id=a,restrict=on,hostfwd=tcp::1-:2,hostfwd=udp::3-:4"),
            *("-netdev", '{"type":"user","id":"b","hostfwd":[{"str":"tcp::1-:2"}]}'),
            *("-netdev", "stream,id=c,server=on,addr.type=unix,addr.path=/x"),
        ]
    )
    assert [item.options["id"] for item in config.netdevs] == ["b", "c", "a"]
    assert config.netdevs[2].options["hostfwd"] == [{"str": "tcp::1-:2"}, {"str": "udp::3-:4"}]
    assert config.netdevs[2].options["restrict"] is True
    assert config.netdevs[1].options["addr"] == {"type": "unix", "path": "/x"}


def test_a_nic_is_a_back_end_and_a_card() -> None:
    config = parse_arguments(["-nic", "user,model=virtio,mac=52:54:00:00:00:01,id=x", "-nic", "none"])
    assert [item.options for item in config.netdevs] == [{"type": "user", "id": "x"}]
    assert [(device.driver, device.properties) for device in config.devices] == [
        ("virtio-net-pci", {"mac": "52:54:00:00:00:01", "netdev": "x"})
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-netdev user", "-netdev user: Parameter 'id' is missing"),
        ("-netdev zz,id=a", "-netdev zz,id=a: Parameter 'type' does not accept value 'zz'"),
        ("-netdev user,id=a,foo=1", "-netdev user,id=a,foo=1: Invalid parameter 'foo'"),
        ("-netdev user,id=a,restrict=x", "-netdev user,id=a,restrict=x: Parameter 'restrict' expects 'on' or 'off'"),
        ("-netdev hubport,id=a", "-netdev hubport,id=a: Parameter 'hubid' is missing"),
        ("-netdev stream,id=a", "-netdev stream,id=a: Parameter 'addr' is missing"),
        ("-nic user,model=zz", "Unsupported NIC model: zz"),
        ("-nic user,mac=zz", "-nic user,mac=zz: invalid syntax for ethernet address"),
        ("-net nic,macaddr=zz", "-net nic,macaddr=zz: invalid syntax for ethernet address"),
    ],
)
def test_refused_options(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(words.split(" "))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-device virtio-net-pci,netdev=zz",
         "-device virtio-net-pci,netdev=zz: Property 'virtio-net-device.netdev' can't find value 'zz'"),
        ("-device virtio-net-pci,mac=52:54",
         "-device virtio-net-pci,mac=52:54: Property 'virtio-net-device.mac' doesn't take value '52:54'"),
        ("-netdev user,id=a -netdev user,id=a", "-netdev user,id=a: Duplicate ID 'a' for netdev"),
        ("-netdev user,id=a,hostfwd=zz",
         "-netdev user,id=a,hostfwd=zz: Invalid host forwarding rule 'zz' (No : separators)"),
    ],
)  # fmt: skip
def test_machines_that_cannot_be(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Machine(*words.split(" "))
    assert str(caught.value) == message


def test_networks_as_people_see_them(capsys: pytest.CaptureFixture[str]) -> None:
    with Machine(*NET, "-netdev", "hubport,id=h0,hubid=3") as machine:
        assert human(machine, "info network") == (
            "hub 3\n \\ h0\n"
            "nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n"
            " \\ n0: index=0,type=user,net=10.0.2.0,restrict=off\n"
        )
        assert "Hub -1 (n0):\n" in human(machine, "info usernet")
    assert capsys.readouterr().err == ("pyvm: warning: hub port h0 has no peer\npyvm: warning: netdev h0 has no peer\n")


def test_the_older_form_plugs_everything_into_one_hub() -> None:
    with Machine("-net", "nic,model=virtio", "-net", "user,id=u") as machine:
        assert human(machine, "info network") == (
            "hub 0\n \\ hub0port1: u: index=0,type=user,net=10.0.2.0,restrict=off\n"
            " \\ hub0port0: virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n"
        )
        assert machine.error("netdev_del", id="u") == "Device 'u' is not a netdev"


def test_back_ends_come_and_go() -> None:
    with Machine(*NET) as machine:
        machine.execute("netdev_add", type="user", id="n1")
        assert machine.error("netdev_add", type="user", id="n1") == "Duplicate ID 'n1'"
        assert machine.error("netdev_add", type="zz", id="n2") == "Parameter 'type' does not accept value 'zz'"
        assert machine.error("netdev_add", type="user", id="1 2") == "Parameter 'id' expects an identifier"
        in_use = "Property 'virtio-net-device.netdev' can't take value 'n0', it's in use"
        assert machine.error("device_add", driver="virtio-net-pci", netdev="n0") == in_use
        machine.execute("device_add", driver="virtio-net-pci", netdev="n1", id="nic1")
        assert "nic1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57" in human(machine, "info network")
        machine.execute("netdev_del", id="n1")
        assert machine.error("netdev_del", id="n1") == "DeviceNotFound: Device 'n1' not found"
        assert machine.error("netdev_del", id="nic1") == "DeviceNotFound: Device 'nic1' not found"
        machine.execute("device_del", id="nic1")
        machine.execute("system_reset")
        assert "nic1" not in human(machine, "info network")


def test_links_are_set_by_the_name_of_either_end() -> None:
    with Machine(*NET) as machine:
        machine.execute("set_link", name="n0", up=False)
        assert machine.pc.network.clients.find("nic0").link_down  # type: ignore[union-attr]
        machine.execute("set_link", name="nic0", up=True)
        assert not machine.pc.network.clients.find("nic0").link_down  # type: ignore[union-attr]
        assert machine.error("set_link", name="zz", up=True) == "DeviceNotFound: Device 'zz' not found"
        assert human(machine, "set_link nic0 off") == ""


def test_a_change_of_the_filter_is_told_once_to_who_asked() -> None:
    with Machine(*NET) as machine:
        card: Any = machine.pc.plugger.plugged.virtio[0]
        card.on_filter_change()
        assert machine.take_events() == []
        (info,) = machine.execute("query-rx-filter")
        assert info["name"] == "nic0"
        card.on_filter_change()
        card.on_filter_change()
        path = "/machine/peripheral/nic0/virtio-backend"
        assert machine.take_events() == [("NIC_RX_FILTER_CHANGED", {"name": "nic0", "path": path})]
        assert machine.error("query-rx-filter", name="n0") == "net client(n0) isn't a NIC"
        assert machine.error("query-rx-filter", name="zz") == "invalid net client name: zz"


def test_cards_announce_themselves() -> None:
    with Machine("-netdev", "hubport,id=h0,hubid=0", "-device", "virtio-net-pci,netdev=h0,id=nic0") as machine:
        other = machine.pc.network.clients.hub_port(0, "other")
        peer = Peer()
        peer.connect(other)
        machine.execute("announce-self", initial=0, max=0, rounds=2, step=0)
        machine.run()
        machine.run()
        assert peer.frames == [rarp_frame(GUEST_MAC)] * 2
        machine.execute("announce-self", initial=0, max=0, rounds=1, step=0, interfaces=["zz"])
        assert len(peer.frames) == 2
        assert human(machine, "announce_self nic0") == ""
        assert len(peer.frames) == 3
        assert "'initial' is missing" in machine.error("announce-self")


def test_forwards_at_the_monitor() -> None:
    with Machine("-netdev", "user,id=n0") as machine:
        assert human(machine, "hostfwd_add zz tcp::1-:2") == "unrecognized netdev id 'zz'\n"
        assert human(machine, "hostfwd_add tcp:a") == "Invalid host forwarding rule 'tcp:a' (Missing : separator)\n"
        assert human(machine, "hostfwd_add n0 tcp:127.0.0.1:0-:80") == ""
        line = next(line for line in human(machine, "info usernet").splitlines() if "HOST_FORWARD" in line)
        rule = f"tcp:127.0.0.1:{line.split()[3]}"
        assert human(machine, f"hostfwd_remove {rule}") == f"host forwarding rule for {rule} removed\n"
        assert human(machine, f"hostfwd_remove n0 {rule}") == f"host forwarding rule for {rule} not found\n"
        assert human(machine, "hostfwd_remove x") == "invalid format\n"
    with Machine() as machine:
        assert human(machine, "hostfwd_add tcp::1-:2") == "user mode network stack not in use\n"


def test_back_ends_at_the_human_monitor() -> None:
    with Machine() as machine:
        assert human(machine, "netdev_add user,id=hn") == ""
        assert human(machine, "netdev_add user,id=hn").startswith("Duplicate ID 'hn' for netdev\n")
        assert human(machine, "netdev_add user") == "Error: Parameter 'id' is missing\n"
        assert human(machine, "netdev_add foo,id=x") == "Error: Parameter 'type' does not accept value 'foo'\n"
        assert human(machine, "netdev_del hn") == ""
        assert human(machine, "netdev_del hn") == "Error: Device 'hn' not found\n"


def test_a_dump_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "d.pcap"
    with Machine(*NET, "-object", f"filter-dump,id=f0,netdev=n0,file={path}") as machine:
        shown = f"  - f0: type=filter-dump,file={path},maxlen=65536,position=tail,status=on,insert=behind,netdev=n0,"
        assert f"filters:\n{shown}queue=all\n" in human(machine, "info network")
        machine.execute("qom-set", path="/objects/f0", property="status", value="off")
        assert machine.get("/objects/f0", "status") == "off"
        expected = "Parameter 'netdev' expects a network backend id"
        assert machine.error("object-add", qom_type="filter-dump", id="f1", netdev="zz", file="x") == expected
        machine.execute("netdev_del", id="n0")
        assert machine.error("object-del", id="f0") == "object 'f0' not found"
    assert path.read_bytes()[:4] == struct.pack("<I", 0xA1B2C3D4)
