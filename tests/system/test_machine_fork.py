"""Machines that are made of others: forked, or restored from a folder, with their memory and their disks."""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm import Machine
from pyvm.api import MachineError
from pyvm.block.backend import BlockBackend
from pyvm.block.create import create_image
from pyvm.errors import ConfigError
from pyvm.migration.fork_ram import LayeredRam, copied

SMALL = ("-S", "-nodefaults", "-m", "16")
ROOMY = ("-S", "-nodefaults", "-m", "16,slots=1,maxmem=1G")
PAGE = mmap.PAGESIZE
BLOCK = 64 << 10


def write(vm: Machine, text: bytes, gpa: int = 0x100000) -> None:
    """Change the guest's memory as a device would."""
    pc = vm._pc
    assert pc is not None
    with pc.lock:
        pc.memory.write(gpa, text)


def read(vm: Machine, gpa: int = 0x100000, length: int = 3) -> bytes:
    pc = vm._pc
    assert pc is not None
    with pc.lock:
        return pc.memory.read(gpa, length)


def give_back(vm: Machine, gpa: int) -> None:
    """Give a page back as a balloon would."""
    pc = vm._pc
    assert pc is not None
    with pc.lock:
        pc.memory.discard(gpa, PAGE)


def backend_of(vm: Machine) -> BlockBackend:
    """Return the machine's only disk."""
    pc = vm._pc
    assert pc is not None
    (backend,) = (it for it in pc.storage.backends() if it.node is not None)
    return backend


def put(vm: Machine, pattern: int) -> None:
    """Write to the disk as the guest would."""
    assert vm._pc is not None
    with vm._pc.lock:
        backend_of(vm).pwritev(0, [memoryview(bytes([pattern]) * BLOCK)])


def has(vm: Machine, pattern: int) -> bool:
    assert vm._pc is not None
    with vm._pc.lock:
        return backend_of(vm).pread(0, BLOCK) == bytes([pattern]) * BLOCK


# ---- Memory


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=12), min_size=1, max_size=8))
def test_layers(rounds: list[list[tuple[int, int]]]) -> None:
    """Whatever a machine writes and gives back between freezes: each copy has what there was at its time."""
    size = 64 * PAGE
    first = mmap.mmap(-1, size)
    first[0] = 7
    machine = LayeredRam(copied(memoryview(first)))
    copies: list[tuple[LayeredRam, bytes]] = []
    for changes in rounds:
        for page, value in changes:
            if value == 255:
                machine.discard(page * PAGE, PAGE)
            else:
                machine.mapping[page * PAGE + value] = value
        wanted = bytes(machine.mapping)
        copy = LayeredRam(machine.freeze())
        assert bytes(machine.mapping) == wanted
        copies.append((copy, wanted))
    machine.mapping[:] = b"\xff" * size
    for copy, wanted in copies:
        assert bytes(copy.mapping) == wanted
        copy.mapping[:] = b"\xee" * size
    for one in (machine, *(copy for copy, _ in copies)):
        one.close()


def test_layers_that_are_too_many_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvm.migration.fork_ram._MOST_RUNS", 4)
    machine = LayeredRam(copied(memoryview(bytes(256 * PAGE))))
    for number in range(6):
        for page in (10, 60, 110, 160, 210):
            machine.mapping[page * PAGE + number] = 1 + number
        layers = machine.freeze()
        assert len(layers.runs()) <= 11
        copy = LayeredRam(layers)
        assert bytes(copy.mapping) == bytes(machine.mapping)
        copy.close()
    machine.close()


# ---- Forks


class TestFork:
    def test_each_goes_its_own_way(self) -> None:
        with Machine(*SMALL, agent=False) as vm:
            write(vm, b"one")
            with vm.fork() as first, vm.fork() as second:
                assert read(first) == read(second) == b"one"
                write(vm, b"two")
                write(first, b"six")
                assert (read(vm), read(first), read(second)) == (b"two", b"six", b"one")
                with vm.fork() as third, first.fork() as fourth:
                    assert (read(third), read(fourth)) == (b"two", b"six")
                    assert third.qmp("query-status")["status"] == "prelaunch"

    def test_what_outlives_the_first(self, tmp_path: Path) -> None:
        vm = Machine(*SMALL, agent=False).start()
        write(vm, b"one")
        child = vm.fork()
        vm.stop()
        with child:
            assert read(child) == b"one"
            child.snapshot(tmp_path / "saved")
        with Machine.restore(tmp_path / "saved", agent=False) as again, again.fork() as last:
            write(again, b"two")
            assert (read(again), read(last)) == (b"two", b"one")

    def test_a_machine_that_runs(self) -> None:
        with Machine(*SMALL, agent=False) as vm:
            vm.resume()
            with vm.fork() as child:
                assert child.qmp("query-status")["running"]
            assert vm.qmp("query-status")["running"]

    def test_nothing_is_left_open(self) -> None:
        def once() -> set[str]:
            with Machine(*SMALL, agent=False) as vm:
                vm.fork().stop()
            gc.collect()
            return set(os.listdir("/proc/self/fd"))

        assert len(once()) >= len(once())

    def test_room_for_modules(self, tmp_path: Path) -> None:
        """Each has the memory and the room; what a guest gives back stays empty in those made of it."""
        with Machine(*ROOMY, agent=False) as vm:
            write(vm, b"one")
            write(vm, b"old", 0x200000)
            with vm.fork() as child:
                write(child, b"two")
                give_back(vm, 0x200000)
                give_back(child, 0x200000)
                write(child, b"new", 0x300000)
                with vm.fork() as second, child.fork() as third:
                    assert [read(it) for it in (vm, child, second, third)] == [b"one", b"two", b"one", b"two"]
                    assert {read(it, 0x200000) for it in (vm, child, second, third)} == {bytes(3)}
                    assert read(third, 0x300000) == b"new"
                    third.snapshot(tmp_path / "saved")
                child.qmp("object-add", qom_type="memory-backend-ram", id="m0", size=128 << 20)
                child.qmp("device_add", driver="pc-dimm", id="d0", memdev="m0")
                assert child.qmp("query-memory-size-summary")["plugged-memory"] == 128 << 20
                assert vm.qmp("query-memory-size-summary")["plugged-memory"] == 0
        with Machine.restore(tmp_path / "saved", agent=False) as again, again.fork() as last:
            assert [read(last), read(last, 0x200000), read(last, 0x300000)] == [b"two", bytes(3), b"new"]

    def test_refused(self) -> None:
        module = ("-object", "memory-backend-ram,id=m0,size=128M", "-device", "pc-dimm,memdev=m0")
        with (
            Machine(*ROOMY, *module, agent=False) as vm,
            pytest.raises(MachineError, match="memory modules"),
        ):
            vm.fork()
        with Machine(*SMALL, agent=False) as vm, pytest.raises(ConfigError, match="Duplicate"):
            vm.fork("-object", "iothread,id=a", "-device", "virtio-rng-pci,id=a", "-device", "virtio-rng-pci,id=a")


# ---- Disks


@pytest.fixture(params=["qcow2", "raw", "blockdev", "snapshot"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Return the words for a disk with a pattern."""
    kind = "raw" if request.param == "raw" else "qcow2"
    path = tmp_path / f"disk.{kind}"
    create_image(str(path), kind, 1 << 20, {})
    with Machine(*SMALL, "-drive", f"file={path},format={kind},if=none,id=d", agent=False) as vm:
        put(vm, 1)
    content = path.read_bytes()
    drive = f"file={path},format={kind},if=none,id=d"
    if request.param == "blockdev":
        yield ["-blockdev", f"driver=qcow2,node-name=d,file.driver=file,file.filename={path}",
               "-device", "virtio-blk-pci,drive=d"]  # fmt: skip
    else:
        yield ["-drive", drive + (",snapshot=on" if request.param == "snapshot" else "")]
    if request.param == "snapshot":
        assert path.read_bytes() == content


class TestDisks:
    def test_forks(self, disk: list[str]) -> None:
        words = disk
        with Machine(*SMALL, *words, agent=False) as vm:
            put(vm, 2)
            with vm.fork() as first, vm.fork() as second:
                put(vm, 3)
                put(first, 4)
                assert has(vm, 3)
                assert has(first, 4)
                assert has(second, 2)
                with vm.fork() as third, first.fork() as fourth:
                    vm.stop()
                    assert has(third, 3)
                    assert has(fourth, 4)
                    put(fourth, 5)
                    assert has(first, 4)

    def test_a_folder_stays_as_it_is(self, disk: list[str], tmp_path: Path) -> None:
        words = disk
        folder = tmp_path / "saved"
        with Machine(*SMALL, *words, agent=False) as vm:
            put(vm, 2)
            vm.snapshot(folder)
            put(vm, 3)
            with Machine.restore(folder, agent=False) as first, Machine.restore(folder, agent=False) as second:
                assert has(first, 2)
                put(first, 4)
                assert has(second, 2)
                with first.fork() as third:
                    assert has(third, 4)
                first.snapshot(tmp_path / "again")
            assert has(vm, 3)
        shutil.rmtree(folder)  # the second one does not need it
        with Machine.restore(tmp_path / "again", agent=False) as last:
            assert has(last, 4)

    def test_temporary_files_are_gone(self, disk: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = tmp_path / "temporary"
        directory.mkdir()
        monkeypatch.setenv("TMPDIR", str(directory))
        words = disk
        with Machine(*SMALL, *words, agent=False) as vm, vm.fork() as child:
            put(vm, 3)
            put(child, 4)
        assert not list(directory.iterdir())

    def test_temporary_files_of_a_machine_that_cannot_be_made_are_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first disk has its image already when the second one cannot have one."""
        words = []
        for name in ("one", "two"):
            create_image(str(tmp_path / name), "qcow2", 1 << 20, {})
            file = f"file.driver=file,file.filename={tmp_path / name}"
            words += ["-blockdev", f"qcow2,node-name={name},{file}", "-device", f"virtio-blk-pci,drive={name}"]
        with Machine(*SMALL, *words, agent=False) as vm:
            vm.snapshot(tmp_path / "saved")
        directory = tmp_path / "temporary"
        directory.mkdir()
        monkeypatch.setenv("TMPDIR", str(directory))
        copies = sorted((tmp_path / "saved").glob("disk-*"))
        assert len(copies) == 2
        copies[1].unlink()
        with pytest.raises(ConfigError):
            Machine.restore(tmp_path / "saved", agent=False).start()
        assert not list(directory.iterdir())

    def test_an_image_that_was_plugged_in_later(self, tmp_path: Path) -> None:
        create_image(str(tmp_path / "late.qcow2"), "qcow2", 1 << 20, {})
        with Machine(*SMALL, agent=False) as vm:
            file = {"driver": "file", "filename": str(tmp_path / "late.qcow2")}
            vm.monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "late", "file": file})
            vm.qmp("device_add", driver="virtio-blk-pci", drive="late", id="v")
            for action in (vm.fork, lambda: vm.snapshot(tmp_path / "saved")):
                with pytest.raises(MachineError, match="'late' was plugged in later"):
                    action()


class TestGoingOnWithTheImages:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Callable[..., Machine]:
        create_image(str(tmp_path / "disk.qcow2"), "qcow2", 1 << 20, {})
        with Machine(*SMALL, "-drive", f"file={tmp_path}/disk.qcow2,if=none,id=d", agent=False) as vm:
            put(vm, 1)
            vm.snapshot(tmp_path / "saved")
        return lambda: Machine.restore(tmp_path / "saved", disks="images", agent=False)

    def test_what_is_written_stays(self, saved: Callable[..., Machine], tmp_path: Path) -> None:
        with saved() as vm:
            put(vm, 2)
        with pytest.raises(ConfigError, match="has changed since the machine was saved"):
            saved().start()
        with Machine.restore(tmp_path / "saved", agent=False) as vm:
            assert has(vm, 1)


# ---- Time


def test_the_clock_is_stepped_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine(*SMALL, agent=False) as vm:
        vm.snapshot(tmp_path / "saved")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
    for clock, least in (("keep", 0), ("step", 3600 * 10**9)):
        with Machine.restore(tmp_path / "saved", clock=clock, agent=False) as vm:  # type: ignore[arg-type]
            pc = vm._pc
            assert pc is not None
            with pc.lock:
                assert least <= pc.clock.now() < least + 600 * 10**9


@pytest.mark.parametrize("words", ["clock=now", "disks=all"])
def test_options_that_are_none(tmp_path: Path, words: str) -> None:
    with Machine(*SMALL, agent=False) as vm:
        vm.snapshot(tmp_path / "saved")
    with pytest.raises(ConfigError, match="it is one of"):
        Machine(*SMALL, "-incoming", f"file:{tmp_path}/saved,{words}", agent=False)
