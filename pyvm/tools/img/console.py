"""What a subcommand shows: errors, warnings, JSON and progress."""

from __future__ import annotations

import os
import sys

from pyvm.annotations import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PROGRAM = "qemu-img" if os.path.basename(sys.argv[0]) == "qemu-img" else "pyvm-img"
"""The name it was called by: scripts that run it as qemu-img look for that in messages."""


def complain(text: str) -> None:
    """Print an error.  What went to a file or pipe before it comes later, as with any program that writes there."""
    sys.stderr.write(f"{PROGRAM}: {text}\n")


def warn(text: str) -> None:
    """Print a warning."""
    complain(f"warning: {text}")


def warn_plainly(text: str) -> None:
    """Print the lines of a warning as they are."""
    sys.stderr.write(f"{text}\n")


def print_json(value: Any) -> None:
    """Print a value as JSON, members in QEMU's order."""
    from pyvm.json.writer import encode

    sys.stdout.write(encode(value, pretty=True).decode("ascii").replace("\r\n", "\n"))


class Progress:
    """How far a subcommand has got.

    As qemu-img prints it where somebody reads it from a pipe or file, and a bar by the library *rich* on a terminal,
    where that is installed.  `step` is the least change in per cent that is shown.
    """

    def __init__(self, enabled: bool, step: float = 1.0) -> None:
        self.enabled = enabled
        self._step = step
        self._shown = 0.0
        self._bar = _make_bar() if enabled and sys.stdout.isatty() else None
        self._task = self._bar.add_task("", total=100.0) if self._bar is not None else None
        self.update(0.0)

    def update(self, percent: float) -> None:
        """Show `percent`, where it differs enough from what was shown before."""
        percent = min(max(percent, 0.0), 100.0)
        if not self.enabled or (0 < percent < 100 and self._shown <= percent <= self._shown + self._step):
            return
        self._shown = percent
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=percent, refresh=True)
        else:
            sys.stdout.write(f"    ({percent:.2f}/100%)\r")
            sys.stdout.flush()

    def part(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self.enabled and total:
            self.update(100.0 * done / total)

    def close(self) -> None:
        """End the line of the progress."""
        if not self.enabled:
            return
        self.enabled = False
        if self._bar is not None:
            self._bar.stop()
        else:
            sys.stdout.write("\n")
            sys.stdout.flush()


def _make_bar() -> RichProgress | None:
    try:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
    except ImportError:
        return None
    bar = Progress(
        BarColumn(), TaskProgressColumn("{task.percentage:6.2f}%"), TimeRemainingColumn(), auto_refresh=False
    )
    bar.start()
    return bar


def discard_output() -> None:
    """Let what is still to be printed go nowhere: the reader has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
