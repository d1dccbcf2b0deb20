"""Images that QEMU's tools make and check: the same random operations on the node and on bytes in memory."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.open import open_image

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]

SIZE = 3 << 20


def tool(*command: str | Path, status: int = 0) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def create(path: Path, options: str = "", size: int = SIZE, backing: Path | None = None) -> Path:
    extra = ["-b", backing.name, "-F", "raw" if backing.suffix == ".raw" else "qcow2"] if backing else []
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options or "compat=1.1", *extra, path, str(size))
    return path


def some_data(chance: random.Random, length: int, hole: int = 65536) -> bytearray:
    """Return data with holes, some of it easy to compress."""
    data = bytearray(length)
    for start in range(0, length, hole):
        kind = chance.randrange(3)
        piece = chance.randbytes(hole) if kind == 0 else chance.randbytes(16) * (hole // 16) if kind == 1 else b""
        data[start : start + len(piece)] = piece
    return data[:length]


def exercise(node: Node, model: bytearray, chance: random.Random, steps: int) -> None:
    """Do random things to the node and the model, and compare what is read."""
    for _ in range(steps):
        action = chance.choice(["write"] * 4 + ["zero", "zero and unmap", "discard", "read", "read", "flush"])
        offset = chance.randrange(len(model) // 512) * 512
        length = chance.choice([512, 4096, 65536, chance.randrange(1, 600) * 512])
        length = min(length, len(model) - offset)
        end = offset + length
        if action == "write":
            data = chance.randbytes(length)
            cut = chance.randrange(length)
            node.writev(offset, [memoryview(data)[:cut], memoryview(data)[cut:]])
            model[offset:end] = data
        elif action == "discard":
            node.discard(offset, length)
            now = node.read(offset, length)
            zeros = bytes(512)
            for start in range(0, length, 512):
                sector = now[start : start + 512]
                assert sector in (zeros, model[offset + start : offset + start + 512])
            model[offset:end] = now
        elif action == "read":
            parts = [memoryview(bytearray(length // 2)), memoryview(bytearray(length - length // 2))]
            node.readv(offset, parts)
            assert b"".join(parts) == model[offset:end]
        elif action == "flush":
            node.flush()
        else:
            node.write_zeroes(offset, length, action != "zero")
            model[offset:end] = bytes(length)
    assert node.read(0, len(model)) == model


def verify(path: Path, model: bytes | bytearray) -> None:
    """Let QEMU check the image, and compare its contents."""
    tool("qemu-img", "check", "-q", path)
    reference = path.with_name("reference.raw")
    reference.write_bytes(model)
    tool("qemu-img", "compare", "-q", "-F", "raw", path, reference)


SHAPES = [
    "compat=1.1",
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=1024,refcount_bits=2",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=8192,refcount_bits=4",
    "cluster_size=2M,refcount_bits=8",
    "cluster_size=256k,refcount_bits=32",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=2M,extended_l2=on",
    "lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=falloc,extended_l2=on",
    "compression_type=zstd",
]


@pytest.mark.parametrize("options", SHAPES)
def test_every_shape_of_image(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    for discard in (True, False):
        path = create(tmp_path / "disk.qcow2", options)
        model = bytearray(SIZE)
        for _ in range(2):
            node = open_image(str(path), unmap=discard)
            exercise(node, model, chance, 50)
            node.close()
        verify(path, model)


@pytest.mark.parametrize("options", ["", ",data_file_raw=on", ",extended_l2=on", ",cluster_size=4096"])
def test_data_in_a_file_of_its_own(tmp_path: Path, options: str) -> None:
    data = tmp_path / "data.raw"
    path = create(tmp_path / "disk.qcow2", f"data_file={data}{options}")
    chance = random.Random(options)
    model = bytearray(SIZE)
    node = open_image(str(path), unmap=True)
    exercise(node, model, chance, 80)
    node.close()
    verify(path, model)
    if "raw" in options:
        assert data.read_bytes() == model


@pytest.mark.parametrize("options", ["cluster_size=4096", "extended_l2=on", "compat=0.10", "cluster_size=2M"])
@pytest.mark.parametrize("sizes", [(SIZE, SIZE), (SIZE, SIZE // 2 + 512), (SIZE // 3, SIZE * 2 // 3)])
def test_backing_chain(tmp_path: Path, options: str, sizes: tuple[int, int]) -> None:
    """Two layers of other sizes below; the names in the images are relative, the working directory is elsewhere."""
    chance = random.Random(f"{options}{sizes}")
    lower, upper = sizes
    base = some_data(chance, lower)
    (tmp_path / "base.raw").write_bytes(base)
    middle = create(tmp_path / "middle.qcow2", "cluster_size=8192", upper // 512 * 512, tmp_path / "base.raw")
    model = bytearray(base[: upper // 512 * 512].ljust(upper // 512 * 512, b"\0"))
    node = open_image(str(middle), unmap=True)
    exercise(node, model, chance, 40)
    node.close()
    verify(middle, model)
    model = model.ljust(SIZE, b"\0")
    top = create(tmp_path / "top.qcow2", options, SIZE, middle)
    before = middle.read_bytes()
    node = open_image(str(top), unmap=True)
    exercise(node, model, chance, 60)
    node.close()
    verify(top, model)
    assert middle.read_bytes() == before


@pytest.mark.parametrize(
    "options", ["compression_type=zlib", "compression_type=zstd", "compat=0.10", "cluster_size=512", "extended_l2=on"]
)
def test_compressed_clusters(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    model = some_data(chance, SIZE, 8192)
    source, path = tmp_path / "source.raw", tmp_path / "disk.qcow2"
    source.write_bytes(model)
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, path)
    node = open_image(str(path), read_only=True)
    assert node.read(0, SIZE) == model
    node.close()
    node = open_image(str(path), unmap=True)
    exercise(node, model, chance, 60)
    node.close()
    verify(path, model)


@pytest.mark.parametrize("options", ["cluster_size=4096", "extended_l2=on", "compat=0.10", "cluster_size=512"])
def test_internal_snapshots_stay_as_they_are(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    path = create(tmp_path / "disk.qcow2", options)
    model = bytearray(SIZE)
    kept = {}
    for name in ("first", "second"):
        node = open_image(str(path), unmap=True)
        exercise(node, model, chance, 40)
        node.close()
        verify(path, model)
        tool("qemu-img", "snapshot", "-c", name, path)
        kept[name] = bytes(model)
    node = open_image(str(path), unmap=True)
    exercise(node, model, chance, 60)
    node.close()
    verify(path, model)
    for name, content in kept.items():
        tool("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", path, tmp_path / "old.raw")
        assert (tmp_path / "old.raw").read_bytes() == content
    tool("qemu-img", "snapshot", "-d", "first", path)
    verify(path, model)


@pytest.mark.parametrize("options", ["cluster_size=4096", "extended_l2=on", "compat=0.10", "lazy_refcounts=on"])
def test_images_that_qemu_io_writes(tmp_path: Path, options: str) -> None:
    chance = random.Random(options)
    path = create(tmp_path / "disk.qcow2", options)
    model = bytearray(SIZE)
    for turn in range(2):
        commands = []
        # qemu-io compresses only what is not allocated yet, and never with subclusters.
        fresh = [] if turn or "extended" in options else chance.sample(range(SIZE >> 16), 12)
        for cluster in fresh:
            commands.append(f"write -c -P {cluster} {cluster << 16} 65536")
            model[cluster << 16 : (cluster + 1) << 16] = bytes([cluster]) * 65536
        for _ in range(15):
            offset = chance.randrange(SIZE // 512 - 300) * 512
            length = chance.randrange(1, 300) * 512
            pattern = chance.choice([0, chance.randrange(1, 256)])
            commands.append(f"write {f'-P {pattern}' if pattern else '-z'} {offset} {length}")
            model[offset : offset + length] = bytes([pattern]) * length
        tool("qemu-io", *(part for command in commands for part in ("-c", command)), path)
        node = open_image(str(path), unmap=True)
        exercise(node, model, chance, 25)
        node.close()
        verify(path, model)


def test_the_refcount_table_grows(tmp_path: Path) -> None:
    """Clusters of 512 bytes with wide counts: the table's first cluster covers 2 MiB."""
    path = create(tmp_path / "disk.qcow2", "cluster_size=512,refcount_bits=64", 64 << 20)
    node = open_image(str(path))
    model = bytearray(64 << 20)
    chance = random.Random(5)
    for start in range(0, 12 << 20, 1 << 20):
        data = chance.randbytes(1 << 20)
        node.write(start * 5, data)
        model[start * 5 : start * 5 + len(data)] = data
    node.close()
    verify(path, model)


def test_bitmaps_are_kept_and_said_to_be_out_of_date(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2")
    tool("qemu-img", "bitmap", "--add", path, "follows")
    tool("qemu-img", "bitmap", "--add", "--disable", path, "stays")
    said: list[str] = []
    node = open_image(str(path), warn=said.append)
    assert not said
    node.write(0, b"x" * 4096)
    node.close()
    assert [line.rpartition(": ")[2] for line in said] == ["'follows'"]
    model = bytearray(SIZE)
    model[:4096] = b"x" * 4096
    verify(path, model)
    info = tool("qemu-img", "info", path)
    assert info.count("in-use") == 1
    assert info.index("in-use") < info.index("follows") < info.index("stays")


def damage(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        image[offset : offset + len(data)] = data

    return change


HEADERS = {
    "version": damage(4, b"\0\0\0\4"),
    "cluster size": damage(20, b"\0\0\0\7"),
    "size": damage(24, b"\x7f" * 8),
    "L1 too small": damage(36, b"\0\0\0\0"),
    "L1 too large": damage(36, b"\x7f\0\0\0"),
    "L1 unaligned": damage(40, b"\0\0\0\0\0\0\1\1"),
    "no refcount table": damage(56, b"\0\0\0\0"),
    "refcount table too large": damage(56, b"\x7f\0\0\0"),
    "refcount table unaligned": damage(48, b"\0\0\0\0\0\0\1\1"),
    "too many snapshots": damage(60, b"\x7f\0\0\0"),
    "named feature": damage(72, b"\0\0\0\0\0\0\0\x60"),
    "several features": damage(72, b"\x80\0\0\0\0\0\0\x20"),
    "corrupt": damage(72, b"\0\0\0\0\0\0\0\2"),
    "refcount width": damage(96, b"\0\0\0\7"),
    "short header": damage(100, b"\0\0\0\x20"),
    "long header": damage(100, b"\1\0\0\0"),
    "compression type": damage(104, b"\7"),
    "compression type without its bit": damage(104, b"\1"),
    "compression bit without a type": damage(72, b"\0\0\0\0\0\0\0\x08"),
    "backing offset": damage(8, b"\0\0\0\0\x7f\0\0\0"),
    "backing name too long": damage(8, b"\0\0\0\0\0\0\2\0\0\0\x7f\0"),
    "extension too large": damage(116, b"\x7f\0\0\0"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_broken_headers_are_named_as_qemu_names_them(tmp_path: Path, case: str) -> None:
    path = create(tmp_path / "disk.qcow2")
    image = bytearray(path.read_bytes())
    HEADERS[case](image)
    path.write_bytes(image)
    theirs = tool("qemu-io", "-c", "read 0 512", path, status=1).strip().splitlines()[-1]
    with pytest.raises(BlockError) as error:
        open_image(str(path), format="qcow2")
    assert theirs == f"qemu-io: can't open device {path}: {error.value}"
    assert path.read_bytes() == image


def test_unknown_features_are_refused_kept_or_cleared(tmp_path: Path) -> None:
    """An unknown compatible bit stays, an unknown autoclear bit goes, unknown header extensions stay."""
    path = create(tmp_path / "disk.qcow2")
    image = bytearray(path.read_bytes())
    image[80:88] = (1 << 40).to_bytes(8, "big")
    image[88:96] = (1 << 41).to_bytes(8, "big")
    end = 112 + 8 + int.from_bytes(image[116:120], "big")
    image[end : end + 16] = b"\x12\x34\x56\x78\0\0\0\5hello\0\0\0"
    path.write_bytes(image)
    node = open_image(str(path), read_only=True)
    node.close()
    assert path.read_bytes() == image
    node = open_image(str(path))
    node.write(0, b"x" * 512)
    node.close()
    now = path.read_bytes()
    image[88:96] = bytes(8)
    assert now[: 1 << 16] == image[: 1 << 16]
    tool("qemu-img", "check", "-q", path)


def test_chains_that_cannot_be(tmp_path: Path) -> None:
    first = create(tmp_path / "first.qcow2")
    second = create(tmp_path / "second.qcow2", backing=first)
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "second.qcow2", first)
    with pytest.raises(
        BlockError, match=r"backing file: Could not open backing file: '.*' is in its own backing chain"
    ):
        open_image(str(second))
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "nowhere.qcow2", first)
    theirs = tool("qemu-io", "-c", "read 0 512", second, status=1).strip()
    with pytest.raises(BlockError) as error:
        open_image(str(second))
    assert theirs == f"qemu-io: can't open device {second}: {error.value}"
    for name in ("bogus://localhost/x", "bogus:x"):
        image = bytearray(first.read_bytes())
        start, length = int.from_bytes(image[8:16], "big"), len(name)
        image[start : start + length] = name.encode()
        image[16:20] = length.to_bytes(4, "big")
        first.write_bytes(image)
        with pytest.raises(BlockError, match="Unknown protocol"):
            open_image(str(first))


@pytest.mark.parametrize("format_name", ["raw", "qcow2"])
def test_neither_opens_what_the_other_writes(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "disk"
    tool("qemu-img", "create", "-q", "-f", format_name, path, "1M")
    node = open_image(str(path), format=format_name)
    theirs = tool("qemu-io", "-f", format_name, "-c", "quit", path, status=1)
    assert f'Failed to get "write" lock\nIs another process using the image [{path}]?' in theirs
    node.close()
    # It says something once the image is open, and its lock is there from then on.
    command = ["qemu-io", "-f", format_name, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(b"length\n")
        assert other.stdout.read(1)
        for read_only in (False, True):
            # qemu-io lets others write to a raw image, but not to the file of a format.
            refused = format_name == "qcow2" and not read_only
            what = 'Failed to get "write" lock' if refused else 'Failed to get shared "write" lock'
            with pytest.raises(BlockError) as error:
                open_image(str(path), format=format_name, read_only=read_only)
            assert str(error.value) == f"{what}\nIs another process using the image [{path}]?"
        other.stdin.close()
        other.stdout.read()
    open_image(str(path), format=format_name).close()
