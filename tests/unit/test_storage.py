"""All disks of a machine, from its command line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.context import IoContext
from pyvm.block.errors import BlockError
from pyvm.clock import ManualClock
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine.storage import Storage, StorageEvents
from tests.unit.test_block_backend import Tray

QEMU_IMG = shutil.which("qemu-img")


class Rig:
    """The storage of a machine that is not there."""

    def __init__(self, *arguments: str) -> None:
        self.lock = threading.RLock()
        self.clock = ManualClock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.warnings: list[str] = []
        self.stops = 0
        config = parse_arguments(["-nodefaults", *arguments])
        events = StorageEvents(lambda name, data: self.events.append((name, data)), self._stop, self._call)
        with self.lock:
            self.storage = Storage(config, self.lock, self.clock, events, warn=self.warnings.append)

    def _stop(self) -> None:
        self.stops += 1

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with self.lock:
            function(*arguments)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*arguments: str) -> Rig:
        made.append(Rig(*arguments))
        return made[-1]

    yield make
    for item in made:
        with item.lock:
            contexts = [item.storage.context, *(thread.context for thread in item.storage.iothreads.values())]
            item.storage.close()
            assert not item.storage.graph.nodes
        for context in contexts:
            if context.thread is not None:
                context.thread.join(60)
                assert not context.thread.is_alive()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


def test_drives_and_nodes_by_name(rig: Callable[..., Rig], image: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(bytes(65536))
    machine = rig(
        "-drive", f"file={image},format=raw,id=d,if=none,readonly=on,cache=writethrough,werror=stop",
        "-blockdev", f"driver=raw,node-name=n,file.driver=file,file.filename={other}",
    )  # fmt: skip
    with machine.lock:
        drive = machine.storage.backend("d")
        assert (drive.name, drive.size, drive.read_only, drive.write_cache) == ("d", 1 << 20, True, False)
        assert drive.werror == "stop"
        assert machine.storage.backend("d") is drive
        node = machine.storage.backend("n")
        assert (node.name, node.size, node.read_only, node.write_cache) == ("", 65536, False, True)
        node.attach(Tray(), "dev")
        with pytest.raises(BlockError, match="Permission conflict on node 'n'"):
            machine.storage.backend("n").attach(Tray(), "dev2")
        machine.storage.give_back(node)
        with pytest.raises(KeyError):
            machine.storage.backend("x")
        assert next(backend.name for backend in machine.storage.backends()) == "d"


def test_requests_run_on_the_worker_and_end_before_a_pause(rig: Callable[..., Rig], image: Path) -> None:
    machine = rig("-drive", f"file={image},format=raw,id=d,if=none")
    results: list[int] = []
    with machine.lock:
        backend = machine.storage.backend("d")
        for number in range(20):
            backend.write(512 * number, [memoryview(bytes([number]) * 512)], results.append)
        assert results == []
        machine.storage.pause()
        assert results == [0] * 20
    assert image.read_bytes()[: 20 * 512] == b"".join(bytes([number]) * 512 for number in range(20))


def test_a_default_drive_is_empty() -> None:
    config = parse_arguments([])
    events = StorageEvents(lambda name, data: None, lambda: None, lambda function, *arguments: None)
    storage = Storage(config, threading.RLock(), ManualClock(), events)
    assert list(storage.drives) == ["ide1-cd0", "floppy0"]
    backend = storage.backend("ide1-cd0")
    assert (backend.inserted, backend.size) == (False, 0)
    results: list[int] = []
    backend.read(0, [memoryview(bytearray(512))], results.append)
    assert results == [errno.ENOMEDIUM]
    storage.close()


def test_a_guess_is_warned_about(rig: Callable[..., Rig], image: Path) -> None:
    machine = rig("-hda", str(image), "-cdrom", str(image.with_name("disk.img")))
    assert len(machine.warnings) == 1
    assert machine.warnings[0].startswith(f"WARNING: Image format was not specified for '{image}'")
    assert list(machine.storage.drives) == ["ide0-hd0", "ide1-cd0"]
    assert machine.storage.backend("ide1-cd0").read_only


@pytest.mark.skipif(QEMU_IMG is None, reason="needs qemu-img")
def test_a_snapshot_leaves_the_image_as_it_is(
    rig: Callable[..., Rig], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run([QEMU_IMG or "", "convert", "-O", "qcow2", str(image), str(qcow2)], check=True)
    before = image.read_bytes(), qcow2.read_bytes()
    machine = rig(
        "-drive", f"file={image},format=raw,id=a,if=none", "-drive", f"file={qcow2},id=b,if=none,node-name=n",
        "-drive", f"file={image},format=raw,id=c,if=none,readonly=on", "-snapshot",
    )  # fmt: skip
    assert not list(temporary.iterdir())
    with machine.lock:
        assert machine.storage.backend("b").node is machine.storage.graph.nodes["n"]
        for name in ("a", "b"):
            backend = machine.storage.backend(name)
            backend.attach(Tray(), name)
            assert backend.pread(0, 4096) == before[0][:4096]
            backend.pwritev(512, [memoryview(b"new" * 512)])
            assert backend.pread(0, 4096) == before[0][:512] + b"new" * 512 + before[0][2048:4096]
            backend.flush_now()
        reader = machine.storage.backend("c")
        assert reader.node is not None
        assert reader.node.driver == "raw"
    assert (image.read_bytes(), qcow2.read_bytes()) == before


@pytest.mark.skipif(QEMU_IMG is None, reason="needs qemu-img")
def test_copy_on_read_is_not_seen(rig: Callable[..., Rig], image: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    create = [QEMU_IMG or "", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(top)]
    subprocess.run(create, check=True)
    machine = rig("-drive", f"file={top},id=d,if=none,copy-on-read=on,node-name=n")
    with machine.lock:
        backend = machine.storage.backend("d")
        assert backend.shown_node.name == "n"
        assert backend.pread(0, 65536) == image.read_bytes()[:65536]
        assert machine.storage.graph.nodes["n"].block_status(0, 65536).allocated


def test_io_threads(rig: Callable[..., Rig], image: Path) -> None:
    machine = rig(
        "-object", "iothread,id=io,poll-max-ns=5", "-drive", f"file={image},format=raw,id=a,if=none",
        "-blockdev", "null-co,node-name=f", "-blockdev", "raw,node-name=r1,file=f",
        "-blockdev", "raw,node-name=r2,file=f",
    )  # fmt: skip
    storage = machine.storage
    with machine.lock:
        thread = storage.iothreads["io"]
        assert thread.context.thread is not None
        assert thread.properties["poll-max-ns"] == 5
        backend = storage.backend("a", iothread="io")
        assert backend.context is thread.context
        names: list[str] = []
        backend.read(0, [memoryview(bytearray(512))], lambda error: names.append(threading.current_thread().name))
    while not names:
        with machine.lock:
            assert isinstance(thread.context, IoContext)
            backend.drain()
    with machine.lock:
        first = storage.backend("r1", iothread="io")
        # What shares a node shares its thread.
        second = storage.backend("r2")
        assert second.context is first.context
        with pytest.raises(BlockError, match="not found"):
            storage.set_iothread(second, "none")


def test_limits_of_a_drive(rig: Callable[..., Rig], image: Path) -> None:
    machine = rig(
        "-object", "throttle-group,id=g,x-iops-total=3",
        "-drive", f"file={image},format=raw,id=a,if=none,throttling.iops-total=10,throttling.group=shared",
        "-blockdev", "throttle,node-name=t,throttle-group=g,file.driver=null-co",
    )  # fmt: skip
    storage = machine.storage
    results: list[int] = []
    with machine.lock:
        groups = storage.graph.throttle_groups
        shared = groups.find("shared")
        assert shared is not None
        assert shared.limits.report()["iops-total"] == 10
        for name in ("a", "t"):
            backend = storage.backend(name)
            for _ in range(5):
                backend.read(0, [memoryview(bytearray(512))], results.append)
            assert len(backend.gates) == 1
        machine.clock.advance(10**10)
        storage.drain()
        assert results == [0] * 10
        storage.remove_drive("a")
        assert groups.find("shared") is None
        assert groups.find("g") is not None


def test_a_full_host_disk_stops_the_machine_and_loses_nothing(
    rig: Callable[..., Rig], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, buffers: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    machine = rig("-drive", f"file={image},format=raw,id=d,if=none")
    results: list[int] = []
    with machine.lock:
        backend = machine.storage.backend("d")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", full)
            for number in range(3):
                backend.write(512 * number, [memoryview(b"x" * 512)], results.append)
            machine.storage.pause()
            assert (machine.stops, results) == (3, [])
            name, data = machine.events[0]
            assert (name, data["action"], data["reason"]) == ("BLOCK_IO_ERROR", "stop", "No space left on device")
            machine.storage.resume()
            machine.storage.pause()
            assert (machine.stops, results) == (6, [])
        machine.storage.resume()
        machine.storage.pause()
        assert results == [0] * 3
    assert image.read_bytes()[:1536] == b"x" * 1536


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-blockdev", "null-co"], "-blockdev null-co: 'node-name' must be specified for the root node"),
        (
            ["-blockdev", "null-co,node-name=a", "-drive", "file=IMAGE,format=raw,if=none,id=a"],
            "-drive file=IMAGE,format=raw,if=none,id=a: Device name 'a' conflicts with an existing node name",
        ),
        (
            ["-blockdev", "throttle,node-name=t,throttle-group=g,file.driver=null-co"],
            "-blockdev throttle,node-name=t,throttle-group=g,file.driver=null-co: Throttle group 'g' does not exist",
        ),
        (
            ["-drive", "file=IMAGE,format=raw,if=none,foo=1"],
            "-drive file=IMAGE,format=raw,if=none,foo=1: Block format 'raw' does not support the option 'foo'",
        ),
        (
            ["-drive", "file=iscsi:h:1,if=none"],
            "-drive file=iscsi:h:1,if=none: Protocol 'iscsi' is not supported by pyvm yet",
        ),
    ],
)
def test_what_cannot_be_opened(rig: Callable[..., Rig], image: Path, arguments: list[str], message: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as error:
        rig(*(word.replace("IMAGE", str(image)) for word in arguments))
    assert str(error.value).startswith(message.replace("IMAGE", str(image)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_damage_is_reported(rig: Callable[..., Rig], tmp_path: Path) -> None:
    if QEMU_IMG is None:
        pytest.skip("needs qemu-img")
    path = tmp_path / "disk.qcow2"
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    machine = rig("-drive", f"file={path},if=none,id=d")
    with machine.lock:
        node = machine.storage.backend("d").node
        assert node is not None
        node.on_corrupted({"node-name": node.name, "msg": "m", "fatal": True})  # type: ignore[attr-defined]
        assert machine.events == [
            ("BLOCK_IMAGE_CORRUPTED", {"node-name": node.name, "msg": "m", "fatal": True, "device": "d"})
        ]
