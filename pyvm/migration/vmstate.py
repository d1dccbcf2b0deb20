"""The state of a machine inside a disk image: a stream (:mod:`pyvm.migration.stream`) with sections first, then RAM.

A qcow2 image keeps it behind the end of its disk; the internal snapshot that is made next takes it along.  What comes
from there is checked before the machine is touched: sections fit it, or nothing happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyvm.block.vectors import Buffers, total
from pyvm.errors import ConfigError
from pyvm.migration.components import (
    check_machine,
    fields_of,
    load_state,
    marks_of_machine,
    memory_of,
    ranges_of,
    state_of,
)
from pyvm.migration.ram_records import RAM, read_ram, write_ram
from pyvm.migration.stream import (
    DONE,
    SECTION,
    RecordHead,
    Section,
    StreamError,
    StreamReader,
    StreamWriter,
    parse_section,
)
from pyvm.state import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvm.machine.pc import Pc

_BUFFERED = 4 << 20
"""Bytes that are written at a time, and more."""
_ALIGNMENT = 64 << 10
_SECTOR = 512
"""Writes start and end at such boundaries, as encrypted images and direct I/O like them."""
_READ_AHEAD = 128 << 10
"""Bytes that are read at once where little is asked for; as they are copied once more, not many."""


class VmstateWriter:
    """A file for :class:`StreamWriter`, of large pieces that `write` takes with their offset."""

    def __init__(self, write: Callable[[int, Buffers], None]) -> None:
        self._write = write
        self._offset = 0
        self._waiting: deque[memoryview] = deque()
        self._count = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write one buffer, which must stay as it is until :meth:`flush`."""
        self.writelines([data])

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write buffers, which must stay as they are until :meth:`flush`."""
        for part in parts:
            self._waiting.append(memoryview(part))
            self._count += len(part)
        if self._count >= _BUFFERED:
            self._put(self._count - self._count % _ALIGNMENT)

    def flush(self) -> None:
        """Write what waits; nothing may come after it."""
        padding = -self._count % _SECTOR
        self._waiting.append(memoryview(bytes(padding)))
        self._put(self._count + padding)

    def _put(self, count: int) -> None:
        """Write the first `count` bytes of those that wait."""
        buffers, left = [], count
        while left:
            part = self._waiting.popleft()
            if len(part) > left:
                self._waiting.appendleft(part[left:])
                part = part[:left]
            buffers.append(part)
            left -= len(part)
        if count:
            self._write(self._offset, buffers)
        self._offset += count
        self._count -= count


class VmstateReader:
    """A file for :class:`StreamReader` of `size` bytes; `read` fills buffers from an offset."""

    def __init__(self, read: Callable[[int, Buffers], None], size: int) -> None:
        self._read = read
        self._size = size
        self._offset = 0
        self._ahead = memoryview(b"")

    def readinto(self, target: memoryview) -> int:
        """Fill `target`, or its start; return how many bytes that are."""
        if not self._ahead and len(target) < _READ_AHEAD:
            data = bytearray(min(_READ_AHEAD, self._size - self._offset))
            self._fill([memoryview(data)])
            self._ahead = memoryview(data)
        if self._ahead:
            count = min(len(self._ahead), len(target))
            target[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        count = min(len(target), self._size - self._offset)
        self._fill([target[:count]])
        return count

    def fill_each(self, targets: Sequence[memoryview]) -> None:
        """Fill buffers one after the other, all in one go.  Raises StreamError where there is less, and OSError."""
        left = list(targets)
        while left and self._ahead:
            left[0] = left[0][self.readinto(left[0]) :]
            if not left[0]:
                del left[0]
        if total(left) > self._size - self._offset:
            raise StreamError("the stream is cut off")
        self._fill(left)

    def _fill(self, targets: Sequence[memoryview]) -> None:
        if length := total(targets):
            self._read(self._offset, targets)
            self._offset += length


class VmstateStream(StreamReader):
    """The stream in such a file, of which large parts are read straight to where they belong."""

    def __init__(self, file: VmstateReader) -> None:
        self._vmstate = file
        super().__init__(file)

    def fill_each(self, targets: Sequence[memoryview]) -> None:
        """Fill buffers one after the other."""
        self._vmstate.fill_each(targets)
        self.read += total(targets)


def write_machine(pc: Pc, write: Callable[[int, Buffers], None]) -> int:
    """Write the state of a machine that is stopped; return how many bytes that are.  Raises OSError."""
    file = VmstateWriter(write)
    memory, sections = memory_of(pc), state_of(pc)
    header = {
        **marks_of_machine(pc),
        "ram": [[name, len(view)] for name, view in memory.items()],
        "sections": list(sections),
    }
    writer = StreamWriter(file, header)
    for name, fields in sections.items():
        writer.section(Section(name, fields))
    write_ram(writer, memory, ranges_of(pc))
    writer.end()
    file.flush()
    return writer.written


class SavedMachine:
    """The state of a machine in an image.  Making it reads and checks all but the RAM: raises ConfigError, OSError."""

    def __init__(self, pc: Pc, read: Callable[[int, Buffers], None], size: int) -> None:
        self._pc = pc
        self._reader = VmstateStream(VmstateReader(read, size))
        sections, self._next = read_sections(self._reader)
        try:
            self._sections = fields_of(pc, sections)
            check_machine(pc, self._reader.header, self._sections)
        except StateError as error:
            raise ConfigError(str(error)) from None
        blocks = {name: len(view) for name, view in memory_of(pc).items()}
        saved = self._reader.header.get("ram")
        if saved != [[name, length] for name, length in blocks.items()]:
            raise ConfigError(f"the machine was saved with RAM {saved}, not {blocks}")

    def load(self) -> None:
        """Fill the RAM, which is zero, and load the state.  Raises ConfigError, OSError; all is lost then."""
        blocks, head = memory_of(self._pc), self._next
        while head.kind != DONE:
            if head.kind != RAM:
                raise ConfigError(f"a record of kind {head.kind!r} is not known here")
            read_ram(self._reader, head, blocks)
            head = self._reader.head()
        for block in self._pc.memory.all_blocks:
            self._pc.memory.written(block.gpa, block.size)
        try:
            load_state(self._pc, self._sections)
        except StateError as error:
            raise ConfigError(str(error)) from None


def read_sections(reader: StreamReader) -> tuple[list[Section], RecordHead]:
    """Return the sections at the start of a stream, and what comes before the body of the record behind them."""
    sections: list[Section] = []
    while (head := reader.head()).kind == SECTION:
        sections.append(parse_section(head, reader.body(head)))
    return sections, head
