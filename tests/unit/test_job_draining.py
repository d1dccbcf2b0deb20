"""Jobs pause while their nodes stand still.  Expected events are QEMU 7.2's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.draining import drained, drained_once
from pyvm.block.errors import BlockError
from tests.unit.block_rig import SIZE, Device
from tests.unit.job_rig import JobDisks

SLOW = 65536


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    """Return a chain ``b``, ``m``, ``s`` with data in each layer, a target ``t``, and ``x`` that is apart."""
    made = JobDisks(tmp_path)
    below: tuple[Any, ...] = ()
    for number, name in enumerate("bms"):
        path = made.qcow2(f"{name}.qcow2", *below)
        made.add(name, path, "qcow2", **({"backing": "bms"[number - 1]} if number else {}))
        below = (path,)
        made.write(name, number << 16, bytes([65 + number]) * 65536)
    made.add("t", made.qcow2("t.qcow2"), "qcow2")
    made.add("x", made.qcow2("x.qcow2"), "qcow2")
    yield made
    made.close()


def seen(disks: JobDisks, command: str, **arguments: Any) -> list[str]:
    """Return the events of a command that came before its end."""
    disks.log.clear()
    disks.ask(command, **arguments)
    return disks.log.copy()


def pair(job: str, before: str = "running", still: str = "paused") -> list[str]:
    return [f"{job}:{still}", f"{job}:{before}"]


def backup(disks: JobDisks, **more: Any) -> None:
    disks.run("blockdev-backup", **{"job_id": "j", "device": "s", "target": "t", "sync": "none", **more})


BITMAP = {"type": "block-dirty-bitmap-add", "data": {"node": "x", "name": "map"}}


def test_what_lets_a_backup_pause(disks: JobDisks) -> None:
    backup(disks)
    once, twice = pair("j"), pair("j") * 2
    assert seen(disks, "transaction", actions=[]) == once
    assert seen(disks, "transaction", actions=[BITMAP]) == once
    assert seen(disks, "transaction", actions=[{"type": "abort", "data": {}}]) == once
    assert seen(disks, "block-dirty-bitmap-add", node="s", name="other") == []
    for name, events in (("b", once), ("t", once), ("x", [])):
        file = {"driver": "file", "filename": str(disks.folder / f"{name}.qcow2")}
        assert seen(disks, "blockdev-reopen", options=[{"driver": "qcow2", "node-name": name, "file": file}]) == events
    assert seen(disks, "block_resize", node_name="x", size=SIZE) == []
    new = {"snapshot-node-name": "y", "snapshot-file": str(disks.folder / "y.qcow2")}
    assert seen(disks, "blockdev-snapshot-sync", node_name="x", **new) == once
    assert seen(disks, "blockdev-snapshot", node="s", overlay="y") == twice
    assert seen(disks, "human-monitor-command", command_line='qemu-io x "read 0 1k"') == []
    assert seen(disks, "human-monitor-command", command_line='qemu-io s "read 0 1k"') == twice
    assert seen(disks, "job-pause", id="j") == ["j:paused"]
    assert seen(disks, "transaction", actions=[]) == []
    assert seen(disks, "job-resume", id="j") == ["j:running"]


def test_a_mirror_that_is_ready_is_in_standby(disks: JobDisks) -> None:
    disks.run("blockdev-mirror", job_id="j", device="s", target="t", sync="full")
    disks.wait("BLOCK_JOB_READY")
    once = pair("j", "ready", "standby")
    assert seen(disks, "transaction", actions=[]) == once
    with disks.storage.lock, drained(disks.storage.graph, [disks.storage.graph.nodes["x"]]):
        assert seen(disks, "query-jobs") == []
    disks.log.clear()
    with disks.storage.lock:
        disks.storage.drain()
    disks.loop()
    assert disks.log == once


def test_several_that_stand_still_at_once(disks: JobDisks) -> None:
    disks.run("blockdev-mirror", job_id="j", device="s", target="t", sync="full")
    disks.wait("BLOCK_JOB_READY")
    disks.add("u", disks.qcow2("u.qcow2"), "qcow2")
    disks.run("blockdev-backup", job_id="k", device="x", target="u", sync="none")
    assert seen(disks, "transaction", actions=[]) == ["j:standby", "k:paused", "j:ready", "k:running"]
    disks.log.clear()
    graph = disks.storage.graph
    with disks.storage.lock, drained_once(graph):
        for _ in range(3):
            disks.storage.drain()
    disks.loop()
    assert disks.log == ["j:standby", "k:paused", "j:ready", "k:running"]


def test_the_end_of_a_job_below_another(disks: JobDisks) -> None:
    backup(disks)
    assert seen(disks, "block-stream", device="m", job_id="k", speed=SLOW)[:2] == pair("j")
    disks.run("block-job-set-speed", device="k", speed=0)
    log = disks.wait("k:null")
    assert log[log.index("k:pending") + 1 : log.index("BLOCK_JOB_COMPLETED")] == pair("j") * 4


@pytest.mark.parametrize("sync", ["full", "top"])
def test_many_pauses_lose_nothing(disks: JobDisks, sync: str) -> None:
    """A job stops wherever it is: while it looks for data, makes an image longer, writes or waits."""
    backup(disks, sync=sync)
    for _ in range(30):
        with disks.storage.lock:
            disks.storage.drain()
        disks.loop()
    log = disks.wait("j:null")
    assert "BLOCK_JOB_COMPLETED" in log
    assert disks.event("BLOCK_JOB_COMPLETED").get("error") is None
    assert disks.read("t", 2 << 16, 65536) == b"C" * 65536
    assert disks.read("t", 0, 65536) == (b"A" * 65536 if sync == "full" else bytes(65536))


def test_a_pause_does_not_let_a_limited_backup_go_faster(disks: JobDisks) -> None:
    backup(disks, sync="full", speed=SLOW)
    disks.loop(0.05)
    before = disks.jobs()[0]["offset"]
    for _ in range(5):
        disks.run("transaction", actions=[])
        disks.loop()
    assert disks.jobs()[0]["offset"] == before


def test_the_end_of_the_machine_and_a_cancel(disks: JobDisks) -> None:
    backup(disks)
    cancelled = ["j:aborting", "BLOCK_JOB_CANCELLED", "j:concluded", "j:null"]
    assert seen(disks, "job-cancel", id="j") == cancelled
    backup(disks)
    disks.log.clear()
    with disks.storage.lock:
        disks.storage.end_jobs()
    disks.loop()
    assert disks.log == [*pair("j"), *cancelled]


def test_a_device_that_a_virtual_cpu_resets(disks: JobDisks) -> None:
    """The thread of a virtual CPU lets the job pause; the main loop lets it go on."""
    backend = disks.node_disk("s", Device(), "disk")
    backup(disks)
    disks.log.clear()

    def reset() -> None:
        with disks.storage.lock:
            backend.drain(cancel=True)

    thread = threading.Thread(target=reset)
    thread.start()
    thread.join()
    assert [job["status"] for job in disks.jobs()] == ["paused"]
    disks.loop()
    assert disks.log == pair("j")


def test_a_disk_shows_another_node(disks: JobDisks) -> None:
    backend = disks.node_disk("s", Device(), "disk")
    disks.run("blockdev-add", **{"driver": "copy-before-write", "node-name": "f", "file": "s", "target": "t"})
    with disks.storage.lock:
        disks.storage.show_node(backend, "f")
        assert backend.node is disks.storage.graph.nodes["f"]
        with pytest.raises(BlockError, match="Cannot find device='' nor node-name='none'"):
            disks.storage.show_node(backend, "none")
        assert backend.node is disks.storage.graph.nodes["f"]
    assert "in use" in disks.fails("blockdev-del", node_name="f")
    with disks.storage.lock:
        disks.storage.show_node(backend, "s")
    disks.run("blockdev-del", node_name="f")


def test_what_a_bitmap_leaves_out_of_a_snapshot_cannot_be_read(disks: JobDisks) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="map", granularity=65536)
    disks.write("s", 2 << 16, b"known" + bytes(65531))
    wanted = {"node": "s", "name": "map"}
    disks.run(
        "blockdev-add",
        **{"driver": "copy-before-write", "node-name": "f", "file": "s", "target": "t", "bitmap": wanted},
    )
    disks.run("blockdev-add", **{"driver": "snapshot-access", "node-name": "a", "file": "f"})
    disks.write("f", 2 << 16, b"later")
    assert disks.read("a", 2 << 16, 5) == b"known"
    for offset in (0, (2 << 16) - 1, (3 << 16) - 2):
        with pytest.raises(PermissionError):
            disks.read("a", offset, 5)
