"""The machine itself: start-up, processor, agent, serial ports; one function each, names and targets in METRICS."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import PORT_NAME, BenchmarkError, Emulator, Guest, booted, seconds_to_greeting
from images.build import Image
from images.disk_qcow2 import write_qcow2

MEMORY = 512
SETTLE_SECONDS = 2.0
IDLE_SECONDS = 5.0
PING_SECONDS = 2.0
TRANSFER_BYTES = 64 << 20
DRIVE_BYTES = 1 << 30
MICRO = ("integer", "sieve", "sort", "copy", "float", "syscall", "fork", "page_fault", "pipe")


METRICS = (
    Metric("boot", "boot to the first guest-ping", "s", relative=1.0),
    Metric("greeting", "start of -S to the QMP greeting", "s", absolute=0.2),
    Metric("greeting_drive", "the same with a qcow2 drive", "s", absolute=0.2),
    *(Metric(f"micro.{name}", f"guest: {name.replace('_', ' ')}", "ns", relative=1.5) for name in MICRO),
    Metric("resident", "resident memory after boot", "MiB", scale=1 / (1 << 20), relative=1.0),
    Metric("pings", "agent round trips", "/s", more_is_better=True, relative=0.5),
    Metric("to_guest", "virtio-serial, host to guest", "MB/s", scale=1e-6, more_is_better=True, relative=0.5),
    Metric("to_host", "virtio-serial, guest to host", "MB/s", scale=1e-6, more_is_better=True, relative=0.5),
    Metric("idle", "processor use of an idle guest", "%", scale=100, absolute=3.0),
)


def _pings_per_second(guest: Guest) -> float:
    count = 0
    start = time.monotonic()
    while (taken := time.monotonic() - start) < PING_SECONDS:
        guest.agent.ask("guest-ping")
        count += 1
    return count / taken


def _idle(guest: Guest) -> float:
    start, used = time.monotonic(), guest.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return (guest.cpu_seconds() - used) / (time.monotonic() - start)


def _received(guest: Guest, count: int) -> bytes:
    parts = bytearray(count)
    view = memoryview(parts)
    done = 0
    while done < count:
        got = guest.port.recv_into(view[done:])
        if not got:
            raise BenchmarkError("the port's connection has ended")
        done += got
    return bytes(parts)


def _throughput(guest: Guest) -> tuple[float, float]:
    """Return bytes per second to the guest and back; what comes back must be what was sent."""
    data = os.urandom(1 << 20) * (TRANSFER_BYTES >> 20)
    # The guest keeps what it gets, says so, and sends it back when a byte asks for that.
    blocks = TRANSFER_BYTES // 65536
    pid = guest.start(
        f"exec 3<>/dev/virtio-ports/{PORT_NAME}; printf r >&3; "
        f"dd bs=64k count={blocks} iflag=fullblock of=/tmp/bench <&3 2>/dev/null; printf d >&3; "
        "dd bs=1 count=1 of=/dev/null <&3 2>/dev/null; dd bs=64k if=/tmp/bench >&3 2>/dev/null; rm /tmp/bench"
    )
    _expect(guest, b"r")
    sender = threading.Thread(target=guest.port.sendall, args=(data,))
    start = time.monotonic()
    sender.start()
    _expect(guest, b"d")
    there = TRANSFER_BYTES / (time.monotonic() - start)
    sender.join()
    start = time.monotonic()
    guest.port.sendall(b"g")
    back = _received(guest, TRANSFER_BYTES)
    returned = TRANSFER_BYTES / (time.monotonic() - start)
    if back != data:
        raise BenchmarkError("what came back through virtio-serial is not what was sent")
    guest.finish(pid)
    return there, returned


def _expect(guest: Guest, byte: bytes) -> None:
    got = _received(guest, 1)
    if got != byte:
        raise BenchmarkError(f"the guest said {got!r} in place of {byte!r}")


def _measure(emulator: Emulator, image: Image, directory: Path, micro_seconds: float, drive: Path) -> Sample:
    sample: Sample = {
        "greeting": seconds_to_greeting(emulator, directory),
        "greeting_drive": seconds_to_greeting(emulator, directory, ("-drive", f"file={drive},format=qcow2,if=virtio")),
    }
    with booted(emulator, image, directory, MEMORY) as guest:
        sample["boot"] = guest.boot
        time.sleep(SETTLE_SECONDS)
        sample["resident"] = guest.resident_bytes()
        sample["idle"] = _idle(guest)
        figures = json.loads(guest.run(f"/usr/local/bin/bench {micro_seconds}"))
        sample.update({f"micro.{name}": float(figures[name]) for name in MICRO})
        sample["pings"] = _pings_per_second(guest)
        # The best of three: the first pays for translating the guest's code and for memory that nobody touched before.
        there, back = zip(*(_throughput(guest) for _ in range(3)), strict=True)
        sample["to_guest"], sample["to_host"] = max(there), max(back)
    return sample


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "machine"
    directory.mkdir()
    raw, drive = directory / "disk.raw", directory / "disk.qcow2"
    raw.touch()
    os.truncate(raw, DRIVE_BYTES)
    write_qcow2(raw, drive)
    image = setting.image
    return lambda emulator: _measure(emulator, image, directory, setting.seconds, drive)


CHAPTER = Chapter("machine", "start-up, processor, agent, serial ports", METRICS, _prepare)
