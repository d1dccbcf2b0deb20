"""Disks as their devices see them: requests, errors, limits, media."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.accounting import BlockStats, Operation
from pyvm.block.backend import BackendEvents, BlockBackend
from pyvm.block.context import IoContext
from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.raw import RawNode
from pyvm.block.drivers.throttle import ThrottleNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, disk_access
from pyvm.block.throttling import Limits, ThrottleGroup, ThrottleMember
from pyvm.block.vectors import Buffers
from pyvm.clock import ManualClock

SIZE = 1 << 20


class RamNode(Node):
    """A disk in memory that fails when told to."""

    driver = "ram"

    def __init__(self, size: int = SIZE, *, read_only: bool = False) -> None:
        super().__init__("ram", read_only=read_only)
        self.data = bytearray(size)
        self.calls: list[str] = []
        self.errors: dict[str, list[int]] = {}
        """Errors of the next calls, by call."""
        self.barrier: threading.Event | None = None
        self.entered = threading.Event()

    def _begin(self, call: str) -> None:
        self.calls.append(call)
        if self.barrier is not None:
            self.entered.set()
            self.barrier.wait()
        errors = self.errors.get(call)
        if errors and (error := errors.pop(0)):
            raise OSError(error, "told to")

    @property
    def size(self) -> int:
        return len(self.data)

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._begin("read")
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Buffers) -> None:
        self._begin("write")
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        self._begin("flush")

    def discard(self, offset: int, length: int) -> None:
        self._begin("discard")

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._begin("unmap" if unmap else "zero")
        self.data[offset : offset + length] = bytes(length)

    def truncate(self, size: int, *, preallocation: Any = "off", exact: bool = True) -> None:
        self.data = self.data[:size].ljust(size, b"\0")


class Machine:
    """A backend, with everything it says written down."""

    def __init__(self, node: Node | None = None, context: IoContext | None = None, **options: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stops = 0
        self.results: list[int] = []
        events = BackendEvents(emit=lambda name, data: self.events.append((name, data)), stop=self._stop)
        self.backend = BlockBackend(node, context, name="disk0", events=events, **options)

    def _stop(self) -> None:
        self.stops += 1

    def write(self, offset: int, data: bytes) -> None:
        self.backend.write(offset, [memoryview(data)], self.results.append)

    def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        self.backend.read(offset, [memoryview(data)], self.results.append)
        return data

    def taken(self) -> list[int]:
        results = self.results.copy()
        self.results.clear()
        return results


@pytest.fixture
def threaded() -> Iterator[tuple[Callable[..., Machine], Any]]:
    """A way to make machines with a worker thread, and their lock."""
    lock = threading.RLock()
    context = IoContext(lock)
    yield (lambda node, **options: Machine(node, context, **options)), lock
    with lock:
        context.close()
    if context.thread is not None:
        context.thread.join(60)
        assert not context.thread.is_alive()


def test_requests_without_a_thread_are_done_when_they_return() -> None:
    machine = Machine(RamNode())
    machine.write(512, b"a" * 512)
    assert machine.taken() == [0]
    assert machine.read(512, 512) == b"a" * 512
    machine.backend.write_zeroes(512, 512, False, machine.results.append)
    machine.backend.discard(0, 512, machine.results.append)
    machine.backend.flush(machine.results.append)
    assert machine.taken() == [0, 0, 0, 0]
    assert machine.backend.pread(512, 512) == bytes(512)
    machine.backend.pwritev(0, [memoryview(b"x" * 512)])
    assert machine.read(0, 512) == b"x" * 512
    report = machine.backend.stats.report()
    assert (report["wr_operations"], report["wr_bytes"], report["rd_operations"]) == (2, 1024, 2)
    assert (report["flush_operations"], report["unmap_operations"], report["unmap_bytes"]) == (1, 1, 512)
    assert report["wr_highest_offset"] == 1024


def test_a_completion_may_start_the_next_request() -> None:
    machine = Machine(RamNode())
    left = 5000

    def again(error: int) -> None:
        nonlocal left
        assert not error
        left -= 1
        if left:
            machine.backend.write(0, [memoryview(b"n" * 512)], again)

    again(0)
    assert left == 0


@pytest.mark.parametrize(("offset", "length"), [(-512, 512), (SIZE, 512), (SIZE - 512, 1024), (1 << 70, 1)])
def test_nothing_is_outside_of_the_disk(offset: int, length: int) -> None:
    node = RamNode()
    machine = Machine(node)
    done = machine.results.append
    machine.write(offset, bytes(length))
    machine.read(offset, length)
    machine.backend.discard(offset, length, done)
    machine.backend.write_zeroes(offset, length, True, done)
    assert machine.taken() == [errno.EIO] * 4
    assert not node.calls
    assert machine.backend.stats.invalid == [1, 2, 0, 1]
    with pytest.raises(OSError, match="Input/output"):
        machine.backend.pread(offset, length)
    assert not machine.events


def test_a_read_only_disk_is_not_written() -> None:
    for node, options in ((RamNode(read_only=True), {}), (RamNode(), {"read_only": True})):
        machine = Machine(node, **options)
        machine.write(0, bytes(512))
        machine.backend.write_zeroes(0, 512, True, machine.results.append)
        machine.backend.discard(0, 512, machine.results.append)
        machine.read(0, 512)
        assert machine.taken() == [errno.EPERM] * 3 + [0]
        assert node.calls == ["read"]
        with pytest.raises(PermissionError):
            machine.backend.pwritev(0, [memoryview(bytes(512))])


def test_without_a_write_cache_each_write_is_flushed() -> None:
    node = RamNode()
    machine = Machine(node, write_cache=False)
    machine.write(0, b"a" * 512)
    machine.backend.write_zeroes(0, 512, False, machine.results.append)
    machine.backend.discard(0, 512, machine.results.append)
    machine.backend.pwritev(0, [memoryview(b"b" * 512)])
    assert node.calls == ["write", "flush", "zero", "flush", "discard", "write", "flush"]
    node.errors["flush"] = [errno.EIO]
    machine.taken()
    machine.write(0, b"a" * 512)
    assert machine.taken() == [errno.EIO]


@pytest.mark.parametrize(("mode", "call"), [("on", "zero"), ("unmap", "unmap"), ("off", "write")])
def test_zeros_are_detected(mode: Any, call: str) -> None:
    node = RamNode()
    machine = Machine(node, detect_zeroes=mode)
    machine.backend.write(0, [memoryview(bytes(100)), memoryview(bytes(412))], machine.results.append)
    machine.write(0, bytes(70000) + b"1" + bytes(535))
    assert node.calls == [call, "write"]


# ---- Errors


@pytest.mark.parametrize(
    ("policy", "error", "action", "result"),
    [
        ("report", errno.EIO, "report", [errno.EIO]),
        ("ignore", errno.EIO, "ignore", [0]),
        ("stop", errno.EIO, "stop", []),
        ("enospc", errno.EIO, "report", [errno.EIO]),
        ("enospc", errno.ENOSPC, "stop", []),
    ],
)
def test_what_an_error_leads_to(policy: Any, error: int, action: str, result: list[int]) -> None:
    node = RamNode()
    machine = Machine(node, werror=policy)
    machine.backend.io_status_enabled = True
    node.errors["write"] = [error]
    machine.write(0, b"a" * 512)
    assert machine.taken() == result
    assert machine.stops == (action == "stop")
    name, data = machine.events[0]
    assert name == "BLOCK_IO_ERROR"
    assert (data["device"], data["node-name"], data["operation"], data["action"]) == ("disk0", "ram", "write", action)
    assert data.get("nospace") == (error == errno.ENOSPC if policy in ("stop", "enospc") else None)
    assert data["reason"] in ("Input/output error", "No space left on device")
    status = {"stop": {errno.EIO: "failed"}, "enospc": {errno.ENOSPC: "nospace"}}
    assert machine.backend.io_status == status.get(policy, {}).get(error, "ok")
    if action == "stop":
        machine.backend.resume()
        assert machine.taken() == [0]
        assert node.data[:512] == b"a" * 512
        assert machine.backend.io_status == "ok"


def test_reads_have_a_policy_of_their_own() -> None:
    node = RamNode()
    machine = Machine(node, rerror="stop", werror="report")
    node.errors["read"] = [errno.EIO, errno.EIO]
    node.data[:512] = b"r" * 512
    data = machine.read(0, 512)
    assert machine.events[0][1]["operation"] == "read"
    machine.backend.resume()
    assert machine.taken() == []
    assert machine.stops == 2
    machine.backend.resume()
    assert machine.taken() == [0]
    assert data == b"r" * 512


def test_a_full_disk_loses_nothing() -> None:
    node = RamNode()
    machine = Machine(node)
    node.errors["write"] = [0, errno.ENOSPC, 0, errno.ENOSPC]
    for number in range(5):
        machine.write(512 * number, bytes([number + 1]) * 512)
    assert machine.taken() == [0, 0, 0]
    assert len(machine.backend.held) == 2
    machine.backend.drain()
    assert len(machine.backend.held) == 2
    machine.backend.resume()
    assert machine.taken() == [0, 0]
    assert node.data[: 5 * 512] == b"".join(bytes([number + 1]) * 512 for number in range(5))
    assert machine.backend.stats.operations[Operation.WRITE] == 5
    assert machine.backend.stats.failed[Operation.WRITE] == 0


def test_held_requests_can_be_given_up() -> None:
    node = RamNode()
    machine = Machine(node, werror="stop")
    node.errors["flush"] = [errno.EIO]
    machine.backend.flush(machine.results.append)
    assert machine.taken() == []
    machine.backend.drain(cancel=True)
    assert machine.taken() == [errno.ECANCELED]
    machine.backend.resume()
    assert machine.taken() == []


def test_a_broken_driver_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(RamNode):
        def readv(self, offset: int, buffers: Buffers) -> None:
            raise ValueError("a bug")

    machine = Machine(Broken())
    machine.read(0, 512)
    assert machine.taken() == [errno.EIO]
    assert "a bug" in capsys.readouterr().err


# ---- The worker


def test_the_worker_keeps_the_order(threaded: tuple[Callable[..., Machine], Any]) -> None:
    make, lock = threaded
    node = RamNode()
    machine = make(node)
    finished = threading.Event()
    with lock:
        for number in range(100):
            machine.write(0, bytes([number]) * 512)
        machine.backend.flush(lambda error: finished.set())
        assert machine.results == []
    assert finished.wait(60)
    with lock:
        assert machine.results == [0] * 100
        assert node.calls == ["write"] * 100 + ["flush"]
        assert node.data[0] == 99


def test_whoever_drains_helps(threaded: tuple[Callable[..., Machine], Any]) -> None:
    """The worker is in the middle of a request and needs the lock for its end, which is held here."""
    make, lock = threaded
    node = RamNode()
    machine = make(node)
    node.barrier = threading.Event()
    with lock:
        for number in range(3):
            machine.write(512 * number, b"d" * 512)
        assert node.entered.wait(60)
        node.barrier.set()
        machine.backend.drain()
        assert machine.results == [0, 0, 0]
        assert machine.backend.in_flight == 0
        assert machine.backend.pread(1024, 512) == b"d" * 512


def test_a_worker_can_be_closed_while_it_works(threaded: tuple[Callable[..., Machine], Any]) -> None:
    make, lock = threaded
    node = RamNode()
    machine = make(node)
    with lock:
        for _ in range(50):
            machine.write(0, b"c" * 512)
        machine.backend.close()
        assert machine.results == [0] * 50
        assert machine.backend.node is None
        machine.read(0, 512)
        assert machine.results[50:] == [errno.ENOMEDIUM]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wrfzdpe"), st.integers(0, 15), st.integers(0, 255)), max_size=40))
def test_a_worker_does_what_is_asked(steps: list[tuple[str, int, int]]) -> None:
    """Against a model: what is read is what was written before it."""
    lock = threading.RLock()
    context = IoContext(lock)
    node = RamNode(16 * 512)
    machine = Machine(node, context)
    model = bytearray(node.size)
    expected = []
    with lock:
        for kind, sector, value in steps:
            offset = 512 * sector
            if kind == "w":
                machine.write(offset, bytes([value]) * 512)
                model[offset : offset + 512] = bytes([value]) * 512
            elif kind == "z":
                machine.backend.write_zeroes(offset, 512, False, machine.results.append)
                model[offset : offset + 512] = bytes(512)
            elif kind == "r":
                expected.append((machine.read(offset, 512), model[offset : offset + 512]))
            elif kind == "e":
                node.errors.setdefault("write", []).append(0)
            elif kind == "p":
                assert machine.backend.pread(offset, 512) == model[offset : offset + 512]
            else:
                machine.backend.flush(machine.results.append)
        machine.backend.drain()
        assert not any(machine.results)
        for read, wanted in expected:
            assert read == wanted
        assert node.data == model
        context.close()


# ---- Limits


def test_limits_hold_requests_up_but_not_flushes() -> None:
    clock = ManualClock()
    group = ThrottleGroup("g", clock, Limits({"iops-total": 10}))
    machine = Machine(RamNode())
    machine.backend.set_throttle(ThrottleMember(group))
    for _ in range(5):
        machine.write(0, b"t" * 512)
    started = len(machine.results)
    assert 0 < started < 5
    machine.backend.flush(machine.results.append)
    assert len(machine.results) == started + 1
    clock.advance(10**9)
    assert machine.taken() == [0] * 6
    for _ in range(20):
        machine.write(0, b"t" * 512)
    machine.backend.drain()
    assert machine.taken() == [0] * 20


def test_a_filter_right_below_a_disk_lets_the_disk_wait() -> None:
    clock = ManualClock()
    group = ThrottleGroup("g", clock, Limits({"bps-read": 5120}))
    below = RamNode()
    machine = Machine(ThrottleNode(below, group))
    for _ in range(4):
        machine.read(0, 512)
    started = len(machine.results)
    assert started < 4
    clock.advance(10**9)
    assert machine.results == [0] * 4
    assert len(below.calls) == 4
    # Somewhere else, it lets the caller wait, but not while somebody waits for the end.
    machine.backend.replace_node(below)
    node = ThrottleNode(below, group)
    group.configure(Limits({"iops-total": 1}))
    node.begin_drain()
    for _ in range(100):
        node.read(0, 512)
    node.end_drain()


# ---- Media


class Tray:
    """A device with a tray."""

    def __init__(self) -> None:
        self.tray_open = False
        self.medium_locked = False
        self.said: list[str] = []

    def media_changed(self, loaded: bool) -> None:
        self.tray_open = not loaded
        self.said.append("loaded" if loaded else "gone")

    def eject_requested(self, force: bool) -> None:
        self.said.append("force" if force else "ask")

    def resized(self) -> None:
        self.said.append("resized")


def test_a_medium_is_changed() -> None:
    first, second = RamNode(), RamNode(2 * SIZE)
    machine = Machine(first, removable=True)
    backend, tray = machine.backend, Tray()
    backend.attach(tray, "cd")
    with pytest.raises(BlockError, match=r"^Drive 'disk0' is already in use by another device$"):
        backend.attach(Tray())
    assert backend.inserted
    tray.medium_locked = True
    assert not backend.open_tray()
    assert backend.open_tray(force=True)
    assert tray.said == ["ask", "force", "gone"]
    assert not backend.inserted
    assert backend.remove_medium() is first
    assert backend.size == 0
    machine.read(0, 512)
    assert machine.taken() == [errno.ENOMEDIUM]
    backend.insert_medium(second)
    with pytest.raises(BlockError, match=r"^There already is a medium in device 'disk0'$"):
        backend.insert_medium(first)
    backend.close_tray()
    assert backend.inserted
    assert backend.size == 2 * SIZE
    moves = [data for name, data in machine.events if name == "DEVICE_TRAY_MOVED"]
    assert moves == [{"device": "disk0", "id": "cd", "tray-open": it} for it in (True, False)]
    backend.eject(True)
    assert machine.events[-1][1]["tray-open"] is True
    backend.resize(SIZE)
    assert tray.said[-1] == "resized"
    backend.detach()
    backend.attach(Tray())


def test_a_disk_that_is_fixed_has_no_tray() -> None:
    machine = Machine(RamNode())
    machine.backend.attach(Tray())
    for action in (machine.backend.open_tray, machine.backend.close_tray):
        with pytest.raises(BlockError, match=r"^Device 'disk0' is not removable$"):
            action()


# ---- Accounting


def test_counters() -> None:
    stats = BlockStats(account_failed=False)
    stats.set_histogram(Operation.READ, [10**15])
    stats.add_interval(10)
    stats.done(Operation.READ, 512, stats.start())
    stats.fail(Operation.READ, stats.start())
    stats.refuse(Operation.UNMAP)
    stats.merge(Operation.WRITE, 3)
    report = stats.report()
    assert (report["rd_bytes"], report["rd_operations"], report["failed_rd_operations"]) == (512, 1, 1)
    assert (report["invalid_unmap_operations"], report["wr_merged"]) == (1, 3)
    assert report["rd_latency_histogram"] == {"boundaries": [10**15], "bins": [1, 0]}
    interval = report["timed_stats"][0]
    assert interval["interval_length"] == 10
    assert 0 < interval["min_rd_latency_ns"] == interval["max_rd_latency_ns"] == interval["avg_rd_latency_ns"]
    assert interval["min_wr_latency_ns"] == 0
    assert report["idle_time_ns"] >= 0
    assert "idle_time_ns" not in BlockStats().report()


class TestReadsAtHand:
    """What is in the host's page cache is read when it is asked for; everything else by the worker."""

    @staticmethod
    def make(tmp_path: Path) -> tuple[BlockBackend, IoContext, threading.RLock]:
        lock = threading.RLock()
        path = tmp_path / "disk"
        path.write_bytes(bytes(range(256)) * 256)
        context = IoContext(lock)
        backend = BlockBackend(RawNode(FileNode(str(path), access=disk_access(False))), context)
        backend.preadv(0, [memoryview(bytearray(65536))])
        return backend, context, lock

    def test_done_before_the_call_returns(self, tmp_path: Path) -> None:
        backend, context, lock = self.make(tmp_path)
        data = bytearray(512)
        done: list[int] = []
        with lock:
            backend.read(256, [memoryview(data)], done.append)
            assert done == [0]
            assert context.thread is None
            assert data == bytes(range(256)) * 2
            report = backend.stats.report()
            assert (report["rd_operations"], report["rd_bytes"]) == (1, 512)
            backend.close()
            context.close()

    def test_not_before_writes_that_came_first(self, tmp_path: Path) -> None:
        backend, context, lock = self.make(tmp_path)
        data = bytearray(512)
        done: list[str] = []
        with lock:
            backend.write(0, [memoryview(b"n" * 512)], lambda error: done.append("write"))
            backend.read(0, [memoryview(data)], lambda error: done.append("read"))
            assert done == []
            backend.drain()
            assert done == ["write", "read"]
            assert data == b"n" * 512
            backend.close()
            context.close()

    def test_a_long_row_is_no_recursion(self, tmp_path: Path) -> None:
        backend, context, lock = self.make(tmp_path)
        data = bytearray(512)
        left = 3000

        def again(error: int) -> None:
            nonlocal left
            left -= 1
            if left:
                backend.read(0, [memoryview(data)], again)

        with lock:
            backend.read(0, [memoryview(data)], again)
            backend.drain()
            assert left == 0
            backend.close()
            context.close()
