"""Jobs *commit* and *stream*: chains of images become shorter, and show the same as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.block_rig import SIZE, Device
from tests.unit.job_rig import END, LIFE, QEMU_IMG, JobDisks, check, life

NAMES = ("base", "mid", "top")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    path = None
    for number, name in enumerate(NAMES):
        path = made.qcow2(f"{name}.qcow2", path)
        backing = {"backing": NAMES[number - 1]} if number else {}
        made.add(name, path, "qcow2", read_only=False, **backing)
        made.write(name, number * 100000, name.encode() * 30000)
    yield made
    made.close()


def test_a_layer_in_the_middle_is_written_down(disks: JobDisks) -> None:
    disks.node_disk("top", Device(), "disk")
    before = disks.read("top", 0, SIZE)
    disks.run("block-commit", job_id="c", device="top", top_node="mid", base_node="base")
    assert disks.wait("c:null") == life("c", *LIFE, *END)
    assert disks.event("BLOCK_JOB_COMPLETED")["len"] == SIZE
    assert disks.read("top", 0, SIZE) == before
    top = disks.storage.graph.nodes["top"]
    assert top.backing is disks.storage.graph.nodes["base"]
    assert top.header.backing_file == str(disks.folder / "base.qcow2")  # type: ignore[attr-defined]


def test_the_top_is_written_down_while_it_is_in_use(disks: JobDisks) -> None:
    backend = disks.node_disk("top", Device(), "disk")
    before = disks.read("top", 0, SIZE)
    disks.run("block-commit", job_id="c", device="top", base_node="base")
    assert disks.wait("BLOCK_JOB_READY") == life("c", *LIFE, "ready", "BLOCK_JOB_READY")
    assert disks.event("BLOCK_JOB_READY")["type"] == "commit"
    disks.write("top", 5, b"later")
    disks.run("block-job-complete", device="c")
    assert disks.wait("c:null") == life("c", *END)
    assert backend.node is disks.storage.graph.nodes["base"]
    assert disks.read("base", 0, SIZE) == before[:5] + b"later" + before[10:]


def test_a_cancelled_commit_leaves_the_chain(disks: JobDisks) -> None:
    before = disks.read("top", 0, SIZE)
    disks.run("block-commit", job_id="c", device="top", top_node="mid", base_node="base", speed=1)
    disks.wait("c:running")
    refused = "Node 'mid' is busy: block device is in use by block job: commit"
    assert disks.fails("block-commit", job_id="d", device="top", top_node="mid") != ""
    assert disks.fails("block-stream", job_id="d", device="mid") == refused
    disks.run("job-cancel", id="c")
    assert disks.wait("c:null")[-4:] == life("c", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
    assert disks.read("top", 0, SIZE) == before
    assert disks.storage.graph.nodes["top"].backing is disks.storage.graph.nodes["mid"]


def test_the_chain_of_a_job_stays_as_it_is(disks: JobDisks) -> None:
    disks.run("block-stream", job_id="s", device="top", speed=1)
    file = {"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": None}
    refused = disks.fails("blockdev-reopen", options=[file])
    assert refused == "Cannot change frozen 'backing' link from 'top' to 'mid'"
    disks.run("job-cancel", id="s")
    disks.wait("s:null")


@pytest.mark.parametrize("base", [None, "base", "mid"])
def test_layers_are_put_into_the_top(disks: JobDisks, base: str | None) -> None:
    backend = disks.node_disk("top", Device(), "disk")
    before = disks.read("top", 0, SIZE)
    options = {} if base is None else {"base_node": base}
    disks.run("block-stream", job_id="s", device="top", **options)
    assert backend.node is not None
    assert backend.node.driver == "copy-on-read"
    assert disks.wait("s:null") == life("s", *LIFE, *END)
    assert disks.event("BLOCK_JOB_COMPLETED")["offset"] == SIZE
    top = disks.storage.graph.nodes["top"]
    assert backend.node is top
    assert (top.backing and top.backing.name) == base
    assert disks.read("top", 0, SIZE) == before
    if base is None:
        assert top.header.backing_file is None  # type: ignore[attr-defined]
    disks.run("blockdev-del", node_name="top") if False else None
    if QEMU_IMG is not None:
        disks.storage.pause()
        disks.storage.give_back(backend)
        disks.run("blockdev-del", node_name="top")
        check(disks.folder / "top.qcow2")


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        ("block-commit", {"device": "zz"}, "DeviceNotFound: Device 'zz' not found"),
        ("block-commit", {"device": "mid"}, "Need a root block node"),
        ("block-commit", {"top_node": "zz"}, "Cannot find device='' nor node-name='zz'"),
        ("block-commit", {"top": "zz"}, "Top image file zz not found"),
        ("block-commit", {"base": "zz"}, "Can't find 'zz' in the backing chain"),
        ("block-commit", {"base_node": "top"}, "cannot commit an image into itself"),
        ("block-commit", {"top": "a", "top_node": "b"}, "'top-node' and 'top' are mutually exclusive"),
        ("block-commit", {"backing_file": "x"}, "'backing-file' specified, but 'top' is the active layer"),
        ("block-commit", {"device": "base"}, "Need a root block node"),
        ("block-stream", {"device": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
        ("block-stream", {"base": "zz"}, "Can't find 'zz' in the backing chain"),
        ("block-stream", {"base_node": "top"}, "Node 'top' is not a backing image of 'top'"),
        ("block-stream", {"backing_file": "x"}, "backing file specified, but streaming the entire chain"),
        ("block-stream", {"base": "a", "bottom": "b"}, "'base' and 'bottom' cannot be specified at the same time"),
        ("block-stream", {"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ],
)
def test_what_cannot_be_done(disks: JobDisks, command: str, options: dict[str, object], why: str) -> None:
    assert disks.fails(command, **{"job_id": "j", "device": "top", **options}) == why
    assert disks.log == []
