"""Pictures of the screen as files, and the commands that make them.  Expected errors are QEMU 7.2's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import png
import pytest
from numpy.typing import NDArray

from pyvm.clock import ManualClock
from pyvm.devices.display.screendump import FORMATS, encode, picture, save_picture
from pyvm.devices.display.vga import Vga
from tests.unit.monitor_support import Bench, Client
from tests.unit.vga_support import LFB, Ours, dispi_mode, read_ppm

TRY_HELP = 'Try "help screendump" for more information\r\n'


def read_png(path: Path) -> NDArray[np.uint8]:
    width, height, rows, info = png.Reader(bytes=path.read_bytes()).read()
    assert (info["greyscale"], info["alpha"], info["bitdepth"]) == (False, False, 8)
    return np.vstack([np.frombuffer(bytes(row), np.uint8) for row in rows]).reshape(height, width, 3)


READERS = {"ppm": lambda path: read_ppm(path.read_bytes()), "png": read_png}


@pytest.fixture
def vga() -> Vga:
    adapter = Ours()
    dispi_mode(adapter, 64, 40, 32)
    adapter.fill(LFB, np.random.default_rng(1).bytes(64 * 40 * 4))
    return adapter.vga


@pytest.fixture
def bench(vga: Vga) -> Bench:
    bench = Bench()
    bench.machine.screens = [vga]
    bench.machine.identifiers = {"vga0": vga, "disk0": object()}
    return bench


@pytest.fixture
def client(bench: Bench) -> Client:
    return bench.client()


def human(client: Client, line: str) -> str:
    text: str = client.execute("human-monitor-command", **{"command-line": line})
    return text


# ---- Files


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_holds_the_picture(vga: Vga, tmp_path: Path, format: str) -> None:  # noqa: A002
    path = tmp_path / "picture"
    path.write_bytes(b"\xff" * 100_000)  # overwritten, not only in part
    image = picture(vga)
    save_picture(image, path, format)
    assert (READERS[format](path) == image).all()


def test_the_pictures_are_of_what_is_shown_now(vga: Vga) -> None:
    before = picture(vga)
    vga.vram.view[: 64 * 40 * 4] = bytes(64 * 40 * 4)
    assert before.any()
    assert not picture(vga).any()


# ---- QMP


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_screendump(client: Client, vga: Vga, tmp_path: Path, format: str | None) -> None:  # noqa: A002
    path = tmp_path / "picture"
    more = {} if format is None else {"format": format}
    assert client.execute("screendump", filename=str(path), **more) == {}
    assert (READERS[format or "ppm"](path) == picture(vga)).all()
    assert client.execute("screendump", filename=str(path), device="vga0", **more) == {}
    assert client.execute("screendump", filename=str(path), device="vga0", head=0, **more) == {}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "Parameter 'filename' is missing"),
        ({"filename": "/nonexistent/x"}, "failed to open file '/nonexistent/x': No such file or directory"),
        ({"filename": "/dev"}, "failed to open file '/dev': Is a directory"),
        ({"filename": "x", "device": "foo"}, "DeviceNotFound: Device 'foo' not found"),
        ({"filename": "x", "head": 0}, "'head' must be specified together with 'device'"),
        ({"filename": "x", "device": "vga0", "head": 1}, "Device vga0 (head 1) is not bound to a QemuConsole"),
        ({"filename": "x", "device": "disk0"}, "Device disk0 (head 0) is not bound to a QemuConsole"),
        ({"filename": "x", "format": "gif"}, "Parameter 'format' does not accept value 'gif'"),
        ({"filename": "/dev/full"}, "Unable to write to file: No space left on device"),
        ({"filename": "/dev/full", "format": "png"}, "Unable to write to file: No space left on device"),
    ],
)
def test_errors(
    client: Client, arguments: dict[str, object], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert client.error("screendump", arguments) == error
    assert not os.listdir(tmp_path)


def test_a_machine_without_a_display(bench: Bench, client: Client) -> None:
    bench.machine.screens = []
    assert client.error("screendump", {"filename": "x"}) == "There is no console to take a screendump from"
    assert human(client, "screendump x") == "Error: There is no console to take a screendump from\r\n"


def test_another_display_by_its_name(bench: Bench, client: Client, tmp_path: Path) -> None:
    second = Vga(ManualClock())
    bench.machine.screens.append(second)
    bench.machine.identifiers["vga1"] = second
    path = tmp_path / "picture.ppm"
    client.execute("screendump", filename=str(path), device="vga1")
    assert path.read_bytes() == encode(picture(second), "ppm")


# ---- HMP


@pytest.mark.parametrize(
    ("arguments", "name", "format"),
    [
        ("a.ppm", "a.ppm", "ppm"),
        ("a.png -f png", "a.png", "png"),
        ("a.png -fpng vga0", "a.png", "png"),
        ('"b c" -f "ppm" vga0 0', "b c", "ppm"),
        ('"q\\"\\\\\\n" vga0', 'q"\\\n', "ppm"),
        ('a"b"\tvga0  ', 'a"b"', "ppm"),
    ],
)
def test_human_screendump(
    client: Client,
    vga: Vga,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    name: str,
    format: str,  # noqa: A002
) -> None:
    monkeypatch.chdir(tmp_path)
    assert human(client, f"screendump {arguments}") == ""
    assert os.listdir(tmp_path) == [name]
    assert (READERS[format](tmp_path / name) == picture(vga)).all()


@pytest.mark.parametrize(
    ("arguments", "reply"),
    [
        ("", "screendump: filename expected\r\n" + TRY_HELP),
        ('"open', "screendump: filename expected\r\n" + TRY_HELP),
        ('"a\\q"', "screendump: filename expected\r\n" + TRY_HELP),
        ("a -f", "screendump: value expected for -f\r\n" + TRY_HELP),
        ('a -f "', "screendump: value expected for -f\r\n" + TRY_HELP),
        ("a -x", "screendump: unsupported option -x\r\n" + TRY_HELP),
        ("a vga0 1 2", "screendump: extraneous characters at the end of line\r\n" + TRY_HELP),
        ("a vga0 foo", "invalid char 'f' in expression\r\n" + TRY_HELP),
        ("a vga0 0x100000000", "'screendump' has failed: integer is for 32-bit values\r\n" + TRY_HELP),
        ("a -f foo", "Error: invalid parameter value: foo\r\n"),
        ("-f png", "Error: Device 'png' not found\r\n"),
        ("'x y'", "Error: Device 'y'' not found\r\n"),
        ("a vga0 1", "Error: Device vga0 (head 1) is not bound to a QemuConsole\r\n"),
        ("a vga0 0xfffffff0", "Error: Device vga0 (head -16) is not bound to a QemuConsole\r\n"),
        ("/nonexistent/a", "Error: failed to open file '/nonexistent/a': No such file or directory\r\n"),
        ('""', "Error: failed to open file '': No such file or directory\r\n"),
    ],
)
def test_human_errors(client: Client, arguments: str, reply: str) -> None:
    assert human(client, f"screendump {arguments}") == reply


def test_help(client: Client) -> None:
    assert human(client, "help screendump").startswith("screendump filename [-f format] [device [head]] -- ")
