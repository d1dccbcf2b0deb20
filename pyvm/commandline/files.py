"""Files that options name: whether they can be read, and what is in them."""

from __future__ import annotations

import errno
import os

from pyvm.errors import ConfigError


def _reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be opened; a NUL in its name is all that is no error of the host."""
    return error.strerror or str(error) if isinstance(error, OSError) else "not a file name"


def check_readable(path: str, complaint: str) -> None:
    """Raise a ConfigError that begins with `complaint` where `path` is no file that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{complaint}: {_reason(error)}") from None
    directory = os.path.isdir(fd)
    os.close(fd)
    if directory:
        raise ConfigError(f"{complaint}: {os.strerror(errno.EISDIR)}")


def read_file(path: str, limit: int, complaint: str) -> bytes:
    """Return what is in a file.

    Raises a ConfigError that begins with `complaint` where it cannot be read, or has more than `limit` bytes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{complaint}: {_reason(error)}") from None
    if len(content) > limit:
        raise ConfigError(f"{complaint}: larger than {limit} bytes")
    return content
