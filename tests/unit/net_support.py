"""What tests of networks share: a main loop that runs until something has come, and a guest made by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyvm.chardev.base import Chardev
from pyvm.clock import ManualClock, RunningClock
from pyvm.errors import ConfigError
from pyvm.mainloop import MainLoop
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.client import NO_OFFLOADS, Frame, NetClient, Offload, Offloads
from pyvm.net.user.backend import UserBackend
from pyvm.net.user.config import UserConfig, user_config
from pyvm.net.user.resolver import HostResolver
from pyvm.net.user.translation import Translation

GUEST_MAC = bytes.fromhex("525400123456")
GUEST_IP = bytes((10, 0, 2, 15))
GUEST_IP6 = bytes.fromhex("fec0000000000000505400fffe123456")
GATEWAY6 = bytes.fromhex("fec00000000000000000000000000002")
DNS6 = bytes.fromhex("fec00000000000000000000000000003")
GATEWAY = bytes((10, 0, 2, 2))
DNS = bytes((10, 0, 2, 3))
LOOPBACK = "127.0.0.1"
PATIENCE = 60.0


class Peer(NetClient):
    """A client that keeps what it gets, unless it is told to have no room."""

    offloads = True

    def __init__(self, name: str = "peer", kind: str = "test") -> None:
        super().__init__(name, kind)
        self.frames: list[bytes] = []
        self.offload: list[Offload | None] = []
        self.received_on: list[int] = []
        """Which queue each frame came on that did not come on the first."""
        self.room = True
        self.resumed = 0
        self.batches = 0

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        if not self.room:
            return False
        self.frames.append(bytes(frame))
        self.offload.append(offload)
        return True

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        self.received_on.append(queue)
        return self.receive(frame, offload)

    def batch_end(self) -> None:
        self.batches += 1

    def resume(self) -> None:
        self.resumed += 1

    def take(self) -> list[bytes]:
        """Return the frames since the last time."""
        frames, self.frames = self.frames, []
        self.offload.clear()
        return frames

    def make_room(self) -> None:
        """Have room again."""
        self.room = True
        if self.peer is not None:
            self.peer.resume()


class Loop(MainLoop):
    """A main loop that a test runs as long as it needs."""

    def __init__(self) -> None:
        super().__init__(RunningClock())

    def until(self, condition: Callable[[], object]) -> None:
        """Run until `condition` holds."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.0005)

        with self.lock:
            self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE))

    def settle(self) -> None:
        """Do what is to be done soon, and what follows from it."""

        async def wait() -> None:
            await asyncio.sleep(0.002)
            for _ in range(10):  # that time may be over before anything was done
                await asyncio.sleep(0)

        with self.lock:
            self.loop.run_until_complete(wait())


class Guest(Peer):
    """A guest without a kernel: it sends packets that the test makes, and takes apart what comes."""

    def __init__(self, loop: Loop, clock: ManualClock, network: UserBackend) -> None:
        super().__init__()
        self.loop = loop
        self.clock = clock
        self.network = network
        self.connect(network)

    def ip(self, destination: bytes, protocol: int, payload: bytes, source: bytes | None = None) -> None:
        """Send a packet to the gateway, of the version that the destination is of."""
        source = source or own_address(destination)
        if len(destination) == p6.ADDRESS_LENGTH:
            hops = p6.NEIGHBOUR_HOP_LIMIT
            header = p6.ipv6_header(source, destination, protocol, len(payload), hops)
            frame = p.ETHERNET.pack(self.network.mac6, GUEST_MAC, p.ETHERTYPE_IPV6) + header + payload
        else:
            header = p.ipv4_header(source, destination, protocol, len(payload), 1)
            frame = p.ETHERNET.pack(self.network.mac, GUEST_MAC, p.ETHERTYPE_IPV4) + header + payload
        self.send(frame)
        self.send_end()

    def udp(
        self, destination: bytes, port: int, data: bytes, source_port: int = 1000, source: bytes | None = None
    ) -> None:
        """Send a datagram."""
        source = source or own_address(destination)
        self.ip(destination, p.PROTO_UDP, p.udp_datagram(source, source_port, destination, port, data), source)

    def packets(self, protocol: int) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield source, destination and payload of the packets that came, with their checksums verified."""
        for frame in self.frames:
            if frame[12:14] == b"\x86\xdd" and frame[20] == protocol:
                _, length, _, _, source, target = p6.IPV6.unpack_from(frame, 14)
                payload = frame[14 + p6.IPV6.size :]
                assert length == len(payload)
                if self._is_complete(frame):
                    assert (p.pseudo_sum(source, target, protocol, length) + p.words_sum(payload)) % 0xFFFF == 0
                yield source, target, payload
            if frame[12:14] != b"\x08\x00" or frame[23] != protocol:
                continue
            packet = frame[14:]
            fields = p.IPV4.unpack_from(packet)
            assert p.words_sum(packet[: p.IPV4.size]) == 0
            assert fields[2] == len(packet)
            payload = packet[p.IPV4.size :]
            if protocol != p.PROTO_ICMP and not fields[4] & ~p.IP_DONT_FRAGMENT and self._is_complete(frame):
                total = p.pseudo_sum(fields[8], fields[9], protocol, len(payload)) + p.words_sum(payload)
                assert total % 0xFFFF == 0
            yield fields[8], fields[9], payload

    def _is_complete(self, frame: bytes) -> bool:
        return self.network.peer_offloads == NO_OFFLOADS

    def datagrams(self) -> list[tuple[bytes, int, int, bytes]]:
        """Return source, its port, the guest's port and the data of the datagrams that came."""
        found = []
        for source, _, payload in self.packets(p.PROTO_UDP):
            ports = p.UDP.unpack_from(payload)
            found.append((source, ports[0], ports[1], payload[p.UDP.size :]))
        return found


def options(**values: object) -> UserConfig:
    """Return what options of the back end `user` mean."""
    return user_config({name.replace("_", "-"): value for name, value in values.items()})


@contextmanager
def listener(host: str = LOOPBACK) -> Iterator[socket.socket]:
    """Have a socket of the host that takes connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        made.bind((host, 0))
        made.listen()
        made.settimeout(PATIENCE)
        yield made


def own_address(destination: bytes) -> bytes:
    """Return the guest's address of the version that another is of."""
    return GUEST_IP6 if len(destination) == p6.ADDRESS_LENGTH else GUEST_IP


def no_chardev(text: str, label: str) -> Chardev:
    raise ConfigError(f"{label}: there is no {text}")


@contextmanager
def user_network(
    config: UserConfig | None = None,
    offloads: Offloads = NO_OFFLOADS,
    resolver: HostResolver | None = None,
    find_chardev: Callable[[str, str], Chardev] = no_chardev,
    *,
    known: bool = True,
) -> Iterator[Guest]:
    """Make a network with a guest on it, whose address is `known` already."""
    loop = Loop()
    clock = ManualClock()
    config = config or UserConfig()
    network = UserBackend("n0", config, loop, clock, find_chardev, Translation(config, resolver))
    guest = Guest(loop, clock, network)
    guest.tell_offloads(offloads)
    if known:
        network.learn(GUEST_IP, GUEST_MAC)
        network.learn(GUEST_IP6, GUEST_MAC)
    try:
        yield guest
    finally:
        network.close()
        loop.close()


class TcpClient:
    """A guest's end of a connection: it does what a test says, and keeps what comes in order."""

    def __init__(self, guest: Guest, other: bytes, port: int, own_port: int = 40000, window: int = 0xFFFF) -> None:
        self.guest = guest
        self.other = other
        self.port = port
        self.own_port = own_port
        self.window = window
        self.sequence = 1000
        self.acknowledged = 0
        self.data = b""
        self.flags = 0
        """All flags that came."""
        self.ended = False
        self.peer_acknowledged = 0
        self.peer_window = 0
        self.segments = 0

    def emit(self, flags: int, data: bytes = b"", options: bytes = b"", sequence: int | None = None) -> None:
        """Send a segment."""
        header_length = p.TCP.size + len(options)
        number = self.sequence if sequence is None else sequence
        fields = (self.own_port, self.port, number & 0xFFFFFFFF, self.acknowledged if flags & p.TCP_ACK else 0)
        segment = p.TCP.pack(*fields, header_length << 2, flags, self.window, 0, 0) + options + data
        total = p.pseudo_sum(own_address(self.other), self.other, p.PROTO_TCP, len(segment)) + p.words_sum(segment)
        segment = segment[:16] + p.checksum(total).to_bytes(2, "big") + segment[18:]
        self.guest.ip(self.other, p.PROTO_TCP, segment)

    def poll(self) -> None:
        """Take up what has come."""
        for source, _, segment in list(self.guest.packets(p.PROTO_TCP)):
            port, own, sequence, acknowledged, length, flags, window, _, _ = p.TCP.unpack_from(segment)
            if (source, port, own) == (self.other, self.port, self.own_port):
                self._segment(sequence, acknowledged, flags, window, segment[(length >> 4) * 4 :])
        self.guest.take()

    def _segment(self, sequence: int, acknowledged: int, flags: int, window: int, data: bytes) -> None:
        self.segments += 1
        self.flags |= flags
        if flags & p.TCP_ACK:
            self.peer_acknowledged = acknowledged
            self.peer_window = window
        if flags & p.TCP_SYN:
            self.acknowledged = (sequence + 1) & 0xFFFFFFFF
            return
        late = (self.acknowledged - sequence) & 0xFFFFFFFF
        if late <= len(data):
            self.data += data[late:]
            self.acknowledged = (self.acknowledged + len(data) - late) & 0xFFFFFFFF
            if flags & p.TCP_FIN:
                self.acknowledged = (self.acknowledged + 1) & 0xFFFFFFFF
                self.ended = True

    def wait(self, condition: Callable[[], object]) -> None:
        """Let the network work until `condition` holds for what came."""

        def check() -> object:
            self.poll()
            return condition()

        self.guest.loop.until(check)

    def open(self, options: bytes = b"\x02\x04\x05\xb4") -> None:
        """Connect."""
        self.emit(p.TCP_SYN, options=options)
        self.wait(lambda: self.flags & p.TCP_SYN)
        self.sequence += 1
        self.emit(p.TCP_ACK)

    def write(self, data: bytes) -> None:
        """Send data, in order."""
        self.emit(p.TCP_ACK | p.TCP_PSH, data)
        self.sequence += len(data)

    def finish(self) -> None:
        """End this direction."""
        self.emit(p.TCP_ACK | p.TCP_FIN)
        self.sequence += 1
