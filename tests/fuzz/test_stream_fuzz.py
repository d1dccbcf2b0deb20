"""Hostile peers: streams of a machine that were changed, against a machine that waits for one.

PYVM_FUZZ_SECONDS sets how long (10 where it is not set), PYVM_FUZZ_SEED where to begin: a random place, which is named
when a case fails, or a number.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("PYVM_FUZZ_SECONDS", "10"))
FIXED_SEED = 1


def hunt(seed: int, seconds: float) -> None:
    """Run the cases from a seed on for some time, in a process of their own."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.stream_inputs"]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--seconds", str(seconds)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + 100,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout[-6000:]}"
    cases, taken = map(int, done.stdout.splitlines()[-1].replace(",", "").split()[:3:2])
    assert cases / 20 < taken < cases / 2, "some of the streams are good ones, most are not"


@pytest.mark.timeout(3600)
def test_streams_that_are_always_the_same() -> None:
    hunt(FIXED_SEED, SECONDS / 2)


@pytest.mark.timeout(3600)
def test_streams_that_are_new_each_time() -> None:
    hunt(int(os.environ.get("PYVM_FUZZ_SEED", random.randrange(1 << 32))), SECONDS / 2)
