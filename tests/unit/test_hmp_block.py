"""The human monitor's commands about drives and nodes.  Expected text is QEMU 7.2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.block.drivers.throttle import ThrottleNode
from pyvm.block.throttling import Limits
from tests.unit.block_rig import SIZE, Device, Disks

MORE = 'Try "help {}" for more information\n'


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path)
    yield made
    made.close()


def test_info_block(disks: Disks) -> None:
    assert disks.human("info block") == ""
    path = disks.raw("a.img")
    disks.drive("a", path, Device(), readonly=True)
    disks.drive("cd", "", Device(tray=True))
    node = disks.run("query-block")[0]["inserted"]["node-name"]
    hard = f"a ({node}): {path} (raw, read-only)\n    Attached to:      dev-a\n    Cache mode:       writeback\n"
    assert disks.human("info block") == (
        f"{hard}\ncd: [not inserted]\n    Attached to:      dev-cd\n    Removable device: not locked, tray closed\n"
    )
    assert disks.human("info block a") == hard
    assert disks.human("info block cd").startswith("\ncd: [not inserted]\n")
    assert disks.human("info block zz") == ""
    assert disks.human("info block -n") == (
        f"{node}: {path} (raw, read-only)\n    Cache mode:       writeback\n\n"
        f"{disks.run('query-named-block-nodes')[1]['node-name']}: {path} (file, read-only)\n"
        "    Cache mode:       writeback\n"
    )
    verbose = disks.human("info block -v a")
    images = f"\nImages:\nimage: {path}\nfile format: raw\nvirtual size: 1 MiB (1048576 bytes)\ndisk size: "
    assert verbose.startswith(hard + images)
    wrong = "block: extraneous characters at the end of line\n" + MORE.format("info block")
    assert disks.human("info block a b") == wrong


def test_info_block_of_a_chain(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    top = disks.qcow2("top.qcow2", base)
    disks.add("q", top, "qcow2", detect_zeroes="on", cache={"no-flush": True})
    disks.node_disk("q", Device(), "dev")
    disks.run("block_set_io_throttle", id="dev", bps=0, bps_rd=0, bps_wr=0, iops=9, iops_rd=0, iops_wr=0)
    text = disks.human("info block")
    assert text == (
        f"q: {top} (qcow2)\n    Attached to:      dev\n    Cache mode:       writeback, ignore flushes\n"
        f"    Backing file:     {base} (chain depth: 1)\n    Detect zeroes:    on\n"
        "    I/O throttling:   bps=0 bps_rd=0 bps_wr=0 bps_max=0 bps_rd_max=0 bps_wr_max=0 iops=9 iops_rd=0 iops_wr=0 "
        "iops_max=0 iops_rd_max=0 iops_wr_max=0 iops_size=0 group=dev\n"
    )
    images = disks.human("info block -v").partition("\nImages:\n")[2].split("image: ")[1:]
    assert [image.partition("\n")[0] for image in images] == [top, base]
    assert f"cluster_size: 65536\nbacking file: {base}\nbacking file format: qcow2\n" in images[0]
    assert "Format specific information:\n    compat: 1.1\n    compression type: zlib\n" in images[1]


def test_info_blockstats(disks: Disks) -> None:
    disks.drive("a", disks.raw("a.img"), Device())
    assert disks.human("info blockstats") == (
        "a: rd_bytes=0 wr_bytes=0 rd_operations=0 wr_operations=0 flush_operations=0 wr_total_time_ns=0 "
        "rd_total_time_ns=0 flush_total_time_ns=0 rd_merged=0 wr_merged=0 idle_time_ns=0\n"
    )


def test_info_iothreads(disks: Disks) -> None:
    thread = disks.storage.iothreads["io0"].thread_id
    assert disks.human("info iothreads") == (
        f"io0:\n  thread_id={thread}\n  poll-max-ns=32768\n  poll-grow=0\n  poll-shrink=0\n  aio-max-batch=0\n"
    )


def test_media(disks: Disks) -> None:
    tray = Device(tray=True)
    disks.drive("cd", disks.raw("cd.iso"), tray, readonly=True)
    disks.drive("h", disks.raw("h.img"), Device())
    assert disks.human("eject zz") == "Error: Device 'zz' not found\n"
    assert disks.human("eject h") == "Error: Device 'h' is not removable\n"
    assert disks.human("eject") == "eject: block device name expected\n" + MORE.format("eject")
    assert disks.human("eject cd") == ""
    assert tray.tray_open
    other = disks.raw("other.iso")
    assert disks.human(f"change cd {other} raw") == ""
    assert (tray.tray_open, disks.run("query-block")[0]["inserted"]["ro"]) == (False, True)
    assert disks.human(f"change cd -f {other} raw read-write") == ""
    assert disks.run("query-block")[0]["inserted"]["ro"] is False
    assert disks.human(f"change cd {other} raw bla") == "Error: invalid parameter value: bla\n"
    assert disks.human("change cd /zz") == "Error: Could not open '/zz': No such file or directory\n"
    tray.medium_locked = True
    assert disks.human("eject cd").startswith("Error: Device 'cd' is locked and force was not specified")
    assert disks.human("eject -f cd") == ""
    assert "inserted" not in disks.run("query-block")[0]


@pytest.mark.parametrize(
    ("text", "size"), [("2", 2 << 20), ("3k", 3072), ("1.5M", 3 << 19), ("512b", 512), ("1G", 1 << 30)]
)
def test_resize(disks: Disks, text: str, size: int) -> None:
    disks.drive("h", disks.raw("h.img"))
    assert disks.human(f"block_resize h {text}") == ""
    assert disks.run("query-block")[0]["inserted"]["image"]["virtual-size"] == size


@pytest.mark.parametrize("text", ["xx", "-1", "1.5b", "9E9", "99999999999E", ""])
def test_wrong_sizes(disks: Disks, text: str) -> None:
    disks.drive("h", disks.raw("h.img"))
    assert disks.human(f"block_resize h {text}").endswith(MORE.format("block_resize"))
    assert disks.run("query-block")[0]["inserted"]["image"]["virtual-size"] == SIZE


def test_limits(disks: Disks) -> None:
    disks.drive("h", disks.raw("h.img"), Device())
    assert disks.human("block_set_io_throttle h 0 0 0 4 0 0") == ""
    assert disks.human("block_set_io_throttle dev-h 0 0 0 5 0 0") == ""
    inserted = disks.run("query-block")[0]["inserted"]
    assert (inserted["iops"], inserted["group"]) == (5, "h")
    assert disks.human("block_set_io_throttle zz 0 0 0 5 0 0") == "Error: Device 'zz' not found\n"
    assert disks.human("block_set_io_throttle h 1 2 3 4 5 6").startswith("Error: bps/iops/max total values and ")


def test_drives_come_and_go(disks: Disks) -> None:
    path = disks.raw("a.img")
    assert disks.human(f"drive_add 0 if=none,id=d,file={path},format=raw") == "OK\n"
    assert disks.human(f"drive_add 0 if=none,id=d,file={path},format=raw") == "Duplicate ID 'd' for drive\n"
    assert disks.human("drive_add 0 if=none,id=e") == "OK\n"
    assert disks.human("drive_add 0 if=none,file=/zz") == "Could not open '/zz': No such file or directory\n"
    other = disks.raw("b.img")
    assert disks.human(f"drive_add 0 if=virtio,file={other},format=raw") == "Can't hot-add drive to type 7\n"
    assert disks.human("drive_add 0") == "drive_add: string expected\n" + MORE.format("drive_add")
    assert [info["device"] for info in disks.run("query-block")] == ["d", "e"]
    assert disks.human("drive_add -n 0 driver=null-co") == "'node-name' needs to be specified\n"
    assert disks.human("drive_add -n 0 driver=null-co,node-name=n") == ""
    assert disks.human("drive_add -n 0 driver=nope,node-name=m") == "Unknown driver 'nope'\n"
    disks.node_disk("n", Device(), "dev")
    assert disks.human("drive_del n") == "Node n is in use\n"
    assert disks.human("drive_del zz") == "Device 'zz' not found\n"
    for name in "de":
        assert disks.human(f"drive_del {name}") == ""
    assert len(disks.run("query-named-block-nodes")) == 1


def test_a_drive_that_is_used_is_taken_away(disks: Disks) -> None:
    device = Device()
    backend = disks.drive("h", disks.raw("h.img"), device, werror="stop")
    assert disks.human("drive_del h") == ""
    assert disks.run("query-named-block-nodes") == []
    (info,) = disks.run("query-block")
    assert (info["device"], info["qdev"], "inserted" in info) == ("", "dev-h", False)
    assert disks.human("info block").startswith("dev-h: [not inserted]\n")
    results: list[int] = []
    backend.write(0, [memoryview(bytes(512))], results.append)
    assert results != [0]
    assert (backend.werror, device.said) == ("report", [])
    disks.drive("h", disks.raw("again.img"))
    disks.storage.give_back(backend)
    assert [info["device"] for info in disks.run("query-block")] == ["h"]


def test_a_drive_goes_with_its_device(disks: Disks) -> None:
    backend = disks.drive("h", disks.raw("h.img"), Device())
    disks.storage.give_back(backend)
    assert (disks.run("query-block"), disks.run("query-named-block-nodes")) == ([], [])


def test_commit(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.drive("d", disks.qcow2("top.qcow2", base), Device(), format="qcow2")
    disks.drive("e", disks.raw("e.img"), Device())
    disks.drive("cd", "", Device(tray=True))
    disks.human('qemu-io d "write -P 7 64k 64k"')
    disks.human('qemu-io d "write -z 256k 64k"')
    for line in ("commit d", "commit d", "commit all"):
        assert disks.human(line) == ""
    node = disks.storage.drives["d"].backend.shown_node
    assert node.backing is not None
    assert node.backing.read_only
    assert not node.backing.is_filter
    for image, expected in ((node, b"\x07"), (node.backing, b"\x07")):
        data = bytearray(64 << 10)
        image.readv(64 << 10, (memoryview(data),))
        assert data == expected * len(data)
    assert not node.block_status(0, node.size).allocated
    assert disks.human('qemu-io d "write -P 8 0 512"') == ""
    assert node.block_status(0, 512).allocated
    assert disks.human("commit e") == "'commit' error for 'e': Operation not supported\n"
    assert disks.human("commit cd") == "Device 'cd' has no medium\n"
    assert disks.human("commit zz") == "Device 'zz' not found\n"


def test_commit_while_a_job_runs(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.drive("d", disks.qcow2("top.qcow2", base), Device(), format="qcow2")
    disks.human('qemu-io d "write -P 7 64k 64k"')
    node = disks.storage.drives["d"].backend.shown_node
    disks.storage.graph.block(node, node, "it is needed")
    assert disks.human("commit d") == "'commit' error for 'd': Device or resource busy\n"
    assert node.block_status(64 << 10, 512).allocated


def test_qemu_io(disks: Disks, capfd: pytest.CaptureFixture[str]) -> None:
    disks.add("n", disks.raw("n.img"))
    disks.add("ro", disks.raw("ro.img"), read_only=True)
    disks.drive("d", disks.raw("d.img"), Device())
    assert disks.human('qemu-io n "write -P 5 0 512"') == ""
    assert disks.storage.graph.nodes["n"].read(0, 512) == b"\5" * 512
    assert "wrote 512/512 bytes at offset 0" in capfd.readouterr().out
    assert disks.human('qemu-io d "write -P 6 0 512"') == ""
    assert disks.human('qemu-io -d dev-d "read -P 6 0 512"') == ""
    assert "read 512/512 bytes" in capfd.readouterr().out
    assert disks.human('qemu-io n "bogus"') == ""
    assert capfd.readouterr().err == 'command "bogus" not found\n'
    assert disks.human('qemu-io ro "write 0 512"') == "Block node is read-only\n"
    assert disks.human('qemu-io zz "length"') == "Error: Cannot find device='' nor node-name='zz'\n"
    assert disks.human('qemu-io -d zz "length"') == "Error: Device 'zz' not found\n"
    disks.bench.machine.identifiers["net"] = object()
    assert disks.human("qemu-io -d net length") == "Error: Device does not have a block device backend\n"
    assert disks.human("qemu-io") == "qemu-io: block device name expected\n" + MORE.format("qemu-io")
    assert disks.human("qemu-io n") == "qemu-io: string expected\n" + MORE.format("qemu-io")
    assert disks.storage.graph.nodes["n"].references == 1
    disks.run("blockdev-del", node_name="n")


def test_qemu_io_on_a_node_that_a_guest_writes(disks: Disks, capfd: pytest.CaptureFixture[str]) -> None:
    disks.add("n", disks.raw("n.img"))
    disks.node_disk("n", Device(), "dev")
    assert disks.human('qemu-io n "write 0 512"') == (
        "Permission conflict on node 'n': permissions 'write' are both required by an unnamed block device (uses node "
        "'n' as 'root' child) and unshared by block device 'dev' (uses node 'n' as 'root' child).\n"
    )
    assert disks.human('qemu-io n "read 0 512"') == ""
    assert "read 512/512" in capfd.readouterr().out


def test_qemu_io_leaves_limits_as_they_are(disks: Disks, capfd: pytest.CaptureFixture[str]) -> None:
    group = disks.storage.graph.throttle_groups.add("g", Limits({"iops-total": 100}))
    disks.run("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file={"driver": "null-co"})
    assert disks.human('qemu-io t "read 0 512"') == ""
    node = disks.storage.graph.nodes["t"]
    assert isinstance(node, ThrottleNode)
    assert (node.passed_on, group.members) == (False, [])
    assert "read 512/512" in capfd.readouterr().out


def test_the_threshold_comes_before_the_reply(disks: Disks, capfd: pytest.CaptureFixture[str]) -> None:
    disks.add("n", disks.raw("n.img"))
    disks.run("block-set-write-threshold", node_name="n-file", write_threshold=4096)
    line = {"command_line": 'qemu-io n "write 4k 4k"'}
    assert disks.events("human-monitor-command", **line) == [
        ("BLOCK_WRITE_THRESHOLD", {"node-name": "n-file", "amount-exceeded": 4096, "write-threshold": 4096})
    ]
    assert "wrote 4096/4096" in capfd.readouterr().out
