"""Dirty bitmaps: recording on every way to write, commands, and what images keep of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.bitmaps import DirtyBitmap
from tests.unit.block_rig import SIZE
from tests.unit.job_rig import QEMU_IMG, JobDisks, check, needs_qemu_img

UNIT = 65536


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[JobDisks]:
    made = JobDisks(tmp_path)
    made.add("s", made.qcow2("s.qcow2"), "qcow2", discard="unmap")
    yield made
    made.close()


def info(disks: JobDisks, name: str, node: str = "s") -> dict[str, Any]:
    return next(it for it in disks.node(node)["dirty-bitmaps"] if it["name"] == name)


# ---- Bits


@given(
    size=st.integers(1, 1 << 20),
    shift=st.integers(9, 17),
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 20), st.integers(1, 1 << 18)), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_bits_are_as_a_set_has_them(size: int, shift: int, changes: list[tuple[bool, int, int]]) -> None:
    unit = 1 << shift
    bitmap, units = DirtyBitmap(size, unit), set()
    for dirty, place, wanted in changes:
        offset = place % size
        length = min(wanted, size - offset)
        if dirty:
            bitmap.set(offset, length)
            units |= set(range(offset // unit, -(-(offset + length) // unit)))
        else:
            bitmap.clear(offset, length)
            last = -(-size // unit) if offset + length == size else (offset + length) // unit
            units -= set(range(-(-offset // unit), last))
    assert bitmap.count == len(units) * unit
    found = set()
    for start, length in bitmap.runs():
        found |= set(range(start // unit, -(-(start + length) // unit)))
    assert found == units
    other = DirtyBitmap(size, 512)
    other.merge(bitmap)
    assert all(other.is_dirty(number * unit) for number in units)
    again = DirtyBitmap(size, unit)
    again.load(bitmap.content())
    assert again.sha256() == bitmap.sha256()


def test_the_checksum() -> None:
    bitmap = DirtyBitmap(64 << 20, UNIT)
    bitmap.set(1 << 20, 192 << 10)
    assert bitmap.sha256() == "01b263067eb8b40af757714c0abf78fb4c23e8966c03a980dc0d5915c02782d7"


# ---- Commands


def test_every_way_to_write_is_recorded(disks: JobDisks) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m", granularity=UNIT)
    node = disks.storage.graph.nodes["s"]
    with disks.storage.quiet():
        node.write(5, b"x")
        node.write_zeroes(2 * UNIT, UNIT, True)
        node.discard(4 * UNIT, UNIT)
        node.write_compressed(6 * UNIT, bytes(UNIT))
    assert info(disks, "m") == {
        "name": "m", "count": 4 * UNIT, "granularity": UNIT, "recording": True, "busy": False, "persistent": False,
    }  # fmt: skip
    disks.run("block_resize", node_name="s", size=2 * SIZE)
    disks.write("s", 2 * SIZE - 1, b"x")
    assert info(disks, "m")["count"] == 5 * UNIT
    disks.run("block-dirty-bitmap-disable", node="s", name="m")
    disks.write("s", SIZE, b"x")
    assert (info(disks, "m")["count"], info(disks, "m")["recording"]) == (5 * UNIT, False)
    disks.run("block-dirty-bitmap-clear", node="s", name="m")
    assert info(disks, "m")["count"] == 0
    disks.run("block-dirty-bitmap-remove", node="s", name="m")
    assert "dirty-bitmaps" not in disks.node("s")


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        ("add", {"name": "m"}, "Bitmap already exists: m"),
        ("add", {"name": ""}, "Bitmap name cannot be empty"),
        ("add", {"name": "n", "granularity": 1000}, "Granularity must be power of 2 and at least 512"),
        ("add", {"node": "zz", "name": "n"}, "Cannot find device='zz' nor node-name='zz'"),
        ("add", {"node": "s-file", "name": "n", "persistent": True}, "Can't store persistent bitmaps to s-file"),
        ("clear", {"name": "zz"}, "Dirty bitmap 'zz' not found"),
        ("clear", {"node": "zz", "name": "m"}, "Node 'zz' not found"),
        ("merge", {"target": "m", "bitmaps": ["zz"]}, "Dirty bitmap 'zz' not found"),
    ],
)
def test_what_is_refused(disks: JobDisks, command: str, options: dict[str, Any], why: str) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m")
    assert disks.fails(f"block-dirty-bitmap-{command}", **{"node": "s", **options}) == why


# ---- Kept in images


def reopen(disks: JobDisks, **options: Any) -> None:
    disks.run("blockdev-del", node_name="s")
    disks.add("s", str(disks.folder / "s.qcow2"), "qcow2", **options)


def test_a_persistent_bitmap_comes_back(disks: JobDisks) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m", granularity=UNIT, persistent=True)
    disks.run("block-dirty-bitmap-add", node="s", name="off", persistent=True, disabled=True)
    disks.write("s", UNIT, b"x")
    reopen(disks)
    found = info(disks, "m")
    assert (found["count"], found["recording"], found["persistent"]) == (UNIT, True, True)
    assert info(disks, "off")["recording"] is False
    disks.write("s", 3 * UNIT, b"x")
    disks.run("block-dirty-bitmap-remove", node="s", name="off")
    reopen(disks, read_only=True)
    assert info(disks, "m")["count"] == 2 * UNIT
    refused = disks.fails("block-dirty-bitmap-clear", node="s", name="m")
    assert refused == "Bitmap 'm' is readonly and cannot be modified"
    assert len(disks.node("s")["dirty-bitmaps"]) == 1


def test_what_was_in_use_at_a_crash_can_only_be_removed(disks: JobDisks, tmp_path: Path) -> None:
    disks.run("block-dirty-bitmap-add", node="s", name="m", persistent=True)
    reopen(disks)
    disks.write("s", 0, b"x")
    with disks.storage.quiet():
        disks.storage.graph.nodes["s"].flush()
    copy = tmp_path / "copy.qcow2"
    copy.write_bytes((tmp_path / "s.qcow2").read_bytes())
    disks.add("c", str(copy), "qcow2")
    found = info(disks, "m", "c")
    assert found["inconsistent"] is True
    assert found["recording"] is False
    for command in ("clear", "enable", "disable"):
        refused = disks.fails(f"block-dirty-bitmap-{command}", node="c", name="m")
        assert refused == "Bitmap 'm' is inconsistent and cannot be used"
    disks.run("block-dirty-bitmap-remove", node="c", name="m")
    assert "dirty-bitmaps" not in disks.node("c")


@needs_qemu_img
def test_qemu_reads_them(disks: JobDisks) -> None:
    assert QEMU_IMG is not None
    path = disks.folder / "s.qcow2"
    disks.run("block-dirty-bitmap-add", node="s", name="m", granularity=UNIT, persistent=True)
    disks.write("s", UNIT, b"x")
    disks.run("blockdev-del", node_name="s")
    check(path)
    shown = json.loads(
        subprocess.run([QEMU_IMG, "info", "--output=json", path], capture_output=True, check=True).stdout
    )
    assert shown["format-specific"]["data"]["bitmaps"] == [{"flags": ["auto"], "name": "m", "granularity": UNIT}]
    subprocess.run([QEMU_IMG, "bitmap", "--add", "-g", "4096", path, "theirs"], check=True)
    subprocess.run([QEMU_IMG, "bitmap", "--merge", "m", path, "theirs"], check=True)
    disks.add("s", str(path), "qcow2")
    assert info(disks, "theirs")["count"] == UNIT
    assert info(disks, "m")["count"] == UNIT
