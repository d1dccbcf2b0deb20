"""The same random operations on two images, through pyvm and through QEMU's tools: they always have the same contents.

PYVM_QCOW2_OPERATIONS says how many operations each kind of image gets, PYVM_QCOW2_SEED with which numbers to start.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.open import open_image

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]

OPERATIONS = int(os.environ.get("PYVM_QCOW2_OPERATIONS", "60"))
SEED = int(os.environ.get("PYVM_QCOW2_SEED", "1"))
SIZE = 4 << 20
SECTOR = 512


def tool(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


@dataclass
class Pair:
    """The two images, and what is known of them."""

    folder: Path
    options: str
    backing: str | None
    chance: random.Random
    size: int = SIZE
    snapshots: dict[str, bytes] = field(default_factory=dict)
    """What each one has."""
    untouched: set[int] = field(default_factory=set)
    """Clusters that QEMU can still compress."""
    commands: list[str] = field(default_factory=list)
    """What qemu-io has not been told yet."""
    log: list[str] = field(default_factory=list)
    node: Qcow2Node | None = None

    def __post_init__(self) -> None:
        self.ours, self.theirs = self.folder / "ours.qcow2", self.folder / "theirs.qcow2"
        self.cluster = 65536
        for word in self.options.split(","):
            if word.startswith("cluster_size="):
                text = word.partition("=")[2]
                self.cluster = int(text.rstrip("kM")) << {"k": 10, "M": 20}.get(text[-1], 0)
        below = ["-b", self.backing, "-F", "raw"] if self.backing else []
        for path in (self.ours, self.theirs):
            tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", self.options, *below, path, str(self.size))
        self.untouched = set(range(self.size // self.cluster))
        self.open()

    def open(self) -> None:
        node = open_image(str(self.ours), unmap=True)
        assert isinstance(node, Qcow2Node)
        self.node = node

    # ---- Operations

    def some_range(self) -> tuple[int, int]:
        length = self.chance.choice([SECTOR, 4096, self.cluster, self.chance.randrange(1, 400) * SECTOR])
        offset = self.chance.randrange(self.size // SECTOR) * SECTOR
        if self.chance.randrange(3) == 0:
            offset = offset // self.cluster * self.cluster
        length = min(length, self.size - offset)
        self.untouched -= set(range(offset // self.cluster, (offset + length - 1) // self.cluster + 1))
        return offset, length

    def write(self) -> None:
        offset, length = self.some_range()
        pattern = self.chance.randrange(1, 256)
        self.node.write(offset, bytes([pattern]) * length)
        self.commands.append(f"write -P {pattern} {offset} {length}")

    def zero(self) -> None:
        offset, length = self.some_range()
        unmap = self.chance.randrange(2)
        self.node.write_zeroes(offset, length, bool(unmap))
        self.commands.append(f"write -z {'-u ' if unmap else ''}{offset} {length}")

    def discard(self) -> None:
        offset, length = self.some_range()
        self.node.discard(offset, length)
        self.commands.append(f"discard {offset} {length}")

    def compressed(self) -> None:
        cluster = self.chance.randrange(self.size // self.cluster)
        pattern = self.chance.randrange(1, 256)
        offset = cluster * self.cluster
        self.node.write_compressed(offset, bytes([pattern]) * self.cluster)
        # QEMU compresses only what has no cluster yet, and knows no subclusters with that.
        packed = "-c " if cluster in self.untouched and "extended" not in self.options else ""
        self.commands.append(f"write {packed}-P {pattern} {offset} {self.cluster}")
        self.untouched.discard(cluster)

    def flush(self) -> None:
        self.node.flush()
        self.commands.append("flush")

    def resize(self) -> None:
        if self.snapshots and "0.10" in self.options:
            return
        size = self.chance.randrange(1, 2 * SIZE // self.cluster + 1) * self.cluster
        self.untouched &= set(range(size // self.cluster))
        self.node.truncate(size)
        self.commands.append(f"truncate {size}")
        self.size = size

    def reopen(self) -> None:
        self.sync()
        self.open()

    def change_backing(self) -> None:
        # How much around a write is copied up differs with subclusters; another backing file shows that.
        if self.backing is None or "extended" in self.options:
            return
        self.backing = "base1.raw" if self.backing == "base0.raw" else "base0.raw"
        self.node.change_backing(self.backing, "raw")
        self.write_theirs()
        tool("qemu-img", "rebase", "-u", "-b", self.backing, "-F", "raw", self.theirs)
        self.reopen()

    def create_snapshot(self) -> None:
        if "data_file" in self.options or "refcount_bits=1" in self.options.split(","):
            return
        name = f"s{len(self.log)}"
        self.node.create_snapshot(name)
        content = bytes(self.node.read(0, self.size))
        self.write_theirs()
        tool("qemu-img", "snapshot", "-c", name, self.theirs)
        self.snapshots[name] = content
        # With its data shared, QEMU cannot tell any more what it may compress.
        self.untouched = set()

    def apply_snapshot(self) -> None:
        if not self.snapshots:
            return
        name = self.chance.choice(sorted(self.snapshots))
        self.node.apply_snapshot(name)
        self.write_theirs()
        tool("qemu-img", "snapshot", "-a", name, self.theirs)
        self.size = len(self.snapshots[name])
        assert self.node.size == self.size

    def delete_snapshot(self) -> None:
        if not self.snapshots:
            return
        name = self.chance.choice(sorted(self.snapshots))
        if self.backing is None:
            view = self.node.open_snapshot(name)
            assert view.read(0, view.size) == self.snapshots[name]
            view.close()
        self.node.delete_snapshot(name=name)
        self.write_theirs()
        tool("qemu-img", "snapshot", "-d", name, self.theirs)
        del self.snapshots[name]

    def vmstate(self) -> None:
        """Ours only: what is behind the disk must not show."""
        if self.backing is None and "data_file" not in self.options:
            offset = self.chance.randrange(1 << 20)
            state = self.chance.randbytes(self.chance.randrange(1, 100000))
            self.node.write_vmstate(offset, [memoryview(state)])
            found = bytearray(len(state))
            self.node.read_vmstate(offset, [memoryview(found)])
            assert found == state

    # ---- Comparing

    def write_theirs(self) -> None:
        if self.commands:
            arguments = [part for command in self.commands for part in ("-c", command)]
            told = tool("qemu-io", "-d", "unmap", *arguments, self.theirs)
            assert "failed" not in told, (self.commands, told)
        self.commands = []

    def sync(self) -> None:
        """Close ours, bring theirs up to date, and compare."""
        self.node.close()
        self.write_theirs()
        tool("qemu-img", "check", "-q", self.ours)
        tool("qemu-img", "compare", "-q", self.ours, self.theirs)
        ours = open_image(str(self.ours), read_only=True)
        theirs = open_image(str(self.theirs), read_only=True)
        assert isinstance(ours, Qcow2Node)
        assert ours.size == theirs.size == self.size
        assert ours.read(0, self.size) == theirs.read(0, self.size)
        result = ours.check()
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
        ours.close()
        theirs.close()
        for name, content in self.snapshots.items():
            # QEMU shows as much of a snapshot as the disk is long now.
            if self.backing is not None or len(content) != self.size:
                continue
            old = self.folder / "old.raw"
            tool("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", self.ours, old)
            assert old.read_bytes() == content, name


WEIGHTS = {
    "write": 8,
    "zero": 4,
    "discard": 4,
    "compressed": 4,
    "flush": 2,
    "resize": 2,
    "reopen": 2,
    "change_backing": 1,
    "create_snapshot": 2,
    "apply_snapshot": 1,
    "delete_snapshot": 1,
    "vmstate": 1,
}


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10,cluster_size=4k",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=1k,refcount_bits=8",
        "extended_l2=on,cluster_size=16k",
        "lazy_refcounts=on,cluster_size=8k",
        "compression_type=zstd,cluster_size=32k",
        "cluster_size=1M",
    ],
)
def test_random_operations(tmp_path: Path, options: str, backed: bool) -> None:
    chance = random.Random(f"{options}{backed}{SEED}")
    for number, size in enumerate((SIZE // 2, SIZE + 32768)):
        (tmp_path / f"base{number}.raw").write_bytes(chance.randbytes(65536) * (size // 65536))
    pair = Pair(tmp_path, options, "base0.raw" if backed else None, chance)
    names, weights = zip(*WEIGHTS.items(), strict=True)
    for _ in range(OPERATIONS):
        (name,) = chance.choices(names, weights)
        pair.log.append(name)
        getattr(pair, name)()
    pair.sync()
