"""Descriptors that the process inherits: `-add-fd`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from pyvm.config import PassedFdConfig
from pyvm.options import Options

_STANDARD_STREAMS = 2
_INT_MAX = (1 << 31) - 1


def passed_fds(given: Sequence[Options]) -> list[PassedFdConfig]:
    """Return the descriptors, as duplicates that no child inherits; the inherited ones are closed.

    Raises ConfigError.
    """
    made = [_passed_fd(options) for options in given]
    for fd in {options.number("fd") for options in given}:
        os.close(fd)
    return made


def _passed_fd(options: Options) -> PassedFdConfig:
    numbers: dict[str, int] = {}
    for name in ("fd", "set"):
        numbers[name] = options.number(name) if name in options else -1
        if not 0 <= numbers[name] <= _INT_MAX:
            raise options.error(f"{name} option is required and must be non-negative")
        if name == "fd":
            _check(options, numbers[name])
    try:
        duplicate = fcntl.fcntl(numbers["fd"], fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError as error:
        raise options.error(f"error duplicating fd: {error.strerror}") from None
    return PassedFdConfig(duplicate, numbers["set"], options.string("opaque"))


def _check(options: Options, fd: int) -> None:
    if fd <= _STANDARD_STREAMS:
        raise options.error("fd cannot be a standard I/O stream")
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        flags = fcntl.FD_CLOEXEC
    if flags & fcntl.FD_CLOEXEC:
        # What pyvm opened itself is closed on exec; what it inherited cannot be.
        raise options.error("fd is not valid or already in use")
