"""What the formats that pyvm only reads have in common: a disk in blocks, and tables that say where each block is.

Tables are read from the file a page at a time when they are needed, and few pages are kept: what an image claims about
their size costs no memory.  A driver checks at opening what its header says, and raises BlockError; a table entry that
cannot be is found by the read that comes to it, which fails with EIO.
"""

from __future__ import annotations

import errno
import os
import struct
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

from pyvm.block.errors import BlockError
from pyvm.block.node import Child, Extent, Node, Role
from pyvm.block.options import Settings
from pyvm.block.vectors import Buffers, Cursor, copy_in, fill_zero, total
from pyvm.records import record

SECTOR = 512
_PAGE = 16 << 10
_MOST_PAGES = 64
_MOST_JOINED = 4096
"""Table entries that are looked at before something is said of what they have in common."""


def damaged() -> OSError:
    """Return the error of a read that meets a table entry that cannot be."""
    return OSError(errno.EIO, os.strerror(errno.EIO))


def is_power_of_two(number: int) -> bool:
    """Whether it is one."""
    return number > 0 and not number & (number - 1)


@record
class Names:
    """The other files that an image names."""

    backing_file: str | None = None
    backing_format: str | None = None
    extents: tuple[str, ...] = ()
    """Files beside the image that have parts of the disk."""


class Kind(Enum):
    """How a part of the disk is there."""

    DATA = auto()
    """As it is, in a file."""
    COMPRESSED = auto()
    ZERO = auto()
    ABSENT = auto()
    """This image says nothing of it: the one below shows, or zeros."""


class Run(NamedTuple):
    """A part of the disk that is there in one way."""

    length: int
    kind: Kind
    place: int = 0
    """Where it is in `node`, in bytes."""
    node: Node | None = None

    def joins(self, after: Run) -> bool:
        """Whether `after` goes on where this run ends."""
        if self.kind is not after.kind or self.kind is Kind.COMPRESSED:
            return False
        return self.kind is not Kind.DATA or (self.node is after.node and self.place + self.length == after.place)


class Numbers:
    """The tables in a file: numbers of one layout, as :mod:`struct` writes it."""

    def __init__(self, file: Node, layout: str) -> None:
        self._file = file
        self._entry = struct.Struct(layout)
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def at(self, table: int, index: int) -> int:
        """Return the number `index` of the table that begins at the offset `table`.  Raises OSError."""
        page, start = divmod(table + index * self._entry.size, _PAGE)
        data = self._pages.get(page)
        if data is None:
            data = self._read(page)
        else:
            self._pages.move_to_end(page)
        if start + self._entry.size > len(data):
            raise damaged()
        return int(self._entry.unpack_from(data, start)[0])

    def _read(self, page: int) -> bytes:
        there = min(self._file.length() - page * _PAGE, _PAGE)
        if there <= 0:
            raise damaged()
        data = self._pages[page] = bytes(self._file.read(page * _PAGE, there))
        if len(self._pages) > _MOST_PAGES:
            self._pages.popitem(last=False)
        return data

    def check(self, table: int, count: int, what: str) -> None:
        """Raise BlockError unless a table of `count` numbers at `table` can be in the file; `what` is its name."""
        if table % self._entry.size:
            raise BlockError(f"{what} at {table} is not aligned")
        if table + count * self._entry.size > self._file.length():
            raise BlockError(f"{what} at {table} is behind the end of the file")


class MappedNode(Node):
    """A read-only image in `file`, which it closes in the end; `backing` shows where it says nothing.

    A driver fills in `_size` and says where everything is: see :meth:`find`.
    """

    is_dirty = False

    def __init__(self, file: Node, settings: Settings, backing: Node | None = None) -> None:
        super().__init__(settings.name, read_only=True)
        self._file = file
        self._size = 0
        self._block = 0
        self.children.append(Child(Role.STORAGE, file))
        if backing is not None:
            self.children.append(Child(Role.BACKING, backing))

    @abstractmethod
    def find(self, offset: int, length: int) -> Run:
        """Return the first run from `offset` on, at most `length`; both are on the disk.  Raises OSError."""

    def decompress(self, run: Run, offset: int) -> bytes:
        """Return a compressed run, which begins at `offset` of the disk.  Raises OSError."""
        del run, offset
        raise damaged()

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        raise BlockError(f"Cannot change the child of a '{self.driver}' node")

    @property
    def size(self) -> int:
        """Length in bytes, whole sectors."""
        return self._size

    @property
    def cluster_size(self) -> int | None:
        """The unit of allocation in bytes; None where there is none."""
        return self._block or None

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the runs of a range, those in one that belong together."""
        run: Run | None = None
        joined = 0
        while length:
            found = self.find(offset, length)
            offset += found.length
            length -= found.length
            if run is not None and joined < _MOST_JOINED and run.joins(found):
                run = run._replace(length=run.length + found.length)
                joined += 1
                continue
            if run is not None:
                yield run
            run, joined = found, 0
        if run is not None:
            yield run

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        length = total(buffers)
        self.check_range(offset, length)
        cursor = Cursor(buffers)
        for run in self._runs(offset, length):
            parts = cursor.take(run.length)
            if run.kind is Kind.DATA and run.node is not None:
                run.node.readv(run.place, parts)
            elif run.kind is Kind.COMPRESSED:
                copy_in(parts, self.decompress(run, offset))
            elif run.kind is Kind.ABSENT:
                self._read_backing(offset, run.length, parts)
            else:
                fill_zero(parts)
            offset += run.length

    def _read_backing(self, offset: int, length: int, buffers: Buffers) -> None:
        there = min(max(self.backing.size - offset, 0), length) if self.backing is not None else 0
        cursor = Cursor(buffers)
        if self.backing is not None and there:
            self.backing.readv(offset, cursor.take(there))
        fill_zero(cursor.take(length - there))

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the first run of bytes from `offset` on, as this layer alone has it."""
        run = next(self._runs(offset, min(length, self._size - offset)))
        if run.kind is Kind.DATA:
            return Extent(run.length, True, False, True, run.place, run.node)
        if run.kind is Kind.COMPRESSED:
            return Extent(run.length, True, False, True, compressed=True)
        absent = run.kind is Kind.ABSENT
        return Extent(run.length, False, not absent or self.backing is None, not absent)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Fail: these formats are read only."""
        self.check_write(offset, total(buffers))

    def discard(self, offset: int, length: int) -> None:
        """Fail: these formats are read only."""
        self.check_write(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Fail: these formats are read only."""
        del unmap
        self.check_write(offset, length)

    def flush(self) -> None:
        """Return at once: nothing was written."""
