"""Several requests at once on one connection to an NBD server: whose reply comes first, and servers that lie."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.backend import BlockBackend
from pyvm.block.context import IoContext
from pyvm.block.drivers.nbd import NbdNode
from pyvm.block.drivers.nbd_connection import Connection, Flight
from pyvm.block.drivers.nbd_handshake import ExportInfo
from pyvm.block.drivers.nbd_stream import ConnectionLost, ServerAddress, Stream
from pyvm.block.drivers.raw import RawNode
from tests.unit.nbd_support import FLAGS, Server, chunk, simple

LENGTH = 16
BIG = 4 << 20
PATIENCE = 60.0

Request = tuple[int, int, int, int]
"""Command, cookie, offset and length."""


def data_chunk(cookie: int, offset: int, data: bytes, *, done: bool = False) -> bytes:
    return chunk(1, struct.pack(">Q", offset) + data, done=done, cookie=cookie)


def pattern(offset: int, length: int) -> bytes:
    return bytes((offset + it) & 0xFF for it in range(length))


class Scripted:
    """The other end of a connection: a thread that does what a test says, with requests as they come."""

    def __init__(self, script: Callable[[Scripted], None], *, structured: bool = True) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        info = ExportInfo(1 << 30, FLAGS, structured=structured, context=9)
        self.connection = Connection(Stream(ours, PATIENCE), info)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(script,), daemon=True)
        self._thread.start()

    def _run(self, script: Callable[[Scripted], None]) -> None:
        try:
            script(self)
        except BaseException as failure:  # noqa: BLE001 - shown by the test
            self.failure = failure

    def __enter__(self) -> Connection:
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._thread.join(PATIENCE)
        self.socket.close()
        assert self.failure is None

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part
            data += part
        return data

    def request(self) -> Request:
        """Take a request, with its data."""
        _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", self.receive(28))
        if command == 1:
            self.receive(length)
        return command, cookie, offset, length

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)


def begin_reads(connection: Connection, count: int) -> list[tuple[bytearray, Flight]]:
    """Begin reads of LENGTH bytes, one behind the other."""
    found = []
    for number in range(count):
        data = bytearray(LENGTH)
        found.append((data, connection.read(number * LENGTH, [memoryview(data)])))
    return found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_replies_come_in_any_order(order: tuple[int, ...]) -> None:
    def script(peer: Scripted) -> None:
        requests = [peer.request() for _ in range(3)]
        for number in order:
            _, cookie, offset, length = requests[number]
            peer.send(data_chunk(cookie, offset, pattern(offset, length), done=True))

    with Scripted(script) as connection:
        for number, (data, flight) in enumerate(begin_reads(connection, 3)):
            flight.wait()
            assert bytes(data) == pattern(number * LENGTH, LENGTH)


def test_chunks_of_several_replies_come_mixed() -> None:
    def script(peer: Scripted) -> None:
        requests = [peer.request() for _ in range(4)]
        for half in (1, 0):
            for _, cookie, offset, length in requests[:3]:
                start = offset + half * length // 2
                peer.send(data_chunk(cookie, start, pattern(start, length // 2), done=not half))
        peer.send(simple(28, requests[3][1]))

    with Scripted(script) as connection:
        flights = begin_reads(connection, 3)
        trim = connection.trim(0, 512)
        for number, (data, flight) in enumerate(flights):
            flight.wait()
            assert bytes(data) == pattern(number * LENGTH, LENGTH)
        with pytest.raises(OSError, match="No space") as caught:
            trim.wait()
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "lie",
    [
        lambda cookie: data_chunk(cookie + 7, 0, pattern(0, LENGTH), done=True),
        lambda cookie: data_chunk(cookie, 0, pattern(0, LENGTH), done=True) * 2,
        lambda cookie: simple(5, cookie + 7),
        lambda cookie: data_chunk(cookie, 0, pattern(0, LENGTH)) + simple(0, cookie),
        lambda cookie: data_chunk(cookie, LENGTH, pattern(0, LENGTH), done=True),
        lambda cookie: chunk(0, done=True, cookie=1 << 63),
    ],
    ids=["unknown", "twice", "unknown-error", "simple-inside", "others-data", "far-off"],
)
def test_a_lie_about_cookies_ends_the_connection(lie: Callable[[int], bytes]) -> None:
    def script(peer: Scripted) -> None:
        requests = [peer.request() for _ in range(3)]
        peer.send(lie(requests[0][1]))

    with Scripted(script) as connection:
        flights = begin_reads(connection, 3)
        for _, flight in flights[1:]:
            with pytest.raises(ConnectionLost):
                flight.wait()
        with pytest.raises(ConnectionLost):
            connection.flush()


def test_a_server_that_does_one_thing_after_the_other() -> None:
    """It sends all it has to say before it takes anything more, and there is no room for that on the way."""

    def script(peer: Scripted) -> None:
        for _ in range(4):
            command, cookie, offset, length = peer.request()
            if command == 0:
                peer.send(data_chunk(cookie, offset, bytes(length), done=True))
            else:
                peer.send(simple(0, cookie))

    with Scripted(script) as connection:
        buffers = [memoryview(bytearray(b"?" * BIG)) for _ in range(2)]
        data = memoryview(bytes(BIG))
        flights = []
        for buffer in buffers:
            flights += [connection.read(0, [buffer]), connection.write(0, [data])]
        for flight in flights:
            flight.wait()
        assert all(bytes(buffer) == bytes(BIG) for buffer in buffers)


def test_only_so_many_are_on_their_way() -> None:
    waiting = threading.Event()

    def script(peer: Scripted) -> None:
        requests = [peer.request() for _ in range(16)]
        peer.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.socket.recv(1)
        waiting.set()
        peer.socket.settimeout(PATIENCE)
        for it in requests:
            peer.send(simple(0, it[1]))
        peer.send(simple(0, peer.request()[1]))

    with Scripted(script) as connection:
        flights = [connection.trim(it, 1) for it in range(16)]
        flights.append(connection.trim(16, 1))
        assert waiting.is_set()
        for flight in flights:
            flight.wait()


def test_threads_share_a_connection() -> None:
    def script(peer: Scripted) -> None:
        for _ in range(25):
            for _, cookie, offset, length in [peer.request() for _ in range(4)][::-1]:
                peer.send(data_chunk(cookie, offset, pattern(offset, length), done=True))

    errors: list[object] = []

    def read(connection: Connection, first: int) -> None:
        try:
            for number in range(first, first + 25):
                data = bytearray(LENGTH)
                connection.read(number * 3, [memoryview(data)]).wait()
                assert bytes(data) == pattern(number * 3, LENGTH)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    with Scripted(script) as connection:
        threads = [threading.Thread(target=read, args=(connection, 100 * it)) for it in range(4)]
        for it in threads:
            it.start()
        for it in threads:
            it.join(PATIENCE)
        assert errors == []


def test_a_close_ends_what_other_threads_wait_for() -> None:
    sent = threading.Event()

    def script(peer: Scripted) -> None:
        peer.request()
        sent.set()

    caught: list[OSError] = []

    def read(connection: Connection) -> None:
        try:
            connection.read(0, [memoryview(bytearray(LENGTH))]).wait()
        except OSError as error:
            caught.append(error)

    with Scripted(script) as connection:
        thread = threading.Thread(target=read, args=(connection,))
        thread.start()
        assert sent.wait(PATIENCE)
        connection.close(polite=False)
        thread.join(PATIENCE)
        assert [type(it) for it in caught] == [ConnectionLost]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_replies_do_harm(data: st.DataObject) -> None:
    """Whatever comes, a request ends, and no byte of it lands anywhere else."""
    parts = [data_chunk(cookie, (cookie - 1) * LENGTH, b"x" * LENGTH, done=True) for cookie in (1, 2, 3)]
    parts += [chunk(0, done=True, cookie=2), simple(5, 3), data_chunk(1, 0, b"y" * 8)]
    said = bytearray(b"".join(data.draw(st.lists(st.sampled_from(parts), max_size=6))))
    for _ in range(data.draw(st.integers(0, 2)) if said else 0):
        at = data.draw(st.integers(0, len(said) - 1))
        said[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))

    def script(peer: Scripted) -> None:
        for _ in range(3):
            peer.request()
        peer.send(bytes(said))
        peer.socket.shutdown(socket.SHUT_WR)

    with Scripted(script) as connection:
        for content, flight in begin_reads(connection, 3):
            try:
                flight.wait()
            except OSError:
                continue
            assert len(content) == LENGTH
            assert content[0] != 0


# ---- Nodes and disks


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "s", 64 << 10)
    yield made
    made.stop()


def open_disk(server: Server, **more: Any) -> NbdNode:
    return NbdNode(ServerAddress(path=str(server.path)), "disk", **more)


def test_what_is_on_its_way_when_the_server_goes_is_sent_again(server: Server) -> None:
    node = open_disk(server, reconnect_delay=60)
    seen: list[int] = []

    def once(command: int) -> int:
        seen.append(command)
        return -1 if len(seen) == 3 else 0

    server.fail = once
    pending = [node.start_writev(it * 512, [memoryview(bytes([it + 1]) * 512)]) for it in range(6)]
    for it in pending:
        assert it is not None
        it.wait()
    assert bytes(server.data[:3072]) == b"".join(bytes([it + 1]) * 512 for it in range(6))
    assert len(server.connections) == 2
    node.close()


def test_without_a_delay_all_fail_that_are_on_their_way(server: Server) -> None:
    node = open_disk(server)
    server.perform = lambda *_: b""  # type: ignore[method-assign]
    pending = [node.start_readv(it * 512, [memoryview(bytearray(512))]) for it in range(3)]
    server.kill()
    for it in pending:
        assert it is not None
        with pytest.raises(OSError, match="Input/output error"):
            it.wait()
    node.close()


def test_what_is_not_one_request_is_not_begun(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", 10240, least=512, most=4096)
    node = open_disk(server)
    for offset, length in [(0, 4608), (3584, 1024), (1, 512), (512, 0), (9728, 1024), (-512, 512)]:
        assert node.start_readv(offset, [memoryview(bytearray(length))]) is None
        assert node.start_writev(offset, [memoryview(bytes(length))]) is None
    node.close()
    server.stop()


def test_requests_of_a_guest_are_on_their_way_together(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers only once it has seen all of them, and a flush waits until they are done."""
    monkeypatch.setattr("pyvm.block.context._BATCH_NS", 60_000_000_000)  # however slow the host is
    node = RawNode(open_disk(server))
    lock = threading.RLock()
    disk = BlockBackend(node, IoContext(lock))
    all_there = threading.Event()
    perform = server.perform
    answers: list[tuple[Any, ...]] = []

    def hold_back(command: int, *arguments: Any) -> bytes:
        answers.append((command, *arguments))
        if len(answers) < 4:
            return b""
        if len(answers) == 4:
            all_there.set()
            return b"".join(perform(*it) for it in answers[::-1])
        return perform(command, *arguments)

    server.perform = hold_back  # type: ignore[method-assign]
    ends: list[str] = []
    with lock:
        for number in range(3):
            data = memoryview(bytes([number + 1]) * 512)
            disk.write(number * 512, [data], lambda error, number=number: ends.append(f"write {number}: {error}"))  # type: ignore[misc]
        disk.read(8192, [memoryview(bytearray(512))], lambda error: ends.append(f"read: {error}"))
        disk.flush(lambda error: ends.append(f"flush: {error}"))
        disk.drain()
    assert all_there.is_set()
    assert ends == ["write 0: 0", "write 1: 0", "write 2: 0", "read: 0", "flush: 0"]
    assert [it[0] for it in answers] == [1, 1, 1, 0, 3]
    assert bytes(server.data[:1536]) == b"\1" * 512 + b"\2" * 512 + b"\3" * 512
    with lock:
        disk.close()
        disk.context.close()
