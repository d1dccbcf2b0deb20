"""Empty qcow2 images, put together by hand from the specification."""

from __future__ import annotations

import struct
from pathlib import Path

HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def empty_image(
    *,
    size: int = 1 << 20,
    cluster_bits: int = 12,
    version: int = 3,
    refcount_order: int = 4,
    incompatible: int = 0,
    backing: str = "",
    extensions: bytes = b"",
) -> bytearray:
    """Return header, refcount table, refcount block and L1 table, a cluster each."""
    cluster = 1 << cluster_bits
    l2_entries = cluster // (16 if incompatible & 16 else 8)
    l1_size = -(-size // (cluster * l2_entries))
    assert l1_size * 8 <= cluster
    image = bytearray(4 * cluster)
    extensions += bytes(8)
    header_length = HEADER.size if version == 3 else 72
    name_offset = header_length + len(extensions) if backing else 0
    fields = (
        b"QFI\xfb",
        version,
        name_offset,
        len(backing),
        cluster_bits,
        size,
        0,
        l1_size,
        3 * cluster,
        cluster,
        1,
        0,
        0,
    )
    header = HEADER.pack(*fields, incompatible, 0, 0, refcount_order, HEADER.size)[:header_length]
    header += extensions + backing.encode()
    image[: len(header)] = header
    image[cluster : cluster + 8] = (2 * cluster).to_bytes(8, "big")
    width = 1 << refcount_order
    counts = sum(1 << (number * width) for number in range(4))
    if width >= 8:
        block = b"".join((1).to_bytes(width // 8, "big") for _ in range(4))
    else:
        block = counts.to_bytes(4 * width // 8 + 1, "little")
    image[2 * cluster : 2 * cluster + len(block)] = block
    return image


def write_image(path: Path, image: bytes) -> str:
    """Write an image and return its path."""
    path.write_bytes(image)
    return str(path)
