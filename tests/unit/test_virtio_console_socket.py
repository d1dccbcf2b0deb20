"""Output of a virtio-serial port that goes from the ring straight to a socket."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer
from pyvm.native import send_chains
from tests.unit.test_virtio_console import OUT, Guest, Pipe


class Connection(Pipe):
    """A back end that is one end of a connection; `direct` says whether front ends may send by themselves."""

    def __init__(self, direct: bool = True) -> None:
        super().__init__()
        self.direct = direct
        self.own, self.other = socket.socketpair()
        self.own.setblocking(False)
        self.other.setblocking(False)
        self.own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.written = 0

    def send_fd(self) -> int:
        return self.own.fileno() if self.direct else -1

    def _write(self, data: Buffer) -> int:
        self.written += 1
        try:
            return self.own.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def arrived(self) -> bytes:
        """Return what the other end has got."""
        found = b""
        while True:
            try:
                found += self.other.recv(65536)
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.own.close()
        self.other.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("event_idx", [False, True])
def test_output_reaches_the_socket(connection: Connection, packed: bool, event_idx: bool) -> None:
    guest = Guest(connection, packed=packed, event_idx=event_idx)
    guest.open()
    for number in range(300):  # more than twice around the ring
        guest.ring(OUT).add([b"one %d" % number, b"two"])
        guest.write(b"three")
        assert connection.arrived() == b"one %dtwothree" % number
        assert len(guest.ring(OUT).collect()) == 2
    assert bool(connection.written) == packed, "it went another way"


def test_what_the_socket_does_not_take_waits(connection: Connection) -> None:
    guest = Guest(connection)
    guest.open()
    chance, sent, got = random.Random(1), b"", b""
    for _ in range(200):
        piece = chance.randbytes(chance.randint(1, 3000))
        sent += piece
        guest.write(piece)
        if guest.ring(OUT).collect() == []:  # it is full
            got += connection.arrived()
            guest.port.writable()
            while guest.ring(OUT).collect() == []:
                got += connection.arrived()
                guest.port.writable()
    assert connection.written, "the socket was never full"
    assert got + connection.arrived() == sent


def test_what_is_half_sent_survives_a_save(connection: Connection) -> None:
    guest = Guest(connection)
    guest.open()
    data = random.Random(2).randbytes(100_000)
    guest.write(data)
    guest.device.load(guest.device.save())
    got = connection.arrived()
    assert 0 < len(got) < len(data)
    guest.device.pause()
    guest.device.resume()
    while guest.ring(OUT).collect() == []:
        got += connection.arrived()
        guest.port.writable()
    assert got + connection.arrived() == data


def test_a_peer_that_has_gone_takes_all(connection: Connection) -> None:
    guest = Guest(connection)
    guest.open()
    connection.other.close()
    guest.write(b"nobody")
    assert len(guest.ring(OUT).collect()) == 1


def test_buffers_that_a_driver_may_not_give_fail_the_device(connection: Connection) -> None:
    guest = Guest(connection)
    guest.open()
    guest.ring(OUT).add([b"good"])
    guest.ring(OUT).add([b"bad"], writable=[4])
    guest.write(b"more")
    assert connection.arrived() == b"goodbadmore"
    ring = guest.h.device.queues[OUT]
    guest.h.memory.write_u32(ring.desc + 16 * guest.ring(OUT).add([b"lost"]).token + 8, 0)
    guest.h.kick(OUT)
    assert guest.device.broken
    assert connection.arrived() == b""


_SIZE = 8
_WORDS = st.integers(0, 0xFFFF)
_DESCRIPTORS = st.lists(
    st.tuples(st.integers(0, 5000) | st.integers(0, 2**64 - 1), st.integers(0, 5000) | st.integers(0, 2**32 - 1))
    .flatmap(lambda place: st.tuples(st.just(place), st.integers(0, 7), st.integers(0, 9)))
    .map(lambda item: struct.pack("<QIHH", *item[0], item[1], item[2])),
    min_size=_SIZE,
    max_size=_SIZE,
)


@settings(max_examples=80)
@given(_DESCRIPTORS, st.integers(0, 9), st.lists(_WORDS | st.integers(0, 9), min_size=_SIZE, max_size=_SIZE), _WORDS)
def test_hostile_rings(descriptors: list[bytes], ahead: int, heads: list[int], position: int) -> None:
    ram, used = bytearray(4096), bytearray(8 + 4 + 8 * _SIZE + 8)
    avail = struct.pack(f"<HH{_SIZE}H", 0, (position + ahead) & 0xFFFF, *heads)
    own, other = socket.socketpair()
    with own, other:
        chains, rest = send_chains(
            memoryview(ram),
            ((0, 2048, 2048), (4096, 2048, 0)),
            memoryview(b"".join(descriptors)),
            memoryview(avail),
            memoryview(used)[8:-8],
            (position, position),
            own.fileno(),
        )
        own.shutdown(socket.SHUT_WR)
        while other.recv(1 << 20):
            pass
    assert 0 <= chains <= min(ahead, _SIZE)
    assert rest >= 0
    assert used[:12] == bytes(12), "only elements are written"
    assert used[-8:] == bytes(8)


def test_rings_that_do_not_fit_together() -> None:
    view = memoryview(bytearray(64))
    for table, avail, used in ((view[:0], view, view), (view, view[:11], view), (view, view, view[:35])):
        with pytest.raises(ValueError, match="do not fit"):
            send_chains(view, (), table, avail, used, (0, 0), 0)
