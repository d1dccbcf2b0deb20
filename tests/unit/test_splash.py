"""The picture that firmware shows at its boot menu."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvm.errors import ConfigError
from pyvm.machine.splash import read_picture


def bmp(depth: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, depth, 0, 4, 0, 0, 0, 0)
    )


@pytest.mark.parametrize(
    ("content", "name"), [(b"\xff\xd8\xff\xe0rest", "bootsplash.jpg"), (bmp(24), "bootsplash.bmp")]
)
def test_the_name_tells_the_format(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    assert read_picture(str(path)) == (name, content)


@pytest.mark.parametrize("content", [b"", b"BM", bmp(32), bmp(24)[:29], b"\x89PNG\r\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be JPEG or 24 bit BMP"):
        read_picture(str(path))


def test_no_file_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="failed to find file '/nowhere': No such file"):
        read_picture("/nowhere")
    with pytest.raises(ConfigError, match="not a file name"):
        read_picture("a\0b")
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="too big"):
        read_picture(str(path))
