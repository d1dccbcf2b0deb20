"""Internal snapshots of qcow2 images: disks and VM states that come back, whichever way their users are counted."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2 import sharing, vmstate, walk
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COPIED, OFFSET_MASK
from pyvm.block.open import open_image

CLUSTER = 512
TABLE = CLUSTER // 8 * CLUSTER
"""What an L2 table is for, in bytes."""
SIZE = 2 * TABLE
STATE = TABLE + 3 * CLUSTER
WAYS = {"runs": (1 << 30, 1 << 30), "numpy": (-1, -1)}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, runs = WAYS[request.param]
    monkeypatch.setattr(sharing, "_FEW_TABLES", tables)
    monkeypatch.setattr(sharing, "_FEW_RUNS", runs)


def opened(path: Path, **options: int | str) -> Qcow2Node:
    create_image(str(path), "qcow2", SIZE, {"cluster_size": CLUSTER, **options})
    node = open_image(str(path))
    assert isinstance(node, Qcow2Node)
    return node


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Qcow2Node]:
    node = opened(tmp_path / "image")
    yield node
    node.release()


def sound(node: Qcow2Node) -> bool:
    found = node.check()
    return (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0)


def put_state(node: Qcow2Node, seed: int, size: int = STATE) -> bytes:
    data = random.Random(seed).randbytes(size)
    node.write_vmstate(0, [memoryview(data)])
    return data


def state_of(node: Qcow2Node, name: str, size: int = STATE) -> bytes:
    view, data = node.open_snapshot(name), bytearray(size)
    view.read_vmstate(0, [memoryview(data)])
    view.release()
    return bytes(data)


def clusters_of_state(node: Qcow2Node) -> list[int]:
    """Return what the active tables name behind the end of the disk."""
    node.flush()
    disk = node.disk
    first = disk.l1_entries(disk.header.size)
    tables = [offset for index, offset in walk.l2_tables(disk.image.l1) if index >= first]
    return [int(it) for at in tables for it in walk.data_clusters(walk.read_table(disk.image, at), disk.header)]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(4))
def test_flags_say_who_is_alone_after_a_snapshot_has_gone(image: Qcow2Node, seed: int) -> None:
    """Clusters that another snapshot has too, zeros, compressed clusters and gaps, next to one another."""
    chance = random.Random(seed)
    for name in ("one", "two"):
        for _ in range(12):
            place, count = chance.randrange(SIZE // CLUSTER - 4) * CLUSTER, chance.randint(1, 4)
            if chance.random() < 0.7:
                image.write(place, chance.randbytes(count * CLUSTER))
            elif chance.random() < 0.5:
                image.write_zeroes(place, count * CLUSTER, unmap=False)
            else:
                image.write_compressed(place, bytes(CLUSTER - 1) + b"x")
        image.create_snapshot(name)
    for place in chance.sample(range(0, SIZE, CLUSTER), 20):
        image.write(place, chance.randbytes(CLUSTER))
    image.delete_snapshot(name="one")
    disk = image.disk
    for _, offset in walk.l2_tables(disk.image.l1):
        for entry in walk.read_table(disk.image, offset).tolist():
            host = entry & OFFSET_MASK
            if not entry & COMPRESSED:
                alone = host and disk.refcounts.count(host // CLUSTER) == 1
                assert bool(entry & COPIED) == bool(alone)
    assert sound(image)


@pytest.mark.usefixtures("way")
class TestStateOfAMachine:
    def test_it_moves_to_the_snapshot(self, image: Qcow2Node) -> None:
        """The snapshot alone has it, without a copy of any table."""
        first = put_state(image, 1)
        clusters = clusters_of_state(image)
        image.create_snapshot("one", vm_state_size=STATE)
        assert clusters_of_state(image) == []
        assert {image.disk.refcounts.count(it) for it in clusters} == {1}
        second = put_state(image, 2, CLUSTER)
        image.create_snapshot("two", vm_state_size=CLUSTER)
        assert (state_of(image, "one"), state_of(image, "two", CLUSTER)) == (first, second)
        assert sound(image)
        image.delete_snapshot(name="one")
        assert state_of(image, "two", CLUSTER) == second
        assert {image.disk.refcounts.count(it) for it in clusters} == {0}
        assert sound(image)

    @pytest.mark.parametrize("kept", [True, False])
    def test_it_comes_back_with_the_disk_or_not(self, image: Qcow2Node, kept: bool) -> None:
        image.write(0, b"a" * SIZE)
        data = put_state(image, 1)
        image.create_snapshot("one", vm_state_size=STATE)
        image.write(TABLE, b"b" * TABLE)
        image.apply_snapshot("one", vm_state=kept)
        assert image.read(0, SIZE) == b"a" * SIZE
        found = bytearray(STATE)
        vmstate.read(image.disk, 0, [memoryview(found)])
        assert bytes(found) == (data if kept else bytes(STATE))
        assert sound(image)
        assert put_state(image, 3)
        assert state_of(image, "one") == data
        image.drop_vmstate(STATE)
        assert sound(image)

    def test_one_that_no_snapshot_says_it_has_stays(self, image: Qcow2Node) -> None:
        data, found = put_state(image, 1), bytearray(STATE)
        image.create_snapshot("disk")
        vmstate.read(image.disk, 0, [memoryview(found)])
        assert bytes(found) == data
        assert sound(image)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [{}, {"extended_l2": "on", "cluster_size": 16384}])
def test_disks_come_back(tmp_path: Path, options: dict[str, int | str]) -> None:
    """Random operations, with data that is compressed, and others of which several share a cluster."""
    node = opened(tmp_path / "image", **options)
    chance, cluster = random.Random(5), node.cluster_size
    now = bytearray(SIZE)
    kept: dict[str, bytes] = {}
    for turn in range(30):
        match chance.choice(["write", "write", "pack", "create", "apply", "delete", "state"]):
            case "write":
                start = chance.randrange(SIZE // 512) * 512
                data = bytes([turn + 1]) * min(512 * chance.randrange(1, 40), SIZE - start)
                node.write(start, data)
                now[start : start + len(data)] = data
            case "pack":
                start = chance.randrange(SIZE // cluster) * cluster
                node.write_compressed(start, bytes([turn + 1]) * cluster)
                now[start : start + cluster] = bytes([turn + 1]) * cluster
            case "state":
                put_state(node, turn, cluster * 3)
                node.create_snapshot(f"s{turn}", vm_state_size=cluster * 3)
                kept[f"s{turn}"] = bytes(now)
            case "create":
                node.create_snapshot(f"s{turn}")
                kept[f"s{turn}"] = bytes(now)
            case "apply" if kept:
                name = chance.choice(list(kept))
                node.apply_snapshot(name, vm_state=chance.random() < 0.5)
                now[:] = kept[name]
            case "delete" if kept:
                name = chance.choice(list(kept))
                node.delete_snapshot(name=name)
                del kept[name]
        assert node.read(0, SIZE) == now
    assert sound(node)
    for name, content in kept.items():
        view = node.open_snapshot(name)
        assert view.read(0, SIZE) == content
        view.release()
    node.release()


@pytest.mark.usefixtures("way")
def test_refcounts_without_room(tmp_path: Path) -> None:
    node = opened(tmp_path / "image", refcount_bits=1)
    node.write(0, b"a" * SIZE)
    with pytest.raises(OSError, match="Invalid argument") as raised:
        node.create_snapshot("one")
    assert raised.value.errno == errno.EINVAL
    assert node.snapshots == []
    assert node.read(0, SIZE) == b"a" * SIZE
    assert sound(node)
    node.release()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 60)), max_size=12))
def test_runs_are_counted_up_and_down(wide: Qcow2Node, runs: list[tuple[int, int]]) -> None:
    """Runs that overlap, and go over the ends of slices, count as often as they are named."""
    refcounts, numbers = wide.disk.refcounts, range(150)
    before = [refcounts.count(number) for number in numbers]
    refcounts.add_runs(runs)
    expected = [count + sum(first <= at < first + length for first, length in runs) for at, count in enumerate(before)]
    assert [refcounts.count(number) for number in numbers] == expected
    for first, length in runs:
        refcounts.release(first * CLUSTER, length * CLUSTER)
    refcounts.settle()
    assert [refcounts.count(number) for number in numbers] == before


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Qcow2Node]:
    """An image of several slices of refcounts."""
    node = opened(tmp_path / "image", refcount_bits=64)
    node.write(0, b"a" * SIZE)
    yield node
    assert sound(node)
    node.release()
