"""The agent chapter of the benchmarks: what it does with a file in the guest, and that it believes nothing."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from benchmarks.agent_chapter import METRICS, GuestFile, Work
from benchmarks.machine import BenchmarkError


class Agent:
    """A guest with one file."""

    def __init__(self) -> None:
        self.content = bytearray(12)
        self.position = 0
        self.rewinds = 0

    def ask(self, command: str, **arguments: Any) -> Any:
        if command == "guest-file-open":
            return 7
        assert arguments["handle"] == 7
        if command == "guest-file-seek":
            self.position = arguments["offset"]
            self.rewinds += 1
            return {"position": self.position, "eof": False}
        if command == "guest-file-write":
            data = base64.b64decode(arguments["buf_b64"])
            self.content[self.position : self.position + len(data)] = data
            self.position += len(data)
            return {"count": len(data), "eof": False}
        piece = bytes(self.content[self.position : self.position + arguments["count"]])
        self.position += len(piece)
        return {"count": len(piece), "buf-b64": base64.b64encode(piece).decode(), "eof": False}


def test_a_file_is_gone_through_again_and_again() -> None:
    agent = Agent()
    writer = GuestFile(agent.ask, b"hello, world", "w")
    assert [writer.write(5) for _ in range(3)] == [5, 5, 2]
    assert agent.content == b"hello, world"
    assert agent.rewinds == 0
    agent.position = 0
    reader = GuestFile(agent.ask, b"hello, world", "r")
    assert [reader.read(5) for _ in range(7)] == [5, 5, 2, 5, 5, 2, 5]
    assert agent.rewinds == 2


def test_other_data_than_was_written_is_an_error() -> None:
    agent = Agent()
    with pytest.raises(BenchmarkError, match="something else than was written"):
        GuestFile(agent.ask, b"hello, world", "r").read(5)


def test_each_figure_has_its_work() -> None:
    assert all(callable(getattr(Work, metric.name.removeprefix("agent_"))) for metric in METRICS)
