"""Images that another process may be using: not locked, not written, and read anew before they are used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvm.block.activation import give_disks_up, take_disks, take_node
from pyvm.block.create import create_image
from pyvm.block.errors import BlockError
from pyvm.block.node import ALL_PERMISSIONS, Access, Node, Permission
from tests.system.machine_rig import Machine

SIZE = 4 << 20


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    path = str(tmp_path / "disk")
    create_image(path, request.param, SIZE, {})
    return path, request.param


def machine(image: tuple[str, str], *arguments: str) -> Machine:
    path, kind = image
    drive = ("-drive", f"file={path},format={kind},if=none,id=d0", "-device", "virtio-blk-pci,drive=d0")
    return Machine(*drive, *arguments)


def node_of(machine: Machine) -> Node:
    node = machine.pc.storage.drives["d0"].backend.node
    assert node is not None
    return node


def read(machine: Machine) -> bytes:
    return bytes(node_of(machine).read(0, 4096))


def write(machine: Machine, value: bytes) -> None:
    node_of(machine).writev(0, [memoryview(value * 4096)])


def test_one_process_at_a_time_has_an_image(image: tuple[str, str]) -> None:
    with machine(image) as first, machine(image, "-incoming", "defer") as second:
        write(first, b"1")
        with pytest.raises(OSError, match="in use by another process"):
            write(second, b"2")
        with pytest.raises(BlockError, match="Failed to get"):
            take_disks(second.pc.storage)
        assert second.pc.storage.graph.inactive
        give_disks_up(first.pc.storage)
        take_disks(second.pc.storage)
        assert read(second) == b"1" * 4096
        write(second, b"2")
        with pytest.raises(BlockError, match="Failed to get"):
            take_disks(first.pc.storage)
        give_disks_up(second.pc.storage)
        take_disks(first.pc.storage)
        assert read(first) == b"2" * 4096


def test_an_image_that_grew_meanwhile(image: tuple[str, str]) -> None:
    with machine(image) as first, machine(image, "-incoming", "defer") as second:
        first.pc.storage.resize(node_of(first), 2 * SIZE)
        give_disks_up(first.pc.storage)
        take_disks(second.pc.storage)
        assert node_of(second).size == 2 * SIZE


def test_what_was_given_up_is_left_alone_at_the_end(image: tuple[str, str]) -> None:
    with machine(image) as second_home:
        give_disks_up(second_home.pc.storage)
        with machine(image) as user:
            write(user, b"7")
    with machine(image) as again:
        assert read(again) == b"7" * 4096


def test_bitmaps_follow_their_image(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    create_image(path, "qcow2", SIZE, {})
    with machine((path, "qcow2")) as first, machine((path, "qcow2"), "-incoming", "defer") as second:
        name = node_of(first).name
        first.execute("block-dirty-bitmap-add", node=name, name="b", persistent=True)
        write(first, b"1")
        give_disks_up(first.pc.storage)
        take_disks(second.pc.storage)
        (bitmap,) = node_of(second).dirty_bitmaps
        assert (bitmap.name, bitmap.inconsistent, bitmap.count > 0) == ("b", False, True)


def test_an_image_alone_is_taken_for_an_export(tmp_path: Path) -> None:
    """As management programs copy disks to the machine that waits."""
    paths: list[Any] = []
    for name in ("own", "shared"):
        paths.append(str(tmp_path / name))
        create_image(paths[-1], "qcow2", SIZE, {})
    own, shared = paths
    words = ("-blockdev", f"qcow2,node-name=own,file.driver=file,file.filename={own}")
    with machine((shared, "qcow2")), machine((shared, "qcow2"), *words, "-incoming", "defer") as waiting:
        storage = waiting.pc.storage
        take_node(storage, storage.graph.nodes["own"])
        storage.graph.nodes["own"].writev(0, [memoryview(b"x" * 512)])
        assert storage.graph.inactive
        with pytest.raises(BlockError, match="Failed to get"):
            take_node(storage, node_of(waiting))


def test_features_that_somebody_else_left_are_cleared(tmp_path: Path) -> None:
    """Who had the image meanwhile may have known more of them: what they say holds no longer once we write."""
    image = str(tmp_path / "disk"), "qcow2"
    create_image(*image, SIZE, {})
    with machine(image, "-incoming", "defer") as here:
        with open(image[0], "r+b") as file:
            file.seek(88)  # the first byte of autoclear_features
            file.write(b"\xff")
        take_disks(here.pc.storage)
        assert Path(image[0]).read_bytes()[88:96] == bytes(8)


def test_an_image_that_somebody_else_broke_is_not_taken(tmp_path: Path) -> None:
    image = str(tmp_path / "disk"), "qcow2"
    create_image(*image, SIZE, {})
    with machine(image, "-incoming", "defer") as here:
        with open(image[0], "r+b") as file:
            file.seek(79)  # the last byte of incompatible_features
            file.write(b"\x02")
        with pytest.raises(BlockError, match="Image is corrupt"):
            take_disks(here.pc.storage)


def test_a_disk_that_is_still_filled_through_an_export_is_shared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = str(tmp_path / "disk"), "qcow2"
    create_image(*image, SIZE, {})
    with machine(image, "-incoming", "defer") as here:
        storage, node = here.pc.storage, node_of(here)
        take_node(storage, node)
        writer = storage.graph.attach(node, "an export", Access(Permission.WRITE, ALL_PERMISSIONS))
        take_disks(storage)
        assert "Permission conflict on node" in capfd.readouterr().err
        assert not storage.graph.inactive
        write(here, b"1")
        storage.graph.detach(writer)
        assert read(here) == b"1" * 4096
