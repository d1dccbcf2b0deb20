"""The other side of a migration that is none: what it says is limited, and nobody waits for it against his will."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from pyvm.memory import PAGE_SIZE
from pyvm.migration import incoming
from pyvm.migration.channel import Channel
from pyvm.migration.incoming import Incoming
from pyvm.migration.loop_calls import MainLoopCalls
from pyvm.migration.multifd import TOKEN_SIZE, Receivers
from pyvm.migration.outgoing import Outgoing
from pyvm.migration.settings import MigrationSettings
from pyvm.migration.stream import (
    ANSWER_LIMIT,
    FAILED_ANSWER,
    Section,
    StreamError,
    StreamWriter,
    pack_record,
)
from pyvm.migration.transport import Listening, Target, parse_uri

PATIENCE = 60


def pair() -> tuple[socket.socket, Channel]:
    """Return the two ends of a connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    return ours, Channel(theirs.detach(), "socket", two_way=True)


class Guest:
    """A machine with a page of memory that takes anything."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.sections: dict[str, Section] = {}
        self.ended = threading.Event()

    def prepare(self) -> None:
        """Nothing is needed."""

    def memory(self) -> dict[str, memoryview]:
        return {"pc.ram": memoryview(bytearray(PAGE_SIZE))}

    def check_header(self, header: object) -> None:
        """Any machine is right."""

    def load(self, header: object, sections: Mapping[str, Section]) -> None:
        self.sections = dict(sections)

    def arrived(self) -> None:
        self.ended.set()

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.ended.set()


class Wire:
    """A stream over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.write = connection.sendall

    def writelines(self, parts: Iterable[Any]) -> None:
        for part in parts:
            self.write(part)


def call(function: Callable[..., object], *arguments: Any) -> None:
    """Do at once what is to be done in the main loop."""
    function(*arguments)


def come_in(path: str) -> tuple[Guest, Incoming, socket.socket]:
    """Return a machine that waits, and a connection to it."""
    guest = Guest()
    arriving = Incoming(guest, MainLoopCalls(call), Listening(parse_uri(f"unix:{path}"), int), lambda status: None)
    arriving.start()
    source = socket.socket(socket.AF_UNIX)
    source.settimeout(PATIENCE)
    source.connect(path)
    return guest, arriving, source


def header(**values: object) -> dict[str, object]:
    return {"ram": [["pc.ram", PAGE_SIZE]], "page-size": PAGE_SIZE, "answers": False, "channels": 0, **values}


@pytest.mark.parametrize(("limit", "count"), [(1 << 20, 20), (1 << 20, 9)])
def test_state_without_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, limit: int, count: int) -> None:
    monkeypatch.setattr(incoming, "_STATE_LIMIT", limit)
    guest, arriving, source = come_in(str(tmp_path / "s"))
    with source:
        writer = StreamWriter(Wire(source), header())
        try:
            for number in range(count):
                writer.section(Section(str(number), "x" * 100_000))
            writer.end()
        except OSError:
            pass  # it has hung up
        assert guest.ended.wait(PATIENCE)
        arriving.join(PATIENCE)
    assert guest.reasons == (["the source has more state than a machine can have"] if count > 10 else [])
    assert len(guest.sections) == (0 if count > 10 else count)


def test_a_connection_that_does_not_say_what_it_is_can_be_given_up(tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    guest, arriving, source = come_in(path)
    with source, socket.socket(socket.AF_UNIX) as silent:
        StreamWriter(Wire(source), header(channels=1, token=bytes(TOKEN_SIZE)))
        silent.connect(path)
        silent.sendall(b"pyvm")
        receivers = wait_for(lambda: arriving._receivers)
        wait_for(lambda: receivers._coming)
        arriving.abort()
        arriving.join(PATIENCE)
        assert not arriving._thread.is_alive()
        assert guest.reasons == []


def wait_for(get: Callable[[], Any]) -> Any:
    """Return what is there soon."""
    event = threading.Event()
    for _ in range(PATIENCE * 100):
        if (found := get()) is not None:
            return found
        event.wait(0.01)
    raise AssertionError("it has not come")


@pytest.mark.parametrize("said", [b"", b"pyvmchan", b"x" * 28])
def test_a_stranger_is_not_kept(said: bytes) -> None:
    ours, channel = pair()
    with ours:
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        receivers = Receivers([], 1)
        with pytest.raises(StreamError):
            receivers.add(channel, bytes(TOKEN_SIZE))
        assert channel.fileno() == -1
        assert receivers.missing == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"no\x1b[2J\xc2\x9b disk", "the other side failed: no?[2J? disk"),
        (b"x" * ANSWER_LIMIT, "the other side failed: " + "x" * ANSWER_LIMIT),
        (b"x" * (ANSWER_LIMIT + 1), "the other side answered something that makes no sense"),
    ],
)
def test_what_the_other_side_says(answer: bytes, error: str) -> None:
    ours, channel = pair()
    with ours:
        moving = Outgoing(
            Guest(), MainLoopCalls(call), Target("unix", "x"), lambda: channel, MigrationSettings(),  # type: ignore[arg-type]
            lambda status: None, lambda number: None,
        )  # fmt: skip
        ours.sendall(pack_record(FAILED_ANSWER, answer) + answer)
        with pytest.raises(StreamError) as caught:
            moving._hear_answer(channel)
        channel.close()
        assert str(caught.value) == error
