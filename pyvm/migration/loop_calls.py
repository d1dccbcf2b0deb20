"""How the thread of a migration has something done in the main loop, where alone the machine may be touched."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

from pyvm.errors import ConfigError

_Result = TypeVar("_Result")
_POLL_SECONDS = 0.5


class MachineEndedError(ConfigError):
    """The machine has ended meanwhile: nothing can be done with it any more."""


class MainLoopCalls:
    """Lets the thread of a migration have something done in the main loop."""

    def __init__(self, call_soon: Callable[..., object]) -> None:
        self._call_soon = call_soon
        self._ended = threading.Event()

    def end(self) -> None:
        """Do nothing more for anybody; in the main loop."""
        self._ended.set()

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function in the main loop, and return its result, or raise what it raised."""
        future: concurrent.futures.Future[_Result] = concurrent.futures.Future()

        def run() -> None:
            if self._ended.is_set():
                future.set_exception(MachineEndedError("the machine has ended"))
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                future.set_exception(error)

        try:
            self._call_soon(run)
        except RuntimeError:  # the loop is closed
            raise MachineEndedError("the machine has ended") from None
        while True:
            try:
                return future.result(_POLL_SECONDS)
            except concurrent.futures.TimeoutError:
                if self._ended.is_set():
                    raise MachineEndedError("the machine has ended") from None
