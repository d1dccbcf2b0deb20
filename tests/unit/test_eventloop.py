"""The event loop: who is called when, what a cancelled call does, and asyncio's coroutines on it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyvm.eventloop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    lock = threading.RLock()
    loop = EventLoop(lock)
    with lock:
        yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def turn(loop: EventLoop) -> None:
    """Let the loop do what is ready, without sleeping."""
    loop.stop()
    loop.run_forever()


# ---- Calls


def test_calls_are_made_in_order_and_those_they_ask_for_in_the_next_turn(loop: EventLoop) -> None:
    made: list[int] = []

    def first() -> None:
        made.append(1)
        loop.call_soon(made.append, 3)

    loop.call_soon(first)
    loop.call_soon(made.append, 2)
    turn(loop)
    assert made == [1, 2]
    turn(loop)
    assert made == [1, 2, 3]


def test_a_cancelled_call_is_not_made_even_if_it_is_ready(loop: EventLoop) -> None:
    made: list[int] = []
    loop.call_soon(lambda: second.cancel())
    second = loop.call_soon(made.append, 2)
    late = loop.call_later(0, made.append, 3)
    late.cancel()
    turn(loop)
    assert made == []


def test_times_come_in_their_order_and_those_that_are_equal_as_they_were_asked_for(loop: EventLoop) -> None:
    made: list[str] = []
    now = loop.time()
    for when, name in ((now + 0.002, "third"), (now, "first"), (now, "second")):
        loop.call_at(when, made.append, name)
    loop.call_later(0.003, loop.stop)
    loop.run_forever()
    assert made == ["first", "second", "third"]
    assert loop.time() >= now + 0.003


def test_cancelled_timers_are_let_go_although_their_time_is_far(loop: EventLoop) -> None:
    kept = [loop.call_later(1000 + number, print) for number in range(10)]
    for _ in range(5000):
        loop.call_later(3600, print).cancel()
    assert len(loop._timers) < 200
    assert sum(not handle.cancelled() for _, _, handle in loop._timers) == len(kept)


def test_another_thread_wakes_the_loop_which_sleeps_without_the_lock(loop: EventLoop) -> None:
    made: list[int] = []

    def call() -> None:
        with loop._lock:  # only to be had while the loop sleeps
            made.append(1)
        for number in range(2, 5):
            loop.call_soon_threadsafe(made.append, number)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=call)
    thread.start()
    loop.run_forever()
    thread.join()
    assert made == [1, 2, 3, 4]


def test_more_calls_than_the_pipe_has_room_for_wake_ups(loop: EventLoop) -> None:
    room = fcntl.fcntl(loop._wake_output, fcntl.F_SETPIPE_SZ, 4096)
    made: list[int] = []
    for number in range(room + 100):
        loop.call_soon_threadsafe(made.append, number)
    turn(loop)
    assert made == list(range(room + 100))


def test_a_call_that_fails_is_told_of_and_the_loop_goes_on(loop: EventLoop, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []
    loop.call_soon(lambda: 1 // 0)
    loop.call_soon(made.append, 2)
    turn(loop)
    assert made == [2]
    assert "ZeroDivisionError" in capsys.readouterr().err
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    loop.call_soon(lambda: 1 // 0)
    turn(loop)
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert capsys.readouterr().err == ""


def test_an_exit_ends_the_loop_which_can_run_again(loop: EventLoop) -> None:
    made: list[int] = []
    loop.call_soon(lambda: (_ for _ in ()).throw(SystemExit(3)))
    loop.call_soon(made.append, 2)
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert not loop.is_running()
    turn(loop)
    assert made == [2]


def test_a_closed_loop_takes_no_calls(loop: EventLoop) -> None:
    loop.close()
    loop.close()
    for action in (
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.run_forever(),
        lambda: loop.add_reader(0, print),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            action()
    assert loop.remove_reader(0) is False


# ---- Descriptors


def test_readers_and_writers_of_one_descriptor(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    told: list[str] = []
    loop.add_reader(ours.fileno(), told.append, "read")
    loop.add_writer(ours.fileno(), told.append, "write")
    turn(loop)
    assert told == ["write"]
    theirs.send(b"x")
    turn(loop)
    assert sorted(told) == ["read", "write", "write"]
    assert loop.remove_writer(ours.fileno()) is True
    assert loop.remove_writer(ours.fileno()) is False
    told.clear()
    turn(loop)
    assert told == ["read"]
    loop.add_reader(ours.fileno(), told.append, "other")
    told.clear()
    turn(loop)
    assert told == ["other"]
    assert loop.remove_reader(ours.fileno()) is True
    told.clear()
    turn(loop)
    assert told == []


def test_who_only_writes_is_told_that_the_peer_has_gone(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while True:
        try:
            ours.send(bytes(4096))
        except BlockingIOError:
            break
    told: list[str] = []
    loop.add_writer(ours.fileno(), told.append, "write")
    turn(loop)
    assert told == []
    theirs.close()
    turn(loop)
    assert told == ["write"]


def test_a_reader_that_was_removed_in_the_same_turn_is_not_called(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    told: list[int] = []

    def readable(index: int) -> None:
        told.append(index)
        for reading, _ in pipes:
            loop.remove_reader(reading)

    for index, (reading, writing) in enumerate(pipes):
        os.write(writing, b"x")
        loop.add_reader(reading, readable, index)
    turn(loop)
    turn(loop)
    assert len(told) == 1
    for pipe in pipes:
        os.close(pipe[0])
        os.close(pipe[1])


def test_a_descriptor_that_was_closed_first_can_be_removed_and_its_number_used_again(loop: EventLoop) -> None:
    told: list[str] = []
    reading, writing = os.pipe()
    loop.add_reader(reading, told.append, "old")
    os.close(reading)
    assert loop.remove_reader(reading) is True
    again, other = os.pipe()
    assert again == reading
    os.write(other, b"x")
    loop.add_reader(again, told.append, "new")
    turn(loop)
    assert told == ["new"]
    loop.remove_reader(again)
    for fd in (writing, again, other):
        os.close(fd)


def test_what_cannot_be_watched_is_refused_and_leaves_no_trace(loop: EventLoop, tmp_path: os.PathLike[str]) -> None:
    fd = os.open(os.path.join(tmp_path, "file"), os.O_RDWR | os.O_CREAT)
    with pytest.raises(PermissionError):
        loop.add_reader(fd, print)
    assert loop.remove_reader(fd) is False
    os.close(fd)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's matter
        loop.add_writer(fd, print)


# ---- Signals


def test_a_signal_wakes_the_loop_and_has_its_old_meaning_after_it(loop: EventLoop) -> None:
    told: list[str] = []

    def signalled(name: str) -> None:
        told.append(name)
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, signalled, "signal")
    sender = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    loop.run_forever()
    sender.join()
    assert told == ["signal"]
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


# ---- Coroutines


def test_coroutines_sleep_and_wait_as_under_asyncio(loop: EventLoop) -> None:
    async def work() -> str:
        running: object = asyncio.get_running_loop()
        assert running is loop
        started = time.monotonic()
        await asyncio.sleep(0.002)
        assert time.monotonic() - started >= 0.002
        first, second = await asyncio.gather(asyncio.sleep(0, "one"), asyncio.sleep(0.001, "two"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.001)
        return first + second

    assert loop.run_until_complete(work()) == "onetwo"
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_task_that_is_made_while_the_loop_runs(loop: EventLoop) -> None:
    seen: list[object] = []

    async def work() -> None:
        seen.append(asyncio.get_running_loop())
        loop.stop()

    loop.call_soon(lambda: seen.append(loop.create_task(work())))
    loop.run_forever()
    task, running = seen
    assert running is loop
    assert isinstance(task, asyncio.Task)
    assert task.done()


def test_threads_work_without_the_lock_and_their_errors_come_back(loop: EventLoop) -> None:
    def work(value: int) -> int:
        assert loop._lock.acquire(timeout=5)
        loop._lock.release()
        return 10 // value

    async def both() -> int:
        running = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await running.run_in_executor(None, work, 0)
        return await running.run_in_executor(None, work, 5)

    assert loop.run_until_complete(both()) == 2


def test_a_coroutine_that_fails_raises_in_who_waits_for_it(loop: EventLoop) -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        loop.run_until_complete(fail())


def test_a_task_that_nobody_asks_is_told_of(loop: EventLoop) -> None:
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    async def fail() -> None:
        raise LookupError

    task = loop.create_task(fail())
    turn(loop)
    del task
    assert [type(error) for error in told] == [LookupError]
