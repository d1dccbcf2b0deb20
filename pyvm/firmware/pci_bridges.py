"""What firmware does to PCI bridges: it numbers the buses, and gives each bridge windows over all that is behind it.

PCI-to-PCI Bridge Architecture Specification 1.2, sections 3.2.5 and 11.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

HEADER_TYPE = 0x0E
HEADER_KIND = 0x7F
HEADER_BRIDGE = 0x01
PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS = 0x18, 0x19, 0x1A
IO_BASE, IO_LIMIT = 0x1C, 0x1D
MEMORY_BASE, MEMORY_LIMIT = 0x20, 0x22
PREFETCH_BASE, PREFETCH_LIMIT = 0x24, 0x26
PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER = 0x28, 0x2C
IO_GRANULARITY, MEMORY_GRANULARITY = 1 << 12, 1 << 20
LAST_BUS = 255


class Function(Protocol):
    """What firmware sees of a PCI function."""

    def config_read(self, offset: int, size: int) -> int:
        """Read configuration space."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space."""


Scan = Callable[[int], Iterable[tuple[int, int, Function]]]
"""Yields slot, function number and function of all on the bus of a number."""


def is_bridge(function: Function) -> bool:
    """Whether a function leads to another bus."""
    return function.config_read(HEADER_TYPE, 1) & HEADER_KIND == HEADER_BRIDGE


def number_buses(scan: Scan, bus: int = 0) -> int:
    """Number the buses behind `bus`, depth first; return the last number that was given."""
    last = bus
    for _, _, function in list(scan(bus)):
        if not is_bridge(function) or last >= LAST_BUS:
            continue
        function.config_write(PRIMARY_BUS, 1, bus)
        function.config_write(SECONDARY_BUS, 1, last + 1)
        function.config_write(SUBORDINATE_BUS, 1, LAST_BUS)
        last = number_buses(scan, last + 1)
        function.config_write(SUBORDINATE_BUS, 1, last)
    return last


def buses_behind(scan: Scan, bus: int = 0) -> Iterator[tuple[Function, int]]:
    """Yield the bridges on `bus`, and the number of the bus behind each."""
    for _, _, function in scan(bus):
        if is_bridge(function) and (number := function.config_read(SECONDARY_BUS, 1)):
            yield function, number


def window_size(sizes: Iterable[int], granularity: int) -> int:
    """Return the size of a window, a power of two, that holds ranges of these sizes; 0 for none."""
    total = sum(sizes)
    return 0 if not total else max(granularity, 1 << (total - 1).bit_length())


def open_io(function: Function, start: int, size: int) -> None:
    """Let ports through; with size 0 none."""
    function.config_write(IO_BASE, 1, start >> 8 if size else 0xF0)
    function.config_write(IO_LIMIT, 1, start + size - 1 >> 8 if size else 0)


def open_memory(function: Function, start: int, size: int) -> None:
    """Let memory through; with size 0 none."""
    function.config_write(MEMORY_BASE, 2, start >> 16 if size else 0xFFF0)
    function.config_write(MEMORY_LIMIT, 2, start + size - 1 >> 16 if size else 0)


def open_prefetchable(function: Function, start: int, size: int) -> None:
    """Let prefetchable memory through; with size 0 none."""
    end = start + size - 1
    function.config_write(PREFETCH_BASE, 2, start >> 16 & 0xFFF0 if size else 0xFFF0)
    function.config_write(PREFETCH_LIMIT, 2, end >> 16 & 0xFFF0 if size else 0)
    function.config_write(PREFETCH_BASE_UPPER, 4, start >> 32 if size else 0)
    function.config_write(PREFETCH_LIMIT_UPPER, 4, end >> 32 if size else 0)
