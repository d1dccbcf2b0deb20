"""Memory dumps as files: ELF cores and kdump-compressed ones.

ELF: System V Application Binary Interface, chapters 4 and 5; a core file with PT_NOTE and one PT_LOAD for each run of
memory.  Kdump: makedumpfile's compressed format, version 6, in its flattened form, which needs no seeking: each piece
is preceded by its offset and size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

PAGE_SIZE = 4096
FOUR_GIB = 1 << 32

ET_CORE, EV_CURRENT = 4, 1
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
SHT_STRTAB = 3
PN_XNUM = 0xFFFF
"""The number of program headers is in the first section header."""
_NAMES = b"\0.shstrtab\0"

_IDENTITY = struct.Struct("<4sBBB9x")
_EHDR_64, _EHDR_32 = struct.Struct("<HHIQQQIHHHHHH"), struct.Struct("<HHIIIIIHHHHHH")
_PHDR_64, _PHDR_32 = struct.Struct("<IIQQQQQQ"), struct.Struct("<IIIIIIII")
_SHDR_64, _SHDR_32 = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IIIIIIIIII")

_FLAT_HEADER_SIZE = 4096
_FLAT_RECORD = struct.Struct(">qq")
_KDUMP_VERSION = 6
_COMPRESSED_ZLIB = 1
_DUMP_LEVEL = 1
"""Pages of zeros are left out: they share one."""
_PAGE_DESCRIPTOR = struct.Struct("<QIIQ")
_UTSNAME_FIELD = 65
_FASTEST = 1
_DESCRIPTORS = 4096
"""Page descriptors that are written at once."""


class DumpWriteError(Exception):
    """A part of the dump could not be written; the message says which, and why."""


@dataclass(frozen=True)
class MemoryRun:
    """A run of guest memory: its physical address, its length, and how to get at a part of it (offset, length)."""

    gpa: int
    length: int
    view: Callable[[int, int], memoryview]

    @property
    def end(self) -> int:
        """The address just behind it."""
        return self.gpa + self.length


@dataclass(frozen=True)
class Segment:
    """What one PT_LOAD says: linear addresses for a part of a run, which begins `offset` bytes into all memory."""

    linear: int
    gpa: int
    length: int
    offset: int


@dataclass
class Dump:
    """What is to be written."""

    runs: Sequence[MemoryRun]
    notes: bytes
    vcpus: int
    long_mode: bool
    segments: Sequence[Segment] = ()
    """For an ELF file whose addresses are linear ones; without them each run is a segment of its own."""
    wide: bool = field(init=False)
    """Whether the 64-bit formats are used."""

    def __post_init__(self) -> None:
        self.wide = self.long_mode or any(run.end >= FOUR_GIB for run in self.runs)

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return sum(run.length for run in self.runs)


Write = Callable[[bytes | memoryview, str], None]
"""Writes bytes; the text says what they are, for errors."""
Progress = Callable[[int], None]
"""Told of each number of bytes of memory that has been written."""


# ---- ELF


def _simple_segments(runs: Sequence[MemoryRun]) -> list[Segment]:
    segments, offset = [], 0
    for run in runs:
        segments.append(Segment(0, run.gpa, run.length, offset))
        offset += run.length
    return segments


def _elf_header(dump: Dump, headers: int, program: int, section: int) -> bytes:
    ehdr, phdr, shdr = (_EHDR_64, _PHDR_64, _SHDR_64) if dump.wide else (_EHDR_32, _PHDR_32, _SHDR_32)
    return _IDENTITY.pack(b"\x7fELF", 2 if dump.wide else 1, 1, EV_CURRENT) + ehdr.pack(
        ET_CORE,
        EM_X86_64 if dump.long_mode else EM_386,
        EV_CURRENT,
        *(0, program, section, 0),
        _IDENTITY.size + ehdr.size,
        *(phdr.size, min(headers, PN_XNUM)),
        *(shdr.size, 2, 1),
    )


def _program_header(dump: Dump, kind: int, offset: int, linear: int, gpa: int, length: int) -> bytes:
    if dump.wide:
        return _PHDR_64.pack(kind, 0, offset, linear, gpa, length, length, 0)
    return _PHDR_32.pack(kind, offset, linear, gpa, length, length, 0, 0)


def _section_headers(dump: Dump, headers: int, names: int) -> bytes:
    shdr = _SHDR_64 if dump.wide else _SHDR_32
    count = headers if headers >= PN_XNUM else 0
    first = shdr.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    return first + shdr.pack(1, SHT_STRTAB, 0, 0, names, len(_NAMES), 0, 0, 0, 0)


def write_elf(dump: Dump, write: Write, progress: Progress, pieces: int) -> None:
    """Write an ELF core file; memory in pieces of that many bytes."""
    segments = dump.segments or _simple_segments(dump.runs)
    ehdr, phdr, shdr = (_EHDR_64, _PHDR_64, _SHDR_64) if dump.wide else (_EHDR_32, _PHDR_32, _SHDR_32)
    section = _IDENTITY.size + ehdr.size
    program = section + 2 * shdr.size
    notes = program + (1 + len(segments)) * phdr.size
    memory = notes + len(dump.notes)
    headers = 1 + len(segments)
    write(_elf_header(dump, headers, program, section), "elf header")
    write(_section_headers(dump, headers, memory + dump.total), "section header table")
    write(_program_header(dump, PT_NOTE, notes, 0, 0, len(dump.notes)), "program header table")
    for segment in segments:
        place = memory + segment.offset
        header = _program_header(dump, PT_LOAD, place, segment.linear, segment.gpa, segment.length)
        write(header, "program header table")
    write(dump.notes, "elf notes")
    for run in dump.runs:
        for offset in range(0, run.length, pieces):
            length = min(pieces, run.length - offset)
            write(run.view(offset, length), "memory")
            progress(length)
    write(_NAMES, "section data")


# ---- Kdump


class _Flat:
    """A flattened file: pieces with their places."""

    def __init__(self, write: Write) -> None:
        self._write = write
        header = b"makedumpfile\0\0\0\0" + _FLAT_RECORD.pack(1, 1)
        write(header.ljust(_FLAT_HEADER_SIZE, b"\0"), "start flat header")

    def put(self, offset: int, data: bytes | memoryview, what: str) -> None:
        """Write a piece that belongs at `offset`."""
        self._write(_FLAT_RECORD.pack(offset, len(data)), what)
        self._write(data, what)

    def end(self) -> None:
        """Write the end mark."""
        self._write(_FLAT_RECORD.pack(-1, -1), "end flat header")


def _utsname(machine: bytes) -> bytes:
    fields = (b"", b"", b"", b"", machine, b"")
    return b"".join(text.ljust(_UTSNAME_FIELD, b"\0") for text in fields)


def _kdump_headers(dump: Dump, frames: int, bitmap_blocks: int) -> tuple[bytes, bytes, int]:
    """Return the header, the sub-header with the notes, and how many blocks the latter takes."""
    sub_size = 104 if dump.wide else 80
    offset = PAGE_SIZE + sub_size
    sub_blocks = -(-(sub_size + len(dump.notes)) // PAGE_SIZE)
    top = struct.pack("<8sI", b"KDUMP   ", _KDUMP_VERSION) + _utsname(b"x86_64" if dump.wide else b"i686")
    counts = (_COMPRESSED_ZLIB, PAGE_SIZE, sub_blocks, bitmap_blocks, min(frames, FOUR_GIB - 1), 0, 0, 0, 0, dump.vcpus)
    top += bytes(22 if dump.wide else 10) + struct.pack("<10I", *counts)
    note = (offset, len(dump.notes))
    if dump.wide:
        sub = struct.pack("<QII11Q", 0, _DUMP_LEVEL, 0, 0, 0, 0, 0, *note, 0, 0, 0, 0, frames)
    else:
        sub = struct.pack("<5IQIQIQI3Q", 0, _DUMP_LEVEL, 0, 0, 0, 0, 0, *note, 0, 0, 0, 0, frames)
    return top, sub + dump.notes, sub_blocks


def _bitmap(dump: Dump, size: int) -> bytes:
    bits = bytearray(size)
    for run in dump.runs:
        first, last = run.gpa // PAGE_SIZE, -(-run.end // PAGE_SIZE)
        for frame in range(first, min(last, -(-first // 8) * 8)):
            bits[frame >> 3] |= 1 << (frame & 7)
        first = min(last, -(-first // 8) * 8)
        whole = last // 8 * 8
        if whole > first:
            bits[first >> 3 : whole >> 3] = b"\xff" * ((whole - first) >> 3)
            first = whole
        for frame in range(first, last):
            bits[frame >> 3] |= 1 << (frame & 7)
    return bytes(bits)


def _pages(dump: Dump) -> Iterator[memoryview]:
    for run in dump.runs:
        for offset in range(0, run.length, PAGE_SIZE):
            yield run.view(offset, PAGE_SIZE)


def write_kdump(dump: Dump, write: Write, progress: Progress) -> None:
    """Write a kdump file, its pages compressed by zlib; all runs are whole pages."""
    frames = max(-(-run.end // PAGE_SIZE) for run in dump.runs)
    blocks = -(-frames // (8 * PAGE_SIZE))
    flat = _Flat(write)
    header, sub_header, sub_blocks = _kdump_headers(dump, frames, 2 * blocks)
    flat.put(0, header, "disk dump header")
    flat.put(PAGE_SIZE, sub_header, "kdump sub header")
    place = PAGE_SIZE * (1 + sub_blocks)
    bitmap = _bitmap(dump, blocks * PAGE_SIZE)
    # Twice: which pages there were, and which of them are here.
    flat.put(place, bitmap, "dump_bitmap")
    flat.put(place + len(bitmap), bitmap, "dump_bitmap")
    _write_pages(dump, flat, place + 2 * len(bitmap), progress)
    flat.end()


def _write_pages(dump: Dump, flat: _Flat, place: int, progress: Progress) -> None:
    """Write descriptors from `place` on, and behind all of them the pages; all pages of zeros are one."""
    zeros = bytes(PAGE_SIZE)
    data = place + dump.total // PAGE_SIZE * _PAGE_DESCRIPTOR.size
    flat.put(data, zeros, "page data")
    zero_descriptor = _PAGE_DESCRIPTOR.pack(data, PAGE_SIZE, 0, 0)
    data += PAGE_SIZE
    descriptors = bytearray()
    content = bytearray()
    for page in _pages(dump):
        if page == zeros:
            descriptors += zero_descriptor
        else:
            packed = zlib.compress(page, _FASTEST)
            flags = _COMPRESSED_ZLIB if len(packed) < PAGE_SIZE else 0
            piece = packed if flags else bytes(page)
            descriptors += _PAGE_DESCRIPTOR.pack(data + len(content), len(piece), flags, 0)
            content += piece
        progress(PAGE_SIZE)
        if len(descriptors) >= _DESCRIPTORS * _PAGE_DESCRIPTOR.size:
            place, data = _flush(flat, place, descriptors, data, content)
    _flush(flat, place, descriptors, data, content)


def _flush(flat: _Flat, place: int, descriptors: bytearray, data: int, content: bytearray) -> tuple[int, int]:
    """Write what was collected; return where the next goes."""
    if descriptors:
        flat.put(place, bytes(descriptors), "page desc")
    if content:
        flat.put(data, bytes(content), "page data")
    place, data = place + len(descriptors), data + len(content)
    descriptors.clear()
    content.clear()
    return place, data
