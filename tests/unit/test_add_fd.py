"""Inherited descriptors: `-add-fd`.  The complaints are QEMU 7.2's."""

from __future__ import annotations

import os

import pytest

from pyvm.commandline import parse_arguments
from pyvm.config import PassedFdConfig
from pyvm.errors import ConfigError


def inherited() -> int:
    fd = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(fd, True)
    return fd


def test_descriptors_are_taken_over() -> None:
    first, second = inherited(), inherited()
    config = parse_arguments(
        ["-add-fd", f"fd={first},set=2,opaque=x y", "-add-fd", f"fd={second},set=2", "-add-fd", f"fd={first},set=3"]
    )
    assert [(passed.set_id, passed.opaque) for passed in config.passed_fds] == [(2, "x y"), (2, None), (3, None)]
    for passed in config.passed_fds:
        assert isinstance(passed, PassedFdConfig)
        assert passed.fd not in (first, second)
        assert not os.get_inheritable(passed.fd)
        os.close(passed.fd)
    for fd in (first, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("set=1", "fd option is required and must be non-negative"),
        ("fd=1,set=1", "fd cannot be a standard I/O stream"),
        ("fd=1000000,set=1", "fd is not valid or already in use"),
        ("fd=FD", "set option is required and must be non-negative"),
        ("fd=x,set=1", "Parameter 'fd' expects a number"),
        ("fd=FD,set=1,zz=1", "Invalid parameter 'zz'"),
    ],
)
def test_mistakes(text: str, problem: str) -> None:
    fd = inherited()
    try:
        text = text.replace("FD", str(fd))
        with pytest.raises(ConfigError) as caught:
            parse_arguments(["-add-fd", text])
        assert str(caught.value) == f"-add-fd {text}: {problem}"
    finally:
        os.close(fd)


def test_what_pyvm_opened_itself_is_not_taken() -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(ConfigError, match="fd is not valid or already in use"):
            parse_arguments(["-add-fd", f"fd={fd},set=1"])
    finally:
        os.close(fd)
