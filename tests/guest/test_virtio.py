"""Virtio devices under Linux's drivers: every transport and ring format, and what each device is for."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import time
from pathlib import Path

import pytest

from images.build import Image
from pyvm import Machine
from pyvm.agent import AgentClient
from tests.guest.conftest import GuestFactory, ProcessFactory
from tests.guest.support import BOOT, SOON, Process, agent_options, boot_options, complaints, until

MIB = 1 << 20
DISK = 32 * MIB
TRANSPORTS = {
    "transitional": ("", ""),
    "modern": ("disable-legacy=on", ""),
    "non-transitional": ("", "-non-transitional"),
    "legacy": ("disable-modern=on", ""),
    "packed": ("packed=on", ""),
    "packed-intx": ("packed=on,vectors=0", ""),
    "intx": ("vectors=0", ""),
    "legacy-intx": ("disable-modern=on,vectors=0", ""),
    "no-event-index": ("event_idx=off,indirect_desc=off", ""),
    "bare": ("event_idx=off,indirect_desc=off,packed=on,vectors=2", ""),
}


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def make_disk(path: Path, size: int = DISK) -> bytes:
    data = random.Random(3).randbytes(size)
    path.write_bytes(data)
    return data


def drive(path: Path, name: str = "d0", **more: str) -> dict[str, str]:
    return {"file": str(path), "if": "none", "id": name, "format": "raw", **more}


class TestTransports:
    """All devices at once on each way to reach them: an agent, entropy, a disk and a balloon."""

    @pytest.mark.parametrize("kind", list(TRANSPORTS))
    def test_devices_work(self, boot: GuestFactory, tmp_path: Path, kind: str) -> None:
        properties, suffix = TRANSPORTS[kind]
        more = f",{properties}" if properties else ""
        data = make_disk(tmp_path / "disk")
        vm = boot(
            *("-device", f"virtio-serial-pci{suffix}{more}", "-device", f"virtio-rng-pci{suffix}{more}"),
            *("-device", f"virtio-blk-pci{suffix},drive=d0{more}"),
            # A balloon has no MSI-X, so it knows no vectors.
            *("-device", f"virtio-balloon-pci{suffix}" + re.sub(r",vectors=\d+", "", more)),
            drive=drive(tmp_path / "disk"),
            smp=2,
        )
        assert vm.run("md5sum < /dev/vda").text.split()[0] == digest(data)
        vm.run("dd if=/dev/urandom of=/tmp/new bs=64k count=32 && dd if=/tmp/new of=/dev/vda bs=64k seek=8 conv=fsync")
        written = vm.read_file("/tmp/new")
        assert (tmp_path / "disk").read_bytes() == data[: 8 << 16] + written + data[(8 << 16) + len(written) :]
        assert len(set(vm.run("dd if=/dev/hwrng bs=512 count=4").stdout)) > 200
        vm.qmp("balloon", value=448 * MIB)
        until(lambda: vm.qmp("query-balloon")["actual"] == 448 * MIB, "the balloon's size")
        self._check_transport(vm, kind)
        assert complaints(vm.run("dmesg").text) == []

    def _check_transport(self, vm: Machine, kind: str) -> None:
        features = vm.run("cat /sys/bus/virtio/devices/*/features").text.split()
        assert len(features) == 4
        for feature in features:
            # The file shows bit 0 first.
            assert (feature[32] == "1") == ("legacy" not in kind), "VERSION_1"
            assert (feature[34] == "1") == (kind in ("packed", "packed-intx", "bare")), "RING_PACKED"
        interrupts = vm.run("cat /proc/interrupts").text
        vectors = re.search(r"PCI-MSI.*virtio\d+-", interrupts)
        assert bool(vectors) == ("intx" not in kind), interrupts
        ids = set(vm.run("cat /sys/bus/pci/devices/*/device").text.split())
        modern_ids = {"0x1042", "0x1043", "0x1044", "0x1045"}
        legacy_ids = {"0x1001", "0x1003", "0x1005", "0x1002"}
        assert ids & (modern_ids | legacy_ids) == (modern_ids if kind in ("modern", "non-transitional") else legacy_ids)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk") / "disk.raw"


@pytest.fixture(scope="module")
def disk_vm(boot_shared: GuestFactory, disk: Path) -> Machine:
    make_disk(disk)
    helper = disk.with_name("blkctl")
    source = Path(__file__).with_name("blkctl.c")
    subprocess.run(["gcc", "-static", "-O2", "-s", str(source), "-o", str(helper)], check=True)
    make_disk(disk.with_name("second"), MIB)
    vm = boot_shared(
        smp=2,
        drive=[drive(disk, discard="unmap"), drive(disk.with_name("second"), "d1", readonly="on")],
        device=[
            "virtio-blk-pci,drive=d0,serial=ABC-123,num-queues=2,queue-size=64,logical_block_size=4096,physical_block_size=4096",
            "virtio-blk-pci,drive=d1",
        ],
    )
    vm.write_file("/tmp/blkctl", helper.read_bytes())
    vm.run("chmod 755 /tmp/blkctl")
    return vm


class TestDisk:
    def test_identity(self, disk_vm: Machine) -> None:
        assert disk_vm.run("cat /sys/block/vda/serial").text == "ABC-123"
        assert disk_vm.run("cat /sys/block/vda/size").text == str(DISK // 512)
        assert disk_vm.run("cat /sys/block/vda/queue/logical_block_size").text == "4096"
        assert disk_vm.run("ls /sys/block/vda/mq").text.split() == ["0", "1"]
        assert disk_vm.run("cat /sys/block/vda/mq/0/nr_tags").text == "64"
        requests = re.findall(r"virtio\d+-req\.(\d)", disk_vm.run("cat /proc/interrupts").text)
        assert {"0", "1"} <= set(requests)

    def test_reading_and_writing_on_both_queues(self, disk_vm: Machine, disk: Path) -> None:
        for cpu in (0, 1):
            disk_vm.run("echo 3 > /proc/sys/vm/drop_caches")
            assert disk_vm.run(f"taskset {cpu + 1} md5sum < /dev/vda").text.split()[0] == digest(disk.read_bytes())
            source = f"dd if=/dev/urandom bs=4k count=16 | tee /tmp/r{cpu}"
            disk_vm.run(f"{source} | taskset {cpu + 1} dd of=/dev/vda bs=4k seek={cpu * 16} conv=fsync")
            assert disk.read_bytes()[cpu << 16 : (cpu + 1) << 16] == disk_vm.read_file(f"/tmp/r{cpu}")

    def test_flush(self, disk_vm: Machine) -> None:
        def flushes() -> int:
            return next(disk.stats.flush_ios or 0 for disk in disk_vm.agent.get_diskstats() if disk.name == "vda")

        assert disk_vm.run("cat /sys/block/vda/queue/write_cache").text == "write back"
        before = flushes()
        disk_vm.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync")
        assert flushes() > before

    def test_discard_frees_room_on_the_host(self, disk_vm: Machine, disk: Path) -> None:
        before = disk.stat().st_blocks
        disk_vm.run(f"/tmp/blkctl discard /dev/vda {8 * MIB} {8 * MIB}")
        assert disk.stat().st_blocks <= before - 8 * MIB // 512
        assert disk.read_bytes()[8 * MIB : 16 * MIB] == bytes(8 * MIB)
        assert disk.stat().st_size == DISK

    def test_write_zeroes(self, disk_vm: Machine, disk: Path) -> None:
        assert int(disk_vm.run("cat /sys/block/vda/queue/write_zeroes_max_bytes").text) > 0
        before = disk.read_bytes()
        disk_vm.run(f"/tmp/blkctl zero /dev/vda {20 * MIB + 4096} {MIB}")
        after = disk.read_bytes()
        start = 20 * MIB + 4096
        assert after[start : start + MIB] == bytes(MIB)
        assert after[:start] == before[:start]
        assert after[start + MIB :] == before[start + MIB :]

    def test_many_requests_at_once(self, disk_vm: Machine, disk: Path) -> None:
        script = (
            "for i in 0 1 2 3 4 5 6 7; do (dd if=/dev/urandom of=/tmp/p$i bs=64k count=8; "
            "dd if=/tmp/p$i of=/dev/vda bs=4k seek=$((4096 + i * 128)) oflag=direct) 2>/dev/null & done; wait;"
            "cat /tmp/p?"
        )
        assert disk.read_bytes()[16 * MIB :][: 4 * MIB] != (data := disk_vm.run(script, BOOT).stdout)
        disk_vm.run("sync")
        assert disk.read_bytes()[16 * MIB : 20 * MIB] == data

    def test_read_only_disk(self, disk_vm: Machine, disk: Path) -> None:
        assert disk_vm.run("cat /sys/block/vdb/ro").text == "1"
        assert disk_vm.run("md5sum < /dev/vdb").text.split()[0] == digest(disk.with_name("second").read_bytes())
        assert not disk_vm.run("dd if=/dev/zero of=/dev/vdb bs=512 count=1", check=False).ok

    def test_drive_option_alone_gives_a_disk(self, boot: GuestFactory, tmp_path: Path) -> None:
        data = make_disk(tmp_path / "disk", MIB)
        vm = boot(drive=f"file={tmp_path}/disk,format=raw,if=virtio")
        assert vm.run("md5sum < /dev/vda").text.split()[0] == digest(data)


class TestRng:
    def test_entropy(self, boot: GuestFactory) -> None:
        vm = boot(device="virtio-rng-pci,max-bytes=4096,period=1000")
        assert vm.run("cat /sys/class/misc/hw_random/rng_current").text.startswith("virtio_rng")
        first, second = (vm.run("dd if=/dev/hwrng bs=1024 count=2").stdout for _ in range(2))
        assert len(first) == len(second) == 2048
        assert first != second
        # Not more than 4096 bytes a second.
        start = time.monotonic()
        vm.run("dd if=/dev/hwrng of=/dev/null bs=1024 count=16")
        assert time.monotonic() - start > 2


class TestBalloon:
    def _resident(self, process: Process) -> int:
        """Return how much memory of the host the guest's RAM takes, in bytes."""
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        return (
            sum(int(value) for value in re.findall(r"^Rss(?:Anon|Shmem|File):\s+(\d+) kB", status, re.MULTILINE)) << 10
        )

    def test_memory_goes_back_to_the_host(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        process = pyvm(*boot_options(demo), *agent_options(tmp_path / "ga"), "-device", "virtio-balloon-pci,id=b")
        with AgentClient(str(tmp_path / "ga")).wait(BOOT) as agent:
            agent.run("head -c 200000000 /dev/zero > /tmp/full", timeout=BOOT, check=True)
            full = self._resident(process)
            agent.run("rm /tmp/full", check=True)
            total = int(agent.run("grep MemTotal /proc/meminfo").text.split()[1])
            process.qmp.command("balloon", value=300 * MIB)
            until(lambda: process.qmp.command("query-balloon") == {"actual": 300 * MIB}, "the balloon")
            assert process.qmp.wait_event("BALLOON_CHANGE", timeout=SOON)["data"]["actual"] < 512 * MIB
            assert full - self._resident(process) > 120 * MIB
            less = int(agent.run("grep MemTotal /proc/meminfo").text.split()[1])
            assert total - less == pytest.approx(212 * 1024, rel=0.02)
            process.qmp.command("balloon", value=512 * MIB)
            until(lambda: process.qmp.command("query-balloon") == {"actual": 512 * MIB}, "the balloon")
            assert int(agent.run("grep MemTotal /proc/meminfo").text.split()[1]) == total
            # What comes back is memory that works.
            agent.run("head -c 200000000 /dev/zero > /tmp/full && [ $(md5sum < /tmp/full | cut -c1-8) ]", check=True)

    def test_free_pages_are_reported(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        balloon = "virtio-balloon-pci,free-page-reporting=on"
        process = pyvm(*boot_options(demo), *agent_options(tmp_path / "ga"), "-device", balloon)
        with AgentClient(str(tmp_path / "ga")).wait(BOOT) as agent:
            agent.run("head -c 200000000 /dev/zero > /tmp/full", timeout=BOOT, check=True)
            full = self._resident(process)
            agent.run("rm /tmp/full", check=True)
            until(lambda: full - self._resident(process) > 120 * MIB, "memory given back")
            assert agent.run("seq 1000 | md5sum").text.split()[0] == digest(
                b"".join(b"%d\n" % n for n in range(1, 1001))
            )

    def test_deflate_on_oom(self, boot: GuestFactory) -> None:
        vm = boot(device="virtio-balloon-pci,deflate-on-oom=on")
        vm.qmp("balloon", value=160 * MIB)
        until(lambda: vm.qmp("query-balloon")["actual"] <= 200 * MIB, "the balloon")
        vm.run("mount -t tmpfs -o size=400m none /mnt && head -c 200000000 /dev/zero > /mnt/much", BOOT)
        assert vm.run("stat -c %s /mnt/much").text == "200000000"
        assert vm.qmp("query-balloon")["actual"] > 200 * MIB
        assert "Out of memory" not in vm.run("dmesg").text

    def test_statistics(self, boot: GuestFactory) -> None:
        vm = boot(device="virtio-balloon-pci,guest-stats-polling-interval=1")
        pc = vm._pc
        assert pc is not None
        assert pc.balloon is not None

        def stats() -> dict[str, int]:
            with pc.lock:
                shown = pc.balloon.guest_stats()
            found = shown["stats"]
            assert isinstance(found, dict)
            return {**found, "last-update": int(str(shown["last-update"]))}

        found = until(lambda: (now := stats())["last-update"] and now, "statistics")
        info = dict(line.split(":") for line in vm.run("cat /proc/meminfo").text.splitlines())
        assert found["stat-total-memory"] == int(info["MemTotal"].split()[0]) * 1024
        free = int(info["MemFree"].split()[0]) * 1024
        assert found["stat-free-memory"] == pytest.approx(free, abs=32 * MIB)
        assert abs(found["last-update"] - time.time()) < 30
        vm.run("head -c 100000000 /dev/zero > /tmp/much")
        until(lambda: stats()["stat-free-memory"] < free - 60 * MIB, "new statistics")


class TestPorts:
    def test_events_say_when_the_agent_opens_its_port(self, boot: GuestFactory) -> None:
        vm = boot(
            *("-device", "virtio-serial-pci", "-chardev", "null,id=n0", "-chardev", "null,id=n1"),
            *("-device", "virtserialport,chardev=n0,name=org.example.a,id=port-a"),
            *("-device", "virtserialport,chardev=n1,name=org.example.b,nr=9,id=port-b"),
        )
        vm.monitor.events()
        for name in ("a", "b"):
            vm.run(f"exec 3</dev/virtio-ports/org.example.{name}; exec 3<&-")
            for is_open in (True, False):
                event = vm.wait_event("VSERPORT_CHANGE", SOON)
                assert event["data"] == {"open": is_open, "id": f"port-{name}"}
        assert vm.run("cat /sys/class/virtio-ports/vport*p9/name").text == "org.example.b"
        assert os.path.basename(vm.run("readlink /dev/virtio-ports/org.example.b").text).endswith("p9")

    def test_events_of_the_agent_itself(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        options = agent_options(tmp_path / "ga")
        options[-1] += ",id=agent"
        process = pyvm(*boot_options(demo), *options)
        event = process.qmp.wait_event("VSERPORT_CHANGE", timeout=BOOT)
        assert event["data"] == {"open": True, "id": "agent"}
        with AgentClient(str(tmp_path / "ga")).wait(BOOT) as agent:
            agent.exec("/bin/sh", ["-c", "sleep 0.2; killall qemu-ga"])
        event = process.qmp.wait_event("VSERPORT_CHANGE", timeout=SOON)
        assert event["data"] == {"open": False, "id": "agent"}
        # init starts it again.
        event = process.qmp.wait_event("VSERPORT_CHANGE", timeout=SOON)
        assert event["data"] == {"open": True, "id": "agent"}
