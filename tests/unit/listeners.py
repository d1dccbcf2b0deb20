"""Unix sockets of programs that were just started."""

from __future__ import annotations

from pathlib import Path

_ACCEPTS = 1 << 16
"""The flag of a socket at which somebody listens, as the kernel shows it."""


def listens(path: Path) -> bool:
    """Return whether somebody listens at a path: it is there a moment before that."""
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(line[7:] == [str(path)] and int(line[3], 16) & _ACCEPTS for line in lines)
