"""Files that are read into memory before somebody needs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyvm.native import read_ahead

_LONG_AGO = 10**9


def is_read(path: Path) -> bool:
    """Return whether somebody reads the file soon, which the host notes."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.stat().st_atime_ns != _LONG_AGO:
            return True
        time.sleep(0.001)
    return False


def old_file(path: Path, size: int = 5000) -> Path:
    """Make a file that nobody has read for long: the host notes the time of the next read in any case."""
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(_LONG_AGO, _LONG_AGO))
    return path


def test_files_and_trees(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    wanted = [old_file(tmp_path / "tree" / "deep" / f"{number}.good", size) for number, size in enumerate((1, 3 << 20))]
    other = old_file(tmp_path / "tree" / "other.bad")
    single = old_file(tmp_path / "single")
    read_ahead([os.fsencode(tmp_path / "none"), os.fsencode(tmp_path / "tree"), os.fsencode(single)], b".good")
    assert is_read(single)
    assert all(path.stat().st_atime_ns != _LONG_AGO for path in wanted)
    assert other.stat().st_atime_ns == _LONG_AGO, "not what was asked for"


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "loop").symlink_to(tmp_path)
    last = old_file(tmp_path / "last")
    read_ahead([os.fsencode(it) for it in (pipe, tmp_path / "loop", "/dev/zero", tmp_path, last)], b"")
    assert is_read(last)


@pytest.mark.parametrize("arguments", [([], "x"), ((), b""), (["x"], b""), ([b"a\0b"], b""), ([b"a"], b"\0")])
def test_what_is_no_list_of_names(arguments: tuple[list[bytes], bytes]) -> None:
    with pytest.raises((TypeError, ValueError)):
        read_ahead(*arguments)
