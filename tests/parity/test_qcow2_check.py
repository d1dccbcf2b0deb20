"""Checks and repairs of qcow2 images: what is found and counted is what QEMU finds and counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.qcow2_support import filled, for_check, open_qcow2, put, run, tool

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(image: bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 8], "big") & 0x00FF_FFFF_FFFF_FE00


def block_of(image: bytearray) -> int:
    return table(image, table(image, 48))


def l2_of(image: bytearray) -> int:
    return table(image, table(image, 40))


def change(image: bytearray, at: int, mask: int) -> None:
    put(image, at, int.from_bytes(image[at : at + 8], "big") ^ mask)


DAMAGES: dict[str, Callable[[bytearray], None]] = {
    "nothing": lambda image: None,
    "leak": lambda image: put(image, block_of(image) + 2 * 40, 9, 9, width=2),
    "leak at the end": lambda image: (
        image.extend(bytes(8192)),
        put(image, block_of(image) + len(image) // 4096 * 2 - 4, 1, 1, width=2),
    ),  # type: ignore[func-returns-value]
    "too low": lambda image: put(image, block_of(image) + 2 * 13, 1, 1, 1, width=2),
    "not counted": lambda image: put(image, block_of(image) + 2 * 8, 0, 0, width=2),
    "not copied": lambda image: change(image, l2_of(image) + 16, 1 << 63),
    "copied but shared": lambda image: change(image, l2_of(image), 1 << 63),
    "L1 not copied": lambda image: change(image, table(image, 40), 1 << 63),
    "L1 reserved": lambda image: change(image, table(image, 40), 1 << 60),
    "L2 reserved": lambda image: change(image, l2_of(image), 1 << 60),
    "unaligned data": lambda image: change(image, l2_of(image), 512),
    "beyond the end": lambda image: put(image, l2_of(image) + 8 * 300, 1 << 63 | 1 << 40),
    "shared cluster": lambda image: put(image, l2_of(image) + 8 * 300, 1 << 63 | table(image, l2_of(image))),
    "no block": lambda image: put(image, table(image, 48), 0),
    "block outside": lambda image: put(image, table(image, 48) + 8, 1 << 40),
    "block unaligned": lambda image: put(image, table(image, 48) + 8, 4096 * 5 + 512),
    "compressed and copied": lambda image: change(image, l2_of(image) + 8 * 128, 1 << 63),
    "dirty": lambda image: change(image, 72, 1),
    "corrupt": lambda image: change(image, 72, 2),
}


def numbers_of(text: str) -> dict[str, int]:
    found = json.loads(text)
    keys = (
        "corruptions", "leaks", "check-errors", "corruptions-fixed", "leaks-fixed", "total-clusters",
        "allocated-clusters", "fragmented-clusters", "compressed-clusters", "image-end-offset",
    )  # fmt: skip
    return {key.replace("-", "_"): found.get(key, 0) for key in keys}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("options", ["", ",compat=0.10", ",extended_l2=on,cluster_size=16k"])
def test_checks_count_what_qemu_counts(damage: str, options: str) -> None:
    image = filled(options)
    if "0.10" in options and damage in ("dirty", "corrupt"):
        return
    if "extended" in options and (damage.startswith("compressed") or "unaligned data" in damage):
        return
    DAMAGES[damage](image)
    Path("disk").write_bytes(image)
    theirs = numbers_of(run("qemu-img", "check", "--output=json", "disk").stdout)
    node = for_check("disk")
    ours = vars(node.check())
    node.close()
    assert Path("disk").read_bytes() == image
    # Where their check ends early, it has not looked at all there is.
    assert ours == theirs
    # A repair: theirs, then ours on the same image, each checked by the other.
    repaired = run("qemu-img", "check", "-r", "all", "--output=json", "disk")
    expected = numbers_of(repaired.stdout)
    Path("disk").write_bytes(image)
    node = for_check("disk")
    result = node.check({"leaks", "errors"})
    node.close()
    assert (result.corruptions == 0) == (expected["corruptions"] == 0), (result, expected)
    if not result.corruptions:
        # They try to make the file longer first.
        assert damage == "block outside" or (result.corruptions_fixed, result.leaks_fixed) == (
            expected["corruptions_fixed"],
            expected["leaks_fixed"],
        )
        tool("qemu-img", "check", "-q", "disk")
        node = for_check("disk")
        again = node.check()
        node.close()
        assert (again.corruptions, again.leaks, again.check_errors) == (0, 0, 0)
        data = open_qcow2("disk")
        assert data.read(1 << 20, 4096) == b"\2" * 4096
        data.close()


def test_only_leaks_are_repaired_where_only_that_is_asked_for() -> None:
    image = filled()
    put(image, block_of(image) + 2 * 35, 9, 9, width=2)
    DAMAGES["too low"](image)
    Path("disk").write_bytes(image)
    before = numbers_of(run("qemu-img", "check", "--output=json", "disk").stdout)
    node = for_check("disk")
    said: list[str] = []
    result = node.check({"leaks"}, said.append)
    node.close()
    assert result.leaks_fixed == before["leaks"] == 2
    assert result.corruptions == before["corruptions"] > 0
    assert sum(line.startswith("Repairing cluster") for line in said) == 2
    assert numbers_of(run("qemu-img", "check", "--output=json", "disk").stdout)["leaks"] == 0


def test_the_lines_of_a_check() -> None:
    image = filled()
    for name in ("leak", "too low", "not copied"):
        DAMAGES[name](image)
    Path("disk").write_bytes(image)
    done = run("qemu-img", "check", "disk")
    theirs = [line for line in done.stderr.splitlines() if line]
    node = for_check("disk")
    said: list[str] = []
    node.check(report=said.append)
    node.close()
    assert said == theirs
