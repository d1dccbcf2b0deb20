"""Persistent bitmaps: which parts of a disk have been written ("Bitmaps").

They are kept, also through changes of the size, and can be loaded, stored, added and removed.  A bitmap is bytes here:
bit `i`, the lowest of a byte first, is for the bytes of the disk from `i * granularity` on.

An image with bitmaps says so in its autoclear features.  A program that writes and does not know bitmaps clears that,
and makes them void.  One that does know them marks as "in use" what it does not keep up to date on the disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from pyvm.annotations import Any
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.overlap import Kind
from pyvm.block.drivers.qcow2.records import (
    BITMAP_ALL_ONES,
    BITMAP_AUTO,
    BITMAP_DIRTY_TRACKING,
    BITMAP_IN_USE,
    BITMAP_OFFSET_MASK,
    BITMAP_RESERVED_MASK,
    MAX_BITMAP_BYTES,
    MAX_BITMAP_NAME,
    MAX_BITMAPS,
    MAX_GRANULARITY_BITS,
    MIN_GRANULARITY_BITS,
    Bitmap,
    encode_bitmaps,
    parse_bitmaps,
)
from pyvm.block.drivers.qcow2.structures import Autoclear
from pyvm.block.drivers.qcow2.tables import encode_entries
from pyvm.block.errors import BlockError


def describe(disk: Disk) -> list[dict[str, Any]]:
    """Return what query-block says of the bitmaps."""
    found = []
    for it in disk.bitmaps:
        flags = [name for name, there in (("in-use", it.in_use), ("auto", it.auto)) if there]
        found.append({"flags": flags, "name": it.name, "granularity": it.granularity})
    return found


def length_for(size: int, granularity_bits: int) -> int:
    """Return how many bytes a bitmap of a disk of `size` bytes has."""
    return -(-size >> granularity_bits) + 7 >> 3


def _table(disk: Disk, bitmap: Bitmap) -> array[int]:
    return disk.image.read_table(f"bitmap table of '{bitmap.name}'", bitmap.table_offset, bitmap.table_size)


def load(disk: Disk, bitmap: Bitmap) -> bytearray:
    """Return the content of a bitmap.  Raises BlockError for one that is in use or broken, OSError."""
    if bitmap.in_use:
        raise BlockError(f"Bitmap '{bitmap.name}' is inconsistent and cannot be used")
    cluster = disk.header.cluster_size
    length = length_for(disk.header.size, bitmap.granularity_bits)
    whole = bitmap.table_size == -(-length // cluster) and length <= MAX_BITMAP_BYTES
    if bitmap.kind != BITMAP_DIRTY_TRACKING or not whole:
        raise BlockError(f"Bitmap '{bitmap.name}' is broken")
    table = _table(disk, bitmap)
    content = bytearray(length)
    for index, entry in enumerate(table):
        offset = entry & BITMAP_OFFSET_MASK
        start, stop = index * cluster, min((index + 1) * cluster, length)
        if entry & BITMAP_RESERVED_MASK or offset % cluster or (offset and entry & BITMAP_ALL_ONES):
            raise BlockError(f"Bitmap '{bitmap.name}' is broken")
        if offset:
            content[start:stop] = disk.image.read_bytes(f"bitmap '{bitmap.name}'", offset, stop - start)
        elif entry & BITMAP_ALL_ONES:
            content[start:stop] = b"\xff" * (stop - start)
    _clear_behind(content, disk.header.size, bitmap.granularity_bits)
    return content


def _clear_behind(content: bytearray, size: int, granularity_bits: int) -> None:
    """Bits behind the end of the disk mean nothing."""
    bits = -(-size >> granularity_bits)
    if bits % 8:
        content[-1] &= (1 << bits % 8) - 1


def regions(disk: Disk) -> Iterator[tuple[int, int]]:
    """Yield offset and length of all that the bitmaps have in the file, whatever their state.  Raises BlockError."""
    if disk.header.bitmaps is None or not disk.bitmaps:
        return
    _, size, offset = disk.header.bitmaps
    yield offset, size
    for bitmap in disk.bitmaps:
        yield from _regions_of(disk, bitmap)


def _regions_of(disk: Disk, bitmap: Bitmap) -> Iterator[tuple[int, int]]:
    yield bitmap.table_offset, bitmap.table_size * 8
    for entry in _table(disk, bitmap):
        if entry & BITMAP_OFFSET_MASK:
            yield entry & BITMAP_OFFSET_MASK, disk.header.cluster_size


# ---- Changes


def check_name(disk: Disk, name: str, granularity_bits: int, others: Sequence[str] = ()) -> None:
    """Raise BlockError where no bitmap with this name can be added; `others` will be in the image, too."""
    if disk.header.version < 3:
        raise BlockError("Cannot store dirty bitmaps in qcow2 v2 files")
    if not name or len(name.encode("utf-8", "surrogateescape")) > MAX_BITMAP_NAME:
        raise BlockError(f"The name of a bitmap has 1 to {MAX_BITMAP_NAME} bytes")
    if not MIN_GRANULARITY_BITS <= granularity_bits <= MAX_GRANULARITY_BITS:
        raise BlockError(
            f"Granularity is not between {1 << MIN_GRANULARITY_BITS} and {1 << MAX_GRANULARITY_BITS} bytes"
        )
    if length_for(disk.header.size, granularity_bits) > MAX_BITMAP_BYTES:
        raise BlockError("Too much space will be occupied by the bitmap. Use larger granularity")
    names = {it.name for it in disk.bitmaps}.union(others)
    if name in names:
        raise BlockError(f"Bitmap already exists: {name}")
    if len(names) >= MAX_BITMAPS:
        raise BlockError("Maximum number of persistent bitmaps is already reached")


def add(disk: Disk, name: str, granularity_bits: int, *, auto: bool = True, content: bytes | None = None) -> None:
    """Add a bitmap; it is empty where no content is given.  Raises OSError, or BlockError."""
    check_name(disk, name, granularity_bits)
    bitmap = Bitmap(name, 0, 0, BITMAP_AUTO if auto else 0, granularity_bits)
    length = length_for(disk.header.size, granularity_bits)
    _replace(disk, {bitmap.name: bytes(length) if content is None else content}, [*disk.bitmaps, bitmap])


def store(disk: Disk, name: str, content: bytes | bytearray) -> None:
    """Give a bitmap another content; it is not in use any more.  Raises OSError, or BlockError."""
    if not any(it.name == name for it in disk.bitmaps):
        raise BlockError(f"Dirty bitmap '{name}' not found")
    _replace(disk, {name: content}, disk.bitmaps)


def are_stored(disk: Disk, contents: dict[str, tuple[int, bool, bytes]]) -> bool:
    """Return whether the image has these bitmaps already, and no others; see :func:`store_all`.  Raises as that."""
    if {it.name for it in disk.bitmaps} != contents.keys() or any(it.in_use for it in disk.bitmaps):
        return False
    return all((it.granularity_bits, it.auto, bytes(load(disk, it))) == contents[it.name] for it in disk.bitmaps)


def store_all(disk: Disk, contents: dict[str, tuple[int, bool, bytes]]) -> None:
    """Let the image have these bitmaps, and those that are in use and not among them, which nobody looked after.

    For each name: granularity in bits, whether it follows all writes, and content.  Raises OSError, or BlockError.
    """
    known = {it.name: it for it in disk.bitmaps}
    # Those that the image has already keep their places in its directory.
    kept = []
    for name in [*known, *(name for name in contents if name not in known)]:
        if name not in contents:
            kept.append(known[name])
            continue
        granularity_bits, auto, _ = contents[name]
        extra = known[name].extra if name in known else b""
        kept.append(Bitmap(name, 0, 0, BITMAP_AUTO if auto else 0, granularity_bits, extra=extra))
    if kept or disk.bitmaps:
        _replace(disk, {name: content for name, (_, _, content) in contents.items()}, kept)


def remove(disk: Disk, name: str) -> None:
    """Remove a bitmap.  Raises OSError, or BlockError."""
    kept = [it for it in disk.bitmaps if it.name != name]
    if len(kept) == len(disk.bitmaps):
        raise BlockError(f"Dirty bitmap '{name}' not found")
    _replace(disk, {}, kept)


def load_all(disk: Disk) -> dict[str, bytearray]:
    """Return the contents of all bitmaps that are up to date.  Raises BlockError, OSError."""
    return {it.name: load(disk, it) for it in disk.bitmaps if not it.in_use}


def check_resizable(disk: Disk) -> None:
    """Raise BlockError where a bitmap stands against another size of the disk."""
    if disk.bitmaps_kept:
        return
    for it in disk.bitmaps:
        if it.in_use:
            raise BlockError(f"Bitmap '{it.name}' is inconsistent and cannot be used")


def store_resized(disk: Disk, contents: dict[str, bytearray]) -> None:
    """Store bitmaps of a disk that has another size now.  Raises OSError, or BlockError."""
    if not contents:
        return
    fitting: dict[str, bytes | bytearray] = {}
    for it in disk.bitmaps:
        if it.name in contents:
            length = length_for(disk.header.size, it.granularity_bits)
            content = contents[it.name][:length].ljust(length, b"\0")
            _clear_behind(content, disk.header.size, it.granularity_bits)
            fitting[it.name] = content
    _replace(disk, fitting, disk.bitmaps)


def _replace(disk: Disk, contents: dict[str, bytes | bytearray], bitmaps: list[Bitmap]) -> None:
    """Write these contents and another directory with `bitmaps`, let the header name it, and give the old ones back."""
    refcounts, image, header = disk.refcounts, disk.image, disk.header
    kept = {it.name for it in bitmaps} - contents.keys()
    old = list(_old_regions(disk, kept))
    disk.settle()
    changed = [_written(disk, it, contents[it.name]) if it.name in contents else it for it in bitmaps]
    directory = encode_bitmaps(changed)
    offset = 0
    if directory:
        offset = refcounts.allocate_run(image.clusters(len(directory)))
        disk.file.write(offset, directory)
    refcounts.write_blocks()
    header.bitmaps = (len(changed), len(directory), offset) if directory else None
    if directory:
        header.autoclear_features |= Autoclear.BITMAPS
    else:
        header.autoclear_features &= ~int(Autoclear.BITMAPS)
    image.commit_header()
    image.tables.move_range(Kind.BITMAP_DIRECTORY, offset, len(directory))
    disk.bitmaps = list(parse_bitmaps(directory, len(changed), offset))
    for start, length in old:
        refcounts.release(start, length)
    disk.settle()


def _old_regions(disk: Disk, kept: set[str]) -> Iterator[tuple[int, int]]:
    if disk.header.bitmaps is None or not disk.bitmaps:
        return
    yield disk.header.bitmaps[2], disk.header.bitmaps[1]
    for it in disk.bitmaps:
        if it.name not in kept:
            yield from _regions_of(disk, it)


def _written(disk: Disk, bitmap: Bitmap, content: bytes | bytearray) -> Bitmap:
    """Write the content of a bitmap and its table to new places; return the bitmap with them."""
    cluster = disk.header.cluster_size
    length = length_for(disk.header.size, bitmap.granularity_bits)
    if len(content) != length:
        raise BlockError(f"The content of bitmap '{bitmap.name}' has {len(content)} bytes instead of {length}")
    entries = array("Q")
    for start in range(0, length, cluster):
        part = bytes(content[start : start + cluster])
        if not any(part):
            entries.append(0)
        elif part == b"\xff" * cluster:
            entries.append(BITMAP_ALL_ONES)
        else:
            offset, _ = disk.refcounts.allocate(1)
            disk.file.write(offset, part.ljust(cluster, b"\0"))
            entries.append(offset)
    table = encode_entries(entries, 64)
    place = disk.refcounts.allocate_run(disk.image.clusters(max(len(table), 1)))
    disk.file.write(place, table)
    flags = bitmap.flags & ~BITMAP_IN_USE
    return Bitmap(bitmap.name, place, len(entries), flags, bitmap.granularity_bits, bitmap.kind, bitmap.extra)
