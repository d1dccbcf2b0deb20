"""Commands about nodes and their graph.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.throttling import Limits
from tests.unit.block_rig import SIZE, Device, Disks


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path)
    yield made
    made.close()


def names(disks: Disks) -> list[str]:
    return [node["node-name"] for node in disks.run("query-named-block-nodes", flat=True)]


# ---- Adding and deleting


def test_nodes_are_added_and_deleted(disks: Disks) -> None:
    path = disks.qcow2("a.qcow2")
    disks.run("blockdev-add", driver="file", node_name="f", filename=path)
    disks.run("blockdev-add", driver="qcow2", node_name="q", file="f")
    assert names(disks) == ["q", "f"]
    assert disks.fails("blockdev-del", node_name="f") == "Block device f is in use"
    assert disks.fails("blockdev-del", node_name="zz") == "Failed to find node with node-name='zz'"
    disks.run("blockdev-del", node_name="q")
    disks.run("blockdev-del", node_name="f")
    assert names(disks) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"driver": "null-co"}, "'node-name' must be specified for the root node"),
        ({"driver": "null-co", "node-name": "n"}, "Duplicate nodes with node-name='n'"),
        ({"driver": "null-co", "node-name": "1bad!"}, "Invalid node-name: '1bad!'"),
        ({"driver": "null-co", "node-name": "x" * 32}, "Node name too long"),
        ({"driver": "nope", "node-name": "x"}, "Parameter 'driver' does not accept value 'nope'"),
        ({"node-name": "x"}, "Parameter 'driver' is missing"),
        ({"driver": "file", "node-name": "x"}, "Parameter 'filename' is missing"),
        ({"driver": "raw", "node-name": "x", "file": 5}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        ({"driver": "raw", "node-name": "x", "file": "zz"}, "Cannot find device='zz' nor node-name='zz'"),
        (
            {"driver": "raw", "node-name": "x", "file": {"driver": "file", "filename": 1}},
            "Invalid parameter type for 'file.filename', expected: string",
        ),
        (
            {"driver": "raw", "node-name": "x", "file": {"driver": "null-co", "zz": 1}},
            "Parameter 'file.zz' is unexpected",
        ),
        ({"driver": "raw", "node-name": "x", "file": "n", "backing": None}, "Parameter 'backing' is unexpected"),
        (
            {"driver": "throttle", "node-name": "x", "file": "n", "throttle-group": "g"},
            "Throttle group 'g' does not exist",
        ),
        (
            {"driver": "raw", "node-name": "x", "file": "n", "detect-zeroes": "unmap"},
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_added(disks: Disks, options: dict[str, Any], why: str) -> None:
    disks.run("blockdev-add", driver="null-co", node_name="n")
    assert disks.client.error("blockdev-add", options) == why
    assert names(disks) == ["n"]


def test_a_locked_image_has_one_line(disks: Disks) -> None:
    path = disks.qcow2("a.qcow2")
    disks.add("a", path, "qcow2")
    file = {"driver": "file", "filename": path}
    assert disks.fails("blockdev-add", driver="qcow2", node_name="b", file=file) == 'Failed to get "write" lock'
    assert len(names(disks)) == 2


def test_what_is_below_another_cannot_be_deleted(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.add("base", base, "qcow2")
    disks.add("top", disks.qcow2("top.qcow2", base), "qcow2", backing="base")
    assert disks.fails("blockdev-del", node_name="base") == "Node 'base' is busy: node is used as backing hd of 'top'"
    assert disks.fails("blockdev-del", node_name="nothing").startswith("Failed to find node")
    disks.run("blockdev-del", node_name="top")
    disks.run("blockdev-del", node_name="base")


# ---- Nodes as they are shown


def test_a_chain(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2", lazy_refcounts=True)
    middle = disks.qcow2("middle.qcow2", base)
    top = disks.qcow2("top.qcow2", middle)
    disks.add("top", top, "qcow2", read_only=True)
    nodes = disks.run("query-named-block-nodes")
    assert [node["file"] for node in nodes] == [base, base, middle, middle, top, top]
    assert [node["drv"] for node in nodes] == ["qcow2", "file"] * 3
    shown = disks.node("top")
    assert (shown["backing_file"], shown["backing_file_depth"], shown["ro"]) == (middle, 2, True)
    image = shown["image"]
    assert (image["backing-filename"], image["full-backing-filename"], image["backing-filename-format"]) == (
        middle, middle, "qcow2",
    )  # fmt: skip
    lowest = image["backing-image"]["backing-image"]
    assert (lowest["filename"], "backing-image" in lowest, "backing-filename" in lowest) == (base, False, False)
    assert lowest["format-specific"]["data"]["lazy-refcounts"] is True
    assert (image["cluster-size"], image["dirty-flag"], image["actual-size"] > 0) == (65536, False, True)
    flat = next(it for it in disks.run("query-named-block-nodes", flat=True) if it["node-name"] == "top")
    assert (flat["backing_file"], flat["backing_file_depth"], "backing-image" in flat["image"]) == (middle, 0, False)


def test_snapshots_are_listed(disks: Disks) -> None:
    disks.add("q", disks.qcow2("a.qcow2"), "qcow2")
    node: Any = disks.storage.graph.nodes["q"]
    node.create_snapshot("before", date_sec=5, date_nsec=6, vm_clock_nsec=7_000_000_008)
    (snapshot,) = disks.node("q")["image"]["snapshots"]
    assert (snapshot["id"], snapshot["name"], snapshot["date-sec"], snapshot["vm-clock-sec"]) == ("1", "before", 5, 7)
    assert snapshot["vm-clock-nsec"] == 8
    assert "before" in disks.human("info block -n -v q")


def test_names(disks: Disks) -> None:
    path, base = disks.raw("r.img"), disks.qcow2("base.qcow2")
    top = disks.qcow2("top.qcow2", base)

    def name(driver: str, **options: Any) -> Any:
        disks.run("blockdev-add", driver=driver, node_name="n", **options)
        shown: str = disks.node("n")["file"]
        assert disks.node("n")["image"]["filename"] == shown
        disks.run("blockdev-del", node_name="n")
        return json.loads(shown.removeprefix("json:")) if shown.startswith("json:") else shown

    file = {"driver": "file", "filename": path}
    assert name("file", filename=path) == path
    assert name("raw", file=file) == path
    assert name("raw", file=file, cache={"direct": False}, discard="unmap", detect_zeroes="on") == path
    assert name("raw", file=file, offset=512, size=1024) == {
        "driver": "raw", "offset": 512, "size": 1024, "file": file,
    }  # fmt: skip
    assert name("null-co") == "null-co://"
    assert name("null-co", latency_ns=1) == "null-co://"
    assert name("null-aio", size=512) == {"driver": "null-aio", "size": 512}
    assert name("raw", file={"driver": "null-co"}) == "null-co://"
    assert name("copy-on-read", file=file) == {"driver": "copy-on-read", "file": file}
    # A raw image of what is no protocol cannot be found again by a plain name.
    assert name("raw", file={"driver": "raw", "file": file}) == {
        "driver": "raw", "file": {"driver": "raw", "file": file},
    }  # fmt: skip
    stored = {"driver": "file", "filename": top}
    assert name("qcow2", file=stored) == top
    assert name("qcow2", file=stored, backing=None) == {"driver": "qcow2", "file": stored, "backing": None}
    below = {"driver": "file", "filename": base}
    assert name("qcow2", file=stored, backing={"driver": "qcow2", "file": below}) == top
    assert name("qcow2", file=stored, backing={"driver": "raw", "file": file}) == {
        "driver": "qcow2", "file": stored, "backing": {"driver": "raw", "file": file},
    }  # fmt: skip


def test_a_name_that_is_too_long_is_cut(disks: Disks) -> None:
    file: dict[str, Any] = {"driver": "null-co", "size": 512}
    for _ in range(150):
        file = {"driver": "copy-on-read", "file": file}
    disks.run("blockdev-add", node_name="n", **file)
    # The outermost node was opened last.
    name = disks.run("query-named-block-nodes", flat=True)[0]["file"]
    assert names(disks)[0] == "n"
    assert (len(name), name[-3:]) == (4095, "...")


def test_detect_zeroes_and_caches_are_shown(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"), discard="unmap", detect_zeroes="unmap", cache={"no-flush": True})
    node = disks.node("n")
    assert (node["detect_zeroes"], node["cache"]) == ("unmap", {"writeback": True, "direct": False, "no-flush": True})
    disks.drive("d", disks.raw("d.img"), detect_zeroes="on", writeback=False)
    inserted = disks.run("query-block")[0]["inserted"]
    assert (inserted["detect_zeroes"], inserted["cache"]["writeback"]) == ("on", False)
    assert disks.node(inserted["node-name"])["detect_zeroes"] == "on"


# ---- The graph


def test_the_graph(disks: Disks) -> None:
    disks.add("q", disks.qcow2("a.qcow2"), "qcow2")
    disks.node_disk("q", Device(), "dev")
    disks.drive("cd", "", Device(tray=True))
    graph = disks.run("x-debug-query-block-graph")
    assert graph["nodes"] == [
        {"id": 2, "type": "block-driver", "name": "q"},
        {"id": 4, "type": "block-driver", "name": "q-file"},
        {"id": 3, "type": "block-backend", "name": "cd"},
        {"id": 1, "type": "block-backend", "name": "dev"},
    ]
    assert graph["edges"] == [
        {
            "parent": 2, "child": 4, "name": "file",
            "perm": ["resize", "write", "consistent-read"],
            "shared-perm": ["write-unchanged", "consistent-read"],
        },
        {
            "parent": 1, "child": 2, "name": "root",
            "perm": ["write", "consistent-read"],
            "shared-perm": ["resize", "write-unchanged", "consistent-read"],
        },
    ]  # fmt: skip


def test_children_stay(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"))
    for arguments, why in (
        ({}, "Either child or node must be specified"),
        ({"child": "file", "node": "n"}, "The parameters child and node are in conflict"),
        ({"child": "zz"}, "Node 'n' does not have child 'zz'"),
        ({"child": "file"}, "The node n does not support removing a child"),
        ({"node": "n-file"}, "The node n does not support adding a child"),
        ({"node": "zz"}, "Node 'zz' not found"),
    ):
        assert disks.fails("x-blockdev-change", parent="n", **arguments) == why
    why = "Cannot find device='zz' nor node-name='zz'"
    assert disks.fails("x-blockdev-change", parent="zz", child="file") == why


def test_io_threads(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"))
    disks.run("x-blockdev-set-iothread", node_name="n", iothread="io0")
    disks.run("x-blockdev-set-iothread", node_name="n", iothread=None)
    assert disks.fails("x-blockdev-set-iothread", node_name="n", iothread="zz") == "Cannot find iothread zz"
    why = "Failed to find node with node-name='zz'"
    assert disks.fails("x-blockdev-set-iothread", node_name="zz", iothread=None) == why
    disks.node_disk("n", Device(), "dev")
    assert disks.fails("x-blockdev-set-iothread", node_name="n", iothread=None).startswith(
        "Node n is associated with a BlockBackend and could be in use"
    )
    why = "Cannot change iothread of active block backend"
    assert disks.fails("x-blockdev-set-iothread", node_name="n", iothread="io0", force=True) == why


# ---- Sizes and thresholds


def test_resize(disks: Disks) -> None:
    device = Device()
    disks.drive("d", disks.raw("d.img"), device)
    disks.run("block_resize", device="d", size=2 * SIZE)
    assert device.said == ["resized"]
    assert disks.run("query-block")[0]["inserted"]["image"]["virtual-size"] == 2 * SIZE
    disks.add("q", disks.qcow2("a.qcow2"), "qcow2")
    disks.run("block_resize", node_name="q", size=3 * SIZE)
    assert disks.node("q")["image"]["virtual-size"] == 3 * SIZE
    assert disks.fails("block_resize", node_name="q", size=-1) == "Parameter 'size' expects a >0 size"
    assert disks.fails("block_resize", node_name="q", device="x", size=1) == "The new size must be a multiple of 512"
    assert disks.fails("block_resize", node_name="zz", size=1) == "Cannot find device='' nor node-name='zz'"
    assert disks.fails("block_resize", size=-1) == "Cannot find device='' nor node-name=''"
    disks.drive("fd")
    assert disks.fails("block_resize", device="fd", size=512) == "Device 'fd' has no medium"
    disks.run("blockdev-add", driver="null-co", node_name="n")
    assert disks.fails("block_resize", node_name="n", size=512) == "Image format driver does not support resize"


def test_write_threshold(disks: Disks) -> None:
    disks.add("q", disks.qcow2("a.qcow2"), "qcow2")
    assert disks.fails("block-set-write-threshold", node_name="zz", write_threshold=1) == "Device 'zz' not found"
    disks.run("block-set-write-threshold", node_name="q", write_threshold=4096)
    assert disks.node("q")["write_threshold"] == 4096
    node = disks.storage.graph.nodes["q"]
    node.write(0, bytes(4096))
    assert disks.client.messages() == []
    node.write_zeroes(4096, 4096, False)
    (event,) = disks.client.messages()
    assert (event["event"], event["data"]) == (
        "BLOCK_WRITE_THRESHOLD", {"node-name": "q", "amount-exceeded": 4096, "write-threshold": 4096},
    )  # fmt: skip
    node.write(8192, bytes(4096))
    assert (disks.client.messages(), disks.node("q")["write_threshold"]) == ([], 0)
    disks.run("block-set-write-threshold", node_name="q-file", write_threshold=1)
    disks.run("block-set-write-threshold", node_name="q-file", write_threshold=0)
    node.flush()
    assert disks.client.messages() == []


def test_a_threshold_is_exceeded_by_a_disk(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"))
    disks.run("block-set-write-threshold", node_name="n-file", write_threshold=512)
    backend = disks.node_disk("n", Device(), "dev")
    backend.write(1024, [memoryview(b"x" * 512)], lambda error: None)
    backend.drain()
    (event,) = disks.client.messages()
    assert event["data"] == {"node-name": "n-file", "amount-exceeded": 1024, "write-threshold": 512}


# ---- Other options


def reopen(disks: Disks, **options: Any) -> None:
    disks.run("blockdev-reopen", options=[{key.replace("_", "-"): value for key, value in options.items()}])


def refused(disks: Disks, **options: Any) -> str:
    return disks.fails("blockdev-reopen", options=[{key.replace("_", "-"): value for key, value in options.items()}])


def test_reopen_read_only_and_back(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"))
    reopen(disks, driver="raw", node_name="n", file="n-file", read_only=True)
    assert (disks.node("n")["ro"], disks.node("n-file")["ro"]) == (True, True)
    node = disks.storage.graph.nodes["n"]
    with pytest.raises(OSError, match="not permitted"):
        node.write(0, b"x" * 512)
    reopen(disks, driver="raw", node_name="n", file="n-file", read_only=False)
    node.write(0, b"x" * 512)
    node.flush()
    assert (disks.folder / "r.img").read_bytes()[:512] == b"x" * 512
    disks.node_disk("n", Device(), "dev")
    why = refused(disks, driver="raw", node_name="n", file="n-file", read_only=True)
    assert why == "Read-only block node 'n' cannot support read-write users"
    assert (disks.node("n")["ro"], disks.node("n-file")["ro"]) == (False, False)
    node.write(512, b"y" * 512)


def test_reopen_a_qcow2_image(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    path = disks.qcow2("top.qcow2", base)
    disks.add("base", base, "qcow2", read_only=True)
    disks.add("q", path, "qcow2", backing="base")
    node: Any = disks.storage.graph.nodes["q"]
    node.write(0, b"a" * 65536)
    assert refused(disks, driver="qcow2", node_name="q", file="q-file") == "backing is missing for 'q'"
    options: dict[str, Any] = {"driver": "qcow2", "node_name": "q", "file": "q-file", "backing": "base"}
    reopen(disks, **options, read_only=True)
    assert disks.node("q")["ro"] is True
    assert node.read(0, 65536) == b"a" * 65536
    # What is only named keeps what it was.
    assert refused(disks, **options) == "Block node is read-only"
    options["read_only"] = False
    reopen(disks, **options, lazy_refcounts=True, cache_size=1 << 20)
    node.write(65536, b"b" * 65536)
    node.flush()
    assert node.disk.image.is_dirty
    reopen(disks, **options)
    assert not node.disk.image.is_dirty
    assert node.read(65536, 65536) == b"b" * 65536
    why = refused(disks, **options, cache_size=1 << 20, l2_cache_size=1 << 22)
    assert "l2-cache-size may not exceed" in why
    reopen(disks, **{**options, "backing": None})
    assert (node.backing, disks.storage.graph.nodes["base"].references) == (None, 1)
    reopen(disks, **options)
    assert disks.node("q")["backing_file"] == base
    result = node.check()
    assert (result.corruptions, result.leaks) == (0, 0)


def test_a_writable_file_below_a_read_only_image(disks: Disks) -> None:
    path = disks.qcow2("a.qcow2")
    disks.run("blockdev-add", driver="file", node_name="f", filename=path)
    disks.run("blockdev-add", driver="qcow2", node_name="q", file="f")
    node = disks.storage.graph.nodes["q"]
    node.write(0, b"a" * 512)
    for _ in range(2):
        reopen(disks, driver="qcow2", node_name="q", file="f", read_only=True)
        assert (disks.node("q")["ro"], disks.node("f")["ro"], len(names(disks))) == (True, False, 2)
        assert node.read(0, 512) == b"a" * 512
        reopen(disks, driver="qcow2", node_name="q", file="f")
        assert disks.node("q")["ro"] is False
        node.write(512, b"b" * 512)


def test_reopen_with_another_child(disks: Disks) -> None:
    disks.add("n", disks.raw("r.img"))
    disks.add("m", disks.raw("s.img"))
    disks.storage.graph.nodes["m-file"].write(0, b"m" * 512)
    reopen(disks, driver="raw", node_name="n", file="m-file", offset=0, size=512)
    assert disks.storage.graph.nodes["n"].read(0, 512) == b"m" * 512
    assert "n-file" not in names(disks)
    shown = json.loads(disks.node("n")["file"].removeprefix("json:"))
    assert (shown["size"], shown["file"]["filename"]) == (512, f"{disks.folder}/s.img")


def test_what_cannot_be_reopened(disks: Disks) -> None:
    path = disks.raw("r.img")
    disks.add("n", path)
    disks.run("blockdev-add", driver="copy-on-read", node_name="c", file="n")
    plain = {"driver": "raw", "node_name": "n", "file": "n-file"}
    too_large = (
        f"The sum of offset (0) and size ({2 * SIZE}) has to be smaller or equal to the  actual size of the containing "
        f"file ({SIZE})"
    )
    for change, why in (
        ({"node_name": "zz"}, "Failed to find node with node-name='zz'"),
        ({"driver": "qcow2"}, "Cannot change the option 'driver'"),
        ({"file": "zz"}, "Cannot find device='' nor node-name='zz'"),
        ({"file": "n"}, "Making 'n' a file child of 'n' would create a cycle"),
        ({"file": "c"}, "Making 'c' a file child of 'n' would create a cycle"),
        ({"force_share": True}, "Cannot change the option 'force-share'"),
        ({"size": 2 * SIZE}, too_large),
        ({"file": {"driver": "file", "filename": "/zz"}}, "Cannot change the option 'filename'"),
    ):  # fmt: skip
        assert refused(disks, **{**plain, **change}) == why
    assert disks.fails("blockdev-reopen", options=[{"driver": "raw", "file": "n-file"}]) == "node-name not specified"
    file = {"driver": "file", "node_name": "n-file", "filename": path}
    assert refused(disks, **file, locking="off") == "Cannot change the option 'locking'"
    why = "Block format 'copy-on-read' used by node 'c' does not support reopening files"
    assert refused(disks, driver="copy-on-read", node_name="c", file="n") == why
    assert disks.node("n")["file"] == path


def test_all_nodes_or_none(disks: Disks) -> None:
    for name in "ab":
        disks.add(name, disks.raw(f"{name}.img"))
    disks.node_disk("b", Device(), "dev")
    options = [{"driver": "raw", "node-name": name, "file": f"{name}-file", "read-only": True} for name in "ab"]
    assert disks.fails("blockdev-reopen", options=options).startswith("Read-only block node 'b'")
    assert not any(disks.node(name)["ro"] for name in ("a", "a-file", "b", "b-file"))
    disks.storage.graph.nodes["a"].write(0, b"x" * 512)
    disks.run("blockdev-reopen", options=options[:1])
    assert disks.node("a")["ro"]


def test_reopen_another_throttle_group(disks: Disks) -> None:
    groups = disks.storage.graph.throttle_groups
    for name in ("one", "two"):
        groups.add(name, Limits({"iops-total": 100}))
    disks.run("blockdev-add", driver="null-co", node_name="n")
    disks.run("blockdev-add", driver="throttle", node_name="t", throttle_group="one", file="n")
    reopen(disks, driver="throttle", node_name="t", throttle_group="two", file="n")
    assert json.loads(disks.node("t")["file"].removeprefix("json:"))["throttle-group"] == "two"
    why = refused(disks, driver="throttle", node_name="t", throttle_group="zz", file="n")
    assert why == "Throttle group 'zz' does not exist"
    disks.run("x-blockdev-reopen", driver="throttle", node_name="t", throttle_group="one", file="n")
    assert json.loads(disks.node("t")["file"].removeprefix("json:"))["throttle-group"] == "one"


# ---- Snapshots


def test_a_snapshot_of_a_drive(disks: Disks, capsys: pytest.CaptureFixture[str]) -> None:
    path = disks.qcow2("a.qcow2")
    backend = disks.drive("d", path, Device(), format="qcow2")
    backend.pwritev(0, [memoryview(b"old" + bytes(509))])
    overlay = f"{disks.folder}/b.qcow2"
    disks.run("blockdev-snapshot-sync", device="d", snapshot_file=overlay)
    assert capsys.readouterr().out.startswith(f"Formatting '{overlay}', fmt=qcow2 cluster_size=65536")
    inserted = disks.run("query-block")[0]["inserted"]
    assert (inserted["file"], inserted["backing_file"], inserted["ro"]) == (overlay, path, False)
    below = next(node for node in disks.run("query-named-block-nodes") if node["file"] == path)
    assert below["ro"] is True
    before = Path(path).read_bytes()
    backend.pwritev(0, [memoryview(b"new")])
    assert bytes(backend.pread(0, 4)) == b"new\0"
    backend.flush_now()
    assert Path(path).read_bytes() == before


def test_a_snapshot_of_a_node(disks: Disks) -> None:
    path, overlay = disks.qcow2("a.qcow2"), f"{disks.folder}/b.qcow2"
    disks.add("n", path, "qcow2")
    device = Device()
    disks.node_disk("n", device, "dev")
    sync = "blockdev-snapshot-sync"
    more = {"snapshot_file": overlay}
    assert disks.fails(sync, node_name="n", **more) == "New overlay node-name missing"
    assert disks.fails(sync, node_name="zz", **more) == "Cannot find device='' nor node-name='zz'"
    taken = "New overlay node-name already in use"
    assert disks.fails(sync, node_name="n", snapshot_node_name="n", **more) == taken
    missing = disks.fails(sync, node_name="n", snapshot_node_name="s", mode="existing", **more)
    assert missing == f"Could not open '{overlay}': No such file or directory"
    raw = disks.fails(sync, node_name="n", snapshot_node_name="s", snapshot_file=f"{disks.folder}/raw", format="raw")
    assert "ormat driver 'raw'" in raw or "acking" in raw
    assert names(disks) == ["n", "n-file"]
    disks.run(sync, node_name="n", snapshot_node_name="s", **more)
    assert disks.run("query-block")[0]["inserted"]["node-name"] == "s"
    busy = disks.fails(sync, node_name="n", snapshot_node_name="t", snapshot_file=f"{disks.folder}/t")
    assert busy == "Node 'n' is busy: node is used as backing hd of 's'"
    assert disks.fails("blockdev-del", node_name="s") == "Node s is in use"
    assert device.said == []


def test_a_snapshot_from_a_node(disks: Disks) -> None:
    path = disks.qcow2("a.qcow2")
    disks.add("n", path, "qcow2")
    disks.run("blockdev-add", driver="copy-on-read", node_name="c", file="n")
    backend = disks.node_disk("c", Device(), "dev")
    disks.add("o", disks.qcow2("o.qcow2", path), "qcow2", backing=None)
    disks.add("r", disks.raw("r.img"))
    disks.add("with", disks.qcow2("w.qcow2", disks.qcow2("x.qcow2")), "qcow2")
    for overlay, why in (
        ("zz", "Cannot find device='zz' nor node-name='zz'"),
        ("r", "The overlay does not support backing images"),
        ("with", "The overlay already has a backing image"),
        ("o-file", "The overlay is already in use"),
    ):
        assert disks.fails("blockdev-snapshot", node="n", overlay=overlay) == why
    disks.run("blockdev-snapshot", node="n", overlay="o")
    assert disks.fails("blockdev-snapshot", node="n", overlay="o").startswith("Node 'n' is busy")
    assert disks.node("o")["backing_file"] == path
    below = disks.storage.graph.nodes["c"].file
    assert below is disks.storage.graph.nodes["o"]
    backend.pwritev(0, [memoryview(b"new")])
    assert disks.storage.graph.nodes["n"].read(0, 3) == bytes(3)
    assert disks.node("n")["ro"] is True


def test_another_name_of_the_backing_file(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.add("top", disks.qcow2("top.qcow2", base), "qcow2")
    disks.add("alone", disks.qcow2("alone.qcow2"), "qcow2")
    name = "change-backing-file"
    why = "not allowing backing file change on an image without a backing file"
    assert disks.fails(name, device="alone", image_node_name="alone", backing_file="x") == why
    why = "'alone' and image file are not in the same chain"
    assert disks.fails(name, device="alone", image_node_name="top", backing_file="x") == why
    why = "Cannot find device='zz' nor node-name='zz'"
    assert disks.fails(name, device="zz", image_node_name="top", backing_file="x") == why
    assert disks.fails(name, device="top-file", image_node_name="top", backing_file="x") == "Need a root block node"
    other = disks.qcow2("other.qcow2")
    disks.run(name, device="top", image_node_name="top", backing_file=other)
    image = disks.node("top")["image"]
    assert (image["backing-filename"], image["backing-filename-format"]) == (other, "qcow2")
    assert image["filename"].startswith("json:")
    assert disks.node("top")["backing_file"] == base


def test_a_read_only_image_gets_another_name_too(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.add("top", disks.qcow2("top.qcow2", base), "qcow2", read_only=True)
    disks.run("change-backing-file", device="top", image_node_name="top", backing_file="elsewhere")
    node = disks.node("top")
    assert (node["ro"], node["image"]["backing-filename"]) == (True, "elsewhere")
    assert node["image"]["full-backing-filename"] == f"{disks.folder}/elsewhere"
