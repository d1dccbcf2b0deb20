"""Checks of qcow2 images with many small tables, which are read many at a time: damage in one must not hide there."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2 import walk
from pyvm.block.drivers.qcow2.check import CheckResult
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COPIED, OFFSET_MASK
from pyvm.block.drivers.qcow2.tally import Tally
from pyvm.block.open import open_image
from tests.unit.job_rig import QEMU_IMG, needs_qemu_img

CLUSTER = 512
ENTRIES = CLUSTER // 8
SIZE = 200 * ENTRIES * CLUSTER
DATA = SIZE // 2
CLUSTERS = DATA // CLUSTER
FIGURES = {
    "corruptions": "corruptions",
    "leaks": "leaks",
    "check-errors": "check_errors",
    "allocated-clusters": "allocated_clusters",
    "fragmented-clusters": "fragmented_clusters",
    "image-end-offset": "image_end_offset",
}
"""What `qemu-img check` says, and we."""

Damage = Callable[["Image"], None]


class Image:
    """An image with 200 tables, half of them in use; tables and data follow one another in no order."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        create_image(self.path, "qcow2", SIZE, {"cluster_size": str(CLUSTER)})
        node = self.open()
        for start in range(0, DATA, 3 * ENTRIES * CLUSTER):
            node.write(start, b"d" * min(3 * ENTRIES * CLUSTER, DATA - start))
        node.close()
        self.data = bytearray(path.read_bytes())
        self.l1 = self.word(40)

    def open(self, *, read_only: bool = False) -> Qcow2Node:
        node = open_image(self.path, format="qcow2", read_only=read_only)
        assert isinstance(node, Qcow2Node)
        return node

    def word(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "big")

    def change(self, offset: int, value: int) -> None:
        self.data[offset : offset + 8] = value.to_bytes(8, "big")

    def entry(self, cluster: int) -> int:
        """Return where the entry of a guest cluster is."""
        table = self.word(self.l1 + cluster // ENTRIES * 8) & OFFSET_MASK
        return table + cluster % ENTRIES * 8

    def flip(self, offset: int, bits: int) -> None:
        self.change(offset, self.word(offset) ^ bits)

    def check(self, repair: frozenset[str] = frozenset()) -> tuple[CheckResult, list[str]]:
        Path(self.path).write_bytes(self.data)
        node = self.open(read_only=not repair)
        lines: list[str] = []
        try:
            return node.check(repair, lines.append), lines
        finally:
            node.close()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "disk.qcow2")


def _copied(image: Image) -> None:
    image.flip(image.entry(1000), COPIED)
    image.flip(image.entry(5000), COPIED)


def _l1_flag(image: Image) -> None:
    image.flip(image.l1 + 8 * 40, COPIED)


def _unaligned(image: Image) -> None:
    image.flip(image.entry(2222), 256 * 2)  # bits below the cluster size are reserved here
    image.flip(image.entry(2223), 1 << 57)


def _lost(image: Image) -> None:
    image.change(image.entry(3000), 0)


def _beyond(image: Image) -> None:
    image.change(image.entry(3001), COPIED | (1 << 40))


def _twice(image: Image) -> None:
    image.change(image.entry(3002), image.word(image.entry(77)))


def _same_table(image: Image) -> None:
    image.change(image.l1 + 8 * 9, image.word(image.l1 + 8 * 70))


def _nothing(image: Image) -> None:
    pass


def test_a_sound_image(image: Image) -> None:
    result, lines = image.check()
    assert lines == []
    assert (result.corruptions, result.leaks) == (0, 0)
    assert result.allocated_clusters == CLUSTERS
    assert result.image_end_offset == len(image.data)


def test_wrong_flags_are_found_where_they_are(image: Image) -> None:
    _copied(image)
    _l1_flag(image)
    result, lines = image.check()
    assert (result.corruptions, result.leaks) == (3, 0)
    hosts = [image.word(image.entry(number)) for number in (1000, 5000)]
    assert lines == [
        f"ERROR OFLAG_COPIED data cluster: l2_entry={hosts[0]:x} refcount=1",
        f"ERROR OFLAG_COPIED L2 cluster: l1_index=40 l1_entry={image.word(image.l1 + 320):x} refcount=1",
        f"ERROR OFLAG_COPIED data cluster: l2_entry={hosts[1]:x} refcount=1",
    ]
    result, _ = image.check(frozenset({"errors"}))
    assert result.corruptions_fixed == 3
    image.data = bytearray(Path(image.path).read_bytes())
    assert image.check()[1] == []


def test_a_cluster_that_nothing_names_leaks(image: Image) -> None:
    host = (image.word(image.entry(3000)) & OFFSET_MASK) // CLUSTER
    _lost(image)
    result, lines = image.check()
    assert (result.corruptions, result.leaks) == (0, 1)
    assert lines == [f"Leaked cluster {host} refcount=1 reference=0"]


def test_compressed_clusters_among_plain_ones(image: Image) -> None:
    """The sector of a compressed cluster is counted as often as it is named."""
    host = image.word(image.entry(4000)) & OFFSET_MASK
    image.change(image.entry(4000), COMPRESSED | host)
    result, lines = image.check()
    assert (result.corruptions, result.leaks, result.compressed_clusters) == (0, 0, 1)
    assert lines == []


@needs_qemu_img
@pytest.mark.parametrize("damage", [_nothing, _copied, _l1_flag, _unaligned, _lost, _beyond, _twice, _same_table])
def test_the_figures_are_those_of_qemu(image: Image, damage: Damage) -> None:
    damage(image)
    result, _ = image.check()
    assert QEMU_IMG is not None
    command = [QEMU_IMG, "check", "--output=json", "-f", "qcow2", image.path]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    found = {name: getattr(result, ours) for name, ours in FIGURES.items()}
    assert found == {name: theirs.get(name, 0) for name in FIGURES}


@given(st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=20), st.integers(1, 3)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_tally_counts(parts: list[tuple[list[int], int]]) -> None:
    tally, expected = Tally(), Counter[int]()
    for number, (clusters, times) in enumerate(parts):
        tally.add(np.array(clusters, np.uint64), times)
        expected.update({cluster: clusters.count(cluster) * times for cluster in set(clusters)})
        if number % 3 == 0:
            tally.totals()  # what is counted by now is merged
    numbers, counts = tally.totals()
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == dict(expected)
    assert numbers.tolist() == sorted(expected)


@given(st.sets(st.integers(0, 60), max_size=40))
@settings(max_examples=40, deadline=None)
def test_runs_of_tables_are_neighbours(places: set[int]) -> None:
    size = 1 << 18  # four to a run
    offsets = np.array(sorted(places), np.uint64) * np.uint64(size)
    seen: list[int] = []
    for run in walk.runs(offsets, size):
        found = offsets[run].tolist()
        assert 1 <= len(found) <= 4
        assert found == list(range(found[0], found[0] + len(found) * size, size))
        seen += found
    assert seen == offsets.tolist()


@pytest.mark.parametrize("bits", [8, 64])
def test_a_refcount_table_that_is_full_grows(tmp_path: Path, bits: int) -> None:
    """What the old table had is used again, and all is counted, in blocks that are where the table says."""
    path = str(tmp_path / "disk")
    create_image(path, "qcow2", 16 << 20, {"cluster_size": str(CLUSTER), "refcount_bits": str(bits)})
    node = open_image(path, format="qcow2")
    assert isinstance(node, Qcow2Node)
    header = node.disk.header
    before, old = header.refcount_table_clusters, header.refcount_table_offset
    for offset in range(0, 16 << 20, 1 << 20):
        node.write(offset, b"x" * (1 << 20))
        if header.refcount_table_offset != old:
            break
    assert header.refcount_table_offset != old
    assert header.refcount_table_clusters > before
    node.close()
    node = open_image(path, format="qcow2")
    assert isinstance(node, Qcow2Node)
    node.write((16 << 20) - CLUSTER, b"y" * CLUSTER)
    assert node.disk.refcounts.count(old // CLUSTER) == 1  # it was given back, and something else is there
    result = node.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    node.close()
