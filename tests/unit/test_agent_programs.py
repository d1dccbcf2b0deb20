"""The agent's client: programs, files and file systems of the guest."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pyvm.agent import AgentError, AgentProtocolError, ExecError, ExecTimeout, records
from tests.unit.agent_peer import Handler, Pairs


@pytest.fixture
def pair() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


def test_run_polls_until_the_program_has_ended(pair: Pairs) -> None:
    states = iter([{"exited": False}, {"exited": True, "exitcode": 3, "out-data": "aGkK", "err-data": "b2g="}])
    client, peer = pair(
        {"guest-exec": lambda arguments: {"pid": 5}, "guest-exec-status": lambda arguments: next(states)}
    )
    result = client.run(["/bin/x", "a b"], input=b"in", env={"A": "1"})
    assert (result.exit_code, result.stdout, result.stderr, result.text, result.ok) == (3, b"hi\n", b"oh", "hi", False)
    assert peer.requests[1]["arguments"] == {
        "path": "/bin/x", "arg": ["a b"], "env": ["A=1"], "input-data": "aW4=", "capture-output": True,
    }  # fmt: skip
    with pytest.raises(ExecError, match=r"^/bin/x a b: exit status 3: oh$"):
        result.check()


def test_run_gives_a_string_to_the_shell(pair: Pairs) -> None:
    client, peer = pair(
        {
            "guest-exec": lambda arguments: {"pid": 5},
            "guest-exec-status": lambda arguments: {"exited": True, "signal": 9},
        }
    )
    result = client.run("echo $X; kill -9 $$")
    assert peer.requests[1]["arguments"]["path"] == "/bin/sh"
    assert peer.requests[1]["arguments"]["arg"] == ["-c", "echo $X; kill -9 $$"]
    assert (result.exit_code, result.signal) == (None, 9)
    with pytest.raises(ExecError, match="signal 9"):
        result.check()


def test_a_program_that_does_not_end(pair: Pairs) -> None:
    client, _ = pair(
        {"guest-exec": lambda arguments: {"pid": 77}, "guest-exec-status": lambda arguments: {"exited": False}}
    )
    with pytest.raises(ExecTimeout) as caught:
        client.run("sleep 1000", timeout=0.02)
    assert caught.value.pid == 77


class GuestFiles:
    """Files of a guest, written in the small pieces that an agent may choose."""

    def __init__(self) -> None:
        self.content = b""
        self.position = 0
        self.open = 0

    def handlers(self) -> dict[str, Handler]:
        return {
            "guest-file-open": self._open,
            "guest-file-close": self._close,
            "guest-file-read": self._read,
            "guest-file-write": self._write,
            "guest-file-flush": lambda arguments: {},
        }

    def _open(self, arguments: dict[str, Any]) -> int:
        self.open += 1
        self.position = 0
        if arguments["mode"] == "w":
            self.content = b""
        return 1000

    def _close(self, arguments: dict[str, Any]) -> dict[str, Any]:
        assert arguments == {"handle": 1000}
        self.open -= 1
        return {}

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        data = self.content[self.position : self.position + min(arguments["count"], 700_000)]
        self.position += len(data)
        encoded = base64.b64encode(data).decode()
        return {"count": len(data), "buf-b64": encoded, "eof": len(data) < arguments["count"]}

    def _write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(arguments["buf-b64"])[:100_001]
        self.content += data
        return {"count": len(data), "eof": False}


def test_whole_files(pair: Pairs) -> None:
    files = GuestFiles()
    client, _ = pair(files.handlers())
    content = os.urandom(1_000_000)
    client.write_file("/f", content)
    assert files.content == content
    assert client.read_file("/f") == content
    assert client.read_file("/f", 300_000) == content[:300_000]
    assert files.open == 0


def test_a_file_is_closed_after_an_error(pair: Pairs) -> None:
    files = GuestFiles()
    client, peer = pair(files.handlers())
    del peer.handlers["guest-file-write"]
    with pytest.raises(AgentError):
        client.write_file("/f", b"x")
    peer.handlers["guest-file-write"] = lambda arguments: {"count": 0, "eof": False}
    with pytest.raises(AgentProtocolError, match="wrote nothing"):
        client.write_file("/f", b"x")
    assert files.open == 0


def test_passwords_and_blocks_are_encoded(pair: Pairs) -> None:
    client, peer = pair(
        {
            "guest-set-user-password": lambda arguments: {},
            "guest-set-memory-blocks": lambda arguments: [{"phys-index": 1, "response": "success"}],
            "guest-set-vcpus": lambda arguments: len(arguments["vcpus"]),
        }
    )
    client.set_user_password("u", "geheim")
    assert peer.requests[-1]["arguments"] == {"username": "u", "password": "Z2VoZWlt", "crypted": False}
    responses = client.set_memory_blocks([records.GuestMemoryBlock(1, False)])
    assert peer.requests[-1]["arguments"] == {"mem-blks": [{"phys-index": 1, "online": False}]}
    assert responses[0].response == "success"
    assert client.set_vcpus([records.GuestLogicalProcessor(1, True)]) == 1


def test_frozen_thaws_whatever_happens(pair: Pairs) -> None:
    client, peer = pair({"guest-fsfreeze-freeze": lambda arguments: 2, "guest-fsfreeze-thaw": lambda arguments: 2})
    counts: list[int] = []

    def fail() -> None:
        with client.frozen() as count:
            counts.append(count)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert counts == [2]
    assert peer.requests[-1]["execute"] == "guest-fsfreeze-thaw"
