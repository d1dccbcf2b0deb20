"""What the character device tests share: a main loop that runs until something is so, and a front end that records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.clock import RunningClock
from pyvm.mainloop import MainLoop

DEADLINE_SECONDS = 60.0
"""How long a condition may take on a machine that is busy with something else."""


@contextmanager
def running_loop() -> Iterator[MainLoop]:
    """Give a main loop and close it in the end."""
    loop = MainLoop(RunningClock())
    failures: list[str] = []
    loop.loop.set_exception_handler(lambda _, context: failures.append(repr(context.get("exception", context))))
    try:
        yield loop
    finally:
        settle(loop)
        loop.close()
    assert not failures


def run_until(loop: MainLoop, condition: Callable[[], bool]) -> None:
    """Run the loop in this thread until `condition` holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    reached = False

    def look() -> None:
        nonlocal reached
        reached = condition()
        if reached or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.001, look)

    loop.call_soon(look)
    loop.run()
    assert reached, "the condition did not come true"


def settle(loop: MainLoop, turns: int = 5) -> None:
    """Let the loop take up whatever is ready now."""
    left = turns

    def turn() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(turn)
        else:
            loop.stop()

    loop.call_soon(turn)
    loop.run()


def is_quiet(loop: MainLoop) -> bool:
    """Whether the loop, after it took up all that was ready, would sleep: nothing wakes it again and again."""
    settle(loop)
    return loop.loop._epoll.poll(0) == []


class Recorder:
    """A front end that keeps what it hears, takes as much as `room` says, and offers again what was not taken."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.data = bytearray()
        self.log: list[bytes | ChardevEvent] = []
        self.waiting = bytearray()
        self.writables = 0
        self.device: Chardev | None = None

    def attach(self, device: Chardev) -> Recorder:
        self.device = device
        device.attach(self)
        return self

    def can_receive(self) -> int:
        return self.room

    def receive(self, data: bytes) -> None:
        assert 0 < len(data) <= self.room
        self.room -= len(data)
        self.data += data
        if self.log and isinstance(self.log[-1], bytes):
            self.log[-1] += data
        else:
            self.log.append(data)

    def event(self, event: ChardevEvent) -> None:
        self.log.append(event)

    def writable(self) -> None:
        self.writables += 1
        self.send(b"")

    def send(self, data: bytes) -> None:
        """Write, and keep what was not taken for `writable`."""
        assert self.device is not None
        self.waiting += data
        while self.waiting:
            taken = self.device.write(bytes(self.waiting[: 1 << 16]))
            short = taken < min(len(self.waiting), 1 << 16)
            del self.waiting[:taken]
            if short:
                return

    def grant(self, room: int) -> None:
        """Take `room` bytes more."""
        assert self.device is not None
        self.room += room
        self.device.accept_input()

    def events(self) -> list[ChardevEvent]:
        return [entry for entry in self.log if isinstance(entry, ChardevEvent)]
