"""Files of character devices whose names stand for descriptors that were passed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvm.errors import ConfigError
from tests.system.machine_rig import Machine


def options(fd: int, number: int = 3) -> tuple[str, ...]:
    inherited = os.dup(fd)  # which the machine takes over
    os.set_inheritable(inherited, True)
    return "-add-fd", f"set={number},fd={inherited},opaque=log", "-chardev", "file,id=c,path=/dev/fdset/3,append=on"


def test_output_goes_to_the_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with Machine(*options(fd)) as machine:
        os.close(fd)
        device = machine.pc.chardev_set.find("c")
        assert device is not None
        assert device.write(b"written") == 7
        entry = next(entry for entry in machine.execute("query-chardev") if entry["label"] == "c")
        assert entry["filename"] == "file"
    assert path.read_bytes() == b"written"


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with (
        open(tmp_path / "log", "wb") as file,
        pytest.raises(ConfigError, match="Could not open '/dev/fdset/3': No such"),
    ):
        Machine(*options(file.fileno(), number=4))


def test_a_descriptor_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with open(tmp_path / "log", "rb") as file, pytest.raises(ConfigError, match="Could not open '/dev/fdset/3'"):
        Machine(*options(file.fileno()))
