"""Where a qcow2 image gets its clusters from, and where a repair puts the counts of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.rebuild import Plan, plan_repair
from pyvm.block.graph import BlockGraph
from pyvm.block.open import Opener, open_image
from pyvm.block.options import Dialect

CLUSTER = 65536
SIZE = 64 << 20


def make(path: Path, **options: str) -> Qcow2Node:
    create_image(str(path), "qcow2", SIZE, dict(options))
    return open_node(path)


def open_node(path: Path) -> Qcow2Node:
    node = open_image(str(path), format="qcow2", unmap=True)
    assert isinstance(node, Qcow2Node)
    return node


def open_for_check(path: Path) -> Qcow2Node:
    opener = Opener(BlockGraph(), Dialect.DRIVE, for_check=True)
    node = opener.open(str(path), {"driver": "qcow2"})
    assert isinstance(node, Qcow2Node)
    return node


def place(node: Qcow2Node, offset: int, length: int) -> tuple[int, int]:
    """Return where a range is in the file, and how much of it is there in a row."""
    extent = node.block_status(offset, length)
    assert extent.offset is not None
    return extent.offset, extent.length


def poke(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_a_write_stays_in_one_piece(tmp_path: Path) -> None:
    """Room that is too short for it is left for others."""
    node = make(tmp_path / "disk")
    for cluster in range(6):
        node.write(cluster * CLUSTER, b"a" * CLUSTER)
    first = place(node, 0, CLUSTER)[0]
    for cluster in (0, 1, 3):
        node.discard(cluster * CLUSTER, CLUSTER)
    node.close()
    node = open_node(tmp_path / "disk")
    node.write(16 << 20, b"b" * 3 * CLUSTER)
    assert place(node, 16 << 20, 3 * CLUSTER) == (first + 6 * CLUSTER, 3 * CLUSTER)
    node.close()
    node = open_node(tmp_path / "disk")
    node.write(20 << 20, b"c" * 2 * CLUSTER)
    assert place(node, 20 << 20, 2 * CLUSTER) == (first, 2 * CLUSTER)
    result = node.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    node.close()


def test_clusters_without_data_are_used_together_with_their_neighbours(tmp_path: Path) -> None:
    node = make(tmp_path / "disk")
    node.write(0, b"a" * 4 * CLUSTER)
    before = place(node, 0, 4 * CLUSTER)
    for cluster in (0, 2):
        node.write_zeroes(cluster * CLUSTER, CLUSTER, False)
    node.write(512, b"b" * (3 * CLUSTER - 1024))
    assert place(node, 0, 4 * CLUSTER) == before
    expected = bytes(512) + b"b" * (3 * CLUSTER - 1024) + bytes(512) + b"a" * CLUSTER
    assert node.read(0, 4 * CLUSTER) == expected
    assert node.check().corruptions == 0
    node.close()


def test_much_that_was_discarded_is_used_again(tmp_path: Path) -> None:
    node = make(tmp_path / "disk")
    node.write(0, b"a" * (17 << 20))
    length = node.disk.file.length()
    node.discard(0, 17 << 20)
    node.write(32 << 20, b"b" * (1 << 20))
    node.close()
    assert (tmp_path / "disk").stat().st_size <= length


def test_room_before_a_new_table_is_refused_by_what_it_is_for(tmp_path: Path) -> None:
    node = make(tmp_path / "disk")
    table = node.header.refcount_table_offset
    node.close()
    block = int.from_bytes((tmp_path / "disk").read_bytes()[table : table + 8], "big")
    poke(tmp_path / "disk", block, bytes(2))
    said: list[str] = []
    node = open_node(tmp_path / "disk")
    node.on_corrupted = lambda event: said.append(event["msg"])
    with pytest.raises(OSError, match="at offset 0"):
        node.write(0, b"a")
    assert said == ["Preventing invalid allocation of L2 table at offset 0"]
    node.close()


def test_an_image_without_a_refcount_table_is_repaired(tmp_path: Path) -> None:
    node = make(tmp_path / "disk")
    node.write(0, b"a" * CLUSTER)
    node.close()
    poke(tmp_path / "disk", 48, bytes(12))
    with pytest.raises(Exception, match=r"^Image does not contain a reference count table$"):
        open_node(tmp_path / "disk")
    node = open_for_check(tmp_path / "disk")
    result = node.check({"errors", "leaks"})
    assert (result.corruptions, result.corruptions_fixed) == (0, 4)
    node.close()
    node = open_node(tmp_path / "disk")
    assert node.read(0, CLUSTER) == b"a" * CLUSTER
    node.close()


@pytest.mark.parametrize(("offset", "lines"), [(1 << 20, 0), ((1 << 63) - CLUSTER, 1), ((1 << 50), 1)])
def test_a_refcount_block_behind_the_end(tmp_path: Path, offset: int, lines: int) -> None:
    """It is made where that is near, and the structure anew where it is not: no file becomes huge by a repair."""
    path = tmp_path / "disk"
    make(path).close()
    poke(path, CLUSTER + 8, offset.to_bytes(8, "big"))
    said: list[str] = []
    node = open_for_check(path)
    result = node.check({"errors", "leaks"}, said.append)
    node.close()
    assert said[0] == "Repairing refcount block 1 is outside image"
    assert said.count("ERROR could not resize image: Invalid argument") == lines
    assert result.corruptions == result.check_errors == 0
    assert path.stat().st_size < 2 << 20
    node = open_node(path)
    result = node.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    node.close()


def test_more_users_than_can_be_counted_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    node = make(path, refcount_bits="1")
    node.write(0, b"a" * CLUSTER)
    host = place(node, 0, CLUSTER)[0]
    l1 = node.header.l1_table_offset
    node.close()
    table = int.from_bytes(path.read_bytes()[l1 : l1 + 8], "big") & ~(1 << 63)
    poke(path, table + 8, (host | 1 << 63).to_bytes(8, "big"))
    said: list[str] = []
    node = open_for_check(path)
    result = node.check({"errors", "leaks"}, said.append)
    node.close()
    assert result.corruptions == 1
    assert said[0].startswith(f"ERROR: overflow cluster offset={host:#x}\n")


def _check_plan(plan: Plan, shift: int, used: set[int], kept: set[int]) -> None:
    own = [*plan.blocks.values(), *range(plan.table, plan.table + plan.table_clusters)]
    assert len(own) == len(set(own))
    assert not set(own) & (used | kept | {0})
    assert plan.blocks.keys() == {cluster >> shift for cluster in used.union(own)}
    assert plan.table_clusters == -(-(max(plan.blocks) + 1) * 8 // 512)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, 4000), max_size=60), st.sets(st.integers(1, 4000), max_size=20), st.integers(4, 6))
def test_a_new_structure_counts_everything_and_hits_nothing(used: set[int], kept: set[int], order: int) -> None:
    used = {0, *used}
    numbers, others = (np.array(sorted(it), np.uint64) for it in (used, kept))
    _check_plan(plan_repair(9, order, numbers, others), 9 + 3 - order, used, kept)
