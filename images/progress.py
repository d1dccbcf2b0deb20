"""Shows how far a build is: bars on a terminal (where rich is installed), a line for each phase elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """What a build tells while it works."""

    def phase(self, name: str, steps: int) -> Any:
        """Return a context in which some `steps` steps are made; the number is an estimate."""

    def step(self, what: str) -> None:
        """Say that a step of the phase begins, on the thing `what`."""


class _Silent:
    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        yield

    def step(self, what: str) -> None:
        pass


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        print(f"{self._title}: {name}", file=sys.stderr, flush=True)
        yield

    def step(self, what: str) -> None:
        if what:
            print(f"{self._title}:   {what}", file=sys.stderr, flush=True)


class _Bars:
    def __init__(self, title: str, bars: Any) -> None:
        self._title = title
        self._bars = bars
        self._task: Any = None

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        self._task = self._bars.add_task(f"{self._title}: {name}", total=steps, what="")
        yield
        # The number of steps was an estimate: what is done is done.
        task = next(task for task in self._bars.tasks if task.id == self._task)
        self._bars.update(self._task, total=max(task.completed, 1), completed=max(task.completed, 1), what="")

    def step(self, what: str) -> None:
        self._bars.update(self._task, advance=1, what=what)


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Yield something that shows the progress of a build on standard error."""
    if quiet:
        yield _Silent()
        return
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[what]}"),
            )
            with RichProgress(*columns, console=Console(stderr=True)) as bars:
                yield _Bars(title, bars)
            return
    yield _Lines(title)
