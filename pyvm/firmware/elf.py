"""ELF executables: headers, notes, and loading by physical address.

System V ABI, chapter "Object Files" and "Program Loading" (ELF-32 and ELF-64, little-endian).  The file comes from
outside: every offset, count and size is checked before it is used.

An image is loaded from pieces in file order, so that a kernel can be unpacked straight into guest RAM.  Runs of zeros
are not written: their pages are handed back to the host instead, so the kernel's bss costs no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pyvm.firmware.bootstate import HIGH_MEMORY
from pyvm.firmware.e820 import E820Entry, is_usable
from pyvm.firmware.errors import BootError
from pyvm.memory import FOUR_GIB, PAGE_SIZE, GuestMemory

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64 = 1, 2
DATA_LITTLE_ENDIAN = 1
TYPE_EXECUTABLE, TYPE_SHARED = 2, 3
MACHINE_386, MACHINE_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4

_EHDR32 = struct.Struct("<16sHHIIIIIHHHHHH")
_EHDR64 = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR32 = struct.Struct("<IIIIIIII")
_PHDR64 = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")

_MAX_PROGRAM_HEADERS = 256
_MAX_NOTES_SIZE = 1 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)

ReadAt = Callable[[int, int], bytes]
"""(file offset, length) -> up to that many bytes."""


@dataclass(frozen=True)
class ProgramHeader:
    """One segment: where it is in the file and where it belongs in memory, in bytes."""

    type: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int

    @property
    def file_end(self) -> int:
        """The file offset just behind the segment's data."""
        return self.offset + self.file_size

    @property
    def physical_end(self) -> int:
        """The physical address just behind the segment."""
        return self.physical + self.memory_size


@dataclass(frozen=True)
class ElfImage:
    """The headers of an executable."""

    bits: int
    machine: int
    entry: int
    headers: list[ProgramHeader]

    @property
    def loads(self) -> list[ProgramHeader]:
        """The segments that take memory, in order of physical address."""
        found = [header for header in self.headers if header.type == PT_LOAD and header.memory_size]
        return sorted(found, key=lambda header: header.physical)

    @property
    def physical_end(self) -> int:
        """The physical address just behind the last segment."""
        return max((header.physical_end for header in self.loads), default=0)

    @property
    def file_end(self) -> int:
        """The file offset just behind the last loaded byte."""
        return max((header.file_end for header in self.loads), default=0)

    def physical_entry(self) -> int:
        """Return the entry point as a physical address.

        It is one already in kernels that are entered with paging off; where it is a virtual address, the segment
        that holds it says by how much the two differ.
        """
        if any(header.physical <= self.entry < header.physical_end for header in self.loads):
            return self.entry
        for header in self.loads:
            if header.virtual <= self.entry < header.virtual + header.memory_size:
                return self.entry - header.virtual + header.physical
        raise BootError(f"ELF entry point {self.entry:#x} lies in none of the segments")


def parse(read_at: ReadAt) -> ElfImage:
    """Return the headers of an x86 executable; raises :class:`BootError` for anything else."""
    ident = read_at(0, 16)
    if len(ident) < 16 or not ident.startswith(MAGIC):
        raise BootError("not an ELF file")
    if ident[4] not in (CLASS_32, CLASS_64) or ident[5] != DATA_LITTLE_ENDIAN:
        raise BootError("ELF file is not little-endian 32 or 64 bit")
    wide = ident[4] == CLASS_64
    layout = _EHDR64 if wide else _EHDR32
    header = read_at(0, layout.size)
    if len(header) < layout.size:
        raise BootError("ELF header is cut short")
    _, kind, machine, _, entry, table, _, _, _, entry_size, count, _, _, _ = layout.unpack(header)
    if kind not in (TYPE_EXECUTABLE, TYPE_SHARED):
        raise BootError(f"ELF file of type {kind} is not an executable")
    if machine not in (MACHINE_386, MACHINE_X86_64):
        raise BootError(f"ELF file is for machine {machine}, not for x86")
    headers = _program_headers(read_at, wide, table, entry_size, count)
    return ElfImage(64 if wide else 32, machine, entry, headers)


def _program_headers(read_at: ReadAt, wide: bool, table: int, entry_size: int, count: int) -> list[ProgramHeader]:
    layout = _PHDR64 if wide else _PHDR32
    if not 0 < count <= _MAX_PROGRAM_HEADERS or entry_size < layout.size:
        raise BootError(f"ELF file has {count} program headers of {entry_size} bytes")
    data = read_at(table, entry_size * count)
    if len(data) < entry_size * count:
        raise BootError("ELF program headers are cut short")
    headers = []
    for position in range(0, entry_size * count, entry_size):
        if wide:
            kind, _, offset, virtual, physical, in_file, in_memory, _ = layout.unpack_from(data, position)
        else:
            kind, offset, virtual, physical, in_file, in_memory, _, _ = layout.unpack_from(data, position)
        if kind == PT_LOAD and in_file > in_memory:
            raise BootError("ELF segment is longer in the file than in memory")
        headers.append(ProgramHeader(kind, offset, virtual, physical, in_file, in_memory))
    return headers


def notes(image: ElfImage, read_at: ReadAt) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (name without its NUL, type, descriptor) of each note, as far as the notes are well-formed."""
    for header in image.headers:
        if header.type == PT_NOTE:
            yield from _notes_in(read_at(header.offset, min(header.file_size, _MAX_NOTES_SIZE)))


def _notes_in(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    position = 0
    while position + _NOTE.size <= len(data):
        name_size, desc_size, kind = _NOTE.unpack_from(data, position)
        name_start = position + _NOTE.size
        desc_start = name_start + (name_size + 3 & ~3)
        if desc_start + desc_size > len(data):
            return
        name = data[name_start : name_start + name_size].rstrip(b"\0")
        yield name, kind, data[desc_start : desc_start + desc_size]
        position = desc_start + (desc_size + 3 & ~3)


def check_placement(image: ElfImage, e820: list[E820Entry]) -> None:
    """Raise :class:`BootError` unless all segments lie in RAM between 1 MiB and 4 GiB, clear of each other."""
    if not image.loads:
        raise BootError("ELF file has nothing to load")
    behind = 0
    for header in image.loads:
        if header.physical < behind:
            raise BootError(f"ELF segments overlap at {header.physical:#x}")
        behind = header.physical_end
        check_range(e820, header.physical, header.memory_size)


def check_range(e820: list[E820Entry], start: int, length: int) -> None:
    """Raise :class:`BootError` unless a kernel may take `length` bytes at `start`: RAM between 1 MiB and 4 GiB."""
    if start < HIGH_MEMORY:
        raise BootError(f"kernel wants memory at {start:#x}, below 1 MiB")
    if start + length > FOUR_GIB or not is_usable(e820, start, length):
        raise BootError(f"kernel does not fit in memory: it wants {start:#x}..{start + length:#x} (see -m)")


class SegmentLoader:
    """Copies a file's segments into guest RAM as the file's bytes go by.

    Make it, :meth:`feed` every byte of the file in order, then :meth:`finish`.  `image` must have passed
    :func:`check_placement`.
    """

    def __init__(self, memory: GuestMemory, image: ElfImage) -> None:
        self._memory = memory
        self._image = image
        self._position = 0
        for header in image.loads:
            clear(memory, header.physical, header.memory_size)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the file."""
        start, end = self._position, self._position + len(piece)
        for header in self._image.loads:
            first, last = max(start, header.offset), min(end, header.file_end)
            if first < last:
                self.place(header, first - header.offset, piece, first - start, last - start)
        self._position = end

    def place(self, header: ProgramHeader, at: int, piece: bytes, first: int, last: int) -> None:
        """Copy bytes `first`..`last` of `piece` to offset `at` of a segment, leaving out blocks of zeros."""
        target = self._memory.view(header.physical + at, last - first)
        source = memoryview(piece)
        for start in range(first, last, _BLOCK):
            end = min(start + _BLOCK, last)
            if not piece.startswith(_ZEROS[: end - start], start):
                target[start - first : end - first] = source[start:end]

    def finish(self) -> None:
        """Say that the file is over; raises :class:`BootError` where a segment wants more of it."""
        if self._position < self._image.file_end:
            raise BootError("ELF file is cut short")
        for header in self._image.loads:
            self._memory.written(header.physical, header.memory_size)


def clear(memory: GuestMemory, start: int, length: int) -> None:
    """Make a range of RAM zero, giving its whole pages back to the host."""
    end = start + length
    first, last = (start + PAGE_SIZE - 1) & -PAGE_SIZE, end & -PAGE_SIZE
    if first >= last:
        memory.write(start, bytes(length))
        return
    memory.write(start, bytes(first - start))
    memory.discard(first, last - first)
    memory.write(last, bytes(end - last))


def _reader_of(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def load_pieces(memory: GuestMemory, e820: list[E820Entry], pieces: Iterable[bytes]) -> ElfImage:
    """Load the executable that `pieces` make up; its headers must be in the first one."""
    loader: SegmentLoader | None = None
    image: ElfImage | None = None
    for piece in pieces:
        if loader is None:
            image = parse(_reader_of(piece))
            check_placement(image, e820)
            loader = SegmentLoader(memory, image)
        loader.feed(piece)
    if loader is None or image is None:
        raise BootError("not an ELF file")
    loader.finish()
    return image


def load_file(memory: GuestMemory, e820: list[E820Entry], read_at: ReadAt, image: ElfImage) -> None:
    """Load the segments of an executable, reading nothing else of its file."""
    check_placement(image, e820)
    loader = SegmentLoader(memory, image)
    for header in image.loads:
        done = 0
        while done < header.file_size:
            piece = read_at(header.offset + done, min(1 << 20, header.file_size - done))
            if not piece:
                raise BootError("ELF file is cut short")
            loader.place(header, done, piece, 0, len(piece))
            done += len(piece)
        memory.written(header.physical, header.memory_size)
