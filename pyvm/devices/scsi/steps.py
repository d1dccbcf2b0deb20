"""Commands that take several requests to the back end, one after another."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

Done = Callable[[int], None]
"""Takes an errno, or 0."""
Step = Callable[[Done], None]
"""Starts a request, which ends with a call of its argument."""


class Steps:
    """Runs steps in order until one fails, or until `alive` says no; `done` gets the errno, or 0.

    A step may end before it returns, or later; a long row of the first kind is a loop, not a recursion.  What makes
    the steps runs between them, so that it may look at what the one before has brought.
    """

    def __init__(self, steps: Iterator[Step], done: Done, alive: Callable[[], bool]) -> None:
        self._steps = steps
        self._done = done
        self._alive = alive
        self._ready = True
        self._looping = False

    def run(self) -> None:
        """Start."""
        self._looping = True
        while self._ready:
            self._ready = False
            step = next(self._steps, None)
            if step is None:
                self._done(0)
                break
            step(self._step_done)
        self._looping = False

    def _step_done(self, error: int) -> None:
        if not error and not self._alive():
            error = errno.ECANCELED
        if error:
            self._done(error)
            return
        self._ready = True
        if not self._looping:
            self.run()
