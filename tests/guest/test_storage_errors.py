"""When the host's storage fails or is slow: full disks, unreadable images, limits; a guest loses nothing."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from images.build import Image
from pyvm.agent import AgentClient
from tests.guest.conftest import GuestFactory, ProcessFactory
from tests.guest.disk_guest_support import (
    BLOCK,
    MIB,
    DiskGuest,
    assert_consistent,
    build_diskctl,
    content,
    pattern,
    qemu_img,
)
from tests.guest.support import BOOT, SOON, agent_options, boot_options, until

DISK = 12 * MIB
ROOM = 40 * MIB
SLACK = 2 * MIB
"""What is left on the full file system when the guest starts to write 4 MiB."""
EIO, ENOSPC = 5, 28
PLACES = {
    "virtio": r"0000:00:10\.0/virtio\d+/block",
    "virtio-qcow2": r"0000:00:11\.0/virtio\d+/block",
    "virtio-report": r"0000:00:12\.0/virtio\d+/block",
    "virtio-ignore": r"0000:00:13\.0/virtio\d+/block",
    "ide": r"/ata1/.*:0:0:0/block",
    "ide-report": r"/ata1/.*:0:1:0/block",
    "ide-ignore": r"/ata2/.*:0:0:0/block",
    "scsi": r"0000:00:14\.0/virtio.*:0:0:0/block",
    "scsi-report": r"0000:00:14\.0/virtio.*:0:1:0/block",
    "scsi-ignore": r"0000:00:14\.0/virtio.*:0:2:0/block",
}
INTERFACES = ("virtio", "ide", "scsi")


def suffix(disk: str) -> str:
    return "qcow2" if disk.endswith("qcow2") else "raw"


@contextlib.contextmanager
def small_file_system(directory: Path) -> Iterator[None]:
    """A file system of its own at `directory`, with `ROOM` bytes; skips where nobody may mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, f"size={ROOM}".encode()) != 0:
        pytest.skip(f"mounting a tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(directory), 2)


@dataclass
class Rig:
    """A guest with disks for each error policy, on a small file system."""

    guest: DiskGuest
    directory: Path
    scratch: Path
    names: dict[str, str] = field(default_factory=dict)

    def path(self, disk: str) -> Path:
        """Return the image of a disk."""
        return self.directory / f"{disk}.{suffix(disk)}"

    @contextlib.contextmanager
    def full(self) -> Iterator[Path]:
        """Leave only `SLACK` on the file system; removing the file makes room."""
        ballast = self.directory / "ballast"
        free = os.statvfs(self.directory).f_bavail * os.statvfs(self.directory).f_bsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - SLACK)
        try:
            yield ballast
        finally:
            ballast.unlink(missing_ok=True)
            if self.status() != "running":
                self.guest.vm.resume()

    def status(self) -> str:
        """Return the run state."""
        return str(self.guest.vm.qmp("query-status")["status"])

    def start(self, *words: object) -> tuple[threading.Thread, list[str]]:
        """Run diskctl in the guest while something else is done here."""
        result: list[str] = []
        thread = threading.Thread(target=lambda: result.append(self.guest.diskctl(*words, timeout=BOOT)))
        thread.start()
        return thread, result

    def drop(self, disk: str) -> None:
        """Let a disk be empty again."""
        self.guest.run(f"blkdiscard /dev/{self.names[disk]}")
        # An image format may give room back when it is flushed, as it is when the guest stops.
        self.guest.vm.pause()
        self.guest.vm.resume()

    def stopped(self) -> dict[str, Any]:
        """Wait until an error has stopped the guest, and return what the event says of it."""
        data: dict[str, Any] = self.guest.vm.wait_event("BLOCK_IO_ERROR", SOON)["data"]
        self.guest.vm.wait_event("STOP", SOON)
        assert self.status() == "io-error"
        return data


@pytest.fixture(scope="module")
def diskctl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_diskctl(tmp_path_factory.mktemp("diskctl"))


@pytest.fixture(scope="module")
def rig(
    boot_shared: GuestFactory, generic: Image, diskctl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("small")
    with small_file_system(directory):
        words = ["-device", "virtio-scsi-pci,addr=14,id=scsi"]
        devices = {
            "virtio": "virtio-blk-pci,addr=10",
            "virtio-qcow2": "virtio-blk-pci,addr=11",
            "virtio-report": "virtio-blk-pci,addr=12",
            "virtio-ignore": "virtio-blk-pci,addr=13",
            "ide": "ide-hd,bus=ide.0,unit=0",
            "ide-report": "ide-hd,bus=ide.0,unit=1",
            "ide-ignore": "ide-hd,bus=ide.1,unit=0",
            "scsi": "scsi-hd,scsi-id=0",
            "scsi-report": "scsi-hd,scsi-id=1",
            "scsi-ignore": "scsi-hd,scsi-id=2",
        }
        for disk, device in devices.items():
            path = directory / f"{disk}.{suffix(disk)}"
            qemu_img("create", "-q", "-f", suffix(disk), path, str(DISK))
            policy = disk.rpartition("-")[2]
            # The default for writes is to stop where the host is full, and to report everything else.
            chosen = f",werror={policy},rerror={policy}" if policy in ("report", "ignore") else ",rerror=stop"
            words += ["-drive", f"file={path},format={suffix(disk)},if=none,id={disk},discard=unmap{chosen}"]
            words += ["-device", f"{device},drive={disk}"]
        vm = boot_shared(*words, image=generic)
        guest = DiskGuest(vm)
        guest.prepare(diskctl)
        rig = Rig(guest, directory, tmp_path_factory.mktemp("scratch"))
        rig.names = {disk: guest.disk_at(place) for disk, place in PLACES.items()}
        yield rig
        vm.quit()
        assert_consistent(rig.path("virtio-qcow2"))


class TestHostDiskFull:
    LENGTH = 4 * MIB

    @pytest.mark.parametrize("disk", ["virtio", "virtio-qcow2", "ide", "scsi"])
    def test_the_guest_stops_until_there_is_room(self, rig: Rig, disk: str) -> None:
        guest = rig.guest
        guest.vm.monitor.events()
        with rig.full() as ballast:
            thread, result = rig.start("fill", f"/dev/{rig.names[disk]}", 5, MIB, self.LENGTH)
            data = rig.stopped()
            # Going on without room leads there again, and does no harm.
            guest.vm.resume()
            assert rig.stopped() == data
            assert thread.is_alive()
            ballast.unlink()
            guest.vm.resume()
            assert guest.vm.wait_event("RESUME", SOON)
            thread.join(SOON)
        node = data.pop("node-name")
        assert node.startswith("#block")
        expected = {"device": disk, "operation": "write", "action": "stop", "nospace": True}
        assert data == {**expected, "reason": "No space left on device"}
        assert result == [str(self.LENGTH // BLOCK)]
        guest.verify(rig.names[disk], 5, MIB, self.LENGTH)
        written = content(rig.path(disk), rig.scratch)
        assert written == bytes(MIB) + pattern(5, MIB, self.LENGTH) + bytes(DISK - MIB - self.LENGTH)
        assert rig.status() == "running"
        rig.drop(disk)

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_reported(self, rig: Rig, interface: str) -> None:
        """The guest gets an error where there was no room, and goes on."""
        guest, disk = rig.guest, f"{interface}-report"
        guest.vm.monitor.events()
        with rig.full():
            answer = guest.diskctl("fill", f"/dev/{rig.names[disk]}", 6, 0, self.LENGTH)
            found = re.fullmatch(r"errno (\d+) after (\d+) blocks", answer)
            assert found is not None, answer
            # SCSI has a sense code for this, which Linux knows.
            assert int(found[1]) == (ENOSPC if interface == "scsi" else EIO)
            blocks = int(found[2])
            assert SLACK // 2 < blocks * BLOCK < self.LENGTH
            data = guest.vm.wait_event("BLOCK_IO_ERROR", SOON)["data"]
            assert (data["device"], data["operation"], data["action"]) == (disk, "write", "report")
            assert rig.status() == "running"
        guest.verify(rig.names[disk], 6, 0, blocks * BLOCK)
        guest.fill(rig.names[disk], 7, 0, self.LENGTH)
        assert content(rig.path(disk), rig.scratch)[: self.LENGTH] == pattern(7, 0, self.LENGTH)
        rig.drop(disk)

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_ignored(self, rig: Rig, interface: str) -> None:
        """The guest hears nothing; what there was no room for is lost, as it was asked for."""
        guest, disk = rig.guest, f"{interface}-ignore"
        guest.vm.monitor.events()
        with rig.full():
            guest.fill(rig.names[disk], 8, 0, self.LENGTH)
            data = guest.vm.wait_event("BLOCK_IO_ERROR", SOON)["data"]
            assert (data["device"], data["operation"], data["action"]) == (disk, "write", "ignore")
            assert rig.status() == "running"
        kept = content(rig.path(disk), rig.scratch)[: self.LENGTH]
        expected = pattern(8, 0, self.LENGTH)
        assert kept != expected
        assert kept[:MIB] == expected[:MIB]
        rig.drop(disk)


class TestUnreadable:
    """The descriptor of an image is exchanged behind the emulator's back for one that cannot be read."""

    @pytest.fixture
    def unreadable(self, rig: Rig) -> Iterator[Any]:
        @contextlib.contextmanager
        def make(disk: str) -> Iterator[Any]:
            path = str(rig.path(disk))
            links = Path("/proc/self/fd")
            (number,) = [
                int(link.name) for link in links.iterdir() if link.is_symlink() and os.path.realpath(link) == path
            ]
            kept, unusable = os.dup(number), os.open(path, os.O_WRONLY)

            def mend() -> None:
                os.dup2(kept, number)

            os.dup2(unusable, number)
            try:
                yield mend
            finally:
                mend()
                os.close(kept)
                os.close(unusable)

        return make

    @pytest.mark.parametrize("disk", INTERFACES)
    def test_stop(self, rig: Rig, disk: str, unreadable: Any) -> None:
        guest, name = rig.guest, rig.names[disk]
        guest.fill(name, 9, 0, MIB)
        guest.vm.monitor.events()
        with unreadable(disk) as mend:
            thread, result = rig.start("verify", f"/dev/{name}", 9, 0, MIB)
            data = rig.stopped()
            assert (data["device"], data["operation"], data["action"]) == (disk, "read", "stop")
            assert data["nospace"] is False
            assert thread.is_alive()
            mend()
            guest.vm.resume()
            thread.join(SOON)
        assert result == [str(MIB // BLOCK)]
        rig.drop(disk)

    @pytest.mark.parametrize("interface", INTERFACES)
    def test_report(self, rig: Rig, interface: str, unreadable: Any) -> None:
        disk = f"{interface}-report"
        guest, name = rig.guest, rig.names[disk]
        guest.fill(name, 9, 0, MIB)
        guest.vm.monitor.events()
        with unreadable(disk):
            assert guest.diskctl("verify", f"/dev/{name}", 9, 0, MIB) == f"errno {EIO} after 0 blocks"
            data = guest.vm.wait_event("BLOCK_IO_ERROR", SOON)["data"]
            assert (data["device"], data["operation"], data["action"]) == (disk, "read", "report")
        guest.verify(name, 9, 0, MIB)
        assert rig.status() == "running"
        rig.drop(disk)

    def test_reset_gives_up_what_is_held(self, rig: Rig, unreadable: Any) -> None:
        """A guest that was stopped by an error can be reset; it starts again, and the disk works."""
        guest, name = rig.guest, rig.names["virtio"]
        guest.vm.monitor.events()
        with unreadable("virtio"):
            guest.vm.agent.exec("/tmp/diskctl", ["verify", f"/dev/{name}", "9", "0", str(MIB)])
            rig.stopped()
            guest.vm.reset()
            guest.vm.wait_event("RESET", SOON)
            assert rig.status() == "prelaunch"
        guest.vm.resume()
        guest.vm.wait_agent(BOOT)
        assert guest.digest(name) == hashlib.md5(rig.path("virtio").read_bytes(), usedforsecurity=False).hexdigest()


class TestLimits:
    def test_rates_and_groups(self, boot: GuestFactory, generic: Image, diskctl: Path, tmp_path: Path) -> None:
        """Limits of a drive, and of a group, which its members share; the time is the guest's."""
        for name in ("bps", "iops", "one", "two", "filter"):
            (tmp_path / f"{name}.raw").write_bytes(bytes(8 * MIB))
        node = "driver=throttle,node-name=filtered,throttle-group=slow,file.driver=file"
        vm = boot(
            *("-drive", f"file={tmp_path}/bps.raw,format=raw,if=none,id=d0,throttling.bps-total={2 * MIB}"),
            *("-drive", f"file={tmp_path}/iops.raw,format=raw,if=none,id=d1,throttling.iops-write=100"),
            *(
                "-drive",
                f"file={tmp_path}/one.raw,format=raw,if=none,id=d2,throttling.iops-total=200,throttling.group=g",
            ),
            *(
                "-drive",
                f"file={tmp_path}/two.raw,format=raw,if=none,id=d3,throttling.iops-total=200,throttling.group=g",
            ),
            *("-object", f"throttle-group,id=slow,x-bps-write={MIB}"),
            *("-blockdev", f"{node},file.filename={tmp_path}/filter.raw"),
            *(word for n in range(4) for word in ("-device", f"virtio-blk-pci,drive=d{n},addr=1{n}")),
            *("-device", "virtio-blk-pci,drive=filtered,addr=14"),
            image=generic,
        )
        guest = DiskGuest(vm)
        guest.prepare(diskctl)
        names = [guest.disk_at(rf"0000:00:1{n}\.0/virtio") for n in range(5)]

        def rate(name: str, kind: str, block: int, count: int) -> tuple[float, float]:
            found = guest.diskctl("rate", kind, f"/dev/{name}", block, count, 1).split()
            return float(found[0]), float(found[1])

        def reached(least: float, most: float, measure: Callable[[], float]) -> None:
            """No more goes than is allowed, and as much as that where the host is not busy with something else."""

            def once() -> bool:
                found = measure()
                assert found < most
                return found > least

            until(once, f"a rate of {least}", 2 * SOON)

        # A tenth of a second's worth may go at once.
        reached(0.8 * 2 * MIB, 1.25 * 2 * MIB, lambda: rate(names[0], "read", 256 << 10, 16)[0])
        reached(80, 125, lambda: rate(names[1], "write", 4096, 150)[1])
        reached(200, math.inf, lambda: rate(names[1], "read", 4096, 150)[1])
        reached(0.7 * MIB, 1.3 * MIB, lambda: rate(names[4], "write", 128 << 10, 16)[0])
        # Two disks of a group get half of it each, where both begin at the same time.
        both = f"for d in {names[2]} {names[3]}; do /tmp/diskctl rate random /dev/$d 4096 150 1 & done; wait"

        def halves() -> bool:
            rates = [float(line.split()[1]) for line in guest.run(both).splitlines()]
            assert len(rates) == 2
            assert min(rates) < 125
            return all(75 < found < 150 for found in rates)

        until(halves, "half of the rate for each", 2 * SOON)
        reached(160, 250, lambda: rate(names[2], "random", 4096, 200)[1])
        # Time that the guest is stopped for does not count.

        def interrupted() -> float:
            start = time.monotonic()
            result: list[float] = []
            thread = threading.Thread(target=lambda: result.append(rate(names[1], "write", 4096, 100)[1]))
            thread.start()
            time.sleep(0.3)
            vm.pause()
            time.sleep(1)
            vm.resume()
            thread.join(SOON)
            assert time.monotonic() - start > 1.5
            return result[0]

        reached(80, 135, interrupted)

    def test_quit_while_requests_wait(
        self, pyvm: ProcessFactory, generic: Image, diskctl: Path, tmp_path: Path
    ) -> None:
        image = tmp_path / "disk.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", image, "64M")
        drive = f"file={image},format=qcow2,if=none,id=d0,throttling.bps-write={64 << 10}"
        words = [*boot_options(generic), *agent_options(tmp_path / "ga"), "-drive", drive]
        process = pyvm(*words, "-device", "virtio-blk-pci,drive=d0")
        with AgentClient(str(tmp_path / "ga")).wait(BOOT) as agent:
            agent.write_file("/tmp/diskctl", diskctl.read_bytes())
            agent.run("chmod 755 /tmp/diskctl", check=True)
            agent.run("dd if=/dev/zero of=/dev/vda bs=1M count=32 >/dev/null 2>&1 &", check=True)
            until(lambda: image.stat().st_size > MIB, "the first write")
            process.qmp.command("quit")
            assert process.end() == (0, "", "")  # and not when all is written, minutes later
        assert_consistent(image)
