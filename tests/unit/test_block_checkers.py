"""Drivers that watch or compare disks: quorum, blkverify, snapshot-access."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.block_rig import SIZE
from tests.unit.job_rig import JobDisks


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    yield made
    made.close()


def copies(disks: JobDisks, count: int = 3, **options: Any) -> Any:
    """Make quorum ``q`` of raw files ``c0``, ``c1`` and so on; return its node."""
    for number in range(count):
        disks.add(f"c{number}", disks.raw(f"c{number}"), "raw")
    children = [f"c{number}" for number in range(count)]
    disks.run(
        "blockdev-add", **{"driver": "quorum", "node_name": "q", "children": children, "vote_threshold": 2, **options}
    )
    return disks.storage.graph.nodes["q"]


def spoil(disks: JobDisks, name: str, data: bytes = b"bad") -> None:
    with open(disks.folder / name, "r+b") as file:
        file.write(data)


def test_one_copy_is_outvoted(disks: JobDisks) -> None:
    node = copies(disks)
    node.write(0, b"right")
    spoil(disks, "c1")
    assert bytes(node.read(0, 5)) == b"right"
    disks.loop()
    assert disks.event("QUORUM_REPORT_BAD") == {
        "type": "read", "node-name": "c1", "sector-num": 0, "sectors-count": 1,
    }  # fmt: skip


def test_nobody_agrees(disks: JobDisks) -> None:
    node = copies(disks)
    for number in range(3):
        spoil(disks, f"c{number}", b"bad%d" % number)
    with pytest.raises(OSError, match="Input/output"):
        node.read(0, 512)
    disks.loop()
    assert disks.event("QUORUM_FAILURE") == {"reference": "q", "sector-num": 0, "sectors-count": 1}


def test_a_wrong_copy_is_put_right(disks: JobDisks) -> None:
    node = copies(disks, rewrite_corrupted=True)
    spoil(disks, "c2")
    node.read(0, 512)
    assert (disks.folder / "c2").read_bytes()[:3] == bytes(3)


def test_the_first_copy_will_do(disks: JobDisks) -> None:
    node = copies(disks, read_pattern="fifo")
    spoil(disks, "c0")
    assert bytes(node.read(0, 3)) == b"bad"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vote_threshold": 5}, "threshold may not exceed children count"),
        ({"vote_threshold": 0}, "Parameter 'vote-threshold' expects a value >= 1"),
        ({"children": []}, "Number of provided children must be 1 or more"),
        ({"children": "c0"}, "Invalid parameter type for 'children', expected: array"),
        ({"blkverify": True}, "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"),
    ],
)
def test_what_is_no_quorum(disks: JobDisks, options: dict[str, Any], why: str) -> None:
    children = [{"driver": "null-co"}] * 3
    given = {"driver": "quorum", "node_name": "q", "children": children, "vote_threshold": 2, **options}
    assert disks.fails("blockdev-add", **given) == why
    assert not disks.storage.graph.nodes


def test_a_quorum_has_a_name_and_children(disks: JobDisks) -> None:
    copies(disks, 2)
    shown = disks.node("q")
    assert shown["file"].startswith("json:")
    assert '"children": [{' in shown["file"]
    assert disks.fails("blockdev-del", node_name="c0") == "Block device c0 is in use"


_COMPARE = """
import sys
from pyvm.block.drivers.blkverify import BlkverifyNode
from pyvm.block.drivers.file import FileNode
from pyvm.block.node import disk_access
test, raw = (FileNode(path, access=disk_access(False)) for path in sys.argv[1:])
node = BlkverifyNode(test, raw)
node.write(512, b"same")
assert node.read(0, 1024)[512:516] == b"same"
raw.write(100, b"x")
node.read(0, 1024)
"""


def test_a_difference_ends_the_process(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("test", "raw")]
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    done = subprocess.run([sys.executable, "-c", _COMPARE, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "blkverify: read offset=0 bytes=1024 contents mismatch at offset 100\n"


def test_blkverify_by_its_name(disks: JobDisks) -> None:
    paths = [disks.raw(name) for name in ("raw", "test")]
    backend = disks.drive("v", f"blkverify:{paths[0]}:{paths[1]}")
    backend.pwritev(0, (memoryview(b"x" * 512),))
    assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()


def test_what_a_disk_was(disks: JobDisks) -> None:
    disks.add("s", disks.raw("s"), "raw")
    disks.add("t", disks.qcow2("t"), "qcow2")
    disks.write("s", 0, b"before")
    disks.run("blockdev-add", driver="copy-before-write", node_name="c", file="s", target="t")
    disks.run("blockdev-add", driver="snapshot-access", node_name="a", file="c")
    disks.write("c", 0, b"after!")
    assert disks.read("a", 0, 6) == b"before"
    assert disks.read("c", 0, 6) == b"after!"
    disks.run("blockdev-add", driver="snapshot-access", node_name="b", file="s")
    with pytest.raises(OSError, match="not supported"):
        disks.storage.graph.nodes["b"].read(0, 512)
    for name in "abc":
        disks.run("blockdev-del", node_name=name)
