"""The agent's client: addresses, and agents that are not the same any more."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.agent import AgentAbsent, AgentClient, AgentRestarted
from pyvm.agent.address import connect
from tests.unit.agent_peer import Pairs, Peer


@pytest.fixture
def pair() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


def serve_vsock(path: Path, answer: bytes) -> tuple[socket.socket, threading.Thread, list[bytes]]:
    """Answer the first line of one client at `path`; what it was ends up in the list."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    lines: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            lines.append(stream.readline())
            connection.sendall(answer)
            for line in stream:
                request = json.loads(line.lstrip(b"\xff"))
                answer_line = json.dumps({"return": request.get("arguments", {}).get("id", {})}).encode() + b"\n"
                connection.sendall((b"\xff" if b"delimited" in line else b"") + answer_line)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener, thread, lines


def test_agent_at_a_port_of_a_virtio_socket(tmp_path: Path) -> None:
    listener, thread, lines = serve_vsock(tmp_path / "vsock", b"OK 1073741824\n")
    with listener, AgentClient(f"vsock:{tmp_path}/vsock:1234", 10) as client:
        assert client.sync(3) == 3
        assert lines == [b"CONNECT 1234\n"]
    thread.join()


@pytest.mark.parametrize("answer", [b"x" * 100, b"NO 5\n"])
def test_nothing_at_the_port(tmp_path: Path, answer: bytes) -> None:
    listener, thread, _ = serve_vsock(tmp_path / "vsock", answer)
    address = f"vsock:{tmp_path}/vsock:99"
    with listener, AgentClient(address, 60) as client, pytest.raises(AgentAbsent, match="nothing listens at port 99"):
        client.ping()
    thread.join()


@pytest.mark.parametrize("address", ["tcp:host:nonsense", "vsock:/tmp/x", "vsock:/tmp/x:y"])
def test_addresses_that_are_none(address: str) -> None:
    with AgentClient(address, 5) as client, pytest.raises(AgentAbsent, match="that is no address"):
        client.ping()


def test_clients_wait_in_line(tmp_path: Path) -> None:
    """As many as the kernel keeps, and the one that comes when those are too many."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path := str(tmp_path / "agent"))
        listener.listen(0)
        with connect(path, 60):
            with pytest.raises(TimeoutError):
                connect(path, 0)
            timer = threading.Timer(0.01, lambda: listener.accept()[0].close())
            timer.start()
            connect(path, 60).close()
            timer.join()


def test_answer_of_another_agent_says_that_the_first_has_gone() -> None:
    ours, theirs = socket.socketpair()
    client, peer = AgentClient(ours, 60, probe=0.02), Peer(theirs, {"guest-get-time": lambda arguments: None})
    with client, pytest.raises(AgentRestarted, match="started anew"):
        client.get_time()
    peer.close()


def test_slow_agent_is_the_same_still() -> None:
    ours, theirs = socket.socketpair()

    def slow(arguments: dict[str, Any]) -> int:
        peer_waits.wait(0.2)
        return 7

    peer_waits = threading.Event()
    client, peer = AgentClient(ours, 60, probe=0.02), Peer(theirs, {"guest-get-time": slow})
    with client:
        assert [client.get_time() for _ in range(3)] == [7, 7, 7]
    peer.close()


def test_arguments_as_they_stand(pair: Pairs) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.execute("guest-ping", {"a_b": None, "c-d": [1]})
    assert peer.requests[-1] == {"execute": "guest-ping", "arguments": {"a_b": None, "c-d": [1]}}
