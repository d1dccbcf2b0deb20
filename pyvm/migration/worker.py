"""What both sides of a migration are: a thread of their own, and a state that others are told of."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from pyvm.migration import progress as states


class MigrationThread(ABC):
    """One side of a migration, which is made in the main loop."""

    def __init__(self, name: str, on_status: Callable[[str], None]) -> None:
        """`on_status` is called in the main loop with each new state."""
        self.status = states.SETUP
        self._on_status = on_status
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _enter(self, status: str) -> None:
        self.status = status
        self._on_status(status)

    @abstractmethod
    def _main(self) -> None:
        """Do all of it; in the thread."""
