"""QMP and human monitor: NBD server and exports.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine_rig import Machine
from tests.unit.nbd_server_rig import NbdClient


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    for name in "ndr":
        (tmp_path / name).write_bytes(b"data" * 1024)
    with Machine(
        "-blockdev", f"raw,node-name=n,file.driver=file,file.filename={tmp_path}/n",
        "-blockdev", f"raw,node-name=ro,read-only=on,file.driver=file,file.filename={tmp_path}/r",
        "-drive", f"if=none,id=d,file={tmp_path}/d,format=raw",
        "-object", "iothread,id=io", "-object", "secret,id=sec,data=abc",
    ) as made:  # fmt: skip
        made.path = tmp_path / "s"  # type: ignore[attr-defined]
        yield made


def start(machine: Any, **options: Any) -> None:
    machine.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(machine.path)}}, **options)


def export(machine: Machine, **options: Any) -> str | None:
    """Add an export; return what is wrong."""
    arguments = {"type": "nbd", "id": "e", "node-name": "n", **options}
    wire = {name.replace("_", "-"): value for name, value in arguments.items()}
    error = machine.ask("block-export-add", wire).get("error")
    return error["desc"] if error else None


def human(machine: Machine, line: str) -> str:
    text: str = machine.execute("human-monitor-command", **{"command-line": line})
    return text.replace("\r\n", "\n")


def test_server(machine: Any) -> None:
    start(machine)
    address = {"type": "unix", "data": {"path": str(machine.path)}}
    assert machine.error("nbd-server-start", addr=address) == "NBD server already running"
    machine.execute("nbd-server-stop")
    assert not machine.path.exists()
    assert machine.error("nbd-server-stop") == "NBD server not running"
    for options, text in (
        ({"tls_creds": "zz"}, "No TLS credentials with id 'zz'"),
        ({"tls_creds": "sec"}, "Object with id 'sec' is not TLS credentials"),
        ({"addr": {"type": "fd", "data": {"str": "zz"}}}, "File descriptor named 'zz' has not been found"),
        (
            {"addr": {"type": "unix", "data": {"path": "/nonexistent/x"}}},
            "Failed to bind socket to /nonexistent/x: No such file or directory",
        ),
        (
            {"addr": {"type": "vsock", "data": {"cid": "2", "port": "1"}}},
            "an NBD server at an address of type 'vsock' is not supported by pyvm yet",
        ),
    ):
        assert machine.error("nbd-server-start", **{"addr": address, **options}) == text
    assert not machine.path.exists()


def test_exports_of_nodes(machine: Any) -> None:
    assert export(machine) == "NBD server not running"
    start(machine)
    machine.execute("block-dirty-bitmap-add", node="n", name="b")
    for options, text in (
        ({"id": "1x"}, "Invalid block export id"),
        ({"iothread": "zz"}, 'iothread "zz" not found'),
        ({"bitmaps": ["zz"]}, "Bitmap 'zz' is not found"),
        ({"bitmaps": [{"node": "n", "name": "zz"}]}, "Dirty bitmap 'zz' not found"),
        ({"bitmaps": [{"node": "m", "name": "zz"}]}, "Node 'm' not found"),
        ({"bitmaps": ["b"]}, "Enabled bitmap 'b' incompatible with readonly export"),
        ({"node_name": "ro", "writable": True}, "Cannot export read-only node as writable"),
        ({"type": "fuse", "mountpoint": "/nonexistent"}, "Failed to stat '/nonexistent': No such file or directory"),
        ({"type": "fuse", "mountpoint": "/"}, "'/' is not a regular file"),
        ({"type": "fuse", "mountpoint": __file__}, "Block exports of type 'fuse' are not supported by pyvm yet"),
        ({"type": "vduse-blk", "name": "x"}, "Block exports of type 'vduse-blk' are not supported by pyvm yet"),
    ):
        assert export(machine, **options) == text
    assert export(machine, bitmaps=["b"], writable=True, allocation_depth=True, iothread="io") is None
    assert export(machine) == "Block export id 'e' is already in use"
    assert export(machine, id="f") == "NBD server already has export named 'n'"
    assert export(machine, id="f", name="other", description="text") is None
    assert machine.execute("query-block-exports") == [
        {"node-name": "n", "shutting-down": False, "type": "nbd", "id": "f"},
        {"node-name": "n", "shutting-down": False, "type": "nbd", "id": "e"},
    ]
    text = "Bitmap 'b' is currently in use by another operation and cannot be used"
    assert machine.error("block-dirty-bitmap-clear", node="n", name="b") == text
    assert machine.error("blockdev-del", **{"node-name": "n"}) == "Node n is in use"
    machine.execute("block-export-del", id="e")
    machine.execute("block-dirty-bitmap-clear", node="n", name="b")
    assert machine.error("block-export-del", id="e") == "Export 'e' is not found"
    assert machine.take_events() == [("BLOCK_EXPORT_DELETED", {"id": "e"})]
    assert export(machine) is None
    machine.execute("nbd-server-stop")
    assert machine.take_events() == [("BLOCK_EXPORT_DELETED", {"id": name}) for name in ("f", "e")]


def test_disks_of_other_guests(machine: Any) -> None:
    place = {"type": "unix", "path": str(machine.path)}
    for options, text in (
        (
            {"addr": {"type": "inet", "host": "a", "port": "1"}},
            "Only socket address types 'unix' and 'fd' are supported",
        ),
        ({"num_queues": 0}, "num-queues must be greater than 0"),
        (
            {"logical_block_size": 100},
            "Property e.logical-block-size doesn't take value 100 (minimum: 512, maximum: 2097152)",
        ),
        (
            {"addr": {"type": "unix", "path": "/nonexistent/s"}},
            "Failed to bind socket to /nonexistent/s: No such file or directory",
        ),
    ):
        assert export(machine, type="vhost-user-blk", **{"addr": place, **options}) == text
    for _ in range(2):
        assert export(machine, type="vhost-user-blk", addr=place, writable=True) is None
        assert machine.path.exists()
        text = "Block export 'e' is not an NBD export"
        assert machine.error("nbd-server-remove", name="e") == text
        machine.execute("block-export-del", id="e")
        assert not machine.path.exists()
    assert machine.take_events() == [("BLOCK_EXPORT_DELETED", {"id": "e"})] * 2


def test_exports_by_the_older_commands(machine: Any) -> None:
    start(machine)
    machine.execute("nbd-server-add", device="ro", writable=True)
    machine.execute("nbd-server-add", device="d", name="disk", description="text")
    assert machine.error("nbd-server-add", device="d", name="disk") == "Block export id 'disk' is already in use"
    assert machine.error("nbd-server-add", device="zz") == "Cannot find device='zz' nor node-name='zz'"
    machine.execute("nbd-server-remove", name="ro")
    assert machine.error("nbd-server-remove", name="ro") == "Export 'ro' is not found"
    machine.take_events()
    assert human(machine, "drive_del d") == ""
    assert machine.take_events() == [("BLOCK_EXPORT_DELETED", {"id": "disk"})]


def test_a_client_keeps_an_export(machine: Any) -> None:
    start(machine, **{"max-connections": 1})
    export(machine, writable=True)
    with NbdClient(machine.path) as client:
        client.go("n")
        assert client.write(0, b"more") == 0
        assert client.read(0, 8) == b"moredata"
        assert machine.error("block-export-del", id="e") == "export 'e' still in use"
        machine.execute("block-export-del", id="e", mode="hard")
        assert client.is_closed()


def test_human_monitor(machine: Any) -> None:
    assert human(machine, "nbd_server_start -w 127.0.0.1:0") == "Error: -w only valid together with -a\n"
    assert human(machine, "nbd_server_start -a -w 127.0.0.1:0") == ""
    assert [it["id"] for it in machine.execute("query-block-exports")] == ["d"]
    assert human(machine, "nbd_server_add d other") == ""
    assert human(machine, "nbd_server_remove d") == ""
    assert human(machine, "nbd_server_remove d") == "Error: Export 'd' is not found\n"
    assert human(machine, "nbd_server_stop") == ""
    assert [name for name, _ in machine.take_events()] == ["BLOCK_EXPORT_DELETED"] * 2
