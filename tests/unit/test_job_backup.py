"""Job *backup* and the filter below it: the copy is the disk as it was, whatever the guest writes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.block_rig import SIZE, Device
from tests.unit.job_rig import BACKUP, END, JobDisks, check, compare, life, needs_qemu_img


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    base = made.qcow2("base.qcow2")
    made.add("b", base, "qcow2")
    made.write("b", 0, b"base" * (64 << 10))
    made.run("blockdev-del", node_name="b")
    made.add("s", made.qcow2("s.qcow2", base), "qcow2")
    made.write("s", 64 << 10, b"top!" * 1000)
    made.add("t", made.qcow2("t.qcow2"), "qcow2")
    yield made
    made.close()


def backup(disks: JobDisks, **options: object) -> None:
    disks.run("blockdev-backup", **{"job_id": "b", "device": "s", "target": "t", "sync": "full", **options})


def test_a_backup(disks: JobDisks) -> None:
    backend = disks.node_disk("s", Device(), "disk")
    before = disks.read("s", 0, SIZE)
    backup(disks)
    assert backend.node is not None
    assert backend.node.driver == "copy-before-write"
    assert disks.wait("b:null") == life("b", *BACKUP, *END)
    assert disks.event("BLOCK_JOB_COMPLETED") == {
        "device": "b", "len": SIZE, "offset": SIZE, "speed": 0, "type": "backup",
    }  # fmt: skip
    assert backend.node.name == "s"
    assert disks.read("t", 0, SIZE) == before


@pytest.mark.parametrize("sync", ["full", "top"])
def test_what_the_guest_overwrites_is_copied_first(disks: JobDisks, sync: str) -> None:
    before = disks.read("s", 0, SIZE)
    backup(disks, sync=sync, speed=1)
    disks.write("s", 64 << 10, b"new" * 100)
    disks.write("s", SIZE - 100, b"new")
    disks.run("block-job-set-speed", device="b", speed=0)
    disks.wait("b:null")
    if sync == "full":
        assert disks.read("t", 0, SIZE) == before
    else:
        assert disks.read("t", 64 << 10, 64 << 10) == before[64 << 10 : 128 << 10]
        assert disks.read("t", 0, 64 << 10) == bytes(64 << 10)


def test_only_what_is_overwritten(disks: JobDisks) -> None:
    backup(disks, sync="none")
    disks.write("s", 128 << 10, b"new")
    assert disks.read("t", 128 << 10, 4) == b"base"
    assert disks.read("t", 0, 4) == bytes(4)
    disks.run("job-cancel", id="b")
    assert disks.wait("b:null")[-4:] == life("b", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")


def test_increments(disks: JobDisks) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m", granularity=65536)
    disks.write("s", 300000, b"one")
    backup(disks, sync="incremental", bitmap="m", speed=1)
    info = disks.node("s")["dirty-bitmaps"][-1]
    assert (info["busy"], info["recording"], info["count"]) == (True, True, 65536)
    assert disks.fails("block-dirty-bitmap-clear", node="s", name="m") == (
        "Bitmap 'm' is currently in use by another operation and cannot be used"
    )
    disks.write("s", 0, b"two")
    disks.run("block-job-set-speed", device="b", speed=0)
    disks.wait("b:null")
    assert disks.event("BLOCK_JOB_COMPLETED")["len"] == 65536
    assert disks.read("t", 300000, 3) == b"one"
    assert disks.read("t", 0, 3) == bytes(3)
    (info,) = disks.node("s")["dirty-bitmaps"]
    assert (info["busy"], info["count"]) == (False, 65536)
    backup(disks, sync="bitmap", bitmap="m", bitmap_mode="never")
    disks.wait("b:null")
    assert disks.read("t", 0, 3) == b"two"
    assert disks.node("s")["dirty-bitmaps"][0]["count"] == 65536


def test_a_cancelled_increment_loses_nothing(disks: JobDisks) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m")
    disks.write("s", 0, b"one")
    backup(disks, sync="incremental", bitmap="m", speed=1)
    disks.write("s", 512 << 10, b"two")
    disks.run("job-cancel", id="b")
    disks.wait("b:null")
    (info,) = disks.node("s")["dirty-bitmaps"]
    assert (info["busy"], info["recording"], info["count"]) == (False, True, 2 * 65536)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": "s"}, "Source and target cannot be the same"),
        ({"sync": "incremental"}, "must provide a valid bitmap name for 'incremental' sync mode"),
        ({"bitmap": "zz"}, "Bitmap 'zz' could not be found"),
        ({"bitmap_mode": "always"}, "Cannot specify bitmap sync mode without a bitmap"),
        ({"target": "small"}, "Source and target image have different sizes"),
        ({"device": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
        ({"x_perf": {"max-workers": 0}}, "max-workers must be between 1 and 2147483647"),
        ({"compress": True, "target": "small"}, "Compression is not supported for this drive small"),
    ],
)
def test_what_cannot_be_backed_up(disks: JobDisks, options: dict[str, object], why: str) -> None:
    disks.run("blockdev-add", driver="null-co", node_name="small", size=512)
    arguments = {"job_id": "b", "device": "s", "target": "t", "sync": "full", **options}
    assert disks.fails("blockdev-backup", **arguments) == why
    assert disks.log == []


@needs_qemu_img
def test_a_compressed_backup_into_a_new_file(disks: JobDisks) -> None:
    path = str(disks.folder / "new.qcow2")
    disks.run("drive-backup", job_id="b", device="s", target=path, sync="full", format="qcow2", compress=True)
    disks.write("s", 0, b"later")
    disks.wait("b:null")
    disks.write("s", 0, b"base!")
    disks.run("blockdev-del", node_name="s")
    compare(disks.folder / "base.qcow2", disks.folder / "base.qcow2")
    check(path)


def test_the_filter_by_hand(disks: JobDisks) -> None:
    disks.run("blockdev-add", driver="copy-before-write", node_name="c", file="s", target="t")
    disks.write("c", 256 << 10, b"x")
    disks.write("c", 0, b"new")
    assert disks.read("t", 0, 4) == b"base"
    assert disks.read("c", 0, 4) == b"newe"
    disks.run("blockdev-del", node_name="c")
