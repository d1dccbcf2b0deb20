"""The QMP conversation: what a client sends and what it gets.  Expected replies are QEMU 7.2's to the same bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvm
from pyvm.json.writer import encode
from pyvm.monitor import qmp
from pyvm.monitor.dispatcher import Dispatcher, load_handler
from pyvm.monitor.errors import QmpError
from pyvm.monitor.qmp import QmpMonitor, SessionState
from pyvm.monitor.registry import Context
from pyvm.monitor.schema.model import Command, Schema
from tests.unit.monitor_support import STAMP, Bench

STATUS = b'{"status": "prelaunch", "singlestep": false, "running": false}'
EXPECTING = "CommandNotFound: Expecting capabilities negotiation with 'qmp_capabilities'"


# ---- Greeting and negotiation


def test_greeting() -> None:
    greeting = Bench().client(negotiate=False).greeting
    package = json.dumps(f"pyvm {pyvm.__version__}")
    assert greeting.decode() == (
        '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ' + package + "}, "
        '"capabilities": ["oob"]}}\r\n'
    )


def test_negotiation() -> None:
    client = Bench().client(negotiate=False)
    assert client.error("query-status") == EXPECTING
    assert client.error("nope") == EXPECTING
    assert client.error("qmp_capabilities", {"enable": "oob"}) == (
        "Invalid parameter type for 'enable', expected: array"
    )
    assert client.error("qmp_capabilities", {"enable": ["bogus"]}) == "Parameter 'null' does not accept value 'bogus'"
    assert client.error("qmp_capabilities", {"enable": [5]}) == (
        "Invalid parameter type for 'enable[0]', expected: string"
    )
    assert client.error("qmp_capabilities", {"x": 1}) == "Parameter 'x' is unexpected"
    session = client.monitor.session
    assert session is not None
    assert session.state is SessionState.NEGOTIATION
    assert client.execute("qmp_capabilities", enable=[]) == {}
    assert session.state is SessionState.COMMAND
    assert client.error("qmp_capabilities") == (
        "CommandNotFound: Capabilities negotiation is already complete, command ignored"
    )
    assert client.execute("query-status")["status"] == "prelaunch"


def test_no_events_before_negotiation() -> None:
    bench = Bench()
    client = bench.client(negotiate=False)
    bench.machine.powerdown()
    assert client.take() == b""


def test_a_monitor_may_not_offer_oob() -> None:
    client = Bench().client(negotiate=False, offer_oob=False)
    assert json.loads(client.greeting)["QMP"]["capabilities"] == []
    assert client.error("qmp_capabilities", {"enable": ["oob"]}) == "Capability oob not available"
    assert client.execute("qmp_capabilities") == {}


# ---- Requests


@pytest.mark.parametrize(
    ("request_text", "returned_id"),
    [
        (b'{"execute":"query-status"}\n', b""),
        (b'{"execute":"query-status"}', b""),
        (b'{"execute":"query-status","arguments":{}}', b""),
        (b"{'execute':'query-status','id':7}", b', "id": 7'),
        (b'{"execute":"query-status","id":null}', b', "id": null'),
        (b'{"execute":"query-status","id":{"b":[1,{}],"a":""}}', b', "id": {"a": "", "b": [1, {}]}'),
        (b'{"execute":"query-status","id":18446744073709551616}', b', "id": 1.8446744073709552e+19'),
    ],
)
def test_replies(request_text: bytes, returned_id: bytes) -> None:
    assert Bench().client().raw(request_text) == b'{"return": %s%s}\r\n' % (STATUS, returned_id)


def test_an_unknown_command() -> None:
    client = Bench().client()
    assert client.error("nope") == "CommandNotFound: The command nope has not been found"
    assert client.error("Query-status") == "CommandNotFound: The command Query-status has not been found"
    assert client.error("") == "CommandNotFound: The command  has not been found"


@pytest.mark.parametrize(
    ("request_text", "description"),
    [
        (b"[]", "QMP input must be a JSON object"),
        (b"5\n", "QMP input must be a JSON object"),
        (b"null\n", "QMP input must be a JSON object"),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"execute":5}', "QMP input member 'execute' must be a string"),
        (b'{"execute":null}', "QMP input member 'execute' must be a string"),
        (b'{"execute":"query-status","x":1}', "QMP input member 'x' is unexpected"),
        (b'{"execute":"query-status","foo":1,"bar":2}', "QMP input member 'bar' is unexpected"),
        (b'{"execute":1,"foo":1,"bar":2}', "QMP input member 'bar' is unexpected"),
        (b'{"execute":"query-status","arguments":[]}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"query-status","arguments":null}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"query-status","exec-oob":"query-status"}', "QMP input member 'exec-oob' is unexpected"),
        (b'{"exec-oob":"query-status"}', "QMP input member 'exec-oob' is unexpected"),
        (b'{"execute":"query-status","arguments":{"x":1}}', "Parameter 'x' is unexpected"),
        (b'{"execute":"balloon"}', "Parameter 'value' is missing"),
        (b'{"execute":"balloon","arguments":{"value":1.0}}', "Invalid parameter type for 'value', expected: integer"),
        (b'{"execute":"query-status",}', "JSON parse error, expecting value"),
        (b"\xff", "JSON parse error, stray '\ufffd'"),
    ],
)
def test_bad_requests(request_text: bytes, description: str) -> None:
    client = Bench().client()
    message = {"error": {"class": "GenericError", "desc": description}}
    assert client.raw(request_text) == encode(message)
    assert client.execute("query-name") == {}


def test_an_error_keeps_the_id_in_front() -> None:
    client = Bench().client()
    assert client.raw(b'{"id":3}').startswith(b'{"id": 3, "error": ')
    assert client.raw(b'{"exec-oob":"query-status","id":1}').startswith(b'{"id": 1, "error": ')


def test_commands_before_the_machine_exists() -> None:
    bench = Bench()
    bench.machine.initialized = False
    client = bench.client()
    assert client.execute("query-status")["status"] == "prelaunch"
    assert client.error("cont") == "The command 'cont' is permitted only after machine initialization has completed"
    assert client.error("cont", {"x": 1}).startswith("The command 'cont' is permitted only after")
    bench.machine.initialized = True
    assert client.error("cont", {"x": 1}) == "Parameter 'x' is unexpected"


def test_requests_are_answered_in_their_order() -> None:
    client = Bench().client()
    requests = b"".join(b'{"execute":"query-name","id":%d}%s' % (n, b"\n" * (n % 2)) for n in range(100))
    assert [json.loads(line)["id"] for line in client.raw(requests).splitlines()] == list(range(100))
    client.send(b'{"execute":"query-')
    assert client.take() == b""
    assert client.raw(b'name","id":1}') == b'{"return": {}, "id": 1}\r\n'


def test_an_error_comes_in_its_place() -> None:
    output = Bench().client().raw(b'{"execute":"query-name","id":1}[}{"execute":"query-name","id":2}')
    assert [json.loads(line).get("id") for line in output.splitlines()] == [1, None, 2]


def test_pretty() -> None:
    client = Bench().client(negotiate=False, pretty=True)
    assert client.greeting.startswith(b'{\r\n    "QMP": {\r\n        "version": {\r\n')
    assert client.raw(b'{"execute":"qmp_capabilities"}') == b'{\r\n    "return": {\r\n    }\r\n}\r\n'
    client.bench.machine.powerdown()
    assert client.take().endswith(b'    "event": "POWERDOWN"\r\n}\r\n')


# ---- Events


def test_events_reach_all_clients_that_are_ready_in_the_form_each_wants() -> None:
    bench = Bench()
    one, two, pretty = bench.client(), bench.client(), bench.client(pretty=True)
    unready = bench.client(negotiate=False)
    bench.events.emit("VSERPORT_CHANGE", {"id": "port0", "open": True})
    text = f'{{{STAMP}, "event": "VSERPORT_CHANGE", "data": {{"open": true, "id": "port0"}}}}\r\n'
    assert one.take() == two.take() == text.encode()
    assert json.loads(pretty.take()) == json.loads(text)
    assert unready.take() == b""


def test_events_of_one_client_s_command_reach_the_others() -> None:
    bench = Bench()
    one, two = bench.client(), bench.client()
    one.ask({"execute": "cont"})
    assert [message["event"] for message in two.messages()] == ["RESUME"]


def actuals(messages: list[Any]) -> list[int]:
    return [message["data"]["actual"] for message in messages]


def test_a_throttled_event_comes_once_a_second_with_the_last_value() -> None:
    bench = Bench()
    client = bench.client()
    for actual in (1, 2, 3):
        bench.events.emit("BALLOON_CHANGE", {"actual": actual})
    assert actuals(client.messages()) == [1]
    bench.scheduler.advance(0.999)
    assert client.messages() == []
    bench.scheduler.advance(0.002)
    assert actuals(client.messages()) == [3]
    bench.events.emit("BALLOON_CHANGE", {"actual": 4})
    assert client.messages() == []
    bench.scheduler.advance(1)
    assert actuals(client.messages()) == [4]
    bench.scheduler.advance(1)
    bench.events.emit("BALLOON_CHANGE", {"actual": 5})
    assert actuals(client.messages()) == [5]


def test_events_are_throttled_by_what_they_are_about() -> None:
    bench = Bench()
    client = bench.client()
    for port, state in (("a", True), ("b", True), ("a", False), ("b", False), ("b", True)):
        bench.events.emit("VSERPORT_CHANGE", {"id": port, "open": state})
    assert [message["data"]["id"] for message in client.messages()] == ["a", "b"]
    bench.scheduler.advance(1)
    assert [message["data"] for message in client.messages()] == [
        {"id": "a", "open": False},
        {"id": "b", "open": True},
    ]


def test_other_events_are_not_throttled() -> None:
    bench = Bench()
    client = bench.client()
    for _ in range(5):
        bench.machine.powerdown()
    assert len(client.messages()) == 5


# ---- Out-of-band execution and commands that wait

SLOW = """
command qmp_capabilities preconfig
  enable?: [QMPCapability]
enum QMPCapability
  oob
command query-name -> NameInfo
struct NameInfo
  name?: str
command wait -> int
  fail?: bool
command peek -> int oob
"""


class SlowBench(Bench):
    """A monitor with a command that waits for the test, and one that may overtake it."""

    def __init__(self) -> None:
        super().__init__()
        self.peeked = 0
        self.futures: list[asyncio.Future[int]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.dispatcher = Dispatcher(
            self.machine, self.spawned.append, schema=Schema([("control", SLOW)]), find_handler=self.handler
        )

    def handler(self, command: Command) -> Any:
        handlers = {"wait": self.wait, "peek": self.peek, "query-name": lambda context: {}}
        return handlers.get(command.name) or load_handler(command)

    async def wait(self, context: Context, fail: bool | None) -> int:
        future = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        number: int = await future
        if fail:
            raise QmpError("it failed")
        return number

    def peek(self, context: Context) -> int:
        self.peeked += 1
        return self.peeked

    async def settle(self) -> None:
        """Run what was spawned until it waits."""
        for coroutine in self.spawned:
            self.tasks.append(asyncio.get_running_loop().create_task(coroutine))
        self.spawned.clear()
        for _ in range(3):
            await asyncio.sleep(0)
        self.scheduler.run()


def test_a_command_that_waits_holds_back_its_client_s_next_one_and_other_clients() -> None:
    bench = SlowBench()

    async def scenario() -> None:
        one, two = bench.client(), bench.client()
        one.send(b'{"execute":"wait","id":1}{"execute":"query-name","id":2}')
        two.send(b'{"execute":"query-name","id":3}')
        await bench.settle()
        assert one.take() == two.take() == b""
        assert one.monitor.can_receive() == 0
        bench.futures[0].set_result(17)
        await bench.settle()
        assert one.messages() == [{"return": 17, "id": 1}, {"return": {}, "id": 2}]
        assert two.messages() == [{"return": {}, "id": 3}]
        assert one.monitor.can_receive() > 0

    asyncio.run(scenario())


def test_a_waiting_command_can_fail() -> None:
    bench = SlowBench()

    async def scenario() -> None:
        client = bench.client()
        client.send(b'{"execute":"wait","arguments":{"fail":true}}')
        await bench.settle()
        bench.futures[0].set_result(0)
        await bench.settle()
        assert client.messages() == [{"error": {"class": "GenericError", "desc": "it failed"}}]
        client.send(b'{"execute":"wait","id":2}')
        await bench.settle()
        bench.futures[1].set_exception(RuntimeError("broken"))
        await bench.settle()
        (reply,) = client.messages()
        assert reply["error"]["desc"] == "Internal error: RuntimeError: broken"
        assert client.execute("query-name") == {}

    asyncio.run(scenario())


def test_out_of_band_commands_overtake() -> None:
    bench = SlowBench()

    async def scenario() -> None:
        client = bench.client(oob=True)
        client.send(b'{"execute":"wait","id":1}{"execute":"query-name","id":2}{"exec-oob":"peek","id":3}')
        await bench.settle()
        assert client.messages() == [{"return": 1, "id": 3}]
        bench.futures[0].set_result(5)
        await bench.settle()
        assert client.messages() == [{"return": 5, "id": 1}, {"return": {}, "id": 2}]

    asyncio.run(scenario())


def test_with_oob_a_few_requests_queue_and_then_input_waits() -> None:
    bench = SlowBench()

    async def scenario() -> None:
        client = bench.client(oob=True)
        requests = [b'{"execute":"query-name","id":%d}' % number for number in range(20)]
        client.send(b'{"execute":"wait"}' + b"".join(requests) + b'{"exec-oob":"peek"}')
        await bench.settle()
        # The out-of-band request is behind more than the queue takes.
        assert client.monitor.can_receive() == 0
        assert bench.peeked == 0
        bench.futures[0].set_result(5)
        await bench.settle()
        messages = client.messages()
        assert [message.get("id") for message in messages if message != {"return": 1}] == [None, *range(20)]
        assert bench.peeked == 1

    asyncio.run(scenario())


def test_out_of_band_errors() -> None:
    bench = SlowBench()
    client = bench.client(oob=True)

    def error(text: bytes) -> str:
        return str(json.loads(client.raw(text))["error"]["desc"])

    assert error(b'{"exec-oob":"query-name"}') == "The command query-name does not support OOB"
    assert error(b'{"exec-oob":"nope"}') == "The command nope has not been found"
    assert error(b'{"exec-oob":5}') == "QMP input member 'exec-oob' must be a string"
    assert error(b'{"exec-oob":"peek","execute":"peek"}') == "QMP input member 'execute' clashes with 'exec-oob'"
    assert error(b'{"exec-oob":"peek","arguments":{"x":1}}') == "Parameter 'x' is unexpected"
    assert client.raw(b'{"execute":"peek"}') == b'{"return": 1}\r\n'


def test_a_client_that_leaves_while_its_command_waits() -> None:
    bench = SlowBench()

    async def scenario() -> None:
        client, other = bench.client(oob=True), bench.client()
        client.send(b'{"execute":"wait"}{"execute":"query-name","id":"lost"}')
        await bench.settle()
        client.wire.disconnect()
        client.wire.connect()
        assert b'"QMP"' in client.take()
        other.send(b'{"execute":"query-name","id":4}')
        bench.futures[0].set_result(5)
        await bench.settle()
        assert client.take() == b""
        assert other.messages() == [{"return": {}, "id": 4}]
        assert client.execute("qmp_capabilities") == {}

    asyncio.run(scenario())


# ---- Coming and going


def test_the_next_client_finds_nothing_of_the_last() -> None:
    client = Bench().client(oob=True)
    client.send(b'{"execute":"quer')
    client.wire.disconnect()
    assert client.monitor.can_receive() == 0
    client.bench.machine.powerdown()
    assert client.take() == b""
    client.wire.connect()
    assert b'"QMP"' in client.take()
    assert client.error("query-status") == EXPECTING
    assert client.execute("qmp_capabilities") == {}
    assert client.raw(b'{"exec-oob":"query-name"}').endswith(b"'exec-oob' is unexpected\"}}\r\n")


def test_a_thousand_reconnections() -> None:
    bench = Bench()
    client = bench.client()
    for number in range(1000):
        client.wire.disconnect()
        client.wire.connect()
        client.send(b'{"execute":"qmp_capabilities"}{"execute":"query-name"}{"exe'[: 20 + number % 60])
        bench.scheduler.run()
    client.take()
    client.wire.disconnect()
    client.wire.connect()
    assert client.take() == client.greeting


def test_closing_a_monitor_frees_its_device() -> None:
    bench = Bench()
    client = bench.client()
    client.monitor.close()
    bench.machine.powerdown()
    assert client.take() == b""
    assert client.wire.frontend is None
    other = bench.client()
    with pytest.raises(ValueError, match="Device 'qmp' is in use"):
        QmpMonitor(other.wire, bench.dispatcher, bench.events, bench.scheduler)


# ---- Clients that do not behave


def test_a_client_that_never_reads_is_not_listened_to_and_disturbs_nobody() -> None:
    bench = Bench()
    deaf, other = bench.client(), bench.client()
    deaf.wire.room = 1000
    count = 20_000
    deaf.send(b'{"execute":"query-version"}\n' * count)
    bench.scheduler.run()
    assert deaf.monitor.can_receive() == 0
    assert len(deaf.wire.waiting) > 100_000
    assert qmp.OUTPUT_LIMIT < len(deaf.monitor._output) < qmp.OUTPUT_LIMIT + 1000
    assert other.execute("query-status")["status"] == "prelaunch"

    deaf.wire.read_all(1 << 40)
    bench.scheduler.run()
    replies = deaf.take().splitlines()
    assert len(replies) == count
    assert len(set(replies)) == 1


def test_events_for_a_client_that_never_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "EVENT_LIMIT", 10_000)
    bench = Bench()
    deaf, other = bench.client(), bench.client()
    deaf.wire.room = 0
    for _ in range(1000):
        bench.machine.powerdown()
    assert 10_000 < len(deaf.monitor._output) < 10_200
    assert len(other.messages()) == 1000
    deaf.wire.read_all(1 << 40)
    assert all(message["event"] == "POWERDOWN" for message in deaf.messages())
    assert deaf.execute("query-name") == {}


def test_a_slow_reader_gets_everything_in_order() -> None:
    bench = Bench()
    client = bench.client()
    client.wire.room = 0
    client.send(b"".join(b'{"execute":"query-name","id":%d}' % number for number in range(50)))
    bench.scheduler.run()
    while len(client.monitor._output):
        client.wire.read_all(7)
    assert [message["id"] for message in client.messages()] == list(range(50))


def test_a_flood_gives_others_their_turn() -> None:
    bench = Bench()
    client = bench.client()
    client.send(b'{"execute":"query-name"}' * 60)
    assert client.take().count(b"\r\n") == qmp.TURN
    assert client.monitor.can_receive() == 0
    bench.scheduler.run()
    assert client.take().count(b"\r\n") == 60 - qmp.TURN
    assert client.monitor.can_receive() == qmp.CHUNK


def test_a_long_message_gives_others_their_turn() -> None:
    bench = Bench()
    client = bench.client()
    client.send(b'{"execute":"query-name","id":"' + b"x" * 100_000 + b'"}')
    assert len(client.wire.waiting) >= 100_000 - qmp.CHUNK
    bench.scheduler.run()
    assert len(client.messages()[0]["id"]) == 100_000


REQUESTS = st.sampled_from(
    [
        b'{"execute":"query-status","id":1}\n',
        b'{"execute":"cont"}',
        b'{"execute":"stop"}',
        b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}',
        b'{"exec-oob":"query-name","id":[{}]}',
        b'{"execute":"balloon","arguments":{"value":18446744073709551615}}',
        b"{'execute':'query-commands'}",
        b"\xff",
        b"{",
        b"]",
        b"\\",
        b'"',
        b"\n",
    ]
)


@settings(max_examples=60)
@given(
    st.lists(REQUESTS | st.binary(max_size=8), max_size=30),
    st.booleans(),
    st.lists(st.sampled_from(["run", "reconnect", "read", "event"]), max_size=10),
)
def test_a_conversation_never_breaks(pieces: list[bytes], negotiate: bool, happenings: list[str]) -> None:
    bench = Bench()
    client, other = bench.client(negotiate=negotiate), bench.client()
    client.wire.room = 300
    for number, piece in enumerate(pieces):
        client.send(piece)
        happening = happenings[number % len(happenings)] if happenings else "run"
        if happening == "run":
            bench.scheduler.run()
        elif happening == "reconnect":
            client.wire.disconnect()
            client.take()
            client.wire.connect()
        elif happening == "read":
            client.wire.read_all(500)
        else:
            bench.machine.powerdown()
    other.messages()
    assert other.execute("query-name") == {}
    client.wire.read_all(1 << 30)
    bench.scheduler.run()
    for line in client.take().splitlines():
        message = json.loads(line)
        assert len({"QMP", "return", "error", "event"} & set(message)) == 1
