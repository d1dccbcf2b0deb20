"""The chapter of block jobs, on small images: a job is begun, watched and done, and has copied everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import jobs_chapter
from benchmarks.machine import BenchmarkError, Emulator
from tests.unit.job_rig import QEMU_IMG, compare

SIZE = 8 << 20


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jobs_chapter, "DISK", SIZE)
    monkeypatch.setattr(jobs_chapter, "PIECE", 1 << 20)
    jobs_chapter._make_images(tmp_path)
    return tmp_path


def emulator() -> Emulator:
    own = Path(sys.executable)
    return Emulator("pyvm", (str(own.with_name("pyvm")),), (str(own.with_name("pyvm-img")),))


def test_half_of_the_disk_holds_data(directory: Path) -> None:
    data = (directory / "source.raw").read_bytes()
    assert len(data) == SIZE
    holes = [not any(data[start : start + (1 << 20)]) for start in range(0, SIZE, 1 << 20)]
    assert holes == [False, True] * 4


@pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(("kind", "job"), [("raw", "backup"), ("qcow2", "active_commit")])
def test_a_job_is_measured(directory: Path, kind: str, job: str) -> None:
    rate, answers = jobs_chapter.run_job(emulator(), directory, kind, job)
    assert rate > 0
    assert answers
    compare(directory / "source.raw", directory / f"target.{kind}")


def test_a_job_that_fails_is_no_measure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs_chapter.COMMANDS, "backup", "no-such-command")
    with pytest.raises((BenchmarkError, subprocess.SubprocessError), match="no-such-command"):
        jobs_chapter.run_job(emulator(), directory, "raw", "backup")
