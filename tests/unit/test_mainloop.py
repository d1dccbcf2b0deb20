"""The main loop: guest timers over a timerfd, calls from other threads, and who holds the lock when."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from typing import Self

import pytest

from pyvm.clock import RunningClock
from pyvm.mainloop import MainLoop, TimerFd

SECONDS = 60


@pytest.fixture
def clock():
    return RunningClock()


@pytest.fixture
def loop(clock: RunningClock):
    loop = MainLoop(clock)
    yield loop
    loop.close()


class Running:
    """A main loop in a thread of its own."""

    def __init__(self, loop: MainLoop) -> None:
        self.loop = loop
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.stop()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


def held_elsewhere(loop: MainLoop) -> bool:
    """Say whether another thread than this one holds the lock."""
    if loop.lock.acquire(blocking=False):
        loop.lock.release()
        return False
    return True


# ---- The timer


def readable(fd: int, seconds: float = 0) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def test_timerfd() -> None:
    timer = TimerFd()
    try:
        assert not readable(timer.fd)
        timer.acknowledge()
        timer.set(time.monotonic_ns() + 3_600_000_000_000)
        assert not readable(timer.fd)
        for past in (time.monotonic_ns() - 5, 1, 0, -10):
            timer.set(past)
            assert readable(timer.fd, SECONDS)
            timer.acknowledge()
            assert not readable(timer.fd)
        timer.set(time.monotonic_ns() + 1_000_000)
        timer.set(None)
        assert not readable(timer.fd, 0.01)
    finally:
        timer.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(timer.fd)


def test_a_guest_timer_runs_in_the_loop_with_the_lock(loop: MainLoop, clock: RunningClock) -> None:
    ran = threading.Event()
    where: list[object] = []

    def callback() -> None:
        where.append((threading.current_thread(), loop.lock._is_owned(), clock.now() >= deadline))  # type: ignore[attr-defined]
        ran.set()

    timer = clock.timer(callback)
    with Running(loop) as running:
        with loop.lock:
            deadline = clock.now() + 2_000_000
            timer.arm(deadline)
            clock.start()
        assert ran.wait(SECONDS)
        assert where == [(running.thread, True, True)]


def test_an_earlier_deadline_from_another_thread_is_kept(loop: MainLoop, clock: RunningClock) -> None:
    ran: list[str] = []
    done = threading.Event()
    late = clock.timer(lambda: ran.append("late"))
    early = clock.timer(lambda: (ran.append("early"), done.set()))
    with Running(loop):
        with loop.lock:
            clock.start()
            late.arm(clock.now() + 3600 * 10**9)
        time.sleep(0.01)  # the loop sleeps now, until the late one is due
        with loop.lock:
            early.arm(clock.now() + 1_000_000)
        assert done.wait(SECONDS)
    assert ran == ["early"]


def test_timers_stand_still_with_the_clock(loop: MainLoop, clock: RunningClock) -> None:
    ran = threading.Event()
    timer = clock.timer(ran.set)
    with Running(loop):
        with loop.lock:
            timer.arm(clock.now() + 1_000_000)
            loop.arm_timers()
        assert not ran.wait(0.02)
        with loop.lock:
            clock.start()
            clock.stop()
            loop.arm_timers()
        assert not ran.wait(0.02)
        with loop.lock:
            clock.start()
        assert ran.wait(SECONDS)


def test_a_timer_that_arms_itself_goes_on(loop: MainLoop, clock: RunningClock) -> None:
    count = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal count
        count += 1
        if count < 50:
            timer.arm(clock.now() + 100_000)
        else:
            done.set()

    timer = clock.timer(tick)
    with Running(loop):
        with loop.lock:
            clock.start()
            timer.arm(clock.now())
        assert done.wait(SECONDS)
    assert count == 50


# ---- Calls and the lock


def test_calls_from_other_threads_arrive_in_order_with_the_lock(loop: MainLoop) -> None:
    calls: list[tuple[int, bool]] = []
    done = threading.Event()
    with Running(loop):
        for number in range(1000):
            loop.call_soon(lambda number=number: calls.append((number, loop.lock._is_owned())))  # type: ignore[attr-defined]
        loop.call_soon(done.set)
        assert done.wait(SECONDS)
    assert calls == [(number, True) for number in range(1000)]


def test_the_lock_is_free_while_the_loop_sleeps_only(loop: MainLoop) -> None:
    inside, leave = threading.Event(), threading.Event()

    def callback() -> None:
        inside.set()
        leave.wait(SECONDS)

    with Running(loop):
        assert loop.lock.acquire(timeout=SECONDS)
        loop.lock.release()
        loop.call_soon(callback)
        assert inside.wait(SECONDS)
        assert held_elsewhere(loop)
        leave.set()
        assert loop.lock.acquire(timeout=SECONDS)
        loop.lock.release()


def test_call_later(loop: MainLoop) -> None:
    done = threading.Event()
    with Running(loop):
        loop.call_soon(lambda: loop.call_later(0.001, done.set))
        assert done.wait(SECONDS)


def test_stop_before_run_and_twice(loop: MainLoop) -> None:
    loop.stop()
    loop.run()
    with Running(loop):
        loop.stop()


# ---- Descriptors


def try_read(end: socket.socket) -> None:
    """Read a byte if there is one."""
    with contextlib.suppress(BlockingIOError):
        end.recv(1)


def test_readers_and_writers_may_be_added_by_other_threads(loop: MainLoop) -> None:
    ours, theirs = socket.socketpair()
    got: list[bytes] = []
    arrived, writable = threading.Event(), threading.Event()

    def read() -> None:
        got.append(ours.recv(10))
        arrived.set()

    def write() -> None:
        loop.remove_writer(ours.fileno())
        writable.set()

    with ours, theirs, Running(loop):
        time.sleep(0.01)  # it sleeps in epoll already
        with loop.lock:
            loop.add_reader(ours.fileno(), read)
            loop.add_writer(ours.fileno(), write)
        assert writable.wait(SECONDS)
        theirs.send(b"hello")
        assert arrived.wait(SECONDS)
        with loop.lock:
            loop.remove_reader(ours.fileno())
        theirs.send(b"more")
        time.sleep(0.01)
        assert got == [b"hello"]


def test_a_descriptor_closed_between_wake_up_and_lock_is_left_out(loop: MainLoop) -> None:
    """The loop wakes for a descriptor while another thread, which has the lock, takes it away and reuses its number."""
    calls: list[str] = []
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with Running(loop):
            with loop.lock:
                loop.add_reader(ours.fileno(), lambda: calls.append("stale"))
                theirs.send(b"x")  # the loop wakes, and waits for the lock
                time.sleep(0.002)
                loop.remove_reader(ours.fileno())
                ours.close()
                other, peer = socket.socketpair()
                other.setblocking(False)  # its reader may be called once for what was there for the old one
                loop.add_reader(other.fileno(), lambda other=other: try_read(other))
            done = threading.Event()
            loop.call_soon(done.set)
            assert done.wait(SECONDS)
            with loop.lock:
                loop.remove_reader(other.fileno())
        for end in (theirs, other, peer):
            end.close()
    assert calls == []


def test_close_gives_descriptors_back(clock: RunningClock) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        MainLoop(clock).close()
    assert len(os.listdir("/proc/self/fd")) == before
