"""Creation, check, amend, measure, snapshots and bitmaps of qcow2 images, beside QEMU's tools."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from pyvm.block.create import create_image, plan_image
from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2 import bitmaps, creation
from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
from pyvm.block.errors import BlockError
from pyvm.block.open import open_image
from pyvm.block.option_values import parse_size
from tests.parity.qcow2_support import filled, open_qcow2, put, run, tool

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- Creation

GOOD = [
    ("qcow2", {}, "1G"),
    ("qcow2", {"compat": "0.10"}, "1M"),
    ("qcow2", {"compat": "v3", "lazy_refcounts": "on", "refcount_bits": "1"}, "100M"),
    ("qcow2", {"cluster_size": "512"}, "30G"),
    ("qcow2", {"cluster_size": "2M", "refcount_bits": "64"}, "1T"),
    ("qcow2", {"extended_l2": "on", "cluster_size": "16k"}, "10G"),
    ("qcow2", {"compression_type": "zstd"}, "1000"),
    ("qcow2", {"data_file": "data,1.raw", "data_file_raw": "on"}, "3M"),
    ("qcow2", {"data_file": "data2.raw"}, "3M"),
    ("qcow2", {"preallocation": "metadata"}, "64M"),
    ("qcow2", {"preallocation": "metadata", "cluster_size": "1k", "compat": "0.10"}, "5M"),
    ("qcow2", {"preallocation": "falloc", "refcount_bits": "8"}, "9M"),
    ("qcow2", {"preallocation": "full"}, "9M"),
    ("qcow2", {"preallocation": "metadata", "extended_l2": "on"}, "9M"),
    ("qcow2", {"preallocation": "metadata", "data_file": "data3.raw"}, "9M"),
    (
        "qcow2",
        {"backing_file": "base.qcow2", "backing_fmt": "qcow2", "extended_l2": "on", "preallocation": "metadata"},
        None,
    ),
    ("qcow2", {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}, "8M"),
    ("qcow2", {"nocow": "on", "extent_size_hint": "2M"}, "0"),
    ("qcow2", {"size": "1.5M"}, None),
    ("raw", {}, "1000"),
    ("raw", {"preallocation": "falloc", "nocow": "on"}, "2M"),
    ("raw", {"preallocation": "full"}, "2M"),
]


@pytest.mark.parametrize(("format_name", "options", "size"), GOOD)
def test_images_are_made_as_qemu_makes_them(format_name: str, options: dict[str, str], size: str | None) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "5M")
    words = [f"{key}={value.replace(',', ',,')}" for key, value in options.items()]
    extra = ["-o", ",".join(words)] if words else []
    expected = tool("qemu-img", "create", "-f", format_name, *extra, "disk", *([size] if size else []))
    theirs = json.loads(tool("qemu-img", "info", "-U", "-f", format_name, "--output=json", "disk"))
    layout = mapped(format_name)
    length = os.stat("disk").st_size
    os.unlink("disk")
    said: list[str] = []
    number = parse_size(size, "size") if size is not None else None
    create_image("disk", format_name, number, options, announce=said.append)
    assert said == [expected.rstrip("\n")]
    ours = json.loads(tool("qemu-img", "info", "-f", format_name, "--output=json", "disk"))
    on_disk = ours.pop("actual-size"), theirs.pop("actual-size")
    assert ours == theirs
    if options.get("preallocation") in ("falloc", "full"):
        assert on_disk[0] >= number
    if format_name == "raw":
        assert os.stat("disk").st_size == length
        return
    tool("qemu-img", "check", "-q", "disk")
    assert mapped(format_name) == layout
    assert abs(os.stat("disk").st_size - length) <= 4 << 20 if "2M" in options.values() else 4 << 16
    node = open_qcow2("disk", format="qcow2", read_only=True)
    assert node.format_info() == theirs["format-specific"]
    node.close()


def mapped(format_name: str) -> dict[bool, int]:
    """Return how many bytes are data, and how many are not."""
    found: dict[bool, int] = {}
    for part in json.loads(tool("qemu-img", "map", "-f", format_name, "--output=json", "disk")):
        found[part["data"]] = found.get(part["data"], 0) + part["length"]
    return found


BAD = [
    ("qcow2", {"cluster_size": "100"}, "1M"),
    ("qcow2", {"cluster_size": "4M"}, "1M"),
    ("qcow2", {"cluster_size": "xx"}, "1M"),
    ("qcow2", {"compat": "2"}, "1M"),
    ("qcow2", {"compat": "0.10", "refcount_bits": "8"}, "1M"),
    ("qcow2", {"refcount_bits": "7"}, "1M"),
    ("qcow2", {"refcount_bits": "128"}, "1M"),
    ("qcow2", {"compat": "0.10", "lazy_refcounts": "on"}, "1M"),
    ("qcow2", {"compat": "0.10", "extended_l2": "on"}, "1M"),
    ("qcow2", {"extended_l2": "on", "cluster_size": "8k"}, "1M"),
    ("qcow2", {"compat": "0.10", "compression_type": "zstd"}, "1M"),
    ("qcow2", {"compression_type": "lz4"}, "1M"),
    ("qcow2", {"preallocation": "foo"}, "1M"),
    ("qcow2", {"preallocation": "metadata", "backing_file": "base.qcow2", "backing_fmt": "qcow2"}, "1M"),
    ("qcow2", {"data_file_raw": "on"}, "1M"),
    ("qcow2", {"data_file": "dd.raw", "compat": "0.10"}, "1M"),
    ("qcow2", {"data_file": "d", "data_file_raw": "on", "backing_file": "base.qcow2", "backing_fmt": "qcow2"}, "1M"),
    ("qcow2", {}, "64P"),
    ("qcow2", {"cluster_size": "512"}, "200G"),
    ("qcow2", {"lazy_refcounts": "maybe"}, "1M"),
    ("qcow2", {"foo": "1"}, "1M"),
    ("qcow2", {}, None),
    ("qcow2", {"size": "1M"}, "1M"),
    ("qcow2", {"backing_file": "base.qcow2"}, None),
    ("qcow2", {"backing_file": "nowhere", "backing_fmt": "qcow2"}, None),
    ("qcow2", {"backing_file": "disk", "backing_fmt": "qcow2"}, None),
    ("raw", {"preallocation": "metadata"}, "1M"),
    ("raw", {"backing_file": "base.qcow2"}, "1M"),
    ("foo", {}, "1M"),
]


@pytest.mark.parametrize(("format_name", "options", "size"), BAD)
def test_what_cannot_be_made_is_refused_in_the_same_words(
    format_name: str, options: dict[str, str], size: str | None
) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "5M")
    words = [f"{key}={value}" for key, value in options.items() if not key.startswith("backing")]
    extra = ["-o", ",".join(words)] if words else []
    below = ["-b", options["backing_file"]] if "backing_file" in options else []
    below += ["-F", options["backing_fmt"]] if "backing_fmt" in options else []
    done = run("qemu-img", "create", "-q", "-f", format_name, *extra, *below, "disk", *([size] if size else []))
    assert done.returncode == 1
    plain = {key: value for key, value in options.items() if not key.startswith("backing")}
    number = parse_size(size, "size") if size is not None else None
    with pytest.raises(BlockError) as error:
        create_image("disk", format_name, number, plain, options.get("backing_file"), options.get("backing_fmt"))
    assert f"qemu-img: disk: {error.value}" == done.stderr.rstrip("\n")


def test_a_plan_touches_nothing() -> None:
    plan = plan_image("disk", "qcow2", 1 << 20, {"backing_file": "nowhere", "backing_fmt": "raw"}, check_backing=False)
    assert plan.describe().startswith("Formatting 'disk', fmt=qcow2 ")
    assert not Path("disk").exists()
    with pytest.raises(BlockError, match=r"^Could not create 'no/disk': No such file or directory$"):
        create_image("no/disk", "qcow2", 1 << 20)


@pytest.mark.parametrize(
    "options", ["", "cluster_size=512", "extended_l2=on", "refcount_bits=64,cluster_size=4k", "preallocation=full"]
)
@pytest.mark.parametrize("size", ["0", "1M", "100G"])
def test_measured_sizes(options: str, size: str) -> None:
    if "cluster_size=512" in options and size == "100G":
        size = "20G"
    done = run(
        "qemu-img", "measure", "-O", "qcow2", "--output=json", "--size", size, *(["-o", options] if options else [])
    )
    given = dict(word.split("=") for word in options.split(",") if word)
    measured = creation.measure(creation.read_options(given, parse_size(size, "size")))
    theirs = json.loads(done.stdout)
    assert (measured.required, measured.fully_allocated) == (theirs["required"], theirs["fully-allocated"])


def test_measuring_a_source() -> None:
    data = bytearray(SIZE)
    for start in (0, 70000 // 512 * 512, 1 << 20, SIZE - 4096):
        data[start : start + 4096] = b"x" * 4096
    with open("source.raw", "wb") as file:
        for start in range(0, SIZE, 4096):
            if any(data[start : start + 4096]):
                file.seek(start)
                file.write(data[start : start + 4096])
        file.truncate(SIZE)
    theirs = json.loads(tool("qemu-img", "measure", "-O", "qcow2", "--output=json", "-f", "raw", "source.raw"))
    node = open_image("source.raw", format="raw", read_only=True)
    extents, offset = [], 0
    while offset < SIZE:
        extent = node.block_status(offset, SIZE - offset)
        extents.append((offset, extent.length, extent.data))
        offset += extent.length
    node.close()
    measured = creation.measure(creation.read_options({}, SIZE), extents)
    assert (measured.required, measured.fully_allocated) == (theirs["required"], theirs["fully-allocated"])


# ---- Amend


def info(path: str = "disk") -> dict[str, object]:
    return json.loads(tool("qemu-img", "info", "--output=json", path))["format-specific"]["data"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("backed", [False, True])
def test_versions_up_and_down(snapshot: bool, backed: bool) -> None:
    Path("base.raw").write_bytes(b"b" * (2 << 20))
    below = ["-b", "base.raw", "-F", "raw"] if backed else []
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k,lazy_refcounts=on", *below, "disk", "2M")
    node = open_qcow2("disk")
    node.write(0, b"x" * 50000 + bytes(176))
    node.write_zeroes(8192, 8192, False)
    node.write_zeroes(1 << 20, 100 << 10, True)
    if snapshot:
        node.create_snapshot("s")
        node.write(4096, b"y" * 4096)
    model = node.read(0, 2 << 20)
    node.amend({"compat": "0.10", "lazy_refcounts": "off"})
    assert node.read(0, 2 << 20) == model
    node.close()
    assert info()["compat"] == "0.10"
    tool("qemu-img", "check", "-q", "disk")
    if snapshot and not backed:
        tool("qemu-img", "convert", "-l", "s", "-O", "raw", "disk", "old.raw")
        expected = bytearray(model)
        expected[4096:8192] = b"x" * 4096
        assert Path("old.raw").read_bytes() == expected
    node = open_qcow2("disk")
    node.amend({"compat": "1.1"})
    node.amend({"lazy_refcounts": "on"})
    node.write_zeroes(0, 4096, True)
    model[:4096] = bytes(4096)
    assert node.read(0, 2 << 20) == model
    node.close()
    assert info()["lazy-refcounts"] is True
    tool("qemu-img", "check", "-q", "disk")
    tool("qemu-img", "convert", "-O", "raw", "disk", "now.raw")
    assert Path("now.raw").read_bytes() == model


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32, 64])
def test_the_width_of_refcounts(bits: int) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "disk", "2M")
    node = open_qcow2("disk")
    chance = random.Random(bits)
    model = bytearray(chance.randbytes(2 << 20))
    node.write(0, model)
    node.amend({"refcount_bits": bits})
    node.discard(4096, 1 << 20)
    model[4096 : 4096 + (1 << 20)] = bytes(1 << 20)
    node.write(8192, b"z" * 5000 + bytes(120))
    model[8192 : 8192 + 5120] = b"z" * 5000 + bytes(120)
    node.close()
    assert info()["refcount-bits"] == bits
    tool("qemu-img", "check", "-q", "disk")
    tool("qemu-img", "convert", "-O", "raw", "disk", "now.raw")
    assert Path("now.raw").read_bytes() == model


def test_refcounts_that_do_not_fit() -> None:
    filled()
    shutil.copy("disk", "theirs")
    done = run("qemu-img", "amend", "-o", "refcount_bits=1", "theirs")
    node = open_qcow2("disk")
    with pytest.raises(BlockError) as error:
        node.amend({"refcount_bits": "1"})
    node.close()
    assert done.stderr.strip() == f"qemu-img: {error.value}"
    tool("qemu-img", "check", "-q", "disk")


@pytest.mark.parametrize(
    "options",
    [
        {"compat": "9"},
        {"refcount_bits": "3"},
        {"data_file": "x"},
        {"data_file_raw": "on"},
        {"cluster_size": "4k"},
        {"foo": "bar"},
        {"compat": "0.10", "refcount_bits": "8"},
    ],
)
def test_what_cannot_be_amended(options: dict[str, str]) -> None:
    filled()
    done = run("qemu-img", "amend", "-o", ",".join(f"{key}={value}" for key, value in options.items()), "disk")
    assert done.returncode == 1
    node = open_qcow2("disk")
    with pytest.raises(BlockError) as error:
        node.amend(options)
    node.close()
    assert done.stderr.splitlines()[0] == f"qemu-img: {error.value}"


# ---- Backing files, emptying


def test_another_backing_file() -> None:
    for name in ("a", "b"):
        Path(f"{name}.raw").write_bytes(name.encode() * SIZE)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "disk")
    node = open_qcow2("disk")
    node.write(0, b"x" * 512)
    node.change_backing("b.raw", "raw")
    with pytest.raises(BlockError, match="too long"):
        node.change_backing("x" * 1024, "raw")
    node.close()
    assert json.loads(tool("qemu-img", "info", "--output=json", "disk"))["backing-filename"] == "b.raw"
    node = open_qcow2("disk")
    assert node.read(0, 1024) == b"x" * 512 + b"a" * 512
    assert node.read(1 << 20, 1024) == b"b" * 1024
    node.change_backing(None, None)
    node.close()
    assert "backing-filename" not in json.loads(tool("qemu-img", "info", "--output=json", "disk"))
    tool("qemu-img", "check", "-q", "disk")


@pytest.mark.parametrize("options", ["", ",compat=0.10", ",extended_l2=on,cluster_size=16k"])
def test_an_emptied_image_shows_what_is_below(options: str) -> None:
    filled(options)
    Path("base.raw").write_bytes(b"b" * (2 << 20))
    tool("qemu-img", "rebase", "-u", "-b", "base.raw", "-F", "raw", "disk")
    node = open_qcow2("disk")
    node.make_empty()
    assert node.read(0, 2 << 20) == b"b" * (2 << 20)
    node.apply_snapshot("s")
    assert node.read(0, 4096) == b"\1" * 4096
    node.delete_snapshot(name="s")
    node.make_empty()
    node.write(0, b"x" * 512)
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    assert Path("disk").stat().st_size <= 256 << 10


# ---- Snapshots with the state of a VM


def test_vm_state_goes_with_the_snapshot() -> None:
    chance = random.Random(3)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "disk", "2M")
    state = chance.randbytes((3 << 20) + 700)
    node = open_qcow2("disk")
    node.write(0, b"d" * 8192)
    for start in range(0, len(state), 300000):
        node.write_vmstate(start, [memoryview(state[start : start + 300000])])
    snapshot = node.create_snapshot("vm", vm_state_size=len(state), vm_clock_nsec=77 * 10**9 + 123, icount=5)
    assert (snapshot.identifier, snapshot.vm_state_size, snapshot.icount) == ("1", len(state), 5)
    node.write(0, b"e" * 8192)
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    listed = json.loads(tool("qemu-img", "info", "--output=json", "disk"))["snapshots"][0]
    assert listed["vm-state-size"] == len(state)
    assert (listed["vm-clock-sec"], listed["vm-clock-nsec"], listed["icount"]) == (77, 123, 5)
    node = open_qcow2("disk")
    node.apply_snapshot("vm")
    found = bytearray(len(state))
    node.read_vmstate(0, [memoryview(found)[:1000], memoryview(found)[1000:]])
    assert found == state
    assert node.read(0, 8192) == b"d" * 8192
    # A larger disk does not show it.
    node.truncate(8 << 20)
    assert node.read(2 << 20, 6 << 20) == bytes(6 << 20)
    node.delete_snapshot(identifier="1")
    node.close()
    tool("qemu-img", "check", "-q", "disk")


def test_the_vm_state_that_qemu_io_writes() -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "disk", "2M")
    tool("qemu-io", "-c", "write -b -P 7 0 100k", "disk")
    node = open_qcow2("disk")
    found = bytearray(100 << 10)
    node.read_vmstate(0, [memoryview(found)])
    assert found == b"\7" * len(found)
    node.write_vmstate(50 << 10, [memoryview(b"\x08" * 1024)])
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    said = tool(
        "qemu-io", "-c", "read -b -P 7 0 50k", "-c", "read -b -P 8 50k 1k", "-c", "read -b -P 7 51k 49k", "disk"
    )
    assert "fail" not in said


def test_snapshots_that_are_not_there_or_cannot_be() -> None:
    filled()
    node = open_qcow2("disk")
    with pytest.raises(BlockError, match="Can't find snapshot 'none'"):
        node.apply_snapshot("none")
    view = node.open_snapshot("s")
    assert view.read(8192, 4096) == b"\1" * 4096
    with pytest.raises(OSError, match="not permitted"):
        view.write(0, bytes(512))
    assert view.block_status(0, 4096).data
    view.close()
    node.close()
    create_image("single", "qcow2", 1 << 20, {"refcount_bits": "1"})
    node = open_qcow2("single")
    node.write(0, b"x" * 65536)
    with pytest.raises(OSError, match="Invalid argument"):
        node.create_snapshot("s")
    node.write(65536, b"y" * 65536)
    node.close()
    tool("qemu-img", "check", "-q", "single")
    create_image("external", "qcow2", 1 << 20, {"data_file": "data.raw"})
    node = open_qcow2("external")
    with pytest.raises(OSError, match="not supported"):
        node.create_snapshot("s")
    node.close()


def test_a_snapshot_instead_of_the_disk() -> None:
    filled()
    file = FileNode("disk", read_only=True)
    node = Qcow2Node(file, read_header(file), warn=print, snapshot="s")
    assert node.read(8192, 4096) == b"\1" * 4096
    node.close()
    file = FileNode("disk")
    with pytest.raises(BlockError, match="not read-only"):
        Qcow2Node(file, read_header(file), warn=print, snapshot="s")
    file.close()


# ---- Bitmaps


def test_bitmaps_are_loaded_and_stored() -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "64M")
    tool("qemu-img", "bitmap", "--add", "-g", "64k", "disk", "theirs")
    tool("qemu-io", "-c", "write 1M 128k", "-c", "write 33M 1", "disk")
    node = open_qcow2("disk")
    (theirs,) = node.disk.bitmaps
    content = bitmaps.load(node.disk, theirs)
    assert [bit for bit in range(1024) if content[bit // 8] >> bit % 8 & 1] == [16, 17, 528]
    bitmaps.add(node.disk, "ours", 16, content=bytes(content))
    bitmaps.add(node.disk, "all", 9, auto=False, content=b"\xff" * ((64 << 20) >> 12))
    with pytest.raises(BlockError, match="already exists"):
        bitmaps.add(node.disk, "ours", 16)
    node.create_snapshot("s")
    node.delete_snapshot(name="s")
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    assert [it["name"] for it in info()["bitmaps"]] == ["theirs", "ours", "all"]  # type: ignore[attr-defined]
    # They merge ours into a new one of theirs; it has the same bits.
    tool("qemu-img", "bitmap", "--add", "--merge", "ours", "-g", "64k", "disk", "merged")
    node = open_qcow2("disk")
    merged = next(it for it in node.disk.bitmaps if it.name == "merged")
    assert bitmaps.load(node.disk, merged) == content
    node.truncate(96 << 20)
    grown = next(it for it in node.disk.bitmaps if it.name == "ours")
    assert bitmaps.load(node.disk, grown) == content + bytes(64)
    bitmaps.remove(node.disk, "all")
    assert node.format_info()["data"]["bitmaps"][0] == {"flags": ["auto"], "name": "theirs", "granularity": 65536}
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    tool("qemu-io", "-c", "write 90M 64k", "disk")
    tool("qemu-img", "check", "-q", "disk")
    node = open_qcow2("disk")
    node.write(0, b"x" * 512)
    with pytest.raises(BlockError, match="inconsistent"):
        node.truncate(1 << 20)
    node.close()
    for name in ("theirs", "ours", "merged"):
        tool("qemu-img", "bitmap", "--remove", "disk", name)
    tool("qemu-img", "check", "-q", "disk")


def test_bitmaps_that_somebody_has_made_void() -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "2M")
    tool("qemu-img", "bitmap", "--add", "disk", "b")
    image = bytearray(Path("disk").read_bytes())
    put(image, 88, 0)
    Path("disk").write_bytes(image)
    said: list[str] = []
    node = open_qcow2("disk", warn=said.append)
    assert not node.disk.bitmaps
    assert "all bitmaps are now considered inconsistent" in said[0]
    node.change_backing(None, None)
    result = node.check({"leaks"})
    assert result.leaks_fixed == 2
    node.close()
    tool("qemu-img", "check", "-q", "disk")


# ---- Resizing


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize(
    "options", ["", "extended_l2=on", "compat=0.10,cluster_size=4k", "data_file=data.raw,data_file_raw=on"]
)
def test_preallocated_growth(mode: str, options: str) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), "disk", "1M")
    chance = random.Random(1)
    model = bytearray(chance.randbytes(1 << 20))
    node = open_qcow2("disk")
    node.write(0, model)
    node.write_zeroes(0, 512 << 10, True)
    model[: 512 << 10] = bytes(512 << 10)
    node.flush()
    node.truncate(9 << 20, preallocation=mode)  # type: ignore[arg-type]
    model.extend(bytes(8 << 20))
    assert node.read(0, 9 << 20) == model
    with pytest.raises(BlockError, match="shrinking"):
        node.truncate(1 << 20, preallocation="full")
    with pytest.raises(BlockError, match="multiple of 512"):
        node.truncate(1000)
    node.close()
    tool("qemu-img", "check", "-q", "disk")
    tool("qemu-img", "convert", "-O", "raw", "disk", "now.raw")
    assert Path("now.raw").read_bytes() == model
    if mode in ("falloc", "full"):
        place = "data.raw" if "data_file" in options else "disk"
        assert os.stat(place).st_blocks * 512 >= 8 << 20


def test_what_was_cut_off_does_not_come_back() -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "2M")
    node = open_qcow2("disk")
    node.write(0, b"x" * (2 << 20))
    length = os.stat("disk").st_size
    node.truncate((1 << 20) + 512)
    assert os.stat("disk").st_size < length
    node.truncate(2 << 20)
    assert node.read(0, 2 << 20) == b"x" * ((1 << 20) + 512) + bytes((1 << 20) - 512)
    node.close()
    tool("qemu-img", "check", "-q", "disk")


# ---- Where data is


@pytest.mark.parametrize(
    "options", ["", ",compat=0.10", ",extended_l2=on,cluster_size=16k", ",preallocation=metadata,cluster_size=64k"]
)
def test_the_map_of_an_image(options: str) -> None:
    if "preallocation" in options:
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat=1.1{options}", "disk", "64M")
        tool("qemu-io", "-c", "write -P 1 1M 64k", "-c", "write -P 1 5M 1M", "disk")
    else:
        filled(options)
    theirs = json.loads(tool("qemu-img", "map", "--output=json", "disk"))
    node = open_qcow2("disk", read_only=True)
    ours: list[dict[str, object]] = []
    offset = 0
    while offset < node.size:
        extent = node.block_status(offset, node.size - offset)
        here: dict[str, object] = {"start": offset, "length": extent.length, "depth": 0}
        here.update(present=extent.allocated, zero=extent.zero, data=extent.data)
        if extent.offset is not None:
            here["offset"] = extent.offset
        offset += extent.length
        last = ours[-1] if ours else None
        if last is not None and last.get("offset") is None and here.get("offset") is None:
            same = all(last[key] == here[key] for key in ("present", "zero", "data"))
            if same:
                last["length"] = int(str(last["length"])) + extent.length
                continue
        ours.append(here)
    node.close()
    assert ours == theirs
