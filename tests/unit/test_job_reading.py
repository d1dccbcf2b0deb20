"""How jobs read: ahead of what they write where that passes nobody by, by the host, and in turns with the guest."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm import native
from pyvm.block import spans
from pyvm.block.context import InlineContext, IoContext, Work
from pyvm.block.create import create_image
from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.filter import FilterNode
from pyvm.block.drivers.raw import RawNode
from pyvm.block.jobs.read_ahead import CopyError, ReadAhead, bounded_look
from pyvm.block.jobs.waits import Io
from pyvm.block.vectors import Buffers
from tests.unit.block_rig import SIZE
from tests.unit.job_rig import JobDisks

PIECE = 64 << 10


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    made.add("raw", made.raw("s.raw"))
    made.add("qcow2", made.qcow2("s.qcow2"), "qcow2")
    made.add("t", made.raw("t.raw"))
    generator = random.Random(1)
    for offset in range(0, SIZE, 4 * PIECE):
        data = generator.randbytes(2 * PIECE)
        for name in ("raw", "qcow2"):
            made.write(name, offset, data)
    yield made
    made.close()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.fixture(autouse=True)
def nobody_reads() -> None:
    """Begin when the threads of the tests before have come to their ends."""
    for thread in readers():
        thread.join(60)


def through(ahead: ReadAhead, node: Any) -> bytes:
    found = bytearray()
    while len(found) < SIZE:
        offset = len(found)
        length = min(ahead.status(node, offset, SIZE).length, PIECE)
        found += ahead.read(node, offset, length, SIZE)
    return bytes(found)


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_what_is_read_ahead_is_what_is_there(disks: JobDisks, name: str) -> None:
    node = disks.storage.graph.nodes[name]
    ahead = ReadAhead()
    assert through(ahead, node) == disks.read(name, 0, SIZE)
    assert len(readers()) == 1
    ahead.status(node, 0, PIECE)
    ahead.read(node, 0, PIECE, SIZE)
    assert bytes(ahead.read(node, 7 * 512, 512, SIZE)) == disks.read(name, 7 * 512, 512)
    ahead.close()
    for thread in readers():
        thread.join(60)
    assert not readers()


def test_a_turn_ends_what_was_read_ahead(disks: JobDisks) -> None:
    node = disks.storage.graph.nodes["raw"]
    ahead = ReadAhead()
    ahead.status(node, 0, SIZE)
    ahead.read(node, 0, PIECE, SIZE)
    ahead.end_turn()
    disks.write("raw", PIECE, b"new!")
    assert bytes(ahead.read(node, PIECE, 4, SIZE)) == b"new!"
    ahead.close()


class _Counting(FilterNode):
    driver = "counting"

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.reads = 0

    def readv(self, offset: int, buffers: Buffers) -> None:
        self.reads += 1
        super().readv(offset, buffers)


@pytest.mark.parametrize("above", [True, False])
def test_no_filter_is_passed_by(disks: JobDisks, above: bool) -> None:
    file = FileNode(disks.raw("f.raw"))
    file.write(0, b"data" * (SIZE // 4))
    counting = _Counting(RawNode(file) if above else file)
    node = counting if above else RawNode(counting)
    ahead = ReadAhead()
    assert through(ahead, node) == b"data" * (SIZE // 4)
    assert counting.reads == SIZE // PIECE
    ahead.close()
    node.release()


def test_an_error_is_met_where_the_data_is_wanted(disks: JobDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    node = disks.storage.graph.nodes["raw"]
    read = FileNode.readv

    def broken(self: FileNode, offset: int, buffers: Buffers) -> None:
        if offset == PIECE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        read(self, offset, buffers)

    monkeypatch.setattr(FileNode, "readv", broken)
    ahead = ReadAhead()
    ahead.status(node, 0, SIZE)
    ahead.read(node, 0, PIECE, SIZE)
    with pytest.raises(OSError, match="Input/output error"):
        ahead.read(node, PIECE, PIECE, SIZE)
    ahead.close()


# ---- How far a job looks at a time


def test_a_look_is_bounded_by_the_smallest_clusters(disks: JobDisks) -> None:
    made = disks.storage.graph.nodes
    assert bounded_look(made["raw"], 1 << 40) == 1 << 40
    assert bounded_look(made["qcow2"], 1 << 40) == 4096 * made["qcow2"].cluster_size
    assert bounded_look(made["qcow2"], 512) == 512
    path = str(disks.folder / "small.qcow2")
    create_image(path, "qcow2", SIZE, {"cluster_size": "512"}, disks.qcow2("below.qcow2"), "qcow2", announce=None)
    disks.add("small", path, "qcow2")
    assert bounded_look(made["small"], 1 << 40) == 4096 * 512


@pytest.mark.parametrize("command", ["blockdev-mirror", "blockdev-backup"])
def test_what_is_looked_at_in_many_pieces_is_copied(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked: list[int] = []

    def short(node: Any, length: int) -> int:
        asked.append(min(length, PIECE // 2))
        return asked[-1]

    for name in ("mirror", "backup", "read_ahead"):
        monkeypatch.setattr(f"pyvm.block.jobs.{name}.bounded_look", short)
    monkeypatch.setattr("pyvm.block.jobs.mirror._LOOK_NS", 0)
    disks.run(command, job_id="j", device="qcow2", target="t", sync="top")
    disks.wait("BLOCK_JOB_READY" if command == "blockdev-mirror" else "j:null")
    assert len(asked) > 3 * SIZE // (4 * PIECE)
    assert disks.read("t", 0, SIZE) == disks.read("qcow2", 0, SIZE)


# ---- x-perf


def backup(disks: JobDisks, **perf: object) -> None:
    wire = {key.replace("_", "-"): value for key, value in perf.items()}
    disks.run("blockdev-backup", job_id="b", device="raw", target="t", sync="full", x_perf=wire)
    disks.wait("b:null")
    assert "error" not in disks.event("BLOCK_JOB_COMPLETED")
    assert disks.read("t", 0, SIZE) == disks.read("raw", 0, SIZE)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_host_copies_where_it_is_to(disks: JobDisks, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    copied: list[int] = []
    copy = os.copy_file_range

    def counting(source: int, target: int, count: int, *offsets: int) -> int:
        copied.append(copy(source, target, count, *offsets))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", counting)
    backup(disks, use_copy_range=wanted)
    assert sum(copied) == (SIZE if wanted else 0)


def test_where_the_host_cannot_copy_the_job_does(disks: JobDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(*arguments: int) -> int:
        calls.append(0)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    backup(disks, use_copy_range=True)
    assert len(calls) == 1


@pytest.mark.parametrize(("chunk", "longest"), [(PIECE, PIECE), (0, SIZE)])
def test_no_copy_is_longer_than_wanted(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch, chunk: int, longest: int
) -> None:
    written: list[int] = []
    write = RawNode.writev

    def noting(self: RawNode, offset: int, buffers: Buffers) -> None:
        written.append(sum(map(len, buffers)))
        write(self, offset, buffers)

    monkeypatch.setattr(RawNode, "writev", noting)
    backup(disks, max_chunk=chunk)
    assert max(written) == longest


@pytest.mark.parametrize(("workers", "ahead"), [(1, False), (2, True)])
def test_one_worker_does_one_thing_at_a_time(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch, workers: int, ahead: bool
) -> None:
    began: list[int] = []
    monkeypatch.setattr(spans, "splice", no_splice)
    monkeypatch.setattr("pyvm.block.jobs.read_ahead._Reader.begin", lambda self, file, offset, view: began.append(0))
    monkeypatch.setattr("pyvm.block.jobs.read_ahead._Reader.wait", lambda self: False)
    backup(disks, max_workers=workers, max_chunk=PIECE)
    assert bool(began) == ahead


# ---- Copies by the host


def no_splice(*_: object, **__: object) -> int:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def copied(source: Any, target: Any, ahead: ReadAhead, length: int = PIECE) -> None:
    """Copy all of `source`, as a job does."""
    offset = 0
    while offset < SIZE:
        extent = ahead.status(source, offset, SIZE - offset)
        count = min(extent.length, length)
        if extent.data and not extent.zero:
            ahead.copy(source, offset, count, SIZE, target)
        offset += count


@pytest.mark.parametrize("name", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("length", [PIECE, 3 * 4096 + 512])
def test_files_are_copied_by_the_host(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, length: int
) -> None:
    if name == kind == "raw":
        monkeypatch.setattr(FileNode, "readv", lambda *_: pytest.fail("data was read"))
    made = disks.raw("u.raw") if kind == "raw" else disks.qcow2("u.qcow2")
    disks.add("u", made, kind)
    nodes = disks.storage.graph.nodes
    ahead = ReadAhead()
    copied(nodes[name], nodes["u"], ahead, length)
    assert not readers()
    ahead.close()
    monkeypatch.undo()
    assert disks.read("u", 0, SIZE) == disks.read(name, 0, SIZE)


def test_where_the_host_cannot_copy_so_the_data_is_read(disks: JobDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(spans, "splice", lambda *_, **__: calls.append(0) or no_splice())
    nodes = disks.storage.graph.nodes
    ahead = ReadAhead()
    copied(nodes["raw"], nodes["t"], ahead)
    ahead.close()
    assert len(calls) == 1
    assert disks.read("t", 0, SIZE) == disks.read("raw", 0, SIZE)


@pytest.mark.parametrize("of_read", [True, False])
def test_it_is_known_which_side_of_a_copy_failed(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch, of_read: bool
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spans, "splice", full)
    monkeypatch.setattr(os, "preadv" if of_read else "pwritev", full)
    nodes = disks.storage.graph.nodes
    ahead = ReadAhead()
    ahead.enabled = False
    ahead.status(nodes["raw"], 0, SIZE)
    with pytest.raises(CopyError) as caught:
        ahead.copy(nodes["raw"], 0, PIECE, SIZE, nodes["t"])
    assert (caught.value.error.errno, caught.value.of_read) == (errno.ENOSPC, of_read)
    ahead.close()


def test_pieces_are_larger_where_the_host_is_quick_and_nobody_waits(
    disks: JobDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, takes = 0, 0

    def splice(*arguments: int) -> int:
        nonlocal now
        now += takes
        return native.splice(*arguments)

    monkeypatch.setattr(spans, "splice", splice)
    monkeypatch.setattr("pyvm.block.jobs.read_ahead.monotonic_ns", lambda: now)
    nodes = disks.storage.graph.nodes
    ahead = ReadAhead()
    now = 10**9
    found = [ahead.in_bulk]
    for cost in (10**5, 10**9, 0):
        takes = cost
        copied(nodes["raw"], nodes["t"], ahead)
        found.append(ahead.in_bulk)
    ahead.end_turn()
    found.append(ahead.in_bulk)
    ahead.end_turn(True)
    found.append(ahead.in_bulk)
    now += 10**8
    found.append(ahead.in_bulk)
    nodes["t"].detect_zeroes = "on"
    copied(nodes["raw"], nodes["t"], ahead)
    found.append(ahead.in_bulk)
    ahead.close()
    assert found == [False, True, False, True, True, False, True, False]


def test_who_looks_at_data_gets_it(disks: JobDisks) -> None:
    nodes = disks.storage.graph.nodes
    nodes["t"].detect_zeroes = "on"
    ahead = ReadAhead()
    copied(nodes["raw"], nodes["t"], ahead)
    assert readers()
    ahead.close()
    assert disks.read("t", 0, SIZE) == disks.read("raw", 0, SIZE)


# ---- Turns


class _Host:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def call_soon(self, function: Any, *arguments: Any) -> None:
        self.calls.append(lambda: function(*arguments))


class _Job:
    pauses = 0
    stopping = False

    def __init__(self) -> None:
        self.host = _Host()
        self.ends: list[tuple[list[Any], Exception | None]] = []

    def proceed(self, results: list[Any], error: Exception | None) -> None:
        self.ends.append((results, error))


class _Note(Work):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def run(self) -> None:
        self.log.append("guest")

    def fail(self) -> None:
        raise AssertionError

    def complete(self) -> None:
        self.log.append("told")


def take(steps: int, at: dict[int, Any], log: list[str], context: InlineContext, job: _Job) -> None:
    def step(number: int) -> Any:
        def run() -> int:
            log.append(str(number))
            at.get(number, lambda: None)()
            return number

        return run

    io = Io(
        context,
        [step(number) for number in range(steps)],
        lambda contended: log.append("yield" if contended else "end"),
    )
    io.begin(job)  # type: ignore[arg-type]
    while job.host.calls:
        job.host.calls.pop(0)()


def test_steps_follow_one_another_until_the_guest_comes() -> None:
    log: list[str] = []
    context, job = InlineContext(), _Job()
    take(4, {1: lambda: context.submit(_Note(log))}, log, context, job)
    assert log == ["0", "1", "yield", "guest", "told", "2", "3", "end"]
    assert job.ends == [([0, 1, 2, 3], None)]


class _Long(_Note):
    @property
    def takes_long(self) -> bool:
        return True

    def run(self) -> None:
        self.log.append("turn")


def test_the_guest_is_told_before_a_turn_begins() -> None:
    log: list[str] = []
    machine_lock = threading.RLock()
    context = IoContext(machine_lock)
    with machine_lock, context.lock:
        for work in (_Note(log), _Note(log), _Long(log)):
            context.submit(work)
        context.settle(lambda: False)
        context.close()
    assert log == ["guest", "guest", "told", "told", "turn", "told"]


def test_a_pause_ends_a_turn() -> None:
    log: list[str] = []
    job = _Job()
    take(4, {1: lambda: setattr(job, "pauses", 1)}, log, InlineContext(), job)
    assert log == ["0", "1", "end"]
    assert job.ends == [([0, 1], None)]


def test_the_first_error_is_the_last_step() -> None:
    log: list[str] = []
    job, error = _Job(), OSError(errno.EIO, "broken")

    def fail() -> None:
        raise error

    take(4, {2: fail}, log, InlineContext(), job)
    assert log == ["0", "1", "2", "end"]
    assert job.ends == [([0, 1], error)]


def test_a_job_does_not_wait_for_large_modules() -> None:
    code = "import sys, pyvm.block.jobs.mirror, pyvm.block.jobs.backup; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
