r"""An assembler for AML, the byte code of ACPI.

ACPI specification 6.5, chapter 20 "ACPI Machine Language (AML) Specification", and section 6.4 "Resource Data Types
for ACPI".  Each function returns the bytes of one term and takes those of its parts, so a table is built as one
expression in the shape of its ASL source.  Names are paths in ASL's spelling ("\_SB.PCI0", "^^PRQA").
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntEnum

# Opcodes.
_ZERO, _ONE, _ONES = 0x00, 0x01, 0xFF
_NAME, _BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_SCOPE, _BUFFER, _PACKAGE, _METHOD = 0x10, 0x11, 0x12, 0x14
_DUAL_PREFIX, _MULTI_PREFIX = 0x2E, 0x2F
_LOCAL0, _ARG0 = 0x60, 0x68
_STORE, _ADD, _SUBTRACT, _INCREMENT, _DECREMENT, _MULTIPLY = 0x70, 0x72, 0x74, 0x75, 0x76, 0x77
_SHIFT_LEFT, _SHIFT_RIGHT, _AND, _OR, _XOR, _NOT = 0x79, 0x7A, 0x7B, 0x7D, 0x7F, 0x80
_DEREF_OF, _NOTIFY, _SIZE_OF, _INDEX = 0x83, 0x86, 0x87, 0x88
_CREATE_DWORD_FIELD, _CREATE_WORD_FIELD, _CREATE_BYTE_FIELD, _CREATE_QWORD_FIELD = 0x8A, 0x8B, 0x8C, 0x8F
_LAND, _LOR, _LNOT, _LEQUAL, _LGREATER, _LLESS = 0x90, 0x91, 0x92, 0x93, 0x94, 0x95
_IF, _ELSE, _WHILE, _RETURN, _BREAK = 0xA0, 0xA1, 0xA2, 0xA4, 0xA5
_EXT = 0x5B
_EXT_MUTEX, _EXT_SLEEP, _EXT_ACQUIRE, _EXT_RELEASE = 0x01, 0x22, 0x23, 0x27
_EXT_OP_REGION, _EXT_FIELD, _EXT_DEVICE, _EXT_PROCESSOR = 0x80, 0x81, 0x82, 0x83

_ROOT, _PARENT = 0x5C, 0x5E
_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}\Z")
_PATH = re.compile(r"(\\|\^*)(.*)\Z", re.DOTALL)

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

ZERO = bytes([_ZERO])
ONE = bytes([_ONE])
ONES = bytes([_ONES])
BREAK = bytes([_BREAK])
NOWHERE = ZERO
"""The null name, as a target: the result is not stored."""


class Space(IntEnum):
    """Where the registers of an operation region are."""

    SYSTEM_MEMORY = 0
    SYSTEM_IO = 1
    PCI_CONFIG = 2


class Access(IntEnum):
    """Width of the accesses to a field."""

    ANY = 0
    BYTE = 1
    WORD = 2
    DWORD = 3
    QWORD = 4
    BUFFER = 5


class Update(IntEnum):
    """What happens to the other bits of a register when a field in it is written."""

    PRESERVE = 0
    ONES = 1
    ZEROS = 2


# Names and data.


def _segment(name: str) -> bytes:
    if not _SEGMENT.match(name):
        raise ValueError(f"{name!r} is not an ACPI name segment")
    return name.ljust(4, "_").encode("ascii")


def path(name: str) -> bytes:
    """Return the NameString of a path; raises ValueError where a segment is not a legal one."""
    match = _PATH.match(name)
    assert match is not None  # the pattern matches any string
    prefix, rest = match.groups()
    segments = [_segment(part) for part in rest.split(".")] if rest else []
    if not segments:
        body = ZERO
    elif len(segments) == 1:
        body = segments[0]
    elif len(segments) == 2:
        body = bytes([_DUAL_PREFIX]) + b"".join(segments)
    else:
        body = bytes([_MULTI_PREFIX, len(segments)]) + b"".join(segments)
    return prefix.encode("ascii") + body


def integer(value: int) -> bytes:
    """Return an integer constant in its shortest form; raises ValueError outside 0..2**64 - 1."""
    if value in (0, 1):
        return bytes([value])
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} is not a 64-bit unsigned integer")
    if value < 1 << 8:
        return bytes([_BYTE, value])
    if value < 1 << 16:
        return bytes([_WORD]) + _U16.pack(value)
    if value < 1 << 32:
        return bytes([_DWORD]) + _U32.pack(value)
    return bytes([_QWORD]) + _U64.pack(value)


def string(text: str) -> bytes:
    """Return a string constant; raises ValueError for characters outside 0x01..0x7f."""
    data = text.encode("latin-1", "replace")
    if any(not 0 < byte < 0x80 for byte in data):
        raise ValueError(f"{text!r} is not an ASCII string")
    return bytes([_STRING]) + data + b"\0"


def eisa_id(text: str) -> bytes:
    """Return the compressed form of an EISA ID such as "PNP0A03"."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text):
        raise ValueError(f"{text!r} is not an EISA ID")
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    number = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return bytes([_DWORD]) + number.to_bytes(4, "big")


def package_length(body: bytes) -> bytes:
    """Return `body` with the length in front that AML wants before most blocks.  The length counts itself."""
    size = len(body) + 1
    if size < 1 << 6:
        return bytes([size]) + body
    for extra in (1, 2, 3):
        size = len(body) + 1 + extra
        if size < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | size & 0xF]) + (size >> 4).to_bytes(extra, "little") + body
    raise ValueError(f"an AML block of {len(body)} bytes is too long")


def buffer(data: bytes) -> bytes:
    """Return a Buffer with constant contents."""
    return bytes([_BUFFER]) + package_length(integer(len(data)) + data)


def package(*items: bytes) -> bytes:
    """Return a Package; raises ValueError for more than 255 items."""
    if len(items) > 255:
        raise ValueError(f"a package of {len(items)} items is too long")
    return bytes([_PACKAGE]) + package_length(bytes([len(items)]) + b"".join(items))


def arg(number: int) -> bytes:
    """Return Arg0..Arg6."""
    if not 0 <= number <= 6:
        raise ValueError(f"there is no Arg{number}")
    return bytes([_ARG0 + number])


def local(number: int) -> bytes:
    """Return Local0..Local7."""
    if not 0 <= number <= 7:
        raise ValueError(f"there is no Local{number}")
    return bytes([_LOCAL0 + number])


# Objects.


def name(target: str, value: bytes) -> bytes:
    """Name (target, value)."""
    return bytes([_NAME]) + path(target) + value


def scope(target: str, *terms: bytes) -> bytes:
    """Scope (target) { terms }."""
    return bytes([_SCOPE]) + package_length(path(target) + b"".join(terms))


def device(target: str, *terms: bytes) -> bytes:
    """Device (target) { terms }."""
    return bytes([_EXT, _EXT_DEVICE]) + package_length(path(target) + b"".join(terms))


def processor(target: str, uid: int, *terms: bytes, block: int = 0, block_length: int = 0) -> bytes:
    """Processor (target, uid, block, block_length) { terms }: `uid` is what the MADT calls the processor."""
    head = path(target) + bytes([uid]) + _U32.pack(block) + bytes([block_length])
    return bytes([_EXT, _EXT_PROCESSOR]) + package_length(head + b"".join(terms))


def method(target: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """Method (target, arguments, ...) { terms }."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method cannot have {arguments} arguments")
    flags = bytes([arguments | serialized << 3])
    return bytes([_METHOD]) + package_length(path(target) + flags + b"".join(terms))


def mutex(target: str) -> bytes:
    """Mutex (target, 0)."""
    return bytes([_EXT, _EXT_MUTEX]) + path(target) + ZERO


def operation_region(target: str, space: Space, offset: int, length: int) -> bytes:
    """OperationRegion (target, space, offset, length); both numbers in bytes."""
    return bytes([_EXT, _EXT_OP_REGION]) + path(target) + bytes([space]) + integer(offset) + integer(length)


def field(
    region: str,
    entries: Sequence[tuple[str, int]],
    access: Access,
    update: Update = Update.PRESERVE,
    lock: bool = False,
) -> bytes:
    """Field (region, ...) { entries }: (name, width in bits) in order; an empty name leaves bits out."""
    flags = access | lock << 4 | update << 5
    body = path(region) + bytes([flags])
    for entry, bits in entries:
        body += (_segment(entry) if entry else ZERO) + _field_width(bits)
    return bytes([_EXT, _EXT_FIELD]) + package_length(body)


def _field_width(bits: int) -> bytes:
    """Encode a width in bits: the form of a package length, but not counting itself."""
    if bits < 1 << 6:
        return bytes([bits])
    for extra in (1, 2, 3):
        if bits < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | bits & 0xF]) + (bits >> 4).to_bytes(extra, "little")
    raise ValueError(f"a field of {bits} bits is too wide")


# Expressions and statements.


def call(target: str, *arguments: bytes) -> bytes:
    """Call the method `target`."""
    return path(target) + b"".join(arguments)


def store(source: bytes, target: bytes) -> bytes:
    """Store (source, target)."""
    return bytes([_STORE]) + source + target


def _binary(opcode: int, left: bytes, right: bytes, target: bytes) -> bytes:
    return bytes([opcode]) + left + right + target


def add(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Add (left, right, target)."""
    return _binary(_ADD, left, right, target)


def subtract(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Subtract (left, right, target)."""
    return _binary(_SUBTRACT, left, right, target)


def multiply(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Multiply (left, right, target)."""
    return _binary(_MULTIPLY, left, right, target)


def and_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """And (left, right, target), bit by bit."""
    return _binary(_AND, left, right, target)


def or_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Or (left, right, target), bit by bit."""
    return _binary(_OR, left, right, target)


def xor(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """XOr (left, right, target), bit by bit."""
    return _binary(_XOR, left, right, target)


def not_(operand: bytes, target: bytes = NOWHERE) -> bytes:
    """Not (operand, target), bit by bit."""
    return bytes([_NOT]) + operand + target


def shift_left(value: bytes, count: bytes, target: bytes = NOWHERE) -> bytes:
    """ShiftLeft (value, count, target)."""
    return _binary(_SHIFT_LEFT, value, count, target)


def shift_right(value: bytes, count: bytes, target: bytes = NOWHERE) -> bytes:
    """ShiftRight (value, count, target)."""
    return _binary(_SHIFT_RIGHT, value, count, target)


def increment(target: bytes) -> bytes:
    """Increment (target)."""
    return bytes([_INCREMENT]) + target


def decrement(target: bytes) -> bytes:
    """Decrement (target)."""
    return bytes([_DECREMENT]) + target


def logical_and(left: bytes, right: bytes) -> bytes:
    """LAnd (left, right)."""
    return bytes([_LAND]) + left + right


def logical_or(left: bytes, right: bytes) -> bytes:
    """LOr (left, right)."""
    return bytes([_LOR]) + left + right


def logical_not(operand: bytes) -> bytes:
    """LNot (operand)."""
    return bytes([_LNOT]) + operand


def equal(left: bytes, right: bytes) -> bytes:
    """LEqual (left, right)."""
    return bytes([_LEQUAL]) + left + right


def less(left: bytes, right: bytes) -> bytes:
    """LLess (left, right)."""
    return bytes([_LLESS]) + left + right


def greater(left: bytes, right: bytes) -> bytes:
    """LGreater (left, right)."""
    return bytes([_LGREATER]) + left + right


def index(source: bytes, position: bytes, target: bytes = NOWHERE) -> bytes:
    """Index (source, position, target)."""
    return _binary(_INDEX, source, position, target)


def deref_of(reference: bytes) -> bytes:
    """DerefOf (reference)."""
    return bytes([_DEREF_OF]) + reference


def size_of(source: bytes) -> bytes:
    """SizeOf (source)."""
    return bytes([_SIZE_OF]) + source


def create_field(source: bytes, offset: int, bits: int, target: str) -> bytes:
    """CreateByteField, CreateWordField, CreateDWordField or CreateQWordField (source, offset in bytes, target)."""
    opcodes = {8: _CREATE_BYTE_FIELD, 16: _CREATE_WORD_FIELD, 32: _CREATE_DWORD_FIELD, 64: _CREATE_QWORD_FIELD}
    return bytes([opcodes[bits]]) + source + integer(offset) + path(target)


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    return bytes([_IF]) + package_length(condition + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    """Else { terms }, right behind an If."""
    return bytes([_ELSE]) + package_length(b"".join(terms))


def while_(condition: bytes, *terms: bytes) -> bytes:
    """While (condition) { terms }."""
    return bytes([_WHILE]) + package_length(condition + b"".join(terms))


def return_(value: bytes = ZERO) -> bytes:
    """Return (value)."""
    return bytes([_RETURN]) + value


def notify(target: bytes, value: int | bytes) -> bytes:
    """Notify (target, value); the value is a number or an expression."""
    return bytes([_NOTIFY]) + target + (integer(value) if isinstance(value, int) else value)


def sleep(milliseconds: int) -> bytes:
    """Sleep (milliseconds)."""
    return bytes([_EXT, _EXT_SLEEP]) + integer(milliseconds)


def acquire(target: str, timeout_ms: int = 0xFFFF) -> bytes:
    """Acquire (target, timeout); 0xffff waits for ever."""
    return bytes([_EXT, _EXT_ACQUIRE]) + path(target) + _U16.pack(timeout_ms)


def release(target: str) -> bytes:
    """Release (target)."""
    return bytes([_EXT, _EXT_RELEASE]) + path(target)
