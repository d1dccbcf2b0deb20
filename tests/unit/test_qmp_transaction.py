"""Command *transaction*: all of its actions take effect, or none.  Expected texts are QEMU 7.2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.block_rig import SIZE, Device
from tests.unit.job_rig import BACKUP, END, JobDisks, life


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    for name in ("s", "t", "u"):
        made.add(name, made.qcow2(f"{name}.qcow2"), "qcow2")
    made.write("s", 0, b"data" * 1000)
    yield made
    made.close()


def action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {key.replace("_", "-"): value for key, value in data.items()}}


def bitmaps(disks: JobDisks, node: str = "s") -> dict[str, Any]:
    return {it["name"]: it for it in disks.node(node).get("dirty-bitmaps", [])}


def test_nothing_at_all(disks: JobDisks) -> None:
    disks.run("transaction", actions=[])
    assert disks.fails("transaction", actions=[action("abort")]) == "Transaction aborted using Abort action"


def test_bitmaps_are_as_before_where_one_action_fails(disks: JobDisks) -> None:
    for name in ("a", "b"):
        disks.run("block-dirty-bitmap-add", node="s", name=name)
    disks.write("s", 0, b"x")
    disks.run("block-dirty-bitmap-disable", node="s", name="b")
    before = bitmaps(disks)
    actions = [
        action("block-dirty-bitmap-add", node="s", name="c"),
        action("block-dirty-bitmap-clear", node="s", name="a"),
        action("block-dirty-bitmap-disable", node="s", name="a"),
        action("block-dirty-bitmap-enable", node="s", name="b"),
        action("block-dirty-bitmap-merge", node="s", target="c", bitmaps=["b"]),
        action("block-dirty-bitmap-remove", node="s", name="b"),
    ]
    refused = disks.fails("transaction", actions=[*actions, action("block-dirty-bitmap-clear", node="s", name="zz")])
    assert refused == "Dirty bitmap 'zz' not found"
    assert bitmaps(disks) == before
    disks.run("transaction", actions=actions)
    after = bitmaps(disks)
    assert set(after) == {"a", "c"}
    assert (after["a"]["count"], after["a"]["recording"], after["c"]["count"]) == (0, False, 65536)


def test_a_snapshot_is_taken_back(disks: JobDisks) -> None:
    backend = disks.node_disk("s", Device(), "disk")
    snapshot = action(
        "blockdev-snapshot-sync",
        node_name="s",
        snapshot_node_name="over",
        snapshot_file=str(disks.folder / "over.qcow2"),
    )
    assert disks.fails("transaction", actions=[snapshot, action("abort")]) == "Transaction aborted using Abort action"
    assert backend.node is disks.storage.graph.nodes["s"]
    assert not backend.node.read_only
    assert "over" not in disks.storage.graph.nodes
    disks.write("s", 0, b"more")
    disks.run("transaction", actions=[snapshot])
    assert backend.node.name == "over"
    assert disks.read("over", 0, 4) == b"more"


def test_an_overlay_that_was_there_is_left_alone(disks: JobDisks) -> None:
    backend = disks.node_disk("s", Device(), "disk")
    snapshot = action("blockdev-snapshot", node="s", overlay="t")
    disks.fails("transaction", actions=[snapshot, action("abort")])
    assert backend.node is disks.storage.graph.nodes["s"]
    assert disks.storage.graph.nodes["t"].backing is None
    disks.run("transaction", actions=[snapshot])
    assert backend.node is disks.storage.graph.nodes["t"]


def test_a_snapshot_inside_is_removed_again(disks: JobDisks) -> None:
    inside = action("blockdev-snapshot-internal-sync", device="s", name="one")
    disks.fails("transaction", actions=[inside, action("abort")])
    assert disks.storage.graph.nodes["s"].snapshots == []  # type: ignore[attr-defined]
    disks.storage.clock.advance(90_000_000_007)  # type: ignore[attr-defined]
    disks.run("transaction", actions=[inside])
    again = disks.fails("blockdev-snapshot-internal-sync", device="s", name="one")
    assert again == "Snapshot with name 'one' already exists on device 's'"
    deleted = disks.run("blockdev-snapshot-delete-internal-sync", device="s", name="one")
    assert (deleted["name"], deleted["vm-clock-sec"], deleted["vm-clock-nsec"]) == ("one", 90, 7)
    gone = disks.fails("blockdev-snapshot-delete-internal-sync", device="s", name="one")
    assert gone == "Snapshot with id 'null' and name 'one' does not exist on device 's'"


def backup(identifier: str, source: str, target: str, **options: Any) -> dict[str, Any]:
    return action("blockdev-backup", job_id=identifier, device=source, target=target, sync="full", **options)


def test_a_job_begins_when_all_is_well(disks: JobDisks) -> None:
    refused = disks.fails("transaction", actions=[backup("a", "s", "t"), action("abort")])
    assert refused == "Transaction aborted using Abort action"
    assert disks.wait("a:null") == life("a", "created", "aborting", "concluded", "null")
    assert not any(node.driver == "copy-before-write" for node in disks.storage.graph.nodes.values())
    disks.run("block-dirty-bitmap-add", node="s", name="m")
    disks.write("s", 0, b"new")
    disks.run("transaction", actions=[backup("a", "s", "t"), action("block-dirty-bitmap-clear", node="s", name="m")])
    assert disks.wait("a:null") == life("a", *BACKUP, *END)
    assert disks.read("t", 0, SIZE) == disks.read("s", 0, SIZE)
    assert bitmaps(disks)["m"]["count"] == 0


def test_jobs_that_fail_together(disks: JobDisks) -> None:
    disks.run("blockdev-add", driver="null-co", node_name="n", size=SIZE)
    actions = [backup("a", "s", "t"), backup("b", "u", "n", speed=1)]
    disks.run("transaction", actions=actions, properties={"completion-mode": "grouped"})
    log = disks.wait("a:waiting")
    assert "a:pending" not in log
    disks.run("job-cancel", id="b")
    log = disks.wait("a:null", "b:null")
    assert log.count("BLOCK_JOB_CANCELLED") == 2
    assert [line for line in log if line[0] == "a"] == ["a:aborting", "a:concluded", "a:null"]


def test_jobs_that_are_finalized_together(disks: JobDisks) -> None:
    disks.run("blockdev-add", driver="null-co", node_name="n", size=SIZE)
    actions = [backup("a", "s", "t", auto_finalize=False), backup("b", "u", "n")]
    disks.run("transaction", actions=actions, properties={"completion-mode": "grouped"})
    disks.wait("a:pending", "b:pending")
    disks.run("job-finalize", id="a")
    log = disks.wait("a:null", "b:null")
    assert log.count("BLOCK_JOB_COMPLETED") == 2


def test_only_jobs_can_be_grouped(disks: JobDisks) -> None:
    actions = [action("block-dirty-bitmap-add", node="s", name="c")]
    refused = disks.fails("transaction", actions=actions, properties={"completion-mode": "grouped"})
    assert refused == (
        "Action 'block-dirty-bitmap-add' does not support Transaction property completion-mode = grouped"
    )
