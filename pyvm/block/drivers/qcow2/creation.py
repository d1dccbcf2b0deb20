"""Making a qcow2 image: its options with QEMU's rules, the first structures of the file, and how large it would be."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from pyvm.annotations import TYPE_CHECKING, Any, NamedTuple
from pyvm.block.drivers.qcow2.encryption import PREFIX, AesOptions
from pyvm.block.drivers.qcow2.structures import (
    CRYPT_AES,
    CRYPT_LUKS,
    CRYPT_NONE,
    MAX_BACKING_NAME,
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MAX_SIZE,
    MIN_CLUSTER_BITS,
    MIN_SUBCLUSTER_SIZE,
    SUBCLUSTERS,
    Autoclear,
    Compatible,
    Compression,
    Header,
    Incompatible,
    encode_header,
)
from pyvm.block.drivers.qcow2.tables import encode_entries
from pyvm.block.errors import BlockError
from pyvm.block.node import PREALLOCATIONS, Node, Preallocation
from pyvm.block.option_values import parse_flag, parse_number, parse_size

if TYPE_CHECKING:
    from pyvm.block.luks import CreateOptions as LuksOptions

_COMPRESSIONS = {"zlib": Compression.ZLIB, "zstd": Compression.ZSTD}
DEFAULT_CLUSTER_SIZE = 65536


class CreateOptions(NamedTuple):
    """What an image is to be."""

    size: int
    version: int = 3
    cluster_bits: int = 16
    refcount_order: int = 4
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: int = Compression.ZLIB
    preallocation: Preallocation = "off"
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    encrypt: LuksOptions | AesOptions | None = None

    @property
    def cluster_size(self) -> int:
        """In bytes."""
        return 1 << self.cluster_bits

    @property
    def l2_entry_size(self) -> int:
        """In bytes."""
        return 16 if self.extended_l2 else 8

    @property
    def crypto_bytes(self) -> int:
        """How long the encryption header is."""
        return self.encrypt.payload_offset if self.encrypt is not None else 0


# ---- Values of options


def parse_version(value: Any, name: str = "version") -> int:
    """Return the version of a compatibility level.  Raises BlockError."""
    versions = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
    if str(value) not in versions:
        if name == "compat":
            raise BlockError(f"Unknown compatibility level {value}")
        raise BlockError(f"Parameter '{name}' does not accept value '{value}'")
    return versions[str(value)]


def refcount_order_of(bits: int) -> int:
    """Return the logarithm of a width of refcounts.  Raises BlockError."""
    if bits > 64 or bits < 1 or bits & (bits - 1):
        raise BlockError("Refcount width must be a power of two and may not exceed 64 bits")
    return bits.bit_length() - 1


def read_options(given: Mapping[str, Any], size: int) -> CreateOptions:
    """Return the options for an image of `size` bytes; values as in :mod:`pyvm.block.create`.  Raises BlockError."""
    version = parse_version(given.get("compat", "1.1"))
    preallocation = str(given.get("preallocation", "off"))
    if preallocation not in PREALLOCATIONS:
        raise BlockError(f"Parameter 'preallocation' does not accept value '{preallocation}'")
    compression = str(given.get("compression_type", "zlib"))
    if compression not in _COMPRESSIONS:
        raise BlockError(f"Parameter 'compression-type' does not accept value '{compression}'")
    cluster = parse_size(given.get("cluster_size", DEFAULT_CLUSTER_SIZE), "cluster_size")
    if not 1 << MIN_CLUSTER_BITS <= cluster <= 1 << MAX_CLUSTER_BITS or cluster & (cluster - 1):
        raise BlockError(f"Cluster size must be a power of two between {1 << MIN_CLUSTER_BITS} and 2048k")
    refcount_bits = parse_number(given.get("refcount_bits", 16), "refcount_bits")
    options = CreateOptions(
        size=-(-size // 512) * 512,
        version=version,
        cluster_bits=cluster.bit_length() - 1,
        refcount_order=refcount_order_of(refcount_bits),
        lazy_refcounts=parse_flag(given.get("lazy_refcounts", False), "lazy_refcounts"),
        extended_l2=parse_flag(given.get("extended_l2", False), "extended_l2"),
        compression_type=_COMPRESSIONS[compression],
        preallocation=preallocation,  # type: ignore[arg-type]
        backing_file=given.get("backing_file") or None,
        backing_format=given.get("backing_fmt") or None,
        data_file=given.get("data_file") or None,
        data_file_raw=parse_flag(given.get("data_file_raw", False), "data_file_raw"),
        encrypt=_encryption(given),
    )
    _check_together(options)
    return options


def _encryption(given: Mapping[str, Any]) -> LuksOptions | AesOptions | None:
    """Return how an image is to be encrypted.  Raises BlockError."""
    old = "encryption" in given and parse_flag(given["encryption"], "encryption")
    if "encryption" in given and f"{PREFIX}format" in given:
        raise BlockError("'encrypt.format' and its alias 'encryption' can't be used at the same time")
    kind = "aes" if old else given.get(f"{PREFIX}format")
    if kind is None:
        if any(name.startswith(PREFIX) for name in given):
            raise BlockError("Parameter 'encrypt.format' is missing")
        return None
    if kind == "aes":
        from pyvm.wire_order import wire_order

        known = (f"{PREFIX}format", f"{PREFIX}key-secret")
        other = next((name for name in wire_order(given) if name.startswith(PREFIX) and name not in known), None)
        if other is not None:
            raise BlockError(f"Parameter '{other}' is unexpected")
        return AesOptions(given.get(f"{PREFIX}key-secret"))
    if kind != "luks":
        raise BlockError(f"Parameter 'format' does not accept value '{kind}'")
    from pyvm.block.luks import read_options as read_luks_options

    return read_luks_options(given, PREFIX)


_NEEDS_V3 = "with compatibility level 1.1 and above (use version=v3 or greater)"


class ImageTooLargeError(BlockError):
    """No tables can describe a disk of that size."""


def _check_together(options: CreateOptions) -> None:
    old = options.version < 3
    if options.extended_l2 and old:
        raise BlockError(f"Extended L2 entries are only supported {_NEEDS_V3}")
    if options.extended_l2 and options.cluster_size // SUBCLUSTERS < MIN_SUBCLUSTER_SIZE:
        raise BlockError(
            "Extended L2 entries are only supported with cluster sizes of at least"
            f" {SUBCLUSTERS * MIN_SUBCLUSTER_SIZE} bytes"
        )
    if options.preallocation != "off" and options.backing_file and not options.extended_l2:
        raise BlockError("Backing file and preallocation can only be used at the same time if extended_l2 is on")
    if options.lazy_refcounts and old:
        raise BlockError(f"Lazy refcounts only supported {_NEEDS_V3}")
    if options.refcount_order != 4 and old:
        raise BlockError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or"
            " greater)"
        )
    if options.backing_format and not options.backing_file:
        raise BlockError("Backing format cannot be used without backing file")
    if options.data_file_raw and not options.data_file:
        raise BlockError("data-file-raw requires data-file")
    if options.data_file_raw and options.backing_file:
        raise BlockError("Backing file and data-file-raw cannot be used at the same time")
    if options.data_file and old:
        raise BlockError(f"External data files are only supported {_NEEDS_V3}")
    if options.compression_type != Compression.ZLIB and old:
        raise BlockError(f"Non-zlib compression type is only supported {_NEEDS_V3}")
    if options.backing_file and len(options.backing_file.encode("utf-8", "surrogateescape")) > MAX_BACKING_NAME:
        raise BlockError("Backing file name too long")
    _l1_entries(options)


def _l1_entries(options: CreateOptions) -> int:
    covered = options.cluster_size * (options.cluster_size // options.l2_entry_size)
    entries = -(-options.size // covered)
    if options.size > MAX_SIZE or entries * 8 > MAX_L1_BYTES:
        raise ImageTooLargeError(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
        )
    return entries


# ---- The file


def write_empty(file: Node, options: CreateOptions, crypto: bytes = b"") -> Header:
    """Write an image without data to an empty file; return its header.  Raises OSError, or BlockError.

    `crypto` is the encryption header, where there is to be one.
    """
    cluster = options.cluster_size
    l1_bytes = _l1_entries(options) * 8
    l1_clusters = -(-l1_bytes // cluster)
    crypto_clusters = -(-len(crypto) // cluster)
    table_clusters, blocks = _room_for_counts(options, 1 + l1_clusters + crypto_clusters)
    used = 1 + table_clusters + blocks + l1_clusters + crypto_clusters
    header = Header(
        version=options.version,
        backing_file_offset=0,
        backing_file_size=0,
        cluster_bits=options.cluster_bits,
        size=options.size,
        crypt_method=CRYPT_LUKS if crypto else CRYPT_AES if options.encrypt is not None else CRYPT_NONE,
        l1_size=_l1_entries(options),
        l1_table_offset=(1 + table_clusters + blocks) * cluster if l1_clusters else 0,
        refcount_table_offset=cluster,
        refcount_table_clusters=table_clusters,
        nb_snapshots=0,
        snapshots_offset=0,
        refcount_order=options.refcount_order,
        compression_type=options.compression_type,
        backing_file=options.backing_file,
        backing_format=options.backing_format,
        data_file=options.data_file,
        crypto=((used - crypto_clusters) * cluster, len(crypto)) if crypto else None,
    )
    _set_features(header, options)
    head = encode_header(header).ljust(cluster, b"\0")
    table = array("Q", [(1 + table_clusters + number) * cluster for number in range(blocks)])
    file.write(cluster, encode_entries(table, 64).ljust(table_clusters * cluster, b"\0"))
    _write_counts(file, options, (1 + table_clusters) * cluster, used, blocks)
    if l1_clusters:
        file.write(header.l1_table_offset, bytes(l1_bytes))
    if header.crypto is not None:
        file.write(header.crypto[0], crypto.ljust(crypto_clusters * cluster, b"\0"))
    # The header comes last: until then this is no image.
    file.flush()
    file.write(0, head)
    file.flush()
    return header


def _room_for_counts(options: CreateOptions, others: int) -> tuple[int, int]:
    """Return how many clusters the refcount table and its blocks take in an image that has `others` besides."""
    table_clusters = blocks = 1
    while True:
        needed = -(-(others + table_clusters + blocks) >> _counts_shift(options))
        if needed <= blocks and blocks * 8 <= table_clusters * options.cluster_size:
            return table_clusters, blocks
        blocks = max(blocks, needed)
        table_clusters = max(table_clusters, -(-blocks * 8 // options.cluster_size))


def _counts_shift(options: CreateOptions) -> int:
    """Return the binary logarithm of how many clusters a refcount block counts."""
    return options.cluster_bits + 3 - options.refcount_order


def _set_features(header: Header, options: CreateOptions) -> None:
    if options.lazy_refcounts:
        header.compatible_features |= Compatible.LAZY_REFCOUNTS
    if options.extended_l2:
        header.incompatible_features |= Incompatible.EXTENDED_L2
    if options.compression_type != Compression.ZLIB:
        header.incompatible_features |= Incompatible.COMPRESSION
    if options.data_file:
        header.incompatible_features |= Incompatible.DATA_FILE
        header.autoclear_features |= Autoclear.RAW_DATA_FILE if options.data_file_raw else 0


def _write_counts(file: Node, options: CreateOptions, offset: int, used: int, blocks: int) -> None:
    """Write the refcount blocks for `used` clusters from the start of the file."""
    width = 1 << options.refcount_order
    typecode = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(width, 8)]
    per_block = 1 << _counts_shift(options)
    for number in range(blocks):
        count = min(max(used - number * per_block, 0), per_block)
        entries = array(typecode, [1]) * count + array(typecode, [0]) * (per_block - count)
        file.write(offset + (number << options.cluster_bits), encode_entries(entries, width))


# ---- How large it would be


class Measurement(NamedTuple):
    """How many bytes an image takes."""

    required: int
    """With the data that there is."""
    fully_allocated: int
    """When all of the disk has been written."""


def measure(options: CreateOptions, extents: Iterable[tuple[int, int, bool]] = ()) -> Measurement:
    """Return how large an image with these options is.

    `extents` is what the source has: offsets, lengths, and whether it is data, as opposed to zeros or nothing.
    """
    cluster = options.cluster_size
    virtual = -(-options.size // cluster) * cluster
    _l1_entries(options)
    data = 0
    if options.backing_file:
        # How much both have in common, nobody knows.
        data = virtual
    else:
        counted = 0
        for offset, length, is_data in extents:
            start, end = offset // cluster * cluster, -(-(offset + length) // cluster) * cluster
            start = max(start, counted)
            if is_data and length and end > start:
                data += end - start
                counted = end
    if options.preallocation in ("falloc", "full"):
        data = virtual
    full = _metadata_size(options, virtual) + virtual + -(-options.crypto_bytes // cluster) * cluster
    return Measurement(full - virtual + data, full)


def _metadata_size(options: CreateOptions, virtual: int) -> int:
    cluster = options.cluster_size
    entries = -(-(virtual // cluster) // (cluster // options.l2_entry_size)) * (cluster // options.l2_entry_size)
    size = cluster + entries * options.l2_entry_size
    tables = entries * options.l2_entry_size // cluster
    size += -(-tables // (cluster // 8)) * cluster
    clusters = (size + virtual) // cluster
    per_table, per_block = cluster // 8, cluster * 8 >> options.refcount_order
    table = blocks = last = 0
    total = -1
    while total != last:
        last = total
        blocks = -(-(clusters + table + blocks) // per_block)
        table = -(-blocks // per_table)
        total = clusters + blocks + table
    return size + (blocks + table) * cluster
