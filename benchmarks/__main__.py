"""Compares two emulators and prints a table; the figures are kept as JSON under benchmarks/results.

    python -m benchmarks [CHAPTER]... [--rounds N]

In each round and chapter one emulator is measured, then the other, and in the next round the other way round (A B B A
...), so that a host that changes its speed treats both alike; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.chapter import Chapter, Measure, Sample, Setting, SkippedError
from benchmarks.chapters import CHAPTERS
from benchmarks.machine import BenchmarkError, Emulator
from images import debian
from images.build import BuildError

RESULTS = Path(__file__).parent / "results"
QEMU = "qemu-system-x86_64 -accel tcg,thread=single"


def _arguments(words: list[str]) -> argparse.Namespace:
    own = Path(sys.executable).with_name("pyvm")
    names = [chapter.name for chapter in CHAPTERS]
    about = "; ".join(f"{chapter.name}: {chapter.about}" for chapter in CHAPTERS)
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run two emulators side by side.")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help=f"what to measure (all). {about}")
    parser.add_argument("--a", default=str(own), metavar="COMMAND", help="the first emulator (pyvm)")
    parser.add_argument("--b", default=QEMU, metavar="COMMAND", help=f"the second emulator ({QEMU})")
    own_tool = own.with_name("pyvm-img")
    parser.add_argument("--image-a", default=str(own_tool), metavar="COMMAND", help="its image tool (pyvm-img)")
    parser.add_argument("--image-b", default="qemu-img", metavar="COMMAND", help="its image tool (qemu-img)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each guest benchmark may take (0.3)")
    parser.add_argument("--guest", default="demo", help="which guest (demo, generic)")
    parser.add_argument("--directory", help="where images lie meanwhile ($TMPDIR)")
    parser.add_argument("--no-record", action="store_true", help="keep no JSON file")
    given = parser.parse_args(words)
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if unknown := [name for name in given.chapters if name not in names]:
        parser.error(f"no chapter {unknown[0]}: there are {', '.join(names)}")
    return given


def _emulators(given: argparse.Namespace) -> tuple[Emulator, Emulator]:
    first, second = shlex.split(given.a), shlex.split(given.b)
    tools = shlex.split(given.image_a), shlex.split(given.image_b)
    for command in (first, second, *tools):
        if shutil.which(command[0]) is None:
            raise BenchmarkError(f"{command[0]} is not installed")
    names = [Path(command[0]).name.replace("qemu-system-x86_64", "QEMU") for command in (first, second)]
    if names[0] == names[1]:
        names = [f"{names[0]} (A)", f"{names[1]} (B)"]
    return Emulator(names[0], tuple(first), tuple(tools[0])), Emulator(names[1], tuple(second), tuple(tools[1]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _prepared(chapters: list[Chapter], setting: Setting) -> tuple[dict[str, Measure], dict[str, str]]:
    """Return what measures each chapter, and the reasons why others cannot be measured here."""
    measures: dict[str, Measure] = {}
    skipped: dict[str, str] = {}
    for chapter in chapters:
        _say(f"preparing {chapter.name}: {chapter.about}")
        try:
            measures[chapter.name] = chapter.prepare(setting)
        except SkippedError as reason:
            skipped[chapter.name] = str(reason)
    return measures, skipped


def _samples(
    measures: dict[str, Measure], emulators: tuple[Emulator, Emulator], rounds: int
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {emulator.name: [{} for _ in range(rounds)] for emulator in emulators}
    for turn in range(rounds):
        for name, measure in measures.items():
            # Who is first may find the host in another state: with less memory at hand, for one.
            for emulator in emulators if turn % 2 == 0 else emulators[::-1]:
                start = time.monotonic()
                samples[emulator.name][turn].update(measure(emulator))
                _say(f"round {turn + 1} of {rounds}: {name}: {emulator.name}: {time.monotonic() - start:.0f} s")
    return samples


def _run(given: argparse.Namespace) -> None:
    emulators = _emulators(given)
    chapters = [chapter for chapter in CHAPTERS if not given.chapters or chapter.name in given.chapters]
    with tempfile.TemporaryDirectory(prefix="pyvm-bench-", dir=given.directory) as directory:
        setting = Setting(Path(directory), given.guest, given.seconds)
        measures, skipped = _prepared(chapters, setting)
        samples = _samples(measures, emulators, given.rounds)
    names = emulators[0].name, emulators[1].name
    first, second = (report.medians(samples[name]) for name in names)
    print(report.table(names, first, second))
    for name, reason in skipped.items():
        print(f"\nnot measured: {name}: {reason}")
    if not given.no_record:
        image = setting.image
        record: dict[str, Any] = {
            "revision": report.revision(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": report.host(),
            "guest": {"name": image.name, "release": image.release, "packages": image.packages},
            "emulators": {
                emulator.name: [Path(emulator.command[0]).name, *emulator.command[1:], emulator.version()]
                for emulator in emulators
            },
            "chapters": list(measures),
            "skipped": skipped,
            "rounds": given.rounds,
            "micro_mean_ratio": report.mean_ratio(first, second),
            "medians": dict(zip(names, (first, second), strict=True)),
            "samples": samples,
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{record['revision']}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"\nkept in {path.relative_to(RESULTS.parent.parent)}")


def main(words: list[str]) -> int:
    """Run the comparison that the command line asks for."""
    given = _arguments(words)
    try:
        _run(given)
    except (BenchmarkError, BuildError, debian.PackageError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
