"""A process that is killed while it writes: what it had flushed is there, and the image is not corrupt."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
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

SLOTS = 96
SLOT = 6 * 512
"""Records are neither as long as a cluster nor at its edges."""

# Writes numbered records to random slots, now and then zeros or discards others, flushes, and says what is flushed.
WRITER = """
import random, sys
from pyvm.block.open import open_image
path, seed, slots, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
node = open_image(path, unmap=True)
def write():
    for turn in range(1, 100000):
        for _ in range(chance.randrange(1, 12)):
            slot = chance.randrange(slots)
            kind = chance.randrange(3)
            sys.stdout.write(f"{slot} {0 if kind == 0 else turn}\\n")
            sys.stdout.flush()
            if kind == 0:
                node.write_zeroes(slot * size, size, True)
            else:
                node.write(slot * size, turn.to_bytes(8, "little") * (size // 8))
        node.flush()
        sys.stdout.write("flushed\\n")
        sys.stdout.flush()
write()
"""


def possible_contents(log: list[str]) -> tuple[list[set[int]], int]:
    """Return what each slot may have, and how many flushes there were: the last flushed, and all written since."""
    possible: list[set[int]] = [{0} for _ in range(SLOTS)]
    latest = [0] * SLOTS
    flushes = 0
    for line in log:
        if line == "flushed":
            flushes += 1
            possible = [{turn} for turn in latest]
        else:
            slot, turn = map(int, line.split())
            latest[slot] = turn
            possible[slot].add(turn)
    return possible, flushes


@pytest.mark.parametrize(
    "options",
    [
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10,cluster_size=1k",
    ],
)
def test_killed_while_writing(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    flushes = 0
    for turn in range(15):
        path = tmp_path / f"disk{turn}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SLOTS * SLOT)], check=True)
        command = [sys.executable, "-c", WRITER, str(path), str(turn), str(SLOTS), str(SLOT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            log = [writer.stdout.readline() for _ in range(chance.randrange(1, 200))]
            writer.send_signal(signal.SIGKILL)
            log += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        # The kill may have cut the last line.
        lines = [line.strip() for line in log if line.endswith("\n")]
        possible, count = possible_contents(lines)
        flushes += count
        done = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False)
        # 3: leaked clusters, nothing else.
        assert done.returncode in (0, 3), (done.stdout, done.stderr)
        node = open_image(str(path))
        for slot in range(SLOTS):
            data = node.read(slot * SLOT, SLOT)
            # A record that was being written may be there in part, in steps of sectors.
            for start in range(0, SLOT, 512):
                sector = data[start : start + 512]
                turn_found = int.from_bytes(sector[:8], "little")
                assert sector == sector[:8] * 64
                assert turn_found in possible[slot], (slot, turn_found, possible[slot])
        node.write(0, b"x" * 512)
        node.close()
        done = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), (done.stdout, done.stderr)
    assert flushes > 15


class Recorder(FileNode):
    """A file that remembers its writes, and which of them a flush has made safe."""

    log: list[tuple[int, bytes]]
    barriers: list[int]

    def writev(self, offset: int, buffers: Buffers) -> None:
        self.log.append((offset, b"".join(buffers)))
        super().writev(offset, buffers)

    def flush(self) -> None:
        super().flush()
        self.barriers.append(len(self.log))


@pytest.mark.parametrize(
    "options", ["cluster_size=512", "cluster_size=4096,refcount_bits=1", "extended_l2=on,cluster_size=16k"]
)
def test_power_fails_between_flushes(tmp_path: Path, options: str) -> None:
    """Of what was written since the last barrier, any part may be on the disk, in sectors and in any order."""
    chance = random.Random(options)
    path, after = tmp_path / "disk.qcow2", tmp_path / "after.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SLOTS * SLOT)], check=True)
    empty = path.read_bytes()
    file = Recorder(str(path), unmap=True)
    file.log, file.barriers = [], [0]
    node = Qcow2Node(file, read_header(file), warn=print)
    model = bytearray(SLOTS * SLOT)
    points: list[tuple[int, bytes, dict[int, set[bytes]]]] = []
    flushed = bytes(model)
    for _ in range(60):
        possible: dict[int, set[bytes]] = {}
        for _ in range(chance.randrange(1, 6)):
            offset = chance.randrange(SLOTS) * SLOT
            length = min(chance.randrange(1, 60) * 512, len(model) - offset)
            data = chance.randbytes(length) if chance.randrange(4) else bytes(length)
            node.write(offset, data) if any(data) else node.write_zeroes(offset, length, True)
            model[offset : offset + length] = data
            for start in range(offset, offset + length, 512):
                known = possible.setdefault(start, {flushed[start : start + 512]})
                known.add(bytes(model[start : start + 512]))
        # Before and in the flush, when anything may have come so far, and when the flush has been acknowledged.
        first = len(file.log)
        node.flush()
        points += [(point, flushed, possible) for point in (first, chance.randrange(first, len(file.log) + 1))]
        flushed = bytes(model)
        points.append((len(file.log), flushed, {}))
    node.close()
    for point, kept, possible in points[::2]:
        safe = max(barrier for barrier in file.barriers if barrier <= point)
        disk = bytearray(empty)
        for number, (offset, data) in enumerate(file.log[:point]):
            disk.extend(bytes(max(offset + len(data) - len(disk), 0)))
            for sector in range(0, len(data), 512):
                if number < safe or chance.randrange(2):
                    disk[offset + sector : offset + min(sector + 512, len(data))] = data[sector : sector + 512]
        after.write_bytes(disk)
        done = subprocess.run(["qemu-img", "check", after], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), (done.stdout, done.stderr)
        image = open_image(str(after), read_only=True)
        now = image.read(0, len(model))
        image.close()
        for sector in range(0, len(model), 512):
            content = bytes(now[sector : sector + 512])
            assert content in possible.get(sector, {kept[sector : sector + 512]}), sector
