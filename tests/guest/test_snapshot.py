"""Guests that are saved, and go on in other machines."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest

from images.build import Image
from pyvm import Machine
from pyvm.api import MachineError
from pyvm.block.create import create_image
from pyvm.errors import ConfigError
from tests.guest.conftest import GuestFactory, ProcessFactory
from tests.guest.support import BOOT, SOON, agent_options, boot_id, boot_options, complaints, rebooting, until

LOAD = """
mkdir -p /tmp/load; i=0
while true; do
    i=$((i + 1))
    dd if=/dev/urandom of=/tmp/load/first bs=64k count=8 2>/dev/null
    cp /tmp/load/first /tmp/load/second
    cmp /tmp/load/first /tmp/load/second || echo $i >> /tmp/wrong
    echo $i > /tmp/count
done
"""


def rounds(vm: Machine) -> int:
    return int(vm.run("cat /tmp/count", check=False).text or 0)  # it is empty while it is written


def worked(vm: Machine, done: int) -> bool:
    return rounds(vm) > done


def uptime(vm: Machine) -> float:
    return float(vm.run("cat /proc/uptime").text.split()[0])


class TestSaving:
    def test_many_machines_of_one(self, boot: GuestFactory, tmp_path: Path) -> None:
        """Each goes on from where the first one was saved, and none sees what another does."""
        vm = boot(device=["virtio-rng-pci", "virtio-balloon-pci"])
        vm.run("echo saved > /tmp/state")
        before = boot_id(vm)
        vm.snapshot(tmp_path / "saved")
        vm.run("echo later > /tmp/state")
        with Machine.restore(tmp_path / "saved") as first, Machine.restore(tmp_path / "saved") as second:
            for machine in (first, second):
                machine.wait_agent(SOON)
                assert machine.run("cat /tmp/state").text == "saved"
            first.run("echo first > /tmp/state")
            assert second.run("cat /tmp/state").text == "saved"
            assert vm.run("cat /tmp/state").text == "later"
            assert boot_id(first) == boot_id(second) == boot_id(vm) == before
            assert complaints(first.run("dmesg").text) == []
            first.console_write("echo con''sole\n")
            first.wait_console("console\r", SOON)

    @pytest.mark.slow
    def test_under_load_again_and_again(self, boot: GuestFactory, tmp_path: Path) -> None:
        """Time goes on where it stood, and nothing that the guest computes is wrong."""
        vm = boot(smp=2, device="virtio-balloon-pci")
        vm.write_file("/tmp/load.sh", LOAD.encode())
        vm.run("sh /tmp/load.sh > /dev/null 2>&1 &")
        before, done = uptime(vm), 0
        for number in range(8):
            saved = tmp_path / str(number)
            vm.snapshot(saved)
            vm.stop()
            vm = Machine.restore(saved).start()
            try:
                vm.wait_agent(SOON)
                now = uptime(vm)
                assert before <= now < before + 60
                until(functools.partial(worked, vm, done), "the guest works on")
            except BaseException:
                vm.stop()
                raise
            before, done = now, rounds(vm)
        with vm:
            assert vm.run("cat /tmp/wrong", check=False).text == ""
            assert complaints(vm.run("dmesg").text) == []

    def test_the_clock_of_the_guest(self, boot: GuestFactory, tmp_path: Path) -> None:
        """The RTC shows the host's time; the guest's own goes on from where it stood until it asks."""
        vm = boot()
        vm.snapshot(tmp_path / "saved")
        vm.stop()
        with Machine.restore(tmp_path / "saved") as vm:
            vm.wait_agent(SOON)
            vm.agent.set_time()
            assert abs(vm.agent.get_time() / 1e9 - time.time()) < 5

    def test_memory_that_was_given_back_is_empty(self, boot: GuestFactory, tmp_path: Path) -> None:
        vm = boot(device="virtio-balloon-pci")
        vm.snapshot(tmp_path / "saved")
        vm.stop()
        with Machine.restore(tmp_path / "saved") as vm:
            vm.wait_agent(SOON)
            for size in (256, 512):
                vm.qmp("balloon", value=size << 20)
                until(lambda size=size: vm.qmp("query-balloon")["actual"] == size << 20, "the balloon")
            vm.run("dd if=/dev/zero of=/tmp/fill bs=1M count=200 2>/dev/null; rm /tmp/fill")
            assert complaints(vm.run("dmesg").text) == []
            vm.snapshot(tmp_path / "again")
        with Machine.restore(tmp_path / "again") as vm:
            vm.wait_agent(SOON)

    def test_reset_after_restore(self, boot: GuestFactory, tmp_path: Path) -> None:
        vm = boot()
        vm.snapshot(tmp_path / "saved")
        with Machine.restore(tmp_path / "saved") as vm:
            vm.wait_agent(SOON)
            with rebooting(vm):
                vm.reset()


class TestFork:
    def test_a_guest_with_a_disk(self, boot: GuestFactory, tmp_path: Path) -> None:
        """Two guests of one, again and again: each has its own memory, disk, console, screen and agent."""
        disk = tmp_path / "disk.qcow2"
        create_image(str(disk), "qcow2", 64 << 20, {})
        vm = boot("-drive", f"file={disk},if=virtio")
        write = "echo {0} > /tmp/state; echo {0} | dd of=/dev/vda conv=fsync 2> /dev/null"
        read = "cat /tmp/state; head -n 1 /dev/vda"
        for number in range(3):
            vm.run(write.format(f"parent{number}"))
            with vm.fork() as child:
                child.wait_agent(SOON)
                assert child.run(read).text.split() == [f"parent{number}"] * 2
                child.run(write.format("child"))
                child.console_write("echo con''sole\n")
                child.wait_console("console\r", SOON)
                assert child.screenshot().startswith(b"\x89PNG")
                assert child.run(read).text.split() == ["child"] * 2
                assert complaints(child.run("dmesg").text) == []
            assert vm.run(read).text.split() == [f"parent{number}"] * 2
        assert complaints(vm.run("dmesg").text) == []


class TestInTheDisk:
    def test_savevm_under_load(self, boot: GuestFactory, tmp_path: Path) -> None:
        disk = tmp_path / "disk.qcow2"
        create_image(str(disk), "qcow2", 64 << 20, {})
        drive = f"file={disk},if=virtio"
        vm = boot("-drive", drive, smp=2)
        arguments = vm.arguments
        vm.write_file("/tmp/load.sh", LOAD.encode())
        vm.run("sh /tmp/load.sh > /dev/null 2>&1 &")
        vm.run("echo saved | dd of=/dev/vda conv=fsync 2> /dev/null")
        until(functools.partial(worked, vm, 0), "the guest works")
        assert vm.qmp("human-monitor-command", command_line="savevm one") == ""
        before = uptime(vm)
        for _ in range(3):
            vm.run("echo later | dd of=/dev/vda conv=fsync 2> /dev/null")
            assert vm.qmp("human-monitor-command", command_line="loadvm one") == ""
            vm.wait_agent(SOON)
            assert uptime(vm) < before + 60
            assert vm.run("head -n 1 /dev/vda").text == "saved"
            until(functools.partial(worked, vm, rounds(vm)), "the guest works on")
        vm.stop()
        with Machine(*arguments, "-loadvm", "one") as vm:
            vm.wait_agent(SOON)
            assert vm.run("head -n 1 /dev/vda").text == "saved"
            assert vm.run("cat /tmp/wrong", check=False).text == ""
            assert complaints(vm.run("dmesg").text) == []


class TestTime:
    def test_stepped(self, boot: GuestFactory, tmp_path: Path) -> None:
        vm = boot()
        early, guest, late = time.time(), vm.agent.get_time() / 1e9, time.time()
        before = uptime(vm)
        vm.snapshot(tmp_path / "saved")
        vm.stop()
        time.sleep(2)
        with Machine.restore(tmp_path / "saved", clock="step") as vm:
            vm.wait_agent(SOON)
            assert uptime(vm) >= before + 2
            later_early, later_guest, later_late = time.time(), vm.agent.get_time() / 1e9, time.time()
            assert later_early - late - 1 < later_guest - guest < later_late - early + 1


class TestCommandLine:
    def test_incoming(self, boot: GuestFactory, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        socket = tmp_path / "ga.sock"
        options = [*boot_options(demo), *agent_options(socket)]
        with Machine(*options, agent=False) as vm:
            vm.wait_console("ready", BOOT)
            vm.snapshot(tmp_path / "saved")
        process = pyvm(*options, "-incoming", f"file:{tmp_path}/saved")
        from pyvm.agent import AgentClient

        with AgentClient(str(socket)).wait(SOON) as agent:
            assert agent.get_osinfo().kernel_release
        assert process.qmp.execute("query-status")["status"] == "running"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved machine without a guest."""
    folder = tmp_path_factory.mktemp("folder") / "saved"
    with Machine("-S", "-m", "16") as vm:
        vm.snapshot(folder)
    return folder


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-m", "32"], "0x1000000 bytes of RAM, not 0x2000000"),
            (["-m", "16", "-smp", "2"], "cpus 1, not 2"),
            (["-m", "16", "-cpu", "max"], "cpu 'qemu64', not 'max'"),
            (["-m", "16", "-device", "virtio-rng-pci"], "without 'virtio-rng-pci@03.0'"),
            (["-m", "16", "-vga", "none"], "with 'vga'"),
        ],
    )
    def test_other_machines(self, saved: Path, arguments: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Machine("-S", *arguments, "-incoming", f"file:{saved}").start()

    def test_a_folder_that_is_there(self, tmp_path: Path) -> None:
        with Machine("-S", "-m", "16") as vm:
            with pytest.raises(MachineError, match="File exists"):
                vm.snapshot(tmp_path)
            with pytest.raises(MachineError, match="No such file"):
                vm.snapshot(tmp_path / "no" / "folder")
            assert vm.qmp("query-status")["status"] == "prelaunch"

    def test_a_disk_that_has_changed(self, tmp_path: Path) -> None:
        """The folder has a copy of what the machine could write to; what it only read must be as it was."""
        disk, cd = tmp_path / "disk.raw", tmp_path / "cd.iso"
        for path in (disk, cd):
            path.write_bytes(bytes(1 << 20))
        with Machine("-S", "-m", "16", drive=f"file={disk},format=raw", cdrom=str(cd)) as vm:
            vm.snapshot(tmp_path / "saved")
        disk.write_bytes(b"x" * (1 << 20))
        with Machine.restore(tmp_path / "saved"):
            pass
        with pytest.raises(ConfigError, match=r"disk\.raw' has changed since the machine was saved"):
            Machine.restore(tmp_path / "saved", disks="images").start()
        cd.write_bytes(b"x" * (1 << 20))
        with pytest.raises(ConfigError, match=r"cd\.iso' has changed since the machine was saved"):
            Machine.restore(tmp_path / "saved").start()
