"""VNC displays of pyvm and of QEMU: the same viewer says the same to both, and both are asked the same."""

from __future__ import annotations

import json
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyvm.vnc.des import respond
from tests.unit.vnc_support import Viewer, key, point, request, set_encodings, set_format

QEMU = shutil.which("qemu-system-x86_64")
PYVM = [sys.executable, "-m", "pyvm"]
TIMEOUT = 60

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]


class Emulator:
    """A process, a client of its monitor, and viewers of its displays."""

    def __init__(self, command: list[str], folder: Path, options: str) -> None:
        folder.mkdir()
        self.folder = folder
        words = f"-nodefaults -display none -M pc -m 16M -S {options}".replace("$D", str(folder)).split()
        self.process = subprocess.Popen(
            [*command, *words, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._monitor = self._connect("qmp")
        self._file = self._monitor.makefile("rb")
        self._file.readline()
        self.events: list[Any] = []
        self._open: list[socket.socket] = []
        self.ask("qmp_capabilities")

    def _connect(self, name: str) -> socket.socket:
        deadline = time.monotonic() + TIMEOUT
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(TIMEOUT)
            if not connection.connect_ex(f"{self.folder}/{name}"):
                return connection
            connection.close()
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Execute a command; return what follows, with the folder's name taken out, and keep the events."""
        text = json.dumps({"execute": command, "arguments": arguments}).replace("$D", str(self.folder))
        self._monitor.sendall(text.encode())
        while True:
            message = json.loads(self._file.readline().replace(str(self.folder).encode(), b"$D"))
            if "event" not in message:
                return message
            self.events.append((message["event"], message.get("data")))

    def settled_clients(self, viewers: list[Peer]) -> int:
        """Return how many viewers there are, when those are forgotten whose connections have ended."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            count = len(self.ask("query-vnc")["return"]["clients"])
            if count == sum(not viewer.gone for viewer in viewers):
                return count
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def viewer(self, name: str = "vnc") -> Peer:
        peer = Peer(self._connect(name))
        self._open.append(peer.socket)
        return peer

    def close(self) -> None:
        for connection in (*self._open, self._file, self._monitor):
            connection.close()
        self.process.kill()
        self.process.wait()


class Peer:
    """A viewer."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def read(self, size: int) -> bytes:
        """Read so many bytes, fewer at the end of the connection."""
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        return data

    def say(self, data: bytes) -> Peer:
        self.socket.sendall(data)
        return self

    @property
    def gone(self) -> bool:
        """Whether the connection has ended, for one who has read all that came."""
        if not select.select([self.socket], [], [], 0)[0]:
            return False
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True

    def enter(self, *, shared: bool = True) -> bytes:
        """Come in without a password; return what the server says of itself."""
        self.read(12)
        self.say(b"RFB 003.008\n\1").read(6)
        data = self.say(bytes((shared,))).read(24)
        return data + self.read(int.from_bytes(data[20:]))

    def update(self) -> bytes:
        """Read one update of pixels as they are, and of pseudo-encodings."""
        data = self.read(4)
        for _ in range(struct.unpack(">xxH", data)[0]):
            header = self.read(12)
            data += header
            _, _, width, height, encoding = struct.unpack(">HHHHi", header)
            size = {0: 4 * width * height, -261: 1, -308: 20}.get(encoding, 0)
            data += self.read(size)
        return data


def both(tmp_path: Path, options: str, talk: Callable[[Emulator], Any]) -> tuple[Any, Any]:
    """Return what comes of the same talk with QEMU and with pyvm."""
    results = []
    for name, command in (("qemu", [str(QEMU)]), ("pyvm", PYVM)):
        emulator = Emulator(command, tmp_path / name, options)
        try:
            results.append((talk(emulator), emulator.events))
        finally:
            emulator.close()
    return results[0], results[1]


def test_acquaintance(tmp_path: Path) -> None:
    def talk(emulator: Emulator) -> Any:
        seen: list[Any] = []
        emulator.ask("set_password", protocol="vnc", password="sesame", display="p")
        for version in ("003.003", "003.005", "003.007", "003.008", "003.006", "003.009", "004.008", "xxx.yyy"):
            for name, password in (("vnc", b""), ("locked", b"sesame"), ("locked", b"guess")):
                viewer = emulator.viewer(name)
                seen.append(viewer.read(12))
                viewer.say(f"RFB {version}\n".encode())
                first = viewer.read(2 if version in ("003.007", "003.008") else 4)
                seen.append(first)
                if len(first) == 2:
                    viewer.say(first[1:])
                elif first not in (b"\0\0\0\1", b"\0\0\0\2"):
                    seen.append(viewer.read(100))
                    continue
                if password:
                    seen.append(len(challenge := viewer.read(16)))
                    viewer.say(respond(password, challenge))
                if password or version == "003.008":
                    seen.append(viewer.read(4))
                if password == b"guess":
                    seen.append(viewer.read(100))
                else:
                    seen.append(viewer.say(b"\1").read(28))
                viewer.socket.close()
        return seen

    options = "-device VGA -name n -vnc unix:$D/vnc -vnc unix:$D/locked,password=on,id=p"
    (qemu, _), (pyvm, _) = both(tmp_path, options, talk)
    assert pyvm == qemu


def test_the_picture_and_what_is_told_of_extensions(tmp_path: Path) -> None:
    def talk(emulator: Emulator) -> Any:
        viewer = emulator.viewer()
        init = viewer.enter()
        seen = Viewer(640, 480)
        viewer.say(set_encodings(0) + request(0, 0, 640, 480))
        while not seen.image.any():
            seen.take(viewer.update())
        telling = emulator.viewer()
        telling.enter()
        notices = Viewer(640, 480)
        telling.say(set_encodings(0, -258, -257, -261, -308))
        for _ in range(3):
            notices.take(telling.update())
        telling.say(request(0, 0, 8, 8))
        while len(notices.notices) < 4:
            notices.take(telling.update())
        # The words on a screen that nobody has set a mode for are the same, their letters are not.
        return init, np.unique(seen.image & 0xFFFFFF).tolist(), sorted(notices.notices)

    (qemu, _), (pyvm, _) = both(tmp_path, "-device VGA -vnc unix:$D/vnc", talk)
    assert pyvm == qemu


def test_smaller_pixels(tmp_path: Path) -> None:
    def talk(emulator: Emulator) -> Any:
        viewer = emulator.viewer()
        viewer.enter()
        viewer.say(set_format(16, 16, most=(31, 63, 31), shifts=(11, 5, 0)) + set_encodings(0))
        viewer.say(request(0, 0, 640, 480))
        count = struct.unpack(">xxH", viewer.read(4))[0]
        image = np.zeros((480, 640), "<u2")
        for _ in range(count):
            x, y, width, height, _ = struct.unpack(">HHHHi", viewer.read(12))
            data = viewer.read(2 * width * height)
            image[y : y + height, x : x + width] = np.frombuffer(data, "<u2").reshape(height, width)
        return np.unique(image).tolist()

    (qemu, _), (pyvm, _) = both(tmp_path, "-device VGA -vnc unix:$D/vnc", talk)
    assert pyvm == qemu


def test_rude_viewers(tmp_path: Path) -> None:
    def talk(emulator: Emulator) -> Any:
        ends = []
        for data in (
            b"\x63",
            struct.pack(">B3xI", 6, (1 << 20) + 1),
            struct.pack(">B3xi", 6, -8),
            set_format(24, 24),
            b"\xff\x07",
            struct.pack(">BxBB", 250, 1, 2),
        ):
            viewer = emulator.viewer()
            viewer.enter()
            ends.append(viewer.say(data + bytes(200)).read(1))
        viewer = emulator.viewer()
        viewer.enter()
        viewer.say(key(97, True) + point(1, 2, 3) + struct.pack(">B3xI", 6, 100) + bytes(100))
        ends.append(viewer.say(request(0, 0, 8, 8)).read(2))
        return ends

    (qemu, _), (pyvm, _) = both(tmp_path, "-device VGA -vnc unix:$D/vnc", talk)
    assert pyvm == qemu


@pytest.mark.parametrize("share", ["allow-exclusive", "force-shared", "ignore"])
def test_policies_and_their_events(tmp_path: Path, share: str) -> None:
    def talk(emulator: Emulator) -> Any:
        seen: list[Any] = []
        viewers = []
        for shared in (True, True, False, True):
            viewer = emulator.viewer()
            seen.append(len(viewer.enter(shared=shared)))
            viewers.append(viewer)
            time.sleep(0.2)
            seen.append(emulator.settled_clients(viewers))
        return seen

    (qemu, told), (pyvm, tells) = both(tmp_path, f"-device VGA -vnc unix:$D/vnc,share={share}", talk)
    assert pyvm == qemu
    assert tells == told


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("query-vnc", {}),
    ("query-vnc-servers", {}),
    ("human-monitor-command", {"command-line": "info vnc"}),
    ("set_password", {"protocol": "vnc", "password": "x"}),
    ("set_password", {"protocol": "vnc", "password": "x", "display": "p"}),
    ("set_password", {"protocol": "vnc", "password": "x", "connected": "fail"}),
    ("set_password", {"protocol": "spice", "password": "x"}),
    ("expire_password", {"protocol": "vnc", "time": "+60"}),
    ("expire_password", {"protocol": "vnc", "time": "never", "display": "p"}),
    ("expire_password", {"protocol": "vnc", "time": "never", "display": "zz"}),
    ("change-vnc-password", {"password": "x"}),
    ("human-monitor-command", {"command-line": "set_password vnc x"}),
    ("human-monitor-command", {"command-line": "set_password vnc x -d p"}),
    ("human-monitor-command", {"command-line": "set_password vnc x fail"}),
    ("human-monitor-command", {"command-line": "change vnc password x"}),
    ("human-monitor-command", {"command-line": "change vnc password"}),
    ("human-monitor-command", {"command-line": "change vnc :1"}),
    ("display-reload", {"type": "vnc"}),
    ("display-reload", {"type": "vnc", "tls-certs": True}),
    ("display-update", {"type": "vnc"}),
    ("display-update", {"type": "vnc", "addresses": [{"type": "unix", "path": "$D/other"}]}),
    ("query-vnc", {}),
    ("display-update", {"type": "vnc", "addresses": [{"type": "unix", "path": "/nonexistent/x"}]}),
    ("query-vnc-servers", {}),
    ("query-spice", {}),
]


@pytest.mark.parametrize(
    "options", ["-device VGA,id=v -vnc unix:$D/vnc -vnc unix:$D/b,password=on,id=p -vnc none,display=v", "-device VGA"]
)
def test_monitors(tmp_path: Path, options: str) -> None:
    def talk(emulator: Emulator) -> Any:
        return [emulator.ask(command, **arguments) for command, arguments in QUESTIONS]

    (qemu, _), (pyvm, _) = both(tmp_path, options, talk)
    for question, wanted, found in zip(QUESTIONS, qemu, pyvm, strict=True):
        assert found == wanted, question


@pytest.mark.parametrize(
    "vnc", ["foo", ":x", ":99999", "none,share=zz", "none,password=on,password-secret=a", "none,password-secret=a"]
)
def test_refusals(vnc: str) -> None:
    said = []
    for command in ([str(QEMU)], PYVM):
        words = [*command, "-nodefaults", "-display", "none", "-M", "none", "-S", "-vnc", vnc]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 1
        said.append(done.stderr.partition(": ")[2])
    assert said[1] == said[0]
