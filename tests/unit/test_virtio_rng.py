"""virtio-rng: filling buffers, and the limit per period."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.virtio.rng import RngState, VirtioRng
from pyvm.state import StateError
from tests.unit.virtio_driver import Harness, start

MS = 1_000_000


class Source:
    """Hands out counted bytes, `left` of them."""

    def __init__(self, left: int = 1 << 40) -> None:
        self.left = left
        self.asked: list[int] = []

    def __call__(self, count: int) -> bytes:
        self.asked.append(count)
        count = min(count, self.left)
        self.left -= count
        return b"\xa5" * count


def begin(clock: ManualClock, source: Source, **limits: int) -> Harness:
    return start(VirtioRng(clock, source, **limits))


def test_buffers_are_filled() -> None:
    source = Source()
    h = begin(ManualClock(), source)
    buffer = h.rings[0].add(writable=[3, 5])
    h.kick(0)
    assert h.rings[0].collect() == [buffer]
    assert buffer.data(h.memory) == b"\xa5" * 8
    assert source.asked == [8]
    assert h.interrupts == [0]


def test_huge_request_is_answered_in_part() -> None:
    h = begin(ManualClock(), source := Source())
    buffer = h.rings[0].add(writable=[1 << 20])
    h.kick(0)
    h.rings[0].collect()
    assert buffer.written == 65536 == source.asked[0]


def test_empty_source_makes_the_guest_wait() -> None:
    source = Source(0)
    h = begin(ManualClock(), source)
    buffer = h.rings[0].add(writable=[16])
    h.kick(0)
    assert h.rings[0].collect() == []
    source.left = 4
    h.device.source_ready()
    assert h.rings[0].collect() == [buffer]
    assert buffer.written == 4


def test_limit_per_period() -> None:
    clock = ManualClock()
    h = begin(clock, Source(), max_bytes=10, period=100)
    buffers = [h.rings[0].add(writable=[6]) for _ in range(4)]
    h.kick(0)
    assert [buffer.written for buffer in h.rings[0].collect()] == [6, 4]
    clock.advance(100 * MS - 1)
    assert h.rings[0].collect() == []
    clock.advance(1)
    assert h.rings[0].collect() == buffers[2:]
    assert clock.queue.next_deadline() == 200 * MS


def test_state_keeps_the_period() -> None:
    clock = ManualClock()
    h = begin(clock, Source(), max_bytes=10, period=100)
    h.rings[0].add(writable=[10])
    h.kick(0)
    waiting = h.rings[0].add(writable=[10])
    state = RngState.from_dict(h.device.save().to_dict())
    other = VirtioRng(clock, Source(), max_bytes=10, period=100)
    other.attach(h.memory, h.device.offered_features, h.interrupts.append, lambda: None)
    other.load(state)
    h.device.set_status(0)
    h.rings[0].collect()
    clock.advance(100 * MS)
    assert h.rings[0].collect() == [waiting]


def test_inconsistent_states_are_refused() -> None:
    h = begin(ManualClock(), Source(), max_bytes=10)
    state = h.device.save()
    state.quota = 11
    with pytest.raises(StateError, match="quota"):
        h.device.load(state)
    state.quota = 9
    with pytest.raises(StateError, match="period"):
        h.device.load(state)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"period": 0}, "'period' parameter expects a positive integer"),
        ({"max_bytes": 1 << 63}, "'max-bytes' parameter must be non-negative"),
        ({"max_bytes": -1}, "'max-bytes' parameter must be non-negative"),
    ],
)
def test_impossible_limits(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtioRng(ManualClock(), Source(), **limits)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 50),
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2), max_size=30),
    st.integers(0, 300),
)
def test_never_more_than_the_limit(limit: int, requests: list[list[int]], pause: int) -> None:
    clock = ManualClock()
    source = Source()
    h = begin(clock, source, max_bytes=limit, period=100)
    for lengths in requests:
        if len(h.rings[0].outstanding) < 4:
            h.rings[0].add(writable=lengths)
        h.kick(0)
        h.rings[0].collect()
        clock.advance(pause * MS)
    given_out = (1 << 40) - source.left
    assert given_out <= limit * (len(requests) * pause // 100 + 2)
    assert h.device.running
