"""Options of the qcow2 driver, its caches, events and marks, on images made by hand."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
from pyvm.block.drivers.qcow2.options import OPTION_NAMES, read_options
from pyvm.block.drivers.qcow2.overlap import TEMPLATES, Kind
from pyvm.block.drivers.qcow2.records import (
    Bitmap,
    Snapshot,
    encode_bitmaps,
    encode_snapshots,
    parse_bitmaps,
    parse_snapshots,
)
from pyvm.block.drivers.qcow2.structures import Header, encode_header, parse_header
from pyvm.block.drivers.qcow2.tally import Tally
from pyvm.block.errors import BlockError
from tests.unit.qcow2_images import empty_image, write_image

SIZE = 1 << 20
CLUSTER = 4096


def header(size: int = SIZE, **options: int) -> Header:
    return parse_header(bytes(empty_image(size=size, **options)))


def opened(path: Path, *, read_only: bool = False, **options: Any) -> Qcow2Node:
    file = FileNode(str(path), read_only=read_only, unmap=True)
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return Qcow2Node(file, read_header(file), name="node0", warn=lambda text: None, options=named)


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        (
            {"cache-size": 1 << 20, "l2-cache-size": 1, "refcount-cache-size": 1},
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        ({"cache-size": 1024, "l2-cache-size": "2k"}, "l2-cache-size may not exceed cache-size"),
        ({"cache-size": 1024, "refcount-cache-size": "2k"}, "refcount-cache-size may not exceed cache-size"),
        (
            {"l2-cache-entry-size": 8192},
            r"L2 cache entry size must be a power of two between 512 and the cluster size \(4096\)",
        ),
        ({"l2-cache-entry-size": 700}, "L2 cache entry size must be a power of two"),
        ({"refcount-cache-size": "1E"}, "Refcount cache size too big"),
        ({"cache-clean-interval": 1 << 32}, "Cache clean interval too big"),
        ({"cache-size": "many"}, "Parameter 'cache-size' expects a non-negative number below 2"),
        ({"lazy-refcounts": "maybe"}, "Parameter 'lazy-refcounts' expects 'on' or 'off'"),
        ({"overlap-check": "some"}, "Unsupported value 'some' for qcow2 option 'overlap-check'. Allowed are any of"),
        (
            {"overlap-check": "all", "overlap-check.template": "none"},
            r"Conflicting values for qcow2 options 'overlap-check' \('all'\) and 'overlap-check.template' \('none'\)",
        ),
    ],
)
def test_options_that_cannot_be(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockError, match=f"^{message}"):
        read_options(given_options, header(), unmap=False)


def test_lazy_refcounts_need_version_3() -> None:
    with pytest.raises(BlockError, match=r"^Lazy refcounts require a qcow2 image with at least qemu 1\.1 compat"):
        read_options({"lazy-refcounts": True}, header(version=2), unmap=False)


def test_cache_sizes() -> None:
    large = header(size=1 << 30)
    tables = (1 << 30) // CLUSTER * 8
    chosen = read_options({}, large, unmap=False)
    assert (chosen.l2_cache, chosen.refcount_cache) == (tables, 4 * CLUSTER)
    chosen = read_options({"cache-size": "1M"}, large, unmap=False)
    assert (chosen.l2_cache, chosen.refcount_cache) == ((1 << 20) - 4 * CLUSTER, 4 * CLUSTER)
    chosen = read_options({"cache-size": "8M"}, large, unmap=False)
    assert (chosen.l2_cache, chosen.refcount_cache) == (tables, (8 << 20) - tables)
    chosen = read_options({"cache-size": "1M", "l2-cache-size": "256k"}, large, unmap=False)
    assert (chosen.l2_cache, chosen.refcount_cache) == (256 << 10, 768 << 10)
    chosen = read_options({"cache-size": "1M", "refcount-cache-size": "256k"}, large, unmap=False)
    assert (chosen.l2_cache, chosen.refcount_cache) == (768 << 10, 256 << 10)
    chosen = read_options({"l2-cache-entry-size": 512, "cache-clean-interval": 0}, large, unmap=True)
    assert (chosen.l2_slice, chosen.clean_interval, chosen.discard_request) == (512, 0, True)


def test_overlap_checks() -> None:
    def checked(**given_options: Any) -> Kind:
        named = {key.replace("__", ".").replace("_", "-"): value for key, value in given_options.items()}
        assert set(named) <= OPTION_NAMES
        return read_options(named, header(), unmap=False).overlap

    assert checked() == TEMPLATES["cached"]
    assert checked(overlap_check="none") == 0
    assert checked(overlap_check__template="all", overlap_check__active_l2="off") == (
        TEMPLATES["all"] & ~Kind.ACTIVE_L2
    )
    assert checked(overlap_check="constant", overlap_check__inactive_l2=True) == (
        TEMPLATES["constant"] | Kind.INACTIVE_L2
    )
    assert (
        read_options({"overlap-check": {"template": "none", "main-header": True}}, header(), unmap=False).overlap == 1
    )


@pytest.mark.parametrize(("mode", "caught"), [("none", False), ("constant", False), ("cached", True), ("all", True)])
def test_what_is_looked_at(tmp_path: Path, mode: str, caught: bool) -> None:
    """The L2 entry names the L2 table itself."""
    image = empty_image() + bytearray(CLUSTER)
    image[3 * CLUSTER : 3 * CLUSTER + 8] = (1 << 63 | 4 * CLUSTER).to_bytes(8, "big")
    image[2 * CLUSTER + 8 : 2 * CLUSTER + 10] = b"\0\1"
    image[4 * CLUSTER : 4 * CLUSTER + 8] = (1 << 63 | 4 * CLUSTER).to_bytes(8, "big")
    path = tmp_path / "disk"
    write_image(path, image)
    node = opened(path, overlap_check=mode)
    events: list[dict[str, Any]] = []
    node.on_corrupted = events.append
    if not caught:
        node.write(512, b"x" * 512)
        node.close()
        assert not events
        return
    with pytest.raises(OSError, match="overlaps with active L2 table"):
        node.write(512, b"x" * 512)
    node.close()
    message = "Preventing invalid write on metadata (overlaps with active L2 table)"
    expected = {"device": "", "node-name": "node0", "msg": message, "fatal": True}
    assert events == [{**expected, "offset": 4 * CLUSTER + 512, "size": 512}]
    assert path.read_bytes()[72:80] == (2).to_bytes(8, "big")


def test_damage_in_a_read_only_image_is_not_fatal(tmp_path: Path) -> None:
    image = empty_image()
    image[3 * CLUSTER : 3 * CLUSTER + 8] = (1 << 63 | 512).to_bytes(8, "big")
    path = tmp_path / "disk"
    write_image(path, image)
    node = opened(path, read_only=True)
    events: list[dict[str, Any]] = []
    node.on_corrupted = events.append
    for _ in range(2):
        with pytest.raises(OSError, match="L2 table offset 0x200 unaligned"):
            node.read(0, 512)
    node.close()
    assert [event["fatal"] for event in events] == [False]
    assert path.read_bytes() == image


def test_lazy_refcounts_are_marked_and_repaired(tmp_path: Path) -> None:
    path, copy = tmp_path / "disk", tmp_path / "copy"
    write_image(path, empty_image())
    node = opened(path, lazy_refcounts="on")
    assert not node.is_dirty
    node.write(0, b"x" * 64 * CLUSTER)
    node.flush()
    assert node.is_dirty
    crashed = path.read_bytes()
    assert crashed[79] == 1
    # The new table is counted; nothing counts the data, but it is there.
    assert crashed[2 * CLUSTER + 8 : 2 * CLUSTER + 10] == b"\0\1"
    assert crashed[2 * CLUSTER + 10 : 2 * CLUSTER + 200] == bytes(190)
    node.close()
    assert path.read_bytes()[79] == 0
    copy.write_bytes(crashed)
    node = opened(copy)
    assert not node.is_dirty
    assert node.read(0, 64 * CLUSTER) == b"x" * 64 * CLUSTER
    node.write(128 * CLUSTER, b"y" * CLUSTER)
    assert node.read(0, 64 * CLUSTER) == b"x" * 64 * CLUSTER
    node.flush()
    result = node.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    node.close()


def test_small_caches_hold_little_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    write_image(path, empty_image(cluster_bits=9, size=1 << 20))
    node = opened(path, l2_cache_size=512, refcount_cache_size=512, l2_cache_entry_size=512)
    chance = random.Random(1)
    model = bytearray(1 << 20)
    for _ in range(300):
        offset = chance.randrange(2048) * 512
        data = chance.randbytes(min(chance.randrange(1, 20) * 512, len(model) - offset))
        node.write(offset, data)
        model[offset : offset + len(data)] = data
    assert len(node.disk.mapping.cache) <= 20
    assert node.read(0, len(model)) == model
    node.close()
    node = opened(path, read_only=True)
    assert node.read(0, len(model)) == model
    node.disk.mapping.cache.clean_up()
    node.disk.mapping.cache.clean_up()
    assert len(node.disk.mapping.cache) == 0
    assert node.read(0, len(model)) == model
    node.close()


@pytest.mark.parametrize(("request_wanted", "expected"), [("on", True), ("off", False)])
def test_discards_are_passed_on_as_asked(tmp_path: Path, request_wanted: str, expected: bool) -> None:
    path = tmp_path / "disk"
    write_image(path, empty_image())
    node = opened(path, pass_discard_request=request_wanted)
    node.write(0, os.urandom(64 * CLUSTER))
    node.flush()
    used = path.stat().st_blocks
    node.discard(0, 64 * CLUSTER)
    node.flush()
    assert (path.stat().st_blocks < used) is expected
    node.close()


def test_what_somebody_else_put_into_the_header_stays() -> None:
    extensions = b"\x12\x34\x56\x78\0\0\0\5hello\0\0\0"
    image = bytes(empty_image())
    head = parse_header(image[:100] + (120).to_bytes(4, "big") + bytes(8) + b"\0LATER!!" + extensions + bytes(CLUSTER))
    assert head.other_fields == b"\0LATER!!"
    assert head.other_extensions == [(0x12345678, b"hello")]
    again = parse_header(encode_header(head).ljust(CLUSTER, b"\0"))
    assert again == head


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.integers(0, (1 << 64) - 1)
SNAPSHOTS = st.builds(
    Snapshot,
    TEXT,
    TEXT,
    st.integers(0, 1 << 40).map(lambda number: number << 9),
    st.integers(0, 1 << 20),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.just(24),
    st.just(b""),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SNAPSHOTS, max_size=5), st.binary(max_size=16))
def test_snapshot_tables_come_back(snapshots: list[Snapshot], extra: bytes) -> None:
    for it in snapshots:
        it.other_extra = extra
        it.extra_size = 24 + len(extra)
    table = encode_snapshots(snapshots, 0)
    parsed = list(parse_snapshots(table, len(snapshots), 512))
    assert [it for it, _ in parsed] == snapshots
    assert not parsed or parsed[-1][1] == len(table)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Bitmap,
            TEXT.filter(bool),
            NUMBERS,
            st.integers(0, 1 << 20),
            st.integers(0, 7),
            st.integers(9, 31),
            st.integers(0, 255),
            st.binary(max_size=20),
        ).filter(lambda it: bool(it.extra) or not it.flags & 4),
        max_size=5,
    )
)
def test_bitmap_directories_come_back(found: list[Bitmap]) -> None:
    directory = encode_bitmaps(found)
    assert list(parse_bitmaps(directory, len(found), 0)) == found


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 5))
def test_tables_of_noise_raise_only_what_is_documented(data: bytes, count: int) -> None:
    for parse in (lambda: list(parse_snapshots(data, count, 512)), lambda: list(parse_bitmaps(data, count, 0))):
        with suppress(BlockError):
            parse()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 5)), max_size=10))
def test_references_are_counted(references: list[tuple[list[int], int]]) -> None:
    import numpy as np

    tally = Tally()
    expected: dict[int, int] = {}
    for clusters, times in references:
        tally.add(np.array(clusters, np.uint64), times)
        for cluster in clusters:
            expected[cluster] = expected.get(cluster, 0) + times
    numbers, counts = tally.totals()
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == expected
    assert sorted(numbers.tolist()) == numbers.tolist()
