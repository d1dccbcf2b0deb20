"""A guest that moves to another process over a unix socket, while it writes to its memory all the time.

Throughput is what was sent in the time between the connection and the end; downtime is what the source says of it, and
the limit on it is the default of 300 ms.  The guest's agent must answer on the other side, with the right checksum of
what was in its memory.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Guest, Lines, booted, command_of, connect, stop

MEMORY = 512
FILLED_MIB = 100
UNLIMITED = 100 << 30
LIMIT_SECONDS = 120
METRICS = (
    Metric("migrate_rate", "live migration, unix socket", "MB/s", scale=1e-6, more_is_better=True, relative=0.8),
    Metric("migrate_downtime", "its downtime, 30 MB/s dirtied", "ms", scale=1e3, absolute=300),
)
_FILL = f"dd if=/dev/urandom of=/tmp/x bs=1M count={FILLED_MIB} 2>/dev/null; md5sum /tmp/x"
_WRITE = "while true; do dd if=/tmp/x of=/tmp/y bs=1M count=3 conv=notrunc 2>/dev/null; usleep 90000; done"


def _monitor(path: Path, process: subprocess.Popen[bytes]) -> Lines:
    monitor = Lines(connect(path, process))
    monitor.receive()
    monitor.ask("qmp_capabilities")
    return monitor


def _await(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens at a socket, without a connection: the first is the migration."""
    end = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise BenchmarkError("the other side does not wait for the migration")
        time.sleep(0.01)


def _moved(monitor: Lines, uri: str) -> dict[str, Any]:
    """Move, and return the figures of the source."""
    monitor.ask("migrate-set-parameters", max_bandwidth=UNLIMITED)
    monitor.ask("migrate", uri=uri)
    end = time.monotonic() + LIMIT_SECONDS
    while (figures := _answer(monitor))["status"] != "completed":
        if figures["status"] == "failed" or time.monotonic() > end:
            raise BenchmarkError(f"the migration did not come to its end: {figures}")
        time.sleep(0.02)
    return figures


def _answer(monitor: Lines) -> dict[str, Any]:
    """Return the state of the migration; events come in between."""
    monitor.send("query-migrate")
    while "return" not in (message := monitor.receive()):
        if "error" in message:
            raise BenchmarkError(f"query-migrate: {message['error']}")
    found: dict[str, Any] = message["return"]
    return found


def _prepare(setting: Setting) -> Measure:
    directories = [setting.directory / name for name in ("source", "target")]
    for directory in directories:
        directory.mkdir()
    source, target = directories

    def measure(emulator: Emulator) -> Sample:
        options = [("-qmp", f"unix:{directory / 'qmp'},server=on,wait=off") for directory in directories]
        uri = f"unix:{setting.directory / 'migrate'}"
        for directory in directories:
            for path in directory.iterdir():
                path.unlink()
        with booted(emulator, setting.image, source, MEMORY, options=options[0]) as guest:
            checksum = guest.run(_FILL)
            guest.start(f"({_WRITE}) </dev/null >/dev/null 2>&1 &")
            words = command_of(emulator, setting.image, target, MEMORY, (*options[1], "-incoming", uri))
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
            try:
                _await(setting.directory / "migrate", process)
                figures = _moved(_monitor(source / "qmp", guest.process), uri)
                moved = Guest(process, Lines(connect(target / "ga", process)), connect(target / "port", process), 0)
                if moved.run("md5sum /tmp/x") != checksum:
                    raise BenchmarkError("the guest's memory is not what it was")
            finally:
                stop(process)
        seconds = max(figures["total-time"] - figures["setup-time"], 1) / 1000
        return {
            "migrate_rate": figures["ram"]["transferred"] / seconds,
            "migrate_downtime": figures["downtime"] / 1000,
        }

    return measure


CHAPTER = Chapter("migrate", "live migration of a guest that writes to its memory", METRICS, _prepare)
