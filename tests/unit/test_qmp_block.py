"""Commands about drives and media.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.block_rig import SIZE, Device, Disks

NOT_FOUND = "DeviceNotFound: Device 'zz' not found"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path)
    yield made
    made.close()


def moved(device: str, identifier: str, opened: bool) -> tuple[str, dict[str, Any]]:
    return ("DEVICE_TRAY_MOVED", {"device": device, "id": identifier, "tray-open": opened})


# ---- Drives as they are shown


def test_query_block(disks: Disks) -> None:
    assert disks.run("query-block") == []
    path = disks.raw("a.img")
    disks.drive("a", path, Device())
    disks.drive("cd", "", Device(tray=True))
    disks.drive("alone", disks.raw("b.img"))
    hard, compact, alone = disks.run("query-block")
    assert (hard["device"], hard["qdev"], hard["removable"], hard["locked"], hard["io-status"]) == (
        "a", "dev-a", False, False, "ok",
    )  # fmt: skip
    assert "tray_open" not in hard
    inserted = hard["inserted"]
    assert (inserted["drv"], inserted["file"], inserted["ro"]) == ("raw", path, False)
    assert inserted["backing_file_depth"] == 0
    assert inserted["cache"] == {"writeback": True, "direct": False, "no-flush": False}
    assert "group" not in inserted
    assert inserted["image"]["virtual-size"] == SIZE
    assert compact == {
        "device": "cd", "qdev": "dev-cd", "type": "unknown", "removable": True, "locked": False, "tray_open": False,
        "io-status": "ok",
    }  # fmt: skip
    assert (alone["removable"], "qdev" in alone, "io-status" in alone) == (True, False, False)


def test_a_device_on_a_node_has_no_drive_name(disks: Disks) -> None:
    disks.add("n", disks.qcow2("n.qcow2"), "qcow2")
    assert disks.run("query-block") == []
    disks.node_disk("n", Device(), "/machine/peripheral/v/virtio-backend")
    (info,) = disks.run("query-block")
    assert (info["device"], info["inserted"]["node-name"]) == ("", "n")
    assert disks.fails("blockdev-del", node_name="n") == "Node n is in use"
    for name in ("/machine/peripheral/v/virtio-backend", "v/virtio-backend"):
        disks.run("block-latency-histogram-set", id=name)


def test_drives_come_in_the_order_in_which_they_were_made(disks: Disks) -> None:
    disks.drive("b", disks.raw("b.img"))
    disks.add("n", disks.raw("n.img"))
    disks.node_disk("n", Device(), "dev")
    disks.drive("a", disks.raw("a.img"))
    assert [info["device"] for info in disks.run("query-block")] == ["b", "", "a"]


def test_io_status_after_an_error(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = disks.drive("a", disks.raw("a.img"), Device(), werror="stop")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    results: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        backend.write(0, [memoryview(b"x" * 512)], results.append)
        backend.drain()
    event = disks.client.messages()[0]
    assert (event["event"], event["data"]["action"], event["data"]["nospace"]) == ("BLOCK_IO_ERROR", "stop", True)
    assert disks.run("query-block")[0]["io-status"] == "nospace"
    assert "I/O status:       nospace" in disks.human("info block")
    backend.resume()
    backend.drain()
    assert disks.run("query-block")[0]["io-status"] == "ok"
    assert results == [0]


# ---- Which drive


@pytest.mark.parametrize("command", ["eject", "blockdev-open-tray", "blockdev-close-tray"])
def test_naming_a_drive(disks: Disks, command: str) -> None:
    disks.drive("h", disks.raw("h.img"), Device())
    both = "Need exactly one of 'device' and 'id'"
    assert disks.fails(command) == both
    assert disks.fails(command, device="h", id="dev-h") == both
    assert disks.fails(command, device="zz") == NOT_FOUND
    assert disks.fails(command, id="zz") == NOT_FOUND
    assert disks.fails(command, device="dev-h") == "DeviceNotFound: Device 'dev-h' not found"
    for name in ({"device": "h"}, {"id": "dev-h"}, {"id": "/machine/peripheral/dev-h"}):
        shown = next(iter(name.values()))
        assert disks.fails(command, **name) == f"Device '{shown}' is not removable"
    disks.bench.machine.identifiers["net"] = object()
    assert disks.fails(command, id="net") == "Device does not have a block device backend"


# ---- Trays


def test_the_tray_opens_and_closes(disks: Disks) -> None:
    tray = Device(tray=True)
    backend = disks.drive("cd", disks.raw("cd.iso"), tray, readonly=True)
    assert disks.events("blockdev-open-tray", id="dev-cd") == [moved("cd", "dev-cd", True)]
    assert disks.events("blockdev-open-tray", id="dev-cd") == []
    assert disks.run("query-block")[0]["tray_open"] is True
    assert not backend.inserted
    assert disks.events("blockdev-close-tray", device="cd") == [moved("cd", "dev-cd", False)]
    assert disks.events("blockdev-close-tray", device="cd") == []
    assert tray.said == ["gone", "loaded"]


def test_a_locked_tray(disks: Disks) -> None:
    tray = Device(tray=True, locked=True)
    disks.drive("cd", disks.raw("cd.iso"), tray, readonly=True)
    assert disks.run("query-block")[0]["locked"] is True
    assert disks.events("blockdev-open-tray", id="dev-cd") == []
    assert tray.said == ["ask"]
    locked = "Device 'dev-cd' is locked and force was not specified, wait for tray to open and try again"
    assert disks.fails("eject", id="dev-cd") == locked
    path = disks.raw("other.iso")
    assert disks.fails("blockdev-change-medium", id="dev-cd", filename=path, format="raw") == locked
    assert len(disks.storage.graph.listed()) == 2
    assert disks.events("eject", id="dev-cd", force=True) == [moved("cd", "dev-cd", True)]
    assert "inserted" not in disks.run("query-block")[0]


def test_a_medium_is_changed_step_by_step(disks: Disks) -> None:
    backend = disks.drive("cd", disks.raw("cd.iso"), Device(tray=True), readonly=True)
    disks.add("n", disks.raw("n.iso"), read_only=True)
    closed = "Tray of device 'dev-cd' is not open"
    assert disks.fails("blockdev-remove-medium", id="dev-cd") == closed
    assert disks.fails("blockdev-insert-medium", id="dev-cd", node_name="n") == "Tray of the device is not open"
    disks.events("blockdev-open-tray", id="dev-cd")
    taken = "There already is a medium in the device"
    assert disks.fails("blockdev-insert-medium", id="dev-cd", node_name="n") == taken
    disks.run("blockdev-remove-medium", id="dev-cd")
    disks.run("blockdev-remove-medium", id="dev-cd")
    assert [node["node-name"] for node in disks.run("query-named-block-nodes")] == ["n", "n-file"]
    assert disks.fails("blockdev-insert-medium", id="dev-cd", node_name="zz") == "Node 'zz' not found"
    disks.run("blockdev-insert-medium", id="dev-cd", node_name="n")
    assert disks.fails("blockdev-insert-medium", id="dev-cd", node_name="n") == "Node 'n' is already in use"
    assert disks.events("blockdev-close-tray", id="dev-cd") == [moved("cd", "dev-cd", False)]
    assert backend.inserted
    disks.events("eject", id="dev-cd")
    disks.run("blockdev-del", node_name="n")


def test_a_drive_without_a_tray(disks: Disks) -> None:
    floppy = Device()
    backend = disks.drive("fd", "", floppy)
    disks.add("n", disks.raw("n.img"))
    assert disks.events("blockdev-open-tray", id="dev-fd") == []
    disks.run("blockdev-insert-medium", id="dev-fd", node_name="n")
    assert floppy.said == ["loaded"]
    backend.pwritev(0, [memoryview(b"w" * 512)])
    conflict = disks.fails("block_resize", node_name="n", size=SIZE * 2)
    assert conflict.startswith("Permission conflict on node 'n': permissions 'resize' are both required by an unnamed ")
    disks.run("blockdev-remove-medium", id="dev-fd")
    assert floppy.said == ["loaded", "gone"]
    disks.run("blockdev-del", node_name="n")


def test_a_node_in_use_cannot_be_a_medium(disks: Disks) -> None:
    disks.drive("fd", "", Device())
    disks.add("n", disks.raw("n.img"))
    disks.node_disk("n", Device(), "dev")
    assert disks.fails("blockdev-insert-medium", id="dev-fd", node_name="n") == "Node 'n' is already in use"
    conflict = disks.fails("blockdev-insert-medium", id="dev-fd", node_name="n-file")
    assert conflict == (
        "Permission conflict on node 'n-file': permissions 'write' are both required by node 'n' (uses node 'n-file' "
        "as 'file' child) and unshared by block device 'fd' (uses node 'n-file' as 'root' child)."
    )
    assert "inserted" not in disks.run("query-block")[0]


def test_change_medium(disks: Disks) -> None:
    disks.drive("cd", disks.raw("cd.iso"), Device(tray=True), readonly=True)
    other = disks.raw("other.iso", 2 * SIZE)
    both = [moved("cd", "dev-cd", True), moved("cd", "dev-cd", False)]
    assert disks.events("blockdev-change-medium", id="dev-cd", filename=other, format="raw") == both
    inserted = disks.run("query-block")[0]["inserted"]
    assert (inserted["file"], inserted["ro"], inserted["image"]["virtual-size"]) == (other, True, 2 * SIZE)
    mode = {"read_only_mode": "read-write", "force": True}
    assert disks.events("blockdev-change-medium", device="cd", filename=other, format="raw", **mode) == both
    assert disks.run("query-block")[0]["inserted"]["ro"] is False
    # What is retained is how the last medium was opened, even when the drive is empty meanwhile.
    disks.events("eject", id="dev-cd")
    assert disks.events("blockdev-change-medium", id="dev-cd", filename=other, format="raw") == both[1:]
    assert disks.run("query-block")[0]["inserted"]["ro"] is False
    missing = f"{disks.folder}/none"
    why = disks.fails("blockdev-change-medium", id="dev-cd", filename=missing)
    assert why == f"Could not open '{missing}': No such file or directory"
    why = disks.fails("blockdev-change-medium", id="dev-cd", filename=disks.raw("third.iso"), format="qcow2")
    assert why == "Image is not in qcow2 format"
    assert disks.run("query-block")[0]["inserted"]["file"] == other


def test_change_as_it_was(disks: Disks) -> None:
    disks.drive("cd", disks.raw("cd.iso"), Device(tray=True), readonly=True)
    other = disks.raw("other.iso")
    assert len(disks.events("change", device="cd", target=other, arg="raw")) == 2
    assert disks.run("query-block")[0]["inserted"]["file"] == other
    assert disks.fails("change", device="zz", target=other) == NOT_FOUND
    assert "VNC" in disks.fails("change", device="vnc", target=":1")


def test_the_image_of_a_hard_disk_stays(disks: Disks) -> None:
    disks.drive("h", disks.raw("h.img"), Device())
    other = disks.raw("other.img")
    disks.add("n", disks.raw("n.img"))
    assert disks.fails("blockdev-remove-medium", id="dev-h") == "Device 'dev-h' is not removable"
    assert disks.fails("blockdev-insert-medium", id="dev-h", node_name="n") == "Device is not removable"
    why = disks.fails("blockdev-change-medium", id="dev-h", filename=other, format="raw")
    assert why == "Device 'dev-h' is not removable"


# ---- Limits and statistics

ZERO = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


def test_limits(disks: Disks) -> None:
    disks.drive("h", disks.raw("h.img"), Device())
    disks.run("block_set_io_throttle", id="dev-h", **{**ZERO, "iops": 100, "iops_max": 200, "iops_size": 512})
    inserted = disks.run("query-block")[0]["inserted"]
    assert {key: inserted[key] for key in ("iops", "iops_max", "iops_max_length", "iops_size", "bps", "group")} == {
        "iops": 100, "iops_max": 200, "iops_max_length": 1, "iops_size": 512, "bps": 0, "group": "dev-h",
    }  # fmt: skip
    assert "bps_max" not in inserted
    disks.run("block_set_io_throttle", device="h", **{**ZERO, "bps": 5})
    inserted = disks.run("query-block")[0]["inserted"]
    assert (inserted["bps"], inserted["iops"], inserted["group"]) == (5, 0, "dev-h")
    disks.run("block_set_io_throttle", device="h", **{**ZERO, "bps": 5}, group="g")
    assert disks.run("query-block")[0]["inserted"]["group"] == "g"
    assert disks.storage.graph.throttle_groups.find("dev-h") is None
    conflict = "bps/iops/max total values and read/write values cannot be used at the same time"
    assert disks.fails("block_set_io_throttle", id="dev-h", **{**ZERO, "bps": 1, "bps_rd": 1}) == conflict
    assert disks.fails("block_set_io_throttle", id="dev-h", bps=1) == "Parameter 'bps_rd' is missing"
    disks.run("block_set_io_throttle", id="dev-h", **ZERO)
    assert "group" not in disks.run("query-block")[0]["inserted"]
    disks.drive("fd", "", Device())
    assert disks.fails("block_set_io_throttle", id="dev-fd", **ZERO) == "Device has no medium"


def test_latency_histograms(disks: Disks) -> None:
    backend = disks.drive("h", disks.raw("h.img"), Device())
    disks.run("block-latency-histogram-set", id="dev-h", boundaries=[10, 50, 100])
    disks.run("block-latency-histogram-set", id="dev-h", boundaries_flush=[1 << 60])
    backend.flush(lambda error: None)
    backend.drain()
    stats = disks.run("query-blockstats")[0]["stats"]
    assert stats["rd_latency_histogram"] == {"boundaries": [10, 50, 100], "bins": [0, 0, 0, 0]}
    assert stats["wr_latency_histogram"]["boundaries"] == [10, 50, 100]
    assert stats["flush_latency_histogram"] == {"boundaries": [1 << 60], "bins": [1, 0]}
    for wrong in ([50, 10], [0], [5, 5]):
        why = disks.fails("block-latency-histogram-set", id="dev-h", boundaries=wrong)
        assert why == "Device 'dev-h' set read boundaries fail"
    why = disks.fails("block-latency-histogram-set", id="dev-h", boundaries=[1], boundaries_write=[2, 1])
    assert why == "Device 'dev-h' set write boundaries fail"
    assert disks.fails("block-latency-histogram-set", id="zz") == NOT_FOUND
    disks.run("block-latency-histogram-set", id="dev-h")
    assert not any("histogram" in key for key in disks.run("query-blockstats")[0]["stats"])


def test_statistics(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.add("top", disks.qcow2("top.qcow2", base), "qcow2")
    backend = disks.node_disk("top", Device(), "dev")
    backend.write(4096, [memoryview(b"x" * 512)], lambda error: None)
    backend.read(0, [memoryview(bytearray(1024))], lambda error: None)
    backend.drain()
    (info,) = disks.run("query-blockstats")
    stats = info["stats"]
    assert (info["device"], info["qdev"], info["node-name"]) == ("", "dev", "top")
    assert (stats["wr_bytes"], stats["rd_bytes"], stats["wr_operations"], stats["rd_operations"]) == (512, 1024, 1, 1)
    assert (stats["wr_highest_offset"], stats["account_invalid"], stats["timed_stats"]) == (4608, True, [])
    assert info["parent"]["node-name"] == "top-file"
    assert info["parent"]["driver-specific"] == {
        "driver": "file", "discard-nb-ok": 0, "discard-nb-failed": 0, "discard-bytes-ok": 0,
    }  # fmt: skip
    assert info["parent"]["stats"]["wr_highest_offset"] > SIZE // 4
    assert info["parent"]["stats"]["account_invalid"] is False
    assert info["backing"]["parent"]["stats"]["wr_highest_offset"] == 0
    nodes = disks.run("query-blockstats", query_nodes=True)
    assert [node["node-name"] for node in nodes][:2] == ["top-file", "top"]
    assert len(nodes) == 4
    assert not any("backing" in node or "device" in node for node in nodes)


def test_discards_are_counted(disks: Disks) -> None:
    disks.add("n", disks.raw("n.img"), discard="unmap")
    backend = disks.node_disk("n", Device(), "dev")
    backend.discard(0, 65536, lambda error: None)
    backend.drain()
    specific = disks.run("query-blockstats")[0]["parent"]["driver-specific"]
    assert specific["discard-nb-ok"] + specific["discard-nb-failed"] == 1
    assert specific["discard-bytes-ok"] == 65536 * specific["discard-nb-ok"]


def test_the_rest(disks: Disks) -> None:
    assert disks.run("query-pr-managers") == []
    (thread,) = disks.run("query-iothreads")
    native = thread.pop("thread-id")
    assert native > 0
    assert thread == {"id": "io0", "poll-max-ns": 32768, "poll-grow": 0, "poll-shrink": 0, "aio-max-batch": 0}
    gone = "Setting block passwords directly is no longer supported"
    assert disks.fails("block_passwd", device="d", password="p") == gone
