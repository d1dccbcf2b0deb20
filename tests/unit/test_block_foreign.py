"""Formats of other virtual machines: images built here by their specifications, and what damage does to them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.drivers.foreign.vhdx import crc32c
from pyvm.block.errors import BlockError
from pyvm.block.open import open_image
from pyvm.block.probe import probe_format

MIB = 1 << 20
SECTOR = 512
FIRST, LAST = b"\x11", b"\x22"


def vdi() -> bytes:
    """Three blocks: the second in the file, the third first, and one that was never written."""
    head = bytearray(SECTOR)
    struct.pack_into("<II", head, 0x40, 0xBEDA107F, 0x00010001)
    struct.pack_into("<II", head, 0x154, SECTOR, 2 * SECTOR)
    struct.pack_into("<I", head, 0x168, SECTOR)
    struct.pack_into("<QIIII", head, 0x170, 3 * MIB, MIB, 0, 3, 2)
    table = struct.pack("<III", 1, 0xFFFFFFFF, 0).ljust(SECTOR, b"\0")
    return bytes(head) + table + LAST * MIB + FIRST * MIB


def vpc() -> bytes:
    """Three blocks of 1 MiB, each with its bitmap in front."""
    footer = struct.pack(
        ">8s8xQ4x4s4x4x8xQHBBI", b"conectix", SECTOR, b"qem2", 3 * MIB, 90, 4, 17, 3
    ).ljust(SECTOR, b"\0")  # fmt: skip
    header = struct.pack(">8s8xQ4xII", b"cxsparse", 3 * SECTOR, 3, MIB).ljust(2 * SECTOR, b"\0")
    blocks = (4 + 1 + MIB // SECTOR, 0xFFFFFFFF, 4)
    table = struct.pack(">III", *blocks).ljust(SECTOR, b"\xff")
    bitmap = b"\xff" * SECTOR
    return footer + header + table + bitmap + LAST * MIB + bitmap + FIRST * MIB + footer


def fixed_vpc() -> bytes:
    """Data, and the footer behind it."""
    footer = struct.pack(">8s8xQ4x4s4x4x8xQHBBI", b"conectix", 2**64 - 1, b"win ", 3 * MIB, 90, 4, 17, 2)
    return FIRST * MIB + bytes(MIB) + LAST * MIB + footer.ljust(SECTOR, b"\0")


def checked(data: bytes, size: int) -> bytes:
    """Return a structure of VHDX with its checksum."""
    whole = bytearray(data.ljust(size, b"\0"))
    whole[4:8] = crc32c(whole).to_bytes(4, "little")
    return bytes(whole)


def vhdx(log: bytes = bytes(16)) -> bytes:
    """Metadata at 2 MiB, the block table at 3 MiB, blocks at 5 and 4 MiB."""
    image = bytearray(4 * MIB)
    image[:8] = b"vhdxfile"
    for number, offset in enumerate((64 << 10, 128 << 10)):
        head = struct.pack("<4s4xQ32x16sHHI8x", b"head", number, log, 0, 1, MIB)
        image[offset : offset + 4096] = checked(head, 4096)
    regions = struct.pack("<4s4xI4x", b"regi", 2)
    for identifier, offset in (
        ("2dc27766-f623-4200-9d64-115e9bfd4a08", 3 * MIB),
        ("8b7ca206-4790-4b9a-b8fe-575f050f886e", 2 * MIB),
    ):
        regions += struct.pack("<16sQII", UUID(identifier).bytes_le, offset, MIB, 1)
    image[192 << 10 : 256 << 10] = checked(regions, 64 << 10)
    items = (
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", MIB, 0)),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", 3 * MIB)),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", SECTOR)),
    )
    metadata = struct.pack("<8s2xH20x", b"metadata", len(items))
    for number, (identifier, value) in enumerate(items):
        place = (64 << 10) + number * 16
        metadata += struct.pack("<16sIII4x", UUID(identifier).bytes_le, place, len(value), 4)
        image[2 * MIB + place : 2 * MIB + place + len(value)] = value
    image[2 * MIB : 2 * MIB + len(metadata)] = metadata
    image[3 * MIB : 3 * MIB + 24] = struct.pack("<QQQ", 5 * MIB | 6, 2, 4 * MIB | 6)
    return bytes(image) + LAST * MIB + FIRST * MIB


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="{kind}"
{extents}
"""


def vmdk(compressed: bool = False) -> bytes:
    """Grains of 1 MiB; the descriptor in sector 1, directory and table in sectors 3 and 4."""
    grain = MIB // SECTOR
    flags = 3 | (3 << 16 if compressed else 0)
    text = DESCRIPTOR.format(kind="monolithicSparse", extents=f'RW {3 * grain} SPARSE "disk.vmdk"').encode()
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, flags, 3 * grain, grain, 1, 2, 512, 0, 3).ljust(SECTOR, b"\0")
    directory = struct.pack("<I", 4).ljust(SECTOR, b"\0")
    parts = [LAST * MIB, FIRST * MIB]
    if compressed:
        packed = [zlib.compress(part) for part in parts]
        parts = [(struct.pack("<QI", 0, len(part)) + part).ljust(8 * SECTOR, b"\0") for part in packed]
    last, first = 8, 8 + len(parts[0]) // SECTOR
    table = struct.pack("<III", first, 0, last).ljust(4 * SECTOR, b"\0")
    return head + text.ljust(2 * SECTOR, b"\0") + directory + table + b"".join(parts)


def qcow() -> bytes:
    """Clusters of 64 KiB: the first MiB is compressed, the last is not."""
    cluster, per_table = 1 << 16, 1 << 13
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(FIRST * cluster) + packer.flush()
    l1, l2 = 48, 512
    data = l2 + per_table * 8
    place = -(-(data + SECTOR) // cluster) * cluster
    shift = 63 - 16
    entries = [1 << 63 | len(packed) << shift | data] * 16 + [0] * 16
    entries += [place + number * cluster for number in range(16)]
    head = struct.pack(">4sIQI4xQBB2xIQ", b"QFI\xfb", 1, 0, 0, 3 * MIB, 16, 13, 0, l1)
    image = (head + struct.pack(">Q", l2)).ljust(l2, b"\0") + struct.pack(
        f">{per_table}Q", *entries[:48], *[0] * (per_table - 48)
    )
    return (image + packed).ljust(place, b"\0") + LAST * MIB


def qed() -> bytes:
    """Clusters of 64 KiB, tables of one: the header, two tables, data; the second MiB has an entry for zeros."""
    cluster = 1 << 16
    head = struct.pack("<4sIIIQQQQQII", b"QED\0", cluster, 1, 1, 0, 0, 0, cluster, 3 * MIB, 0, 0)
    entries = [(19 + number) * cluster for number in range(16)] + [1] + [0] * 15
    entries += [(3 + number) * cluster for number in range(16)]
    tables = struct.pack("<Q", 2 * cluster).ljust(cluster, b"\0") + struct.pack("<48Q", *entries).ljust(cluster, b"\0")
    return head.ljust(cluster, b"\0") + tables + LAST * MIB + FIRST * MIB


def parallels(magic: bytes = b"WithouFreSpacExt", unit: int = MIB // SECTOR) -> bytes:
    """Clusters of 1 MiB; places are in units of so many sectors."""
    cluster = MIB // SECTOR
    head = struct.pack("<16sIIIIIQIIIQ", magic, 2, 16, 12, cluster, 3, 3 * cluster, 0, cluster, 0, 0)
    head += struct.pack("<III", 2 * cluster // unit, 0, cluster // unit)
    return head.ljust(MIB, b"\0") + LAST * MIB + FIRST * MIB


def bochs() -> bytes:
    """Extents of 1 MiB, each with its bitmap in front; of the second, nothing was written."""
    head = struct.pack(
        "<32s16s16sIIIIIIQ", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x20000, SECTOR, 3, 256, MIB, 0, 3 * MIB
    )
    catalog, full = struct.pack("<III", 1, 2, 0), b"\xff" * 256 + bytes(256)
    return head.ljust(SECTOR, b"\0") + catalog + full + LAST * MIB + full + FIRST * MIB + bytes(SECTOR + MIB)


def cloop() -> bytes:
    """Three compressed blocks of 1 MiB."""
    blocks = [zlib.compress(part) for part in (FIRST * MIB, bytes(MIB), LAST * MIB)]
    places = [136 + 32 + sum(map(len, blocks[:number])) for number in range(4)]
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    return script.ljust(128, b"\0") + struct.pack(">II4Q", MIB, 3, *places) + b"".join(blocks)


MAKERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "vdi": ("vdi", vdi),
    "vpc": ("vpc", vpc),
    "vhdx": ("vhdx", vhdx),
    "vmdk": ("vmdk", vmdk),
    "vmdk-compressed": ("vmdk", lambda: vmdk(compressed=True)),
    "qcow": ("qcow", qcow),
    "qed": ("qed", qed),
    "parallels": ("parallels", parallels),
    "parallels-old": ("parallels", lambda: parallels(b"WithoutFreeSpace", 1)),
    "bochs": ("bochs", bochs),
    "cloop": ("cloop", cloop),
}
IMAGES: dict[str, bytes] = {}


def image_of(kind: str) -> bytes:
    """Return an image, which is made once."""
    if kind not in IMAGES:
        IMAGES[kind] = MAKERS[kind][1]()
    return IMAGES[kind]


@pytest.mark.parametrize("kind", MAKERS)
def test_images_are_found_out_and_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(image_of(kind))
    assert probe_format(path.read_bytes()[:SECTOR]) == MAKERS[kind][0]
    node = open_image(str(path), read_only=True)
    assert (node.driver, node.size) == (MAKERS[kind][0], 3 * MIB)
    assert node.read(0, 3 * MIB) == FIRST * MIB + bytes(MIB) + LAST * MIB
    assert node.read(MIB - 512, 1024) == FIRST * 512 + bytes(512)
    first, second = node.block_status(0, node.size), node.block_status(MIB, MIB)
    assert first.data
    if kind != "cloop":  # which has no other way to say that there is nothing
        assert not second.data
        assert second.zero
    with pytest.raises(PermissionError):
        node.write(0, b"x" * SECTOR)
    node.close()
    refusal = f"pyvm only reads images of format '{MAKERS[kind][0]}': use read-only=on"
    with pytest.raises(BlockError) as caught:
        open_image(str(path), format=MAKERS[kind][0])
    assert str(caught.value) == ("Image is read-only" if kind in ("bochs", "cloop") else refusal)


def test_fixed_vhd(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(fixed_vpc())
    node = open_image(str(path), format="vpc", read_only=True)
    assert node.read(0, node.size) == FIRST * MIB + bytes(MIB) + LAST * MIB
    node.close()
    path.write_bytes(fixed_vpc()[MIB:])
    with pytest.raises(BlockError, match="is truncated, expected at least 3146240 bytes"):
        open_image(str(path), format="vpc", read_only=True)


def test_vmdk_extents_beside_the_image(tmp_path: Path) -> None:
    grain = MIB // SECTOR
    extents = f'RW {grain} FLAT "a-flat.vmdk" 1\nRW {grain} ZERO\nRW {3 * grain} SPARSE "b.vmdk"'
    (tmp_path / "a-flat.vmdk").write_bytes(bytes(SECTOR) + LAST * MIB)
    (tmp_path / "b.vmdk").write_bytes(vmdk())
    path = tmp_path / "disk.vmdk"
    path.write_text(DESCRIPTOR.format(kind="custom", extents=extents))
    node = open_image(str(path), read_only=True)
    assert node.read(0, node.size) == LAST * MIB + bytes(MIB) + FIRST * MIB + bytes(MIB) + LAST * MIB
    info = node.format_info()
    assert info is not None
    assert [it["format"] for it in info["data"]["extents"]] == ["FLAT", "SPARSE"]
    node.close()


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "nbd:localhost:1", "..", "missing"])
def test_vmdk_opens_nothing_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(MIB))
    path = tmp_path / "below" / "disk.vmdk"
    path.parent.mkdir()
    path.write_text(DESCRIPTOR.format(kind="monolithicFlat", extents=f'RW 8 FLAT "{name}" 0'))
    with pytest.raises(BlockError, match=r"is not beside the image|No such file"):
        open_image(str(path), read_only=True)


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(vhdx(log=b"x" * 16))
    with pytest.raises(BlockError, match="contains a log that needs to be replayed"):
        open_image(str(path), read_only=True)
    path.write_bytes(vpc()[:60] + struct.pack(">I", 4) + vpc()[64:])
    with pytest.raises(BlockError, match="VHD image of type 4 is not supported"):
        open_image(str(path), read_only=True)
    path.write_bytes(qcow()[:32] + b"\0\0\0\0\0\0\0\1"[4:] + qcow()[36:])
    with pytest.raises(BlockError, match="Cluster size must be"):
        open_image(str(path), read_only=True)
    path.write_text(DESCRIPTOR.format(kind="seSparse", extents='RW 8 SESPARSE "x" 0'))
    with pytest.raises(BlockError, match="Unsupported extent type 'SESPARSE'"):
        open_image(str(path), read_only=True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vdi", "Image not in VDI format (bad signature 00000000)"),
        ("vpc", "invalid VPC image"),
        ("vhdx", "Could not open '{path}': Invalid argument"),
        ("vmdk", "invalid VMDK image descriptor"),
        ("qcow", "Image not in qcow format"),
        ("qed", "Image not in QED format"),
        ("parallels", "Image not in Parallels format"),
    ],
)
def test_what_is_no_image_is_refused_as_that_before_it_is_refused_to_be_written(
    tmp_path: Path, kind: str, message: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(2 * MIB))
    for read_only in (True, False):
        with pytest.raises(BlockError) as caught:
            open_image(str(path), format=kind, read_only=read_only)
        assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("kind", "at", "data", "message"),
    [
        ("qed", 16, b"\x08", "Unsupported QED features: 8"),
        ("qed", 4, b"\x01", "Could not open '{path}': Invalid argument"),
        ("parallels", 28, bytes(4), "Invalid image: Zero sectors per track"),
        ("parallels", 16, b"\x03", "Image not in Parallels format"),
        ("bochs", 64, b"\x00\x03", "Image not in Bochs format"),
        ("bochs", 80, b"\x00\x00\x00\x01", "Extent size 16777216 is too large"),
        ("bochs", 72, b"\x02", "Catalog size is too small for this disk size"),
        ("cloop", 128, bytes(4), "block_size cannot be zero"),
        ("cloop", 128, b"\x7f", "block_size 2131755008 must be 64 MB or less"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, kind: str, at: int, data: bytes, message: str) -> None:
    path, image = tmp_path / "image", bytearray(image_of(kind))
    image[at : at + len(data)] = data
    path.write_bytes(image)
    with pytest.raises(BlockError) as caught:
        open_image(str(path), format=kind, read_only=True)
    assert str(caught.value) == message.format(path=path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    changes=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), max_size=3),
    length=st.none() | st.integers(0, 8192),
)
def test_damage_gives_clear_errors(
    tmp_path: Path, kind: str, changes: list[tuple[int, bytes]], length: int | None
) -> None:
    image = bytearray(image_of(kind))
    # Of a VHDX image, the structures that have no checksum.
    start = 2 * MIB if kind == "vhdx" else 0
    for offset, data in changes:
        image[start + offset : start + offset + len(data)] = data
    if length is not None:
        del image[start + length :]
    path = tmp_path / "image"
    path.write_bytes(image)
    try:
        node = open_image(str(path), format=MAKERS[kind][0], read_only=True)
    except BlockError:
        return
    try:
        for offset in (0, MIB, node.size - SECTOR):
            count = min(SECTOR, node.size - offset)
            if count > 0 <= offset:
                node.block_status(offset, count)
                node.read(offset, count)
    except OSError:
        pass
    finally:
        node.close()
