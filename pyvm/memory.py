"""The physical address space: guest RAM, and the maps of device registers in memory and port space.

RAM is one memfd mapping.  :class:`GuestMemory` hands out bounds-checked views of it that copy nothing; writes by
devices end in :meth:`GuestMemory.written`, which drops translated code that the CPU made of the old bytes.

:class:`IoSpace` maps addresses to device registers.  It is used twice: for memory-mapped registers (addresses are
GPAs) and for the 64 Ki ports.  A device is told an offset into its region, never its address.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from pyvm.native import Vector, send_chains
from pyvm.records import record

PAGE_SIZE = 4096
FOUR_GIB = 1 << 32

ReadHandler = Callable[[int, int], int]
"""(offset into the region, access size in bytes) -> value; bits above the access size are dropped."""
WriteHandler = Callable[[int, int, int], None]
"""(offset into the region, access size in bytes, value)."""

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000


class GuestMemoryError(ValueError):
    """A device was told to use guest memory that is not RAM."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"no guest RAM at {gpa:#x}..{gpa + length:#x}")
        self.gpa = gpa
        self.length = length


@record(frozen=True)
class RamBlock:
    """A run of RAM: where the guest sees it, and its offset in the mapping; all in bytes."""

    gpa: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The GPA just behind the block."""
        return self.gpa + self.size


class RamBacking(Protocol):
    """Memory of the host that somebody else made, to be guest RAM."""

    mapping: mmap.mmap

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""


class GuestMemory:
    """Guest RAM as devices see it.

    `blocks` must be in order of GPA.  Addresses come from the guest: every method checks that the whole range is RAM
    of one block and raises :class:`GuestMemoryError` otherwise.  Modules of memory can be plugged in above all of it
    while the guest runs; their blocks are in :attr:`modules`.
    """

    def __init__(self, size: int, blocks: list[RamBlock], backing: RamBacking | None = None) -> None:
        """The RAM is made here, or is `backing`, which then stays open when this is closed."""
        self.size = size
        """Bytes of RAM without modules."""
        self.blocks = blocks
        self.modules: list[RamBlock] = []
        self.fd = -1
        if backing is None:
            self.fd, self.mapping = _made_memory(size)
            self._discard: Callable[[int, int], None] = functools.partial(punch_hole, self.fd)
        else:
            self.mapping, self._discard = backing.mapping, backing.discard
        self._bytes = memoryview(self.mapping)
        self.on_write: Callable[[int, int], None] = lambda gpa, length: None
        """Told (GPA, length) after each write by a device."""
        self.on_vector: Callable[[Vector, int], None] = self._each_piece
        """Told (vector, bytes) when a device has written to the start of a vector: a CPU is faster with all at once."""
        self.pinned = False
        """Whether no memory is given back to the host, as somebody needs what is there."""
        self._note_blocks()

    def _note_blocks(self) -> None:
        """Prepare for looking up addresses."""
        self._all = [*self.blocks, *self.modules]
        self._starts = [block.gpa for block in self._all]
        self._places = tuple((block.gpa, block.size, block.offset) for block in self._all)

    @property
    def all_blocks(self) -> list[RamBlock]:
        """All RAM, that of modules included, in order of GPA."""
        return list(self._all)

    @property
    def total(self) -> int:
        """Bytes of RAM, that of modules included."""
        return self.size + sum(block.size for block in self.modules)

    def plug(self, block: RamBlock) -> None:
        """Let devices use a module, which is above all RAM that is no module."""
        self.modules = sorted([*self.modules, block], key=lambda module: module.gpa)
        self._note_blocks()

    def unplug(self, block: RamBlock) -> None:
        """Let devices use a module no more."""
        self.modules.remove(block)
        self._note_blocks()

    def _each_piece(self, vector: Vector, length: int) -> None:
        for gpa, size in vector.pieces:
            if length > 0:
                self.on_write(gpa, min(size, length))
            length -= size

    def close(self) -> None:
        """Drop the mapping; every view must have been released."""
        self._bytes.release()
        if self.fd >= 0:
            self.mapping.close()
            os.close(self.fd)
            self.fd = -1

    def clear(self) -> None:
        """Let all of it be zeros; nothing runs meanwhile."""
        self._discard(0, self.size)
        for module in self.modules:
            self._discard(module.offset, module.size)
        for block in self._all:
            self.on_write(block.gpa, block.size)

    def rest_on(self, backing: RamBacking) -> None:
        """Other memory of the host has taken the place of this one, at the same addresses."""
        self._discard = backing.discard

    def offset(self, gpa: int, length: int) -> int:
        """Return the offset in the mapping of the `length` bytes at `gpa`, all of them RAM of one block."""
        index = bisect.bisect_right(self._starts, gpa) - 1
        if index >= 0 and length >= 0:
            block = self._all[index]
            if gpa + length <= block.end:
                return gpa - block.gpa + block.offset
        raise GuestMemoryError(gpa, length)

    def view(self, gpa: int, length: int) -> memoryview:
        """Return the RAM itself.  Whoever writes through the view calls :meth:`written` afterwards."""
        offset = self.offset(gpa, length)
        return self._bytes[offset : offset + length]

    def vector(self, pieces: Sequence[tuple[int, int]]) -> Vector:
        """Return a scatter-gather list of RAM; each piece is a GPA and a length in bytes."""
        return Vector(self._bytes, [(gpa, self.offset(gpa, length), length) for gpa, length in pieces])

    def vectors_of_table(self, table: memoryview, *, linked: bool) -> tuple[Vector, Vector] | None:
        """Return what a virtio descriptor table lists, for the device to read and to write.

        None where the descriptors do not simply follow one another, or where one breaks a rule: then look at each.
        `linked` says that they are in the split format, and a list; otherwise they are in the packed format.
        """
        return Vector.from_table(self._bytes, self._places, table, linked, self.size)

    def send_chains(
        self, table: memoryview, avail: memoryview, used: memoryview, position: tuple[int, int], fd: int
    ) -> tuple[int, int]:
        """Send what a split virtqueue's driver made available to a socket, and put it into the used ring.

        `position` is how far both rings are done.  Returns how many chains were, and how many bytes of the next one
        the socket took; what is not an ordinary chain of readable buffers is left for others to look at.
        """
        return send_chains(self._bytes, self._places, table, avail, used, position, fd)

    def written(self, gpa: int, length: int) -> None:
        """Say that `length` bytes at `gpa` were changed through a view."""
        self.on_write(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `gpa`."""
        offset = self.offset(gpa, length)
        return self._bytes[offset : offset + length].tobytes()

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `gpa`."""
        length = len(data)
        offset = self.offset(gpa, length)
        self._bytes[offset : offset + length] = data
        self.on_write(gpa, length)

    def read_u16(self, gpa: int) -> int:
        """Return the little-endian 16-bit word at `gpa`."""
        return int(_U16.unpack_from(self._bytes, self.offset(gpa, 2))[0])

    def read_u32(self, gpa: int) -> int:
        """Return the little-endian 32-bit word at `gpa`."""
        return int(_U32.unpack_from(self._bytes, self.offset(gpa, 4))[0])

    def read_u64(self, gpa: int) -> int:
        """Return the little-endian 64-bit word at `gpa`."""
        return int(_U64.unpack_from(self._bytes, self.offset(gpa, 8))[0])

    def write_u16(self, gpa: int, value: int) -> None:
        """Store a little-endian 16-bit word at `gpa`."""
        _U16.pack_into(self._bytes, self.offset(gpa, 2), value)
        self.on_write(gpa, 2)

    def write_u32(self, gpa: int, value: int) -> None:
        """Store a little-endian 32-bit word at `gpa`."""
        _U32.pack_into(self._bytes, self.offset(gpa, 4), value)
        self.on_write(gpa, 4)

    def write_u64(self, gpa: int, value: int) -> None:
        """Store a little-endian 64-bit word at `gpa`."""
        _U64.pack_into(self._bytes, self.offset(gpa, 8), value)
        self.on_write(gpa, 8)

    def discard(self, gpa: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Both values in bytes, page-aligned.

        Pages that are :attr:`pinned` stay as they are: who gives some back does not care what is in them.
        """
        offset = self.offset(gpa, length)
        if offset % PAGE_SIZE or length % PAGE_SIZE or not length:
            raise GuestMemoryError(gpa, length)
        if self.pinned:
            return
        self._discard(offset, length)
        self.on_write(gpa, length)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a part of a file back, all of it pages; it reads as zeros afterwards.  Raises OSError."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc().fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def map_fixed(address: int, size: int, flags: int, fd: int = -1, offset: int = 0) -> None:
    """Map memory, readable and writable, at an address of this process, over what is there.  Raises OSError."""
    libc = _libc()
    libc.mmap.restype = ctypes.c_void_p
    access = mmap.PROT_READ | mmap.PROT_WRITE
    place = ctypes.c_void_p(address)
    flags |= _MAP_FIXED | _MAP_NORESERVE
    if libc.mmap(place, ctypes.c_size_t(size), access, flags, fd, ctypes.c_long(offset)) != address:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _made_memory(size: int) -> tuple[int, mmap.mmap]:
    fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        return fd, mmap.mmap(fd, size)
    except BaseException:
        os.close(fd)
        raise


class DeviceRam:
    """Memory on a device that the guest uses like its own: a frame buffer, or ROM.

    `mapping` is what a CPU maps, `view` its bytes; `size` is in bytes, whole pages.  `fd` is the file that is mapped:
    what was never written is a hole in it.
    """

    def __init__(self, size: int) -> None:
        self.fd = -1
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"device memory of {size} bytes is not whole pages")
        self.size = size
        self.fd, self.mapping = _made_memory(size)
        self.view = memoryview(self.mapping)

    def read(self, offset: int, size: int) -> int:
        """Return `size` bytes at `offset` as a register would."""
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `size` bytes at `offset`."""
        self.view[offset : offset + size] = value.to_bytes(size, "little")

    def ignore(self, offset: int, size: int, value: int) -> None:
        """Take a write to ROM, which changes nothing."""

    def close(self) -> None:
        """Give the memory back; nothing may use it any more."""
        self.view.release()
        self.mapping.close()
        self._close_file()

    def _close_file(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """A machine whose making failed has nobody who would close it."""
        self._close_file()


def pc_ram_blocks(size: int) -> list[RamBlock]:
    """Return where an i440FX machine shows `size` bytes of RAM.

    The legacy VGA window (0xa0000-0xbffff) hides the RAM below it.  Up to 3.5 GiB lie below the PCI hole; a larger
    machine keeps 3 GiB there and shows the rest from 4 GiB up.
    """
    low = size if size < 0xE0000000 else 0xC0000000
    blocks = [RamBlock(0, min(low, 0xA0000), 0)]
    if low > 0xC0000:
        blocks.append(RamBlock(0xC0000, low - 0xC0000, 0xC0000))
    if size > low:
        blocks.append(RamBlock(FOUR_GIB, size - low, low))
    return blocks


class OverlapError(ValueError):
    """A region was to be mapped over another one."""


class Stream(Protocol):
    """A register through which a buffer is read, piece by piece; it is the first of its region."""

    def peek(self, size: int) -> memoryview | None:
        """Return what the next reads of `size` bytes will return, one after the other; None where that is not known.

        Reading it must change nothing but how much is left, so that which ends the buffer is not included.
        """

    def consume(self, count: int) -> None:
        """So many bytes of that were read."""


@record(frozen=True)
class IoRegion:
    """Registers of one device at one place.

    The bus splits or widens accesses so that the handlers see only sizes in `min_access`..`max_access` bytes that lie
    within the region.
    """

    base: int
    size: int
    read: ReadHandler
    write: WriteHandler
    name: str
    min_access: int = 1
    max_access: int = 8
    ram: DeviceRam | None = None
    """Memory that the CPU may use without asking; the handlers are for everybody else."""
    stream: Stream | None = None
    """What knows the next reads of the first register."""

    def load(self, offset: int, size: int) -> int:
        """Read `size` bytes at `offset`, in pieces the device understands; behind the region there are ones."""
        if self.min_access <= size <= self.max_access and offset + size <= self.size:
            return self.read(offset, size) & ((1 << (8 * size)) - 1)
        if offset >= self.size:
            return (1 << (8 * size)) - 1
        aligned = offset & -self.min_access
        if offset + size <= aligned + self.min_access <= self.size:
            word = self.read(aligned, self.min_access)
            return (word >> (8 * (offset - aligned))) & ((1 << (8 * size)) - 1)
        if size == 1:
            return 0xFF
        half = size // 2
        return self.load(offset, half) | self.load(offset + half, half) << (8 * half)

    def store(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`, in pieces the device understands; what is behind the region is dropped.

        A write narrower than `min_access` reaches the device widened by zeros, as on a bus without byte enables.
        """
        if self.min_access <= size <= self.max_access and offset + size <= self.size:
            self.write(offset, size, value)
            return
        if offset >= self.size:
            return
        aligned = offset & -self.min_access
        if offset + size <= aligned + self.min_access <= self.size:
            self.write(aligned, self.min_access, value << (8 * (offset - aligned)))
        elif size > 1:
            half = size // 2
            self.store(offset, half, value & ((1 << (8 * half)) - 1))
            self.store(offset + half, half, value >> (8 * half))


class IoSpace:
    """A map from addresses to device registers.  Nothing may overlap; unassigned addresses read all ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bases: list[int] = []
        self._regions: list[IoRegion] = []
        self.on_ram: Callable[[IoRegion, bool], None] = lambda region, shown: None
        """Told of each region of memory that appears or disappears."""

    def add(
        self,
        base: int,
        size: int,
        read: ReadHandler,
        write: WriteHandler,
        name: str,
        *,
        min_access: int = 1,
        max_access: int = 8,
        ram: DeviceRam | None = None,
        stream: Stream | None = None,
    ) -> IoRegion:
        """Map `size` bytes of registers at `base`; return the region, by which it can be removed.

        With `ram` they are the memory of a device, which the CPU then uses directly.  Raises :class:`OverlapError`
        where any of these addresses is taken.
        """
        region = IoRegion(base, size, read, write, name, min_access, max_access, ram, stream)
        index = bisect.bisect_right(self._bases, base)
        before = self._regions[index - 1] if index else None
        behind = self._regions[index] if index < len(self._regions) else None
        for other in (before, behind):
            if other is not None and base < other.base + other.size and other.base < base + size:
                raise OverlapError(f"{self.name}: {name} at {base:#x} would overlap {other.name} at {other.base:#x}")
        self._bases.insert(index, base)
        self._regions.insert(index, region)
        if ram is not None:
            self.on_ram(region, True)
        return region

    def remove(self, region: IoRegion) -> None:
        """Take away what :meth:`add` returned."""
        index = bisect.bisect_left(self._bases, region.base)
        if index >= len(self._regions) or self._regions[index] is not region:
            raise ValueError(f"{self.name}: {region.name} is not mapped")
        del self._bases[index]
        del self._regions[index]
        if region.ram is not None:
            self.on_ram(region, False)

    def regions(self) -> list[IoRegion]:
        """Return all regions in order of address."""
        return list(self._regions)

    def find(self, address: int) -> IoRegion | None:
        """Return the region that holds `address`."""
        index = bisect.bisect_right(self._bases, address) - 1
        if index >= 0:
            region = self._regions[index]
            if address < region.base + region.size:
                return region
        return None

    def read(self, address: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `address`."""
        region = self.find(address)
        if region is None:
            return (1 << (8 * size)) - 1
        return region.load(address - region.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4 or 8) at `address`."""
        region = self.find(address)
        if region is not None:
            region.store(address - region.base, size, value)
