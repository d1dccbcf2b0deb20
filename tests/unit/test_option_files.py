"""Files that options of the command line name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvm.commandline.files import check_readable, read_file
from pyvm.errors import ConfigError


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    check_readable(str(path), "cannot have it")
    assert read_file(str(path), 5, "cannot have it") == b"12345"
    with pytest.raises(ConfigError, match="cannot have it: larger than 4 bytes"):
        read_file(str(path), 4, "cannot have it")


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file or directory"), ("", "Is a directory"), ("a\0b", "not a file name")]
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    path = f"{tmp_path}/{name}"
    for attempt in (lambda: check_readable(path, "-x: no"), lambda: read_file(path, 9, "-x: no")):
        with pytest.raises(ConfigError) as raised:
            attempt()
        assert str(raised.value) == f"-x: no: {reason}"
