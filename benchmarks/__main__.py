"""Compares two emulators and prints a table; the figures are kept as JSON under benchmarks/results.

Runs alternate (A B A B ...), so that a host that changes its speed treats both alike; medians are compared.
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

from benchmarks import report
from benchmarks.machine import BenchmarkError, Emulator
from benchmarks.measures import Sample, measure
from images import debian
from images.build import BuildError, build

RESULTS = Path(__file__).parent / "results"
QEMU = "qemu-system-x86_64 -accel tcg,thread=single"


def _arguments(words: list[str]) -> argparse.Namespace:
    own = Path(sys.executable).with_name("pyvm")
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run two emulators side by side.")
    parser.add_argument("--a", default=str(own), metavar="COMMAND", help="the first emulator (pyvm)")
    parser.add_argument("--b", default=QEMU, metavar="COMMAND", help=f"the second emulator ({QEMU})")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each guest benchmark may take (0.3)")
    parser.add_argument("--guest", default="demo", help="which guest (demo, generic)")
    parser.add_argument("--no-record", action="store_true", help="keep no JSON file")
    given = parser.parse_args(words)
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return given


def _emulators(given: argparse.Namespace) -> tuple[Emulator, Emulator]:
    first, second = shlex.split(given.a), shlex.split(given.b)
    for command in (first, second):
        if shutil.which(command[0]) is None:
            raise BenchmarkError(f"{command[0]} is not installed")
    names = [Path(command[0]).name.replace("qemu-system-x86_64", "QEMU") for command in (first, second)]
    if names[0] == names[1]:
        names = [f"{names[0]} (A)", f"{names[1]} (B)"]
    return Emulator(names[0], tuple(first)), Emulator(names[1], tuple(second))


def _run(given: argparse.Namespace) -> None:
    emulators = _emulators(given)
    image = build(given.guest)
    for path in (image.kernel, image.initrd):
        path.read_bytes()  # both emulators find the files in the host's cache
    samples: dict[str, list[Sample]] = {emulator.name: [] for emulator in emulators}
    with tempfile.TemporaryDirectory(prefix="pyvm-bench-") as directory:
        for turn in range(given.rounds):
            for emulator in emulators:
                print(f"round {turn + 1} of {given.rounds}: {emulator.name}", file=sys.stderr, flush=True)
                samples[emulator.name].append(measure(emulator, image, Path(directory), given.seconds))
    names = emulators[0].name, emulators[1].name
    first, second = (report.medians(samples[name]) for name in names)
    print(report.table(names, first, second))
    if not given.no_record:
        record = {
            "revision": report.revision(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": report.host(),
            "guest": {"name": image.name, "release": image.release, "packages": image.packages},
            "emulators": {
                emulator.name: [Path(emulator.command[0]).name, *emulator.command[1:], emulator.version()]
                for emulator in emulators
            },
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
