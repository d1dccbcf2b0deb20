"""A process that is killed, or a host whose power fails, while an image changes.

What had been flushed is there, and the image is not corrupt.  PYVM_CRASHES says how many crashes of each kind there are
altogether.  A version 3 image may be marked as dirty: then whoever opens it for writing repairs its refcounts first.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
from pyvm.block.open import open_image
from pyvm.block.vectors import Buffers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed"),
]

CRASHES = int(os.environ.get("PYVM_CRASHES", "40"))
SLOTS = 96
SLOT = 6 * 512
"""Records are neither as long as a cluster nor at its edges."""
SIZE = SLOTS * SLOT
SHAPES = [
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=8",
    "extended_l2=on,cluster_size=16k",
    "compat=0.10,cluster_size=1k",
    "lazy_refcounts=on,cluster_size=2k",
]
EACH = -(-CRASHES // len(SHAPES))

# Writes numbered records to random slots, or zeros or nothing or compressed clusters in their place, makes, applies and
# deletes snapshots, changes the size, flushes; says what it is about to do, and what is done.
WRITER = """
import random, sys
from pyvm.block.open import open_image
path, seed, slots, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
node = open_image(path, unmap=True)
def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
def change(turn):
    slot = chance.randrange(slots)
    kind = chance.randrange(4)
    if kind == 3:
        # A whole cluster: all the slots in it, and what is left of those at its edges.
        cluster = node.cluster_size
        start = chance.randrange(slots * size // cluster) * cluster
        say(f"sectors {start // 512} {(start + cluster) // 512} {turn}")
        node.write_compressed(start, turn.to_bytes(8, "little") * (cluster // 8))
        return
    say(f"sectors {slot * size // 512} {(slot + 1) * size // 512} {0 if kind == 0 else turn}")
    if kind == 0 and chance.randrange(2):
        node.discard(slot * size, size)
        node.write_zeroes(slot * size, size, True)
    elif kind == 0:
        node.write_zeroes(slot * size, size, True)
    else:
        node.write(slot * size, turn.to_bytes(8, "little") * (size // 8))
def operate(turn):
    kind = chance.randrange(5)
    names = [it.name for it in node.snapshots]
    if kind == 0 and len(names) < 4:
        say(f"creating s{turn}")
        node.create_snapshot(f"s{turn}")
    elif kind == 1 and names:
        name = chance.choice(names)
        say(f"applying {name}")
        node.apply_snapshot(name)
    elif kind == 2 and names:
        name = chance.choice(names)
        say(f"deleting {name}")
        node.delete_snapshot(name=name)
    elif not (names and node.header.version < 3):
        length = slots * size + chance.randrange(0, 400) * 512
        say("resizing")
        node.truncate(length)
        if length > slots * size:
            node.write(length - 512, b"t" * 512)
    else:
        node.flush()
    say("flushed")
for turn in range(1, 100000):
    for _ in range(chance.randrange(1, 10)):
        change(turn)
    if chance.randrange(3) == 0:
        operate(turn)
    else:
        node.flush()
        say("flushed")
"""


@dataclass
class History:
    """What each sector may hold: the last value that was flushed, and all that were written since."""

    possible: list[set[int]] = field(default_factory=lambda: [{0} for _ in range(SIZE // 512)])
    latest: list[int] = field(default_factory=lambda: [0] * (SIZE // 512))
    snapshots: dict[str, list[int]] = field(default_factory=dict)
    flushes: int = 0

    def read(self, lines: list[str]) -> None:
        applied: str | None = None
        for line in lines:
            word, *rest = line.split()
            if word == "flushed":
                self.flushes += 1
                if applied is not None:
                    self.latest = list(self.snapshots[applied])
                    applied = None
                self.possible = [{turn} for turn in self.latest]
            elif word == "sectors":
                start, stop, turn = map(int, rest)
                for sector in range(start, min(stop, len(self.latest))):
                    self.latest[sector] = turn
                    self.possible[sector].add(turn)
            elif word == "creating":
                self.snapshots[rest[0]] = list(self.latest)
            elif word == "applying":
                applied = rest[0]
                for sector, turn in enumerate(self.snapshots[applied]):
                    self.possible[sector].add(turn)


def check(path: Path) -> None:
    """There is nothing but leaks; what is marked as dirty is repaired first."""
    done = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        head = path.read_bytes()[:80]
        # Version 2 cannot say that it is dirty: there, flags may disagree with refcounts that are too high.
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        assert head[79] & 1 or all("OFLAG_COPIED" in line for line in errors), (done.stdout, done.stderr)
        assert head[79] & 1 or head[7] == 2, (done.stdout, done.stderr)
        copy = path.with_suffix(".repaired")
        shutil.copy(path, copy)
        subprocess.run(["qemu-img", "check", "-q", "-r", "all", copy], capture_output=True, check=False)
        done = subprocess.run(["qemu-img", "check", copy], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return
    assert done.returncode in (0, 3), (done.stdout, done.stderr)


def verify(path: Path, history: History) -> None:
    check(path)
    node = open_image(str(path))
    assert isinstance(node, Qcow2Node)
    data = node.read(0, SIZE)
    for number, possible in enumerate(history.possible):
        sector = data[number * 512 : number * 512 + 512]
        found = int.from_bytes(sector[:8], "little")
        assert sector == sector[:8] * 64, number
        assert found in possible, (number, found, possible)
    for snapshot in node.snapshots:
        view = node.open_snapshot(snapshot.name)
        content = view.read(0, SIZE)
        for number, turn in enumerate(history.snapshots[snapshot.name]):
            assert content[number * 512 : number * 512 + 8] == turn.to_bytes(8, "little"), (snapshot.name, number)
        view.close()
    node.write(0, b"x" * 512)
    if node.snapshots:
        node.delete_snapshot(name=node.snapshots[0].name)
    node.close()
    # The repair has been ours.
    done = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False)
    if done.returncode == 2 and path.read_bytes()[7] == 2:
        check(path)
    else:
        assert done.returncode in (0, 3), (done.stdout, done.stderr)


def create(path: Path, options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE)], check=True)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("options", SHAPES)
def test_killed_while_writing(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    flushes = 0
    path = tmp_path / "disk.qcow2"
    for turn in range(EACH):
        create(path, options)
        command = [sys.executable, "-c", WRITER, str(path), str(turn), str(SLOTS), str(SLOT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            log = [writer.stdout.readline() for _ in range(chance.randrange(1, 400))]
            writer.send_signal(signal.SIGKILL)
            log += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL, log[-3:]
        # The kill may have cut the last line.
        history = History()
        history.read([line.strip() for line in log if line.endswith("\n")])
        flushes += history.flushes
        verify(path, history)
    assert flushes > EACH


class Recorder(FileNode):
    """A file that remembers all its changes, and which of them a flush has made safe."""

    log: list[tuple[int, bytes | None]]
    """Offsets with what was written there; a size with None, where the length changed."""
    barriers: list[int]

    def writev(self, offset: int, buffers: Buffers) -> None:
        self.log.append((offset, b"".join(buffers)))
        super().writev(offset, buffers)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.log.append((offset, bytes(length)))
        super().write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        self.log.append((offset, bytes(min(length, max(self.length() - offset, 0)))))
        super().discard(offset, length)

    def truncate(self, size: int, **options: object) -> None:
        self.log.append((size, None))
        super().truncate(size, **options)  # type: ignore[arg-type]

    def flush(self) -> None:
        super().flush()
        self.barriers.append(len(self.log))


def after_power_failure(
    empty: bytes, log: list[tuple[int, bytes | None]], safe: int, chance: random.Random
) -> bytearray:
    """Return the disk: changes behind the last barrier are there or not, sector by sector, in any order."""
    disk = bytearray(empty)
    for offset, data in log[:safe]:
        if data is None:
            disk[:] = disk[:offset].ljust(offset, b"\0")
            continue
        disk.extend(bytes(max(offset + len(data) - len(disk), 0)))
        disk[offset : offset + len(data)] = data
    versions: dict[int, list[tuple[int, bytes]]] = {}
    for offset, data in log[safe:]:
        for start in range(0, len(data or b""), 512):
            assert data is not None
            versions.setdefault((offset + start) // 512, []).append((offset + start, data[start : start + 512]))
    for found in versions.values():
        if chance.randrange(3) == 0:
            continue
        offset, data = chance.choice(found)
        disk.extend(bytes(max(offset + len(data) - len(disk), 0)))
        disk[offset : offset + len(data)] = data
    return disk


def some_changes(node: Qcow2Node, history: History, chance: random.Random, turn: int) -> None:
    for _ in range(chance.randrange(1, 6)):
        kind = chance.randrange(4)
        length = chance.randrange(1, 40) * 512
        offset = chance.randrange((SIZE - length) // 512) * 512
        if kind == 3:
            length = node.cluster_size
            offset = chance.randrange(SIZE // length) * length
        history.read([f"sectors {offset // 512} {(offset + length) // 512} {turn if kind else 0}"])
        pattern = turn.to_bytes(8, "little") * (length // 8)
        if kind == 3:
            node.write_compressed(offset, pattern)
        elif kind:
            node.write(offset, pattern)
        else:
            node.write_zeroes(offset, length, True)


def some_operation(node: Qcow2Node, history: History, chance: random.Random, turn: int) -> None:
    kind = chance.randrange(6)
    names = [it.name for it in node.snapshots]
    if kind == 0 and len(names) < 4:
        history.read([f"creating s{turn}"])
        node.create_snapshot(f"s{turn}")
    elif kind == 1 and names:
        name = chance.choice(names)
        history.read([f"applying {name}"])
        node.apply_snapshot(name)
        history.latest = list(history.snapshots[name])
    elif kind == 2 and names:
        node.delete_snapshot(name=chance.choice(names))
    elif kind == 3 and not (names and node.header.version < 3):
        node.truncate(SIZE + chance.randrange(400) * 512)
    else:
        node.flush()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("options", SHAPES)
def test_power_fails_between_flushes(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    path, after = tmp_path / "disk.qcow2", tmp_path / "after.qcow2"
    done = 0
    while done < EACH:
        create(path, options)
        empty = path.read_bytes()
        file = Recorder(str(path), unmap=True)
        file.log, file.barriers = [], [0]
        node = Qcow2Node(file, read_header(file), warn=print)
        history = History()
        points: list[tuple[int, History]] = []
        for turn in range(1, 40):
            some_changes(node, history, chance, turn)
            first = len(file.log)
            some_operation(node, history, chance, turn)
            # In the middle, when anything may have come so far, and when it has been acknowledged.
            before = History([set(it) for it in history.possible], [], dict(history.snapshots))
            points += [(chance.randrange(first, len(file.log) + 1), before) for _ in range(3)]
            history.possible = [{it} for it in history.latest]
            points.append((len(file.log), History([set(it) for it in history.possible], [], dict(history.snapshots))))
        node.close()
        for point, known in chance.sample(points, min(EACH - done, len(points), 40)):
            safe = max(barrier for barrier in file.barriers if barrier <= point)
            after.write_bytes(after_power_failure(empty, file.log[:point], safe, chance))
            verify(after, known)
            done += 1
