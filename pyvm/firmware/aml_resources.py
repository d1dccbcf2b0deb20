"""Resource descriptors: what a device's _CRS and _PRS are made of.

ACPI specification 6.5, section 6.4 "Resource Data Types for ACPI".  :func:`template` makes the buffer of descriptors.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from pyvm.firmware import aml

# Small descriptors: the tag with the length in its low three bits.
_IRQ_NO_FLAGS = 0x22
_DMA = 0x2A
_IO_PORT = 0x47
_END_TAG = 0x79
# Large descriptors.
_FIXED_MEMORY32 = 0x86
_DWORD_ADDRESS = 0x87
_WORD_ADDRESS = 0x88
_EXTENDED_INTERRUPT = 0x89
_QWORD_ADDRESS = 0x8A

_DECODE_16_BIT = 1
_CONSUMER = 1 << 0
_LEVEL_ACTIVE_HIGH_SHARED = 1 << 3  # bit 1 clear: level; bit 2 clear: active high

_FIXED_RANGE = 0x0C  # minimum and maximum address fixed; decode positive; producer
_RANGE_ENTIRE = 0x03  # I/O ranges: ISA and non-ISA


class Kind(IntEnum):
    """What an address space descriptor is about."""

    MEMORY = 0
    IO = 1
    BUS = 2


class Caching(IntEnum):
    """How memory behind a bridge may be cached."""

    NONE = 0
    CACHEABLE = 1
    WRITE_COMBINING = 2
    PREFETCHABLE = 3


def template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }; the checksum 0 says that it is not to be checked."""
    return aml.buffer(b"".join(descriptors) + bytes([_END_TAG, 0]))


def io(base: int, length: int, align: int = 1) -> bytes:
    """IO (Decode16, base, base, align, length)."""
    return struct.pack("<BBHHBB", _IO_PORT, _DECODE_16_BIT, base, base, align, length)


def irq(*numbers: int) -> bytes:
    """IRQNoFlags () { numbers }: edge-triggered, active high, not shared."""
    return struct.pack("<BH", _IRQ_NO_FLAGS, sum(1 << number for number in numbers))


def dma(channel: int) -> bytes:
    """DMA (Compatibility, NotBusMaster, Transfer8) { channel }."""
    return struct.pack("<BBB", _DMA, 1 << channel, 0)


def memory32(base: int, length: int, *, writable: bool = False) -> bytes:
    """Memory32Fixed (ReadOnly or ReadWrite, base, length)."""
    return struct.pack("<BHBII", _FIXED_MEMORY32, 9, int(writable), base, length)


def interrupt(*numbers: int) -> bytes:
    """Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { numbers }."""
    body = struct.pack(f"<BB{len(numbers)}I", _CONSUMER | _LEVEL_ACTIVE_HIGH_SHARED, len(numbers), *numbers)
    return struct.pack("<BH", _EXTENDED_INTERRUPT, len(body)) + body


def _window(tag: int, code: str, kind: Kind, flags: int, first: int, last: int) -> bytes:
    """A range that a bridge hands on to the bus behind it, `last` included."""
    body = struct.pack(f"<BBB5{code}", kind, _FIXED_RANGE, flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body


def bus_range(first: int, last: int) -> bytes:
    """WordBusNumber (...): bus numbers `first`..`last`."""
    return _window(_WORD_ADDRESS, "H", Kind.BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO (...): ports `first`..`last`."""
    return _window(_WORD_ADDRESS, "H", Kind.IO, _RANGE_ENTIRE, first, last)


def memory_window32(first: int, last: int, caching: Caching = Caching.NONE) -> bytes:
    """DWordMemory (...): addresses `first`..`last`, readable and writable."""
    return _window(_DWORD_ADDRESS, "I", Kind.MEMORY, caching << 1 | 1, first, last)


def memory_window64(first: int, last: int, caching: Caching = Caching.CACHEABLE) -> bytes:
    """QWordMemory (...): addresses `first`..`last`, readable and writable."""
    return _window(_QWORD_ADDRESS, "Q", Kind.MEMORY, caching << 1 | 1, first, last)
