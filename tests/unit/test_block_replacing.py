"""What the copy that a mirror makes can replace: the disk, what filters show of it, and a copy of a quorum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.block.node import ALL_PERMISSIONS, UNUSED, Access, Permission
from tests.unit.job_rig import JobDisks

READ = Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    for number in range(3):
        made.add(f"c{number}", made.raw(f"c{number}"), "raw")
    made.run(
        "blockdev-add",
        driver="quorum", node_name="q", vote_threshold=2, children=["c0", "c1", "c2"],
    )  # fmt: skip
    made.add("t", made.raw("t"), "raw")
    yield made
    made.close()


def mirror(disks: JobDisks, replaces: str) -> dict[str, str]:
    return {"job_id": "m", "device": "q", "target": "t", "sync": "full", "replaces": replaces}


def refusal(name: str) -> str:
    return (
        f"Cannot replace '{name}' by a node mirrored from 'q', because it cannot be guaranteed that doing so would not"
        " lead to an abrupt change of visible data"
    )


def test_a_copy_of_a_quorum_is_replaced(disks: JobDisks) -> None:
    disks.write("q", 0, b"right")
    disks.run("blockdev-mirror", **mirror(disks, "c1"))
    disks.wait("BLOCK_JOB_READY")
    disks.run("block-job-complete", device="m")
    disks.wait("m:null")
    assert [child.node.name for child in disks.storage.graph.nodes["q"].children] == ["c0", "t", "c2"]
    assert disks.read("t", 0, 5) == b"right"


def test_a_copy_that_somebody_uses_is_not(disks: JobDisks) -> None:
    graph = disks.storage.graph
    graph.attach(graph.nodes["c1"], "test", UNUSED)
    assert disks.fails("blockdev-mirror", **mirror(disks, "c1")) == refusal("c1")


def test_what_is_below_a_copy_is_not(disks: JobDisks) -> None:
    disks.add("x", disks.raw("x"), "raw")
    assert disks.fails("blockdev-mirror", **mirror(disks, "x")) == refusal("x")


def test_a_copy_that_somebody_uses_by_the_end_stays(disks: JobDisks, capfd: pytest.CaptureFixture[str]) -> None:
    graph = disks.storage.graph
    disks.run("blockdev-mirror", **mirror(disks, "c1"))
    disks.wait("BLOCK_JOB_READY")
    graph.attach(graph.nodes["c1"], "test", READ)
    disks.run("block-job-complete", device="m")
    disks.wait("m:null")
    assert disks.event("BLOCK_JOB_COMPLETED")["error"] == "Operation not permitted"
    assert [child.node.name for child in graph.nodes["q"].children] == ["c0", "c1", "c2"]
    assert capfd.readouterr().err == (
        "pyvm: Can no longer replace 'c1' by 't', because it can no longer be guaranteed that doing so would not lead"
        " to an abrupt change of visible data\n"
    )
