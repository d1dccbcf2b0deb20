"""VNC displays with sockets and a machine behind them, and what monitors are told."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.errors import ConfigError
from pyvm.input import InputKind
from pyvm.machine.pc import Pc
from pyvm.vnc.connection import READ_SIZE
from pyvm.vnc.des import respond
from tests.system.machine_rig import BASE, Machine
from tests.unit.vnc_support import Taker, Viewer, key, request, set_encodings

UNIX_CLIENT = {"host": "", "service": "", "family": "unix", "websocket": False}
DEADLINE = 90
OPEN: list[socket.socket] = []
"""What the peers of a test have open."""


class Peer:
    """A viewer at the other end of a real socket."""

    def __init__(self, machine: Machine, path: Path | str) -> None:
        self.machine = machine
        self.socket = socket.socket(socket.AF_UNIX)
        OPEN.append(self.socket)
        self.socket.setblocking(False)
        while self.socket.connect_ex(str(path)):
            machine.run()  # the backlog is short

    def read(self, size: int) -> bytes:
        """Read so many bytes, or up to the end of the connection."""
        data = b""
        end = time.monotonic() + DEADLINE
        while len(data) < size:
            self.machine.run()
            try:
                part = self.socket.recv(size - len(data))
            except BlockingIOError:
                assert time.monotonic() < end, data
                continue
            except ConnectionResetError:
                part = b""
            if not part:
                break
            data += part
        return data

    def say(self, data: bytes) -> None:
        self.socket.setblocking(True)
        self.socket.sendall(data)
        self.socket.setblocking(False)

    def version(self) -> None:
        assert self.read(12) == b"RFB 003.008\n"
        self.say(b"RFB 003.008\n")

    def log_in(self, password: bytes) -> bool:
        self.version()
        assert self.read(2) == b"\1\2"
        self.say(b"\2")
        self.say(respond(password, self.read(16)))
        if self.read(4) == bytes(4):
            return True
        assert self.read(1000).endswith(b"Authentication failed\0")
        return False

    def enter(self, *, shared: bool = True) -> tuple[int, int]:
        """Come in without a password; return the size of the screen."""
        self.version()
        assert self.read(2) == b"\1\1"
        self.say(b"\1")
        assert self.read(4) == bytes(4)
        self.say(bytes((shared,)))
        data = self.read(24)
        if len(data) < 24:
            raise ConnectionError
        width, height, length = struct.unpack(">HH16xI", data)
        self.read(length)
        return width, height

    @property
    def gone(self) -> bool:
        return self.read(1) == b""

    def close(self) -> None:
        self.socket.close()
        self.machine.run()


Start = Callable[..., Machine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Make machines, which end after their peers."""
    machines: list[Machine] = []

    def make(*options: str) -> Machine:
        machine = Machine("-device", "VGA,id=screen", *options)
        machines.append(machine)
        return machine

    yield make
    while OPEN:
        OPEN.pop().close()
    for machine in machines:
        machine.pc.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vnc"


def names(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in events]


# ---- Coming and going


def test_a_viewer_sees_and_types(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}", "-name", "guest")
    server = {"host": "", "service": str(path), "family": "unix", "websocket": False, "auth": "none"}
    with Peer(machine, path).socket:
        pass
    assert names(machine.take_events() + machine.take_events()) == ["VNC_CONNECTED", "VNC_DISCONNECTED"]
    peer = Peer(machine, path)
    width, height = peer.enter()
    ends = {"server": server, "client": UNIX_CLIENT}
    assert machine.take_events() == [("VNC_CONNECTED", ends), ("VNC_INITIALIZED", ends)]
    peer.say(set_encodings(0) + request(0, 0, width, height))
    header = peer.read(4)
    rectangles = struct.unpack(">xxH", header)[0]
    viewer = Viewer(width, height)
    viewer.take(header + peer.read(12 * rectangles + 4 * width * height))
    assert viewer.image.any()
    assert machine.execute("query-vnc") == {
        "enabled": True,
        "host": "",
        "service": str(path),
        "family": "unix",
        "auth": "none",
        "clients": [UNIX_CLIENT],
    }
    peer.close()
    assert machine.take_events() == [("VNC_DISCONNECTED", ends)]
    assert machine.execute("query-vnc")["clients"] == []


def test_the_guest_hears_keys_and_they_are_released(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path},key-delay-ms=0")
    machine.pc.input.listening = lambda: True
    taker = Taker({InputKind.KEY})
    machine.pc.input.register(taker)
    machine.pc.input.activate(taker)
    peer = Peer(machine, path)
    peer.enter()
    peer.say(key(ord("a"), True))
    machine.run()
    machine.run()
    assert taker.take() == ["key qcode a, down 1", "sync"]
    peer.close()
    machine.run()
    assert taker.take() == ["key qcode a, down 0", "sync"]


def test_viewers_see_the_lights_of_the_keyboard(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}")
    peer = Peer(machine, path)
    peer.enter()
    led = struct.pack(">BxHHHHHi", 0, 1, 0, 0, 1, 1, -261)
    peer.say(set_encodings(-261))
    assert peer.read(17) == led + b"\0"
    keyboard = machine.pc.board.keyboard
    keyboard.write(0xED)
    keyboard.write(4)
    assert peer.read(17) == led + b"\4"
    machine.pc.board.reset()
    assert peer.read(17) == led + b"\0"


def test_passwords_and_their_end(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path},password=on")

    def enters(password: bytes) -> bool:
        peer = Peer(machine, path)
        try:
            return peer.log_in(password)
        finally:
            peer.close()

    assert machine.execute("query-vnc")["auth"] == "vnc"
    assert not enters(b"")
    machine.execute("set_password", protocol="vnc", password="abc")
    assert enters(b"abc")
    assert not enters(b"abd")
    machine.execute("change-vnc-password", password="longer than that")
    assert enters(b"longer t")
    machine.execute("expire_password", protocol="vnc", time="now")
    assert not enters(b"longer t")
    machine.execute("expire_password", protocol="vnc", time="+600")
    assert enters(b"longer t")
    machine.execute("expire_password", protocol="vnc", time="never", display="default")
    assert enters(b"longer t")
    assert machine.error("expire_password", protocol="vnc", time="now", display="zz") == (
        "Could not set password expire time"
    )
    assert machine.error("set_password", protocol="vnc", password="x", display="zz") == "Could not set password"


def test_a_secret_is_a_password(start: Start, path: Path) -> None:
    machine = start("-object", "secret,id=s,data=sesame", "-vnc", f"unix:{path},password-secret=s")
    peer = Peer(machine, path)
    assert peer.log_in(b"sesame")
    peer.close()


def test_who_wants_to_be_alone(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}")
    first, second, alone = (Peer(machine, path) for _ in range(3))
    first.enter()
    second.enter()
    machine.take_events()
    alone.enter(shared=False)
    assert first.gone
    assert second.gone
    assert names(machine.take_events()) == ["VNC_INITIALIZED", "VNC_DISCONNECTED", "VNC_DISCONNECTED"]
    late = Peer(machine, path)
    with pytest.raises(ConnectionError):
        late.enter()
    for peer in (first, second, alone, late):
        peer.close()


def test_policies(start: Start, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("forced", "ignored")]
    machine = start("-vnc", f"unix:{paths[0]},share=force-shared", "-vnc", f"unix:{paths[1]},share=ignore")
    peers = [Peer(machine, paths[number]) for number in (0, 0, 1, 1, 1)]
    peers[0].enter()
    with pytest.raises(ConnectionError):
        peers[1].enter(shared=False)
    peers[2].enter(shared=False)
    peers[3].enter(shared=False)
    peers[4].enter()
    assert [len(server["clients"]) for server in machine.execute("query-vnc-servers")] == [3, 1]
    for peer in peers:
        peer.close()


def test_there_are_only_so_many(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path},connections=1")
    inside = Peer(machine, path)
    inside.enter()
    late = Peer(machine, path)
    with pytest.raises(ConnectionError):
        late.enter()
    silent = Peer(machine, path)
    silent.read(12)
    newer = Peer(machine, path)
    newer.read(12)
    assert silent.gone
    for peer in (inside, late, silent, newer):
        peer.close()


def test_a_viewer_that_says_what_it_must_not_goes(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}")
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"RFB 003.008\n\1\1\x63"):
        peer = Peer(machine, path)
        peer.say(data)
        peer.read(10_000)
        assert peer.gone
        peer.close()


def test_a_viewer_that_never_reads_stalls_nobody(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}")
    rude, good = Peer(machine, path), Peer(machine, path)
    size = rude.enter()
    rude.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(100):
        rude.say(request(0, 0, *size) * (READ_SIZE // 10))
        machine.run()
    good.enter()
    good.say(request(0, 0, *size))
    assert good.read(4)[:2] == b"\0\0"
    assert len(machine.pc.vnc.servers[0].connections) == 2  # type: ignore[union-attr]
    connection = machine.pc.vnc.servers[0].connections[0]  # type: ignore[union-attr]
    assert len(connection._pending) < 1 << 18
    rude.close()
    good.close()


def test_the_machine_ends_with_viewers_and_removes_its_socket(path: Path) -> None:
    machine = Machine("-vnc", f"unix:{path}")
    peer = Peer(machine, path)
    assert peer.enter() == (640, 480)
    machine.pc.close()
    peer.socket.setblocking(True)
    assert peer.socket.recv(1) == b""
    peer.socket.close()
    assert not path.exists()


# ---- Monitors


def test_several_displays(start: Start, tmp_path: Path) -> None:
    machine = start(
        *("-vnc", f"unix:{tmp_path}/a", "-vnc", f"unix:{tmp_path}/b,password=on,id=second", "-vnc", "none"),
        *("-display", "vnc=127.0.0.1:0,to=99,display=screen"),
    )
    servers = machine.execute("query-vnc-servers")
    assert [server["id"] for server in servers] == ["vnc3", "vnc2", "second", "default"]
    assert [server["auth"] for server in servers] == ["none", "none", "vnc", "none"]
    assert servers[0]["display"] == "screen"
    (place,) = servers[0]["server"]
    assert 5900 <= int(place["service"]) <= 5999
    assert place == {
        "host": "127.0.0.1",
        "service": place["service"],
        "family": "ipv4",
        "websocket": False,
        "auth": "none",
    }
    assert servers[1]["server"] == []
    assert machine.error("set_password", protocol="vnc", password="x") == "Could not set password"
    machine.execute("set_password", protocol="vnc", password="x", display="second")
    text = machine.execute("human-monitor-command", command_line="info vnc")
    assert text.replace("\r\n", "\n") == (
        f"vnc3:\n  Server: 127.0.0.1:{place['service']} (ipv4)\n    Auth: none (Sub: none)\n  Display: screen\n"
        "vnc2:\n  Auth: none (Sub: none)\n"
        f"second:\n  Server: :{tmp_path}/b (unix)\n    Auth: vnc (Sub: none)\n"
        f"default:\n  Server: :{tmp_path}/a (unix)\n    Auth: none (Sub: none)\n"
    )


def test_without_displays() -> None:
    with Machine() as machine:
        assert machine.execute("query-vnc") == {"enabled": False}
        assert machine.execute("query-vnc-servers") == []
        assert machine.execute("human-monitor-command", command_line="info vnc") == "None\r\n"
        assert machine.error("change-vnc-password", password="x") == "Could not set password"
        machine.execute("display-reload", type="vnc")
        assert machine.error("display-reload", type="vnc", tls_certs=True) == "Can not find vnc display"
        assert machine.error("display-update", type="vnc") == "Can not find vnc display"
        assert machine.execute("query-spice") == {"enabled": False, "migrated": False, "mouse-mode": "client"}
        read, write = os.pipe()
        machine.pc.add_vnc_client(write, True)
        assert os.read(read, 1) == b""
        os.close(read)


def test_a_display_moves(start: Start, tmp_path: Path) -> None:
    machine = start("-vnc", f"unix:{tmp_path}/a")
    peer = Peer(machine, tmp_path / "a")
    peer.enter()
    machine.execute("display-update", type="vnc")
    machine.execute("display-update", type="vnc", addresses=[{"type": "unix", "path": f"{tmp_path}/b"}])
    assert not (tmp_path / "a").exists()
    assert machine.execute("query-vnc")["service"] == f"{tmp_path}/b"
    Peer(machine, tmp_path / "b").close()
    missing = machine.error("display-update", type="vnc", addresses=[{"type": "unix", "path": "/nonexistent/x"}])
    assert missing == "Failed to bind socket to /nonexistent/x: No such file or directory"
    assert machine.execute("query-vnc") == {"enabled": False}
    machine.execute("display-update", type="vnc", addresses=[])
    fd = machine.error("display-update", type="vnc", addresses=[{"type": "fd", "str": "3"}])
    assert fd == "File descriptor named '3' has not been found"
    vsock = machine.error("display-update", type="vnc", addresses=[{"type": "vsock", "cid": "3", "port": "1"}])
    assert "vsock" in vsock
    assert machine.error("display-reload", type="vnc", tls_certs=True) == "vnc tls is not enabled"
    peer.say(request(0, 0, 1, 1))
    assert peer.read(2) == b"\0\0"
    peer.close()


def test_a_connection_that_is_handed_over(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path},password=on")
    ours, theirs = socket.socketpair()
    machine.pc.add_vnc_client(theirs.detach(), True)
    assert machine.take_events() == [
        (
            "VNC_CONNECTED",
            {
                "server": {
                    "host": "",
                    "service": str(path),
                    "family": "unix",
                    "websocket": False,
                    "auth": "vnc",
                },
                "client": UNIX_CLIENT,
            },
        )
    ]
    ours.setblocking(True)
    assert ours.recv(100) == b"RFB 003.008\n"
    ours.sendall(b"RFB 003.008\n")
    machine.run()
    assert ours.recv(100) == b"\1\1"
    ours.close()
    null = os.open(os.devnull, os.O_RDWR)
    machine.pc.add_vnc_client(null, False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(null)


def test_people_change_passwords(start: Start, path: Path) -> None:
    machine = start("-vnc", f"unix:{path}", "-vnc", "none,id=p,password=on")

    def hmp(line: str) -> str:
        text: str = machine.execute("human-monitor-command", command_line=line)
        return text.replace("\r\n", "\n")

    hint = "If you want use passwords please enable password auth using '-vnc ${dpy},password'.\n"
    refusal = f"{hint}Error: Could not set password\n"
    assert hmp("set_password vnc x") == refusal
    assert hmp("set_password vnc x -d p") == ""
    assert hmp("set_password vnc x -d zz") == "Error: Could not set password\n"
    assert hmp("set_password vnc x fail") == "Error: Invalid parameter 'connected'\n"
    assert hmp("expire_password vnc never -d p") == ""
    assert hmp("change vnc password abc") == refusal
    assert hmp("change vnc passwd abc") == refusal
    assert hmp("change vnc :1") == "Expected 'password' after 'vnc'\n"
    assert hmp("change vnc password") == "terminal does not support password prompting\n"


# ---- What cannot be had


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("unix:/nonexistent/x", "Failed to bind socket to /nonexistent/x: No such file or directory"),
        ("256.1.1.1:1", "address resolution failed for 256.1.1.1:5901: Name or service not known"),
        ("none,display=zz", "Device 'zz' not found"),
        ("none,password-secret=zz", "No secret with id 'zz'"),
    ],
)
def test_what_only_the_machine_can_find_out(options: str, problem: str) -> None:
    from pyvm.commandline import parse_arguments

    with pytest.raises(ConfigError) as caught:
        Pc(parse_arguments([*BASE, "-vnc", options]))
    assert str(caught.value) == f"-vnc {options}: {problem}"
