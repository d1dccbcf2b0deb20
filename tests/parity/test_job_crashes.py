"""A machine that is killed while a block job runs and the disk is written to.

Every image stays in order, and the disk has what was flushed, in whichever image the job has it by then.  A copy whose
job has ended is whole.  PYVM_JOB_CRASHES says how many machines are killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.create import create_image
from pyvm.block.open import open_image

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed"),
]

CRASHES = int(os.environ.get("PYVM_JOB_CRASHES", "10"))
SIZE = 8 << 20
SLOT = 12 << 10
"""What is written at a time: it neither is a cluster nor ends with one."""
SLOTS = SIZE // SLOT
SPEED = 24 << 20
"""Bytes a second, so that a job goes on for as long as the writes do."""
LONGEST = 0.7
"""Seconds until the kill, at most."""
BITMAP = "b"


class Crashed(Exception):  # noqa: N818 - what happened
    """The machine is gone."""


class Machine:
    """A machine without a guest: a client of its monitor writes to the disk."""

    def __init__(self, folder: Path, image: Path) -> None:
        path = folder / "m.sock"
        command = [sys.executable, "-m", "pyvm", "-machine", "none", "-accel", "qtest", "-nodefaults"]
        command += ["-display", "none", "-qmp", f"unix:{path},server=on,wait=off"]
        command += ["-drive", f"if=none,id=disk,format=qcow2,file={image}"]
        self.complaints = folder / "output"
        with self.complaints.open("w") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        self._file = self._socket.makefile("r")
        self._file.readline()
        self.run("qmp_capabilities")

    def run(self, name: str, **arguments: Any) -> Any:
        """Execute a command; raises Crashed."""
        try:
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
            while True:
                message = self._receive()
                if "event" in message:
                    self.events.append(message)
                    continue
                assert "return" in message, (name, arguments, message)
                return message["return"]
        except OSError:
            raise Crashed from None

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line.endswith("\n"):
            raise Crashed
        message: dict[str, Any] = json.loads(line)
        return message

    def io(self, line: str) -> None:
        """Run a command of qemu-io on the disk; raises Crashed."""
        self.run("human-monitor-command", **{"command-line": f'qemu-io disk "{line}"'})

    def seen(self, name: str) -> bool:
        """Whether an event has come."""
        return any(event["event"] == name for event in self.events)

    def kill(self) -> None:
        """Let it end without a chance to do anything."""
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Give everything back."""
        self.kill()
        self.process.wait()
        self._file.close()
        self._socket.close()


class Disk:
    """What each slot of the disk may hold: the last value that was flushed, and all that were written since."""

    def __init__(self) -> None:
        self.latest = [0] * SLOTS
        self.possible: list[set[int]] = [{0} for _ in range(SLOTS)]

    def write(self, slot: int, value: int) -> None:
        """A value is about to be written."""
        self.latest[slot] = value
        self.possible[slot].add(value)

    def flushed(self) -> None:
        """All that was written is safe."""
        self.possible = [{value} for value in self.latest]

    def verify(self, path: Path) -> None:
        """Check that an image, with what it stands on, shows this disk."""
        node = open_image(str(path), read_only=True)
        try:
            data = node.read(0, SIZE)
        finally:
            node.release()
        for slot, possible in enumerate(self.possible):
            content = data[slot * SLOT : (slot + 1) * SLOT]
            # A write that was under way may be there in part.
            assert set(content) <= possible, (path.name, slot, set(content), possible)


class Scene:
    """The images of one crash: `base`, `middle` and `top` on each other, and what a job does with them."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.disk = Disk()
        below = None
        for name in ("base", "middle", "top"):
            create_image(str(self.path(name)), "qcow2", SIZE, {}, below, "qcow2" if below else None, announce=None)
            below = str(self.path(name))
            self._fill(self.path(name), chance.randrange(1, 256))
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64k", self.path("top"), BITMAP], check=True)
        create_image(str(self.path("target")), "qcow2", SIZE, {})
        self.copied: Disk | None = None
        """What a copy of the disk has to show once its job has ended."""

    def path(self, name: str) -> Path:
        """Return the file of an image."""
        return self.folder / f"{name}.qcow2"

    def _fill(self, path: Path, value: int) -> None:
        node = open_image(str(path))
        for slot in self.chance.sample(range(SLOTS), SLOTS // 4):
            node.write(slot * SLOT, bytes([value]) * SLOT)
            self.disk.latest[slot] = value
        node.inactivate()
        node.release()
        self.disk.flushed()

    def load(self, machine: Machine, until: float, stop: Callable[[], bool]) -> None:
        """Write to the disk; raises Crashed."""
        value = 0
        while time.monotonic() < until and not stop():
            for _ in range(self.chance.randrange(1, 12)):
                slot, value = self.chance.randrange(SLOTS), value % 255 + 1
                self.disk.write(slot, value)
                machine.io(f"write -q -P {value} {slot * SLOT} {SLOT}")
            machine.io("flush")
            self.disk.flushed()

    def check(self) -> None:
        """No image has errors; one that was never begun has none either."""
        for name in ("base", "middle", "top", "target"):
            done = subprocess.run(["qemu-img", "check", self.path(name)], capture_output=True, text=True, check=False)
            assert done.returncode in (0, 3), (name, done.stdout, done.stderr)

    def check_bitmap(self) -> None:
        """The bitmap says of itself that it is out of date: its image was in use."""
        done = subprocess.run(
            ["qemu-img", "info", "--output=json", self.path("top")], capture_output=True, text=True, check=True
        )
        (bitmap,) = json.loads(done.stdout)["format-specific"]["data"]["bitmaps"]
        assert bitmap["name"] == BITMAP
        assert "in-use" in bitmap["flags"]


def mirror(scene: Scene, machine: Machine, until: float) -> list[str]:
    """Copy the disk, and let the copy take its place; return the images that show the disk."""
    blocking = scene.chance.choice(["background", "write-blocking"])
    machine.run(
        "drive-mirror", **{"job-id": "j", "device": "disk", "target": str(scene.path("target")), "mode": "existing",
                           "format": "qcow2", "sync": "full", "speed": SPEED, "copy-mode": blocking},
    )  # fmt: skip
    scene.load(machine, until, lambda: machine.seen("BLOCK_JOB_READY"))
    return ["target"] if _pivoted(machine, scene, until) else ["top"]


def commit_active(scene: Scene, machine: Machine, until: float) -> list[str]:
    """Put the disk into what it stands on, which takes its place."""
    machine.run("block-commit", **{"job-id": "j", "device": "disk", "base": str(scene.path("base")), "speed": SPEED})
    scene.load(machine, until, lambda: machine.seen("BLOCK_JOB_READY"))
    return ["base"] if _pivoted(machine, scene, until) else ["top"]


def _pivoted(machine: Machine, scene: Scene, until: float) -> bool:
    """Let a job that is ready end; return whether another image is the disk now."""
    if not machine.seen("BLOCK_JOB_READY"):
        return False
    machine.run("job-complete", id="j")
    while time.monotonic() < until and not machine.seen("BLOCK_JOB_COMPLETED"):
        machine.run("query-jobs")
    return machine.seen("BLOCK_JOB_COMPLETED")


def commit_below(scene: Scene, machine: Machine, until: float) -> list[str]:
    """Put the image in the middle into the lowest one."""
    machine.run(
        "block-commit", **{"job-id": "j", "device": "disk", "top": str(scene.path("middle")),
                           "base": str(scene.path("base")), "speed": SPEED},
    )  # fmt: skip
    scene.load(machine, until, lambda: False)
    return ["top"]


def stream(scene: Scene, machine: Machine, until: float) -> list[str]:
    """Put everything into the disk's own image."""
    machine.run("block-stream", **{"job-id": "j", "device": "disk", "speed": SPEED})
    scene.load(machine, until, lambda: False)
    return ["top"]


def backup(scene: Scene, machine: Machine, until: float) -> list[str]:
    """Copy the disk as it is at this moment."""
    before = Disk()
    before.latest = list(scene.disk.latest)
    before.flushed()
    machine.run(
        "drive-backup", **{"job-id": "j", "device": "disk", "target": str(scene.path("target")), "mode": "existing",
                           "format": "qcow2", "sync": "full", "speed": SPEED},
    )  # fmt: skip
    scene.load(machine, until, lambda: machine.seen("BLOCK_JOB_COMPLETED"))
    if machine.seen("BLOCK_JOB_COMPLETED"):
        scene.copied = before
    return ["top"]


JOBS = (mirror, commit_active, commit_below, stream, backup)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", range(CRASHES))
def test_killed_while_a_job_runs(tmp_path: Path, number: int) -> None:
    chance = random.Random(number)
    scene = Scene(tmp_path, chance)
    machine = Machine(tmp_path, scene.path("top"))
    shown = ["top"]
    try:
        until = time.monotonic() + chance.uniform(0.01, LONGEST)
        try:
            shown = JOBS[number % len(JOBS)](scene, machine, until)
            # Something may be under way when it comes to its end.
            machine.kill()
            scene.load(machine, until + 60, lambda: False)
        except Crashed:
            pass
    finally:
        machine.close()
    assert machine.process.returncode == -signal.SIGKILL
    assert not machine.complaints.read_text()
    assert not any("error" in event.get("data", {}) for event in machine.events), machine.events
    scene.check()
    for name in shown:
        scene.disk.verify(scene.path(name))
    if scene.copied is not None:
        scene.copied.verify(scene.path("target"))
    if "top" in shown:
        scene.check_bitmap()
