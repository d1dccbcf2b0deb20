"""Block jobs: backup, mirror and commit of a disk half of which holds data, and what a client waits for meanwhile.

The machine does not run, and no image waits for the host's disk (page cache, cache.no-flush), so that the figures are
those of the job: its look at what is allocated, its requests, the image formats.  A second client asks `query-block`
all the time.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Lines, connect, stop
from benchmarks.monitor_chapter import percentile
from images.disk_qcow2 import write_qcow2

DISK = 1 << 30
PIECE = 4 << 20
"""Every other piece holds data."""
FORMATS = ("raw", "qcow2")
JOBS = {
    "backup": "BLOCK_JOB_COMPLETED",
    "mirror": "BLOCK_JOB_READY",
    "commit": "BLOCK_JOB_COMPLETED",
    "active_commit": "BLOCK_JOB_READY",
}
"""Jobs, and the events with which all is copied."""
TARGET = 0.8
LATENCY_MS = 5.0
PAUSE_SECONDS = 0.002
SETTLE_SECONDS = 4.0
"""How long the memory of the last copy has been free when the next job begins.  A virtual machine gives free memory
back to its host after a while, and waits for each page when it needs it again: without this, an emulator that starts
sooner would find more of it."""


def _metrics(kind: str) -> Iterator[Metric]:
    for job in JOBS:
        title = f"{kind}: {job.replace('_', ' ')} of 1 GiB"
        yield Metric(f"job_{job}.{kind}", title, "MiB/s", 1 / (1 << 20), more_is_better=True, relative=TARGET)
    title = f"{kind}: query-block while jobs run, 99th percentile"
    yield Metric(f"job_query_p99.{kind}", title, "ms", scale=1e3, absolute=LATENCY_MS)


def _make_images(directory: Path) -> None:
    generator = random.Random(1)
    raw = directory / "source.raw"
    with raw.open("wb") as file:
        for start in range(0, DISK, 2 * PIECE):
            file.seek(start)
            file.write(generator.randbytes(PIECE))
        file.truncate(DISK)
    write_qcow2(raw, directory / "source.qcow2")


def _empty(emulator: Emulator, path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    command = [*emulator.image_tool, "create", "-q", "-f", kind, str(path), str(DISK)]
    subprocess.run(command, check=True)
    return path


class Monitor(Lines):
    """A QMP connection on which one waits for events."""

    def greet(self) -> Monitor:
        """Read the greeting, and be ready for commands."""
        if "QMP" not in self.receive():
            raise BenchmarkError("the monitor's first message is no greeting")
        self.run("qmp_capabilities")
        return self

    def run(self, command: str, **arguments: Any) -> Any:
        """Send a command and return what it returns; events that come first are skipped."""
        self.send(command, **arguments)
        while True:
            answer = self.receive()
            if "error" in answer:
                raise BenchmarkError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def wait(self, event: str) -> None:
        """Return when an event has come."""
        while (message := self.receive()).get("event") != event:
            if "error" in message or "error" in message.get("data", {}):
                raise BenchmarkError(f"the job has failed: {message}")


class _Watch:
    """Asks `query-block` until it is told to stop."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.taken: list[float] = []

    def _ask(self) -> None:
        while not self._over.is_set():
            start = time.perf_counter()
            self._monitor.run("query-block")
            self.taken.append(time.perf_counter() - start)
            time.sleep(PAUSE_SECONDS)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> list[float]:
        """Stop, and return what all answers took, in seconds."""
        self._over.set()
        self._thread.join()
        return self.taken


def _warm_up(path: Path) -> None:
    """Let an image be in the host's page cache: how fast its disk is says nothing of a job."""
    with path.open("rb") as file:
        while file.read(PIECE):
            pass


def _node(name: str, kind: str, path: Path, **options: Any) -> dict[str, Any]:
    cache = {"no-flush": True, "direct": False}
    file = {"driver": "file", "filename": str(path), "cache": cache}
    return {"node-name": name, "driver": kind, "cache": cache, "file": file, **options}


def _add_nodes(monitor: Monitor, emulator: Emulator, directory: Path, kind: str, job: str) -> dict[str, Any]:
    """Open what a job needs, with the disk on a device; return the command's arguments."""
    target = _node("target", kind, _empty(emulator, directory / f"target.{kind}", kind))
    monitor.run("blockdev-add", **target)
    source = _node("source", kind, directory / f"source.{kind}")
    if "commit" in job:
        # What is written down has its data in a qcow2 image, whatever it stands on.
        source = _node("source", "qcow2", directory / "source.qcow2", backing="target")
    monitor.run("blockdev-add", **source)
    if job == "commit":
        top = _node("top", "qcow2", _empty(emulator, directory / "top.qcow2", "qcow2"), backing="source")
        monitor.run("blockdev-add", **top)
    monitor.run("device_add", driver="virtio-blk-pci", id="disk", drive="top" if job == "commit" else "source")
    if job == "commit":
        return {"device": "top", "top_node": "source", "base_node": "target"}
    if job == "active_commit":
        return {"device": "source", "base_node": "target"}
    return {"device": "source", "target": "target", "sync": "full"}


COMMANDS = {"backup": "blockdev-backup", "mirror": "blockdev-mirror"}


@contextmanager
def _machine(emulator: Emulator, directory: Path) -> Iterator[tuple[Monitor, Monitor]]:
    """Start a machine that does not run; yield two connections to its monitor."""
    paths = [directory / name for name in ("qmp", "watch")]
    words = ["-S", "-nodefaults", "-display", "none"]
    for path in paths:
        path.unlink(missing_ok=True)
        words += ["-qmp", f"unix:{path},server=on,wait=off"]
    process = subprocess.Popen([*emulator.command, *words], stdin=subprocess.DEVNULL)
    clients: list[Monitor] = []
    try:
        for path in paths:
            clients.append(Monitor(connect(path, process)))
            clients[-1].greet()
        yield clients[0], clients[1]
    finally:
        for client in clients:
            client.close()
        stop(process)


def run_job(emulator: Emulator, directory: Path, kind: str, job: str) -> tuple[float, list[float]]:
    """Return how many bytes of the disk a job is done with in a second, and what answers took meanwhile."""
    _warm_up(directory / ("source.qcow2" if "commit" in job else f"source.{kind}"))
    with _machine(emulator, directory) as (monitor, other):
        arguments = _add_nodes(monitor, emulator, directory, kind, job)
        watch = _Watch(other)
        watch.start()
        try:
            start = time.perf_counter()
            monitor.send(COMMANDS.get(job, "block-commit"), job_id="job", **arguments)
            monitor.wait(JOBS[job])
            taken = time.perf_counter() - start
        finally:
            answers = watch.end()
    return DISK / taken, answers


def _settle(directory: Path) -> None:
    """Delete the last copy, and let the host take note."""
    for path in directory.glob("target.*"):
        path.unlink()
    time.sleep(SETTLE_SECONDS)


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "jobs"
    directory.mkdir()
    _make_images(directory)

    def measure(emulator: Emulator) -> Sample:
        sample: Sample = {}
        for kind in FORMATS:
            answers: list[float] = []
            for job in JOBS:
                _settle(directory)
                sample[f"job_{job}.{kind}"], taken = run_job(emulator, directory, kind, job)
                answers += taken
            sample[f"job_query_p99.{kind}"] = percentile(answers, 0.99)
        return sample

    return measure


CHAPTER = Chapter(
    "jobs",
    "block jobs: backup, mirror and commit, raw and qcow2, and query-block meanwhile",
    tuple(metric for kind in FORMATS for metric in _metrics(kind)),
    _prepare,
)
