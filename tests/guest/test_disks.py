"""Disks of all interfaces under Linux: what the guest reads, writes and finds out, and what the host sees of it."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from images.build import Image
from pyvm.agent import AgentClient
from pyvm.qmp_client import QmpError
from tests.guest.conftest import GuestFactory, ProcessFactory
from tests.guest.disk_guest_support import (
    MIB,
    DiskGuest,
    assert_consistent,
    build_diskctl,
    content,
    floppy_module,
    pack_file_system_tools,
    pattern,
    qemu_img,
)
from tests.guest.support import BOOT, SOON, agent_options, boot_options, complaints, until

DISK = 16 * MIB
FLOPPY = 1440 << 10
AREA = 2 * MIB
DISKS = {
    "virtio": r"0000:00:10\.0/virtio\d+/block",
    "virtio-qcow2": r"0000:00:11\.0/virtio\d+/block",
    "scsi": r"0000:00:12\.0/virtio.*:0:3:1/block",
    "ide": r"/ata\d+/.*:0:0:0/block/sd",
}
"""Where in the guest's /sys the disks that may be written are."""
CDS = {"scsi": r"0000:00:12\.0/virtio.*:0:4:0/block", "ide": r"/ata\d+/.*:0:1:0/block/sr"}
READ_ONLY = {"virtio": r"0000:00:13\.0/virtio\d+/block", "scsi": r"0000:00:12\.0/virtio.*:0:5:0/block"}
TOOLS = r"0000:00:14\.0/virtio\d+/block"


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass
class Rig:
    """A guest with disks of all kinds, and their images."""

    guest: DiskGuest
    directory: Path
    data: dict[str, bytes]
    """What is on each disk, by its name here."""

    def path(self, disk: str) -> Path:
        """Return the image of a disk."""
        return self.directory / f"{disk}.{'qcow2' if disk.endswith('qcow2') else 'raw'}"

    def host_content(self, disk: str) -> bytes:
        """Return what the host sees on a disk while the guest is stopped."""
        self.guest.vm.pause()
        try:
            return content(self.path(disk), self.directory)
        finally:
            self.guest.vm.resume()

    def change(self, disk: str, offset: int, data: bytes) -> None:
        """Note that the guest wrote to a disk."""
        before = self.data[disk]
        self.data[disk] = before[:offset] + data + before[offset + len(data) :]


def options(directory: Path) -> list[str]:
    """Return the options of all disks, with their images in `directory`."""

    def drive(name: str, suffix: str = "raw", **more: str) -> list[str]:
        extra = "".join(f",{key.replace('_', '-')}={value}" for key, value in more.items())
        return ["-drive", f"file={directory}/{name}.{suffix},format={suffix},if=none,id={name}{extra}"]

    device = "-device"
    return [
        *("-object", "iothread,id=thread0", "-object", "iothread,id=thread1"),
        *drive("virtio", discard="unmap"),
        *(device, "virtio-blk-pci,addr=10,drive=virtio,iothread=thread0,num-queues=2,serial=VIRTIO-SERIAL"),
        *drive("virtio-qcow2", "qcow2", discard="unmap"),
        *(device, "virtio-blk-pci,addr=11,drive=virtio-qcow2,logical_block_size=4096,physical_block_size=4096"),
        *(device, "virtio-scsi-pci,id=scsi,addr=12,iothread=thread1,num_queues=2"),
        *drive("scsi", discard="unmap"),
        device,
        "scsi-hd,drive=scsi,scsi-id=3,lun=1,serial=SCSI-SERIAL,vendor=PYVM,product=A SCSI DISK,wwn=0x5000c50015ea71ac",
        *drive("scsi-cd", media="cdrom"),
        *(device, "scsi-cd,drive=scsi-cd,scsi-id=4,id=the-scsi-cd"),
        *drive("scsi-read-only", readonly="on"),
        *(device, "scsi-hd,drive=scsi-read-only,scsi-id=5"),
        *drive("ide", discard="unmap"),
        *(device, "ide-hd,drive=ide,bus=ide.0,unit=0,serial=IDE-SERIAL,model=AN IDE DISK,wwn=0x5000c50015ea71ad"),
        *drive("ide-cd", media="cdrom"),
        *(device, "ide-cd,drive=ide-cd,bus=ide.0,unit=1,id=the-ide-cd"),
        *drive("virtio-read-only", readonly="on"),
        *(device, "virtio-blk-pci,addr=13,drive=virtio-read-only"),
        *drive("tools", readonly="on"),
        *(device, "virtio-blk-pci,addr=14,drive=tools"),
        *("-drive", f"file={directory}/floppy.raw,format=raw,if=floppy"),
    ]


@pytest.fixture(scope="module")
def diskctl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_diskctl(tmp_path_factory.mktemp("diskctl"))


@pytest.fixture(scope="module")
def rig(
    boot_shared: GuestFactory, generic: Image, diskctl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """One guest for most tests.  Each disk has an area for each test that writes."""
    directory = tmp_path_factory.mktemp("disks")
    source = random.Random(5)
    names = ["virtio", "scsi", "ide", "scsi-cd", "ide-cd", "virtio-read-only", "scsi-read-only"]
    data = {name: source.randbytes(DISK) for name in names}
    data["floppy"] = source.randbytes(FLOPPY)
    for name, value in data.items():
        (directory / f"{name}.raw").write_bytes(value)
    data["virtio-qcow2"] = bytes(DISK)
    qemu_img("create", "-f", "qcow2", directory / "virtio-qcow2.qcow2", str(DISK))
    pack_file_system_tools(directory / "tools.raw")
    # Now, as unpacking takes the processor from a guest that runs in the same process.
    (directory / "floppy.ko").write_bytes(floppy_module(generic))
    vm = boot_shared(*options(directory), image=generic, smp=2)
    guest = DiskGuest(vm)
    guest.prepare(diskctl)
    rig = Rig(guest, directory, data)
    yield rig
    vm.quit()
    assert_consistent(directory / "virtio-qcow2.qcow2")
    for name, value in rig.data.items():
        assert content(rig.path(name), directory) == value, name


class TestReading:
    @pytest.mark.parametrize("disk", ["virtio", "scsi", "ide"])
    def test_disks(self, rig: Rig, disk: str) -> None:
        assert rig.guest.digest(rig.guest.disk_at(DISKS[disk])) == digest(rig.data[disk])

    @pytest.mark.parametrize("interface", list(CDS))
    def test_cd_roms(self, rig: Rig, interface: str) -> None:
        name = rig.guest.disk_at(CDS[interface])
        assert rig.guest.digest(name) == digest(rig.data[f"{interface}-cd"])
        assert rig.guest.queue(name, "logical_block_size") == "2048"

    def test_floppy(self, rig: Rig) -> None:
        guest = rig.guest
        guest.vm.write_file("/tmp/floppy.ko", (rig.directory / "floppy.ko").read_bytes())
        guest.run("insmod /tmp/floppy.ko")
        # What is asked for in any order is there, and so is all of it.
        middle = rig.data["floppy"][700 << 10 : 740 << 10]
        read = "dd if=/dev/fd0 bs=1k skip=700 count=40 2>/dev/null | md5sum"
        assert guest.run(read).split()[0] == digest(middle)
        assert guest.digest("fd0") == digest(rig.data["floppy"])
        assert guest.run("cat /sys/block/fd0/size") == str(FLOPPY // 512)
        guest.run("dd if=/dev/urandom of=/tmp/new bs=1k count=36; dd if=/tmp/new of=/dev/fd0 bs=1k seek=99 conv=fsync")
        rig.change("floppy", 99 << 10, guest.vm.read_file("/tmp/new"))
        assert rig.host_content("floppy") == rig.data["floppy"]
        assert not re.search(r"floppy.*(error|timeout)", guest.run("dmesg"), re.IGNORECASE)


class TestWriting:
    @pytest.mark.parametrize("disk", list(DISKS))
    def test_what_is_flushed_is_on_the_host(self, rig: Rig, disk: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])
        guest.fill(name, 1, 0, AREA)
        rig.change(disk, 0, pattern(1, 0, AREA))
        # Not even stopped: the guest has been told that it is safe.
        assert content(rig.path(disk), rig.directory) == rig.data[disk]
        guest.verify(name, 1, 0, AREA)

    @pytest.mark.parametrize("disk", list(DISKS))
    def test_buffered_writes_in_pieces(self, rig: Rig, disk: str) -> None:
        """Many requests at once, of all sizes, on both processors."""
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])
        guest.run(
            f"dd if=/dev/urandom of=/tmp/p bs=64k count={AREA >> 16}; for i in 0 1 2 3; do "
            f"(taskset $((1 + i % 2)) dd if=/tmp/p of=/dev/{name} bs=4k skip=$((i * 128)) count=128 "
            f"seek=$(({AREA} / 4096 + i * 128)) conv=fsync) & done; wait"
        )
        rig.change(disk, AREA, guest.vm.read_file("/tmp/p"))
        assert rig.host_content(disk) == rig.data[disk]
        assert (
            guest.run(f"dd if=/dev/{name} bs={AREA} skip=1 count=1 iflag=direct | cmp - /tmp/p && echo same") == "same"
        )

    @pytest.mark.parametrize("disk", list(DISKS))
    def test_flushes_reach_the_drive(self, rig: Rig, disk: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])

        def flushes() -> int:
            return next(item.stats.flush_ios or 0 for item in guest.vm.agent.get_diskstats() if item.name == name)

        pc = guest.vm._pc
        assert pc is not None
        stats = pc.storage.drives[disk].backend.stats
        assert guest.queue(name, "write_cache") == "write back"
        before, told = flushes(), stats.report()["flush_operations"]
        guest.fill(name, 1, 0, 64 << 10)
        assert flushes() > before
        assert stats.report()["flush_operations"] > told

    @pytest.mark.parametrize("disk", list(DISKS))
    def test_without_write_cache_no_flush_is_needed(self, rig: Rig, disk: str) -> None:
        """The guest switches the cache off, and every write is durable; and on again."""
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])
        pc = guest.vm._pc
        assert pc is not None
        backend = pc.storage.drives[disk].backend
        switch = (
            f"/sys/block/{name}/cache_type"
            if disk.startswith("virtio")
            else f"/sys/block/{name}/device/scsi_disk/*/cache_type"
        )
        try:
            guest.run(f"for f in {switch}; do echo 'write through' > $f; done")
            assert guest.queue(name, "write_cache") == "write through"
            assert backend.write_cache is False
            before = os.stat(rig.path(disk)).st_mtime_ns
            guest.run(f"dd if=/dev/zero of=/dev/{name} bs=64k count=1 seek=8 oflag=direct")
            rig.change(disk, 8 << 16, bytes(64 << 10))
            assert os.stat(rig.path(disk)).st_mtime_ns > before
            assert content(rig.path(disk), rig.directory)[8 << 16 : 9 << 16] == bytes(64 << 10)
        finally:
            guest.run(f"for f in {switch}; do echo 'write back' > $f; done")
        assert guest.queue(name, "write_cache") == "write back"
        assert backend.write_cache is True

    @pytest.mark.parametrize("interface", list(READ_ONLY))
    def test_read_only_disks_stay_as_they_are(self, rig: Rig, interface: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(READ_ONLY[interface])
        assert guest.run(f"cat /sys/block/{name}/ro") == "1"
        assert not guest.vm.run(
            f"blockdev --setrw /dev/{name}; dd if=/dev/zero of=/dev/{name} bs=4k count=1", check=False
        ).ok
        assert guest.digest(name) == digest(rig.data[f"{interface}-read-only"])


class TestDiscard:
    @pytest.mark.parametrize("disk", list(DISKS))
    def test_frees_room_on_the_host(self, rig: Rig, disk: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])
        if disk == "ide" and guest.queue(name, "discard_max_bytes") == "0":
            # Only a whitelist of disks may TRIM unless it is said that zeros come back.
            guest.run(f"echo unmap > $(ls /sys/block/{name}/device/scsi_disk/*/provisioning_mode)")
        assert int(guest.queue(name, "discard_max_bytes")) > 0
        guest.fill(name, 2, 4 * MIB, AREA)
        before = rig.path(disk).stat()
        guest.run(f"blkdiscard -o {4 * MIB} -l {AREA} /dev/{name}")
        rig.change(disk, 4 * MIB, bytes(AREA))
        assert rig.host_content(disk) == rig.data[disk]
        after = rig.path(disk).stat()
        assert after.st_blocks <= before.st_blocks - AREA // 512
        assert after.st_size == before.st_size


class TestIdentity:
    def test_virtio(self, rig: Rig) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS["virtio"])
        assert guest.run(f"cat /sys/block/{name}/serial") == "VIRTIO-SERIAL"
        assert guest.run(f"ls /sys/block/{name}/mq").split() == ["0", "1"]
        assert guest.run(f"cat /sys/block/{name}/size") == str(DISK // 512)

    def test_block_size(self, rig: Rig) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS["virtio-qcow2"])
        assert guest.queue(name, "logical_block_size") == "4096"
        assert guest.queue(name, "physical_block_size") == "4096"
        for size, possible in ((4096, True), (512, False)):
            assert guest.vm.run(f"/tmp/diskctl rate read /dev/{name} {size} 4 1", check=False).ok == possible

    def test_scsi(self, rig: Rig) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS["scsi"])
        device = f"/sys/block/{name}/device"
        assert guest.run(f"cat {device}/vendor {device}/model").split() == ["PYVM", "A", "SCSI", "DISK"]
        assert guest.vm.run(f"cat {device}/vpd_pg80").stdout[4:].decode() == "SCSI-SERIAL"
        assert guest.run(f"cat {device}/wwid") == "naa.5000c50015ea71ac"
        assert guest.run(f"ls /sys/block/{name}/mq").split() == ["0", "1"]

    def test_ide(self, rig: Rig) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS["ide"])
        device = f"/sys/block/{name}/device"
        assert guest.run(f"cat {device}/model").strip() == "AN IDE DISK"
        assert guest.run(f"cat {device}/wwid") == "naa.5000c50015ea71ad"
        # What libata makes of IDENTIFY DEVICE.
        assert guest.vm.run(f"cat {device}/vpd_pg80").stdout[4:].decode().strip() == "IDE-SERIAL"
        assert rig.guest.run(f"cat {device}/rev").strip() == "2.5+"


class TestTray:
    @pytest.mark.parametrize("interface", list(CDS))
    def test_the_guest_opens_and_closes_it(self, rig: Rig, interface: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(CDS[interface])
        # The kernel closes the tray when it opens a drive, unless it is told not to.
        guest.run("echo 0 > /proc/sys/dev/cdrom/autoclose")
        guest.vm.monitor.events()
        for is_open in (True, False):
            assert guest.diskctl("tray", "open" if is_open else "close", f"/dev/{name}") == ""
            event = guest.vm.wait_event("DEVICE_TRAY_MOVED", SOON)
            assert event["data"] == {"device": f"{interface}-cd", "id": f"the-{interface}-cd", "tray-open": is_open}
            readable = guest.vm.run(f"dd if=/dev/{name} of=/dev/null bs=2k count=1", check=False).ok
            assert readable == (not is_open)
        assert guest.digest(name) == digest(rig.data[f"{interface}-cd"])

    @pytest.mark.parametrize("interface", list(CDS))
    def test_the_monitor_changes_the_medium(self, rig: Rig, interface: str) -> None:
        """Another one, of another size, then the first again; and never while the guest has it open."""
        guest, name, device = rig.guest, rig.guest.disk_at(CDS[interface]), f"the-{interface}-cd"
        other = rig.directory / "other.iso"
        data = random.Random(6).randbytes(3 * MIB)
        other.write_bytes(data)

        def change(path: Path, *expected: bool) -> None:
            guest.vm.monitor.events()
            guest.vm.qmp("blockdev-change-medium", id=device, filename=str(path), format="raw")
            assert [guest.vm.wait_event("DEVICE_TRAY_MOVED", SOON)["data"]["tray-open"] for _ in expected] == [
                *expected
            ]
            # With an IDE drive, the first access fails, and tells the guest by that.
            guest.vm.run(f"dd if=/dev/{name} of=/dev/null bs=2k count=1", check=False)

        change(other, True, False)
        assert guest.digest(name) == digest(data)
        assert guest.run(f"cat /sys/block/{name}/size").strip() == str(len(data) // 512)
        change(rig.path(f"{interface}-cd"), True, False)
        assert guest.digest(name) == digest(rig.data[f"{interface}-cd"])

        guest.run(f"sleep 1000 < /dev/{name} > /dev/null 2>&1 & echo $! > /tmp/holder")
        until(lambda: _drive(guest, device)["locked"], "the tray is locked")
        with pytest.raises(QmpError, match="is locked and force was not specified"):
            guest.vm.qmp("blockdev-change-medium", id=device, filename=str(other), format="raw")
        guest.run("kill $(cat /tmp/holder)")
        until(lambda: not _drive(guest, device)["locked"], "the tray is free")
        guest.vm.qmp("eject", id=device)
        assert "medium" in guest.vm.run(f"dd if=/dev/{name} of=/dev/null bs=2k count=1", check=False).stderr.decode()
        change(rig.path(f"{interface}-cd"), False)
        assert guest.digest(name) == digest(rig.data[f"{interface}-cd"])


def _drive(guest: DiskGuest, device: str) -> dict[str, Any]:
    return next(drive for drive in guest.vm.qmp("query-block") if device in drive.get("qdev", ""))


class TestFileSystem:
    def test_ext4_on_qcow2(self, rig: Rig) -> None:
        """The areas of other tests are not touched: the file system is behind them."""
        guest, name = rig.guest, rig.guest.disk_at(DISKS["virtio-qcow2"])
        tools = "/tmp/tools/ld-linux-x86-64.so.2 --library-path /tmp/tools /tmp/tools"
        guest.run(f"mkdir -p /tmp/tools && tar x -C /tmp/tools < /dev/{guest.disk_at(TOOLS)}")
        guest.run(f"modprobe loop && losetup -o {8 * MIB} /dev/loop0 /dev/{name}")
        guest.run(
            f"{tools}/mke2fs -q -t ext4 -b 4096 /dev/loop0 && modprobe ext4 && mkdir -p /tmp/fs && "
            "mount -t ext4 /dev/loop0 /tmp/fs"
        )
        assert "ext4" in guest.run("grep /tmp/fs /proc/mounts")
        guest.run(
            "mkdir /tmp/fs/many && for i in $(seq 200); do seq $i 300 > /tmp/fs/many/$i; done; cp -r /lib/pyvm /tmp/fs"
        )
        guest.run(
            "dd if=/dev/urandom of=/tmp/fs/large bs=64k count=32 && rm -r /tmp/fs/many/1?? && fstrim /tmp/fs; sync"
        )
        sums = guest.run("cd /tmp/fs && find . -type f | sort | xargs md5sum")
        guest.run("umount /tmp/fs && echo 3 > /proc/sys/vm/drop_caches")
        guest.run(f"{tools}/e2fsck -f -n /dev/loop0 && mount -t ext4 /dev/loop0 /tmp/fs")
        assert guest.run("cd /tmp/fs && find . -type f | sort | xargs md5sum") == sums
        guest.run("umount /tmp/fs && losetup -d /dev/loop0")
        rig.data["virtio-qcow2"] = rig.data["virtio-qcow2"][: 8 * MIB] + rig.host_content("virtio-qcow2")[8 * MIB :]


class TestLoad:
    @pytest.mark.parametrize("disk", list(DISKS))
    def test_stop_and_cont_while_it_reads_and_writes(self, rig: Rig, disk: str) -> None:
        guest, name = rig.guest, rig.guest.disk_at(DISKS[disk])
        result: list[str] = []
        load = threading.Thread(
            target=lambda: result.append(guest.diskctl("churn", f"/dev/{name}", 3, AREA, 2.5, timeout=BOOT))
        )
        load.start()
        stops = 0
        while load.is_alive():
            guest.vm.pause()
            assert guest.vm.qmp("query-status")["status"] == "paused"
            time.sleep(0.02)
            guest.vm.resume()
            stops += 1
            time.sleep(0.05)
        load.join()
        assert stops > 5
        assert re.fullmatch(r"[1-9]\d+", result[0])
        guest.fill(name, 4, 0, AREA)
        rig.change(disk, 0, pattern(4, 0, AREA))

    def test_nothing_was_wrong(self, rig: Rig) -> None:
        log = rig.guest.run("dmesg")
        assert complaints(log) == []
        writes = [line for line in log.splitlines() if "I/O error" in line and "WRITE" not in line]
        assert [line for line in writes if not re.search(r"dev sr\d", line)] == []


class TestGraph:
    """What -drive, -blockdev and -snapshot make of an image."""

    def test_chains_and_temporary_changes(
        self, boot: GuestFactory, generic: Image, diskctl: Path, tmp_path: Path
    ) -> None:
        """One guest, a disk for each: a snapshot, copy-on-read, a chain of -blockdev, a json: name."""
        data = random.Random(6).randbytes(8 * MIB)
        for name in ("snapshot", "base", "chain", "json"):
            (tmp_path / f"{name}.raw").write_bytes(data)
        for name, base in (("copy", "base.raw"), ("overlay", "chain.raw")):
            qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / base, "-F", "raw", tmp_path / f"{name}.qcow2")
        vm = boot(
            *("-drive", f"file={tmp_path}/snapshot.raw,format=raw,if=none,id=d0,snapshot=on"),
            *("-drive", f"file={tmp_path}/copy.qcow2,format=qcow2,if=none,id=d1,copy-on-read=on"),
            *("-blockdev", f"driver=file,node-name=file0,filename={tmp_path}/overlay.qcow2"),
            *("-blockdev", '{"driver": "qcow2", "node-name": "disk0", "file": "file0", "discard": "unmap"}'),
            *(
                "-drive",
                f'file=json:{{"driver":"raw",,"file":{{"driver":"file",,"filename":"{tmp_path}/json.raw"}}}},if=none,id=d3',
            ),
            *("-device", "virtio-blk-pci,drive=d0,addr=10", "-device", "virtio-blk-pci,drive=d1,addr=11"),
            *("-device", "virtio-blk-pci,drive=disk0,addr=12", "-device", "virtio-blk-pci,drive=d3,addr=13"),
            image=generic,
        )
        guest = DiskGuest(vm)
        guest.prepare(diskctl)
        names = [guest.disk_at(rf"0000:00:1{number}\.0/virtio") for number in range(4)]
        assert [guest.digest(name) for name in names] == [digest(data)] * 4
        for name in (names[0], names[2], names[3]):
            guest.fill(name, 9, MIB, MIB)
            guest.verify(name, 9, MIB, MIB)
        written = data[:MIB] + pattern(9, MIB, MIB) + data[2 * MIB :]
        assert guest.digest(names[0]) == digest(written)
        vm.quit()
        assert (tmp_path / "snapshot.raw").read_bytes() == data
        assert (tmp_path / "chain.raw").read_bytes() == data
        assert (tmp_path / "json.raw").read_bytes() == written
        assert content(tmp_path / "overlay.qcow2", tmp_path) == written
        # What was read is in the overlay now, all of it.
        assert (tmp_path / "copy.qcow2").stat().st_blocks >= 8 * MIB // 512
        qemu_img("rebase", "-u", "-b", "", tmp_path / "copy.qcow2")
        assert content(tmp_path / "copy.qcow2", tmp_path) == data
        for name in ("overlay", "copy"):
            assert_consistent(tmp_path / f"{name}.qcow2")

    @pytest.mark.parametrize("suffix", ["raw", "qcow2"])
    def test_an_image_has_one_user(self, pyvm: ProcessFactory, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"disk.{suffix}"
        qemu_img("create", "-q", "-f", suffix, path, "1M")
        words = ("-S", "-drive", f"file={path},format={suffix},if=virtio")
        first = pyvm(*words)
        first.qmp.command("query-status")
        status, _, error = pyvm(*words, qmp=False).end()
        assert status == 1
        assert f'Failed to get "write" lock\nIs another process using the image [{path}]?' in error
        first.qmp.command("quit")
        assert first.end()[0] == 0
        again = pyvm(*words)
        assert again.qmp.command("query-status")["status"] == "prelaunch"


class TestEnd:
    def test_reset_panic_and_quit_under_load(
        self, pyvm: ProcessFactory, generic: Image, diskctl: Path, tmp_path: Path
    ) -> None:
        """However a machine ends, or begins again, while it writes: it does so at once, and the image is in order."""
        image = tmp_path / "disk.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", image, "64M")
        disk = ["-drive", f"file={image},if=none,id=d0,format=qcow2", "-device", "virtio-blk-pci,drive=d0"]
        words = [*boot_options(generic, "panic=1"), *agent_options(tmp_path / "ga"), *disk]
        process = pyvm(*words)

        def start_load(agent: AgentClient, seed: int) -> None:
            agent.wait(BOOT)
            agent.write_file("/tmp/diskctl", diskctl.read_bytes())
            agent.run("chmod 755 /tmp/diskctl", check=True)
            before = image.stat().st_mtime_ns
            agent.run(
                f"for n in 0 1 2; do /tmp/diskctl churn /dev/vda $(({seed} + n)) {48 * MIB} 100 >/dev/null 2>&1 & done",
                check=True,
            )
            until(lambda: image.stat().st_mtime_ns > before + 200_000_000, "some writing")

        with AgentClient(str(tmp_path / "ga")) as agent:
            start_load(agent, 1)
            process.qmp.command("system_reset")
            process.qmp.wait_event("RESET", timeout=SOON)
            start_load(agent, 10)
            agent.exec("/bin/sh", ["-c", "echo c > /proc/sysrq-trigger"])
            process.qmp.wait_event("RESET", timeout=SOON)
            assert "Kernel panic" in process.console_text
            start_load(agent, 20)
            process.qmp.command("quit")
            assert process.end() == (0, "", "")  # and not when the writing ends
        assert_consistent(image)
