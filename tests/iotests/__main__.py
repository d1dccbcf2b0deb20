"""Runs QEMU's tests of its block layer and shows what became of them.

    python -m tests.iotests [--format qcow2] [--real] [--jobs N] [--group GROUP] [TEST]...

Without names the list below runs.  What a test that failed printed stays in the directory that the last line names.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from images.build import cache_directory
from tests.iotests.programs import make_programs
from tests.iotests.source import SourceError, fetch

TESTS = """
030 040 041 044 055 056 057 096 118 124 129 132 139 141 144 151 152 155 156 165 194 196 202 206 219 223 224 228 229 234
236 245 246 248 254 255 256 257 258 260 262 264
""".split()
"""Those that are about block jobs, bitmaps, exports and what they rest on."""
_RESULT = re.compile(r"^(\S+) +(pass|fail|not run|casenotrun)\b(.*)$", re.MULTILINE)
_OUTPUT_LIMIT = 200_000


@dataclass(frozen=True)
class Result:
    """What became of one test."""

    name: str
    outcome: str
    """pass, fail, not run or timeout."""
    seconds: float
    remark: str = ""


class Runner:
    """Runs tests of the suite, each in directories of its own."""

    def __init__(self, suite: Path, image_format: str, results: Path, *, real: bool, timeout: float) -> None:
        self._suite = suite
        self._format = image_format
        self._results = results
        self._timeout = timeout
        self._environment = {**os.environ, **make_programs(results / "programs", real=real), "LC_ALL": "C"}

    def run(self, name: str) -> Result:
        """Run one test."""
        start = time.monotonic()
        # The paths of sockets are short.
        with tempfile.TemporaryDirectory(prefix="iot-") as scratch:
            environment = {**self._environment, "TEST_DIR": f"{scratch}/t", "SOCK_DIR": f"{scratch}/s"}
            text, ended = self._check(name, environment)
        seconds = time.monotonic() - start
        (self._results / f"{name.replace('/', '-')}.txt").write_text(text[:_OUTPUT_LIMIT])
        if not ended:
            return Result(name, "timeout", seconds)
        for found in _RESULT.finditer(text):
            if found[1] == name:
                remark = re.sub(r"\s+", " ", re.sub(r"\[.*?\]|\.\.\.|\(last: .*?\)|\d+\.\d+s", "", found[3])).strip()
                return Result(name, found[2], seconds, remark)
        return Result(name, "fail", seconds, (text.strip().splitlines() or ["no output"])[-1])

    def _check(self, name: str, environment: dict[str, str]) -> tuple[str, bool]:
        """Return what the suite printed, and whether it came to an end."""
        command = [sys.executable, "./check", f"-{self._format}", name]
        process = subprocess.Popen(
            command, cwd=self._suite, env=environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            return process.communicate(timeout=self._timeout)[0], True
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            return process.communicate()[0], False
        finally:
            # A test that fails may leave machines behind.
            _kill_group(process.pid)


def _kill_group(number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def names_of_group(suite: Path, group: str) -> list[str]:
    """Return the tests whose heading names `group`."""
    found = []
    for path in [*suite.glob("[0-9][0-9][0-9]"), *(suite / "tests").iterdir()]:
        if path.suffix or not path.is_file():
            continue
        heading = path.read_text(errors="replace").splitlines()[:8]
        if any(line.startswith("# group:") and group in line.split() for line in heading):
            found.append(path.name)
    return sorted(found)


def _show(results: list[Result], image_format: str, kept: Path) -> None:
    outcomes = [result.outcome for result in results]
    counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("pass", "fail", "timeout", "not run"))
    print(f"\n{image_format}: {counts}; output in {kept}")


def main() -> int:
    """Run what the command line says; the exit status says whether a test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.iotests", description=__doc__.split("\n")[0])
    parser.add_argument("tests", nargs="*", help="tests by their names in the suite")
    parser.add_argument("--format", default="qcow2", help="image format (default qcow2)")
    parser.add_argument("--real", action="store_true", help="run QEMU's programs instead of pyvm's")
    parser.add_argument("--jobs", type=int, default=1, help="tests at a time")
    parser.add_argument("--group", help="run the tests of a group, such as quick or auto")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one test may take")
    parser.add_argument("--results", type=Path, help="directory for what the tests print (default in the cache)")
    options = parser.parse_args()
    try:
        suite = fetch()
    except SourceError as error:
        print(f"iotests: {error}", file=sys.stderr)
        return 2
    named = [name.removeprefix("tests/") for name in options.tests]
    tests = named or (names_of_group(suite, options.group) if options.group else TESTS)
    kept = options.results or cache_directory() / "iotests" / ("results-real" if options.real else "results")
    kept.mkdir(parents=True, exist_ok=True)
    runner = Runner(suite, options.format, kept.resolve(), real=options.real, timeout=options.timeout)

    def run(name: str) -> Result:
        result = runner.run(name)
        print(f"{result.name:<40} {result.outcome:<10} {result.seconds:7.1f}  {result.remark}".rstrip(), flush=True)
        return result

    print(f"{'test':<40} {'outcome':<10} {'seconds':>7}")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, tests))
    _show(results, options.format, kept)
    return 0 if all(result.outcome in ("pass", "not run") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
