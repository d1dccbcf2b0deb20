"""A machine that moves along with its disk: a mirror fills the disk over there, and bitmaps follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvm import Machine
from pyvm.block.create import create_image
from pyvm.qmp_client import QmpError

SIZE = 4 << 20
PATIENCE = 90.0
CAPABILITIES = ("events", "dirty-bitmaps")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Return a machine with a disk, and one with an empty disk that waits for it."""
    with ExitStack() as stack:
        made = []
        for name in ("source", "target"):
            path = str(tmp_path / name)
            create_image(path, "qcow2", SIZE, {})
            words = ["-nodefaults", "-display", "none", "-S", "-drive", f"file={path},format=qcow2,if=virtio,id=drive0"]
            if name == "target":
                words += ["-incoming", f"unix:{tmp_path}/m"]
            machine = Machine(*words, agent=False, m=16).start()
            stack.callback(machine.stop)
            states = [{"capability": capability, "state": True} for capability in CAPABILITIES]
            machine.qmp("migrate-set-capabilities", capabilities=states)
            made.append(machine)
        yield made[0], made[1]


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ready(machine: Machine) -> bool:
    return any(job["ready"] for job in machine.qmp("query-block-jobs"))


def bitmaps(machine: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = machine.qmp("query-block")[0]["inserted"]["dirty-bitmaps"]
    return found


def test_a_disk_is_mirrored_and_its_bitmaps_follow(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    source, target = machines
    source.qmp("block-dirty-bitmap-add", node="drive0", name="b")
    source.qmp("human-monitor-command", command_line='qemu-io drive0 "write -P 7 64k 64k"')
    target.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": f"{tmp_path}/n"}})
    target.qmp("nbd-server-add", device="drive0", writable=True)
    source.qmp(
        "drive-mirror",
        device="drive0", target=f"nbd+unix:///drive0?socket={tmp_path}/n", sync="full", format="raw", mode="existing",
        job_id="m",
    )  # fmt: skip
    until(lambda: ready(source))
    source.qmp("migrate", uri=f"unix:{tmp_path}/m")
    source.qmp("migrate-start-postcopy")
    until(lambda: source.qmp("query-migrate")["status"] == "completed")
    until(lambda: target.qmp("query-migrate")["status"] == "completed")
    heard = [event["data"]["status"] for event in source.monitor.events() if event["event"] == "MIGRATION"]
    # Who asks for it too late, as the switch-over has begun, does not hear of it.
    assert [status for status in heard if status != "postcopy-active"] == ["setup", "active", "completed"]
    assert heard[-2:] in (["postcopy-active", "completed"], ["active", "completed"])
    source.qmp("block-job-cancel", device="m")
    until(lambda: not source.qmp("query-block-jobs"))
    target.qmp("nbd-server-stop")
    assert [(it["name"], it["count"]) for it in bitmaps(target)] == [("b", 65536)]
    assert bitmaps(target) == bitmaps(source)
    read = target.qmp("human-monitor-command", command_line='qemu-io drive0 "read -P 7 64k 64k"')
    assert "Pattern verification failed" not in read


def test_a_job_that_needs_the_disk_holds_the_machine(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    source, _ = machines
    source.qmp("blockdev-add", driver="null-co", node_name="n", size=SIZE)
    source.qmp("blockdev-backup", job_id="j", device="drive0", target="n", sync="none")
    source.qmp("migrate", uri=f"unix:{tmp_path}/m")
    until(lambda: source.qmp("query-migrate")["status"] == "failed")
    assert source.qmp("query-migrate")["error-desc"] == "block jobs are at work on the disks"


def test_memory_does_not_follow(machines: tuple[Machine, Machine]) -> None:
    source, _ = machines
    with pytest.raises(QmpError, match="Postcopy must be started after migration has been started"):
        source.qmp("migrate-start-postcopy")
