"""An ordinary Debian disk, from the start of the process to the login prompt: each emulator with its own firmware."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting, SkippedError
from benchmarks.machine import Emulator, seconds_to_text
from images.build import BuildError
from images.debian import PackageError
from images.disk import build_disk

MEMORY = 512
PROMPT = b" login: "
LIMIT_SECONDS = 300.0
METRICS = (Metric("disk_boot", "Debian disk to the login prompt", "s", relative=1.2),)


def _copy(source: Path, target: Path) -> Path:
    """Return a copy that nobody has booted, in the host's page cache and on its disk."""
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target


def _prepare(setting: Setting) -> Measure:
    try:
        disk = build_disk().disk
    except (BuildError, PackageError) as error:
        raise SkippedError(str(error)) from error
    directory = setting.directory / "boot"
    directory.mkdir()

    def measure(emulator: Emulator) -> Sample:
        copy = _copy(disk, directory / "disk.qcow2")
        options = ("-m", str(MEMORY), "-smp", "1", "-drive", f"file={copy},format=qcow2,if=virtio")
        return {"disk_boot": seconds_to_text(emulator, options, directory / "console", PROMPT, LIMIT_SECONDS)}

    return measure


CHAPTER = Chapter("boot", "a Debian disk, from power on to its login prompt", METRICS, _prepare)
