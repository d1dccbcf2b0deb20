"""Names, references and permissions in the block graph."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvm.block.backend import BlockBackend
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, Access, Node, Permission, disk_access
from pyvm.block.open import open_node
from tests.unit.test_block_backend import Tray
from tests.unit.test_block_file import locks


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(65536))
    return path


class Monitor:
    """A graph that nodes are added to as with blockdev-add."""

    def __init__(self) -> None:
        self.graph = BlockGraph()

    def add(self, driver: str, name: str, **options: object) -> Node:
        tree = {"driver": driver, "node-name": name}
        tree.update({key.replace("_", "-"): value for key, value in options.items()})  # type: ignore[misc]
        node = open_node(tree, self.graph)
        self.graph.give_to_monitor(node)
        return node

    def device(self, node: Node, name: str, *, share_rw: bool = False) -> BlockBackend:
        backend = BlockBackend(node.hold(), graph=self.graph)
        try:
            backend.attach(Tray(), name, share_rw=share_rw)
        except BlockError:
            backend.close()
            raise
        return backend


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


def test_names(monitor: Monitor) -> None:
    monitor.add("null-co", "a")
    monitor.graph.add_device_name("drive0")
    for name, message in (
        ("a", "Duplicate nodes with node-name='a'"),
        ("9", "Invalid node-name: '9'"),
        ("drive0", "node-name=drive0 is conflicting with a device id"),
        ("x" * 32, "Node name too long"),
    ):
        with pytest.raises(BlockError) as error:
            monitor.add("null-co", name)
        assert str(error.value) == message
    with pytest.raises(BlockError, match=r"^Device name 'a' conflicts with an existing node name$"):
        monitor.graph.add_device_name("a")
    with pytest.raises(BlockError, match=r"^Device with id 'drive0' already exists$"):
        monitor.graph.add_device_name("drive0")
    with pytest.raises(BlockError, match=r"^Cannot find device='b' nor node-name='b'$"):
        monitor.graph.find("b")
    monitor.add("raw", "x" * 31, file={"driver": "null-co"})
    made = [name for name in monitor.graph.nodes if name.startswith("#block")]
    assert len(made) == 1
    assert made[0].removeprefix("#block").isdigit()


def test_nodes_live_as_long_as_somebody_holds_them(monitor: Monitor, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monitor.add("file", "f", filename=str(image))
    monitor.add("raw", "r", file="f")
    with pytest.raises(BlockError, match=r"^Block device f is in use$"):
        monitor.graph.delete("f")
    with pytest.raises(BlockError, match=r"^Failed to find node with node-name='x'$"):
        monitor.graph.delete("x")
    backend = monitor.device(monitor.graph.nodes["r"], "dev")
    with pytest.raises(BlockError, match=r"^Node r is in use$"):
        monitor.graph.delete("r")
    backend.close()
    monitor.graph.delete("r")
    monitor.graph.delete("f")
    assert not monitor.graph.nodes
    monitor.add("raw", "r", file={"driver": "file", "node-name": "g", "filename": str(image)})
    with pytest.raises(BlockError, match=r"^Node g is not owned by the monitor$"):
        monitor.graph.delete("g")
    monitor.graph.close()
    assert not monitor.graph.nodes
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_node_that_cannot_be_opened_leaves_nothing(monitor: Monitor, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monitor.add("file", "f", filename=str(image))
    for options in (
        {"driver": "qcow2", "file": "f"},
        {"driver": "raw", "file": "f", "offset": 1 << 40},
        {"driver": "raw", "file": {"driver": "file", "filename": str(image)}, "size": 1},
        {"driver": "throttle", "throttle-group": "none", "file": {"driver": "file", "filename": str(image)}},
        {"driver": "copy-on-read", "bottom": "none", "file": {"driver": "null-co"}},
    ):
        with pytest.raises(BlockError):
            open_node({**options, "node-name": "n"}, monitor.graph)
        assert list(monitor.graph.nodes) == ["f"]
        assert monitor.graph.nodes["f"].references == 1
    monitor.graph.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_writers_do_not_go_together(monitor: Monitor, image: Path) -> None:
    """The texts are those of QEMU 7.2 for the same nodes and devices."""
    file = monitor.add("file", "f", filename=str(image))
    first = monitor.device(file, "one")
    with pytest.raises(BlockError) as error:
        monitor.device(file, "two")
    assert str(error.value) == (
        "Permission conflict on node 'f': permissions 'write' are both required by block device 'one' (uses node 'f' "
        "as 'root' child) and unshared by block device 'two' (uses node 'f' as 'root' child)."
    )
    first.close()
    first = monitor.device(file, "one", share_rw=True)
    with pytest.raises(BlockError):
        monitor.device(file, "two")
    monitor.device(file, "two", share_rw=True).close()
    first.close()
    one, two = (monitor.add("raw", name, file="f") for name in ("r1", "r2"))
    first = monitor.device(one, "one")
    with pytest.raises(BlockError) as error:
        monitor.device(two, "two")
    assert str(error.value) == (
        "Permission conflict on node 'f': permissions 'write' are both required by node 'r1' (uses node 'f' as 'file' "
        "child) and unshared by node 'r2' (uses node 'f' as 'file' child)."
    )
    first.close()
    monitor.device(two, "two").close()
    monitor.graph.close()


def test_a_read_only_node_is_not_written(monitor: Monitor, image: Path) -> None:
    file = monitor.add("file", "f", filename=str(image), read_only=True)
    with pytest.raises(BlockError, match=r"^Block node is read-only$"):
        monitor.graph.attach(file, "somebody", disk_access(False))
    raw = monitor.add("raw", "r", file="f")
    with pytest.raises(BlockError, match=r"^Block node is read-only$"):
        monitor.device(raw, "dev")
    backend = monitor.device(file, "dev")
    assert backend.read_only
    backend.close()
    monitor.graph.close()


def test_the_host_hears_of_permissions(monitor: Monitor, image: Path) -> None:
    """The bytes are what /proc/locks shows for QEMU 7.2."""
    file = monitor.add("file", "f", filename=str(image))
    raw = monitor.add("raw", "r", file="f")
    assert not locks(image)
    backend = monitor.device(raw, "dev")
    assert locks(image) == {(100, 101), (201, 201)}
    backend.detach()
    assert not locks(image)
    user = monitor.graph.attach(raw, "job", Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS))
    assert locks(image) == {(100, 100)}
    monitor.graph.change(user, Access(NO_PERMISSIONS, NO_PERMISSIONS))
    assert locks(image) == {(200, 203)}
    # Somebody else's lock is in the way, and nothing changes.
    monitor.graph.change(user, Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS))
    other = Monitor()
    writer = other.device(other.add("file", "f", filename=str(image)), "dev")
    with pytest.raises(BlockError, match=r'^Failed to get shared "write" lock\n'):
        monitor.graph.change(user, disk_access(True))
    assert user.access == Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS)
    writer.close()
    monitor.graph.change(user, disk_access(True))
    monitor.graph.detach(user)
    assert not locks(image)
    assert [parent.name for parent, label in monitor.graph.parents(file) if label == "file"] == ["r"]
    monitor.graph.close()
    other.graph.close()


def test_a_file_need_not_be_locked(monitor: Monitor, image: Path) -> None:
    node = monitor.add("file", "f", filename=str(image), locking="off")
    backend = monitor.device(node, "dev")
    assert not locks(image)
    backend.close()
    shared = monitor.add("file", "s", filename=str(image), read_only=True, force_share=True)
    monitor.device(shared, "dev").close()
    monitor.graph.close()
