"""The qcow2 driver on images made by hand: what is accepted, what is refused, and what hostile images lead to."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.tables import decode_entries, encode_entries
from pyvm.block.errors import BlockError
from pyvm.block.open import open_image
from tests.unit.qcow2_images import empty_image, write_image

SIZE = 1 << 20
CLUSTER = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.qcow2"


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64])
def test_entries_of_every_width(width: int) -> None:
    data = os.urandom(512)
    entries = decode_entries(data, width)
    assert len(entries) == 512 * 8 // width
    assert encode_entries(entries, width) == data
    expected = data[0] & ((1 << width) - 1) if width < 8 else int.from_bytes(data[: width // 8], "big")
    assert entries[0] == expected


@pytest.mark.parametrize(("version", "order"), [(2, 4), *((3, order) for order in range(7))])
def test_an_empty_image_takes_data_and_keeps_it(path: Path, version: int, order: int) -> None:
    write_image(path, empty_image(version=version, refcount_order=order))
    node = open_image(str(path))
    assert node.size == SIZE
    assert node.read(0, SIZE) == bytes(SIZE)
    chance = random.Random(order)
    model = bytearray(SIZE)
    for _ in range(60):
        offset = chance.randrange(SIZE // 512) * 512
        data = chance.randbytes(min(chance.randrange(1, 100) * 512, SIZE - offset))
        node.write(offset, data)
        model[offset : offset + len(data)] = data
    assert node.read(0, SIZE) == model
    node.close()
    node = open_image(str(path), read_only=True)
    assert node.read(0, SIZE) == model
    with pytest.raises(OSError, match="not permitted"):
        node.write(0, bytes(512))
    node.close()


def test_what_is_not_on_the_disk_is_an_error(path: Path) -> None:
    write_image(path, empty_image())
    node = open_image(str(path), unmap=True)
    for offset, length in ((SIZE, 512), (SIZE - 512, 1024), (-512, 512), (1 << 62, 512)):
        for action in (
            lambda: node.read(offset, length),  # noqa: B023
            lambda: node.write(offset, bytes(length)),  # noqa: B023
            lambda: node.discard(offset, length),  # noqa: B023
            lambda: node.write_zeroes(offset, length, True),  # noqa: B023
        ):
            with pytest.raises(OSError, match="Input/output"):
                action()
    node.close()


def test_discarded_clusters_are_used_again_and_given_back_to_the_host(path: Path) -> None:
    write_image(path, empty_image())
    node = open_image(str(path), unmap=True)
    node.write(0, os.urandom(64 * CLUSTER))
    node.flush()
    used, length = path.stat().st_blocks, path.stat().st_size
    node.discard(0, 64 * CLUSTER)
    node.flush()
    assert path.stat().st_blocks <= used - 60 * CLUSTER // 512
    node.write(SIZE // 2, os.urandom(64 * CLUSTER))
    node.close()
    assert path.stat().st_size == length


def test_without_unmap_a_discard_changes_nothing(path: Path) -> None:
    write_image(path, empty_image())
    node = open_image(str(path))
    node.write(0, b"x" * CLUSTER)
    node.discard(0, CLUSTER)
    assert node.read(0, CLUSTER) == b"x" * CLUSTER
    node.close()


def test_a_backing_file_that_is_shorter(tmp_path: Path, path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * 10240)
    extension = bytes.fromhex("e2792aca00000003") + b"raw\0\0\0\0\0"
    write_image(path, empty_image(backing="base.raw", extensions=extension))
    node = open_image(str(path), unmap=True)
    assert [(child.role.value, child.node.driver) for child in node.children] == [
        ("storage", "file"),
        ("backing", "raw"),
    ]
    assert node.read(0, 20480) == b"b" * 10240 + bytes(10240)
    node.write(512, b"o" * 512)
    node.discard(4096, 4096)
    node.write(9728, b"p" * 1024)
    expected = b"b" * 512 + b"o" * 512 + b"b" * 3072 + bytes(4096) + b"b" * 1536 + b"p" * 1024 + bytes(512)
    assert node.read(0, 11264) == expected
    node.close()
    assert (tmp_path / "base.raw").read_bytes() == b"b" * 10240


def test_a_guessed_format_of_a_backing_file_is_not_warned_about(tmp_path: Path, path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * 4096)
    write_image(path, empty_image(backing="base"))
    said: list[str] = []
    open_image(str(path), warn=said.append).close()
    assert not said


def compressed_image(kind: int, data: bytes, *, version: int = 3) -> bytearray:
    """Return an image whose first cluster is this compressed data."""
    incompatible = 8 if kind else 0
    image = empty_image(version=version, incompatible=incompatible)
    if kind:
        image[100:104] = (112).to_bytes(4, "big")
        image[104:112] = bytes([kind]) + bytes(7)
    sectors = -(-len(data) // 512)
    image += bytes(CLUSTER) + data.ljust(sectors * 512, b"\0")
    image[3 * CLUSTER : 3 * CLUSTER + 8] = (1 << 63 | 4 * CLUSTER).to_bytes(8, "big")
    entry = 1 << 62 | (sectors - 1) << (62 - 4) | 5 * CLUSTER
    image[4 * CLUSTER : 4 * CLUSTER + 8] = entry.to_bytes(8, "big")
    for number in (4, 5):
        image[2 * CLUSTER + 2 * number : 2 * CLUSTER + 2 * number + 2] = b"\0\1"
    return image


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
    return deflater.compress(data) + deflater.flush()


@pytest.mark.parametrize("kind", [0, 1])
def test_compressed_clusters(path: Path, kind: int) -> None:
    content = b"0123456789abcdef" * 256
    data = zstandard.ZstdCompressor().compress(content) if kind else deflate(content)
    write_image(path, compressed_image(kind, data))
    node = open_image(str(path))
    assert node.read(0, 2 * CLUSTER) == content + bytes(CLUSTER)
    node.write(512, b"x" * 512)
    node.close()
    node = open_image(str(path))
    assert node.read(0, CLUSTER) == content[:512] + b"x" * 512 + content[1024:]
    node.close()


@pytest.mark.parametrize("kind", [0, 1])
def test_broken_compressed_clusters_are_read_errors(path: Path, kind: int) -> None:
    short = zstandard.ZstdCompressor().compress(b"x") if kind else deflate(b"x")
    for data in (b"\xff" * 512, bytes(512), short):
        write_image(path, compressed_image(kind, data))
        node = open_image(str(path), read_only=True)
        with pytest.raises(OSError, match="Input/output"):
            node.read(0, 512)
        node.close()


def test_a_compressed_cluster_that_is_too_long_fills_one_cluster(path: Path) -> None:
    write_image(path, compressed_image(0, deflate(bytes(8 << 20))))
    node = open_image(str(path), read_only=True)
    assert node.read(0, CLUSTER) == bytes(CLUSTER)
    node.close()


def test_a_dirty_image_is_repaired_when_it_is_opened_for_writing(path: Path) -> None:
    image = empty_image(incompatible=1)
    # The L1 table has no refcount.
    image[2 * CLUSTER + 6 : 2 * CLUSTER + 8] = b"\0\0"
    write_image(path, image)
    open_image(str(path), read_only=True).close()
    assert path.read_bytes() == image
    node = open_image(str(path))
    node.write(0, b"x" * CLUSTER)
    node.close()
    now = path.read_bytes()
    assert now[72:80] == bytes(8)
    table = int.from_bytes(now[48:56], "big")
    assert table != CLUSTER
    block = int.from_bytes(now[table : table + 8], "big")
    assert now[block + 6 : block + 8] == b"\0\1"


def test_a_corrupt_image_is_read_only(path: Path) -> None:
    image = empty_image(incompatible=2)
    write_image(path, image)
    with pytest.raises(BlockError, match=r"^qcow2: Image is corrupt; cannot be opened read/write$"):
        open_image(str(path))
    node = open_image(str(path), read_only=True)
    assert node.read(0, 512) == bytes(512)
    node.close()
    assert path.read_bytes() == image


def test_encryption_and_other_formats_are_refused(path: Path) -> None:
    image = empty_image()
    image[32:36] = (2).to_bytes(4, "big")
    write_image(path, image)
    with pytest.raises(BlockError, match=r"^Missing CRYPTO header for crypt method 2$"):
        open_image(str(path))
    other = path.with_name("x.dmg")
    write_image(other, bytes(512))
    with pytest.raises(BlockError, match=r"format 'dmg' is not supported by pyvm yet \(only raw, "):
        open_image(str(other))
    write_image(path, bytes(512))
    with pytest.raises(BlockError, match=r"^Image is not in qcow2 format$"):
        open_image(str(path), format="qcow2")


@pytest.mark.parametrize(
    "entry", [4 * CLUSTER + 512, 1 << 63 | 0, 1 << 63 | CLUSTER, 1 << 63 | 3 * CLUSTER, 1 << 63 | 2 * CLUSTER]
)
def test_writes_to_metadata_mark_the_image_as_corrupt(path: Path, entry: int) -> None:
    """An L2 entry that is unaligned, or names the refcount table, the refcount block or the L1 table."""
    image = empty_image() + bytearray(CLUSTER)
    image[3 * CLUSTER : 3 * CLUSTER + 8] = (1 << 63 | 4 * CLUSTER).to_bytes(8, "big")
    image[2 * CLUSTER + 8 : 2 * CLUSTER + 10] = b"\0\1"
    image[4 * CLUSTER : 4 * CLUSTER + 8] = entry.to_bytes(8, "big")
    write_image(path, image)
    said: list[str] = []
    node = open_image(str(path), warn=said.append)
    if entry == 1 << 63:
        # Offset 0 is no cluster; the write gets one.
        node.write(0, b"x" * 512)
        node.close()
        assert not said
        return
    for _ in range(2):
        with pytest.raises(OSError, match=r"metadata|unaligned|Input/output"):
            node.write(0, b"x" * 512)
    with pytest.raises(OSError, match="Input/output"):
        node.flush()
    node.close()
    assert len(said) == 1
    assert said[0].startswith("qcow2: Marking image as corrupt: ")
    assert path.read_bytes()[72:80] == (2).to_bytes(8, "big")
    assert path.read_bytes()[CLUSTER:] == image[CLUSTER:]
    with pytest.raises(BlockError, match="cannot be opened read/write"):
        open_image(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({48: 3 * CLUSTER}, "active L1 table overlaps with refcount table"),
        ({CLUSTER + 8: 2 * CLUSTER}, "refcount block overlaps with refcount block"),
        ({CLUSTER + 8: 3 * CLUSTER}, "refcount block overlaps with active L1 table"),
        ({3 * CLUSTER: 1 << 63 | CLUSTER}, "active L2 table overlaps with refcount table"),
        ({3 * CLUSTER: 1 << 63 | 2 * CLUSTER}, "active L2 table overlaps with refcount block"),
        ({3 * CLUSTER: 1 << 63 | 512}, "active L2 table offset 0x200 unaligned"),
    ],
)
def test_tables_that_overlap_are_not_written_to(path: Path, change: dict[int, int], message: str) -> None:
    """Such an image can be read; the first write marks it as corrupt, and changes nothing else."""
    image = empty_image()
    for offset, value in change.items():
        image[offset : offset + 8] = value.to_bytes(8, "big")
    write_image(path, image)
    said: list[str] = []
    events: list[dict[str, object]] = []
    node = open_image(str(path), warn=said.append)
    assert isinstance(node, Qcow2Node)
    node.on_corrupted = events.append
    for _ in range(2):
        with pytest.raises(OSError, match=r"metadata|unaligned|Input/output"):
            node.write(0, b"x" * 512)
    node.close()
    assert len(said) == len(events) == 1
    assert message in said[0]
    assert message in str(events[0]["msg"])
    assert events[0]["fatal"] is True
    assert events[0]["node-name"] == "disk"
    image[72:80] = (2).to_bytes(8, "big")
    assert path.read_bytes() == image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({40: 0}, "Active L1 table offset invalid"),
        ({40: 9 * CLUSTER}, "Could not read L1 table: it is behind the end of the file"),
        ({48: 9 * CLUSTER}, "Could not read refcount table: it is behind the end of the file"),
    ],
)
def test_tables_that_are_not_there(path: Path, change: dict[int, int], message: str) -> None:
    image = empty_image()
    for offset, value in change.items():
        image[offset : offset + 8] = value.to_bytes(8, "big")
    write_image(path, image)
    with pytest.raises(BlockError, match=message):
        open_image(str(path))
    assert path.read_bytes() == image


def test_refcounts_that_would_give_metadata_away(path: Path) -> None:
    image = empty_image()
    image[2 * CLUSTER + 6 : 2 * CLUSTER + 8] = b"\0\0"
    write_image(path, image)
    node = open_image(str(path), warn=lambda text: None)
    with pytest.raises(OSError, match="overlaps with active L1 table"):
        node.write(0, b"x" * 512)
    node.close()
    assert path.read_bytes()[3 * CLUSTER :] == image[3 * CLUSTER :]


def test_a_full_host_disk_leaks_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(path, empty_image())
    node = open_image(str(path))
    node.write(0, b"a" * CLUSTER)
    node.flush()
    real = os.pwritev

    def full(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= 6 * CLUSTER:
            raise OSError(28, "No space left on device")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        node.write(CLUSTER, b"b" * CLUSTER)
    assert node.read(0, 2 * CLUSTER) == b"a" * CLUSTER + bytes(CLUSTER)
    node.flush()
    monkeypatch.undo()
    node.write(CLUSTER, b"c" * CLUSTER)
    node.close()
    assert path.stat().st_size == 7 * CLUSTER
    node = open_image(str(path), read_only=True)
    assert node.read(0, 2 * CLUSTER) == b"a" * CLUSTER + b"c" * CLUSTER
    node.close()


def populated_image(path: Path, **options: int) -> bytes:
    write_image(path, empty_image(**options))
    node = open_image(str(path), unmap=True)
    for cluster in (0, 3, 100, 200, 255):
        node.write(cluster * CLUSTER + 512, bytes([cluster]) * 2 * CLUSTER if cluster < 255 else b"e" * 512)
    node.write_zeroes(300 * 512, 100 * 512, False)
    node.close()
    return path.read_bytes()


NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from([*(1 << bit for bit in range(64)), *range(0, 65536, 4096)])
HOSTILE = st.lists(
    st.tuples(st.integers(0, 1023), st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 7]), NUMBERS), min_size=1, max_size=6
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(HOSTILE, st.sampled_from([{}, {"version": 2}, {"incompatible": 16, "cluster_bits": 14}]), st.integers(0, 40000))
def test_hostile_images_raise_only_what_is_documented(
    tmp_path: Path, changes: list[tuple[int, int, int]], options: dict[str, int], cut: int
) -> None:
    path = tmp_path / "hostile.qcow2"
    path.unlink(missing_ok=True)
    image = bytearray(populated_image(path, **options))
    cluster = 1 << options.get("cluster_bits", 12)
    for word, table, value in changes:
        # Tables are full of zeros behind their first words.
        offset = table * cluster + (word % 16 if table != 0 else word % 20) * 8
        if offset + 8 <= len(image):
            image[offset : offset + 8] = value.to_bytes(8, "big")
    if cut > 30000:
        del image[cut:]
    path.write_bytes(image)
    messages: list[str] = []
    for read_only in (True, False):
        try:
            node = open_image(str(path), format="qcow2", read_only=read_only, unmap=True, warn=lambda text: None)
        except BlockError as error:
            messages.append(str(error))
            continue
        end = min(node.size, SIZE)
        for offset in (0, 65536, 300 * 512, end - 4096):
            length = min(4096, node.size - offset) if offset >= 0 else 0
            if length <= 0:
                continue
            try:
                node.read(offset, length)
                if not read_only:
                    node.write(offset, b"w" * length)
                    assert node.read(offset, length) == b"w" * length
                    node.write_zeroes(offset, length, True)
                    node.discard(offset, length)
                    node.flush()
            except OSError:
                continue
        node.close()
    assert all(message and "\n" not in message for message in messages)
