"""Images of other virtual machines that qemu-img makes: pyvm-img has to read the same in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvm.tools.img.cli import main

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed"),
]

MIB = 1 << 20
KINDS = (
    "vdi", "vdi static=on", "vpc", "vpc subformat=fixed", "vpc force_size=on", "vhdx", "vhdx subformat=fixed",
    "vhdx block_size=2M", "vmdk", "vmdk subformat=monolithicFlat", "vmdk subformat=streamOptimized",
    "vmdk subformat=twoGbMaxExtentSparse", "vmdk subformat=twoGbMaxExtentFlat", "vmdk zeroed_grain=on", "qcow",
    "qed", "qed cluster_size=4096,table_size=2", "parallels", "parallels cluster_size=64k",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with data at its start, in its middle, at its end, and nothing between."""
    path = tmp_path_factory.mktemp("foreign") / "source.raw"
    with path.open("wb") as file:
        file.truncate(35 * MIB)
        for offset, length in ((0, 100_000), (5 * MIB, 3 * MIB), (20 * MIB + 512, 512), (34 * MIB, MIB)):
            file.seek(offset)
            file.write((os.urandom(1024) * (length // 1024 + 1))[:length])
    return path


def qemu_img(*words: str) -> str:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_qemu_images_are_read(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = kind.split()
    image = f"disk.{name}"
    qemu_img("convert", "-f", "raw", "-O", name, *(word for it in options for word in ("-o", it)), str(source), image)
    assert main(["convert", "-O", "raw", image, "ours.raw"]) == 0
    qemu_img("convert", "-O", "raw", image, "theirs.raw")
    assert Path("ours.raw").read_bytes() == Path("theirs.raw").read_bytes()
    capsys.readouterr()
    assert main(["info", image]) == 0
    assert capsys.readouterr().out == qemu_img("info", image)


@pytest.mark.parametrize("kind", ["qcow", "qed", "vmdk"])
def test_images_that_lie_on_others(kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qemu_img("convert", "-f", "raw", "-O", kind, str(source), "base")
    qemu_img("create", "-q", "-f", kind, "-b", "base", "-F", kind, "top")
    subprocess.run(["qemu-io", "-f", kind, "-c", "write -P 9 6M 64k", "top"], check=True, capture_output=True)
    assert main(["convert", "-O", "raw", "top", "ours.raw"]) == 0
    qemu_img("convert", "-O", "raw", "top", "theirs.raw")
    assert Path("ours.raw").read_bytes() == Path("theirs.raw").read_bytes()
    assert main(["compare", "-q", "top", "theirs.raw"]) == 0
