"""Guest time and the timers on it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvm.clock import Clock, ManualClock, RunningClock, Timer, muldiv


def test_timers_run_in_order_and_once() -> None:
    clock = ManualClock(100)
    ran: list[tuple[str, int]] = []
    for name, deadline in (("b", 300), ("a", 200), ("c", 300), ("past", 50)):
        clock.timer(lambda name=name: ran.append((name, clock.now()))).arm(deadline)
    clock.advance(0)
    assert ran == [("past", 100)]
    clock.advance(199)
    assert ran[1:] == [("a", 200)]
    clock.advance(1)
    assert ran[2:] == [("b", 300), ("c", 300)]
    clock.advance(1000)
    assert len(ran) == 4
    assert clock.now() == 1300


def test_arming_anew_and_cancelling() -> None:
    clock = ManualClock()
    ran: list[int] = []
    timer = clock.timer(lambda: ran.append(clock.now()))
    timer.arm(10)
    timer.arm(20)
    timer.arm(20)
    clock.advance(15)
    assert ran == []
    timer.arm(17)
    clock.advance(100)
    assert ran == [17]
    assert timer.deadline is None
    timer.arm(200)
    timer.cancel()
    assert clock.queue.next_deadline() is None
    timer.arm(200)
    clock.advance(100)
    assert ran == [17, 200]


def test_a_timer_that_arms_itself() -> None:
    clock = ManualClock()
    ran: list[int] = []

    def tick() -> None:
        ran.append(clock.now())
        timer.arm(clock.now() + 10)

    timer = clock.timer(tick)
    timer.arm(10)
    clock.advance(35)
    assert ran == [10, 20, 30]


def test_whoever_sleeps_hears_of_earlier_deadlines_only() -> None:
    clock = ManualClock()
    heard: list[int | None] = []
    clock.queue.on_earlier = lambda: heard.append(clock.queue.next_deadline())
    first, second = clock.timer(lambda: None), clock.timer(lambda: None)
    first.arm(100)
    second.arm(200)
    second.arm(50)
    assert heard == [100, 50]


def test_stale_entries_do_not_pile_up() -> None:
    """A guest that arms a timer ever later leaves no trail of old entries."""
    clock = ManualClock()
    anchor = clock.timer(lambda: None)
    anchor.arm(1)
    timer = clock.timer(lambda: None)
    for deadline in range(10, 20000):
        timer.arm(deadline)
    assert len(clock.queue._heap) < 600
    assert clock.queue.next_deadline() == 1
    anchor.cancel()
    assert clock.queue.next_deadline() == 19999


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 60)), max_size=40), st.integers(1, 20))
def test_any_sequence_against_a_plain_model(steps: list[tuple[int, int | None]], stride: int) -> None:
    clock = ManualClock()
    ran: list[tuple[int, int]] = []
    timers: list[Timer] = [clock.timer(lambda index=index: ran.append((index, clock.now()))) for index in range(5)]
    model: dict[int, int] = {}
    wanted: list[tuple[int, int]] = []
    for count, (index, deadline) in enumerate(steps):
        if deadline is None:
            timers[index].cancel()
            model.pop(index, None)
        else:
            timers[index].arm(deadline)
            model[index] = deadline
        if count % 3 == 2:
            end = clock.now() + stride
            due = sorted((max(at, clock.now()), index) for index, at in model.items() if at <= end)
            wanted += [(index, at) for at, index in due]
            for _, ran_now in due:
                del model[ran_now]
            clock.advance(stride)
    assert sorted(ran, key=lambda entry: (entry[1], entry[0])) == sorted(wanted, key=lambda entry: (entry[1], entry[0]))
    assert [at for _, at in ran] == sorted(at for _, at in ran)


def test_a_running_clock_stops_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    host = 5_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: host)
    clock = RunningClock()
    heard: list[bool] = []
    clock.queue.on_earlier = lambda: heard.append(clock.running)
    assert clock.now() == 0
    clock.start()
    clock.start()
    assert heard == [True]
    host += 70
    assert clock.now() == 70
    assert clock.offset == 70 - host
    clock.stop()
    host += 1000
    clock.stop()
    assert clock.now() == 70
    clock.start()
    host += 5
    assert clock.now() == 75
    clock.set(10_000)
    assert clock.now() == 10_000
    host += 1
    assert clock.now() == 10_001
    clock.stop()
    clock.set(3)
    assert clock.now() == 3


def test_a_bare_clock_has_no_time() -> None:
    with pytest.raises(NotImplementedError):
        Clock().now()


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_muldiv(value: int, numerator: int, denominator: int) -> None:
    result = muldiv(value, numerator, denominator)
    assert result * denominator <= value * numerator < (result + 1) * denominator
