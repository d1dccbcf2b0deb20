"""Pages of RAM in a stream: records of kind "PAGE", each with some pages of one block.

Body of a record, little-endian::

    u8 encoding, u8 0, u16 number of the block, u32 count of runs; the runs: u32 first page, u32 count of pages
    the pages, by their encoding:
    PLAIN   as they are, one after the other
    ZEROES  nothing: they are zeros
    ZLIB    all of them as one zlib stream
    ZSTD    all of them as one Zstandard frame
    DELTA   for each page a u16 length and what it differs by from what was sent of it last (pyvm.migration.delta)

What is read is checked before anything of it reaches RAM: runs lie within their block and hold no more pages than a
record may, and what is unpacked has just their length.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.memory import PAGE_SIZE
from pyvm.migration import delta
from pyvm.migration.checksum import crc32
from pyvm.migration.stream import PAGES, Buffer, RecordHead, RecordReader, StreamError, check, pack_record

if TYPE_CHECKING:
    import numpy as np

    PageNumbers = np.ndarray[Any, np.dtype[np.int64]]

PLAIN, ZEROES, ZLIB, ZSTD, DELTA = range(5)
BATCH = 256
"""How many pages a record has at most where they carry data; what has none may have more."""

_HEAD = struct.Struct("<BBHI")
_RUN = struct.Struct("<II")
_RUNS_LIMIT = 1 << 20
_LENGTH = struct.Struct("<H")
_PREPARED = 16
_MADV_POPULATE_WRITE = 23

Run = tuple[int, int]
"""First page and count of pages."""


def runs_of(pages: PageNumbers) -> list[Run]:
    """Return page numbers, which ascend, as runs."""
    import numpy as np

    if not len(pages):
        return []
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    starts = pages[np.concatenate(([0], breaks))]
    lengths = np.diff(np.concatenate(([0], breaks, [len(pages)])))
    return list(zip(starts.tolist(), lengths.tolist(), strict=True))


def pack_pages(encoding: int, block: int, runs: Sequence[Run], *data: Buffer) -> list[Buffer]:
    """Return a record with pages as buffers, to be written one after the other."""
    body = _HEAD.pack(encoding, 0, block, len(runs)) + b"".join(_RUN.pack(*run) for run in runs)
    return [pack_record(PAGES, body, *data), body, *data]


class Target:
    """Memory that pages are put into: `view`, of which it is noted what may be something else than zeros.

    Pages of zeros are left alone where nothing was put: memory that was never touched takes no room.
    """

    def __init__(self, view: memoryview, *, zeros: bool) -> None:
        """`zeros` says that all of it is zeros now."""
        import numpy as np

        self.view = view
        self._madvise = ctypes.CDLL(None).madvise
        self._used = np.full(len(view) // PAGE_SIZE, not zeros, dtype=bool)

    def note(self, first: int, pages: int) -> None:
        """Something is put into pages."""
        used = self._used[first : first + pages]
        if pages >= _PREPARED and not used.any():
            self._prepare(first * PAGE_SIZE, pages * PAGE_SIZE)
        used[:] = True

    def _prepare(self, offset: int, length: int) -> None:
        """Have the host give all these pages at once, which takes it less time than one after the other."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.view)) + offset
        self._madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_WRITE)  # or not, if it can't

    def clear(self, first: int, pages: int) -> None:
        """Let pages be zeros."""
        used = self._used[first : first + pages]
        for page in used.nonzero()[0].tolist():
            self.view[(first + page) * PAGE_SIZE : (first + page + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
        used[:] = False


class PageReader:
    """Puts pages where they belong: `blocks` are the machine's, by their numbers in the stream."""

    def __init__(self, blocks: Sequence[Target]) -> None:
        self._blocks = blocks
        self.pages = 0

    def read(self, head: RecordHead, reader: RecordReader) -> None:
        """Read the body of a record of pages.  Raises StreamError, and OSError as the stream does."""
        if head.length < _HEAD.size:
            raise StreamError("a record of pages is cut off")
        fixed = reader.take(_HEAD.size)
        encoding, _, number, count = _HEAD.unpack(fixed)
        left = head.length - _HEAD.size - count * _RUN.size
        if count > _RUNS_LIMIT or left < 0:
            raise StreamError("a record of pages is cut off")
        listed = reader.take(count * _RUN.size)
        checksum = crc32(listed, crc32(fixed, head.start))
        if number >= len(self._blocks):
            raise StreamError(f"pages of a block {number} of RAM, which there is not")
        block = self._blocks[number]
        runs = self._checked(listed, block.view)
        self.pages += sum(pages for _, pages in runs)
        if encoding != ZEROES:
            for first, pages in runs:
                block.note(first, pages)
        if encoding == PLAIN:
            check(head, self._read_plain(runs, block.view, left, reader, checksum))
            return
        body = reader.take(left)
        check(head, crc32(body, checksum))
        self._unpack(encoding, runs, block, body)

    @staticmethod
    def _checked(listed: Buffer, block: memoryview) -> list[Run]:
        limit = len(block) // PAGE_SIZE
        runs = list(_RUN.iter_unpack(listed))
        for first, pages in runs:
            if not pages or first + pages > limit:
                raise StreamError(f"pages {first}..{first + pages} are not in their block of RAM, which has {limit}")
        return runs

    @staticmethod
    def _read_plain(runs: list[Run], block: memoryview, length: int, reader: RecordReader, checksum: int) -> int:
        if length != sum(pages for _, pages in runs) * PAGE_SIZE:
            raise StreamError("a record of pages has not as many bytes as its pages")
        if len(runs) <= 4:
            for first, pages in runs:
                target = block[first * PAGE_SIZE : (first + pages) * PAGE_SIZE]
                reader.fill(target)
                checksum = crc32(target, checksum)
            return checksum
        data = memoryview(reader.take(length))
        _scatter(runs, block, data)
        return crc32(data, checksum)

    def _unpack(self, encoding: int, runs: list[Run], block: Target, body: bytearray) -> None:
        count = sum(pages for _, pages in runs)
        if encoding == ZEROES:
            for first, pages in runs:
                block.clear(first, pages)
            return
        if count > BATCH:
            raise StreamError(f"a record has {count} pages, which is too many")
        if encoding == DELTA:
            _apply_deltas(runs, block.view, memoryview(body))
            return
        _scatter(runs, block.view, memoryview(unpack(encoding, body, count * PAGE_SIZE)))


def _scatter(runs: Iterable[Run], block: memoryview, data: memoryview) -> None:
    place = 0
    for first, pages in runs:
        size = pages * PAGE_SIZE
        block[first * PAGE_SIZE : first * PAGE_SIZE + size] = data[place : place + size]
        place += size


def _apply_deltas(runs: Iterable[Run], block: memoryview, body: memoryview) -> None:
    place = 0
    for first, pages in runs:
        for page in range(first, first + pages):
            if place + _LENGTH.size > len(body):
                raise StreamError("a record of deltas is cut off")
            (length,) = _LENGTH.unpack_from(body, place)
            place += _LENGTH.size
            if place + length > len(body):
                raise StreamError("a record of deltas is cut off")
            delta.apply(body[place : place + length], block[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
            place += length
    if place != len(body):
        raise StreamError("a record of deltas is longer than its pages")


def pack_deltas(deltas: Iterable[bytes]) -> bytes:
    """Return what the pages of a record differ by, for its body."""
    return b"".join(_LENGTH.pack(len(it)) + it for it in deltas)


# ---- Compression


def pack(encoding: int, data: Buffer, level: int) -> bytes:
    """Return `data` compressed."""
    if encoding == ZLIB:
        return zlib.compress(data, level)
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress(data)


def unpack(encoding: int, data: Buffer, size: int) -> bytes:
    """Return what was compressed, which must have `size` bytes.  Raises StreamError."""
    result: bytes
    try:
        if encoding == ZLIB:
            decompressor = zlib.decompressobj()
            result = decompressor.decompress(data, size + 1)
            if decompressor.unused_data or not decompressor.eof:
                raise StreamError("compressed pages have another size when they are unpacked")
        elif encoding == ZSTD:
            result = _unpack_zstd(bytes(data), size)
        else:
            raise StreamError(f"pages in an encoding {encoding}, which is not known")
    except zlib.error as error:
        raise StreamError(f"compressed pages cannot be unpacked: {error}") from None
    if len(result) != size:
        raise StreamError("compressed pages have another size when they are unpacked")
    return result


def _unpack_zstd(data: bytes, size: int) -> bytes:
    import zstandard

    try:
        if zstandard.frame_content_size(data) != size:
            raise StreamError("compressed pages have another size when they are unpacked")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise StreamError(f"compressed pages cannot be unpacked: {error}") from None
