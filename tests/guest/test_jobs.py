"""Jobs on the disk of a Linux guest that writes to it: a copy is compared after the agent has frozen the guest."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvm import Machine
from tests.guest.conftest import GuestFactory
from tests.guest.ext2 import make_ext2

pytestmark = pytest.mark.skipif(
    subprocess.run(["which", "qemu-img"], capture_output=True, check=False).returncode != 0,
    reason="qemu-img is not installed",
)

DISK = 64 << 20
SOON = 180.0
LOAD = """\
cd /mnt
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=f$((n % 23)) bs=32k count=$((n % 7 + 1)) 2>/dev/null
    [ $((n % 5)) = 0 ] && rm -f f$((n * 7 % 23))
    [ $((n % 11)) = 0 ] && sync
done
cd /
touch /tmp/ended
"""


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with an empty file system."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    make_ext2(raw, DISK)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()
    return image


@pytest.fixture
def writing(guest: GuestFactory, disk: Path) -> Iterator[Machine]:
    """A guest that writes to its file system all the time."""
    vm = guest()
    vm.qmp("blockdev-add", driver="qcow2", node_name="disk", file={"driver": "file", "filename": str(disk)})
    vm.qmp("device_add", driver="virtio-blk-pci", drive="disk", id="d0")
    until(lambda: vm.run("test -e /dev/vda", check=False).exit_code == 0, "the disk")
    vm.run("modprobe ext4; mkdir -p /mnt; mount -t ext2 /dev/vda /mnt")
    vm.write_file("/tmp/load", LOAD.encode())
    vm.run("sh /tmp/load >/dev/null 2>&1 &")
    yield vm
    vm.quit()
    qemu_img("check", "-q", disk)


def wait_job(vm: Machine, state: str) -> None:
    until(lambda: any(job["status"] == state for job in vm.qmp("query-jobs")), f"the job to be {state}")


def add_target(vm: Machine, path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", path, str(DISK))
    vm.qmp("blockdev-add", driver="qcow2", node_name="copy", file={"driver": "file", "filename": str(path)})


def test_a_mirror_is_what_the_disk_is(writing: Machine, disk: Path, tmp_path: Path) -> None:
    vm, copy = writing, tmp_path / "copy.qcow2"
    add_target(vm, copy)
    vm.qmp("blockdev-mirror", job_id="j", device="disk", target="copy", sync="full", auto_dismiss=False)
    wait_job(vm, "ready")
    assert vm.agent.fsfreeze_freeze() == 1
    vm.qmp("block-job-cancel", device="j")
    wait_job(vm, "concluded")
    vm.qmp("job-dismiss", id="j")
    vm.qmp("blockdev-del", node_name="copy")
    qemu_img("check", "-q", copy)
    assert "identical" in qemu_img("compare", "-U", disk, copy)
    vm.agent.fsfreeze_thaw()
    stop(vm)


def test_the_guest_goes_on_with_the_copy(writing: Machine, disk: Path, tmp_path: Path) -> None:
    vm, copy = writing, tmp_path / "copy.qcow2"
    add_target(vm, copy)
    vm.qmp(
        "blockdev-mirror",
        job_id="j",
        device="disk",
        target="copy",
        sync="full",
        copy_mode="write-blocking",
        auto_dismiss=False,
    )
    wait_job(vm, "ready")
    vm.qmp("job-complete", id="j")
    wait_job(vm, "concluded")
    vm.qmp("job-dismiss", id="j")
    (disk_now,) = [it for it in vm.qmp("query-block") if "d0" in it.get("qdev", "")]
    assert disk_now["inserted"]["node-name"] == "copy"
    expected = stop(vm)
    vm.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount -t ext2 /dev/vda /mnt")
    assert vm.run("cat /mnt/f* | sha256sum").text == expected
    vm.quit()
    qemu_img("check", "-q", copy)


def test_a_backup_is_what_the_disk_was(writing: Machine, disk: Path, tmp_path: Path) -> None:
    vm, copy, reference = writing, tmp_path / "copy.qcow2", tmp_path / "reference.raw"
    add_target(vm, copy)
    assert vm.agent.fsfreeze_freeze() == 1
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", disk, reference)
    vm.qmp("blockdev-backup", job_id="j", device="disk", target="copy", sync="full", speed=24 << 20, auto_dismiss=False)
    vm.agent.fsfreeze_thaw()
    wait_job(vm, "concluded")
    assert "error" not in vm.qmp("query-jobs")[0]
    vm.qmp("job-dismiss", id="j")
    stop(vm)
    vm.qmp("blockdev-del", node_name="copy")
    qemu_img("check", "-q", copy)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", copy, reference)


def stop(vm: Machine) -> str:
    """End the load; return a digest of all files."""
    vm.run("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done; sync")
    return vm.run("cat /mnt/f* | sha256sum").text
