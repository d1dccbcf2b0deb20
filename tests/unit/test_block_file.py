"""Raw images, finding out formats, and locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.file import FileNode
from pyvm.block.drivers.raw import RawNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, backing_access, disk_access, storage_access
from pyvm.block.open import open_image
from pyvm.block.probe import probe_format
from pyvm.block.vectors import Cursor, behind

SIZE = 64 * 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (SIZE // 256) + b"rest")
    return path


@given(st.lists(st.binary(max_size=5), max_size=8), st.lists(st.integers(0, 12), max_size=6))
def test_scatter_gather_lists_come_apart_in_order(pieces: list[bytes], steps: list[int]) -> None:
    buffers = [memoryview(piece) for piece in pieces]
    whole = b"".join(pieces)
    cursor = Cursor(buffers)
    position = 0
    for step in steps:
        step = min(step, len(whole) - position)  # noqa: PLW2901 - no longer than what is left
        assert b"".join(cursor.take(step)) == whole[position : position + step]
        position += step
        assert b"".join(behind(buffers, position)) == whole[position:]


FORMATS = {
    b"QFI\xfb\0\0\0\3": "qcow2",
    b"QFI\xfb\0\0\0\1": "qcow",
    b"QFI\xfb\0\0\0\0": "raw",
    b"KDMV": "vmdk",
    b"# Disk DescriptorFile\nversion=1\n": "vmdk",
    b"# Disk DescriptorFile\n": "raw",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"LUKS\xba\xbe\0\1": "luks",
    b"QED\0": "qed",
    bytes(64) + b"\x7f\x10\xda\xbe": "vdi",
    b"\xeb\x63\x90": "raw",
    b"": "raw",
}


@pytest.mark.parametrize("head", FORMATS)
def test_formats_are_found_out(head: bytes) -> None:
    assert probe_format(head.ljust(512, b"\0")) == FORMATS[head]
    assert probe_format(head) == FORMATS[head]


def test_a_guest_cannot_change_a_guessed_format(image: Path) -> None:
    said: list[str] = []
    node = open_image(str(image), warn=said.append)
    assert said[0].splitlines()[0] == (
        f"WARNING: Image format was not specified for '{image}' and probing guessed raw."
    )
    before = image.read_bytes()
    for head, name in FORMATS.items():
        if name == "raw" or not head:
            continue
        sector = memoryview(head.ljust(512, b"\0"))
        # In one piece, in several, and with what follows.
        for buffers in ([sector], [sector[:3], sector[3:100], sector[100:]], [sector, memoryview(bytes(4096))]):
            with pytest.raises(PermissionError):
                node.writev(0, buffers)
        assert image.read_bytes() == before
    # A piece that makes a header out of what is there already is no way round.
    node.write(0, b"QFI".ljust(512, b"\0"))
    with pytest.raises(PermissionError):
        node.write(3, b"\xfb\0\0\0\3")
    node.write(0, b"\xeb\x63\x90".ljust(1024, b"x"))
    node.write(512, b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))
    node.close()
    assert probe_format(image.read_bytes()[:512]) == "raw"


def test_a_given_format_lets_the_guest_write_anything(image: Path) -> None:
    said: list[str] = []
    node = open_image(str(image), format="raw", warn=said.append)
    node.write(0, b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))
    node.close()
    assert not said
    with pytest.raises(BlockError):
        open_image(str(image), warn=said.append)
    node = open_image(str(image), format="raw")
    assert node.read(0, 4) == b"QFI\xfb"
    # The last sector is filled up.
    assert node.size == SIZE + 512
    assert node.read(SIZE, 512) == b"rest".ljust(512, b"\0")
    node.close()


def test_a_window_of_a_file(image: Path) -> None:
    before = image.read_bytes()
    node = RawNode(FileNode(str(image), unmap=True), offset=1024, size=2048)
    assert node.size == 2048
    assert node.read(512, 1536) == before[1536:3072]
    node.write(0, b"w" * 512)
    node.write_zeroes(512, 512, True)
    node.discard(1024, 512)
    assert node.read(1536, 1024) == before[2560:3072].ljust(1024, b"\0")
    with pytest.raises(OSError, match="No space left"):
        node.write_zeroes(1536, 1024, False)
    with pytest.raises(OSError, match="No space left"):
        node.write(2048, b"w")
    with pytest.raises(OSError, match="Input/output"):
        node.read(-512, 512)
    node.flush()
    node.close()
    assert image.read_bytes()[:1536] == before[:1024] + b"w" * 512
    assert image.read_bytes()[3072:] == before[3072:]


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (SIZE + 512, None, r"Offset \(33280\) cannot be greater than size of the containing file"),
        (0, 100, "Specified size is not multiple of 512"),
        (512, SIZE, r"The sum of offset \(512\) and size \(32768\) has to be smaller or equal"),
    ],
)
def test_a_window_outside_the_file(image: Path, offset: int, size: int | None, message: str) -> None:
    file = FileNode(str(image))
    with pytest.raises(BlockError, match=message):
        RawNode(file, offset=offset, size=size)
    file.close()


def locks(path: Path) -> set[tuple[int, int]]:
    """Return the bytes of a file that are locked, as ranges."""
    inode = path.stat().st_ino
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "OFDLCK" in line]
    return {(int(row[-2]), int(row[-1])) for row in rows if row[-3].endswith(f":{inode}")}


def test_locks_are_on_the_bytes_that_qemu_uses(image: Path) -> None:
    """The numbers are what /proc/locks shows for QEMU 7.2."""
    for access, expected in (
        (disk_access(False), {(100, 101), (201, 201)}),
        (disk_access(True), {(100, 100), (201, 201)}),
        (storage_access(False), {(100, 101), (103, 103), (201, 201), (203, 203)}),
        (storage_access(True), {(100, 100), (201, 201), (203, 203)}),
        (backing_access(), {(100, 100), (201, 201), (203, 203)}),
    ):
        file = FileNode(str(image), access=access)
        assert locks(image) == expected
        file.close()
    assert not locks(image)


def test_two_disks_of_one_machine_do_not_share_a_file(image: Path) -> None:
    first = open_image(str(image), format="raw")
    with pytest.raises(BlockError) as error:
        open_image(str(image), format="raw")
    assert str(error.value) == f'Failed to get "write" lock\nIs another process using the image [{image}]?'
    with pytest.raises(BlockError, match=r'^Failed to get shared "write" lock\n'):
        open_image(str(image), format="raw", read_only=True)
    first.close()
    readers = [open_image(str(image), format="raw", read_only=True) for _ in range(2)]
    with pytest.raises(BlockError, match=r'^Failed to get "write" lock\n'):
        open_image(str(image), format="raw")
    for reader in readers:
        reader.close()
    open_image(str(image), format="raw").close()


def test_no_descriptor_is_left_open(image: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path, name in ((image, "qcow2"), (tmp_path / "none", None), (tmp_path, "raw"), (image, "raw")):
        try:
            open_image(str(path), format=name).close()
        except BlockError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_flush_that_failed_once_is_never_believed_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    node = open_image(str(image), format="raw")
    node.write(0, bytes(512))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            node.flush()
    with pytest.raises(OSError, match="Input/output"):
        node.flush()
    node.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600), st.integers(0, 600))
def test_no_write_makes_another_format(image: Path, data: bytes, offset: int) -> None:
    node = open_image(str(image), warn=lambda text: None)
    try:
        node.write(offset, data)
    except PermissionError:
        pass
    node.close()
    assert probe_format(image.read_bytes()[:512]) == "raw"


# ---- Direct I/O


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, SIZE + 5000),
            st.lists(st.integers(1, 3000), min_size=1, max_size=4),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_direct_io_may_start_and_end_anywhere(image: Path, steps: list[tuple[int, list[int], bool]]) -> None:
    """Against a model: offsets, lengths and addresses that the host does not take as they are."""
    before = image.read_bytes()
    model = bytearray(before)
    node = FileNode(str(image), direct=True)
    for number, (offset, lengths, write) in enumerate(steps):
        length = sum(lengths)
        if write:
            data = bytes([number + 1]) * length
            node.writev(offset, list(_pieces(memoryview(data), lengths)))
            model.extend(bytes(max(offset + length - len(model), 0)))
            model[offset : offset + length] = data
        else:
            room = bytearray(length)
            node.readv(offset, list(_pieces(memoryview(room), lengths)))
            assert room == bytes(model[offset : offset + length]).ljust(length, b"\0")
    node.flush()
    node.close()
    assert image.read_bytes() == model
    image.write_bytes(before)


def _pieces(view: memoryview, lengths: list[int]) -> list[memoryview]:
    pieces = []
    for length in lengths:
        pieces.append(view[:length])
        view = view[length:]
    return pieces


def test_direct_io_of_more_than_fits_the_bounce_buffer(image: Path) -> None:
    node = FileNode(str(image), direct=True)
    data = os.urandom((3 << 20) + 77)
    node.write(333, data)
    assert node.read(333, len(data)) == data
    assert node.head(8) == bytes(range(8))
    node.close()
    assert image.stat().st_size == 333 + len(data)


# ---- What is where


def extents(node: Node, length: int) -> list[tuple[int, bool, bool]]:
    found = []
    offset = 0
    while offset < length:
        extent = node.block_status(offset, length - offset)
        assert extent.length > 0
        found.append((extent.length, extent.data, extent.zero))
        if extent.data:
            assert extent.offset is not None
        offset += extent.length
    assert offset == length
    return found


def test_holes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(65536)
        file.write(b"d" * 65536)
        file.truncate(262144 + 100)
    node = open_image(str(path), format="raw")
    assert node.size == 262144 + 512
    assert extents(node, node.size) == [(65536, False, True), (65536, True, False), (131584, False, True)]
    assert (node.allocated_bytes() or 0) < 262144
    node.close()
    window = RawNode(FileNode(str(path)), offset=65536, size=65536)
    extent = window.block_status(512, 65536)
    assert (extent.length, extent.offset, extent.node) == (65024, 66048, window.file)
    window.close()


def test_zeros_take_no_room_where_they_may(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 262144)
    node = FileNode(str(path), unmap=True)
    node.discard(0, 65536)
    node.write_zeroes(65536, 65536, True)
    node.write_zeroes(131072, 65536, False)
    node.write_zeroes(1 << 20, 4096, True)
    assert extents(node, 131072) == [(131072, False, True)]
    assert node.length() == (1 << 20) + 4096
    node.close()
    assert path.read_bytes()[:262144] == bytes(196608) + b"x" * 65536
    node = FileNode(str(path))
    node.discard(196608, 65536)
    node.write_zeroes(196608, 4096, True)
    node.close()
    assert path.read_bytes()[196608:262144] == bytes(4096) + b"x" * 61440


def test_zeros_that_the_host_has_no_call_for(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pyvm.block.drivers.file.fallocate", refuse)
    node = FileNode(str(image), unmap=True)
    node.write_zeroes(100, 1000, True)
    node.discard(2000, 1000)
    node.close()
    data = image.read_bytes()
    assert data[100:1100] == bytes(1000)
    assert data[2000:2004] == bytes(range(208, 212))


def test_the_size_changes(image: Path) -> None:
    node = open_image(str(image), format="raw")
    node.truncate(1 << 20)
    assert node.size == 1 << 20
    assert node.read((1 << 20) - 512, 512) == bytes(512)
    for mode in ("falloc", "full"):
        node.truncate(node.size + 65536, preallocation=mode)  # type: ignore[arg-type]
        assert (node.allocated_bytes() or 0) >= 65536
    for size, mode, message in (
        (2 << 20, "metadata", r"^Unsupported preallocation mode: metadata$"),
        (512, "falloc", r"^Preallocation can't be used for shrinking files$"),
    ):
        with pytest.raises(BlockError, match=message):
            node.truncate(size, preallocation=mode)  # type: ignore[arg-type]
    node.truncate(4096)
    assert node.size == 4096
    node.close()
    fixed = RawNode(FileNode(str(image)), size=512)
    with pytest.raises(BlockError, match=r"^Cannot resize fixed-size raw disks$"):
        fixed.truncate(1024)
    fixed.close()


def test_flushes_can_be_left_out(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for no_flush, expected in ((True, 0), (False, 1)):
        node = FileNode(str(image), no_flush=no_flush)
        node.flush()
        node.write(0, b"x")
        node.flush()
        node.flush()
        node.close()
        assert len(synced) == expected


def test_zeros_are_detected_in_a_file(image: Path) -> None:
    node = FileNode(str(image), detect_zeroes="unmap", unmap=True)
    node.truncate(1 << 20)
    node.write(0, bytes(1 << 20))
    assert extents(node, 1 << 20) == [(1 << 20, False, True)]
    node.close()


def test_a_device_of_the_host() -> None:
    with pytest.raises(BlockError, match=r"^'file' driver requires '/dev/zero' to be a regular file$"):
        FileNode("/dev/zero")
    node = open_image("/dev/zero", format="raw", read_only=True)
    assert node.file is not None
    assert node.file.driver == "host_device"
    with pytest.raises(BlockError, match=r"^Cannot resize device files$"):
        node.truncate(512)
    node.close()
