"""Clients that flood, do not read, or send what is long: what they may take from the guest and from others."""

from __future__ import annotations

import json
from typing import Any

from pyvm.json.text import LONG
from pyvm.monitor import qmp
from pyvm.pace import BURST, SHARE, TURN, Pace
from pyvm.runstate import RunState
from tests.unit.monitor_support import Bench, Client

QUERY = b'{"execute":"query-kvm"}\n'


class Hands:
    """Clocks that are set by hand."""

    def __init__(self) -> None:
        self.worked = 0.0
        self.now = 0.0
        self.hurried = True
        self.pace = Pace(lambda: self.hurried, work=lambda: self.worked, now=lambda: self.now)

    def work(self, seconds: float) -> None:
        begun = self.pace.begin()
        self.worked += seconds
        self.now += seconds
        self.pace.charge(begun)


def test_work_is_paid_off() -> None:
    hands = Hands()
    hands.work(BURST)
    assert hands.pace.pause() == 0
    hands.work(0.1)
    pause = hands.pace.pause()
    assert 0.9 * (1 - SHARE) / SHARE * 0.1 < pause < 0.12 / SHARE
    hands.now += pause / 2
    assert 0 < hands.pace.pause() < pause
    hands.now += pause
    assert hands.pace.pause() == 0


def test_nobody_waits_for_a_guest_that_stands_still() -> None:
    hands = Hands()
    hands.hurried = False
    hands.work(10)
    assert hands.pace.pause() == 0


def test_a_turn_has_its_time() -> None:
    hands = Hands()
    begun = hands.pace.begin()
    assert not hands.pace.over(begun)
    hands.worked += TURN * 1.1
    assert hands.pace.over(begun)


def slow_bench(seconds: float) -> tuple[Bench, Hands]:
    """Return a bench on which each command takes so much work."""
    bench = Bench()
    hands = Hands()
    bench.dispatcher.pace = hands.pace
    original = bench.dispatcher._execute

    def execute(client: Any, request: Any) -> Any:
        hands.worked += seconds
        return original(client, request)

    bench.dispatcher._execute = execute  # type: ignore[method-assign]
    return bench, hands


def test_slow_commands_alternate_with_those_of_others() -> None:
    bench, hands = slow_bench(TURN * 2)
    hands.hurried = False
    flooder, other = bench.client(), bench.client()
    flooder.send(QUERY * 10)
    other.send(QUERY)
    assert len(flooder.messages()) == 1
    assert len(other.messages()) == 1
    bench.scheduler.run()
    assert len(flooder.messages()) == 9


def test_a_flood_leaves_time_to_the_guest() -> None:
    bench, hands = slow_bench(BURST * 2)
    client = bench.client()
    hands.now += 1
    bench.scheduler.advance(1)
    client.send(QUERY * 3)
    bench.scheduler.run()
    assert len(client.messages()) == 1
    bench.scheduler.advance(1)
    assert client.messages() == [], "no time has passed on the clock that counts"
    hands.now += 1
    bench.scheduler.advance(1)
    assert len(client.messages()) == 1


def test_the_guest_that_runs_is_what_hurries() -> None:
    bench = Bench()
    pace = bench.dispatcher.pace
    pace._debt = 10.0
    assert pace.pause() == 0
    bench.machine.states.set(RunState.RUNNING)
    assert pace.pause() > 0


def pump(client: Client, room: int) -> None:
    """Let the client read until nothing comes."""
    size = -1
    while len(client.wire.output) != size:
        size = len(client.wire.output)
        client.wire.read_all(room)
        client.bench.scheduler.run()


def test_a_long_id_comes_back_in_turns() -> None:
    bench = Bench()
    client = bench.client()
    identifier = "x\u00e9\n" * LONG
    request = {"execute": "query-name", "id": identifier}
    client.send(json.dumps(request).encode() + b"\n" + QUERY)
    assert client.take() == b"", "the string is still being made"
    bench.scheduler.run()
    pump(client, 1 << 30)
    reply, other = client.messages()
    assert reply == {"return": {}, "id": identifier}
    assert other == {"return": {"enabled": False, "present": False}}


def test_a_long_reply_is_made_as_it_is_taken() -> None:
    bench = Bench()
    client = bench.client(room=None)
    client.wire.room = 100
    identifier = "a" * (64 * LONG)
    client.send(json.dumps({"execute": "query-name", "id": identifier}).encode() + b"\n")
    bench.scheduler.run()
    session: Any = client.monitor.session
    assert len(client.monitor._output._pending) < LONG
    assert session.suspended
    bench.events.emit("POWERDOWN")
    client.wire.waiting += QUERY
    client.wire.accept_input()
    pump(client, 1 << 30)
    reply, event, other = client.messages()
    assert reply["id"] == identifier
    assert event["event"] == "POWERDOWN"
    assert other["return"]["present"] is False


def test_a_long_error_too() -> None:
    client = Bench().client()
    name = "n" * (2 * LONG)
    client.send(b'{"execute":"' + name.encode() + b'","id":"' + b"i" * (2 * LONG) + b'"}\n')
    client.bench.scheduler.run()
    pump(client, 1 << 30)
    (reply,) = client.messages()
    assert reply["error"]["desc"] == f"The command {name} has not been found"
    assert reply["id"] == "i" * (2 * LONG)


def test_a_client_that_leaves_takes_its_long_reply_along() -> None:
    client = Bench().client()
    client.wire.room = 10
    client.send(b'{"execute":"query-name","id":"' + b"i" * (2 * LONG) + b'"}\n')
    client.bench.scheduler.run()
    client.wire.disconnect()
    client.wire.room = None
    client.take()
    client.wire.connect()
    client.bench.scheduler.run()
    (greeting,) = client.messages()
    assert "QMP" in greeting


def test_what_is_wrong_in_a_long_string_is_told() -> None:
    client = Bench().client()
    client.send(b'{"execute":"query-name","id":"' + b"i" * (2 * LONG) + b'\\x"}\n')
    client.bench.scheduler.run()
    (reply,) = client.messages()
    assert reply["error"]["desc"] == "JSON parse error, invalid escape sequence in string"


def test_a_line_for_the_human_monitor_has_an_end() -> None:
    client = Bench().client()
    line = "print " + "1+" * (1 << 20) + "1"
    problem = "The command line is longer than 65536 characters"
    assert client.error("human-monitor-command", {"command-line": line}) == problem


def test_a_client_that_never_reads_is_bounded() -> None:
    bench = Bench()
    client, other = bench.client(), bench.client()
    client.wire.room = 0
    client.send(b'{"execute":"query-commands"}\n' * 1000)
    for _ in range(3000):
        bench.events.emit("POWERDOWN")
        bench.scheduler.run()
    assert len(client.monitor._output) < qmp.EVENT_LIMIT + (1 << 20)
    assert len(client.wire.waiting) > 1000, "the rest waits with the client"
    other.messages()
    assert other.execute("query-name") == {}
