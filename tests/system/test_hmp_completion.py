"""What Tab makes of the arguments of commands, on a whole machine; and beside QEMU on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.monitor.hmp.completion import complete
from pyvm.monitor.hmp.shell import HumanState, Shell
from tests.system.machine_rig import Machine

OPTIONS = (
    *("-device", "virtio-rng-pci,id=r7", "-device", "virtio-balloon-pci,id=rb7", "-object", "iothread,id=io1"),
    *("-chardev", "ringbuf,id=rb", "-chardev", "null,id=nul", "-blockdev", "null-co,node-name=n"),
    *("-drive", "if=none,id=dd,driver=null-co", "-netdev", "hubport,id=h0,hubid=0"),
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(*OPTIONS) as machine:
        yield machine


@pytest.fixture(scope="module")
def tab(machine: Machine) -> Callable[[str], list[str]]:
    """What the last word of a line may become."""
    shell = Shell(machine._dispatcher.context(machine._session), HumanState())

    def press(text: str) -> list[str]:
        with machine.pc.lock:
            length, names = complete(shell, text)
        prefix = text[len(text) - length :]
        assert all(name.startswith(prefix) for name in names)
        assert names == sorted(names)
        return names

    return press


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("device_del ", ["r7", "rb7"]),
        ("device_del rb", ["rb7"]),
        ("device_del rb7 ", []),
        ("object_del i", ["io1"]),
        ("object_add memory-backend-m", ["memory-backend-memfd"]),
        ("device_add virtio-rng-pci-t", ["virtio-rng-pci-transitional"]),
        ("device_add virtio-rng-pci,", []),
        ("chardev-remove ", ["nul", "rb"]),
        ("chardev-send-break r", ["rb"]),
        ("chardev-add ring", ["ringbuf"]),
        ("ringbuf_read ", ["rb"]),
        ("ringbuf_write n", []),
        ("sendkey ctrl-alt-f1", ["f1", "f10", "f11", "f12"]),
        ("sendkey ctrl-a 1", []),
        ("watchdog_action p", ["pause", "poweroff"]),
        ("trace-event runstate_s", ["runstate_set"]),
        ("trace-event runstate_set o", ["off", "on"]),
        ("info trace-events runstate_s", ["runstate_set"]),
        ("eject -f d", ["dd"]),
        ("eject ", ["dd"]),
        ("set_link h", ["h0"]),
        ("set_link h0 of", ["off"]),
        ("netdev_del ", ["h0"]),
        ("netdev_add us", ["user"]),
        ("migrate_set_capability xb", ["xbzrle"]),
        ("migrate_set_capability xbzrle ", ["off", "on"]),
        ("help watchdog_", ["watchdog_action"]),
        ("info stat", ["stats", "status"]),
        ("nothing ", []),
        ("cpu ", []),
        ("", None),
    ],
)
def test_arguments(tab: Callable[[str], list[str]], line: str, names: list[str] | None) -> None:
    found = tab(line)
    assert len(found) > 100 if names is None else found == names


def test_files(tab: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.txt").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "old").touch()
    assert tab("logfile ") == ["log.txt", "logs/"]
    assert tab("logfile logs/") == ["logs/old"]
    assert tab("logfile .h") == [".hidden"]
    assert tab(f"logfile {tmp_path}/log.") == [f"{tmp_path}/log.txt"]
    assert tab("logfile missing/") == []


def test_before_the_machine_exists() -> None:
    with Machine("-preconfig") as machine:
        shell = Shell(machine._dispatcher.context(machine._session), HumanState())
        assert complete(shell, "device_del ") == (0, [])
        assert "exit_preconfig" in complete(shell, "")[1]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=20)
    | st.lists(st.sampled_from("eject -f sendkey a- info help trace-event * / . q".split())).map(" ".join)
)
def test_any_line_has_an_answer(tab: Callable[[str], list[str]], text: str) -> None:
    tab(text)


class Terminal:
    """An emulator's monitor on a terminal."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self._end, terminal = pty.openpty()
        words = ["-S", "-display", "none", "-nodefaults", "-m", "16", "-monitor", "stdio", *OPTIONS]
        self._process = subprocess.Popen(
            [*command, *words],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        os.close(terminal)
        self._read_to(r"\(qemu\) ")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)

    def _read_to(self, pattern: str, seconds: float = 90) -> str:
        found = ""
        end = time.monotonic() + seconds
        while re.search(pattern, found) is None:
            assert time.monotonic() < end, found
            if select.select([self._end], [], [], 0.1)[0]:
                found += os.read(self._end, 65536).decode()
        return found

    def tab(self, line: str) -> str:
        """Type a line and Tab, and take the line back; return what could be seen, without the moves of the cursor."""
        os.write(self._end, f"{line}\t".encode() + b"\x7f" * 2 * len(line) + b"\x7f" * 40 + b"x-end\r")
        seen = self._read_to(r"unknown command: 'x-end'\s+\(qemu\) ")
        text = re.sub(r"\x1b\[[CD]", "", seen).partition("x\x1b[K")[0]
        return " ".join(text.replace("\x1b[K", "\n").split())


QEMU = shutil.which("qemu-system-x86_64")


@pytest.mark.parity
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_the_terminal_shows_what_qemu_shows(tmp_path: Path) -> None:
    assert QEMU is not None
    (tmp_path / "file.log").touch()
    (tmp_path / "folder").mkdir()
    lines = [
        "device_del ", "device_del rb", "chardev-remove ", "chardev-send-break r", "watchdog_action ", "info sta",
        "sendkey ctrl-alt-f1", "sendkey ctrl-alt_", "ringbuf_read ", "set_link h0 ", "eject ", "help watchdog_",
        "stopc", "object_add memory-backend-me",
        "logfile f", "logfile fo", "logfile file", "migrate_set_capability auto",
        "migrate_set_capability auto-converge ", "netdev_add u", "trace-event runstate_se", "cpu ", "nothing ",
    ]  # fmt: skip
    terminals = [Terminal([QEMU], tmp_path), Terminal([sys.executable, "-m", "pyvm"], tmp_path)]
    try:
        theirs, ours = ([terminal.tab(line) for line in lines] for terminal in terminals)
        assert dict(zip(lines, ours, strict=True)) == dict(zip(lines, theirs, strict=True))
    finally:
        for terminal in terminals:
            terminal.close()
