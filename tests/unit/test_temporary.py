"""Temporary files with names."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pyvm.temporary import new_temporary_file, temporary_directory


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = [Path(new_temporary_file("vl.")) for _ in range(3)]
    assert sorted(made) == sorted(tmp_path.iterdir())
    for path in made:
        assert path.name.startswith("vl.")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 0


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert temporary_directory() == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        new_temporary_file("vl.")
