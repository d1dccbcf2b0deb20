"""Interrupt lines."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pyvm.irq import IrqLine, SharedIrq, unconnected


def test_only_changes_are_heard() -> None:
    heard: list[bool] = []
    line = IrqLine(heard.append)
    for level in (False, True, True, False, False, True):
        line.set(level)
        assert line.level is level
    assert heard == [True, False, True]


def test_a_pulse_is_one_edge_and_ends_inactive() -> None:
    heard: list[bool] = []
    line = IrqLine(heard.append)
    line.pulse()
    assert heard == [True, False]
    line.set(True)
    line.pulse()
    assert heard == [True, False, True, False]


def test_a_line_to_nowhere() -> None:
    line = unconnected()
    line.pulse()
    line.set(True)
    assert line.level


def test_a_listener_may_drive_the_line_back() -> None:
    heard: list[bool] = []

    def sink(level: bool) -> None:
        heard.append(level)
        if level:
            line.set(False)

    line = IrqLine(sink)
    line.set(True)
    assert heard == [True, False]
    assert not line.level


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_a_shared_input_is_active_while_any_driver_is(steps: list[tuple[int, bool]]) -> None:
    heard: list[bool] = []
    shared = SharedIrq(heard.append)
    drivers = [shared.driver() for _ in range(4)]
    for index, level in steps:
        drivers[index].set(level)
        assert (heard[-1] if heard else False) is any(driver.level for driver in drivers)
    assert all(before is not after for before, after in pairwise(heard))
