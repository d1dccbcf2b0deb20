"""Hostile guests, run in a process of their own: whatever ends that process is a failure.

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
FIXED_SEED = 1


def hunt(seed: int, seconds: float) -> None:
    """Run the cases from a seed on for some time."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.hostile", "--verbose"]
    command += ["--seed", str(seed), "--seconds", str(seconds)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + 100,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}; the last case is the one:\n{done.stdout[-6000:]}"
    assert "cases:" in done.stdout


@pytest.mark.timeout(3600)
def test_cases_that_are_always_the_same() -> None:
    hunt(FIXED_SEED, float(os.environ.get("PYVM_FUZZ_SECONDS", "10")) / 2)


@pytest.mark.timeout(3600)
def test_cases_that_are_new_each_time() -> None:
    seed = int(os.environ.get("PYVM_FUZZ_SEED", random.randrange(1 << 32)))
    hunt(seed, float(os.environ.get("PYVM_FUZZ_SECONDS", "10")) / 2)
