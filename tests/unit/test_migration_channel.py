"""Connections of a migration: whoever waits in one can be torn away from it, and all that is written arrives."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyvm.migration.channel import Channel, ChannelError

SOON = 60.0
MUCH = bytes(range(256)) * (1 << 14)

Pair = tuple[Channel, Channel]


def pipe() -> Pair:
    reader, writer = os.pipe()
    return Channel(reader, "file"), Channel(writer, "file")


def sockets() -> Pair:
    reader, writer = socket.socketpair()
    return Channel(reader.detach(), "socket", two_way=True), Channel(writer.detach(), "socket", two_way=True)


@pytest.fixture(params=[pipe, sockets])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Return both ends of a connection, the reader's first."""
    made: Pair = request.param()
    yield made
    for channel in made:
        channel.close()


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Do something in a thread; return it, and where an error will be."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def fill(channel: Channel, target: memoryview) -> None:
    while len(target):
        count = channel.readinto(target)
        assert count
        target = target[count:]


def test_all_that_is_written_arrives(pair: Pair) -> None:
    reader, writer = pair
    parts = [MUCH[start : start + 4095] for start in range(0, len(MUCH), 4095)]
    thread, errors = in_thread(lambda: writer.writelines([b"", *parts]))
    found = bytearray(len(MUCH))
    fill(reader, memoryview(found))
    thread.join(SOON)
    assert not errors
    assert found == MUCH
    assert writer.sent == len(MUCH)
    writer.close()
    assert reader.readinto(memoryview(bytearray(1))) == 0


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_who_waits_is_torn_away(pair: Pair, early: bool, writes: bool) -> None:
    """Before it waits, or while it does."""
    reader, writer = pair
    channel = writer if writes else reader
    if early:
        channel.abort()
    target = memoryview(bytearray(len(MUCH)))
    thread, errors = in_thread((lambda: channel.write(MUCH)) if writes else lambda: channel.readinto(target))
    if not early:
        time.sleep(0.05)
        assert thread.is_alive()
        channel.abort()
    thread.join(SOON)
    assert not thread.is_alive()
    assert isinstance(errors[0], ChannelError)
    assert "torn down" in str(errors[0])


def test_the_other_side_hangs_up(pair: Pair) -> None:
    reader, writer = pair
    thread, errors = in_thread(lambda: writer.write(MUCH))
    assert reader.readinto(memoryview(bytearray(100))) == 100
    reader.close()
    thread.join(SOON)
    assert str(errors[0]).startswith("[Errno 32] Unable to write to ")
