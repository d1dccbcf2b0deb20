"""The QMP monitor: round trips, the schema, how soon it greets, and how soon it answers while the guest is busy."""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Lines, booted, connect, stop
from images.build import Image

MEMORY = 256
WARM_UP = 200
ROUND_TRIPS = 4000
CONNECTIONS = 50
SCHEMAS = 3
BUSY_ROUND_TRIPS = 3000
BUSY_PAUSE_SECONDS = 0.001
BUSY_LOOP = "while :; do for word in a b c; do cat /proc/self/stat; done >/dev/null; done"
"""What keeps the guest busy: processes come and go, so it computes, faults on pages and makes system calls."""

METRICS = (
    Metric("qmp_round_trips", "QMP: query-status round trips", "/s", more_is_better=True, relative=1.0),
    Metric("qmp_schema", "QMP: query-qmp-schema", "ms", scale=1e3, relative=1.0),
    Metric("qmp_schema_again", "QMP: query-qmp-schema again", "ms", scale=1e3, relative=1.0),
    Metric("qmp_connect", "QMP: connection to greeting", "ms", scale=1e3, absolute=1.0),
    Metric("qmp_busy_median", "QMP: round trip while the guest is busy, median", "ms", scale=1e3, absolute=1.0),
    Metric("qmp_busy_p99", "QMP: the same, 99th percentile", "ms", scale=1e3, absolute=2.0),
    Metric("qmp_busy_flood", "QMP: round trips while the guest is busy", "/s", more_is_better=True, absolute=500.0),
)


def _greeted(client: Lines) -> Lines:
    if "QMP" not in client.receive():
        raise BenchmarkError("the monitor's first message is no greeting")
    return client


def percentile(figures: list[float], share: float) -> float:
    """Return the figure that `share` of all are not above."""
    ordered = sorted(figures)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _timed(monitor: Lines, command: str) -> float:
    start = time.perf_counter()
    monitor.ask(command)
    return time.perf_counter() - start


def _rate(monitor: Lines, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        monitor.ask("query-status")
    return count / (time.perf_counter() - start)


def _standing_still(emulator: Emulator, directory: Path) -> Sample:
    """Measure a machine whose guest does not run: what the monitor itself takes."""
    path = directory / "qmp"
    path.unlink(missing_ok=True)
    words = ("-S", "-nodefaults", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off")
    process = subprocess.Popen([*emulator.command, *words], stdin=subprocess.DEVNULL)
    try:
        _greeted(Lines(connect(path, process))).close()
        arrivals = []
        for _ in range(CONNECTIONS):
            start = time.perf_counter()
            client = _greeted(Lines(connect(path, process)))
            arrivals.append(time.perf_counter() - start)
            client.close()
        monitor = _greeted(Lines(connect(path, process)))
        monitor.ask("qmp_capabilities")
        schema = _timed(monitor, "query-qmp-schema")
        schema_again = min(_timed(monitor, "query-qmp-schema") for _ in range(SCHEMAS))
        _rate(monitor, WARM_UP)
        sample = {
            "qmp_round_trips": _rate(monitor, ROUND_TRIPS),
            "qmp_schema": schema,
            "qmp_schema_again": schema_again,
            "qmp_connect": percentile(arrivals, 0.5),
        }
        monitor.close()
        return sample
    finally:
        stop(process)


def _busy(emulator: Emulator, image: Image, directory: Path) -> Sample:
    """Measure a machine whose guest never rests; the client asks a thousand times a second, or as often as it can."""
    path = directory / "qmp"
    path.unlink(missing_ok=True)
    options = ("-qmp", f"unix:{path},server=on,wait=off")
    with booted(emulator, image, directory, MEMORY, options=options) as guest:
        monitor = _greeted(Lines(connect(path, guest.process)))
        monitor.ask("qmp_capabilities")
        guest.start(BUSY_LOOP)
        _rate(monitor, WARM_UP)
        taken = []
        for _ in range(BUSY_ROUND_TRIPS):
            taken.append(_timed(monitor, "query-status"))
            time.sleep(BUSY_PAUSE_SECONDS)
        flood = _rate(monitor, ROUND_TRIPS)
        monitor.close()
    return {
        "qmp_busy_median": percentile(taken, 0.5),
        "qmp_busy_p99": percentile(taken, 0.99),
        "qmp_busy_flood": flood,
    }


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "monitor"
    directory.mkdir()
    image = setting.image
    return lambda emulator: _standing_still(emulator, directory) | _busy(emulator, image, directory)


CHAPTER = Chapter("monitor", "the QMP monitor: rates and waiting times", METRICS, _prepare)
