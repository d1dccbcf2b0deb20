"""Jobs beside commands that let nodes stand still: all replies and events, in their order, are as with QEMU."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

QEMU = shutil.which("qemu-system-x86_64")
QEMU_IMG = shutil.which("qemu-img")
PYVM = str(Path(sys.executable).parent / "pyvm")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(QEMU is None or QEMU_IMG is None, reason="QEMU is not installed"),
]

_NODES = {"base": "", "mid": ",backing=base", "top": ",backing=mid", "to": "", "other": "", "spare": ""}
_IMAGES = {"base": None, "mid": "base", "top": "mid", "to": None, "other": None, "spare": None}
ARGUMENTS = [
    *"-nodefaults -display none -S -M pc".split(),
    *(
        word
        for name, more in _NODES.items()
        for options in (
            f"driver=file,node-name=f-{name},filename={name}.qcow2",
            f"driver=qcow2,node-name={name},file=f-{name}{more}",
        )
        for word in ("-blockdev", options)
    ),
    *"-device virtio-blk-pci,drive=top,id=v0 -device virtio-blk-pci,drive=other,id=v1".split(),
]
_SETTLE, _SHORT = 0.4, 0.05
"""Seconds to wait for events: of jobs that begin or end, and of others."""
Step = tuple[str, dict[str, Any]]


class Emulator:
    """One of the two programs, with a monitor."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir()
        for name, below in _IMAGES.items():
            backing = ["-F", "qcow2", "-b", f"{below}.qcow2"] if below else []
            size = [] if below else ["8M"]
            command = [QEMU_IMG or "", "create", "-q", "-f", "qcow2", *backing, f"{name}.qcow2", *size]
            subprocess.run(command, check=True, cwd=folder)
        for number, name in enumerate(("base", "mid", "top"), 1):
            write = f"write -P {number} {number}M 1M"
            subprocess.run(["qemu-io", "-c", write, f"{name}.qcow2"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        command = [program, *ARGUMENTS, "-qmp", "unix:qmp,server=on,wait=off"]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._socket.connect(str(folder / "qmp"))
                break
            except OSError:
                assert self.process.poll() is None, f"{program} has ended"
                assert time.monotonic() < deadline, f"{program} does not listen"
                time.sleep(0.05)
        self._data = b""
        self._line(60)
        self.ask("qmp_capabilities", {}, 0)

    def _line(self, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while b"\n" not in self._data:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            assert data, "the monitor was closed"
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    def ask(self, name: str, arguments: dict[str, Any], settle: float = _SETTLE) -> list[str]:
        """Execute a command; return the events before the reply, the reply, and what came a little later."""
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        seen: list[str] = []
        while not seen or not seen[-1].startswith("="):
            seen.append(shown(self._line(60)))
        while (message := self._line(settle) if settle else None) is not None:
            seen.append(shown(message))
        return seen

    def end(self) -> None:
        """End the program."""
        self.process.terminate()
        self.process.wait(30)
        self._socket.close()


def shown(message: Any) -> str:
    """Return a message in a few words; a reply begins with ``=``."""
    if "event" not in message:
        text = message["error"]["desc"] if "error" in message else str(message["return"])
        return "= " + re.sub(r"#block\d+", "#block", text)
    data = message.get("data", {})
    if message["event"] == "JOB_STATUS_CHANGE":
        return f"{data['id']}:{data['status']}"
    return str(message["event"])


def start(command: str, **arguments: Any) -> Step:
    return command, {"job-id": "j", **{name.replace("_", "-"): value for name, value in arguments.items()}}


def reopen(name: str) -> Step:
    more = {"backing": {"mid": "base", "top": "mid"}[name]} if name in ("mid", "top") else {}
    return "blockdev-reopen", {"options": [{"driver": "qcow2", "node-name": name, "file": f"f-{name}", **more}]}


def human(line: str) -> Step:
    return "human-monitor-command", {"command-line": line}


STEPS: list[Step] = [
    ("stop", {}),
    ("system_reset", {}),
    ("query-status", {}),
    ("transaction", {"actions": []}),
    ("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "other", "name": "map"}}]}),
    ("transaction", {"actions": [{"type": "abort", "data": {}}]}),
    ("block-dirty-bitmap-add", {"node": "top", "name": "map"}),
    reopen("spare"),
    reopen("top"),
    reopen("mid"),
    ("blockdev-reopen", {"options": [{"driver": "file", "node-name": "f-base", "filename": "base.qcow2"}]}),
    ("block_resize", {"node-name": "spare", "size": 8 << 20}),
    ("block_resize", {"node-name": "top", "size": 8 << 20}),
    ("blockdev-snapshot", {"node": "spare", "overlay": "top"}),
    ("blockdev-snapshot-internal-sync", {"device": "other", "name": "one"}),
    human("qemu-io spare flush"),
    human('qemu-io top "read 0 64k"'),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "top"}),
    ("block-export-del", {"id": "e"}),
    ("nbd-server-stop", {}),
    ("job-pause", {"id": "j"}),
    ("stop", {}),
    ("transaction", {"actions": []}),
    ("job-resume", {"id": "j"}),
    ("blockdev-backup", {"device": "other", "target": "spare", "sync": "none", "job-id": "k"}),
    ("transaction", {"actions": []}),
    ("job-cancel", {"id": "k"}),
    ("job-cancel", {"id": "j"}),
]
SLOW = 65536
_DRIVE = {"path": "/machine/peripheral/v1/virtio-backend", "property": "drive"}
JOBS: list[list[Step]] = [
    [
        *(("qom-set", {**_DRIVE, "value": name}) for name in ("spare", "none", "top", "", "other")),
        ("qom-get", _DRIVE),
    ],
    [start("blockdev-backup", device="top", target="to", sync="none"), *STEPS],
    [start("blockdev-mirror", device="top", target="to", sync="top"), *STEPS],
    [start("block-commit", device="top", base_node="mid"), *STEPS],
    [
        start("blockdev-backup", device="top", target="to", sync="none"),
        ("block-stream", {"device": "mid", "job-id": "k", "speed": SLOW}),
        ("transaction", {"actions": []}),
        ("block-job-set-speed", {"device": "k", "speed": 0}),
        ("job-cancel", {"id": "j"}),
    ],
    [
        start("block-commit", device="top", top_node="mid", base_node="base", speed=SLOW),
        ("job-pause", {"id": "j"}),
        ("job-cancel", {"id": "j"}),
        start("blockdev-backup", device="other", target="spare", sync="bitmap", bitmap_mode="never", bitmap="none"),
        start("blockdev-backup", device="other", target="spare", sync="full", speed=SLOW),
        ("quit", {}),
    ],
]


def test_jobs_pause_as_with_qemu(tmp_path: Path) -> None:
    """One machine after the other, as two would disturb each other's jobs."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for number, program in enumerate((QEMU or "", PYVM)):
        emulator = Emulator(program, tmp_path / str(number))
        try:
            log = found.setdefault(program, [])
            for steps in JOBS:
                for position, (name, arguments) in enumerate(steps):
                    waits = position in (0, len(steps) - 2, len(steps) - 1)
                    settle = 0 if name == "quit" else _SETTLE if waits else _SHORT
                    log.append((f"{name} {arguments}", emulator.ask(name, arguments, settle)))
        finally:
            emulator.end()
    for expected, got in zip(*found.values(), strict=True):
        assert got == expected
