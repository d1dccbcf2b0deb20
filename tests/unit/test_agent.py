"""The agent's client against a scripted peer: synchronisation, connections, answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.agent import (
    AgentClient,
    AgentDisconnected,
    AgentError,
    AgentFailure,
    AgentProtocolError,
    AgentTimeout,
    records,
)
from pyvm.agent.connection import AgentConnection, ConnectionState
from tests.unit.agent_peer import Pairs, Peer


@pytest.fixture
def pair() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


# Synchronisation


def test_the_first_command_synchronises(pair: Pairs) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.ping()
    client.ping()
    assert [request["execute"] for request in peer.requests] == ["guest-sync-delimited", "guest-ping", "guest-ping"]


def test_remains_of_an_earlier_conversation_are_dropped(pair: Pairs) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: 42})
    peer.send(b'{"return": 1}\n{"return": {"half')
    assert client.get_time() == 42


def test_answers_to_another_clients_synchronisation_are_dropped(pair: Pairs) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: 42})
    peer.send(b'\xff{"return": 12345}\n\xffnonsense\n\xff')
    assert client.get_time() == 42


def test_a_late_answer_is_not_taken_for_the_next(pair: Pairs) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: None, "guest-sync": lambda arguments: arguments["id"]})
    with pytest.raises(AgentTimeout):
        client.command("guest-get-time", timeout=0.05)
    peer.send(b'{"return": 99}\n')
    assert client.sync(7) == 7
    assert [request["execute"] for request in peer.requests].count("guest-sync-delimited") == 2


def test_a_late_answer_in_pieces_is_dropped_too(pair: Pairs) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: b'{"ret', "guest-sync": lambda arguments: arguments["id"]})
    with pytest.raises(AgentTimeout):
        client.command("guest-get-time", timeout=0.05)
    peer.send(b'urn": 99}\n')
    assert client.sync(7) == 7


def test_an_agent_that_is_not_there_times_out() -> None:
    ours, theirs = socket.socketpair()
    with theirs, AgentClient(ours) as client:
        with pytest.raises(AgentTimeout):
            client.ping(timeout=0.05)
        with pytest.raises(AgentTimeout, match=r"did not answer within 0\.05 s"):
            client.wait(0.05)


def test_a_request_that_nobody_takes_times_out() -> None:
    ours, theirs = socket.socketpair()
    with theirs, AgentClient(ours) as client, pytest.raises(AgentTimeout):
        client.command("guest-file-write", timeout=0.1, handle=1, buf_b64="A" * (8 << 20))


def test_waiting_for_another_threads_command_times_out(pair: Pairs) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(arguments: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        leave.wait(60)
        return {}

    client, _ = pair({"guest-ping": slow})
    other = threading.Thread(target=client.ping)
    other.start()
    entered.wait(60)
    with pytest.raises(AgentTimeout, match="another thread"):
        client.ping(timeout=0.01)
    leave.set()
    other.join()


def test_threads_take_turns(pair: Pairs) -> None:
    client, _ = pair({"guest-sync": lambda arguments: arguments["id"]})
    wrong: list[int] = []

    def work(first: int) -> None:
        wrong.extend(number for number in range(first, first + 50) if client.sync(number) != number)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Connections


def test_a_given_socket_that_ends_stays_ended(pair: Pairs) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.ping()
    peer.close()
    for _ in range(2):
        with pytest.raises(AgentDisconnected):
            client.ping()


def test_an_address_is_connected_to_again(tmp_path: Path) -> None:
    path = str(tmp_path / "ga.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with AgentClient(f"unix:{path}", timeout=60) as client:
            for _ in range(3):
                accepted: list[Peer] = []

                def accept(peers: list[Peer] = accepted) -> None:
                    peers.append(Peer(listening.accept()[0], {"guest-ping": lambda arguments: {}}))

                thread = threading.Thread(target=accept)
                thread.start()
                client.ping()
                thread.join()
                accepted[0].close()
                with pytest.raises(AgentDisconnected):
                    client.ping()


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    client = AgentClient(str(tmp_path / "none"))
    with pytest.raises(AgentDisconnected, match=r"cannot connect to the agent at .*none: No such file or directory"):
        client.ping()
    with pytest.raises(AgentFailure):
        client.wait(0.1)


def test_tcp_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for address in (f"tcp:127.0.0.1:{port}", ("127.0.0.1", port)):
            with AgentClient(address, timeout=60) as client:
                thread = threading.Thread(target=client.ping)
                thread.start()
                peer = Peer(listening.accept()[0], {"guest-ping": lambda arguments: {}})
                thread.join()
                assert peer.requests[-1]["execute"] == "guest-ping"
            peer.close()


def test_a_closed_client_says_so(pair: Pairs) -> None:
    client, _ = pair()
    client.close()
    with pytest.raises(AgentDisconnected, match="closed"):
        client.ping()


def test_states(pair: Pairs) -> None:
    ours, theirs = socket.socketpair()
    connection = AgentConnection(ours)
    peer = Peer(theirs, {})
    assert connection.state is ConnectionState.UNSYNCHRONISED
    connection.synchronise(10)
    assert connection.state is ConnectionState.READY
    connection.drop()
    assert connection.state is ConnectionState.DISCONNECTED
    connection.close()
    assert connection.state is ConnectionState.CLOSED
    peer.close()


# Answers


def test_errors_have_class_and_description(pair: Pairs) -> None:
    client, _ = pair()
    with pytest.raises(AgentError) as caught:
        client.command("no-such-command")
    assert caught.value.error_class == "CommandNotFound"
    assert caught.value.desc == "The command no-such-command has not been found"
    assert str(caught.value) == "no-such-command: The command no-such-command has not been found"


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[1]\n", b"{}\n", b'{"error": 5}\n', b'{"error": {"desc": 1}}\n'])
def test_nonsense_is_refused_and_recovered_from(pair: Pairs, answer: bytes) -> None:
    client, peer = pair({"guest-ping": lambda arguments: answer})
    with pytest.raises(AgentProtocolError):
        client.ping()
    peer.handlers["guest-ping"] = lambda arguments: {}
    client.ping()


def test_answers_of_the_wrong_type_are_refused(pair: Pairs) -> None:
    client, _ = pair(
        {
            "guest-get-time": lambda arguments: "now",
            "guest-get-vcpus": lambda arguments: [{"logical-id": 0}],
            "guest-get-users": lambda arguments: {},
            "guest-get-host-name": lambda arguments: {"host-name": 7},
            "guest-file-read": lambda arguments: {"count": 1, "buf-b64": "!", "eof": False},
        }
    )
    for call, complaint in (
        (client.get_time, "guest-get-time: expected int, got str"),
        (client.get_vcpus, r"guest-get-vcpus\[0\].online is missing"),
        (client.get_users, "guest-get-users: expected a list"),
        (client.get_host_name, "guest-get-host-name.host-name: expected str, got int"),
        (lambda: client.file_read(1), "bad base64"),
    ):
        with pytest.raises(AgentProtocolError, match=complaint):
            call()


def test_silence_after_a_shutdown_is_success(pair: Pairs) -> None:
    client, peer = pair({"guest-shutdown": lambda arguments: None, "guest-ping": lambda arguments: {}})
    client.shutdown("reboot", silence=0.02)
    assert peer.requests[-1] == {"execute": "guest-shutdown", "arguments": {"mode": "reboot"}}
    client.ping()
    with pytest.raises(AgentError, match="suspend-ram has not been found"):
        client.suspend_ram(silence=10)


def test_the_end_of_the_machine_after_a_shutdown_is_success(pair: Pairs) -> None:
    client, peer = pair()
    peer.handlers["guest-shutdown"] = lambda arguments: peer._connection.shutdown(socket.SHUT_RDWR)
    client.shutdown(silence=10)


def test_records_keep_what_they_do_not_know() -> None:
    record = records.GuestTimezone.from_json({"offset": 3600, "zone": "CET", "dst": True})
    assert (record.offset, record.zone, record.raw["dst"]) == (3600, "CET", True)
    assert record == records.GuestTimezone(3600, "CET")


def test_records_go_back_as_they_came() -> None:
    wire = {"logical-id": 1, "online": False}
    assert records.GuestLogicalProcessor.from_json(wire).to_json() == wire


MEMBERS = st.sampled_from(["name", "online", "keys", "disk", "type", "mountpoint"])
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4),
)


@given(ANSWERS)
@settings(max_examples=150)
def test_any_answer_becomes_a_record_or_is_refused(value: Any) -> None:
    for kind in (records.GuestFilesystemInfo, records.GuestAuthorizedKeys, list[records.GuestUser], int, float):
        try:
            records.decode(kind, value, "x")
        except AgentProtocolError:
            pass


@given(st.lists(st.binary(max_size=30), max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_bytes_from_the_guest_are_survived(chunks: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with AgentClient(ours, timeout=60) as client:
        peer = Peer(theirs, {"guest-ping": lambda arguments: {}})
        peer.send(b"".join(chunks))
        client.ping()
        peer.close()
