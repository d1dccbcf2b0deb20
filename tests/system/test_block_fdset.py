"""Images that are opened from sets of descriptors, as `/dev/fdset/N`.  The complaints are QEMU 7.2's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.create import create_image
from tests.system.machine_rig import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(range(256)) * 4096)
    with Machine() as made:
        for number, flags in ((1, os.O_RDWR), (1, os.O_RDONLY), (2, os.O_RDONLY), (3, os.O_RDWR)):
            made.pc.fdsets.add(os.open(raw, flags | os.O_CLOEXEC), number)
        yield made


def add(machine: Machine, number: object, **options: Any) -> dict[str, Any]:
    arguments = {"driver": "file", "filename": f"/dev/fdset/{number}", "node-name": f"n{number}", **options}
    return machine.ask("blockdev-add", arguments)


def test_a_set_stands_for_a_file(machine: Machine) -> None:
    assert add(machine, 1) == {"return": {}}
    assert machine.pc.storage.graph.nodes["n1"].head(4) == b"\0\1\2\3"
    (info,) = machine.execute("query-named-block-nodes")
    assert (info["file"], info["image"]["virtual-size"]) == ("/dev/fdset/1", 1 << 20)
    machine.execute("blockdev-del", node_name="n1")
    assert add(machine, 3) == {"return": {}}


@pytest.mark.parametrize(
    ("number", "options", "error"),
    [
        (2, {}, "Could not dup FD for /dev/fdset/2 flags 2: Permission denied"),
        (3, {"read-only": True}, "Could not dup FD for /dev/fdset/3 flags 0: Permission denied"),
        (5, {}, "Could not dup FD for /dev/fdset/5 flags 2: No such file or directory"),
        ("x", {}, "Could not parse fdset /dev/fdset/x"),
    ],
)
def test_sets_that_will_not_do(machine: Machine, number: object, options: dict[str, Any], error: str) -> None:
    reply = add(machine, number, **options)
    assert reply["error"]["desc"] == error


def test_read_only_where_that_is_all_there_is(machine: Machine) -> None:
    assert add(machine, 2, **{"read-only": True}) == {"return": {}}
    machine.execute("blockdev-del", node_name="n2")
    assert add(machine, 2, **{"auto-read-only": True}) == {"return": {}}
    (info,) = machine.execute("query-named-block-nodes")
    assert info["ro"] is True


def test_a_drive_of_the_command_line(tmp_path: Path) -> None:
    image = tmp_path / "image"
    create_image(str(image), "qcow2", 1 << 20)
    fds = [os.open(image, flags) for flags in (os.O_RDWR, os.O_RDONLY)]
    passed = [word for fd in fds for word in ("-add-fd", f"fd={fd},set=7")]
    for fd in fds:
        os.set_inheritable(fd, True)
    with Machine(*passed, "-drive", "if=none,id=d,file=/dev/fdset/7") as machine:
        (drive,) = machine.execute("query-block")
        assert (drive["inserted"]["drv"], drive["inserted"]["file"]) == ("qcow2", "/dev/fdset/7")
        (held,) = machine.execute("query-fdsets")
        assert held["fdset-id"] == 7
