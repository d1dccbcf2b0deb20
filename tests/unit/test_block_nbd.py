"""The NBD driver against a small server that may fail or go away; its options and names."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.drivers import nbd_reconnect
from pyvm.block.drivers.nbd import NbdNode, parse_filename
from pyvm.block.drivers.nbd_options import find_address, make_filename
from pyvm.block.drivers.nbd_stream import ServerAddress
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.open import open_image, open_node
from pyvm.block.options import Dialect
from tests.unit.nbd_support import FLAGS, Server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def make_server(place: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def make(size: int = 64 << 10, **more: Any) -> Server:
        servers.append(Server(place, size, **more))
        return servers[-1]

    yield make
    for it in servers:
        if it.listener.fileno() >= 0:
            it.stop()


def open_disk(server: Server, **more: Any) -> NbdNode:
    return NbdNode(ServerAddress(path=str(server.path)), "disk", unmap=True, **more)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("least", [1, 512, 4096])
def test_reading_and_writing(make_server: Callable[..., Server], structured: bool, least: int) -> None:
    server = make_server(structured=structured, least=least, most=8192)
    node = open_disk(server)
    server.data[:] = os.urandom(server.size)
    wanted = bytearray(server.data)
    assert node.size == server.size
    assert node.read(0, node.size) == wanted
    for offset, length in ((0, 512), (511, 2), (5000, 20000), (8192, 8192), (65535, 1), (65000, 536)):
        assert node.read(offset, length) == wanted[offset : offset + length]
        data = os.urandom(length)
        view = memoryview(data)
        node.writev(offset, [view[: length // 3], view[length // 3 :]])
        wanted[offset : offset + length] = data
        assert server.data == wanted
    node.write_zeroes(700, 9000, True)
    wanted[700:9700] = bytes(9000)
    assert server.data == wanted
    node.flush()
    node.write_durable(0, [memoryview(bytes(512))])
    node.discard(0, 10000)
    assert server.requests[-1][0] == 4
    with pytest.raises(OSError, match="Input/output error"):
        node.read(65535, 2)
    node.close()


def test_features_that_the_server_lacks(make_server: Callable[..., Server]) -> None:
    server = make_server(flags=1, structured=False)
    node = open_disk(server)
    node.write(0, b"x" * 4096)
    node.write_zeroes(100, 1000, True)
    assert server.data[:4096] == b"x" * 100 + bytes(1000) + b"x" * 2996
    node.discard(0, 4096)
    node.flush()
    node.write_durable(0, [memoryview(b"y")])
    assert {it[0] for it in server.requests} == {1}
    extent = node.block_status(0, 4096)
    assert (extent.length, extent.data, extent.zero) == (4096, True, False)
    node.close()


def test_fua(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server)
    node.write_durable(0, [memoryview(b"y")])
    assert server.requests == [(1, 1, 0, 1)]
    node.close()


def test_length_that_is_not_whole_sectors(make_server: Callable[..., Server]) -> None:
    server = make_server(1000)
    server.data[:] = b"x" * 1000
    node = open_disk(server)
    assert (node.size, node.length()) == (1024, 1000)
    assert node.read(512, 512) == b"x" * 488 + bytes(24)
    assert node.read(1000, 24) == bytes(24)
    node.write(512, b"z" * 488 + bytes(24))
    assert server.data[512:] == b"z" * 488
    with pytest.raises(OSError, match="No space left"):
        node.write(512, b"z" * 512)
    node.write_zeroes(512, 512, False)
    assert server.data[512:] == bytes(488)
    extent = node.block_status(512, 512)
    assert (extent.length, extent.zero) == (512, True)
    assert node.block_status(1000, 24).zero
    node.close()


def test_block_status_of_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.data[1024:4096] = b"x" * 3072
    node = open_disk(server)
    extents = []
    offset = 0
    while offset < node.size:
        extent = node.block_status(offset, node.size - offset)
        extents.append((offset, extent.length, extent.data, extent.zero))
        offset += extent.length
    assert extents == [(0, 1024, False, True), (1024, 3072, True, False), (4096, 61440, False, True)]
    node.close()


def test_errors_leave_the_connection_alone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server)
    server.fail = lambda command: 28 if command == 1 else 0
    with pytest.raises(OSError, match="No space left") as caught:
        node.write(0, b"x" * 512)
    assert caught.value.errno == errno.ENOSPC
    server.fail = lambda command: 5 if command == 4 else 0
    node.discard(0, 512)  # a hint
    assert node.read(0, 512) == bytes(512)
    assert len(server.connections) == 1
    node.close()


def test_read_only_export(make_server: Callable[..., Server]) -> None:
    server = make_server(flags=FLAGS | 2)
    with pytest.raises(BlockError, match="read-only"):
        open_disk(server)
    node = open_disk(server, auto_read_only=True)
    assert node.read_only
    with pytest.raises(OSError, match="not permitted"):
        node.write(0, b"x")
    node.discard(0, 512)
    assert server.requests == []
    node.close()


def test_lengths_cannot_be_changed(make_server: Callable[..., Server]) -> None:
    node = open_disk(make_server())
    node.truncate(64 << 10)
    node.truncate(10, exact=False)
    with pytest.raises(BlockError, match="Cannot resize NBD nodes"):
        node.truncate(10)
    with pytest.raises(BlockError, match="Cannot grow NBD nodes"):
        node.truncate(1 << 20, exact=False)
    node.close()


def test_unknown_export(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with pytest.raises(BlockError, match="Requested export not available"):
        NbdNode(ServerAddress(path=str(server.path)), "other")


# ---- When the server goes away


def test_requests_fail_at_once_without_a_delay(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server)
    server.stop()
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            node.read(0, 512)
        with pytest.raises(OSError, match="Input/output error"):
            node.flush()
    node.close()


def test_without_a_delay_later_requests_find_the_new_connection(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server)
    server.kill()
    with pytest.raises(OSError, match="Input/output error"):
        node.write(0, b"lost")
    node._give_up = time.monotonic() + 60  # by then it is there
    node.write(0, b"kept")
    assert server.data[:4] == b"kept"
    node.close()


def test_requests_wait_for_the_delay(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server, reconnect_delay=60)
    for command in (1, 0, 3):
        seen = []

        def once(asked: int, command: int = command, seen: list[int] = seen) -> int:
            if asked == command and not seen:
                seen.append(asked)
                return -1
            return 0

        server.fail = once
        node.write(0, b"again")
        assert node.read(0, 5) == b"again"
        node.flush()
        assert seen
    assert len(server.connections) == 4
    node.close()


def test_server_that_comes_back_as_another(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server, reconnect_delay=0.05)
    server.size = 4096
    server.kill()
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    node.close()


def test_waiting_ends_with_the_delay(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server, reconnect_delay=0.05)
    server.stop()
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    node.close()


def test_server_that_breaks_the_protocol_is_left(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server)
    server.perform = lambda *_: b"garbage " * 4  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    assert node._connection is None
    node.close()


def test_silent_server_counts_as_gone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    node = open_disk(server, timeout=0.05)
    server.perform = lambda *_: b""  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    node.close()


def test_open_timeout_waits_for_a_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = []

    def start(seconds: float) -> None:
        assert 0 < seconds <= 1
        servers.append(Server(place, 4096))

    monkeypatch.setattr(nbd_reconnect.time, "sleep", start)
    node = NbdNode(ServerAddress(path=str(place)), "disk", open_timeout=60)
    assert node.size == 4096
    node.close()
    servers[0].stop()


def test_nobody_listens(place: Path) -> None:
    with pytest.raises(BlockError, match=f"Failed to connect to '{place}': No such file or directory"):
        NbdNode(ServerAddress(path=str(place)))
    place.write_bytes(b"")
    with pytest.raises(BlockError, match="Connection refused"):
        NbdNode(ServerAddress(path=str(place)))
    with pytest.raises(BlockError, match="Connection refused"):
        NbdNode(ServerAddress(path=""))
    with pytest.raises(BlockError, match="too long"):
        NbdNode(ServerAddress(path="x" * 200))


# ---- Options and names


@pytest.mark.parametrize(
    ("name", "server", "export"),
    [
        ("nbd:localhost:10809", {"type": "inet", "host": "localhost", "port": "10809"}, None),
        ("nbd:localhost:1:exportname=a:b", {"type": "inet", "host": "localhost", "port": "1"}, "a:b"),
        ("nbd:[::1]:1", {"type": "inet", "host": "::1", "port": "1"}, None),
        ("nbd:unix:/tmp/s", {"type": "unix", "path": "/tmp/s"}, None),
        ("nbd:unix:/tmp/s:exportname=x", {"type": "unix", "path": "/tmp/s"}, "x"),
        ("nbd://host", {"type": "inet", "host": "host", "port": "10809"}, None),
        ("nbd+tcp://host:7/", {"type": "inet", "host": "host", "port": "7"}, None),
        ("nbd://[::1]:7/a%20b/c", {"type": "inet", "host": "::1", "port": "7"}, "a b/c"),
        ("nbd+unix:///x?socket=/tmp/s", {"type": "unix", "path": "/tmp/s"}, "x"),
        ("nbd+unix://?socket=/tmp/s", {"type": "unix", "path": "/tmp/s"}, None),
    ],
)
def test_names(name: str, server: dict[str, str], export: str | None) -> None:
    assert parse_filename(name) == {"server": server} | ({"export": export} if export else {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nbd:foo", "error parsing address 'foo'"),
        ("nbd:unix:/x:exportname=", "NBD server address missing"),
        ("nbd:", "NBD server address missing"),
        ("nbd::exportname=a", "NBD server address missing"),
        ("nbd:a:b:c", "error parsing address 'a:b:c'"),
        ("nbd://h/x?socket=a", "No valid URL specified"),
        ("nbd+unix:///x", "No valid URL specified"),
        ("nbd+unix://h/x?socket=a", "No valid URL specified"),
        ("nbd+unix:///x?socket=a&b=c", "No valid URL specified"),
        ("nbd+unix:///x?path=a", "No valid URL specified"),
        ("nbd://h:99999/", "No valid URL specified"),
        ("nbd:///x", "No valid URL specified"),
        ("nbd://[::1/x", "No valid URL specified"),
    ],
)
def test_bad_names(name: str, text: str) -> None:
    with pytest.raises(BlockError) as caught:
        parse_filename(name)
    assert str(caught.value) == text


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_any_name_is_understood_or_refused(text: str) -> None:
    for prefix in ("nbd:", "nbd://", "nbd+unix://"):
        try:
            own = parse_filename(prefix + text)
        except BlockError:
            continue
        address = find_address(own)
        assert address.path is not None or address.port


@pytest.mark.parametrize(
    "name", ["nbd://host:7/a%20b/c", "nbd://[::1]:7", "nbd+unix:///x?socket=/tmp/s", "nbd+unix://?socket=s"]
)
def test_names_of_open_exports(name: str) -> None:
    own = parse_filename(name)
    assert make_filename(find_address(own), own.get("export", "")) == name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "NBD server address missing"),
        ({"host": "a", "path": "b"}, "path and host may not be used at the same time"),
        ({"path": "a", "port": "2"}, "port may not be used without host"),
        ({"server": {"type": "unix"}}, "Parameter 'path' is missing"),
        ({"server": {"type": "foo"}}, "Parameter 'type' does not accept value 'foo'"),
        ({"server": {"path": "a"}}, "Parameter 'type' is missing"),
        ({"server": {"type": "inet", "host": "a"}}, "Parameter 'port' is missing"),
        ({"server": {"type": "unix", "path": "a", "host": "a"}}, "Parameter 'host' is unexpected"),
        ({"server": {"type": "fd", "str": "a"}}, "Unable to parse FD number a"),
        ({"server": {"type": "vsock", "cid": "2", "port": "1"}}, "'server.type=vsock' is not supported by pyvm yet"),
        (
            {"server": {"type": "unix", "path": "a"}, "path": "a"},
            "'server' and path/host/port cannot be used at the same time",
        ),
        (
            {"server": {"type": "unix", "path": "a"}, "tls-creds": "a"},
            "No TLS credentials with id 'a'",
        ),
        (
            {"server": {"type": "unix", "path": "a", "abstract": "maybe"}},
            "Parameter 'server.abstract' expects 'on' or 'off'",
        ),
        ({"server": {"type": "unix", "path": None}}, "Invalid parameter type for 'server.path', expected: string"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BlockError) as caught:
        open_node({"driver": "nbd", "node-name": "a", **options}, BlockGraph())
    assert str(caught.value) == text


def test_opening_by_name_and_options(make_server: Callable[..., Server]) -> None:
    server = make_server()
    name = f"nbd+unix:///disk?socket={server.path}"
    node = open_image(name, format="raw")
    assert node.file is not None
    assert node.file.driver == "nbd"
    assert node.filename == name
    node.write(0, b"hello")
    assert server.data[:5] == b"hello"
    node.release()
    graph = BlockGraph()
    tree = {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(server.path)}, "export": "disk"}
    node = open_node(tree, graph)
    assert node.filename == name
    node.release()
    text = {**tree, "reconnect-delay": "5", "open-timeout": "1"}
    node = open_node(text, graph, dialect=Dialect.KEYVAL)
    assert node.options["reconnect-delay"] == 5
    node.release()
    assert not graph.nodes


def test_names_that_do_not_say_all() -> None:
    for server in (
        {"type": "inet", "host": "::1", "port": "1", "ipv6": True},
        {"type": "unix", "path": "a", "abstract": True},
    ):
        assert not make_filename(find_address({"server": server}), "disk")


def test_a_connection_that_is_there(make_server: Callable[..., Server]) -> None:
    ours, theirs = socket.socketpair()
    server = make_server()
    thread = threading.Thread(target=server.serve, args=(theirs,))
    thread.start()
    graph = BlockGraph()
    graph.find_fd = {"name": ours.detach()}.get
    options = {"driver": "nbd", "node-name": "a", "server": {"type": "fd", "str": "name"}, "export": "disk"}
    node = open_node(options, graph)
    assert node.read(0, 512) == bytes(512)
    node.release()
    thread.join()
    assert not node.filename


def test_tcp(make_server: Callable[..., Server]) -> None:
    server = make_server()
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]

    def serve() -> None:
        connection, _ = tcp.accept()
        server.serve(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    node = NbdNode(find_address({"server": {"type": "inet", "host": "127.0.0.1", "port": str(port)}}), "disk")
    assert node.filename == f"nbd://127.0.0.1:{port}/disk"
    assert node.read(0, 512) == bytes(512)
    node.close()
    thread.join()
    tcp.close()
    with pytest.raises(BlockError, match=f"Failed to connect to '127.0.0.1:{port}': Connection refused"):
        NbdNode(ServerAddress("127.0.0.1", str(port)))
    with pytest.raises(BlockError, match=r"address resolution failed for 127\.0\.0\.1:bar"):
        NbdNode(ServerAddress("127.0.0.1", "bar"))


def test_images_are_made_in_an_export(make_server: Callable[..., Server]) -> None:
    server = make_server(size=1 << 20)
    server.data[:512] = b"x" * 512
    name = f"nbd+unix:///disk?socket={server.path}"
    create_image(name, "raw", 65536)
    assert not any(server.data[:512])
    with pytest.raises(BlockError, match="Cannot grow NBD nodes"):
        create_image(name, "raw", 2 << 20)
    create_image(name, "qcow2", 1 << 30)
    assert server.data[:4] == b"QFI\xfb"
    node = open_image(name, format="qcow2")
    assert node.size == 1 << 30
    node.write(5 << 20, b"data")
    node.release()
    node = open_image(name, format="qcow2", read_only=True)
    assert node.read(5 << 20, 5) == b"data\0"
    node.release()
    server.stop()
    refusal = "Protocol driver 'nbd' does not support image creation, and opening the image failed: Failed to connect"
    with pytest.raises(BlockError, match=refusal):
        create_image(name, "qcow2", 1 << 20)
    with pytest.raises(BlockError, match="Protocol driver 'null-co' does not support image creation"):
        create_image("null-co://", "raw", 512)
