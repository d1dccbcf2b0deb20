"""RAM that several machines share copy-on-write: how one machine becomes two while it runs.

RAM is seen through layers: files, mostly anonymous ones, with the same offsets as RAM.  Each page comes from one of
them, and is mapped privately: what a machine writes is its own.  To *freeze* RAM is to let all that the machine wrote
become a layer, which the machine then maps like everybody else:

* The first time, the RAM is itself an anonymous file, and that becomes the lowest layer: nothing is copied.
* Later, the kernel tells which pages are the machine's own (/proc/self/pagemap).  They are copied to a new layer, in
  runs: neighbours that are only a few pages apart go together, as each run is a mapping, in this machine and in those
  that are made of the layers.
* Where that makes too many mappings, all that is used is copied to one new file, and the others are let go.

The layers live as long as somebody maps them; no machine can change what another one sees.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress

from pyvm.memory import map_fixed
from pyvm.migration.page_scan import both, numbered, runs, touched, union, used_pages

_PAGE = mmap.PAGESIZE
_HUGE_PAGE = 2 << 20
_PAGEMAP = "/proc/self/pagemap"
_ENTRY = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 7, 1 << 6, 1 << 5
"""Bits of the highest byte of an entry of /proc/self/pagemap."""
_OWN = bytes(entry & (_PRESENT | _SWAPPED) != 0 and not entry & _OF_FILE for entry in range(256))
_GAP = 8
"""Pages between two runs that are less trouble in a run than a run of their own."""
_MOST_RUNS = 4096
"""The kernel gives a process some 65,000 mappings, and looks them up in a tree."""
_MAP_NORESERVE = 0x4000


class Layers:
    """What the RAM of a machine was when it was frozen: files, and for each page which of them has it."""

    def __init__(self, size: int, base: int, base_offset: int = 0) -> None:
        """`base` is a descriptor, which is this object's from now on, of a file that has RAM from `base_offset` on."""
        self.size = size
        self._files = [(base, base_offset)]
        self._source: bytearray | None = None
        """For each page the index of its file; None: all come from the first."""

    def copy(self) -> Layers:
        """Return layers that can be added to independently."""
        other = Layers.__new__(Layers)
        other.size = self.size
        other._files = [(os.dup(fd), offset) for fd, offset in self._files]
        other._source = None if self._source is None else bytearray(self._source)
        return other

    def close(self) -> None:
        """Let the files go; mappings of them stay."""
        for fd, _ in self._files:
            os.close(fd)
        self._files = []

    def runs(self) -> list[tuple[int, int, int]]:
        """Return where pages of one file start and end, in bytes, and the index of the file; the first file first."""
        if self._source is None:
            return [(0, self.size, 0)]
        source = self._source
        return [(*run, index) for index in range(len(self._files)) for run in runs(numbered(source, index))]

    def map(self, address: int) -> None:
        """Map all of it privately at an address of this process.  Raises OSError."""
        base, offset = self._files[0]
        map_fixed(address, self.size, mmap.MAP_PRIVATE, base, offset)
        for start, end, index in self.runs():
            if index:
                self._map_run(address, start, end, index)

    def _map_run(self, address: int, start: int, end: int, index: int) -> None:
        fd, offset = self._files[index]
        map_fixed(address + start, end - start, mmap.MAP_PRIVATE, fd, offset + start)

    def data(self) -> bytes:
        """Return which pages may hold something, as far as the files know."""
        result = bytes(self.size // _PAGE)
        for index, (fd, offset) in enumerate(self._files):
            there = bytearray(self.size // _PAGE)
            for start, end in touched(fd, offset + self.size):
                first, behind = max(start - offset, 0) // _PAGE, -(-max(end - offset, 0) // _PAGE)
                there[first:behind] = b"\x01" * (behind - first)
            result = union(result, there if self._source is None else both(there, numbered(self._source, index)))
        return result

    def add(self, address: int, view: memoryview, changed: bytes) -> None:
        """Copy the pages that a machine has changed, whose RAM is at `address`, to a layer, and map that there.

        Raises OSError, with nothing changed.
        """
        joined = _joined_runs(changed)
        if len(self._files) > 200 or len(self.runs()) + 2 * len(joined) > _MOST_RUNS:
            self._begin_anew(address, view)
            return
        if not joined:
            return
        fd = _new_file(self.size)
        try:
            for start, end in joined:
                for first, behind in runs(used_pages(view[start:end])):  # zeros need no room
                    _write(fd, view[start + first : start + behind], start + first)
        except BaseException:
            os.close(fd)
            raise
        self._files.append((fd, 0))
        if self._source is None:
            self._source = bytearray(self.size // _PAGE)
        index = len(self._files) - 1
        for start, end in joined:
            self._source[start // _PAGE : end // _PAGE] = bytes([index]) * ((end - start) // _PAGE)
            self._map_run(address, start, end, index)

    def _begin_anew(self, address: int, view: memoryview) -> None:
        """Copy all that is used to one file, and map that."""
        fd = _copy(view)
        self.close()
        self._files = [(fd, 0)]
        self._source = None
        self.map(address)


def copied(view: memoryview) -> Layers:
    """Return layers that have a copy of RAM.  Raises OSError."""
    return Layers(len(view), _copy(view))


def _copy(view: memoryview) -> int:
    """Return a new file with all that is used of RAM.  Raises OSError."""
    fd = _new_file(len(view))
    try:
        for start, end in _joined_runs(used_pages(view)):
            _write(fd, view[start:end], start)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _new_file(size: int) -> int:
    fd = os.memfd_create("guest-ram-layer", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _joined_runs(pages: bytes) -> list[tuple[int, int]]:
    """Return runs, in bytes, that have all the given pages and few others."""
    joined: list[tuple[int, int]] = []
    for start, end in runs(pages):
        if joined and start - joined[-1][1] < _GAP * _PAGE:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def own_pages(address: int, size: int) -> bytes:
    """Return which pages of a private mapping are this process's own.  Raises OSError."""
    length = size // _PAGE * _ENTRY
    with open(_PAGEMAP, "rb", buffering=0) as file:
        entries = os.pread(file.fileno(), length, address // _PAGE * _ENTRY)
    if len(entries) != length:
        raise OSError(errno.EIO, "the kernel does not tell which pages were written")
    return entries[_ENTRY - 1 :: _ENTRY].translate(_OWN)


class LayeredRam:
    """The RAM of one machine on top of layers, which are this object's from now on.  Raises OSError."""

    def __init__(self, layers: Layers, mapping: mmap.mmap | None = None) -> None:
        """`mapping` is memory that starts with the content of the layers already, and is replaced by them."""
        self.layers = layers
        self.mapping = mapping or mmap.mmap(-1, layers.size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE)
        self.address = _address_of(self.mapping)
        self._given_back: list[tuple[int, int]] = []
        """Where pages were discarded, and are not those of the layers any more: offset and length."""
        layers.map(self.address)

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""
        map_fixed(self.address + offset, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if length >= _HUGE_PAGE:
            _prefer_huge_pages(self.address + offset, length)
        self._given_back.append((offset, length))

    def place(self, address: int) -> None:
        """Map the memory at another address of this process.  Raises OSError."""
        self.layers.map(address)
        self.address = address

    def touched(self) -> Iterator[tuple[int, int]]:
        """Yield where something may be, as offsets of starts and ends; nothing is looked at before.  Raises OSError."""
        yield from runs(union(self.layers.data(), own_pages(self.address, self.layers.size)))

    def close(self) -> None:
        """Give the memory back; nothing may use it any more."""
        self.layers.close()
        with suppress(BufferError):  # a machine that ends may still have views of it
            self.mapping.close()

    def freeze(self) -> Layers:
        """Let all that the machine has written be a layer; return all layers, for another machine.  Raises OSError."""
        changed = own_pages(self.address, self.layers.size)
        if self._given_back:
            # What a layer has there is to be zeros; what was written since is own.
            gone = bytearray(len(changed))
            for offset, length in self._given_back:
                gone[offset // _PAGE : (offset + length) // _PAGE] = b"\x01" * (length // _PAGE)
            changed = union(changed, both(gone, self.layers.data()))
        self.layers.add(self.address, _bytes_at(self.address, self.layers.size), changed)
        self._given_back = []
        return self.layers.copy()


def _prefer_huge_pages(address: int, size: int) -> None:
    """Have the host, if it can, give memory in larger pages than usual, one in little more time than a small one."""
    import ctypes

    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


def _bytes_at(address: int, size: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _address_of(mapping: mmap.mmap) -> int:
    import ctypes

    probe = (ctypes.c_char * 1).from_buffer(mapping)
    address = ctypes.addressof(probe)
    del probe
    return address
