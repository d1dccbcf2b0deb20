"""What the tests of jobs share: a monitor's bench whose machine has disks and a main loop."""

from __future__ import annotations

import heapq
import itertools
import queue
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvm.block import bitmaps
from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.jobs.block_job import JobOptions
from pyvm.block.jobs.mirror import MirrorJob, MirrorOptions
from pyvm.machine.storage import Storage
from tests.unit.block_rig import SIZE, Disks

QEMU_IMG = shutil.which("qemu-img")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
_PATIENCE = 60.0


class _Timer:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class JobDisks(Disks):
    """A client of a machine with disks, whose main loop runs while the client waits for something."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        wiring = self.storage._events
        wiring.call_soon = lambda function, *arguments: self._calls.put(lambda: function(*arguments))
        wiring.call_later = self._later
        self.log: list[str] = []
        """Events as they came: ``ID:STATE`` for changes of state, otherwise the name and the data."""
        self.data: list[tuple[str, dict[str, Any]]] = []

    def _later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> _Timer:
        timer = _Timer(lambda: function(*arguments))
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def loop(self, seconds: float = 0.0) -> None:
        """Let the main loop run, until it has nothing to do for so long."""
        end = time.monotonic() + seconds
        while True:
            while self._timers and self._timers[0][0] <= time.monotonic():
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    self._calls.put(timer.call)
            try:
                call = self._calls.get(timeout=max(min(0.005, end - time.monotonic()), 0.0001))
            except queue.Empty:
                if time.monotonic() >= end:
                    break
                continue
            with self.storage.lock:
                call()
        self.bench.scheduler.run()
        self._note(self.client.messages())

    def _note(self, messages: list[Any]) -> list[Any]:
        replies = []
        for message in messages:
            if "event" not in message:
                replies.append(message)
                continue
            data = message.get("data", {})
            self.data.append((message["event"], data))
            if message["event"] == "JOB_STATUS_CHANGE":
                self.log.append(f"{data['id']}:{data['status']}")
            else:
                self.log.append(message["event"])
        return replies

    def run(self, command: str, **arguments: Any) -> Any:
        """Execute a command that succeeds; return its result."""
        reply = self.ask(command, **arguments)
        assert "return" in reply, reply
        return reply["return"]

    def fails(self, command: str, **arguments: Any) -> str:
        """Execute a command that fails; return why, after the error's class where that is not GenericError."""
        error = self.ask(command, **arguments)["error"]
        text: str = error["desc"]
        return text if error["class"] == "GenericError" else f"{error['class']}: {text}"

    def ask(self, command: str, **arguments: Any) -> Any:
        """Execute a command; return the reply."""
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        with self.storage.lock:
            messages = self.client.ask({"execute": command, "arguments": wire})
        (reply,) = self._note(messages)
        return reply

    def wait(self, *ends: str) -> list[str]:
        """Let the main loop run until all these lines are in the log; return the log, and begin another."""
        patience = time.monotonic() + _PATIENCE
        while not all(end in self.log for end in ends):
            self.loop()
            assert time.monotonic() < patience, self.log
        log, self.log = self.log, []
        return log

    def event(self, name: str) -> dict[str, Any]:
        """Return the data of the last event of a name."""
        return next(data for event, data in reversed(self.data) if event == name)

    def human_quietly(self, line: str) -> str:
        """Execute a line of the human monitor that leads to events; return what it shows."""
        text: str = self.run("human-monitor-command", command_line=line)
        return text.replace("\r\n", "\n")

    def jobs(self) -> list[dict[str, Any]]:
        """Return what there is to tell of all jobs on nodes."""
        found: list[dict[str, Any]] = self.run("query-block-jobs")
        return found

    def write(self, node: str, offset: int, data: bytes) -> None:
        """Write to what a node shows, as a guest does whose disk it is."""
        with self.storage.lock, self.storage.quiet():
            self.top(node).write(offset, data)

    def top(self, name: str) -> Any:
        """Return the node, or the filter that stands in front of it."""
        node = self.storage.graph.nodes[name]
        for parent, _ in self.storage.graph.parents(node):
            if parent.is_filter and parent.driver != "copy-before-write-target":
                return parent
        return node

    def read(self, node: str, offset: int, length: int) -> bytes:
        """Return what a node shows."""
        with self.storage.lock, self.storage.quiet():
            return bytes(self.storage.graph.nodes[node].read(offset, length))


LIFE = ["created", "running"]
BACKUP = [*LIFE, "paused", "running"]
END = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]


def life(identifier: str, *states: str) -> list[str]:
    """Return the log of a job: states with its ID, names of events as they are."""
    return [state if state.isupper() else f"{identifier}:{state}" for state in states]


def compare(first: str | Path, second: str | Path, *options: str) -> None:
    """Fail unless qemu-img finds that two images show the same."""
    assert QEMU_IMG is not None
    subprocess.run([QEMU_IMG, "compare", *options, str(first), str(second)], check=True, stdout=subprocess.DEVNULL)


def check(path: str | Path) -> None:
    """Fail unless qemu-img finds an image in order."""
    assert QEMU_IMG is not None
    subprocess.run([QEMU_IMG, "check", "-q", "-U", str(path)], check=True, stdout=subprocess.DEVNULL)


# ---- One call of each command

CHAPTERS = ("block-jobs", "job", "dirty-bitmaps", "block-create", "transaction")
"""Chapters whose commands need jobs and bitmaps."""


def prepare(storage: Storage) -> dict[str, dict[str, Any]]:
    """Make jobs in all states in a machine without a main loop; return arguments for one call of each command.

    The machine has the disks of :func:`tests.unit.block_rig.prepare`.
    """
    calls: list[Callable[[], object]] = []
    storage._events.call_soon = lambda function, *arguments: calls.append(lambda: function(*arguments))
    storage._events.call_later = lambda seconds, function, *arguments: _Timer(lambda: function(*arguments))
    names = ("ready", "paused", "pending", "over")
    for name in names:
        for end in ("-s", "-t"):
            storage.add_node({"driver": "null-co", "node-name": name + end, "size": SIZE})
    for name in names:
        options = JobOptions(name, auto_finalize=name != "pending", auto_dismiss=name != "over")
        source, target = (storage.graph.nodes[name + end] for end in ("-s", "-t"))
        job = MirrorJob(storage.jobs, options, source, target, MirrorOptions("none"))
        job.start()
        if name == "paused":
            job.pause()
        elif name != "ready":
            job.complete_by_user()
            while calls:
                calls.pop(0)()
    for name in ("bitmap", "other"):
        bitmaps.attach(storage.graph.nodes["ready-s"], DirtyBitmap(SIZE, 65536, name))
    bitmap = {"node": "ready-s", "name": "bitmap"}
    ready, pair = {"id": "ready"}, {"device": "n", "target": "pending-s", "sync": "full", "job-id": "new"}
    found: dict[str, dict[str, Any]] = {f"job-{verb}": ready for verb in ("pause", "cancel", "complete")}
    found.update({f"block-job-{verb}": {"device": "ready"} for verb in ("pause", "cancel", "complete")})
    found.update(
        {
            "job-resume": {"id": "paused"},
            "block-job-resume": {"device": "paused"},
            "block-job-set-speed": {"device": "ready", "speed": 1},
            "blockdev-mirror": {**pair, "device": "over-s", "target": "over-t"},
            "blockdev-backup": {**pair, "device": "over-s", "target": "over-t"},
            "block-commit": {"job-id": "new", "device": "top"},
            "block-stream": {"job-id": "new", "device": "top"},
            "block-dirty-bitmap-add": {"node": "n", "name": "new"},
            "block-dirty-bitmap-merge": {"node": "ready-s", "target": "bitmap", "bitmaps": ["other"]},
            "transaction": {"actions": [{"type": "block-dirty-bitmap-clear", "data": bitmap}]},
            "blockdev-snapshot-internal-sync": {"device": "d", "name": "new"},
            "blockdev-create": {"job-id": "new", "options": {"driver": "qcow2", "file": "over-t", "size": SIZE}},
            "x-blockdev-amend": {"job-id": "new", "node-name": "o", "options": {"driver": "qcow2"}},
        }
    )
    for prefix in ("job", "block-job"):
        found[f"{prefix}-finalize"] = {"id": "pending"}
        found[f"{prefix}-dismiss"] = {"id": "over"}
    for verb in ("block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable"):
        found[verb] = bitmap
    found["block-dirty-bitmap-disable"] = found["x-debug-block-dirty-bitmap-sha256"] = bitmap
    image = storage.drives["d"].backend.shown_node
    with storage.quiet():
        image.create_snapshot("old")  # type: ignore[attr-defined]
    found["blockdev-snapshot-delete-internal-sync"] = {"device": "d", "name": "old"}
    path = image.filename
    found["drive-mirror"] = {
        "job-id": "new",
        "device": "over-s",
        "target": f"{path}.m",
        "sync": "full",
        "format": "raw",
    }
    found["drive-backup"] = {
        "job-id": "new",
        "device": "over-s",
        "target": f"{path}.b",
        "sync": "full",
        "format": "raw",
    }
    return found
