"""The guest agent: how many commands a second it answers, and how fast files pass through it.

One client, one command at a time, over a unix socket and virtio-serial, as `pyvm-ga` and libvirt use it.
"""

from __future__ import annotations

import base64
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Guest, booted
from images.build import Image

MEMORY = 256
SETTLE_SECONDS = 1.0
SLICE_SECONDS = 0.7
SLICES = 5
"""Every figure is the median of so many slices, which take turns: a host that is slow for a while slows all alike."""
FILE = "/tmp/agent"
SMALL = 4 << 10
LARGE = 1 << 20
FILE_BYTES = 8 << 20


def _rate(name: str, title: str, unit: str = "/s", scale: float = 1.0) -> Metric:
    return Metric(name, title, unit, scale=scale, more_is_better=True, relative=1.0)


METRICS = (
    _rate("agent_ping", "guest-ping"),
    _rate("agent_read_small", "guest-file-read of 4 KiB"),
    _rate("agent_write_small", "guest-file-write of 4 KiB"),
    _rate("agent_read", "guest-file-read of 1 MiB", "MB/s", 1e-6),
    _rate("agent_write", "guest-file-write of 1 MiB", "MB/s", 1e-6),
    _rate("agent_exec", "guest-exec and its end"),
)


class GuestFile:
    """A file in the guest that is gone through from its start to its end, again and again."""

    def __init__(self, ask: Callable[..., Any], content: bytes, mode: str) -> None:
        self._ask = ask
        self._content = content
        self._handle = int(ask("guest-file-open", path=FILE, mode=mode))
        self._position = 0

    def _next(self, size: int) -> bytes:
        """Return the next piece of the content, once the guest is at its start."""
        if self._position == len(self._content):
            self._ask("guest-file-seek", handle=self._handle, offset=0, whence="set")
            self._position = 0
        piece = self._content[self._position : self._position + size]
        self._position += len(piece)
        return piece

    def write(self, size: int) -> int:
        """Write the next piece; return its length."""
        piece = self._next(size)
        answer = self._ask("guest-file-write", handle=self._handle, buf_b64=base64.b64encode(piece).decode())
        if answer["count"] != len(piece):
            raise BenchmarkError(f"guest-file-write took {answer['count']} bytes of {len(piece)}")
        return len(piece)

    def read(self, size: int) -> int:
        """Read the next piece, which must be what was written; return its length."""
        piece = self._next(size)
        answer = self._ask("guest-file-read", handle=self._handle, count=size)
        if base64.b64decode(answer["buf-b64"]) != piece:
            raise BenchmarkError("guest-file-read returned something else than was written")
        return len(piece)

    def close(self) -> None:
        """Let the guest close it."""
        self._ask("guest-file-close", handle=self._handle)


class Work:
    """What is done again and again; each function does it once and returns how much that was."""

    def __init__(self, guest: Guest) -> None:
        self._ask: Callable[..., Any] = guest.agent.ask
        content = os.urandom(FILE_BYTES)
        first = GuestFile(self._ask, content, "w")
        for _ in range(FILE_BYTES // LARGE):
            first.write(LARGE)
        first.close()
        self._small_reader, self._reader = (GuestFile(self._ask, content, "r") for _ in range(2))
        self._small_writer, self._writer = (GuestFile(self._ask, content, "r+") for _ in range(2))

    def ping(self) -> int:
        """One command without arguments and result."""
        self._ask("guest-ping")
        return 1

    def read_small(self) -> int:
        """A small answer."""
        return self._small_reader.read(SMALL) // SMALL

    def write_small(self) -> int:
        """A small request."""
        return self._small_writer.write(SMALL) // SMALL

    def read(self) -> int:
        """A large answer."""
        return self._reader.read(LARGE)

    def write(self) -> int:
        """A large request."""
        return self._writer.write(LARGE)

    def exec(self) -> int:
        """A program from its start until its end is known."""
        pid = self._ask("guest-exec", path="/bin/true", capture_output=True)["pid"]
        while not (status := self._ask("guest-exec-status", pid=pid))["exited"]:
            pass
        if status["exitcode"] != 0:
            raise BenchmarkError(f"/bin/true ended with {status}")
        return 1


def _slice(action: Callable[[], int], seconds: float) -> float:
    """Return how much was done in each second."""
    done = 0
    start = time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        done += action()
    return done / taken


def _measure(emulator: Emulator, image: Image, directory: Path) -> Sample:
    with booted(emulator, image, directory, MEMORY) as guest:
        time.sleep(SETTLE_SECONDS)
        work = Work(guest)
        actions = {metric.name: getattr(work, metric.name.removeprefix("agent_")) for metric in METRICS}
        rates: dict[str, list[float]] = {name: [] for name in actions}
        for turn in range(1 + SLICES):
            for name, action in actions.items():
                rate = _slice(action, SLICE_SECONDS)
                if turn:  # before that, the guest's code was still to be translated
                    rates[name].append(rate)
    return {name: statistics.median(found) for name, found in rates.items()}


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "agent"
    directory.mkdir()
    image = setting.image
    return lambda emulator: _measure(emulator, image, directory)


CHAPTER = Chapter("agent", "the guest agent: commands and files", METRICS, _prepare)
