"""Temporary files with names, as :mod:`tempfile` makes them: to import that takes longer than to make an image in one.

They lie where large files may: `$TMPDIR`, or the directory for temporary files that is not in memory.
"""

from __future__ import annotations

import os

_DIRECTORY = "/var/tmp"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_directory() -> str:
    """Return where temporary files are to be."""
    return os.environ.get("TMPDIR") or _DIRECTORY


def new_temporary_file(prefix: str) -> str:
    """Make an empty file that only its owner can open, and return its name.  Raises OSError."""
    while True:
        path = os.path.join(temporary_directory(), prefix + os.urandom(6).hex())
        try:
            os.close(os.open(path, _FLAGS, 0o600))
        except FileExistsError:
            continue
        return path
