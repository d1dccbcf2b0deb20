"""Disks as the agent sees them: where they are, backups of what is frozen, and trimming that reaches the image."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyvm import Machine
from tests.guest.conftest import GuestFactory
from tests.guest.disk_guest_support import assert_consistent, qemu_img
from tests.guest.ext2 import make_ext2
from tests.guest.support import SOON

SIZE = 32 << 20
DISKS = ("virtio", "scsi", "ide", "bridged")
HOOK_DIRECTORY = "/etc/qemu/fsfreeze-hook.d"


def place(bus: int, slot: int, function: int = 0) -> dict[str, int]:
    return {"domain": 0, "bus": bus, "slot": slot, "function": function}


# What a real agent says of the same machine under QEMU.
ADDRESSES: dict[str, dict[str, Any]] = {
    "/dev/vda": {"bus-type": "virtio", "bus": 0, "target": 0, "unit": 0, "pci-controller": place(0, 0x10)},
    "/dev/vdb": {"bus-type": "virtio", "bus": 0, "target": 0, "unit": 0, "pci-controller": place(1, 3)},
    "/dev/sda": {"bus-type": "ide", "bus": 0, "target": 0, "unit": 1, "pci-controller": place(0, 1, 1)},
    "/dev/sdb": {"bus-type": "scsi", "bus": 0, "target": 0, "unit": 1, "pci-controller": place(0, 0x11)},
}
SERIALS = {"vda": "VIRTIO01", "vdb": "BRIDGED1", "sda": "IDE00001", "sdb": "SCSI0001"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image with an empty file system for each disk."""
    directory = tmp_path_factory.mktemp("disks")
    raw = directory / "empty.raw"
    make_ext2(raw, SIZE)
    images = {name: directory / f"{name}.qcow2" for name in DISKS}
    for path in images.values():
        qemu_img("convert", "-O", "qcow2", raw, path)
    return images


@pytest.fixture(scope="module")
def vm(boot_shared: GuestFactory, images: dict[str, Path]) -> Machine:
    """A guest that has mounted them all, by the names that they have there."""
    words = [
        word for name, path in images.items() for word in ("-drive", f"file={path},if=none,id={name},discard=unmap")
    ]
    machine = boot_shared(
        *words,
        *("-device", f"virtio-blk-pci,drive=virtio,addr=10,serial={SERIALS['vda']}"),
        *("-device", "virtio-scsi-pci,id=host,addr=11"),
        *("-device", f"scsi-hd,drive=scsi,bus=host.0,scsi-id=2,lun=1,serial={SERIALS['sdb']}"),
        *("-device", f"ide-hd,drive=ide,bus=ide.0,unit=1,serial={SERIALS['sda']}"),
        *("-device", "pci-bridge,id=bridge,chassis_nr=1,addr=12"),
        *("-device", f"virtio-blk-pci,drive=bridged,bus=bridge,addr=3,serial={SERIALS['vdb']}"),
    )
    machine.run("umount /mnt; for disk in vda vdb sda sdb; do mkdir -p /m/$disk && mount /dev/$disk /m/$disk; done")
    return machine


def test_where_they_are(vm: Machine) -> None:
    disks = {disk["name"]: disk for disk in vm.agent.command("guest-get-disks")}
    systems = {system["name"]: system for system in vm.agent.command("guest-get-fsinfo")}
    statistics = {entry["name"]: entry for entry in vm.agent.command("guest-get-diskstats")}
    for device, address in ADDRESSES.items():
        name = device.removeprefix("/dev/")
        assert disks[device]["address"] == {**address, "dev": device}
        assert systems[name]["disk"] == [{**address, "dev": device}]
        assert (systems[name]["mountpoint"], systems[name]["type"]) == (f"/m/{name}", "ext2")
        assert statistics[name]["stats"]["write-ios"] > 0


def test_serials(vm: Machine) -> None:
    for name, serial in SERIALS.items():
        shown = vm.run(f"cat /sys/block/{name}/serial /sys/block/{name}/device/vpd_pg80 2>/dev/null; true").stdout
        assert serial.encode() in shown, name


def test_trimming_frees_clusters(vm: Machine, images: dict[str, Path]) -> None:
    def allocated() -> dict[str, int]:
        return {name: path.stat().st_blocks * 512 for name, path in images.items()}

    mounted = {"virtio": "vda", "scsi": "sdb", "ide": "sda", "bridged": "vdb"}
    vm.run("for disk in vda vdb sda sdb; do dd if=/dev/urandom of=/m/$disk/large bs=1M count=12; done; sync", SOON)
    full = allocated()
    vm.run("rm /m/*/large; sync")
    trimmed = {entry["path"]: entry for entry in vm.agent.command("guest-fstrim")["paths"]}
    vm.run("sync")
    after = allocated()
    for name, disk in mounted.items():
        assert trimmed[f"/m/{disk}"]["trimmed"] > SIZE // 2
        assert full[name] > 12 << 20
        assert after[name] < 2 << 20, (name, full, after)


def test_a_backup_of_what_is_frozen(vm: Machine, tmp_path: Path) -> None:
    """While somebody writes: nothing arrives in between, and the backup is a file system that was left in order."""
    vm.run(f"mkdir -p {HOOK_DIRECTORY} && printf '#!/bin/sh\\necho $1 >> /tmp/hook\\n' > {HOOK_DIRECTORY}/note")
    vm.run(f"chmod 755 {HOOK_DIRECTORY}/note; rm -f /tmp/hook")
    writer = vm.agent.exec("/bin/sh", ["-c", "while true; do date > /m/vda/$((n += 1)); sync; done"])
    target = tmp_path / "backup.qcow2"
    with vm.agent.frozen() as count:
        assert count == len(ADDRESSES)
        vm.qmp("drive-backup", **{"job-id": "copy", "device": "virtio", "target": str(target), "sync": "full"})
        written = _written(vm)
        vm.wait_event("BLOCK_JOB_COMPLETED", SOON)
        assert _written(vm) == written
    assert vm.run("cat /tmp/hook").text.split() == ["freeze", "thaw"]
    # Some of them only.
    assert vm.agent.fsfreeze_freeze_list(["/m/vda", "/m/sda"]) == 2
    assert vm.agent.fsfreeze_thaw() == 2
    vm.run("pkill -f 'while true'; rm -r /m/vda/[0-9]*; sync", check=False)
    del writer
    assert_consistent(target)
    checker = shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin")
    if checker is None:
        pytest.skip("e2fsck is not installed")
    raw = tmp_path / "backup.raw"
    qemu_img("convert", "-O", "raw", target, raw)
    checked = subprocess.run([checker, "-f", "-n", str(raw)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def _written(vm: Machine) -> int:
    (found,) = [entry for entry in vm.qmp("query-blockstats") if entry.get("device") == "virtio"]
    count: int = found["stats"]["wr_bytes"]
    return count
