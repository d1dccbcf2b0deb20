"""What jobs do about errors of their disks, with blkdebug between; and jobs at the human monitor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.block_rig import SIZE
from tests.unit.job_rig import BACKUP, END, LIFE, JobDisks, life


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    made.run("blockdev-add", driver="null-co", node_name="t", size=SIZE)
    yield made
    made.close()


def debug(disks: JobDisks, name: str, *rules: dict[str, Any], states: tuple[dict[str, Any], ...] = ()) -> None:
    """Make a raw disk over a file with data, in which `rules` inject errors."""
    path = disks.folder / f"{name}.raw"
    path.write_bytes(b"data" * (SIZE // 4))
    image = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}}
    image["inject-error"], image["set-state"] = list(rules), list(states)
    disks.run("blockdev-add", driver="raw", node_name=name, file=image)


FAILED = ["aborting", "BLOCK_JOB_COMPLETED", "concluded", "null"]
JOBS = ("blockdev-mirror", "blockdev-backup")


def begin(command: str) -> list[str]:
    """Return the log of a job's beginning."""
    return BACKUP if command == "blockdev-backup" else LIFE


@pytest.mark.parametrize("command", JOBS)
def test_an_error_ends_the_job(disks: JobDisks, command: str) -> None:
    debug(disks, "s", {"event": "read_aio", "errno": 5})
    disks.run(command, job_id="j", device="s", target="t", sync="full")
    assert disks.wait("j:null") == life("j", *begin(command), "BLOCK_JOB_ERROR", *FAILED)
    assert disks.event("BLOCK_JOB_ERROR") == {"device": "j", "operation": "read", "action": "report"}
    assert disks.event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert all(not node.is_filter or node.driver == "blkdebug" for node in disks.storage.graph.nodes.values())


@pytest.mark.parametrize("command", JOBS)
def test_an_error_stops_the_job_until_somebody_lets_it_go_on(disks: JobDisks, command: str) -> None:
    debug(disks, "s", {"event": "read_aio", "errno": 28, "once": True})
    disks.run(command, job_id="j", device="s", target="t", sync="full", on_source_error="enospc")
    while "BLOCK_JOB_ERROR" not in disks.log:
        disks.loop()
    assert disks.wait("j:paused") == life("j", *begin(command), "BLOCK_JOB_ERROR", "paused")
    (job,) = disks.jobs()
    assert (job["io-status"], job["paused"], job["status"]) == ("nospace", True, "paused")
    disks.run("block-job-resume", device="j")
    if command == "blockdev-mirror":
        assert disks.wait("BLOCK_JOB_READY") == life("j", "running", "ready", "BLOCK_JOB_READY")
        assert disks.jobs()[0]["io-status"] == "ok"
        return
    assert disks.wait("j:null") == life("j", "running", *END)


def test_an_error_at_the_target(disks: JobDisks) -> None:
    debug(disks, "s")
    debug(disks, "d", {"event": "write_aio", "errno": 5, "once": True})
    disks.run("blockdev-mirror", job_id="j", device="s", target="d", sync="full", on_target_error="ignore")
    disks.wait("BLOCK_JOB_READY")
    assert disks.event("BLOCK_JOB_ERROR") == {"device": "j", "operation": "write", "action": "ignore"}
    assert disks.read("d", 0, SIZE) == disks.read("s", 0, SIZE)


def test_a_write_of_the_guest_that_the_copy_does_not_take(disks: JobDisks) -> None:
    debug(disks, "s")
    debug(
        disks,
        "d",
        {"event": "write_aio", "errno": 5, "state": 2},
        states=({"event": "flush_to_disk", "state": 1, "new_state": 2},),
    )
    disks.run("blockdev-mirror", job_id="j", device="s", target="d", sync="full", copy_mode="write-blocking")
    disks.wait("BLOCK_JOB_READY")
    disks.write("s", 0, b"more")
    assert disks.wait("j:null") == life("j", "BLOCK_JOB_ERROR", *FAILED)
    assert disks.read("s", 0, 4) == b"more"


@pytest.mark.parametrize(
    ("rule", "fails"),
    [
        ({"event": "none", "iotype": "write"}, ["write"]),
        ({"event": "none", "iotype": "flush"}, ["flush"]),
        ({"event": "none", "sector": 1}, ["write", "read"]),
        ({"event": "read_aio", "errno": 0}, []),
        ({"event": "write_aio", "once": True}, ["write"]),
        ({"event": "none", "state": 7, "iotype": "discard"}, []),
    ],
)
def test_rules(disks: JobDisks, rule: dict[str, Any], fails: list[str]) -> None:
    debug(disks, "s", rule)
    node = disks.storage.graph.nodes["s"]
    failed = []
    for name, call in (
        ("write", lambda: node.write(0, bytes(1024))),
        ("read", lambda: node.read(0, 1024)),
        ("flush", node.flush),
    ):
        try:
            call()
        except OSError:
            failed.append(name)
    assert failed == fails


def test_rules_in_a_file(disks: JobDisks) -> None:
    config = disks.folder / "rules"
    config.write_text('[inject-error]\nevent = "none"\niotype = "read"\nerrno = "28"\n')
    path = disks.raw("x.raw")
    backend = disks.drive("x", f"blkdebug:{config}:{path}")
    with pytest.raises(OSError, match="No space left"):
        backend.pread(0, 512)
    config.write_text("[what]\n")
    disks.fails("blockdev-add", driver="blkdebug", node_name="y", config=str(config), image="t")


def test_jobs_at_the_human_monitor(disks: JobDisks) -> None:
    debug(disks, "s")
    assert disks.human("info block-jobs") == "No active jobs\n"
    assert disks.human("info jobs") == "No active jobs\n"
    disks.run("blockdev-mirror", job_id="j", device="s", target="t", sync="full", speed=5)
    disks.wait("j:running")
    assert disks.human("info block-jobs").startswith("Type mirror, device j: Completed ")
    assert "mirror, running" in disks.human("info jobs")
    for line in ("block_job_pause j", "block_job_resume j", "block_job_set_speed j 0"):
        assert disks.human_quietly(line) == ""
    disks.wait("BLOCK_JOB_READY")
    assert disks.human("block_job_cancel zz") == "Error: Block job 'zz' not found\n"
    assert disks.human_quietly("block_job_complete j") == ""
    disks.wait("j:null")
    assert disks.human("block_stream zz") == "Error: Cannot find device='zz' nor node-name='zz'\n"
