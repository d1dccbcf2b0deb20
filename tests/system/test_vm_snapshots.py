"""Snapshots of the whole machine in its disks: savevm, loadvm, delvm, -loadvm and their jobs."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyvm import Machine
from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2 import walk
from pyvm.block.open import open_image
from pyvm.errors import ConfigError
from pyvm.machine.pc import Pc
from pyvm.machine.saved import vm_snapshots
from pyvm.qmp_client import QmpError
from pyvm.tools import vmstate

SMALL = ("-S", "-nodefaults", "-m", "16")
_MISSING = "Snapshot 'none' does not exist in one or more devices"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.qcow2", tmp_path / "b.qcow2"]
    for path in paths:
        create_image(str(path), "qcow2", 8 << 20, {})
    return paths


def drives(images: list[Path], **options: str) -> list[str]:
    more = "".join(f",{name}={value}" for name, value in options.items())
    return [
        word
        for path in images
        for word in ("-drive", f"file={path},if=none,id={path.stem},node-name=n{path.stem}{more}")
    ]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """What sets the size to which this process's files can grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def vm(images: list[Path]) -> Iterator[Machine]:
    with Machine(*SMALL, *drives(images), agent=False) as machine:
        yield machine


def hmp(vm: Machine, line: str) -> str:
    text: str = vm.qmp("human-monitor-command", command_line=line)
    return text.replace("\r\n", "\n")


def poke(vm: Machine, text: bytes) -> None:
    """Change the guest's memory as a device would."""
    pc = vm._pc
    assert pc is not None
    with pc.lock:
        pc.memory.write(0x100000, text)


def peek(vm: Machine) -> bytes:
    pc = vm._pc
    assert pc is not None
    with pc.lock:
        return pc.memory.read(0x100000, 3)


def disk(vm: Machine, drive: str, pattern: int | None = None) -> int:
    """Write a pattern to a disk as the guest would, or return the one that is there."""
    pc = vm._pc
    assert pc is not None
    backend = pc.storage.drives[drive].backend
    with pc.lock:
        if pattern is not None:
            backend.pwritev(0, [memoryview(bytes([pattern]) * 65536)])
        data = backend.pread(0, 65536)
    assert set(data) == {data[0]}
    return data[0]


def state_is_there(vm: Machine, images: list[Path]) -> bool:
    """Return whether anything is behind the end of the first disk, whose image must be in order; ends the machine."""
    vm.stop()
    image: Any = open_image(str(images[0]), read_only=True)
    try:
        found = image.check()
        assert (found.leaks, found.corruptions) == (0, 0)
        behind = [offset for index, offset in walk.l2_tables(image.disk.image.l1) if index]
        return any(walk.read_table(image.disk.image, offset).any() for offset in behind)
    finally:
        image.release()


class TestCommands:
    def test_memory_disks_and_time_are_as_they_were(self, vm: Machine) -> None:
        poke(vm, b"one")
        for drive in ("a", "b"):
            disk(vm, drive, 1)
        assert hmp(vm, "savevm first") == ""
        poke(vm, b"two")
        for drive in ("a", "b"):
            disk(vm, drive, 2)
        assert hmp(vm, "loadvm first") == ""
        assert peek(vm) == b"one"
        for drive in ("a", "b"):
            assert disk(vm, drive) == 1
        assert vm.qmp("query-status")["status"] == "prelaunch"

    def test_memory_that_was_zero_is_zero_again(self, vm: Machine) -> None:
        hmp(vm, "savevm empty")
        poke(vm, b"two")
        hmp(vm, "loadvm empty")
        assert peek(vm) == bytes(3)

    def test_memory_that_was_replaced(self, vm: Machine) -> None:
        """Nothing stays behind of what the memory was before, and whoever needs the memory finds the new one."""
        pc = vm._pc
        assert pc is not None
        descriptor = pc.model.memory_fd
        poke(vm, b"one")
        hmp(vm, "savevm first")
        for text in (b"two", b"six"):
            poke(vm, text)
            assert hmp(vm, "loadvm first") == ""
            assert peek(vm) == b"one"
        assert os.fstat(descriptor).st_blocks == 0
        poke(vm, b"new")
        hmp(vm, "savevm second")
        poke(vm, b"two")
        hmp(vm, "loadvm second")
        assert peek(vm) == b"new"
        with vm.fork() as child:
            poke(vm, b"two")
            assert peek(child) == b"new"
            with child.fork() as other:
                poke(child, b"six")
                assert (peek(vm), peek(child), peek(other)) == (b"two", b"six", b"new")

    def test_a_machine_that_runs_goes_on(self, vm: Machine) -> None:
        vm.resume()
        vm.monitor.events()
        hmp(vm, "savevm one")
        hmp(vm, "loadvm one")
        assert [event["event"] for event in vm.monitor.events()][:4] == ["STOP", "RESUME", "STOP", "RESUME"]
        assert vm.qmp("query-status")["status"] == "running"
        assert hmp(vm, "loadvm none") == f"Error: {_MISSING}\n"
        assert vm.qmp("query-status")["status"] == "restore-vm"

    def test_a_disk_that_is_full(self, vm: Machine, images: list[Path], file_limit: Callable[[int], None]) -> None:
        poke(vm, random.Random(1).randbytes(14 << 20))
        file_limit(10 << 20)
        assert hmp(vm, "savevm large") == "Error: Error while writing VM state: File too large\n"
        file_limit(resource.RLIM_INFINITY)
        assert hmp(vm, "info snapshots") == "There is no snapshot available.\n"
        disk(vm, "a", 3)
        assert not state_is_there(vm, images)

    def test_whatever_goes_wrong_leaves_nothing_behind(
        self, vm: Machine, images: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not only the host's errors: a part of the state would be in the way of the next snapshot."""

        def fails(pc: Pc, write: Callable[[int, Sequence[memoryview]], None]) -> int:
            write(0, [memoryview(random.Random(1).randbytes(1 << 20))])
            raise ZeroDivisionError

        monkeypatch.setattr("pyvm.migration.vmstate.write_machine", fails)
        pc = vm._pc
        assert pc is not None
        with pc.lock, pytest.raises(ZeroDivisionError):
            vm_snapshots.save(pc, "broken")
        assert not state_is_there(vm, images)

    def test_listing(self, vm: Machine) -> None:
        assert hmp(vm, "info snapshots") == "There is no snapshot available.\n"
        hmp(vm, "savevm both")
        hmp(vm, "snapshot_blkdev_internal b alone")
        text = hmp(vm, "info snapshots")
        first, _, second = text.partition("\n\nList of partial (non-loadable) snapshots on 'b':\n")
        assert first.splitlines()[0] == "List of snapshots present on all disks:"
        assert first.splitlines()[2].startswith("--        both ")
        assert second.splitlines()[1].startswith("2         alone ")
        assert hmp(vm, "delvm both") == hmp(vm, "delvm alone") == hmp(vm, "delvm none") == ""
        assert hmp(vm, "info snapshots") == "There is no snapshot available.\n"

    def test_saving_again_replaces_and_a_name_is_found(self, vm: Machine, images: list[Path]) -> None:
        hmp(vm, "savevm again")
        hmp(vm, "savevm again")
        hmp(vm, "savevm")
        pc = vm._pc
        assert pc is not None
        first, second = (it.name for it in pc.storage.graph.nodes["na"].snapshots)  # type: ignore[attr-defined]
        assert first == "again"
        assert second.startswith("vm-2")
        vm.stop()
        for path in images:
            node = open_image(str(path), format="qcow2")
            result = node.check()  # type: ignore[attr-defined]
            node.release()
            assert (result.corruptions, result.leaks) == (0, 0)

    def test_disk_only_snapshots(self, vm: Machine) -> None:
        for drive in ("a", "b"):
            hmp(vm, f"snapshot_blkdev_internal {drive} disks")
        assert hmp(vm, "loadvm disks") == ("Error: This is a disk-only snapshot. Revert to it offline using qemu-img\n")

    def test_a_disk_with_bitmaps(self, vm: Machine) -> None:
        hmp(vm, "savevm one")
        vm.qmp("block-dirty-bitmap-add", node="nb", name="bits")
        disk(vm, "a", 7)
        assert hmp(vm, "loadvm one") == (
            "Error: Could not load snapshot 'one' on 'b': Device has active dirty bitmaps\n"
        )
        assert disk(vm, "a") == 7, "no disk goes back without the others"


class TestRefused:
    def test_without_disks(self) -> None:
        with Machine(*SMALL, agent=False) as vm:
            message = "no block device can store vmstate for snapshot\n"
            assert hmp(vm, "info snapshots") == message
            assert hmp(vm, "savevm x") == hmp(vm, "loadvm x") == f"Error: {message}"

    def test_a_raw_disk(self, tmp_path: Path) -> None:
        (tmp_path / "r.raw").write_bytes(bytes(1 << 20))
        with Machine(*SMALL, "-drive", f"file={tmp_path}/r.raw,format=raw,if=none,id=r", agent=False) as vm:
            message = "Error: Device 'r' is writable but does not support snapshots\n"
            assert [hmp(vm, f"{command} x") for command in ("savevm", "loadvm", "delvm")] == [message] * 3
        with Machine(*SMALL, "-drive", f"file={tmp_path}/r.raw,format=raw,if=none,readonly=on", agent=False) as vm:
            assert hmp(vm, "savevm x") == "Error: no block device can store vmstate for snapshot\n"

    def test_another_machine(self, vm: Machine, images: list[Path]) -> None:
        hmp(vm, "savevm one")
        vm.stop()
        with Machine("-S", "-nodefaults", "-m", "32", *drives(images), agent=False) as other:
            assert "Error: Error while loading VM state: the machine was saved with RAM" in hmp(other, "loadvm one")
            assert disk(other, "a") == 0
        with Machine(*SMALL, "-device", "virtio-rng-pci", *drives(images), agent=False) as other:
            assert "the machine was saved without 'virtio-rng-pci" in hmp(other, "loadvm one")

    def test_state_that_was_damaged(self, vm: Machine, images: list[Path]) -> None:
        poke(vm, b"one")
        hmp(vm, "savevm one")
        vm.stop()
        content = images[0].read_bytes()
        images[0].write_bytes(content.replace(b'"name":"cpus"', b'"name":"cpuz"'))
        with Machine(*SMALL, *drives(images), agent=False) as other:
            assert "its checksum is wrong" in hmp(other, "loadvm one")


class TestAtTheStart:
    def test_loadvm(self, vm: Machine, images: list[Path]) -> None:
        poke(vm, b"one")
        hmp(vm, "savevm one")
        vm.stop()
        with Machine(*SMALL, *drives(images), "-loadvm", "one", agent=False) as other:
            assert peek(other) == b"one"
        with pytest.raises(ConfigError, match=_MISSING):
            Machine(*SMALL, *drives(images), "-loadvm", "none", agent=False).start()


class TestJobs:
    def run(self, vm: Machine, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a job to its end, and return what it was then."""
        vm.monitor.events()
        vm.qmp(command, job_id="j", **arguments)
        while True:
            (job,) = vm.qmp("query-jobs")
            if job["status"] == "concluded":
                break
            vm.wait_event("JOB_STATUS_CHANGE")
        vm.qmp("job-dismiss", id="j")
        result: dict[str, Any] = job
        return result

    def test_save_load_delete(self, vm: Machine) -> None:
        poke(vm, b"one")
        both = ["na", "nb"]
        job = self.run(vm, "snapshot-save", tag="t", vmstate="nb", devices=both)
        assert job == {
            "id": "j",
            "type": "snapshot-save",
            "status": "concluded",
            "current-progress": 1,
            "total-progress": 1,
        }
        job = self.run(vm, "snapshot-save", tag="t", vmstate="nb", devices=both)
        assert job["error"] == "Snapshot 't' already exists in one or more devices"
        poke(vm, b"two")
        assert "error" not in self.run(vm, "snapshot-load", tag="t", vmstate="nb", devices=both)
        assert peek(vm) == b"one"
        assert "error" not in self.run(vm, "snapshot-delete", tag="t", devices=["na"])
        job = self.run(vm, "snapshot-load", tag="t", vmstate="nb", devices=both)
        assert job["error"] == "Snapshot 't' does not exist in one or more devices"

    @pytest.mark.parametrize(
        ("vmstate_node", "devices", "message"),
        [
            ("na", [], "At least one device is required for snapshot"),
            ("na", ["zz"], "No block device node 'zz'"),
            ("zz", ["na"], "vmstate block device 'zz' does not exist"),
        ],
    )
    def test_disks_that_are_not_there(self, vm: Machine, vmstate_node: str, devices: list[str], message: str) -> None:
        job = self.run(vm, "snapshot-save", tag="t", vmstate=vmstate_node, devices=devices)
        assert job["error"] == message

    def test_states_of_a_job_and_its_id(self, vm: Machine) -> None:
        vm.monitor.events()
        vm.qmp("snapshot-save", job_id="j", tag="t", vmstate="na", devices=["na"])
        states: list[str] = []
        while states[-1:] != ["concluded"]:
            states.append(vm.wait_event("JOB_STATUS_CHANGE")["data"]["status"])
        assert states == ["created", "running", "waiting", "pending", "concluded"]
        with pytest.raises(QmpError, match="Invalid job ID 'a b'"):
            vm.qmp("snapshot-save", job_id="a b", tag="t", vmstate="na", devices=["na"])


class TestShowing:
    def test_an_image(self, vm: Machine, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        poke(vm, b"one")
        hmp(vm, "savevm one")
        assert vmstate.main([f"{images[0]}@one"]) == 0
        text = capsys.readouterr().out
        assert f"{images[0]}@one: snapshot 'one' in a qcow2 image" in text
        for line in ("  board: pc-i440fx-7.2", "section device/rtc: ", "records of kind RAMB: "):
            assert line in text
        assert vmstate.main([str(images[0]), "--json", "--section", "clock"]) == 0
        assert '"name": "clock"' in capsys.readouterr().out

    def test_a_folder(self, vm: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        vm.snapshot(tmp_path / "saved")
        assert vmstate.main([str(tmp_path / "saved"), "--summary"]) == 0
        text = capsys.readouterr().out
        for line in ("file ram: ", "file disk-0.qcow2: ", "section cpus: "):
            assert line in text

    @pytest.mark.parametrize("tail", ["nothing", "a.qcow2@none", "a.qcow2", "text"])
    def test_what_is_none(
        self, tmp_path: Path, images: list[Path], tail: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "text").write_text("not a machine")
        assert vmstate.main([str(tmp_path / tail)]) == 1
        assert capsys.readouterr().err.startswith(f"pyvm-vmstate: {tmp_path / tail}: ")
