"""The small drivers: null, throttle, copy-on-read, and what a chain of images has where."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.copy_on_read import CopyOnReadNode
from pyvm.block.drivers.filter import FilterNode, ReadOnlyView
from pyvm.block.drivers.null import NullNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.open import open_image
from pyvm.block.status import chain_status, is_allocated

QEMU_IMG = shutil.which("qemu-img")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="needs qemu-img")
CLUSTER = 65536


def test_a_null_disk_keeps_nothing() -> None:
    node = NullNode(size=4096, read_zeroes=True)
    node.write(0, b"x" * 512)
    node.flush()
    node.discard(0, 512)
    node.write_zeroes(0, 512, True)
    assert node.read(0, 4096) == bytes(4096)
    with pytest.raises(OSError, match="Input/output"):
        node.read(4096, 1)
    assert node.filename == "null-co://"
    lazy = NullNode()
    room = bytearray(b"left alone")
    lazy.readv(0, [memoryview(room)])
    assert room == b"left alone"
    assert lazy.size == 1 << 30
    assert (node.block_status(0, 512).zero, lazy.block_status(0, 512).zero) == (True, False)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """An overlay with data in its clusters 1 and 2, over a base with data in 2 and 3."""
    assert QEMU_IMG is not None
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    for arguments in (
        ["create", "-q", "-f", "qcow2", str(base), "1M"],
        ["create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(top), "1M"],
    ):
        subprocess.run([QEMU_IMG, *arguments], check=True)
    for path, first in ((base, 2), (top, 1)):
        node = open_image(str(path), format="qcow2")
        node.write(first * CLUSTER, path.name[:1].encode() * 2 * CLUSTER)
        node.flush()
        node.close()
    return top


def runs(node: Node, base: Node | None = None) -> list[tuple[int, int, bool, bool]]:
    found = []
    offset = 0
    while offset < node.size:
        extent = chain_status(node, offset, node.size - offset, base)
        found.append((extent.length // CLUSTER, extent.depth, extent.present, extent.data and not extent.zero))
        offset += extent.length
    return found


@needs_qemu_img
def test_what_a_chain_has_where(chain: Path) -> None:
    node = open_image(str(chain), format="qcow2")
    assert runs(node) == [(1, 1, False, False), (2, 0, True, True), (1, 1, True, True), (12, 1, False, False)]
    assert runs(node, node.backing)[0] == (1, 0, False, False)
    assert is_allocated(node, CLUSTER, CLUSTER) == (True, CLUSTER)
    assert is_allocated(node, 3 * CLUSTER, CLUSTER, node.backing) == (False, CLUSTER)
    extent = chain_status(node, 3 * CLUSTER, 512)
    assert extent.layer is node.backing
    assert extent.node is not None
    assert extent.offset is not None
    assert extent.node.read(extent.offset, 512) == b"b" * 512
    node.close()


@needs_qemu_img
def test_what_is_read_is_copied(chain: Path) -> None:
    before = open_image(str(chain), format="qcow2", read_only=True)
    expected = before.read(0, before.size)
    before.close()
    node = CopyOnReadNode(open_image(str(chain), format="qcow2"))
    top = node.file
    assert top is not None
    assert node.read(3 * CLUSTER + 100, 1000) == expected[3 * CLUSTER + 100 :][:1000]
    assert is_allocated(top, 3 * CLUSTER, CLUSTER, top.backing) == (True, CLUSTER)
    assert not is_allocated(top, 4 * CLUSTER, CLUSTER, top.backing)[0]
    assert node.read(0, node.size) == expected
    assert {present for _, _, present, _ in runs(top, top.backing)} == {True}
    assert node.read(0, node.size) == expected
    node.flush()
    node.close()
    subprocess.run([QEMU_IMG or "", "check", "-q", str(chain)], check=True)


@needs_qemu_img
def test_only_the_layers_above_the_bottom_are_copied(chain: Path) -> None:
    node = open_image(str(chain), format="qcow2")
    assert node.backing is not None
    copier = CopyOnReadNode(node, bottom=node.backing)
    copier.read(0, node.size)
    assert is_allocated(node, CLUSTER, 3 * CLUSTER, node.backing) == (True, 3 * CLUSTER)
    assert not is_allocated(node, 4 * CLUSTER, CLUSTER, node.backing)[0]
    with pytest.raises(BlockError, match="is not in the backing chain"):
        CopyOnReadNode(node, bottom=NullNode())
    copier.close()


@needs_qemu_img
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2040), st.integers(1, 8)), max_size=12))
def test_copying_changes_nothing_that_can_be_seen(chain: Path, steps: list[tuple[bool, int, int]]) -> None:
    node = CopyOnReadNode(open_image(str(chain), format="qcow2"))
    model = node.file.read(0, node.size) if node.file is not None else bytearray()
    for write, sector, count in steps:
        offset, length = sector * 512, count * 512
        if write:
            data = os.urandom(length)
            node.write(offset, data)
            model[offset : offset + length] = data
        else:
            assert node.read(offset, length) == model[offset : offset + length]
    assert node.read(0, node.size) == model
    node.close()


def test_a_filter_shows_its_child() -> None:
    class Plain(FilterNode):
        driver = "plain"

    below = NullNode(size=4096, read_zeroes=True)
    node = Plain(below)
    with pytest.raises(BlockError, match=r"^Image format driver does not support resize$"):
        node.truncate(8192)
    assert (node.size, node.length(), node.block_status(0, 512).node) == (4096, 4096, below)
    other = NullNode(size=512)
    node.replace_child(below, other)
    assert node.size == 512
    assert node.file is other
    view = ReadOnlyView(other)
    with pytest.raises(PermissionError):
        view.check_write(0, 1)
