"""Making images of formats of other virtual machines: what was made is read back by the drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.errors import BlockError
from pyvm.block.open import open_image
from tests.unit.job_rig import LIFE, JobDisks, life

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
CHS = 17 * 4 * 16 * 512
"""A size that geometry can say."""


class Maker:
    """A machine with two files to make images in."""

    def __init__(self, folder: Path) -> None:
        self.disks = JobDisks(folder)
        self.paths = {name: folder / name for name in "cd"}
        for name, path in self.paths.items():
            path.write_bytes(b"what was there before" * 1000)
            self.disks.run("blockdev-add", driver="file", filename=str(path), node_name=name)
        self.disks.log.clear()

    def make(self, driver: str, **options: Any) -> tuple[str | None, list[str]]:
        """Make an image; return the error, and the log until the command returned."""
        wire = {"driver": driver, "file": "c", **{key.replace("_", "-"): value for key, value in options.items()}}
        self.disks.run("blockdev-create", job_id="j", options=wire)
        before = list(self.disks.log)
        self.disks.wait("j:concluded")
        (job,) = self.disks.run("query-jobs")
        self.disks.run("job-dismiss", id="j")
        self.disks.log.clear()
        return job.get("error"), before


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.mark.parametrize(
    ("driver", "options", "length"),
    [
        ("vdi", {}, 1024),
        ("vdi", {"preallocation": "metadata"}, 1024 + 3 * MIB),
        ("vpc", {"size": CHS}, 2560),
        ("vpc", {"size": 4 * MIB, "force_size": True}, 2560),
        ("vpc", {"size": CHS, "subformat": "fixed"}, CHS + 512),
        ("vhdx", {}, 4 * MIB),
        ("vhdx", {"log_size": 2 * MIB, "block_size": MIB, "subformat": "fixed"}, 8 * MIB),
        ("vhdx", {"size": 5 * TIB}, 5 * MIB),
        ("vmdk", {}, 64 * KIB),
        ("vmdk", {"zeroed_grain": True, "size": 20 * GIB}, 2624 * KIB),
        ("vmdk", {"subformat": "streamOptimized", "hwversion": "7", "toolsversion": "9"}, 64 * KIB),
        ("qcow", {}, 560),
        ("qcow", {"size": 5 * GIB}, 20528),
        ("qed", {}, 320 * KIB),
        ("qed", {"cluster_size": 4096, "table_size": 2}, 12 * KIB),
        ("parallels", {}, MIB),
        ("parallels", {"cluster_size": 64 * KIB}, 64 * KIB),
    ],
)
def test_an_empty_image(maker: Maker, driver: str, options: dict[str, Any], length: int) -> None:
    size = options.get("size", 3 * MIB)
    assert maker.make(driver, **{"size": size, **options}) == (None, life("j", *LIFE))
    maker.disks.run("blockdev-del", node_name="c")
    path = maker.paths["c"]
    assert path.stat().st_size == length
    node = open_image(str(path), read_only=True, format=driver)
    assert node.size == size
    for offset in (0, size // 2 // 512 * 512, size - 512):
        assert node.read(offset, 512) == bytes(512)
    node.close()


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
def test_a_vmdk_disk_of_two_files(maker: Maker, kind: str) -> None:
    assert maker.make("vmdk", size=3 * MIB, subformat=kind) == ("Extent [0] not specified", life("j", *LIFE))
    assert maker.make("vmdk", size=3 * MIB, subformat=kind, extents=["d"])[0] is None
    for name in "cd":
        maker.disks.run("blockdev-del", node_name=name)
    node = open_image(str(maker.paths["c"]), read_only=True)
    assert (node.driver, node.size, node.read(MIB, 512)) == ("vmdk", 3 * MIB, bytes(512))
    node.close()


def test_images_that_lie_on_others(maker: Maker, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"\x05" * MIB)
    for driver, options in (("qcow", {}), ("qed", {"backing_fmt": "raw"})):
        assert maker.make(driver, size=MIB, backing_file=str(raw), **options)[0] is None
        node = open_image(str(maker.paths["c"]), read_only=True)
        assert (node.driver, node.read(512, 512)) == (driver, b"\x05" * 512)
        node.close()
    assert maker.make("vmdk", size=MIB, backing_file=str(raw))[0] == "Invalid backing file format: raw. Must be vmdk"
    assert maker.make("vmdk", size=MIB, file="d")[0] is None
    assert maker.make("vmdk", size=MIB, backing_file=str(maker.paths["d"]))[0] is None
    node = open_image(str(maker.paths["c"]), read_only=True)
    assert node.backing is not None
    info, below = node.format_info(), node.backing.format_info()  # type: ignore[attr-defined]
    assert info["data"]["parent-cid"] == below["data"]["cid"]
    node.close()


QED_CLUSTER = "QED cluster size must be within range [4096, 67108864] and power of 2"
VPC_SIZE = "The requested image size cannot be represented in CHS geometry"
VDI_SIZE = "Unsupported VDI image size (size is 0x4000000000000000, max supported is 0x1fffff8000000)"
BEFORE = [
    ("vdi", {"size": 1 << 62}, VDI_SIZE),
    ("vdi", {"preallocation": "full"}, "Preallocation mode not supported for vdi"),
    ("vhdx", {"size": 70 * TIB}, "Image size too large; max of 64TB"),
    ("vhdx", {"block_size": 3 * MIB}, "Block size must be a power of two"),
    ("vhdx", {"block_size": 512 * MIB}, "Block size must not exceed 268435456"),
    ("vhdx", {"block_size": 1000}, "Block size must be a multiple of 1 MB"),
    ("vhdx", {"log_size": 1000}, "Log size must be a multiple of 1 MB"),
    ("vhdx", {"log_size": TIB}, "Log size must be smaller than 4 GB"),
    ("vmdk", {"size": 1234}, "Image size must be a multiple of 512 bytes"),
    ("vmdk", {"size": 1 << 62}, "L1 size too big"),
    ("vmdk", {"subformat": "monolithicFlat", "backing_file": "x"}, "Flat image can't have backing file"),
    ("vmdk", {"subformat": "monolithicFlat", "zeroed_grain": True}, "Flat image can't enable zeroed grain"),
    ("qcow", {"size": 0}, "Image size is too small, cannot be zero length"),
    ("qcow", {"size": 1 << 62}, "Image too large"),
    ("qcow", {"encrypt": {"format": "luks"}}, "Unsupported encryption format"),
    ("qed", {"cluster_size": 1000}, QED_CLUSTER),
    ("qed", {"table_size": 3}, "QED table size must be within range [1, 16] and power of 2"),
    ("parallels", {"size": 1 << 62}, "Image size is too large for this cluster size"),
    ("parallels", {"cluster_size": 1000}, "Cluster size must be a multiple of 512 bytes"),
    ("parallels", {"cluster_size": 4 * GIB}, "Cluster size is too large"),
    ("qcow2", {"size": 1234}, "Image size must be a multiple of 512 bytes"),
    ("qed", {"file": "nothing"}, "Cannot find device='nothing' nor node-name='nothing'"),
]  # fmt: skip
LATER = [
    ("vpc", {}, VPC_SIZE),
    ("vpc", {"size": 1234}, VPC_SIZE),
    ("vpc", {"size": 5 * TIB}, "Disk size is too large, max size is 2040 GiB"),
    ("vmdk", {"extents": ["d"]}, "List of extents contains unused extents"),
    ("qcow", {"encrypt": {"format": "qcow"}}, "Parameter 'encrypt.key-secret' is required for cipher"),
    ("luks", {}, "Parameter 'key-secret' is required for cipher"),
]  # fmt: skip


def test_options_that_cannot_be(maker: Maker) -> None:
    whole = life("j", *LIFE, "aborting", "concluded")
    for driver, options, message in BEFORE:
        # What fails before anything is done is over when the command returns.
        assert maker.make(driver, **{"size": MIB, **options}) == (message, whole)
    for driver, options, message in LATER:
        assert maker.make(driver, **{"size": MIB, **options}) == (message, life("j", *LIFE))


def test_a_file_that_cannot_be_made_is_known_at_once(maker: Maker, tmp_path: Path) -> None:
    path = tmp_path / "no" / "file"
    maker.disks.run("blockdev-create", job_id="j", options={"driver": "file", "filename": str(path), "size": 512})
    assert maker.disks.log == life("j", *LIFE, "aborting", "concluded")
    (job,) = maker.disks.run("query-jobs")
    assert job["error"] == f"Could not create '{path}': No such file or directory"


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    driver=st.sampled_from(["vdi", "vhdx", "vmdk", "qcow", "qed", "parallels"]),
    sectors=st.integers(1, 1 << 24),
)
def test_any_size(maker: Maker, driver: str, sectors: int) -> None:
    assert maker.make(driver, size=512 * sectors)[0] is None
    node = open_image(str(maker.paths["c"]), read_only=True, format=driver)
    assert node.size == 512 * sectors
    assert node.read(512 * (sectors - 1), 512) == bytes(512)
    node.close()


def test_replication_on_the_side_that_sends(maker: Maker) -> None:
    run, fails = maker.disks.run, maker.disks.fails
    node = {"driver": "replication", "file": "c", "node_name": "r"}
    assert fails("blockdev-add", **node, mode="primary", top_id="x") == (
        "The primary side does not support option top-id"
    )
    assert fails("blockdev-add", **node, mode="secondary") == "Missing the option top-id"
    assert "not supported by pyvm" in fails("blockdev-add", **node, mode="secondary", top_id="x")
    run("blockdev-add", **node, mode="primary")
    shown = maker.disks.storage.graph.nodes["r"]
    for step in range(3):
        if step != 1:
            with pytest.raises(OSError, match="Input/output error"):
                maker.disks.read("r", 0, 512)
        else:
            assert maker.disks.read("r", 0, 512).startswith(b"what was there")
        for request in (lambda: shown.write(0, bytes(512)), lambda: shown.discard(0, 512)):
            if step == 1:
                continue
            with maker.disks.storage.quiet(), pytest.raises(OSError, match="Input/output error"):
                request()
        if step == 0:
            assert fails("xen-set-replication", enable=False, primary=True) == "Block replication is not running"
            run("xen-set-replication", enable=False, primary=True, failover=True)
            assert "mode's value is invalid" in fails("xen-set-replication", enable=True, primary=False)
            run("xen-set-replication", enable=True, primary=True)
            assert fails("xen-set-replication", enable=True, primary=True) == "Block replication is running or done"
        elif step == 1:
            run("xen-set-replication", enable=False, primary=True)
    run("xen-set-replication", enable=False, primary=True)
    run("blockdev-del", node_name="r")


def test_blkreplay_shows_what_is_below(maker: Maker) -> None:
    maker.disks.run("blockdev-add", driver="blkreplay", image="c", node_name="b")
    assert maker.disks.read("b", 0, 512) == maker.disks.read("c", 0, 512)
    (info,) = [it for it in maker.disks.run("query-named-block-nodes", flat=True) if it["node-name"] == "b"]
    assert info["file"].startswith('json:{"image": {"driver": "file", ')
    assert maker.disks.fails("blockdev-add", driver="blkreplay", node_name="x") == "Parameter 'image' is missing"


def test_small_things_that_clients_see_of_nodes(maker: Maker) -> None:
    run = maker.disks.run
    rules = [{"event": "read_aio", "errno": 5, "once": True}]
    run("blockdev-add", driver="blkdebug", image="c", inject_error=rules, node_name="b")
    run("blockdev-add", driver="null-co", size=1, node_name="n")
    run("blockdev-add", driver="snapshot-access", file="c", node_name="s")
    infos = {it["node-name"]: it for it in run("query-named-block-nodes", flat=True)}
    event, error = (infos["b"]["file"].index(f'"inject-error.0.{name}"') for name in ("event", "errno"))
    assert event < error
    assert "actual-size" not in infos["b"]["image"]
    assert infos["n"]["image"]["virtual-size"] == 512
    assert infos["s"]["ro"] is False
    shown = maker.disks.storage.graph.nodes["s"]
    with pytest.raises(OSError, match="not supported"):
        shown.write(0, bytes(512))
    with pytest.raises(BlockError):
        maker.disks.storage.graph.nodes["n"].truncate(1024)
