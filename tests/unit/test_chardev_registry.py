"""The set of a machine's character devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.base import ChardevError
from pyvm.chardev.mux import MuxChardev
from pyvm.chardev.options import MuxOptions, NullOptions, StdioOptions, parse_chardev, split_options
from pyvm.chardev.registry import ChardevInfo, ChardevSet, open_chardev
from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, running_loop


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


@pytest.fixture
def devices(loop: MainLoop) -> Iterator[ChardevSet]:
    made = ChardevSet(loop)
    yield made
    made.close_all()


def add(devices: ChardevSet, text: str) -> None:
    devices.add(parse_chardev(split_options(text)))


def test_every_back_end_can_be_made(devices: ChardevSet, tmp_path: Path) -> None:
    (tmp_path / "p").touch()
    for text in (
        "null,id=null",
        "vc,id=vc",
        "ringbuf,id=ringbuf,size=4k",
        "memory,id=memory",
        f"file,id=file,path={tmp_path}/f",
        f"pipe,id=pipe,path={tmp_path}/p",
        f"socket,id=unix,path={tmp_path}/s,server=on,wait=off",
        "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off",
        "udp,id=udp,host=127.0.0.1,port=9",
        "pty,id=pty",
        "serial,id=serial,path=/dev/null",
        "mux,id=mux,chardev=null",
    ):
        add(devices, text)
    found = {info.label: info.filename.split(":")[0] for info in devices.query()}
    assert found.pop("unix") == found.pop("tcp") == "disconnected"
    assert all(label == kind for label, kind in found.items())


def test_query_in_the_order_of_qemu_with_open_states(devices: ChardevSet) -> None:
    add(devices, "ringbuf,id=b")
    add(devices, "null,id=a,mux=on")
    found = devices.find("b")
    assert isinstance(found, RingbufChardev)
    Recorder().attach(found.port())
    assert devices.query() == [
        ChardevInfo("a", "mux", False),
        ChardevInfo("a-base", "null", False),
        ChardevInfo("b", "ringbuf", True),
    ]
    assert [device.label for device in devices] == ["b", "a-base", "a"]


def test_duplicates_and_unknown_names(devices: ChardevSet) -> None:
    add(devices, "null,id=x")
    add(devices, "null,id=y-base")
    for text in ("null,id=x", "null,id=x,mux=on"):
        with pytest.raises(ChardevError, match=r"^Duplicate ID 'x' for chardev$"):
            add(devices, text)
    with pytest.raises(ChardevError, match=r"^Duplicate ID 'y-base' for chardev$"):
        add(devices, "null,id=y,mux=on")
    with pytest.raises(ChardevError, match=r"^mux: base chardev nobody not found$"):
        add(devices, "mux,id=m,chardev=nobody")
    add(devices, "mux,id=m,chardev=x")
    with pytest.raises(ChardevError, match="is a multiplexer itself"):
        add(devices, "mux,id=n,chardev=m")
    with pytest.raises(ChardevError, match=r"^mux: Device 'x' is in use$"):
        add(devices, "mux,id=n,chardev=x")
    assert devices.find("nobody") is None


def test_remove(devices: ChardevSet) -> None:
    add(devices, "null,id=x")
    add(devices, "null,id=y,mux=on")
    for name in ("x", "y"):
        found = devices.find(name)
        assert found is not None
        port = found.port()
        Recorder().attach(port)
        with pytest.raises(ChardevError, match=rf"^Chardev '{name}' is busy$"):
            devices.remove(name)
        port.detach()
        devices.remove(name)
        with pytest.raises(ChardevError, match=rf"^Chardev '{name}' not found$"):
            devices.remove(name)
    assert devices.query() == []


def test_the_base_of_a_mux_is_busy(devices: ChardevSet) -> None:
    add(devices, "null,id=y,mux=on")
    with pytest.raises(ChardevError, match=r"^Chardev 'y-base' is busy$"):
        devices.remove("y-base")


def test_multiplexers_know_the_escape_key_and_how_to_quit(loop: MainLoop) -> None:
    quits: list[int] = []
    devices = ChardevSet(loop, escape=2, on_quit=lambda: quits.append(1))
    mux = devices.add(NullOptions(id="m", mux=True))
    assert isinstance(mux, MuxChardev)
    Recorder().attach(mux.port())
    mux.receive(b"\x01x")
    assert not quits
    mux.receive(b"\x02x")
    assert quits == [1]
    devices.close_all()


def test_no_stdio_for_a_daemon(loop: MainLoop) -> None:
    with pytest.raises(ChardevError, match=r"^cannot use stdio with -daemonize$"):
        ChardevSet(loop, daemonized=True).add(StdioOptions(id="s"))


def test_a_mux_needs_a_set(loop: MainLoop) -> None:
    with pytest.raises(ChardevError):
        open_chardev(MuxOptions(id="m", chardev="x"), loop)


def test_logfile(devices: ChardevSet, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old ")
    for options, expected in ((",logappend=on", b"old text"), ("", b"text")):
        add(devices, f"ringbuf,id=r,size=2,logfile={log}{options}")
        found = devices.find("r")
        assert found is not None
        assert found.write(b"text") == 4
        devices.remove("r")
        assert log.read_bytes() == expected
    with pytest.raises(ChardevError, match=r"^Could not create '/nonexist/l': No such file or directory$"):
        add(devices, "null,id=n,logfile=/nonexist/l")
    assert devices.find("n") is None


def test_a_full_log_is_given_up(devices: ChardevSet, capsys: pytest.CaptureFixture[str]) -> None:
    add(devices, "null,id=n,logfile=/dev/full")
    found = devices.find("n")
    assert found is not None
    for _ in range(2):
        assert found.write(b"x") == 1
    assert capsys.readouterr().err == "pyvm: chardev n: log file closed: No space left on device\n"
