"""A VNC viewer of somebody else's: what it sees is what a screendump shows, and what it types the guest reads.

The guests are boot sectors: they need nothing but the BIOS, the keyboard and the VGA.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest

from tests.guest.conftest import ProcessFactory
from tests.guest.support import SOON, Process, until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vncdotool") is None, reason="vncdotool is not installed (pip install 'pyvm[test]')"
)

VIEWER = (
    "import sys; from vncdotool import client, command, rfb; "
    "client.VNCDoToolClient.encoding = rfb.Encoding[sys.argv.pop(1)]; command.vncdo()"
)
# next: xor ah, ah; int 16h; out 0xe9, al; mov ah, 0x0e; int 10h; jmp next
ECHO = "31db b400 cd16 e6e9 b40e cd10 ebf4"
# Mode 13h, every byte of the screen the exclusive or of its address's halves; then wait for a key, and for another one:
# mov ax, 0x13; int 10h; push 0xa000; pop es; xor di, di; each: mov ax, di; xor al, ah; stosb; test di, di; jnz each
# wait: mov ah, 0; int 16h; jmp wait
COLOURS = "b81300 cd10 6800a0 07 31ff 89f8 30e0 aa 85ff 75f7 b400 cd16 ebfa"


def disk(directory: Path, code: str) -> str:
    """Return the option for a disk whose boot sector is `code`."""
    image = directory / "boot.img"
    image.write_bytes(bytes.fromhex("fc" + code).ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 63))
    return f"file={image},format=raw,if=ide"


class Guest:
    """A guest with a VNC display, and viewers of it."""

    def __init__(self, pyvm: ProcessFactory, directory: Path, code: str, *options: str, vnc: str = "") -> None:
        self.directory = directory
        self.console = directory / "debug"
        display = f"127.0.0.1:0,to=99{vnc}"
        self.process: Process = pyvm(
            *("-nodefaults", "-m", "16", "-device", "VGA", "-vnc", display, "-debugcon", f"file:{self.console}"),
            *("-drive", disk(directory, code), *options),
            console=False,
        )
        self.port = int(self.qmp("query-vnc")["service"])

    def qmp(self, command: str, **arguments: Any) -> Any:
        return self.process.qmp.execute(command, arguments)

    def view(self, *words: str, encoding: str = "RAW", status: int = 0) -> str:
        """Run a viewer; return what it says."""
        done = subprocess.run(
            [sys.executable, "-c", VIEWER, encoding, "-t", str(int(SOON)), "-s", f"127.0.0.1::{self.port}", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=2 * SOON,
        )
        assert (done.returncode != 0) == bool(status), done.stderr
        return done.stderr

    def screendump(self) -> Any:
        path = self.directory / "dump.png"
        self.qmp("screendump", filename=str(path), format="png")
        return picture(path)


def picture(path: Path) -> Any:
    width, height, rows, _ = png.Reader(bytes=path.read_bytes()).asRGB8()
    return np.array([list(row) for row in rows], np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("encoding", ["RAW", "HEXTILE", "ZRLE"])
def test_a_viewer_sees_what_a_screendump_shows(pyvm: ProcessFactory, tmp_path: Path, encoding: str) -> None:
    guest = Guest(pyvm, tmp_path, COLOURS)
    until(lambda: len(np.unique(guest.screendump()[-1], axis=0)) > 50, "colours on the whole screen")
    guest.view("capture", str(tmp_path / "seen.png"), encoding=encoding)
    seen, shown = picture(tmp_path / "seen.png"), guest.screendump()
    assert seen.shape == shown.shape
    assert np.array_equal(seen, shown)


def test_the_guest_reads_what_a_viewer_types(pyvm: ProcessFactory, tmp_path: Path) -> None:
    guest = Guest(pyvm, tmp_path, ECHO, vnc=",password=on")
    guest.qmp("set_password", protocol="vnc", password="sesame")
    until(lambda: guest.screendump().any(), "text on the screen")
    text = "the quick brown fox 0123456789 -=[];,./"
    guest.view("-p", "sesame", "type", text, "key", "enter", "pause", "0.5", "capture", str(tmp_path / "seen.png"))
    until(lambda: guest.console.read_bytes() == text.encode() + b"\r", "what was typed")
    guest.view("-p", "sesame", "--force-caps", "type", 'Shift: AZ!@#$%^&*()_+{}|:"<>?~')
    until(lambda: guest.console.read_bytes().endswith(b'\rShift: AZ!@#$%^&*()_+{}|:"<>?~'), "what was typed with shift")
    # Capital letters of a viewer that presses no shift key.
    guest.view("-p", "sesame", "type", "Caps Lock")
    until(lambda: guest.console.read_bytes().endswith(b"~Caps Lock"), "what was typed in capital letters")
    guest.view("-p", "sesame", "capture", str(tmp_path / "seen.png"))
    assert np.array_equal(picture(tmp_path / "seen.png"), guest.screendump())
    until(lambda: guest.qmp("query-vnc")["clients"] == [], "the end of the viewer")


def test_a_wrong_password_is_refused(pyvm: ProcessFactory, tmp_path: Path) -> None:
    guest = Guest(pyvm, tmp_path, ECHO, vnc=",password=on")
    guest.qmp("set_password", protocol="vnc", password="sesame")
    assert "Authentication failed" in guest.view("-p", "guess", "key", "a", status=1)
    guest.qmp("expire_password", protocol="vnc", time="now")
    guest.view("-p", "sesame", "key", "b", status=1)
    assert guest.console.read_bytes() == b""
