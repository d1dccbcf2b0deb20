"""Jobs that copy to and from an NBD server: several writes on their way, and errors that come to light later."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.jobs.read_ahead import _Reader
from pyvm.block.node import Node
from tests.unit.block_rig import SIZE
from tests.unit.job_rig import JobDisks
from tests.unit.nbd_support import Server

PIECE = 64 << 10
JOBS = ("blockdev-mirror", "blockdev-backup")


class Remote:
    """A disk with data in every other piece, and an empty export of a server."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder / "nbd", SIZE)
        self.disks = JobDisks(folder)
        self.disks.add("s", self.disks.raw("s.raw"))
        generator = random.Random(1)
        for offset in range(0, SIZE, 2 * PIECE):
            self.disks.write("s", offset, generator.randbytes(PIECE))
        self.add("t", self.server)

    def add(self, name: str, server: Server, **options: Any) -> None:
        """Open the export."""
        address = {"type": "unix", "path": str(server.path)}
        file = {"driver": "nbd", "server": address, "export": "disk", **options}
        self.disks.run("blockdev-add", driver="raw", node_name=name, file=file)

    def start(self, command: str, source: str = "s", target: str = "t", **options: Any) -> None:
        """Begin to copy."""
        self.disks.run(command, job_id="j", device=source, target=target, sync="full", **options)

    def end(self, command: str) -> None:
        """Wait until all is copied."""
        self.disks.wait("BLOCK_JOB_READY" if command == "blockdev-mirror" else "j:null")

    @property
    def content(self) -> bytes:
        """What the disk has."""
        return self.disks.read("s", 0, SIZE)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setattr("pyvm.block.jobs.block_job.STEP_BYTES", PIECE)
    made = Remote(tmp_path)
    yield made
    made.server.stop()  # nobody waits for an answer any more
    made.disks.close()


def hold_back(server: Server, wanted: int) -> list[int]:
    """Let the server answer no write before so many have come; return where how many waited is noted."""
    perform, held, most = server.perform, [], [0]

    def hold(command: int, *arguments: Any) -> bytes:
        if command != 1 or most[0] >= wanted:
            return perform(command, *arguments)
        held.append((command, *arguments))
        if len(held) < wanted:
            return b""
        most[0] = len(held)
        return b"".join(perform(*it) for it in held[::-1])

    server.perform = hold  # type: ignore[method-assign]
    return most


@pytest.mark.parametrize("command", JOBS)
def test_several_writes_are_on_their_way(remote: Remote, command: str) -> None:
    most = hold_back(remote.server, 4)
    remote.start(command)
    remote.end(command)
    assert most == [4]
    assert remote.server.data == remote.content


def once(server: Server, number: int, error: int) -> None:
    """Let one write fail."""
    seen: list[int] = []

    def fail(command: int) -> int:
        seen.extend([command] * (command == 1))
        return error if command == 1 and len(seen) == number else 0

    server.fail = fail


@pytest.mark.parametrize("command", JOBS)
def test_what_fails_later_is_copied_again(remote: Remote, command: str) -> None:
    once(remote.server, 3, 28)
    remote.start(command, on_target_error="ignore")
    remote.end(command)
    expected = {"device": "j", "operation": "write", "action": "ignore"}
    assert remote.disks.event("BLOCK_JOB_ERROR") == expected
    assert remote.server.data == remote.content


@pytest.mark.parametrize("command", JOBS)
def test_what_fails_later_stops_the_job(remote: Remote, command: str) -> None:
    once(remote.server, 3, 28)
    remote.start(command, on_target_error="enospc")
    remote.disks.wait("BLOCK_JOB_ERROR", "j:paused")
    (job,) = remote.disks.jobs()
    assert (job["io-status"], job["status"]) == ("nospace", "paused")
    assert job["offset"] < job["len"]
    remote.disks.run("block-job-resume", device="j")
    remote.end(command)
    assert remote.server.data == remote.content


@pytest.mark.parametrize("command", JOBS)
def test_what_fails_later_ends_the_job(remote: Remote, command: str) -> None:
    once(remote.server, 2, 5)
    remote.start(command)
    remote.disks.wait("j:null")
    assert remote.disks.event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"


def test_writes_on_their_way_are_sent_to_a_server_that_is_back(remote: Remote) -> None:
    remote.add("u", remote.server, **{"reconnect-delay": 60})
    once(remote.server, 3, -1)
    remote.start("blockdev-backup", target="u")
    remote.end("blockdev-backup")
    assert "error" not in remote.disks.event("BLOCK_JOB_COMPLETED")
    assert remote.server.data == remote.content


def test_the_server_is_read_ahead(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[int] = []
    begin = _Reader.begin

    def noting(self: _Reader, node: Node, offset: int, view: memoryview) -> None:
        began.append(offset)
        begin(self, node, offset, view)

    monkeypatch.setattr(_Reader, "begin", noting)
    server = Server(tmp_path / "other", SIZE, structured=False)  # it says of nothing that it is zeros
    remote.add("u", server)
    server.data[:] = random.Random(2).randbytes(SIZE)
    remote.start("blockdev-backup", source="u", target="s", x_perf={"max-chunk": PIECE})
    remote.disks.wait("j:null")
    assert len(began) >= SIZE // PIECE // 2
    assert remote.content == server.data
    server.stop()
