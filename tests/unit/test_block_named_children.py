"""Children of nodes that are described by their file name alone, and images of which something only shows below."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvm.block.create import create_image
from pyvm.block.errors import BlockError
from pyvm.block.filename import name_of
from pyvm.block.graph import BlockGraph
from pyvm.block.node import ALL_PERMISSIONS, Access, Node, disk_access
from pyvm.block.open import Opener, open_image
from pyvm.block.options import Dialect

CLUSTER = 65536
SIZE = 8 * CLUSTER


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "disk.qcow2")
    create_image(path, "qcow2", SIZE)
    return path


def opened(tree: dict[str, object], filename: str | None = None) -> Node:
    access = Access(disk_access(False).used, ALL_PERMISSIONS)
    return Opener(BlockGraph(), Dialect.DRIVE).open(filename, tree, access=access)


def test_a_file_name_is_enough_for_a_child(image: str, tmp_path: Path) -> None:
    node = opened({"driver": "qcow2", "file": {"driver": "blkdebug", "image": {"filename": image}}})
    assert name_of(node) == f"blkdebug::{image}"
    node.write(0, b"x" * 512)
    node.release()
    copy = tmp_path / "copy"
    copy.write_bytes(bytes(SIZE))
    # What is compared has a format; the copy has none.
    node = opened({"driver": "raw"}, f"blkverify:{copy}:{image}")
    assert name_of(node) == f"blkverify:{copy}:{image}"
    node.write(CLUSTER, b"y" * 512)
    assert node.read(CLUSTER, 512) == b"y" * 512
    node.release()
    assert copy.read_bytes()[CLUSTER : CLUSTER + 512] == b"y" * 512


def test_a_rule_need_not_be_numbered(image: str) -> None:
    tree = {"driver": "raw", "file": {"driver": "blkdebug", "inject-error": {"event": "read_aio"}}}
    node = opened(tree, image)
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    node.release()
    tree["file"]["inject-error"] = {"0": "read_aio"}  # type: ignore[index]
    with pytest.raises(BlockError, match="a list of rules is expected"):
        opened(tree, image)


def test_blocks_larger_than_the_file(image: str) -> None:
    node = opened({"driver": "qcow2", "file": {"driver": "blkdebug", "align": "1M"}}, image)
    node.write(0, b"x" * 512)
    assert node.read(0, 1024) == b"x" * 512 + bytes(512)
    node.release()


def test_zeros_are_marked_where_nothing_was_written(image: str) -> None:
    node = open_image(image)
    node.write_zeroes(CLUSTER, CLUSTER, False)
    node.write_zeroes(3 * CLUSTER + 512, 512, False)
    for offset, allocated in ((0, False), (CLUSTER, True), (2 * CLUSTER, False), (3 * CLUSTER, True)):
        extent = node.block_status(offset, CLUSTER)
        assert (extent.length, extent.allocated, extent.data, extent.zero) == (CLUSTER, allocated, False, True)
    node.close()


def test_zeros_hide_a_backing_file_that_is_opened_later(image: str, tmp_path: Path) -> None:
    node = open_image(image)
    node.write(0, b"x" * SIZE)
    node.close()
    for compat in ("1.1", "0.10"):
        top = str(tmp_path / f"top-{compat}")
        create_image(top, "qcow2", None, {"compat": compat}, image, "qcow2")
        node = opened({"driver": "qcow2", "backing": "", "discard": "unmap"}, top)
        node.write_zeroes(0, 2 * CLUSTER, True)
        node.release()
        node = open_image(top, read_only=True)
        assert node.read(0, SIZE) == bytes(2 * CLUSTER) + b"x" * 6 * CLUSTER
        node.close()


def test_an_image_that_lost_its_end(image: str) -> None:
    node = open_image(image)
    node.write(0, b"x" * CLUSTER)
    node.close()
    os.truncate(image, 5 * CLUSTER)
    node = open_image(image, read_only=True)
    below = node.file
    assert below is not None
    assert below.block_status(5 * CLUSTER, CLUSTER).length == 0
    node.close()


def test_copies_of_a_quorum_are_zeros_together(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        paths.append(str(tmp_path / name))
        create_image(paths[-1], "qcow2", SIZE)
    children = {str(index): {"filename": path} for index, path in enumerate(paths)}
    node = opened({"driver": "quorum", "vote-threshold": "1", "children": children})
    assert node.block_status(0, SIZE).zero
    node.write(CLUSTER, b"x" * CLUSTER)
    first, second = node.block_status(0, SIZE), node.block_status(CLUSTER, SIZE)
    assert (first.length, first.zero) == (CLUSTER, True)
    assert (second.length, second.zero, second.data) == (CLUSTER, False, True)
    node.release()


def test_copy_on_read_through_a_raw_node(image: str, tmp_path: Path) -> None:
    node = open_image(image)
    node.write(0, b"x" * CLUSTER)
    node.close()
    top = str(tmp_path / "top")
    create_image(top, "qcow2", None, {}, image, "qcow2")
    below = {"driver": "raw", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": top}}}
    node = opened({"driver": "copy-on-read", "file": below})
    assert node.read(0, 512) == b"x" * 512
    node.release()
    os.truncate(image, 0)
    node = opened({"driver": "qcow2", "backing": "", "read-only": "on"}, top)
    assert node.read(0, CLUSTER) == b"x" * CLUSTER
    node.release()


def test_what_is_written_again_stays_in_a_data_file(tmp_path: Path) -> None:
    path, data = str(tmp_path / "disk"), tmp_path / "data"
    create_image(path, "qcow2", SIZE, {"data_file": str(data)})
    assert data.stat().st_size == SIZE
    node = opened({"driver": "qcow2", "discard": "unmap"}, path)
    node.write(0, b"x" * SIZE)
    node.flush()
    node.write_zeroes(0, SIZE, True)
    node.write(CLUSTER, b"y" * 3 * CLUSTER)
    node.write(6 * CLUSTER + 512, b"z" * 512)
    node.release()
    node = open_image(path, read_only=True)
    whole = bytes(node.read(0, SIZE))
    node.close()
    assert whole[CLUSTER : 4 * CLUSTER] == b"y" * 3 * CLUSTER
    assert whole[6 * CLUSTER : 6 * CLUSTER + 1536] == bytes(512) + b"z" * 512 + bytes(512)
    assert not any(whole[:CLUSTER] + whole[4 * CLUSTER : 6 * CLUSTER])


def test_names_show_options_as_they_were_typed() -> None:
    node = opened({"driver": "null-co", "size": "1M", "read-zeroes": "on"})
    assert node.size == 1 << 20
    assert name_of(node) == 'json:{"read-zeroes": "on", "driver": "null-co", "size": "1M"}'
    node.release()
    node = opened({}, 'json:{"driver": "null-co", "size": "1M", "read-zeroes": true}')
    assert name_of(node) == 'json:{"read-zeroes": true, "driver": "null-co", "size": "1M"}'
    node.release()
