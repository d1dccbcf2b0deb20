"""What the real-time clock shows while the machine runs, and after it was stopped."""

from __future__ import annotations

from typing import Any

import pytest

from pyvm.clock import NANOSECONDS, ManualClock
from pyvm.config import RtcConfig
from pyvm.machine.rtc_base import RtcBase

START = 1_700_000_000


class Host:
    """The host's two clocks, and a machine's time beside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.date = START * NANOSECONDS
        self.steady = 5 * NANOSECONDS
        self.clock = ManualClock()
        monkeypatch.setattr("time.time_ns", lambda: self.date)
        monkeypatch.setattr("time.monotonic_ns", lambda: self.steady)
        self.base = RtcBase(RtcConfig(**options), self.clock)
        self.base.about_to_run()

    def pass_time(self, seconds: int, *, running: bool) -> None:
        if not running:
            self.base.stopped()
            self.base.stopped()
        self.date += seconds * NANOSECONDS
        self.steady += seconds * NANOSECONDS
        if running:
            self.clock.advance(seconds * NANOSECONDS)
        else:
            self.base.about_to_run()

    def shown(self) -> int:
        return self.base() + self.clock.now() // NANOSECONDS


@pytest.mark.parametrize("base", ["utc", 86_400])
@pytest.mark.parametrize(("clock", "follows"), [("host", True), ("rt", True), ("vm", False)])
def test_a_stop(monkeypatch: pytest.MonkeyPatch, base: str | int, clock: str, follows: bool) -> None:
    host = Host(monkeypatch, base=base, clock=clock)
    start = START if base == "utc" else 86_400
    assert host.shown() == start
    host.pass_time(10, running=True)
    assert host.shown() == start + 10
    host.pass_time(100, running=False)
    assert host.shown() == start + (110 if follows else 10)
    host.pass_time(10, running=True)
    host.pass_time(100, running=False)
    assert host.shown() == start + (220 if follows else 20)


@pytest.mark.parametrize(("base", "clock", "seen"), [("utc", "host", True), ("utc", "rt", False), (0, "rt", False)])
def test_somebody_sets_the_date_of_the_host(
    monkeypatch: pytest.MonkeyPatch, base: str | int, clock: str, seen: bool
) -> None:
    host = Host(monkeypatch, base=base, clock=clock)
    before = host.shown()
    host.date += 3600 * NANOSECONDS
    host.pass_time(1, running=False)
    assert host.shown() == before + 1 + (3600 if seen else 0)


def test_time_that_the_machine_has_let_pass_itself_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a suspension to RAM."""
    host = Host(monkeypatch, base=1000, clock="host")
    host.base.stopped()
    host.date += 50 * NANOSECONDS
    host.clock.advance(50 * NANOSECONDS)
    host.base.about_to_run()
    assert host.shown() == 1050


def test_a_loaded_machine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, base=1000, clock="host")
    host.clock.advance(500 * NANOSECONDS)  # the clock of the machine that was saved
    host.base.about_to_run()
    assert host.shown() == 1500
