"""Commands about run state, input, dumps, character devices, traces and descriptors, asked of pyvm and of QEMU."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

QEMU = shutil.which("qemu-system-x86_64")
PYVM = [sys.executable, "-m", "pyvm"]
OPTIONS = "-nodefaults -display none -M pc -m 16M -S -chardev null,id=n0 -serial chardev:n0".split()
TIMEOUT = 60

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]


class Emulator:
    """A process and a client of it."""

    def __init__(self, command: list[str], folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        path = folder / "qmp"
        self.process = subprocess.Popen(
            [*command, *OPTIONS, "-qmp", f"unix:{path},server=on,wait=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while self.socket.connect_ex(str(path)):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        self.ask({"execute": "qmp_capabilities"})

    def ask(self, request: dict[str, Any], fds: int = 0) -> list[Any]:
        """Send a request, with descriptors; return events without their time, and the reply."""
        text = json.dumps(request).replace("$D", str(self.folder)).encode() + b"\n"
        passed = [os.open(os.devnull, os.O_RDWR) for _ in range(fds)]
        socket.send_fds(self.socket, [text], passed)
        for fd in passed:
            os.close(fd)
        messages: list[Any] = []
        while not messages or "event" in messages[-1]:
            message = json.loads(self.file.readline().replace(str(self.folder).encode(), b"$D"))
            message.pop("timestamp", None)
            messages.append(message)
        return messages

    def execute(self, name: str, /, fds: int = 0, **arguments: Any) -> list[Any]:
        """Execute a command by its Python name."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.ask({"execute": name, "arguments": given}, fds)

    def close(self) -> None:
        """End the process."""
        self.file.close()
        self.socket.close()
        self.process.terminate()
        self.process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Emulator, Emulator]]:
    folder = tmp_path_factory.mktemp("emulators")
    emulators = Emulator(PYVM, folder / "pyvm"), Emulator([QEMU or ""], folder / "qemu")
    yield emulators
    for emulator in emulators:
        emulator.close()


def backend(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}


def unix(path: str, **more: Any) -> dict[str, Any]:
    return backend("socket", addr={"type": "unix", "data": {"path": path}}, **more)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("set-action", {"reboot": "x"}),
    ("watchdog-set-action", {"action": "none"}),
    ("query-mice", {}),
    ("send-key", {"keys": [{"type": "qcode", "data": "a"}, {"type": "number", "data": 83}], "hold_time": 5}),
    ("input-send-event", {"events": []}),
    ("input-send-event", {"events": [], "device": "zz"}),
    ("set_password", {"protocol": "vnc", "password": "x"}),
    ("set_password", {"protocol": "vnc", "password": "x", "connected": "fail"}),
    ("expire_password", {"protocol": "spice", "time": "now"}),
    ("query-replay", {}),
    ("replay-seek", {"icount": 1}),
    ("query-rocker", {"name": "x"}),
    ("query-tpm", {}),
    ("query-dump", {}),
    ("query-dump-guest-memory-capability", {}),
    ("dump-guest-memory", {"paging": False, "protocol": "zz"}),
    ("dump-guest-memory", {"paging": False, "protocol": "file:$D/no/x"}),
    ("dump-guest-memory", {"paging": False, "protocol": "file:$D/d", "begin": 0}),
    ("dump-guest-memory", {"paging": False, "protocol": "file:$D/d", "begin": 4096, "length": 8192}),
    ("dump-guest-memory", {"paging": False, "protocol": "file:$D/e", "begin": 1 << 40, "length": 1}),
    ("dump-guest-memory", {"paging": True, "protocol": "file:$D/e", "format": "kdump-zlib"}),
    ("dump-guest-memory", {"paging": False, "protocol": "file:$D/e", "format": "kdump-lzo"}),
    ("memsave", {"val": 0, "size": 16, "filename": "$D/m"}),
    ("memsave", {"val": 1 << 40, "size": 16, "filename": "$D/m"}),
    ("memsave", {"val": 0, "size": 16, "filename": "$D/m", "cpu_index": 7}),
    ("pmemsave", {"val": 0, "size": 16, "filename": "$D/no/m"}),
    ("chardev-add", {"id": "n0", "backend": backend("null")}),
    ("chardev-add", {"id": "ring", "backend": backend("ringbuf", size=64)}),
    ("chardev-add", {"id": "bad", "backend": backend("ringbuf", size=65)}),
    ("chardev-add", {"id": "bad", "backend": backend("file", out="$D/no/x")}),
    ("chardev-add", {"id": "bad", "backend": backend("mux", chardev="zz")}),
    ("chardev-add", {"id": "bad", "backend": unix("$D/none", server=False)}),
    ("chardev-add", {"id": "bad", "backend": unix("$D/none", server=True, reconnect=1)}),
    ("chardev-add", {"id": "sock", "backend": unix("$D/sock", server=True, wait=False)}),
    ("chardev-add", {"id": "file", "backend": backend("file", out="$D/out")}),
    ("chardev-change", {"id": "n0", "backend": backend("file", out="$D/serial")}),
    ("chardev-change", {"id": "zz", "backend": backend("null")}),
    ("chardev-change", {"id": "compat_monitor0", "backend": backend("null")}),
    ("chardev-remove", {"id": "n0"}),
    ("chardev-remove", {"id": "zz"}),
    ("chardev-send-break", {"id": "ring"}),
    ("ringbuf-write", {"device": "ring", "data": "YWJ=YWJj", "format": "base64"}),
    ("ringbuf-write", {"device": "ring", "data": "\u00e9/wE", "format": "utf8"}),
    ("ringbuf-read", {"device": "ring", "size": 6}),
    ("ringbuf-read", {"device": "ring", "size": 60}),
    ("ringbuf-read", {"device": "file", "size": 60}),
    ("query-chardev", {}),
    ("query-yank", {}),
    ("yank", {"instances": [{"type": "chardev", "id": "zz"}]}),
    ("yank", {"instances": [{"type": "chardev", "id": "sock"}]}),
    ("trace-event-get-state", {"name": "qmp_job_*"}),
    ("trace-event-get-state", {"name": "zz"}),
    ("trace-event-set-state", {"name": "runstate_set", "enable": True, "vcpu": 9}),
    ("getfd", {"fdname": "a"}),
    ("closefd", {"fdname": "a"}),
    ("add-fd", {}),
    ("remove-fd", {"fdset_id": 3}),
    ("query-fdsets", {}),
    ("rtc-reset-reinjection", {}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)])
def test_replies(both: tuple[Emulator, Emulator], name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = (emulator.execute(name, **arguments) for emulator in both)
    assert ours == theirs


@pytest.mark.parametrize(
    "line",
    [
        "sendkey zzz",
        "mouse_set 9",
        "info mice",
        "boot_set cz",
        "boot_set cc",
        "boot_set d",
        "watchdog_action zz",
        "trace-event zz on",
        "info trace-events runstate*",
        "chardev-add foo",
        "chardev-remove zz",
        "info replay",
        "replay_seek 1",
        "logfile %d%d",
        "getfd a",
    ],
)
def test_lines_for_people(both: tuple[Emulator, Emulator], line: str) -> None:
    ours, theirs = (emulator.execute("human-monitor-command", command_line=line) for emulator in both)
    assert ours == theirs


def test_descriptors(both: tuple[Emulator, Emulator]) -> None:
    def conversation(emulator: Emulator) -> list[Any]:
        replies = [
            emulator.execute("getfd", fds=1, fdname="1a"),
            emulator.execute("getfd", fds=2, fdname="a"),
            emulator.execute("closefd", fdname="a"),
            emulator.execute("add-fd", fds=1, fdset_id=4, opaque="o"),
            emulator.execute("add-fd", fds=1),
            emulator.execute("remove-fd", fdset_id=4, fd=9999),
            emulator.execute("query-fdsets"),
        ]
        numbers = json.dumps(replies)
        for entry in replies[-1][0]["return"]:
            for member in entry["fds"]:
                numbers = numbers.replace(f'"fd": {member["fd"]}', '"fd": 0')
        result: list[Any] = json.loads(numbers)
        return result

    ours, theirs = map(conversation, both)
    assert ours == theirs


def test_files_of_dumps_have_the_same_form(both: tuple[Emulator, Emulator]) -> None:
    shapes = []
    for emulator in both:
        emulator.execute("dump-guest-memory", paging=False, protocol="file:$D/z", format="kdump-zlib")
        emulator.execute("dump-guest-memory", paging=False, protocol="file:$D/r", begin=4096, length=8192)
        flat = (emulator.folder / "z").read_bytes()
        range_ = (emulator.folder / "r").read_bytes()
        shapes.append((flat[:32], flat[4112 : 4112 + 12], flat[-16:], range_[:4], range_[-11:]))
        notes = range_.index(b"CORE\0")
        shapes[-1] += (struct.unpack_from("<III", range_, notes - 12), range_.index(b"QEMU\0") - notes)
    assert shapes[0] == shapes[1]


def test_running_and_ending(tmp_path: Path) -> None:
    conversations = []
    for command, name in ((PYVM, "pyvm"), ([QEMU or ""], "qemu")):
        emulator = Emulator(command, tmp_path / name)
        steps = [
            "stop",
            "query-status",
            "system_wakeup",
            "system_reset",
            "cont",
            "cont",
            "stop",
            "query-status",
            "quit",
        ]
        conversation = [emulator.execute(step) for step in steps if step != "system_wakeup"]
        conversation.append(emulator.process.wait(TIMEOUT))
        emulator.close()
        conversations.append(conversation)
    assert conversations[0] == conversations[1]
