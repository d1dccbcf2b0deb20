"""The watchdogs i6300esb and ib700 in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.i6300esb import (
    CONFIG_FAST,
    CONFIG_NO_OUTPUT,
    CONFIGURATION,
    LOCK,
    LOCK_ENABLE,
    LOCK_FREE_RUN,
    LOCK_LOCKED,
    PCI_HZ,
    PRELOAD_1,
    PRELOAD_2,
    PRELOAD_MASK,
    RELOAD,
    RELOAD_PING,
    RELOAD_TIMEOUT,
    RELOAD_TIMEOUT_MISPLACED,
    I6300Esb,
    I6300EsbState,
)
from pyvm.devices.ib700 import Ib700, Ib700State
from pyvm.state import StateError

SECOND = 1_000_000_000
TICK = (SECOND << 15) // PCI_HZ
"""Of the slow scale, rounded down."""


class Dog:
    """An i6300esb, and what it did."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.timeouts: list[int] = []
        self.chip = I6300Esb(self.clock, lambda: self.timeouts.append(self.clock.now()))

    def unlocked(self, offset: int, size: int, value: int) -> None:
        """Write a register as its driver does."""
        self.chip.write(RELOAD, 1, 0x80)
        self.chip.write(RELOAD, 1, 0x86)
        self.chip.write(offset, size, value)

    def start(self, first: int, second: int, *, config: int = 0, lock: int = LOCK_ENABLE) -> None:
        """Set both stages, in ticks, and start."""
        self.unlocked(PRELOAD_1, 4, first)
        self.unlocked(PRELOAD_2, 4, second)
        self.chip.config_write(CONFIGURATION, 2, config)
        self.chip.config_write(LOCK, 1, lock)


def test_what_software_finds() -> None:
    chip = Dog().chip
    assert chip.config_read(0, 4) == 0x25AB8086
    assert chip.config_read(9, 2) == 0x8000
    assert chip.config_read(LOCK, 1) == 0
    assert chip.read(RELOAD, 2) == 0


def test_two_stages() -> None:
    dog = Dog()
    dog.start(1000, 500)
    dog.clock.advance(1499 * TICK)
    assert dog.timeouts == []
    dog.clock.advance(3 * TICK)
    assert len(dog.timeouts) == 1
    assert dog.timeouts[0] == (1000 << 15) * SECOND // PCI_HZ + (500 << 15) * SECOND // PCI_HZ
    assert dog.chip.config_read(LOCK, 1) == 0, "it is off until the guest starts it anew"
    dog.clock.advance(100 * SECOND)
    assert len(dog.timeouts) == 1


def test_fast_scale() -> None:
    dog = Dog()
    dog.start(1000, 500, config=CONFIG_FAST)
    dog.clock.advance((1500 << 5) * SECOND // PCI_HZ + 1)
    assert len(dog.timeouts) == 1


def test_a_ping_starts_again() -> None:
    dog = Dog()
    dog.start(1000, 1000)
    for _ in range(5):
        dog.clock.advance(1999 * TICK)
        dog.unlocked(RELOAD, 2, RELOAD_PING)
    assert dog.timeouts == []
    dog.chip.write(RELOAD, 2, RELOAD_PING)  # not unlocked
    dog.clock.advance(2002 * TICK)
    assert len(dog.timeouts) == 1


def test_unlocking_takes_both_values_in_order() -> None:
    dog = Dog()
    for sequence in ((0x86, 0x80), (0x80,), (0x86,)):
        for value in sequence:
            dog.chip.write(RELOAD, 1, value)
        dog.chip.write(PRELOAD_1, 4, 5)
        assert dog.chip.save().preload1 == PRELOAD_MASK
    dog.unlocked(PRELOAD_1, 4, 0xFFF0_0005)
    dog.chip.write(PRELOAD_2, 4, 6)
    assert (dog.chip.save().preload1, dog.chip.save().preload2) == (5, PRELOAD_MASK)


def test_that_it_has_timed_out_survives_a_reset_until_it_is_cleared() -> None:
    dog = Dog()
    dog.start(1, 1)
    dog.clock.advance(SECOND)
    dog.chip.reset()
    assert dog.chip.read(RELOAD, 2) == RELOAD_TIMEOUT | RELOAD_TIMEOUT_MISPLACED
    dog.unlocked(RELOAD, 2, RELOAD_TIMEOUT)
    assert dog.chip.read(RELOAD, 2) == 0


def test_without_output_it_may_run_freely() -> None:
    dog = Dog()
    dog.start(10, 10, config=CONFIG_NO_OUTPUT)
    dog.clock.advance(SECOND)
    assert dog.timeouts == []
    assert dog.chip.save().deadline is None
    dog.chip.reset()
    dog.start(10, 10, config=CONFIG_NO_OUTPUT, lock=LOCK_ENABLE | LOCK_FREE_RUN)
    dog.clock.advance(SECOND)
    assert dog.timeouts == []
    assert dog.chip.save().deadline is not None


def test_stopping_and_the_lock() -> None:
    dog = Dog()
    dog.start(10, 10)
    dog.chip.config_write(LOCK, 1, 0)
    dog.clock.advance(SECOND)
    assert dog.timeouts == []
    dog.chip.config_write(LOCK, 1, LOCK_ENABLE | LOCK_LOCKED)
    dog.chip.config_write(LOCK, 1, 0)
    assert dog.chip.config_read(LOCK, 1) == LOCK_ENABLE | LOCK_LOCKED
    dog.clock.advance(SECOND)
    assert len(dog.timeouts) == 1
    dog.chip.config_write(LOCK, 1, LOCK_ENABLE)
    assert dog.chip.config_read(LOCK, 1) == LOCK_ENABLE, "the lock is gone with the timeout"


def test_saved_in_the_second_stage() -> None:
    dog = Dog()
    dog.start(1000, 1000, lock=LOCK_ENABLE | LOCK_LOCKED)
    dog.clock.advance(1500 * TICK)
    state = I6300EsbState.from_dict(dog.chip.save().to_dict())
    other = Dog(ManualClock(dog.clock.now()))
    other.chip.load(state)
    other.clock.advance(499 * TICK)
    assert other.timeouts == []
    other.clock.advance(3 * TICK)
    assert len(other.timeouts) == 1
    broken = dog.chip.save()
    broken.preload1 = 1 << 20
    with pytest.raises(StateError):
        other.chip.load(broken)
    other.chip.load(Dog().chip.save())
    other.clock.advance(100 * SECOND)
    assert len(other.timeouts) == 1


ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(["config", "write", "read", "time"]),
        st.sampled_from([0, 4, 8, 12, 14, CONFIGURATION, LOCK]),
        st.sampled_from([1, 2, 4]),
        st.one_of(st.sampled_from([0x80, 0x86, 0x100, 0x200, 7, 3]), st.integers(0, 0xFFFF_FFFF)),
    ),
    max_size=60,
)


@settings(max_examples=100)
@given(ACCESSES)
def test_hostile_guest(accesses: list[tuple[str, int, int, int]]) -> None:
    dog = Dog()
    for kind, offset, size, number in accesses:
        value = number & (1 << (8 * size)) - 1
        if kind == "config":
            dog.chip.config_write(offset, size, value)
        elif kind == "write":
            dog.chip.write(offset & 0xF, size, value)
        elif kind == "read":
            assert 0 <= dog.chip.read(offset & 0xF, size) < 1 << (8 * size)
        else:
            dog.clock.advance(min(value, SECOND // 100))
    again = Dog(ManualClock(dog.clock.now()))
    again.chip.load(I6300EsbState.from_dict(dog.chip.save().to_dict()))
    assert again.chip.save() == dog.chip.save()


# ---- ib700


class OldDog:
    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.timeouts: list[int] = []
        self.chip = Ib700(self.clock, lambda: self.timeouts.append(self.clock.now()))


@pytest.mark.parametrize(("value", "seconds"), [(0, 30), (1, 28), (14, 2), (15, 0), (0xF0, 30)])
def test_ib700_timeouts(value: int, seconds: int) -> None:
    dog = OldDog()
    dog.chip.start(0, 1, value)
    dog.clock.advance(max(seconds * SECOND - 1, 0))
    assert dog.timeouts == ([] if seconds else [0])
    dog.clock.advance(1)
    assert dog.timeouts == [seconds * SECOND]
    dog.clock.advance(100 * SECOND)
    assert len(dog.timeouts) == 1


def test_ib700_is_patted_and_stopped() -> None:
    dog = OldDog()
    for _ in range(5):
        dog.chip.start(0, 1, 10)
        dog.clock.advance(9 * SECOND)
    dog.chip.stop(0, 1, 0)
    dog.clock.advance(100 * SECOND)
    dog.chip.start(0, 1, 0)
    dog.chip.reset()
    dog.clock.advance(100 * SECOND)
    assert dog.timeouts == []
    assert dog.chip.read(0, 1) == 0xFF
    dog.chip.start(1, 1, 0)
    dog.clock.advance(100 * SECOND)
    assert dog.timeouts == [], "the ports beside the registers do nothing"


def test_ib700_saved() -> None:
    dog = OldDog()
    dog.chip.start(0, 1, 0)
    dog.clock.advance(20 * SECOND)
    other = OldDog(ManualClock(dog.clock.now()))
    other.chip.load(Ib700State.from_dict(dog.chip.save().to_dict()))
    other.clock.advance(10 * SECOND)
    assert len(other.timeouts) == 1
    other.chip.load(Ib700State())
    with pytest.raises(StateError):
        other.chip.load(Ib700State(-1))
