"""Broken qcow2 images: metadata of real images with random changes is opened, read, written and checked.

Nothing but the documented errors may come out, in bounded time and memory, and whoever refuses an image changes
nothing in it.  PYVM_FUZZ_IMAGES says how many images, PYVM_FUZZ_SEED with which one to start.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyvm.block.create import create_image
from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2 import bitmaps
from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
from pyvm.block.errors import BlockError
from pyvm.block.open import open_image
from pyvm.migration.page_scan import touched

IMAGES = int(os.environ.get("PYVM_FUZZ_IMAGES", "150"))
SEED = int(os.environ.get("PYVM_FUZZ_SEED", "1"))
SIZE = 2 << 20
LONGEST = 60.0
"""Seconds that one image may take, on a slow machine."""
MOST_MEMORY = 1 << 30

SHAPES = [
    {"cluster_size": 4096},
    {"cluster_size": 512, "refcount_bits": 1},
    {"cluster_size": 4096, "compat": "0.10"},
    {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 1024, "refcount_bits": 64, "lazy_refcounts": True},
    {"cluster_size": 8192, "compression_type": "zstd"},
    {"cluster_size": 65536, "refcount_bits": 8},
]


def most_memory() -> int:
    """Return the most bytes that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def silent(text: str) -> None:
    pass


def real_image(path: Path, shape: dict[str, int | str | bool]) -> bytes:
    """Return an image that has some of everything."""
    path.unlink(missing_ok=True)
    create_image(str(path), "qcow2", SIZE, shape)
    node = open_image(str(path), unmap=True)
    assert isinstance(node, Qcow2Node)
    chance = random.Random(repr(shape))
    for _ in range(10):
        node.write(chance.randrange(SIZE // 512 - 64) * 512, chance.randbytes(64 * 512))
    cluster = node.cluster_size
    for number in (3, 9, 10):
        node.write_compressed(number * cluster, bytes([number]) * cluster)
    node.write_zeroes(SIZE // 2, 4 * cluster, False)
    if shape.get("refcount_bits") != 1:
        node.create_snapshot("first")
        node.write(0, b"x" * cluster)
        node.create_snapshot("second")
        node.write(cluster, b"y" * cluster)
    if shape.get("compat") != "0.10":
        bitmaps.add(node.disk, "bits", 12, content=b"\x55" * (SIZE >> 15))
    node.close()
    return path.read_bytes()


def metadata(image: bytes) -> list[tuple[int, int]]:
    """Return where the tables of a good image are."""
    words = struct.unpack_from(">4sIQIIQIIQQIIQ", image)
    cluster = 1 << words[4]
    l1_size, l1, refcounts, clusters, snapshots = words[7], words[8], words[9], words[10], words[12]
    found = [(0, 112), (112, 512), (l1, l1_size * 8), (refcounts, clusters * 64), (refcounts, clusters * cluster)]
    if snapshots:
        found += [(snapshots, 200)] * 2
    for start, length in ((l1, l1_size * 8), (refcounts, clusters * cluster)):
        for at in range(start, start + length, 8):
            offset = int.from_bytes(image[at : at + 8], "big") & 0x00FF_FFFF_FFFF_FE00
            if offset and offset + cluster <= len(image):
                found += [(offset, cluster), (offset, min(cluster, 256))]
    return found


NUMBERS = [
    0,
    1,
    2,
    3,
    511,
    512,
    513,
    1 << 12,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 56,
    1 << 61,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
]


def mutate(image: bytes, chance: random.Random) -> bytes:
    data = bytearray(image)
    places = metadata(image)
    for _ in range(chance.choice([1, 1, 2, 3, 8, 40])):
        start, length = chance.choice(places)
        at = start + chance.randrange(max(length, 1))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            at &= -8
            value = chance.choice(NUMBERS) if chance.randrange(2) else chance.randrange(len(image) >> 9) << 9
            value |= chance.choice([0, 0, 1 << 63, 1 << 62])
            data[at : at + 8] = (value & (1 << 64) - 1).to_bytes(8, "big")
        elif kind == 2:
            at &= -4
            data[at : at + 4] = (chance.choice(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "big")
        elif kind == 3:
            other, size = chance.choice(places)
            count = min(size, length, 64)
            data[start : start + count] = image[other : other + count]
        elif kind == 4:
            there = bytes(data[start : start + length])
            words = np.frombuffer(there[: len(there) // 8 * 8], ">u8").copy()
            if len(words):
                noise = np.frombuffer(chance.randbytes(len(words) * 8), ">u8")
                mask = np.frombuffer(chance.randbytes(len(words)), np.uint8) < 20
                words[mask] ^= noise[mask]
                data[start : start + len(words) * 8] = words.tobytes()
        elif chance.randrange(4) == 0:
            del data[chance.randrange(len(data)) :]
            if len(data) < 512:
                data = bytearray(image[:512])
    return bytes(data)


def attempts(node: Qcow2Node, chance: random.Random, read_only: bool) -> Iterator[Callable[[], object]]:
    """Yield what can be done with an image."""
    size = node.size
    for _ in range(4):
        offset = chance.randrange(max(min(size, SIZE) // 512, 1)) * 512
        length = max(min(chance.randrange(1, 200) * 512, size - offset), 0)
        yield lambda: node.read(offset, length)  # noqa: B023
        yield lambda: node.block_status(offset, length) if length else None  # noqa: B023
        if read_only:
            continue
        yield lambda: node.write(offset, b"w" * length)  # noqa: B023
        yield lambda: node.write_zeroes(offset, length, True)  # noqa: B023
        yield lambda: node.discard(offset, length)  # noqa: B023
        yield node.flush
    if read_only:
        yield lambda: node.open_snapshot("first").read(0, 512)
        return
    yield lambda: node.write_compressed(0, b"c" * min(node.cluster_size, size))
    for it in list(node.disk.bitmaps)[:3]:
        yield lambda: bitmaps.load(node.disk, it)  # noqa: B023
    yield lambda: node.open_snapshot("second").read(0, 512)
    yield lambda: node.create_snapshot("third")
    yield lambda: node.apply_snapshot("first")
    yield lambda: node.delete_snapshot(name="second")
    yield lambda: node.truncate(SIZE * 2)
    yield lambda: node.truncate(SIZE // 2)
    yield lambda: node.change_backing("somewhere", "raw")
    yield lambda: node.amend({"refcount_bits": 16})
    yield node.make_empty


def contents(path: Path) -> tuple[int, str]:
    """Return how long a file is, and a digest of its data: a repair may have let it grow by a large hole."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in touched(file.fileno(), size):
            digest.update(b"%d:" % start + os.pread(file.fileno(), end - start, start))
        return size, digest.hexdigest()


def use(path: Path, chance: random.Random, read_only: bool) -> None:
    before = contents(path)
    with path.open("rb") as file:
        header = file.read(112)
    try:
        node = open_image(str(path), format="qcow2", read_only=read_only, unmap=True, warn=silent)
    except BlockError as refusal:
        text = str(refusal)
        node = None
    if node is None:
        assert text
        assert "\n" not in text
        if not header[79] & 1:
            # Only a repair of a dirty image may have changed something.
            assert contents(path) == before
        return
    assert isinstance(node, Qcow2Node)
    for attempt in attempts(node, chance, read_only):
        try:
            attempt()
        except (OSError, BlockError):
            continue
    node.close()


def check(path: Path, repair: set[str]) -> None:
    try:
        file = FileNode(str(path), read_only=not repair, unmap=True)
    except BlockError:
        return
    try:
        node = Qcow2Node(file, read_header(file), warn=silent, for_check=True)
        node.check(repair)
    except (OSError, BlockError):
        pass
    finally:
        file.close()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda it: ",".join(f"{key}={value}" for key, value in it.items()))
def test_broken_images(tmp_path: Path, shape: dict[str, int | str | bool]) -> None:
    image = real_image(tmp_path / "good", shape)
    path = tmp_path / "bad"
    before = most_memory()
    for number in range(max(IMAGES // len(SHAPES), 1)):
        chance = random.Random(f"{shape}{SEED}{number}")
        data = mutate(image, chance)
        started = time.monotonic()
        for action in ("look", "use", "check", "repair"):
            path.write_bytes(data)
            if action in ("look", "use"):
                use(path, chance, action == "look")
            else:
                check(path, set() if action == "check" else {"leaks", "errors"})
                if action == "repair":
                    use(path, chance, False)
        assert time.monotonic() - started < LONGEST, number
    assert most_memory() - before < MOST_MEMORY


def test_absurd_sizes(tmp_path: Path) -> None:
    """Every L1 entry names the same table, every size is as large as it can be."""
    path = tmp_path / "bad"
    image = bytearray(real_image(path, {"cluster_size": 65536}))
    l2 = image[int.from_bytes(image[40:48], "big") :][:8]
    start = -(-len(image) // 65536) * 65536
    image.extend(bytes(start - len(image)))
    image += l2 * (4 << 20)
    image[24:32] = ((4 << 20) * 8192 * 65536).to_bytes(8, "big")
    image[36:40] = (4 << 20).to_bytes(4, "big")
    image[40:48] = start.to_bytes(8, "big")
    path.write_bytes(image)
    started = time.monotonic()
    check(path, set())
    node = open_image(str(path), format="qcow2", read_only=True, warn=silent)
    assert node.size == (4 << 20) * 8192 * 65536
    assert node.read(node.size - 512, 512) is not None
    node.close()
    with pytest.raises(OSError, match="metadata"):
        open_image(str(path), format="qcow2", warn=silent).write(0, b"x" * 512)
    assert time.monotonic() - started < LONGEST
