"""Job *mirror*: events, states, and what the copy has in the end.  Expected events are QEMU 7.2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.block_rig import SIZE, Device
from tests.unit.job_rig import END, LIFE, JobDisks, check, compare, life, needs_qemu_img

READY = [*LIFE, "ready", "BLOCK_JOB_READY"]


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    yield made
    made.close()


def chain(disks: JobDisks) -> None:
    """Make node ``s``, a disk in use with a backing file, and node ``t``."""
    base = disks.qcow2("base.qcow2")
    disks.add("b", base, "qcow2")
    disks.write("b", 0, b"base" * (64 << 10))
    disks.run("blockdev-del", node_name="b")
    disks.add("s", disks.qcow2("s.qcow2", base), "qcow2")
    disks.write("s", 64 << 10, b"top!" * 1000)
    disks.add("t", disks.qcow2("t.qcow2"), "qcow2")


def mirror(disks: JobDisks, **options: object) -> None:
    disks.run("blockdev-mirror", **{"job_id": "m", "device": "s", "target": "t", "sync": "full", **options})


def test_a_mirror_takes_the_place_of_the_disk(disks: JobDisks) -> None:
    chain(disks)
    backend = disks.node_disk("s", Device(), "disk")
    mirror(disks)
    assert disks.wait("BLOCK_JOB_READY") == life("m", *READY)
    assert disks.event("BLOCK_JOB_READY") == {"device": "m", "len": SIZE, "offset": SIZE, "speed": 0, "type": "mirror"}
    (job,) = disks.jobs()
    assert job["ready"]
    assert not job["busy"]
    assert job["status"] == "ready"
    assert job["io-status"] == "ok"
    assert disks.fails("blockdev-mirror", job_id="n", device="s", target="t", sync="full") == "Need a root block node"
    assert backend.node is not None
    assert backend.node.driver == "mirror_top"
    assert disks.run("query-block")[0]["inserted"]["node-name"] == "s"
    disks.write("s", 0, b"later")
    disks.run("block-job-complete", device="m")
    log = disks.wait("m:null")
    assert log == life("m", *END)
    assert backend.node.name == "t"
    assert disks.read("t", 0, 5) == b"later"
    assert disks.read("t", 64 << 10, 4) == b"top!"
    assert disks.jobs() == []


@needs_qemu_img
@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_the_copy_is_the_disk(disks: JobDisks, mode: str) -> None:
    chain(disks)
    mirror(disks, copy_mode=mode, granularity=4096)
    disks.write("s", 12345, b"while it runs" * 1000)
    disks.wait("BLOCK_JOB_READY")
    disks.write("s", SIZE - 777, b"z" * 777)
    disks.write("s", 4000, b"y" * 5000)
    disks.run("block-job-cancel", device="m")
    assert disks.wait("m:null") == life("m", *END)
    for name in "st":
        disks.run("blockdev-del", node_name=name)
    compare(disks.folder / "s.qcow2", disks.folder / "t.qcow2")
    check(disks.folder / "t.qcow2")


def test_a_forced_end(disks: JobDisks) -> None:
    chain(disks)
    mirror(disks)
    disks.wait("BLOCK_JOB_READY")
    disks.run("block-job-cancel", device="m", force=True)
    assert disks.wait("m:null") == life("m", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
    assert {node.name for node in disks.storage.graph.monitor_nodes} == {"s", "t"}
    assert not any(node.driver == "mirror_top" for node in disks.storage.graph.nodes.values())


def test_a_slow_mirror_is_paused_and_goes_on(disks: JobDisks) -> None:
    chain(disks)
    mirror(disks, speed=1024)
    while "m:running" not in disks.log or disks.jobs()[0]["busy"]:
        disks.loop()
    (job,) = disks.jobs()
    assert (job["status"], job["busy"], job["speed"]) == ("running", False, 1024)
    assert disks.fails("block_resize", node_name="s", size=2 * SIZE) == "Device '(null)' is in use"
    refused = "Job 'm' in state 'running' cannot accept command verb 'complete'"
    assert disks.fails("block-job-complete", device="m") == refused
    disks.run("block-job-pause", device="m")
    assert disks.fails("block-job-pause", device="m") == "Job is already paused"
    assert disks.jobs()[0]["paused"] is True
    assert disks.fails("block-job-cancel", device="m") == "The block job for device 'm' is currently paused"
    disks.run("block-job-set-speed", device="m", speed=0)
    assert disks.fails("block-job-set-speed", device="m", speed=-1) == (
        "Parameter 'speed' expects a non-negative value"
    )
    disks.run("block-job-resume", device="m")
    log = disks.wait("BLOCK_JOB_READY")
    assert log == life("m", *LIFE, "paused", "running", "ready", "BLOCK_JOB_READY")
    assert disks.fails("job-resume", id="m") == "Can't resume a job that was not paused"
    disks.run("job-pause", id="m")
    disks.run("job-resume", id="m")
    assert disks.wait("m:ready") == life("m", "standby", "ready")


def test_nothing_is_finalized_before_it_is_told_to_be(disks: JobDisks) -> None:
    chain(disks)
    mirror(disks, sync="none", auto_finalize=False, auto_dismiss=False)
    disks.wait("BLOCK_JOB_READY")
    disks.run("job-complete", id="m")
    assert disks.wait("BLOCK_JOB_PENDING") == life("m", "waiting", "pending", "BLOCK_JOB_PENDING")
    (job,) = disks.jobs()
    assert job["paused"]
    assert not job["busy"]
    assert job["status"] == "pending"
    disks.run("job-finalize", id="m")
    assert disks.wait("m:concluded") == life("m", "BLOCK_JOB_COMPLETED", "concluded")
    assert disks.run("query-jobs") == [
        {"current-progress": 0, "status": "concluded", "total-progress": 0, "type": "mirror", "id": "m"}
    ]
    disks.run("job-dismiss", id="m")
    assert disks.wait("m:null") == life("m", "null")


@pytest.mark.parametrize("command", ["cancel", "pause", "resume", "complete", "finalize", "dismiss"])
def test_jobs_that_are_not_there(disks: JobDisks, command: str) -> None:
    assert disks.fails(f"job-{command}", id="zz") == "Job not found"
    key = "id" if command in ("finalize", "dismiss") else "device"
    assert disks.fails(f"block-job-{command}", **{key: "zz"}) == "DeviceNotActive: Block job 'zz' not found"


def test_what_cannot_be_mirrored(disks: JobDisks) -> None:
    chain(disks)
    common = {"device": "s", "target": "t", "sync": "full"}
    assert disks.fails("blockdev-mirror", **common) == "Invalid job ID ''"
    common["job_id"] = "m"
    for granularity, why in ((100, "a value in range [512B, 64MB]"), (1000, "a power of 2")):
        refused = disks.fails("blockdev-mirror", **common, granularity=granularity)
        assert refused == f"Parameter 'granularity' expects {why}"
    assert disks.fails("blockdev-mirror", **{**common, "target": "s"}) == "Can't mirror node into itself"
    assert disks.fails("blockdev-mirror", **{**common, "sync": "bitmap"}) == "Sync mode 'bitmap' not supported"
    assert disks.fails("blockdev-mirror", **common, replaces="zz") == "Failed to find node with node-name='zz'"
    assert disks.log == []


@needs_qemu_img
def test_drive_mirror_makes_an_image(disks: JobDisks) -> None:
    chain(disks)
    path = str(disks.folder / "new.qcow2")
    disks.run("drive-mirror", job_id="m", device="s", target=path, sync="top", format="qcow2", node_name="n")
    disks.wait("BLOCK_JOB_READY")
    disks.write("s", 0, b"later")
    disks.run("block-job-complete", device="m")
    disks.wait("m:null")
    assert disks.read("n", 0, 5) == b"later" if "n" in disks.storage.graph.nodes else True
    disks.run("blockdev-del", node_name="s")
    compare(disks.folder / "s.qcow2", path)


def test_the_end_of_the_machine_ends_a_job(disks: JobDisks) -> None:
    chain(disks)
    mirror(disks, speed=1)
    disks.wait("m:running")
    disks.storage.end_jobs()
    disks.loop()
    assert disks.log == life("m", "paused", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
