"""Slowing a guest down, with a scheduler whose time is the test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyvm.machine.saved.throttle import Throttle
from pyvm.runstate import RunState, RunStateHolder


class Cpus:
    """vCPUs that run or not; the time that they ran is noted."""

    def __init__(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def go_on(self) -> None:
        self.running = True


class Scheduler:
    """Calls back in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.call_later(0, callback, *args)

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> object:
        self._calls.append((self.now + seconds, callback, args))
        return None

    def run(self, seconds: float, cpus: Cpus) -> float:
        """Let time pass; return for how long the vCPUs ran."""
        end, ran = self.now + seconds, 0.0
        while self._calls and min(call[0] for call in self._calls) <= end:
            call = min(self._calls, key=lambda it: it[0])
            self._calls.remove(call)
            ran += (call[0] - self.now) * cpus.running
            self.now = call[0]
            call[1](*call[2])
        ran += (end - self.now) * cpus.running
        self.now = end
        return ran


@pytest.fixture
def states() -> RunStateHolder:
    holder = RunStateHolder()
    holder.set(RunState.RUNNING)
    return holder


@pytest.mark.parametrize("percentage", [1, 20, 50, 99])
def test_the_guest_runs_for_the_rest_of_the_time(states: RunStateHolder, percentage: int) -> None:
    cpus, scheduler = Cpus(), Scheduler()
    throttle = Throttle(cpus, states, scheduler)  # type: ignore[arg-type]
    throttle.set(percentage)
    assert scheduler.run(100, cpus) == pytest.approx(100 - percentage, abs=1.1)
    throttle.set(0)
    assert cpus.running
    assert scheduler.run(10, cpus) == pytest.approx(10)


def test_it_can_be_changed_and_begun_again(states: RunStateHolder) -> None:
    cpus, scheduler = Cpus(), Scheduler()
    throttle = Throttle(cpus, states, scheduler)  # type: ignore[arg-type]
    throttle.set(20)
    scheduler.run(10, cpus)
    throttle.set(90)
    assert scheduler.run(100, cpus) == pytest.approx(10, abs=1)
    throttle.set(0)
    throttle.set(50)
    assert scheduler.run(100, cpus) == pytest.approx(50, abs=1)


def test_a_guest_that_was_stopped_stays_so(states: RunStateHolder) -> None:
    cpus, scheduler = Cpus(), Scheduler()
    throttle = Throttle(cpus, states, scheduler)  # type: ignore[arg-type]
    throttle.set(50)
    states.set(RunState.PAUSED)
    cpus.running = False
    assert scheduler.run(10, cpus) == 0
    throttle.set(0)
    assert not cpus.running
