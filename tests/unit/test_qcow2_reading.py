"""Reading qcow2 images: compressed clusters from any program, and several threads at once."""

from __future__ import annotations

import os
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.qcow2.compressed import CompressedClusters
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.structures import COMPRESSED, Compression
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, Access
from pyvm.block.open import Opener, open_image
from pyvm.block.options import Dialect

CLUSTER = 65536
ANYTHING = Access(NO_PERMISSIONS, ALL_PERMISSIONS)


def deflate(data: bytes, window_bits: int = -12) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits, 9)
    return packer.compress(data) + packer.flush()


def some_clusters(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(20000).translate(bytes(i % 16 for i in range(256))) * 4 for _ in range(count)]


@pytest.fixture
def packed_file(tmp_path: Path) -> Path:
    return tmp_path / "packed"


def clusters_of(path: Path, pieces: list[bytes], compression: int) -> tuple[CompressedClusters, list[int]]:
    """Return what reads `pieces`, which follow each other in the file, and their entries."""
    path.write_bytes(bytes(CLUSTER) + b"".join(pieces) + bytes(512))
    clusters = CompressedClusters(FileNode(str(path), read_only=True, access=ANYTHING), 16, compression)
    entries = []
    offset = CLUSTER
    for piece in pieces:
        entry = clusters.entry(offset, len(piece))
        assert entry is not None
        entries.append(entry)
        offset += len(piece)
    return clusters, entries


@pytest.mark.parametrize("window_bits", [-9, -12, -15])
def test_deflate_with_any_window(packed_file: Path, window_bits: int) -> None:
    data = [piece[:CLUSTER] for piece in some_clusters(40)]
    clusters, entries = clusters_of(packed_file, [deflate(piece, window_bits) for piece in data], Compression.ZLIB)
    assert list(clusters.read_all(entries)) == data
    assert list(clusters.read_all(entries[::-1])) == data[::-1]
    assert [clusters.read(entry) for entry in entries[:3] * 2] == data[:3] * 2


def test_zstd_with_and_without_its_size(packed_file: Path) -> None:
    data = [piece[:CLUSTER] for piece in some_clusters(6)]
    packers = [zstandard.ZstdCompressor(write_content_size=known) for known in (True, False)]
    pieces = [packers[index % 2].compress(piece) for index, piece in enumerate(data)]
    clusters, entries = clusters_of(packed_file, pieces, Compression.ZSTD)
    assert list(clusters.read_all(entries)) == data


@pytest.mark.parametrize("compression", [Compression.ZLIB, Compression.ZSTD])
def test_more_than_a_cluster_is_cut_off(packed_file: Path, compression: int) -> None:
    large = bytes(64 << 20)
    piece = deflate(large) if compression == Compression.ZLIB else zstandard.ZstdCompressor().compress(large)
    clusters, entries = clusters_of(packed_file, [piece[:CLUSTER]], compression)
    assert clusters.read(entries[0]) == bytes(CLUSTER)


@pytest.mark.parametrize("compression", [Compression.ZLIB, Compression.ZSTD])
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=deflate(b"short"))
@example(data=zstandard.ZstdCompressor().compress(b"short"))
# A frame that claims to hold 2^62 bytes.
@example(data=b"\x28\xb5\x2f\xfd\xc0\x00" + (1 << 62).to_bytes(8, "little"))
@settings(max_examples=60)
def test_broken_clusters_are_errors(tmp_path_factory: pytest.TempPathFactory, compression: int, data: bytes) -> None:
    path = tmp_path_factory.mktemp("broken") / "packed"
    clusters, _ = clusters_of(path, [data or b"\0"], compression)
    try:
        (cluster,) = clusters.read_all([COMPRESSED | CLUSTER])
    except OSError:
        return
    assert len(cluster) == CLUSTER


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_several_threads_read_one_image(tmp_path: Path, compression: str) -> None:
    path = str(tmp_path / "disk")
    size = 80 * CLUSTER
    create_image(path, "qcow2", size, {"compression_type": compression, "cluster_size": CLUSTER})
    node = open_image(path, format="qcow2")
    assert isinstance(node, Qcow2Node)
    expected = bytearray(size)
    for number, piece in enumerate(some_clusters(80, 2)):
        cluster = piece[:CLUSTER]
        if number % 4 == 3:
            continue
        expected[number * CLUSTER : (number + 1) * CLUSTER] = cluster
        if number % 4:
            node.write_compressed(number * CLUSTER, cluster)
        else:
            node.write(number * CLUSTER, cluster)
    assert not node.takes_threads
    node.close()
    node = open_image(path, format="qcow2", read_only=True)
    assert node.takes_threads
    chance = random.Random(3)
    ranges = [(start := chance.randrange(size), chance.randrange(1, size - start + 1)) for _ in range(120)]

    def is_right(part: tuple[int, int]) -> bool:
        start, length = part
        node.block_status(start, length)
        return node.read(start, length) == expected[start : start + length]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, ranges))
    node.close()


def test_the_host_copies_between_files(tmp_path: Path) -> None:
    data = os.urandom(3 * 4096)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(bytes(8 * 4096))
    source = FileNode(str(tmp_path / "from"), read_only=True)
    target = FileNode(str(tmp_path / "to"))
    done = 0
    while done < 2 * 4096:
        count = target.copy_range(source, 4096 + done, 2 * 4096 + done, 2 * 4096 - done)
        assert count > 0
        done += count
    assert target.copy_range(source, len(data), 0, 4096) == 0
    assert (tmp_path / "to").read_bytes() == bytes(2 * 4096) + data[4096:] + bytes(4 * 4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        source.copy_range(target, 0, 0, 4096)
    source.close()
    target.close()


def test_a_check_counts_the_first_cluster_of_a_data_file(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    create_image(path, "qcow2", 16 * CLUSTER, {"data_file": str(tmp_path / "data")})
    node = open_image(path, format="qcow2")
    assert isinstance(node, Qcow2Node)
    node.write(0, b"a" * CLUSTER)
    node.write(4 * CLUSTER, b"b" * CLUSTER)
    assert node.check().allocated_clusters == 2
    node.close()


def test_options_without_driver_and_file() -> None:
    with pytest.raises(BlockError, match=r"^Must specify either driver or file$"):
        Opener(BlockGraph(), Dialect.DRIVE).open(None, {"read-only": True})
    with pytest.raises(BlockError, match=r'^A block device must be specified for "file"$'):
        Opener(BlockGraph(), Dialect.DRIVE).open(None, {"driver": "qcow2"})
