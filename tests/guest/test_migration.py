"""Guests that move to another machine while they work, with their disks, and those whose move fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from images.build import Image
from pyvm import Machine
from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.open import open_image
from pyvm.qmp_client import QmpError
from tests.guest.conftest import GuestFactory
from tests.guest.support import SOON, boot_options, complaints, until
from tests.guest.test_snapshot import LOAD, rounds, uptime

FAST = 10 << 30


def waiting(vm: Machine, uri: str) -> Machine:
    """Return a machine like `vm` that waits for a migration, and stays stopped when that is there."""
    words, given = [], iter(vm.arguments)
    for word in given:
        if word == "-incoming":
            next(given)
        else:
            words.append(word)
    return Machine(*(word for word in words if word != "-S"), "-S", "-incoming", uri).start()


def move(source: Machine, target: Machine, uri: str, **capabilities: bool) -> dict[str, Any]:
    """Move, and return the figures; both machines stand still then."""
    states = [{"capability": name.replace("_", "-"), "state": state} for name, state in capabilities.items()]
    for machine in (source, target):
        machine.qmp("migrate-set-capabilities", capabilities=states)
        # A busy host sends less than the guest writes, which is to come to an end all the same.
        machine.qmp("migrate-set-parameters", max_bandwidth=FAST, downtime_limit=2000, multifd_compression="zstd")
    source.qmp("migrate", uri=uri)
    end = ("completed", "failed")
    until(lambda: source.qmp("query-migrate")["status"] in end, "the end of the migration", 3 * SOON)
    figures: dict[str, Any] = source.qmp("query-migrate")
    assert figures["status"] == "completed", figures
    until(lambda: target.qmp("query-status")["status"] == "paused", "the machine")
    return figures


def same_memory(first: Machine, second: Machine) -> bool:
    words = [np.frombuffer(vm._running().memory.mapping, dtype=np.uint64) for vm in (first, second)]
    return np.array_equal(*words)


class TestUnderLoad:
    def test_from_machine_to_machine(self, guest: GuestFactory, tmp_path: Path) -> None:
        """Each byte of memory is the same on both sides, time goes on, and nothing that the guest computes is wrong."""
        vm = guest(smp=2)
        vm.write_file("/tmp/load.sh", LOAD.encode())
        vm.run("sh /tmp/load.sh > /dev/null 2>&1 &")
        before, done = uptime(vm), 0
        ways: list[dict[str, bool]] = [{}, {"multifd": True}, {"multifd": False, "xbzrle": True}]
        for number, way in enumerate(ways):
            uri = f"unix:{tmp_path}/{number}"
            target = waiting(vm, uri)
            try:
                figures = move(vm, target, uri, **way)
                assert figures["ram"]["remaining"] == 0
                assert same_memory(vm, target)
                vm.stop()
                target.qmp("cont")
                target.wait_agent(SOON)
                now = uptime(target)
                assert before <= now < before + 2 * SOON
                until(lambda vm=target, done=done: rounds(vm) > done, "the guest works on")
            except BaseException:
                target.stop()
                raise
            vm, before, done = target, now, rounds(target)
        with vm:
            assert vm.run("cat /tmp/wrong", check=False).text == ""
            assert complaints(vm.run("dmesg").text) == []


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    create_image(str(path), "qcow2", 64 << 20, {})
    return path


def with_disk(demo: Image, disk: Path) -> Machine:
    drive = ("-drive", f"file={disk},if=none,id=d0,node-name=n0", "-device", "virtio-blk-pci,drive=d0")
    return Machine(*boot_options(demo), *drive, m=128).start()


WRITE = "dd if=/dev/urandom of=/tmp/x bs=1M count=4 2>/dev/null; dd if=/tmp/x of=/dev/vda bs=1M seek={} 2>/dev/null"


class TestDisks:
    def test_a_disk_and_its_bitmaps_go_along(self, demo: Image, disk: Path, tmp_path: Path) -> None:
        """What was written before is there, only one machine has the image, and what is written later is in it."""
        uri = f"unix:{tmp_path}/m"
        with with_disk(demo, disk) as vm:
            vm.wait_agent(SOON * 2)
            vm.qmp("block-dirty-bitmap-add", node="n0", name="kept", persistent=True)
            vm.qmp("block-dirty-bitmap-add", node="n0", name="light", granularity=65536)
            vm.run(WRITE.format(3) + "; sync")
            vm.run(f"(while true; do {WRITE.format(20)}; done) > /dev/null 2>&1 &")
            checksum = "dd if=/dev/vda bs=1M skip=3 count=4 2>/dev/null | md5sum"
            before = vm.run(checksum).text
            with waiting(vm, uri) as target:
                move(vm, target, uri, dirty_bitmaps=True)
                with pytest.raises(QmpError, match="Failed to get"):
                    vm.qmp("cont")
                bitmaps = {it["name"]: it for it in target.qmp("query-named-block-nodes")[0]["dirty-bitmaps"]}
                assert bitmaps["light"]["count"] >= 8 << 20
                assert bitmaps["kept"]["persistent"]
                target.qmp("cont")
                target.wait_agent(SOON)
                target.run("pkill -f seek=20; echo 3 > /proc/sys/vm/drop_caches", check=False)
                assert target.run(checksum).text == before
                target.run(WRITE.format(40) + "; sync")
                vm.stop()
                assert target.run(checksum).text == before
                target.qmp("quit")
                target.wait(SOON)
        image = open_image(str(disk), read_only=True)
        assert isinstance(image, Qcow2Node)
        try:
            found = image.check()
            assert (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0)
            (kept,) = image.disk.bitmaps
            assert (kept.name, kept.in_use) == ("kept", False)
        finally:
            image.release()

    def test_the_other_side_dies(self, demo: Image, disk: Path, tmp_path: Path) -> None:
        """The guest goes on with its disk as if nothing had been."""
        uri = f"unix:{tmp_path}/m"
        with with_disk(demo, disk) as vm, waiting(vm, uri) as target:
            vm.wait_agent(SOON * 2)
            vm.qmp("migrate-set-parameters", max_bandwidth=4 << 20)
            vm.qmp("migrate", uri=uri)
            until(lambda: vm.qmp("query-migrate")["status"] == "active", "the migration")
            time.sleep(0.3)
            target.stop()
            until(lambda: vm.qmp("query-migrate")["status"] == "failed", "the failure")
            assert vm.qmp("query-status")["status"] == "running"
            vm.run("dd if=/dev/zero of=/dev/vda bs=1M count=2 2>/dev/null; sync")
