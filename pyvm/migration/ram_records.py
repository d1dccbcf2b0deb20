"""RAM in a stream that holds a machine which stands still: runs of pages that are not zero, many in each record.

The body of a record of kind :data:`RAM`, little-endian::

    u16 length of the block's name, the name, u64 offset in the block, u32 number of pages
    a bitmap: one bit a page, the lowest first, set where the page follows; the pages that follow

Blocks and their sizes are in the header of the stream.  What no record tells of is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyvm.migration.checksum import crc32
from pyvm.migration.page_scan import PAGE, Ranges, packed, runs, unpacked, used_pages
from pyvm.migration.stream import RecordHead, RecordReader, StreamError, StreamWriter, check

RAM = b"RAMB"
_CHUNK = 8 << 20
"""Bytes of memory that one record tells of."""
_BATCH = 1 << 20
"""Bytes that are read at a time."""
_NAME = struct.Struct("<H")
_PLACE = struct.Struct("<QI")
_NAME_LIMIT = 255


def write_ram(writer: StreamWriter, blocks: Mapping[str, memoryview], ranges: Ranges) -> None:
    """Write all blocks, which are whole pages; of those in `ranges`, nothing else is looked at.  Raises OSError."""
    for name, view in blocks.items():
        chunks: set[int] = set()
        for first, end in ranges.get(name, [(0, len(view))]):
            chunks.update(range(first - first % _CHUNK, end, _CHUNK))
        for start in sorted(chunks):
            _write_chunk(writer, name, start, view[start : start + _CHUNK])


def _write_chunk(writer: StreamWriter, name: str, start: int, data: memoryview) -> None:
    used = used_pages(data)
    if 1 not in used:
        return
    encoded = name.encode()
    head = _NAME.pack(len(encoded)) + encoded + _PLACE.pack(start, len(used))
    pages = [data[first:end] for first, end in runs(used)]
    writer.record(RAM, head, packed(used), *pages)


def read_ram(reader: RecordReader, head: RecordHead, blocks: Mapping[str, memoryview]) -> None:
    """Read the body of a record into the blocks, which are zero where it has pages.  Raises StreamError, OSError.

    What is read is there before its checksum is known: an error leaves memory that is of no use.
    """
    place, checksum = _Counted(reader, head.length), head.start
    fixed = place.take(_NAME.size)
    (length,) = _NAME.unpack(fixed)
    if length > _NAME_LIMIT:
        raise StreamError("a block of RAM has a name that is too long")
    name = place.take(length)
    where = place.take(_PLACE.size)
    start, count = _PLACE.unpack(where)
    target = blocks.get(name.decode(errors="replace"))
    if target is None:
        raise StreamError(f"there is no block of RAM '{name.decode(errors='replace')}'")
    if start % PAGE or start + count * PAGE > len(target):
        raise StreamError("a record has pages behind the end of a block of RAM")
    bits = place.take(-(-count // 8))
    checksum = crc32(bits, crc32(where, crc32(name, crc32(fixed, checksum))))
    for parts in _batches(target[start : start + count * PAGE], runs(unpacked(bits, count))):
        place.fill_each(parts)
        for part in parts:
            checksum = crc32(part, checksum)
    if place.left:
        raise StreamError("a record of RAM has something behind its pages")
    check(head, checksum)


def _batches(memory: memoryview, pages: Iterable[tuple[int, int]]) -> Iterator[list[memoryview]]:
    """Yield lists of the given parts of memory, each list of as much as is still in a cache when it has been read."""
    batch: list[memoryview] = []
    room = _BATCH
    for start, end in pages:
        rest = memory[start:end]
        while rest:
            batch.append(rest[:room])
            rest, room = rest[room:], room - len(batch[-1])
            if not room:
                yield batch
                batch, room = [], _BATCH
    if batch:
        yield batch


class _Counted:
    """What is left of the body of a record."""

    def __init__(self, reader: RecordReader, length: int) -> None:
        self._reader = reader
        self.left = length

    def fill_each(self, targets: Sequence[memoryview]) -> None:
        """Fill buffers with what comes next.  Raises StreamError."""
        count = sum(map(len, targets))
        if count > self.left:
            raise StreamError("a record of RAM is cut off")
        self.left -= count
        self._reader.fill_each(targets)

    def take(self, count: int) -> bytearray:
        """Return the next `count` bytes.  Raises StreamError."""
        if count > self.left:
            raise StreamError("a record of RAM is cut off")
        self.left -= count
        return self._reader.take(count)
