"""Guest disks: virtio-blk with the defaults of both emulators, on a raw and on a qcow2 image, in one guest.

Both images lie in the host's page cache, and the guest goes around its own (O_DIRECT), so that the figures are those
of the path between: driver, queue, device, block layer, image format, system call.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
from pathlib import Path

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Guest, booted
from images import build, cpio
from images.disk_qcow2 import write_qcow2

MEMORY = 512
DISK = 1 << 30
DATA = 256 << 20
"""The first part of each image holds data, which is read and overwritten.  New space is not written: how fast that is
depends more on the memory that the host has at hand than on the emulator."""
PASSES = 3
RANDOM_SECONDS = 2.0
PROGRAM = "usr/local/bin/diskio"
TARGET = 0.8

FORMATS = {"raw": "vda", "qcow2": "vdb"}
"""Image formats, and the names that the guest gives the disks."""


def _metrics(kind: str) -> tuple[Metric, ...]:
    def rate(name: str, what: str) -> Metric:
        title = f"{kind}: {what}"
        return Metric(f"{name}.{kind}", title, "MB/s", scale=1e-6, more_is_better=True, relative=TARGET)

    return (
        rate("disk_read", "sequential read, 1 MiB"),
        rate("disk_write", "sequential write, 1 MiB"),
        Metric(f"disk_random.{kind}", f"{kind}: random reads, 4 KiB", "/s", more_is_better=True, relative=TARGET),
    )


def _with_program(image: build.Image, directory: Path) -> build.Image:
    """Return a guest that has the program diskio as well: archives of an initramfs can follow one another."""
    archive = cpio.Archive()
    archive.file(PROGRAM, build.compile_static(Path(__file__).with_name("diskio.c")), 0o755)
    data = image.initrd.read_bytes()
    initrd = directory / "initrd"
    initrd.write_bytes(data + bytes(-len(data) % 4) + archive.to_bytes())
    return dataclasses.replace(image, initrd=initrd)


def _make_images(directory: Path) -> None:
    """Make the images that each run has a copy of: the same contents in each format."""
    generator = random.Random(1)
    raw = directory / "master.raw"
    with raw.open("wb") as file:
        for _ in range(DATA >> 20):
            file.write(generator.randbytes(1 << 20))
        file.truncate(DISK)
    write_qcow2(raw, directory / "master.qcow2")


def _fresh_copy(directory: Path, kind: str) -> Path:
    """Return a copy with the same holes, in the host's page cache and, lest it be written back later, on its disk."""
    path = directory / f"disk.{kind}"
    path.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=never", "--sparse=auto", directory / f"master.{kind}", path], check=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def _number(guest: Guest, *words: object) -> float:
    printed = guest.run(" ".join(map(str, (f"/{PROGRAM}", *words))))
    try:
        return float(printed)
    except ValueError:
        raise BenchmarkError(f"diskio printed {printed!r}") from None


def _figures(guest: Guest, kind: str, disk: str) -> Sample:
    device = f"/dev/{disk}"
    return {
        f"disk_read.{kind}": _number(guest, "read", device, 0, DATA, PASSES),
        f"disk_write.{kind}": _number(guest, "write", device, 0, DATA, PASSES),
        f"disk_random.{kind}": _number(guest, "random", device, DATA, RANDOM_SECONDS),
    }


def _prepare(setting: Setting) -> Measure:
    directory = setting.directory / "disk"
    directory.mkdir()
    image = _with_program(setting.image, directory)
    _make_images(directory)

    def measure(emulator: Emulator) -> Sample:
        drives = []
        for kind in FORMATS:
            drives += ["-drive", f"file={_fresh_copy(directory, kind)},format={kind},if=virtio"]
        sample: Sample = {}
        with booted(emulator, image, directory, MEMORY, options=drives) as guest:
            for kind, disk in FORMATS.items():
                sample.update(_figures(guest, kind, disk))
        return sample

    return measure


CHAPTER = Chapter(
    "disk",
    "disks of a guest: virtio-blk, raw and qcow2",
    tuple(metric for kind in FORMATS for metric in _metrics(kind)),
    _prepare,
)
