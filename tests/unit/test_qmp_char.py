"""Commands about character devices.  Expected replies are QEMU 7.2's, but for what pyvm does not have."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.chardev.registry import ChardevHost, ChardevSet
from pyvm.chardev.socket import SocketChardev
from pyvm.clock import ManualClock
from pyvm.input import InputRouter
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, run_until, running_loop
from tests.unit.monitor_support import Bench, Client


class Swapping(Recorder):
    """A front end that goes on with another back end."""

    def chardev_replaced(self, chardev: Chardev) -> None:
        self.attach(chardev)


class Desk:
    """A client of a machine that has real character devices."""

    def __init__(self, loop: MainLoop) -> None:
        self.bench = Bench()
        self.loop = loop
        self.exits: list[int] = []
        self.input = InputRouter(ManualClock(), lambda: True)
        self.devices = ChardevSet(loop, host=ChardevHost(self.input, self.exits.append))
        machine: Any = self.bench.machine
        machine.chardev_set = self.devices
        machine.chardevs = self.devices.query
        self.client: Client = self.bench.client()

    def add(self, name: str, kind: str, **data: Any) -> Any:
        return self.client.execute("chardev-add", id=name, backend={"type": kind, "data": data})

    def add_fails(self, name: str, kind: str, **data: Any) -> str:
        return self.client.error("chardev-add", {"id": name, "backend": {"type": kind, "data": data}})

    def finish(self) -> list[Any]:
        """Carry out the command that waits."""
        with self.loop.lock:
            self.loop.loop.run_until_complete(self.bench.spawned.pop(0))
        return self.client.messages()


def unix(path: Path, **more: Any) -> dict[str, Any]:
    return {"addr": {"type": "unix", "data": {"path": str(path)}}, **more}


def inet(port: object, **more: Any) -> dict[str, Any]:
    return {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}, **more}


@pytest.fixture
def desk() -> Iterator[Desk]:
    with running_loop() as loop:
        made = Desk(loop)
        yield made
        made.devices.close_all()


def test_plain_back_ends(desk: Desk, tmp_path: Path) -> None:
    assert desk.add("null", "null") == {}
    assert desk.add_fails("null", "null") == "Chardev with id 'null' already exists"
    assert desk.add("1 odd/name", "null") == {}
    assert desk.add("ring", "ringbuf", size=1024) == {}
    assert desk.add("file", "file", out=str(tmp_path / "out")) == {}
    assert desk.add("pty", "pty")["pty"].startswith("/dev/pts/")
    assert desk.add("mux", "mux", chardev="null") == {}
    assert desk.add("serial", "serial", device="/dev/null") == {}
    assert desk.add("udp", "udp", remote={"type": "inet", "data": {"host": "127.0.0.1", "port": "9"}}) == {}
    assert desk.add("mouse", "msmouse") == {}
    labels = {info["label"]: info["filename"] for info in desk.client.execute("query-chardev")}
    assert labels["mux"] == "mux"
    assert labels["mouse"] == "msmouse"
    assert labels["1 odd/name"] == "null"
    assert list(labels) == [info.label for info in desk.devices.query()]


def test_sockets(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert desk.add("server", "socket", **unix(path)) == {}
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    run_until(desk.loop, lambda: desk.devices.find("server").connected)  # type: ignore[union-attr]
    assert desk.add("again", "socket", **unix(tmp_path / "none", server=False, reconnect=1)) == {}
    peer.close()


def test_a_connection_is_made_beside_the_main_loop(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        request = {"id": "c", "backend": {"type": "socket", "data": inet(port, server=False)}}
        assert desk.client.ask({"execute": "chardev-add", "arguments": request}) == []
        assert desk.finish() == [{"return": {}}]
        assert desk.devices.find("c").connected  # type: ignore[union-attr]
        server.accept()[0].close()
    request["id"] = "d"
    assert desk.client.ask({"execute": "chardev-add", "arguments": request}) == []
    (reply,) = desk.finish()
    assert reply["error"]["desc"] == (
        f"Failed to add chardev 'd': Failed to connect to '127.0.0.1:{port}': Connection refused"
    )


def test_passed_descriptors(desk: Desk) -> None:
    ours, theirs = socket.socketpair()
    fds = [theirs.detach()]
    desk.client.wire.take_fds = lambda: [fds.pop()] if fds else []  # type: ignore[method-assign]
    address = {"type": "fd", "data": {"str": "sock"}}
    missing = "Failed to add chardev 'x': File descriptor named 'sock' has not been found"
    assert desk.add_fails("x", "socket", addr=address, server=False) == missing
    desk.client.execute("getfd", fdname="sock")
    assert desk.add("x", "socket", addr=address, server=False) == {}
    assert desk.add_fails("y", "socket", addr=address, server=False).endswith("has not been found")
    fds.append(os.open(os.devnull, os.O_RDONLY))
    desk.client.execute("getfd", fdname="sock")
    assert desk.add_fails("y", "socket", addr=address, server=False) == (
        "Failed to add chardev 'y': File descriptor 'sock' is not a socket"
    )
    ours.close()


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        ("ringbuf", {"size": 1000}, "size of ringbuf chardev must be power of two"),
        ("ringbuf", {"size": -1}, "size of ringbuf chardev must be power of two"),
        ("file", {"out": "/none/x"}, "Could not open '/none/x': No such file or directory"),
        ("pipe", {"device": "/none/x"}, "Could not open '/none/x': No such file or directory"),
        ("serial", {"device": "/none/x"}, "Could not open '/none/x': No such file or directory"),
        ("parallel", {"device": "/none/x"}, "Could not open '/none/x': No such file or directory"),
        ("parallel", {"device": "/dev/null"}, "not a parallel port: Inappropriate ioctl for device"),
        ("mux", {"chardev": "zz"}, "mux: base chardev zz not found"),
        ("console", {}, "'console' is not a valid char driver name"),
        ("braille", {}, "brlapi__openConnection: connect: No such file or directory"),
        ("null", {"logfile": "/none/x"}, "Could not create '/none/x': No such file or directory"),
        ("udp", {"remote": {"type": "unix", "data": {"path": "/x"}}}, "socket type unsupported for datagram"),
        (
            "socket",
            inet(0, server=True, reconnect=1),
            "'reconnect' option is incompatible with socket in server listen mode",
        ),
        (
            "socket",
            inet(0, server=False, wait=False),
            "'wait' option is incompatible with socket in client connect mode",
        ),
        ("socket", inet(0, server=False, websocket=True), "Websocket client is not implemented"),
        ("socket", inet(0, **{"tls-creds": "zz"}), "No TLS credentials with id 'zz'"),
        ("socket", inet(0, **{"tls-authz": "zz"}), "'tls_authz' option requires 'tls_creds' option"),
        (
            "socket",
            {"addr": {"type": "fd", "data": {"str": "x"}}, "server": False, "reconnect": 4},
            "'reconnect' option is incompatible with 'fd' address type",
        ),
        (
            "socket",
            {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0", "ipv4": False, "ipv6": False}}},
            "Cannot disable IPv4 and IPv6 at same time",
        ),
        (
            "socket",
            {"addr": {"type": "unix", "data": {"path": "/none/x"}}, "server": False},
            "Failed to connect to '/none/x': No such file or directory",
        ),
    ],
)
def test_what_cannot_be_made(desk: Desk, kind: str, data: dict[str, Any], problem: str) -> None:
    assert desk.add_fails("bad", kind, **data) == f"Failed to add chardev 'bad': {problem}"
    assert desk.devices.find("bad") is None


def test_validation_of_the_backend(desk: Desk) -> None:
    arguments = {"id": "x", "backend": {"type": "zz", "data": {}}}
    assert desk.client.error("chardev-add", arguments) == "Parameter 'type' does not accept value 'zz'"
    arguments = {"id": "x", "backend": {"type": "file", "data": {}}}
    assert desk.client.error("chardev-add", arguments) == "Parameter 'backend.data.out' is missing"


def test_removing(desk: Desk) -> None:
    client = desk.client
    desk.add("ring", "ringbuf")
    desk.add("mux", "mux", chardev="ring")
    assert client.error("chardev-remove", {"id": "ring"}) == "Chardev 'ring' is busy"
    assert client.error("chardev-remove", {"id": "zz"}) == "Chardev 'zz' not found"
    client.execute("chardev-remove", id="mux")
    client.execute("chardev-remove", id="ring")
    assert client.execute("query-chardev") == []


def test_changing(desk: Desk, tmp_path: Path) -> None:
    client = desk.client

    def change(name: str, kind: str = "null", **data: Any) -> dict[str, Any]:
        return {"id": name, "backend": {"type": kind, "data": data}}

    assert client.error("chardev-change", change("zz")) == "Chardev 'zz' does not exist"
    desk.add("free", "null")
    client.execute("chardev-change", **change("free", "file", out=str(tmp_path / "a")))
    assert desk.devices.find("free").filename == "file"  # type: ignore[union-attr]
    desk.add("mux", "mux", chardev="free")
    hotswap = "Chardev user does not support chardev hotswap"
    assert client.error("chardev-change", change("mux")) == "Mux device hotswap not supported yet"
    assert client.error("chardev-change", change("free")) == hotswap
    desk.add("used", "null")
    user = Swapping().attach(desk.devices.find("used"))  # type: ignore[arg-type]
    assert client.error("chardev-change", change("used", "file", out="/none/x")).startswith("Could not open '/none/x'")
    client.execute("chardev-change", **change("used", "file", out=str(tmp_path / "b")))
    user.send(b"hello")
    assert (tmp_path / "b").read_bytes() == b"hello"
    assert "pty" in client.execute("chardev-change", **change("used", "pty"))


def test_break(desk: Desk) -> None:
    client = desk.client
    assert client.error("chardev-send-break", {"id": "zz"}) == "Chardev 'zz' not found"
    desk.add("null", "null")
    client.execute("chardev-send-break", id="null")
    user = Recorder().attach(desk.devices.find("null"))  # type: ignore[arg-type]
    client.execute("chardev-send-break", id="null")
    assert user.events() == [ChardevEvent.OPENED, ChardevEvent.BREAK]


def test_ring_buffers(desk: Desk) -> None:
    client = desk.client
    desk.add("ring", "ringbuf", size=64)
    desk.add("null", "null")
    client.execute("ringbuf-write", device="ring", data="hello")
    client.execute("ringbuf-write", device="ring", data="aGk=", format="base64")
    bad = {"device": "ring", "data": "!!", "format": "base64"}
    assert client.error("ringbuf-write", bad) == "Base64 data contains invalid characters"
    assert client.execute("ringbuf-read", device="ring", size=3) == "hel"
    assert client.execute("ringbuf-read", device="ring", size=100, format="base64") == "bG9oaQ=="
    assert client.execute("ringbuf-read", device="ring", size=10) == ""
    for size in (0, -5):
        assert client.error("ringbuf-read", {"device": "ring", "size": size}) == "size must be greater than zero"
    assert client.error("ringbuf-read", {"device": "null", "size": 1}) == "null is not a ringbuf device"
    assert client.error("ringbuf-read", {"device": "zz", "size": 1}) == "Device 'zz' not found"
    for data in ("a", "YQ", "YWJ=YWJj", ""):
        client.execute("ringbuf-write", device="ring", data=data, format="base64")
    assert client.execute("ringbuf-read", device="ring", size=50) == "ababc"
    client.execute("ringbuf-write", device="ring", data="/wEA/3+AYQ==", format="base64")
    assert client.execute("ringbuf-read", device="ring", size=50) == "\ufffd\x01"
    client.execute("ringbuf-write", device="ring", data="\u00e9x")
    assert client.execute("ringbuf-read", device="ring", size=1) == "\ufffd"
    assert client.execute("ringbuf-read", device="ring", size=10) == "\ufffdx"


def test_kinds_are_those_that_can_be_made(desk: Desk) -> None:
    kinds = {info["name"] for info in desk.client.execute("query-chardev-backends")}
    assert {"socket", "null", "ringbuf", "memory", "pty", "msmouse", "testdev"} <= kinds
    data = {
        "socket": inet(0),
        "udp": {"remote": inet(9)["addr"]},
        "mux": {"chardev": "zz"},
        "file": {"out": "/none/x"},
    }
    for kind in sorted(kinds - {"stdio"}):
        request = {"id": kind, "backend": {"type": kind, "data": data.get(kind, {"device": "/none/x"})}}
        if kind in ("null", "pty", "vc", "msmouse", "testdev", "ringbuf", "memory"):
            request["backend"] = {"type": kind, "data": {}}
        (reply,) = desk.client.ask({"execute": "chardev-add", "arguments": request})
        assert "is not a valid char driver" not in str(reply)


def test_yank(desk: Desk, tmp_path: Path) -> None:
    client = desk.client
    desk.add("null", "null")
    desk.add("s", "socket", **unix(tmp_path / "s"))
    assert client.execute("query-yank") == [{"type": "chardev", "id": "s"}]
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(tmp_path / "s"))
    server = desk.devices.find("s")
    assert isinstance(server, SocketChardev)
    user = Recorder().attach(server)
    run_until(desk.loop, lambda: server.connected)
    known, unknown = {"type": "chardev", "id": "s"}, {"type": "chardev", "id": "zz"}
    missing = "DeviceNotFound: Instance not found"
    assert client.error("yank", {"instances": [known, unknown]}) == missing
    assert client.error("yank", {"instances": [{"type": "migration"}]}) == missing
    assert client.error("yank", {"instances": [{"type": "block-node", "node-name": "s"}]}) == missing
    assert server.connected
    client.execute("yank", instances=[known])
    assert peer.recv(1) == b""
    run_until(desk.loop, lambda: ChardevEvent.CLOSED in user.events())
    client.execute("yank", instances=[known])
    peer.close()


def test_yank_needs_no_turn(desk: Desk) -> None:
    client = desk.bench.client(oob=True)
    assert client.ask({"exec-oob": "query-yank", "id": 1}) == [{"return": [], "id": 1}]
    assert client.ask({"exec-oob": "yank", "arguments": {"instances": []}, "id": 2}) == [{"return": {}, "id": 2}]


def test_testdev_ends_the_process(desk: Desk) -> None:
    desk.add("t", "testdev")
    user = Recorder().attach(desk.devices.find("t"))  # type: ignore[arg-type]
    user.send(b"x12y 3")
    assert desk.exits == []
    user.send(b" q")
    user.send(b"q99999999999999999999q")
    assert desk.exits[:2] == [7, 1]
    assert len(desk.exits) == 3


def test_without_devices() -> None:
    client = Bench().client()
    assert client.error("chardev-remove", {"id": "x"}) == "this feature or command is not currently supported"


def test_no_coroutine_is_left(desk: Desk) -> None:
    desk.add("null", "null")
    assert desk.bench.spawned == []
    assert asyncio.all_tasks(desk.loop.loop) == set()
