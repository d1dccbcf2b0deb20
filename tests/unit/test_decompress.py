"""Kernel payloads unpacked on the host."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable
from functools import partial

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.decompress import Compression, decompress, expand, identify
from pyvm.firmware.errors import BootError
from tests.unit.firmware_images import outcome

LZ4_BLOCK = 8 << 20


def lz4_legacy(data: bytes, block: int = LZ4_BLOCK) -> bytes:
    frames = [struct.pack("<I", 0x184C2102)]
    for start in range(0, len(data), block):
        packed = lz4.block.compress(data[start : start + block], store_size=False)
        frames.append(struct.pack("<I", len(packed)) + packed)
    return b"".join(frames)


def zstd_streamed(data: bytes) -> bytes:
    """Pack as the kernel's build does: through a pipe, so that the frame does not say how long its content is."""
    packer = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: gzip.compress,
    Compression.BZIP2: bz2.compress,
    Compression.LZMA: lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=0),
    Compression.XZ: lambda data: lzma.compress(
        data, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0}]
    ),
    Compression.LZ4: lz4_legacy,
    Compression.ZSTD: zstd_streamed,
    Compression.NONE: lambda data: b"\x7fELF" + data,
}
KINDS = list(PACKERS)
CHECKED = [Compression.GZIP, Compression.BZIP2, Compression.XZ, Compression.ZSTD]  # formats with a checksum
SELF_ENDING = [*CHECKED, Compression.LZMA]


def sample(size: int) -> bytes:
    """Return data that packs neither well nor badly."""
    source = random.Random(size)
    return b"".join(source.choice((b"\0" * 40, source.randbytes(30))) for _ in range(size // 30))[:size]


def unpacked(kind: Compression, data: bytes) -> bytes:
    return b"\x7fELF" + data if kind is Compression.NONE else data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 100, 3_000_000])
def test_round_trip(kind: Compression, size: int) -> None:
    data = sample(size)
    packed = PACKERS[kind](data)
    assert identify(packed) is kind
    assert decompress(packed, kind) == unpacked(kind, data)


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_is_large_even_where_all_is_zeros(kind: Compression) -> None:
    zeros = bytes(3 * LZ4_BLOCK)
    sizes = [len(piece) for piece in expand(PACKERS[kind](zeros), kind)]
    assert sum(sizes) == len(unpacked(kind, zeros))
    assert max(sizes) <= LZ4_BLOCK


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_bounded(kind: Compression) -> None:
    packed = PACKERS[kind](bytes(3 << 20))
    with pytest.raises(BootError, match="more than 1000000 bytes"):
        decompress(packed, kind, 1_000_000)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Compression.NONE])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_cut_short(kind: Compression, keep: float) -> None:
    packed = PACKERS[kind](sample(200_000))
    cut = max(10, int(len(packed) * keep))
    with pytest.raises(BootError, match="damaged"):
        decompress(packed[:cut], kind)


@pytest.mark.parametrize("kind", CHECKED)
@pytest.mark.parametrize("where", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_noticed(kind: Compression, where: float) -> None:
    packed = bytearray(PACKERS[kind](sample(200_000)))
    packed[int(len(packed) * where)] ^= 0x10
    with pytest.raises(BootError, match=kind.value):
        decompress(bytes(packed), kind)


@pytest.mark.parametrize("kind", SELF_ENDING)
def test_bytes_behind_the_end_are_ignored(kind: Compression) -> None:
    data = sample(5000)
    assert decompress(PACKERS[kind](data) + b"trailing", kind) == data


def test_lz4_frames_follow_each_other() -> None:
    data = sample(5000)
    assert decompress(lz4_legacy(data, 1000) + lz4_legacy(data), Compression.LZ4) == data + data


def test_lz4_block_larger_than_the_format_allows() -> None:
    packed = struct.pack("<II", 0x184C2102, 0x7FFFFFFF) + bytes(100)
    with pytest.raises(BootError, match="2147483647 bytes"):
        decompress(packed, Compression.LZ4)


def test_xz_dictionary_of_gigabytes_is_refused() -> None:
    packed = lzma.compress(bytes(100), format=lzma.FORMAT_ALONE)
    with pytest.raises(BootError, match="damaged"):
        decompress(packed[:1] + struct.pack("<I", 0xFFFFFFFF) + packed[5:], Compression.LZMA)


def test_unknown_payload() -> None:
    assert identify(b"\x89LZO\0\r\n\x1a\n") is None
    assert identify(b"") is None


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_damage_is_a_boot_error_or_goes_unnoticed(kind: Compression, data: st.DataObject) -> None:
    packed = bytearray(PACKERS[kind](sample(3000)))
    for position in data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=4)):
        packed[position] = data.draw(st.integers(0, 255))
    assert "\n" not in outcome(lambda: decompress(bytes(packed), kind, 1 << 20))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), payload=st.binary(max_size=200))
def test_noise_is_a_boot_error_or_goes_unnoticed(kind: Compression, payload: bytes) -> None:
    magic = PACKERS[kind](b"x")[:6]
    for candidate in (payload, magic + payload):
        assert "\n" not in outcome(partial(decompress, candidate, kind, 1 << 20))
