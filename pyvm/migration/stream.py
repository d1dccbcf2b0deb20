"""The stream of a machine that moves: a header that describes it, then records, each with a checksum.

It is written and read front to back, so it may go through a pipe or a socket, or into a file.  Little-endian::

    magic "pyvmstrm", u32 version, u32 length of the header, u32 CRC-32 of the header
    header: an encoded value (pyvm.migration.values), a dict that says what machine it is and lists the sections
    records: four letters for the kind, u32 flags, u32 length, u32 CRC-32 of these 12 bytes and of the body; the body
    the last record is of kind "DONE"

Kinds of records, all but "SECT" and "DONE" being the business of who writes them (:mod:`pyvm.migration.pages`):

==== =================================================================================================================
SECT The state of one component: an encoded :class:`Section`.  Flag 1: whoever does not know it may leave it out.
PAGE Pages of RAM.
SYNC All pages that other channels carry belong before this place.
LATE Which pages come behind the machine (:mod:`pyvm.migration.late_pages`).
DONE The end; the body is empty.
==== =================================================================================================================

**Compatibility.**  Fields that a record lacks keep their defaults, so a newer pyvm reads what an older one wrote.  A
field that was added later belongs to a *subsection* (:attr:`pyvm.state.State`'s class attribute ``SUBSECTIONS``, name
-> fields): it is written only where one of its fields differs from its default, so an older pyvm reads what a newer one
wrote unless that really says something that it cannot know.  An unknown subsection is refused by name.

Nothing in a stream is believed: lengths are checked before anything is read, sums before anything is parsed, and
records of state check each field themselves (:mod:`pyvm.state`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pyvm.errors import ConfigError
from pyvm.migration.checksum import crc32
from pyvm.migration.values import decode_value, encode_value
from pyvm.records import field, record
from pyvm.state import State, StateError

_FIXED = struct.Struct("<8sIII")
_MAGIC = b"pyvmstrm"
VERSION = 1
_HEADER_LIMIT = 4 << 20
_RECORD = struct.Struct("<4sIII")
_HEAD = struct.Struct("<4sII")
RECORD_LIMIT = 64 << 20
"""What the body of a record may have in bytes."""

SECTION, PAGES, SYNC, DONE = b"SECT", b"PAGE", b"SYNC", b"DONE"
LOADED_ANSWER, FAILED_ANSWER = b"LOAD", b"FAIL"
"""What the other side says of it, on connections that go both ways: it has become the machine, or why it could not."""
ANSWER_LIMIT = 4096
"""Most bytes of such an answer."""
START_ORDER = b"STRT"
"""What it hears then: the machine is its own."""
LATE = b"LATE"
"""Says which pages come behind the machine (:mod:`pyvm.migration.late_pages`)."""
OPTIONAL = 1
"""Flag of a record that may be left out by who does not know it."""

Buffer = bytes | bytearray | memoryview
_State = TypeVar("_State", bound=State)


class StreamError(ConfigError):
    """A stream cannot be read: it is cut off, damaged, or not a stream at all."""


class Writable(Protocol):
    """Where a stream goes: a binary file, or what behaves like one."""

    def write(self, data: Buffer, /) -> object:
        """Write all of `data`."""

    def writelines(self, parts: Iterable[Buffer], /) -> object:
        """Write all parts, one behind the other."""


class Readable(Protocol):
    """Where a stream comes from: a binary file, or what behaves like one."""

    def readinto(self, target: memoryview, /) -> int | None:
        """Fill `target` from the start; return how many bytes there were, 0 at the end."""


# ---- Sections


@record
class Section:
    """The state of one component: its name, the version of its format, fields, and what was added to them later."""

    name: str
    fields: Any
    version: int = 1
    subsections: dict[str, dict[str, Any]] = field(default_factory=dict)
    optional: bool = False


def section_of(name: str, state: State) -> Section:
    """Return the section that holds a component's state."""
    fields = state.to_dict()
    subsections: dict[str, dict[str, Any]] = {}
    later: Mapping[str, tuple[str, ...]] = getattr(type(state), "SUBSECTIONS", {})
    plain = type(state)().to_dict() if later else {}
    for part, names in later.items():
        values = {key: fields.pop(key) for key in names}
        if any(value != plain[key] for key, value in values.items()):
            subsections[part] = values
    return Section(name, fields, subsections=subsections)


def state_from(section: Section, kind: type[_State]) -> _State:
    """Return the state that a section holds, checked.  Raises StateError."""
    later: Mapping[str, tuple[str, ...]] = getattr(kind, "SUBSECTIONS", {})
    if not isinstance(section.fields, dict):
        raise StateError(f"{section.name}: expected a record, got {type(section.fields).__name__}")
    values = dict(section.fields)
    for part, fields in section.subsections.items():
        if part not in later:
            raise StateError(f"{section.name}: unknown subsection '{part}'")
        for key, value in fields.items():
            if key not in later[part]:
                raise StateError(f"{section.name}: subsection '{part}' has an unknown field '{key}'")
            values[key] = value
    return kind.from_dict(values, section.name)


# ---- Writing


class StreamWriter:
    """Writes a stream.  All methods raise OSError as `file` does."""

    def __init__(self, file: Writable, header: Mapping[str, Any]) -> None:
        self._file = file
        head = encode_value(dict(header))
        self.written = 0
        """How many bytes the stream has so far."""
        self._put([_FIXED.pack(_MAGIC, VERSION, len(head), crc32(head)), head])

    def _put(self, parts: list[Buffer]) -> None:
        self._file.writelines(parts)
        self.written += sum(map(len, parts))

    def record(self, kind: bytes, *parts: Buffer, flags: int = 0) -> None:
        """Write a record whose body is all `parts`, buffers of bytes, together."""
        self._put([pack_record(kind, *parts, flags=flags), *parts])

    def section(self, section: Section) -> None:
        """Write a section."""
        body: dict[str, Any] = {"name": section.name, "version": section.version, "fields": section.fields}
        if section.subsections:
            body["subsections"] = section.subsections
        self.record(SECTION, encode_value(body), flags=OPTIONAL if section.optional else 0)

    def end(self) -> None:
        """Write the end of the stream."""
        self.record(DONE)


def pack_record(kind: bytes, *parts: Buffer, flags: int = 0) -> bytes:
    """Return what comes before the body of a record."""
    head = _HEAD.pack(kind, flags, sum(map(len, parts)))
    checksum = crc32(head)
    for part in parts:
        checksum = crc32(part, checksum)
    return head + checksum.to_bytes(4, "little")


# ---- Reading


@record
class RecordHead:
    """What comes before the body of a record."""

    kind: bytes
    flags: int
    length: int
    checksum: int

    @property
    def start(self) -> int:
        """The checksum before the body was added to it."""
        return crc32(_HEAD.pack(self.kind, self.flags, self.length))


class RecordReader:
    """Reads records.  All methods raise StreamError, and OSError as `file` does."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.read = 0
        """How many bytes of the stream were read so far."""

    def fill(self, target: memoryview) -> None:
        """Fill `target` with what comes next."""
        done = 0
        while done < len(target):
            count = self._file.readinto(target[done:])
            if not count:
                raise StreamError("the stream is cut off")
            done += count
        self.read += done

    def fill_each(self, targets: Sequence[memoryview]) -> None:
        """Fill buffers one after the other."""
        for target in targets:
            self.fill(target)

    def take(self, count: int) -> bytearray:
        """Return the next `count` bytes, of which there must be as many: check the number first."""
        data = bytearray(count)
        self.fill(memoryview(data))
        return data

    def head(self) -> RecordHead:
        """Return what comes before the body of the next record; the body must be read by :meth:`body` or the caller."""
        head = RecordHead(*_RECORD.unpack(self.take(_RECORD.size)))
        if head.length > RECORD_LIMIT:
            raise StreamError(f"a record of {head.length} bytes is too large")
        return head

    def body(self, head: RecordHead) -> bytearray:
        """Return the body of a record, checked."""
        data = self.take(head.length)
        check(head, crc32(data, head.start))
        return data

    def records(self) -> Iterator[tuple[RecordHead, bytearray]]:
        """Yield all records with their bodies, up to the end of the stream, which must be there."""
        while True:
            head = self.head()
            body = self.body(head)
            if head.kind == DONE:
                return
            yield head, body


def check(head: RecordHead, checksum: int) -> None:
    """Raise StreamError unless this is the checksum of the record."""
    if checksum != head.checksum:
        name = head.kind.decode("ascii", "backslashreplace")
        raise StreamError(f"a record of kind '{name}' is damaged: its checksum is wrong")


class StreamReader(RecordReader):
    """Reads a stream, whose header is read at once.  Raises StreamError, and OSError as `file` does."""

    def __init__(self, file: Readable) -> None:
        super().__init__(file)
        magic, version, length, checksum = _FIXED.unpack(self.take(_FIXED.size))
        if magic != _MAGIC:
            raise StreamError("this is no stream of a machine")
        if version != VERSION:
            raise StreamError(f"the stream is of version {version} of the format; only {VERSION} is known")
        if length > _HEADER_LIMIT:
            raise StreamError(f"a header of {length} bytes is too large")
        head = self.take(length)
        if crc32(head) != checksum:
            raise StreamError("the header is damaged: its checksum is wrong")
        header = _decoded(head, "the header")
        if not isinstance(header, dict):
            raise StreamError("the header makes no sense")
        self.header: dict[str, Any] = header


def parse_section(head: RecordHead, body: Buffer) -> Section:
    """Return the section that a record of that kind holds.  Raises StreamError."""
    value = _decoded(body, "a section")
    match value:
        case {"name": str(name), "version": int(version), "fields": fields}:
            subsections = value.get("subsections", {})
            if isinstance(subsections, dict) and all(isinstance(part, dict) for part in subsections.values()):
                return Section(name, fields, version, subsections, optional=bool(head.flags & OPTIONAL))
    raise StreamError("a section makes no sense")


def _decoded(data: Buffer, what: str) -> Any:
    try:
        return decode_value(bytes(data))
    except ValueError as error:
        raise StreamError(f"{what} makes no sense: {error}") from None
