"""The structures of a qcow2 file, apart from all logic.

Source: "Qcow2 Image File Format" (docs/interop/qcow2.txt of QEMU).  All numbers are big-endian.  What is parsed here
comes from outside: every parser raises :class:`BlockError` for what cannot be, and bounds what it allocates.
"""

from __future__ import annotations

import struct
from enum import IntFlag

from pyvm.block.errors import BlockError
from pyvm.records import field, record

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21

# Header, version 2: magic, version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method, l1_size,
# l1_table_offset, refcount_table_offset, refcount_table_clusters, nb_snapshots, snapshots_offset
_HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
# Version 3 goes on: incompatible_features, compatible_features, autoclear_features, refcount_order, header_length
_HEADER_V3 = struct.Struct(">QQQII")
HEADER_V2_SIZE = _HEADER_V2.size
HEADER_V3_SIZE = _HEADER_V2.size + _HEADER_V3.size
COMPRESSION_TYPE_OFFSET = 104
HEADER_WRITTEN_SIZE = 112
"""What is written of a version 3 header: with the compression type and its padding."""

MAX_BACKING_NAME = 1023
MAX_L1_BYTES = 32 << 20
MAX_L1_ENTRIES = (1 << 31) - 1
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_CRYPTO_BYTES = 64 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
_SMALLEST_SNAPSHOT = 40
MAX_REFCOUNT_ORDER = 6
MAX_SIZE = (1 << 63) - 1

CRYPT_NONE = 0
CRYPT_AES = 1
CRYPT_LUKS = 2


class Incompatible(IntFlag):
    """Features that a program must know to use the image at all."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION = 8
    EXTENDED_L2 = 16


class Compatible(IntFlag):
    """Features that a program may ignore."""

    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    """Features that a program which does not know them clears before it writes."""

    BITMAPS = 1
    RAW_DATA_FILE = 2


# Plain numbers: the complement of a flag knows only the flags that have names.
ALL_INCOMPATIBLE = 31
ALL_AUTOCLEAR = 3


class Compression:
    """Values of the compression type."""

    ZLIB = 0
    ZSTD = 1


# Header extensions
_EXTENSION = struct.Struct(">II")
EXTENSION_END = 0
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_DATA_FILE = 0x44415441
EXTENSION_CRYPTO = 0x0537BE77
_FEATURE_NAME = struct.Struct(">BB46s")
_FEATURE_INCOMPATIBLE, _FEATURE_COMPATIBLE, _FEATURE_AUTOCLEAR = 0, 1, 2
_FEATURES = (
    (_FEATURE_INCOMPATIBLE, 0, b"dirty bit"),
    (_FEATURE_INCOMPATIBLE, 1, b"corrupt bit"),
    (_FEATURE_INCOMPATIBLE, 2, b"external data file"),
    (_FEATURE_INCOMPATIBLE, 3, b"compression type"),
    (_FEATURE_INCOMPATIBLE, 4, b"extended L2 entries"),
    (_FEATURE_COMPATIBLE, 0, b"lazy refcounts"),
    (_FEATURE_AUTOCLEAR, 0, b"bitmaps"),
    (_FEATURE_AUTOCLEAR, 1, b"raw external data"),
)
"""Names for programs that do not know the features: they can say what they miss."""
_ROOM_FOR_NAMES = 4096
"""In clusters that are not larger, the names would leave too little room for the rest."""
_BITMAPS = struct.Struct(">IIQQ")
_CRYPTO = struct.Struct(">QQ")

# Entries of the L1 and L2 tables, refcount table
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
REFCOUNT_BLOCK_MASK = 0xFFFF_FFFF_FFFF_FE00
MAX_HOST_OFFSET = 1 << 56
SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1
"""Subclusters that are allocated; those that read as zeros are the same bits, higher by SUBCLUSTERS."""
ALL_ZERO_SUBCLUSTERS = ALL_SUBCLUSTERS << SUBCLUSTERS
COMPRESSED_SECTOR = 512
MIN_SUBCLUSTER_SIZE = 512


@record
class Header:
    """The header with what matters of its extensions; version 2 is filled up with the values that version 3 would have.

    The fields are named as in the specification.
    """

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = 4
    header_length: int = HEADER_V2_SIZE
    compression_type: int = Compression.ZLIB
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    bitmaps: tuple[int, int, int] | None = None
    """Number, size in bytes and offset of the bitmap directory."""
    crypto: tuple[int, int] | None = None
    """Offset and length of the encryption header."""
    feature_names: dict[int, str] = field(default_factory=dict)
    """Names of incompatible features by their bit."""
    other_fields: bytes = b""
    """What follows the fields that are known."""
    other_extensions: list[tuple[int, bytes]] = field(default_factory=list)
    """Header extensions that mean nothing here, and are kept."""

    @property
    def cluster_size(self) -> int:
        """In bytes."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Whether clusters have subclusters."""
        return bool(self.incompatible_features & Incompatible.EXTENDED_L2)

    @property
    def l2_entry_size(self) -> int:
        """In bytes."""
        return 16 if self.extended_l2 else 8

    @property
    def external_data(self) -> bool:
        """Whether guest data is in a file of its own."""
        return bool(self.incompatible_features & Incompatible.DATA_FILE)


def parse_header(data: bytes) -> Header:
    """Parse what begins a file: `data` is its first cluster, or its first 2 MiB.  Raises BlockError."""
    if len(data) < HEADER_V2_SIZE or data[:4] != MAGIC:
        raise BlockError("Image is not in qcow2 format")
    _, *fields = _HEADER_V2.unpack_from(data)
    header = Header(*fields)
    if header.version not in (2, 3):
        raise BlockError(f"Unsupported qcow2 version {header.version}")
    if not MIN_CLUSTER_BITS <= header.cluster_bits <= MAX_CLUSTER_BITS:
        raise BlockError(f"Unsupported cluster size: 2^{header.cluster_bits}")
    if header.version == 3:
        _parse_version_3(header, data)
    if header.backing_file_offset > header.cluster_size:
        raise BlockError("Invalid backing file offset")
    end = header.backing_file_offset or header.cluster_size
    _parse_extensions(header, data[:end])
    _check_features(header)
    _check_tables(header)
    if header.backing_file_offset:
        header.backing_file = _backing_file(header, data)
    return header


def _parse_version_3(header: Header, data: bytes) -> None:
    if len(data) < HEADER_V3_SIZE:
        raise BlockError("qcow2 header too short")
    (
        header.incompatible_features,
        header.compatible_features,
        header.autoclear_features,
        header.refcount_order,
        header.header_length,
    ) = _HEADER_V3.unpack_from(data, HEADER_V2_SIZE)
    if header.header_length < HEADER_V3_SIZE:
        raise BlockError("qcow2 header too short")
    if header.header_length > header.cluster_size:
        raise BlockError("qcow2 header exceeds cluster size")
    if header.header_length > COMPRESSION_TYPE_OFFSET and len(data) > COMPRESSION_TYPE_OFFSET:
        header.compression_type = data[COMPRESSION_TYPE_OFFSET]
    header.other_fields = bytes(data[HEADER_WRITTEN_SIZE : header.header_length])


def _parse_extensions(header: Header, data: bytes) -> None:
    """Read the extensions; those that mean nothing here are kept as they are."""
    position = header.header_length
    while position + _EXTENSION.size <= len(data):
        kind, length = _EXTENSION.unpack_from(data, position)
        position += _EXTENSION.size
        if kind == EXTENSION_END:
            return
        if length > len(data) - position:
            raise BlockError("Header extension too large")
        content = data[position : position + length]
        if kind == EXTENSION_BACKING_FORMAT:
            header.backing_format = _text(content, "backing format")
        elif kind == EXTENSION_DATA_FILE:
            header.data_file = _text(content, "data file name")
        elif kind == EXTENSION_FEATURE_NAMES:
            header.feature_names = _feature_names(content)
        elif kind == EXTENSION_BITMAPS:
            if length != _BITMAPS.size:
                raise BlockError("bitmaps_ext: Invalid extension length")
            count, _, size, offset = _BITMAPS.unpack(content)
            header.bitmaps = (count, size, offset)
        elif kind == EXTENSION_CRYPTO:
            if length != _CRYPTO.size:
                raise BlockError(f"CRYPTO header extension size {length}, but expected size {_CRYPTO.size}")
            header.crypto = _CRYPTO.unpack(content)
        else:
            header.other_extensions.append((kind, bytes(content)))
        position += -(-length // 8) * 8


def _feature_names(content: bytes) -> dict[int, str]:
    names: dict[int, str] = {}
    # The last entry may end with its name.
    padded = content + bytes(-len(content) % _FEATURE_NAME.size)
    for kind, bit, name in _FEATURE_NAME.iter_unpack(padded):
        if kind == _FEATURE_INCOMPATIBLE and bit < 64:
            text = name.partition(b"\0")[0].decode("utf-8", "replace")
            names.setdefault(bit, "".join(letter if letter.isprintable() else "?" for letter in text))
    return names


def _check_features(header: Header) -> None:
    unknown = header.incompatible_features & ~ALL_INCOMPATIBLE
    if unknown:
        named = [bit for bit in range(64) if unknown >> bit & 1 and header.feature_names.get(bit)]
        texts = [header.feature_names[bit] for bit in named]
        rest = unknown & ~sum(1 << bit for bit in named)
        if rest:
            texts.append(f"Unknown incompatible feature: {rest:x}")
        raise BlockError(f"Unsupported qcow2 feature(s): {', '.join(texts)}")
    marked = bool(header.incompatible_features & Incompatible.COMPRESSION)
    if header.compression_type not in (Compression.ZLIB, Compression.ZSTD):
        raise BlockError(f"qcow2: unknown compression type: {header.compression_type}")
    if marked != (header.compression_type != Compression.ZLIB):
        state = "must not" if marked else "must"
        raise BlockError(f"qcow2: Compression type incompatible feature bit {state} be set")
    if header.refcount_order > MAX_REFCOUNT_ORDER:
        raise BlockError("Reference count entry width too large; may not exceed 64 bits")
    _check_encryption(header)
    if header.extended_l2 and header.cluster_size // SUBCLUSTERS < MIN_SUBCLUSTER_SIZE:
        raise BlockError("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")


def _check_encryption(header: Header) -> None:
    if header.crypt_method not in (CRYPT_NONE, CRYPT_AES, CRYPT_LUKS):
        raise BlockError(f"Unsupported encryption method {header.crypt_method}")
    if header.crypt_method != CRYPT_LUKS:
        if header.crypto is not None:
            raise BlockError("CRYPTO header extension only expected with LUKS encryption method")
        return
    if header.crypto is None:
        raise BlockError(f"Missing CRYPTO header for crypt method {header.crypt_method}")
    offset, length = header.crypto
    if offset % header.cluster_size:
        raise BlockError(
            f"Encryption header offset '{offset}' is not a multiple of cluster size '{header.cluster_size}'"
        )
    if length > MAX_CRYPTO_BYTES:
        raise BlockError("Encryption header too large")


def _check_tables(header: Header) -> None:
    """Check the sizes and places of all tables that the header names."""
    cluster = header.cluster_size
    covered = cluster * (cluster // header.l2_entry_size)
    if header.size > MAX_SIZE or -(-header.size // covered) > MAX_L1_ENTRIES:
        raise BlockError("Image is too big")
    refcount_bytes = header.refcount_table_clusters * cluster
    _check_table(
        header, "Reference count table", header.refcount_table_offset, refcount_bytes, MAX_REFCOUNT_TABLE_BYTES
    )
    _check_table(header, "Active L1 table", header.l1_table_offset, header.l1_size * 8, MAX_L1_BYTES)
    if header.size > header.l1_size * covered:
        raise BlockError("L1 table is too small")
    if header.nb_snapshots > MAX_SNAPSHOTS:
        raise BlockError("Snapshot table too large")
    smallest = header.nb_snapshots * _SMALLEST_SNAPSHOT
    _check_table(header, "Snapshot table", header.snapshots_offset, smallest, MAX_SNAPSHOT_TABLE_BYTES)


def _check_table(header: Header, what: str, offset: int, length: int, limit: int) -> None:
    if length > limit:
        raise BlockError(f"{what} too large")
    if offset % header.cluster_size or offset + length > MAX_SIZE or (length and not offset):
        raise BlockError(f"{what} offset invalid")


def _backing_file(header: Header, data: bytes) -> str:
    start, length = header.backing_file_offset, header.backing_file_size
    if length > min(MAX_BACKING_NAME, header.cluster_size - start) or start + length > len(data):
        raise BlockError("Backing file name too long")
    return _text(data[start : start + length], "backing file name")


def _text(content: bytes, what: str) -> str:
    """Decode a name as the host's file names are, whatever their encoding."""
    if b"\0" in content.rstrip(b"\0"):
        raise BlockError(f"The {what} of the image has a zero byte in it")
    return content.rstrip(b"\0").decode("utf-8", "surrogateescape")


def encode_fields(header: Header) -> bytes:
    """Return the fixed part of a header, which is in the file's first sector."""
    fixed = _HEADER_V2.pack(
        MAGIC,
        header.version,
        header.backing_file_offset,
        header.backing_file_size,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    )
    if header.version < 3:
        return fixed
    fixed += _HEADER_V3.pack(
        header.incompatible_features,
        header.compatible_features,
        header.autoclear_features,
        header.refcount_order,
        header.header_length,
    )
    if header.header_length > COMPRESSION_TYPE_OFFSET:
        fixed += bytes([header.compression_type, *bytes(7)])
    return fixed


def encode_header(header: Header) -> bytes:
    """Return what the first cluster begins with; places the backing file's name.  Raises BlockError without room."""
    known = HEADER_V2_SIZE if header.version < 3 else HEADER_WRITTEN_SIZE
    header.header_length = known + len(header.other_fields) if header.version >= 3 else known
    extensions = b"".join(_extension(kind, content) for kind, content in _extensions(header))
    start = header.header_length + len(extensions)
    name = b"" if header.backing_file is None else header.backing_file.encode("utf-8", "surrogateescape")
    if len(name) > MAX_BACKING_NAME:
        raise BlockError("Backing file name too long")
    if start + len(name) > header.cluster_size:
        raise BlockError("The header of the image does not fit into its first cluster")
    header.backing_file_offset = start if name else 0
    header.backing_file_size = len(name)
    fields = encode_fields(header) + (header.other_fields if header.version >= 3 else b"")
    return fields + extensions + name


def _extension(kind: int, content: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(content)) + content + bytes(-len(content) % 8)


def _extensions(header: Header) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    if header.backing_file is not None and header.backing_format:
        found.append((EXTENSION_BACKING_FORMAT, header.backing_format.encode("utf-8", "surrogateescape")))
    if header.external_data and header.data_file is not None:
        found.append((EXTENSION_DATA_FILE, header.data_file.encode("utf-8", "surrogateescape")))
    if header.crypto is not None:
        found.append((EXTENSION_CRYPTO, _CRYPTO.pack(*header.crypto)))
    if header.version >= 3 and header.cluster_size > _ROOM_FOR_NAMES:
        table = b"".join(_FEATURE_NAME.pack(*feature) for feature in _FEATURES)
        found.append((EXTENSION_FEATURE_NAMES, table))
    if header.bitmaps is not None and header.bitmaps[0]:
        count, size, offset = header.bitmaps
        found.append((EXTENSION_BITMAPS, _BITMAPS.pack(count, 0, size, offset)))
    found += header.other_extensions
    found.append((EXTENSION_END, b""))
    return found
