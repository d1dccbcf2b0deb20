"""Changing an image's creation options: version, lazy refcounts, width of refcounts, backing file, size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.block.drivers.qcow2 import resize, walk
from pyvm.block.drivers.qcow2.creation import parse_version, refcount_order_of
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.encryption import PREFIX
from pyvm.block.drivers.qcow2.mapping import Kind
from pyvm.block.drivers.qcow2.rebuild import plan_behind, write_structure
from pyvm.block.drivers.qcow2.structures import COMPRESSED, MAX_BACKING_NAME, OFFSET_MASK, Autoclear, Compatible
from pyvm.block.errors import BlockError
from pyvm.block.luks import AMEND_OPTIONS
from pyvm.block.option_values import parse_flag, parse_number, parse_size

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.secrets import Secrets

Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""

_OLD_REFCOUNT_ORDER = 4
"""The only one of version 2."""
OPTIONS = frozenset(
    {
        *("backing_file", "backing_fmt", "compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits"),
        *("size", *(f"{PREFIX}{name}" for name in (*AMEND_OPTIONS, "secret"))),
    }
)


def change_backing(disk: Disk, filename: str | None, backing_format: str | None) -> None:
    """Write another backing file's name, or none, into the header.  Raises OSError, or BlockError."""
    header = disk.header
    if filename and len(filename.encode("utf-8", "surrogateescape")) > MAX_BACKING_NAME:
        raise BlockError("Backing file name too long")
    if filename and header.autoclear_features & Autoclear.RAW_DATA_FILE and header.external_data:
        raise BlockError("Cannot set a backing file for images with data-file-raw")
    old = header.backing_file, header.backing_format
    header.backing_file, header.backing_format = filename or None, (backing_format or None) if filename else None
    try:
        disk.settle()
        disk.image.commit_header()
    except BlockError:
        header.backing_file, header.backing_format = old
        raise


def amend(
    node: Qcow2Node,
    options: Mapping[str, Any],
    progress: Progress | None = None,
    *,
    secrets: Secrets | None = None,
    force: bool = False,
) -> None:
    """Change what the options say, values as for creation.  Raises OSError, or BlockError.

    `secrets` are those that options about encryption name; `force` lets them erase the last key.
    """
    disk = node.disk
    header = disk.header
    for key in options:
        if key not in OPTIONS:
            raise BlockError(f"Invalid parameter '{key}'")
    version = parse_version(options["compat"], "compat") if "compat" in options else header.version
    order = header.refcount_order
    if "refcount_bits" in options:
        order = refcount_order_of(parse_number(options["refcount_bits"], "refcount_bits"))
    if order not in (header.refcount_order, _OLD_REFCOUNT_ORDER) and version < 3:
        raise BlockError(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
        )
    lazy = bool(header.compatible_features & Compatible.LAZY_REFCOUNTS)
    if "lazy_refcounts" in options:
        lazy = parse_flag(options["lazy_refcounts"], "lazy_refcounts")
    _check_data_file(disk, options)
    _amend_encryption(node, options, secrets, force)
    # Upgrade first, downgrade last: in between, everything that either version has is allowed.
    if version > header.version:
        _upgrade(disk)
    if order != header.refcount_order:
        change_refcount_order(disk, order)
    if "data_file_raw" in options:
        _set_raw(disk, parse_flag(options["data_file_raw"], "data_file_raw"))
    if "data_file" in options:
        header.data_file = str(options["data_file"]) or None
        disk.settle()
        disk.image.commit_header()
    if "backing_file" in options or "backing_fmt" in options:
        name = options.get("backing_file", header.backing_file)
        change_backing(disk, name or None, options.get("backing_fmt", header.backing_format))
    _set_lazy(disk, lazy, version)
    if "size" in options:
        resize.truncate(node, parse_size(options["size"], "size"), "off")
    if version < header.version:
        _downgrade(node, progress)
    elif progress is not None:
        progress(1, 1)


def _amend_encryption(node: Qcow2Node, options: Mapping[str, Any], secrets: Secrets | None, force: bool) -> None:
    """Change key slots."""
    from pyvm.block.create import normalise_amendment
    from pyvm.secrets import Secrets

    given = {name: value for name, value in options.items() if name.startswith(PREFIX)}
    if not given:
        return
    if node.encryption is None:
        raise BlockError("Can't amend encryption options - encryption not present")
    if node.encryption.volume is None:
        raise BlockError("Only LUKS encryption options can be amended")
    unlocking = given.pop(f"{PREFIX}secret", None)
    found = normalise_amendment("qcow2", given)
    node.encryption.volume.amend(found, secrets or Secrets(), force=force, prefix=PREFIX, unlocking=unlocking)


def _check_data_file(disk: Disk, options: Mapping[str, Any]) -> None:
    header = disk.header
    if "data_file" in options and not header.external_data:
        raise BlockError("data-file can only be set for images that use an external data file")
    is_raw = header.external_data and bool(header.autoclear_features & Autoclear.RAW_DATA_FILE)
    if "data_file_raw" in options and parse_flag(options["data_file_raw"], "data_file_raw") and not is_raw:
        raise BlockError("data-file-raw cannot be set on existing images")


def _set_raw(disk: Disk, raw: bool) -> None:
    if not raw and disk.header.autoclear_features & Autoclear.RAW_DATA_FILE:
        disk.header.autoclear_features &= ~int(Autoclear.RAW_DATA_FILE)
        disk.image.commit_fields()


def _set_lazy(disk: Disk, lazy: bool, version: int) -> None:
    header = disk.header
    if lazy == bool(header.compatible_features & Compatible.LAZY_REFCOUNTS):
        return
    if lazy and (header.version < 3 or version < 3):
        raise BlockError(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"
        )
    if lazy:
        header.compatible_features |= Compatible.LAZY_REFCOUNTS
        disk.image.commit_fields()
    else:
        disk.make_clean()
        header.compatible_features &= ~int(Compatible.LAZY_REFCOUNTS)
        disk.image.commit_fields()
    disk.image.lazy = lazy


def _upgrade(disk: Disk) -> None:
    """Version 3 has a longer header, and extra data with every snapshot."""
    header = disk.header
    short = any(it.disk_size is None for it in disk.snapshots)
    disk.settle()
    if short:
        disk.put_snapshots(disk.snapshots)
        disk.settle()
        disk.read_directories()
    header.version = 3
    try:
        disk.image.commit_header()
    except BlockError:
        header.version = 2
        raise


def _downgrade(node: Qcow2Node, progress: Progress | None) -> None:
    """Version 2 has no zero clusters, and nothing that an old program would not know."""
    disk = node.disk
    header = disk.header
    if header.refcount_order != _OLD_REFCOUNT_ORDER:
        raise BlockError("compat=0.10 requires refcount_bits=16")
    if header.external_data:
        raise BlockError("Cannot downgrade an image with a data file")
    if any(it.vm_state_size >= 1 << 32 or it.disk_size not in (None, header.size) for it in disk.snapshots):
        raise BlockError("Internal snapshots prevent downgrade of image")
    disk.make_clean()
    if header.incompatible_features:
        features = int(header.incompatible_features)
        raise BlockError(f"Cannot downgrade an image with incompatible features {features:#x} set")
    _expand_zeros(node, progress)
    disk.settle()
    header.version = 2
    header.compatible_features = header.autoclear_features = 0
    header.other_fields = b""
    old = disk.bitmaps
    header.bitmaps = None
    disk.image.commit_header()
    if old:
        disk.bitmaps = []
    disk.image.lazy = False


def _expand_zeros(node: Qcow2Node, progress: Progress | None) -> None:
    """Let no cluster be a zero cluster any more: in the active tables, and in those of snapshots."""
    disk = node.disk
    header = disk.header
    end = disk.mapping.table_span() * len(disk.image.l1)
    entries = len(disk.image.l1) + sum(it.l1_size for it in disk.snapshots)
    offset = 0
    while offset < end:
        kind, _, size = disk.mapping.status(offset, min(end - offset, disk.mapping.table_span()))
        if kind is Kind.ZERO:
            _write_zero_clusters(node, offset, size)
        offset += size
        if progress is not None:
            progress(offset, entries * disk.mapping.table_span())
    disk.settle()
    _expand_snapshots(disk, progress, entries)
    disk.settle()
    disk.mapping.cache.clear()
    if header.nb_snapshots:
        disk.image.file.flush()


def _expand_snapshots(disk: Disk, progress: Progress | None, entries: int) -> None:
    """Do so in the tables of snapshots; `entries` are those of all L1 tables."""
    seen: set[int] = set()
    done = len(disk.image.l1)
    for snapshot in disk.snapshots:
        entries_of = disk.image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        for number, entry in enumerate(entries_of):
            table = entry & OFFSET_MASK
            if table and table not in seen:
                seen.add(table)
                _expand_inactive(disk, table, number)
            done += 1
            if progress is not None:
                progress(done, entries)


def _write_zero_clusters(node: Qcow2Node, offset: int, length: int) -> None:
    """Write zeros where something below would show otherwise; give the clusters back where nothing would."""
    cluster = node.cluster_size
    if node.disk.backing is None:
        node.disk.forget(offset, length)
        return
    zeros = bytes(cluster)
    for start in range(offset, offset + length, cluster):
        node.write_tail(start, zeros)


def _expand_inactive(disk: Disk, table: int, number: int) -> None:
    """Do so in L2 table `number` that only snapshots have, in its place: all that see it see the same as before."""
    import numpy as np

    bits = disk.header.cluster_bits
    words = walk.read_table(disk.image, table)
    zero = np.flatnonzero((words & np.uint64(1) != 0) & (words & np.uint64(COMPRESSED) == 0)).tolist()
    if not zero:
        return
    shares = disk.refcounts.count(table >> bits)
    freed = []
    for index in zero:
        host = int(words[index]) & OFFSET_MASK
        if disk.backing is None:
            words[index] = 0
            if host:
                freed += [host >> bits] * shares
            continue
        new, _ = disk.refcounts.allocate(1)
        cluster = disk.header.cluster_size
        disk.updater.write_at(new, (number * len(words) + index) << bits, cluster, (memoryview(bytes(cluster)),))
        if shares > 1:
            disk.refcounts.add(np.array([new >> bits], np.uint64), np.array([shares - 1], np.uint64))
        words[index] = new
        if host:
            freed += [host >> bits] * shares
    disk.refcounts.write_blocks()
    disk.file.flush()
    disk.file.write(table, walk.encode_table(words))
    disk.file.flush()
    disk.refcounts.release_all(np.array(freed, np.uint64))
    disk.make_room()


def change_refcount_order(disk: Disk, order: int) -> None:
    """Write all refcounts anew with another width, and let the header name them.  Raises OSError, or BlockError."""
    import numpy as np

    image, header, refcounts = disk.image, disk.header, disk.refcounts
    disk.make_clean()
    blocks = {entry >> header.cluster_bits for entry in refcounts.table if entry}
    first = header.refcount_table_offset >> header.cluster_bits
    blocks.update(range(first, first + header.refcount_table_clusters))
    numbers, counts = [], []
    cluster, end = 0, len(refcounts.table) << refcounts.per_block_bits
    while cluster < end:
        stop, part = refcounts.part(cluster)
        if part is not None:
            used = np.flatnonzero(part)
            numbers.append(used.astype(np.uint64) + np.uint64(cluster))
            counts.append(part[used].astype(np.uint64))
        cluster = stop
    every, amounts = np.concatenate(numbers), np.concatenate(counts)
    keep = ~np.isin(every, np.array(sorted(blocks), np.uint64))
    every, amounts = every[keep], amounts[keep]
    most = (1 << (1 << order)) - 1
    too_many = np.flatnonzero(amounts > np.uint64(most))
    if len(too_many):
        at = int(too_many[0])
        raise BlockError(
            f"Cannot decrease refcount entry width to {1 << order} bits: Cluster at offset"
            f" {int(every[at]) << header.cluster_bits:#x} has a refcount of {int(amounts[at])}"
        )
    start = max(image.clusters(disk.file.length()), refcounts.last_used(1 << 62) + 1)
    plan = plan_behind(header.cluster_bits, order, every, start)
    offset, clusters = write_structure(image, every, amounts, order, plan)
    header.refcount_table_offset, header.refcount_table_clusters = offset, clusters
    header.refcount_order = order
    image.commit_fields()
    refcounts.reload()
    disk.map_tables()
