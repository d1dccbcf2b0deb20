"""Images from one format into another: pyvm-img convert beside qemu-img convert, with the options left alone.

Sources are in the host's page cache.  Results are not waited for on the host's disk: neither tool does by default.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting, SkippedError
from benchmarks.machine import BenchmarkError, Emulator

SIZE = 10 << 30
DATA = 512 << 20
COMPRESSED_DATA = 192 << 20
"""Less than DATA: compressing takes its time."""
GRID = 16 << 20
"""Each piece of data has a field of this size to itself, and lies anywhere in it."""
PAGE = 4096
PIECES = (PAGE, 64 << 10, 512 << 10, 4 << 20)
LETTERS = bytes(32 + place % 16 for place in range(256))
"""Makes data from noise that compresses to about half."""

CONVERSIONS = {
    "raw_qcow2": ("raw", "qcow2", ()),
    "qcow2_raw": ("qcow2", "raw", ()),
    "compress": ("small.raw", "qcow2", ("-c",)),
    "decompress": ("small.qcow2", "raw", ()),
}
"""What is converted, into which format, with which options."""
TITLES = {
    "raw_qcow2": "convert raw to qcow2, 10 GiB sparse",
    "qcow2_raw": "convert qcow2 to raw, 10 GiB sparse",
    "compress": "convert -c raw to qcow2",
    "decompress": "convert compressed qcow2 to raw",
}
METRICS = tuple(Metric(f"convert.{name}", TITLES[name], "s", relative=1.0) for name in CONVERSIONS)


def scatter(path: Path, size: int, data: int, seed: int) -> None:
    """Write a sparse image with at least `data` bytes in pieces of all sizes, half of them compressible."""
    generator = random.Random(seed)
    noise = generator.randbytes(max(PIECES))
    contents = noise, noise.translate(LETTERS)
    fields = list(range(size // GRID))
    generator.shuffle(fields)
    done = 0
    with path.open("wb") as file:
        file.truncate(size)
        while done < data:
            length = generator.choices(PIECES, weights=(1, 1, 2, 8))[0]
            place = fields.pop() * GRID + generator.randrange((GRID - length) // PAGE) * PAGE
            start = generator.randrange(max(PIECES) - length + 1)
            file.seek(place)
            file.write(generator.choice(contents)[start : start + length])
            done += length


def _qemu_img(*words: str | Path) -> None:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"qemu-img {words[0]}: {(done.stderr or done.stdout).strip()}")


def _settle(path: Path) -> None:
    """Wait until a file is on the host's disk, so that writing it back disturbs no measurement."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _warm(path: Path) -> None:
    """Have all data of a sparse file in the page cache, from where hosts drop what lay there for some seconds."""
    buffer = bytearray(max(PIECES))
    with path.open("rb", buffering=0) as file:
        end = 0
        with suppress(OSError):  # there is no more data
            while True:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                for place in range(start, end, len(buffer)):
                    os.preadv(file.fileno(), (buffer,), place)


def _source(directory: Path, name: str) -> Path:
    return directory / f"source.{name}"


def _make_sources(directory: Path) -> None:
    for prefix, data, options in (("", DATA, ()), ("small.", COMPRESSED_DATA, ("-c",))):
        raw, qcow2 = _source(directory, f"{prefix}raw"), _source(directory, f"{prefix}qcow2")
        scatter(raw, SIZE, data, seed=len(prefix))
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, qcow2)
        _settle(raw)
        _settle(qcow2)


def _seconds(tool: tuple[str, ...], source: Path, target: Path, kind: str, options: tuple[str, ...]) -> float:
    target.unlink(missing_ok=True)
    # What others wrote would be written back at this one's cost.
    os.sync()
    _warm(source)
    words = ("convert", *options, "-f", source.suffix[1:], "-O", kind, str(source), str(target))
    start = time.monotonic()
    done = subprocess.run([*tool, *words], capture_output=True, text=True, check=False)
    taken = time.monotonic() - start
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BenchmarkError(f"{Path(tool[0]).name} {' '.join(words)}: {said[-1]}")
    return taken


def _prepare(setting: Setting) -> Measure:
    if shutil.which("qemu-img") is None:
        raise SkippedError("qemu-img, which makes and compares the images, is not installed")
    directory = setting.directory / "convert"
    directory.mkdir()
    _make_sources(directory)
    compared: set[str] = set()

    def measure(emulator: Emulator) -> Sample:
        sample: Sample = {}
        for name, (source_name, kind, options) in CONVERSIONS.items():
            source, target = _source(directory, source_name), directory / f"target.{kind}"
            sample[f"convert.{name}"] = _seconds(emulator.image_tool, source, target, kind, options)
            if emulator.name not in compared:
                _qemu_img("compare", "-f", source.suffix[1:], "-F", kind, source, target)
            target.unlink()
        # The first round has shown that the results are right.
        compared.add(emulator.name)
        return sample

    return measure


CHAPTER = Chapter("convert", "images into another format", METRICS, _prepare)
