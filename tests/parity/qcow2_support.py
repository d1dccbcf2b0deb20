"""Helpers of the tests that put qcow2 images beside QEMU's tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
from pyvm.block.open import open_image


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)


def tool(*command: str | Path) -> str:
    done = run(*command)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def open_qcow2(path: str, **options: object) -> Qcow2Node:
    node = open_image(path, unmap=True, **options)  # type: ignore[arg-type]
    assert isinstance(node, Qcow2Node)
    return node


def for_check(path: str) -> Qcow2Node:
    file = FileNode(path, unmap=True)
    return Qcow2Node(file, read_header(file), warn=lambda text: None, for_check=True)


def filled(options: str = "") -> bytearray:
    """Make an image with data, compressed clusters and a snapshot; return its bytes."""
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size=4k{options}", "disk", "2M")
    packed = "" if "extended" in options else "-c "
    commands = ["write -P 1 0 100k", "write -P 2 1M 30k", f"write {packed}-P 3 512k 16k", "write -z 200k 64k"]
    tool("qemu-io", *(part for command in commands for part in ("-c", command)), "disk")
    if "snapshot" not in options:
        tool("qemu-img", "snapshot", "-c", "s", "disk")
        tool("qemu-io", "-c", "write -P 4 8k 16k", "disk")
    return bytearray(Path("disk").read_bytes())


def put(image: bytearray, at: int, *numbers: int, width: int = 8) -> None:
    """Write big-endian numbers behind each other."""
    for number in numbers:
        image[at : at + width] = number.to_bytes(width, "big")
        at += width
