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
from typing import TYPE_CHECKING

from pyvm.memory import map_fixed
from pyvm.migration.page_scan import runs, touched, used_pages

if TYPE_CHECKING:
    import numpy as np

_PAGE = mmap.PAGESIZE
_PAGEMAP = "/proc/self/pagemap"
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
"""Bits of an entry of /proc/self/pagemap."""
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
        self._source: np.ndarray | None = None
        """For each page the index of its file; None: all come from the first."""

    def copy(self) -> Layers:
        """Return layers that can be added to independently."""
        other = Layers.__new__(Layers)
        other.size = self.size
        other._files = [(os.dup(fd), offset) for fd, offset in self._files]
        other._source = None if self._source is None else self._source.copy()
        return other

    def close(self) -> None:
        """Let the files go; mappings of them stay."""
        for fd, _ in self._files:
            os.close(fd)
        self._files = []

    def runs(self) -> list[tuple[int, int, int]]:
        """Return where pages of one file start and end, in pages, and the index of the file."""
        if self._source is None:
            return [(0, self.size // _PAGE, 0)]
        import numpy as np

        edges = np.flatnonzero(np.diff(self._source)) + 1
        starts = [0, *edges.tolist()]
        ends = [*starts[1:], len(self._source)]
        return [(start, end, int(self._source[start])) for start, end in zip(starts, ends, strict=True)]

    def map(self, address: int) -> None:
        """Map all of it privately at an address of this process.  Raises OSError."""
        base, offset = self._files[0]
        map_fixed(address, self.size, mmap.MAP_PRIVATE, base, offset)
        for start, end, index in self.runs():
            if index:
                self._map_run(address, start, end, index)

    def _map_run(self, address: int, start: int, end: int, index: int) -> None:
        fd, offset = self._files[index]
        place, length = start * _PAGE, (end - start) * _PAGE
        map_fixed(address + place, length, mmap.MAP_PRIVATE, fd, offset + place)

    def data(self) -> np.ndarray:
        """Return which pages may hold something, as far as the files know."""
        import numpy as np

        result = np.zeros(self.size // _PAGE, bool)
        for index, (fd, offset) in enumerate(self._files):
            there = np.zeros(self.size // _PAGE, bool)
            for start, end in touched(fd, offset + self.size):
                there[max(start - offset, 0) // _PAGE : -(-max(end - offset, 0) // _PAGE)] = True
            result |= there if self._source is None else there & (self._source == index)
        return result

    def add(self, address: int, view: memoryview, changed: np.ndarray) -> None:
        """Copy the pages that a machine has changed, whose RAM is at `address`, to a layer, and map that there.

        Raises OSError, with nothing changed.
        """
        import numpy as np

        runs = _joined_runs(changed)
        if len(self._files) > 200 or len(self.runs()) + 2 * len(runs) > _MOST_RUNS:
            self._begin_anew(address, view)
            return
        if not runs:
            return
        fd = _new_file(self.size)
        try:
            for start, end in runs:
                _write(fd, view[start * _PAGE : end * _PAGE], start * _PAGE)
        except BaseException:
            os.close(fd)
            raise
        self._files.append((fd, 0))
        if self._source is None:
            self._source = np.zeros(self.size // _PAGE, np.uint8)
        for start, end in runs:
            self._source[start:end] = len(self._files) - 1
            self._map_run(address, start, end, len(self._files) - 1)

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
    import numpy as np

    used = np.frombuffer(used_pages(view), bool)
    fd = _new_file(len(view))
    try:
        for start, end in _joined_runs(used):
            _write(fd, view[start * _PAGE : end * _PAGE], start * _PAGE)
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


def _joined_runs(pages: np.ndarray) -> list[tuple[int, int]]:
    """Return runs, in pages, that have all the given pages and few others."""
    import numpy as np

    numbers = np.flatnonzero(pages)
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) > _GAP)
    starts = numbers[np.concatenate(([0], breaks + 1))]
    ends = numbers[np.concatenate((breaks, [len(numbers) - 1]))] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def own_pages(address: int, size: int) -> np.ndarray:
    """Return which pages of a private mapping of files are this process's own.  Raises OSError."""
    import numpy as np

    count = size // _PAGE
    with open(_PAGEMAP, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), count * 8, address // _PAGE * 8)
    if len(data) != count * 8:
        raise OSError(errno.EIO, "the kernel does not tell which pages were written")
    entries = np.frombuffer(data, np.uint64)
    there = entries & np.uint64(_PRESENT | _SWAPPED)
    own: np.ndarray = (there != 0) & (entries & np.uint64(_OF_FILE) == 0)
    return own


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
        self._given_back.append((offset, length))

    def place(self, address: int) -> None:
        """Map the memory at another address of this process.  Raises OSError."""
        self.layers.map(address)
        self.address = address

    def touched(self) -> Iterator[tuple[int, int]]:
        """Yield where something may be, as offsets of starts and ends; nothing is looked at before.  Raises OSError."""
        there: np.ndarray = self.layers.data() | own_pages(self.address, self.layers.size)
        yield from runs(there.tobytes())

    def close(self) -> None:
        """Give the memory back; nothing may use it any more."""
        self.layers.close()
        with suppress(BufferError):  # a machine that ends may still have views of it
            self.mapping.close()

    def freeze(self) -> Layers:
        """Let all that the machine has written be a layer; return all layers, for another machine.  Raises OSError."""
        changed = own_pages(self.address, self.layers.size)
        for offset, length in self._given_back:
            changed[offset // _PAGE : (offset + length) // _PAGE] = True
        self.layers.add(self.address, _bytes_at(self.address, self.layers.size), changed)
        self._given_back = []
        return self.layers.copy()


def _bytes_at(address: int, size: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _address_of(mapping: mmap.mmap) -> int:
    import ctypes

    probe = (ctypes.c_char * 1).from_buffer(mapping)
    address = ctypes.addressof(probe)
    del probe
    return address
