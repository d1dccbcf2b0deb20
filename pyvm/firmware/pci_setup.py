"""What firmware does to PCI before an operating system runs.

PCI Local Bus Specification 3.0, section 6.2.5 (sizing of BARs) and PCI Firmware Specification 3.0, section 3.5.  Like
firmware it works through configuration space alone.  Functions get addresses for their BARs, largest first: ports
from 0xc000 up; memory in a block that ends where the I/O APIC begins, prefetchable memory in a block below that; 64-bit
BARs move above 4 GiB where the hole below is too small.  The chip set's own registers are set as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Protocol

from pyvm.devices.pci.piix3 import swizzle
from pyvm.firmware import pci_bridges as bridges
from pyvm.firmware.machine_info import (
    PCI_HOLE_END,
    PIRQ_ROUTES,
    PM_BASE,
    SCI_IRQ,
    SMBUS_BASE,
    MachineInfo,
)
from pyvm.records import field, record

# Configuration space.
VENDOR_ID = 0x00
COMMAND = 0x04
CLASS_DEVICE = 0x0A
HEADER_TYPE = 0x0E
BAR_FIRST = 0x10
BAR_COUNT = 6
ROM_BAR = 0x30
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D

NO_DEVICE = 0xFFFF
MULTI_FUNCTION = 0x80
HEADER_KIND = 0x7F
COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_SERR = 1 << 8
BAR_IO = 1 << 0
BAR_TYPE_MASK = 3 << 1
BAR_TYPE_64 = 2 << 1
BAR_PREFETCHABLE = 1 << 3
IO_MASK = 0xFFFFFFFC
MEMORY_MASK = 0xFFFFFFF0
ROM_MASK = 0xFFFFF800

SLOTS = 32
FUNCTIONS = 8

IO_START, IO_END = 0xC000, 0x10000

# Intel chip set: device identities (device << 16 | vendor) and registers.
I440FX = 0x1237_8086
PIIX3_ISA = 0x7000_8086
PIIX3_IDE = 0x7010_8086
PIIX4_PM = 0x7113_8086
PAM0, PAM_COUNT = 0x59, 7  # 82441FX: programmable attribute map
PAM0_RAM = 0x30  # the segment at 0xf0000 reads and writes RAM
PAM_RAM = 0x33  # both halves read and write RAM
PIRQ_ROUTE_CONTROL = 0x60
IDE_TIMING, IDE_DECODE_ENABLE = (0x40, 0x42), 0x8000
PM_BASE_REGISTER, PM_REGISTERS_ENABLE = 0x40, 0x80
SMBUS_BASE_REGISTER, SMBUS_HOST_CONFIG = 0x90, 0xD2
SMBUS_ENABLE, SMBUS_VIA_IRQ9 = 1 << 0, 1 << 3
ELCR_PORT = 0x4D0

PortWriter = Callable[[int, int, int], None]
"""(port, size in bytes, value)."""


class Function(Protocol):
    """What firmware sees of a PCI function."""

    def config_read(self, offset: int, size: int) -> int:
        """Read configuration space."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space."""


class Bus(Protocol):
    """What firmware sees of the bus."""

    def function_on(self, number: int, slot: int, fn: int = 0) -> Function | None:
        """Return the function at that place of the bus of that number."""


class Space(Enum):
    """Where a BAR wants to be."""

    IO = auto()
    MEMORY = auto()
    PREFETCHABLE = auto()


@record
class Request:
    """One BAR and the addresses it needs, in bytes."""

    function: Function
    register: int
    size: int
    space: Space
    wide: bool = False

    def assign(self, address: int) -> None:
        """Write the address into the BAR; the expansion ROM stays disabled."""
        self.function.config_write(self.register, 4, address & 0xFFFFFFFF)
        if self.wide:
            self.function.config_write(self.register + 4, 4, address >> 32)


def scan(bus: Bus, number: int = 0) -> Iterable[tuple[int, int, Function]]:
    """Yield (slot, function number, function) of all on the bus of that number."""
    for slot in range(SLOTS):
        for fn in range(FUNCTIONS):
            function = bus.function_on(number, slot, fn)
            if function is None or function.config_read(VENDOR_ID, 2) == NO_DEVICE:
                if fn == 0:
                    break
                continue
            yield slot, fn, function
            if fn == 0 and not function.config_read(HEADER_TYPE, 1) & MULTI_FUNCTION:
                break


def setup(bus: Bus, info: MachineInfo, write_port: PortWriter) -> None:
    """Make the functions of `bus` ready for an operating system."""

    def on_bus(number: int) -> Iterable[tuple[int, int, Function]]:
        return scan(bus, number)

    bridges.number_buses(on_bus)
    functions = list(_all_functions(on_bus, 0, ()))
    for _, function in functions:
        command = function.config_read(COMMAND, 2)
        function.config_write(COMMAND, 2, command & ~(COMMAND_IO | COMMAND_MEMORY))
    _assign(_bus_requests(on_bus, 0), info)
    for slots, function in functions:
        _route_interrupt(slots, function)
        _setup_chip_set(function, write_port)
        command = function.config_read(COMMAND, 2) | (COMMAND_MASTER if bridges.is_bridge(function) else 0)
        function.config_write(COMMAND, 2, command | COMMAND_IO | COMMAND_MEMORY | COMMAND_SERR)


def _all_functions(
    on_bus: bridges.Scan, number: int, outer: tuple[int, ...]
) -> Iterable[tuple[tuple[int, ...], Function]]:
    """Yield the functions of a bus and of those behind it, each with the slots that lead there from the first bus."""
    for slot, _, function in list(on_bus(number)):
        yield (*outer, slot), function
        if bridges.is_bridge(function) and (behind := function.config_read(bridges.SECONDARY_BUS, 1)):
            yield from _all_functions(on_bus, behind, (*outer, slot))


@record
class BridgeWindow(Request):
    """A bridge's window, and what is to be placed in it."""

    inner: list[Request] = field(default_factory=list)

    def assign(self, address: int) -> None:
        """Open the window, and place what is behind it there."""
        _OPENERS[self.space](self.function, address, self.size)
        _place(self.inner, address, address + self.size)


_OPENERS = {
    Space.IO: bridges.open_io,
    Space.MEMORY: bridges.open_memory,
    Space.PREFETCHABLE: bridges.open_prefetchable,
}


_SPARE = {Space.IO: bridges.IO_GRANULARITY, Space.MEMORY: 2 << 20, Space.PREFETCHABLE: 2 << 20}
"""How large the windows of a bridge are at least: there may be devices behind it later."""


def _bus_requests(on_bus: bridges.Scan, number: int) -> list[Request]:
    """Return what the functions of a bus need; for a bridge those are windows over what is behind it."""
    found = [request for _, _, function in list(on_bus(number)) for request in _requests(function)]
    for bridge, behind in bridges.buses_behind(on_bus, number):
        inner = _bus_requests(on_bus, behind)
        for space, open_window in _OPENERS.items():
            open_window(bridge, 0, 0)
            wanted = _sorted(inner, space)
            granularity = bridges.IO_GRANULARITY if space is Space.IO else bridges.MEMORY_GRANULARITY
            size = bridges.window_size((request.size for request in wanted), granularity)
            found.append(BridgeWindow(bridge, 0, max(size, _SPARE[space]), space, inner=wanted))
    return found


def _requests(function: Function) -> list[Request]:
    """Size the BARs of one function."""
    if function.config_read(HEADER_TYPE, 1) & HEADER_KIND:
        return []
    found: list[Request] = []
    index = 0
    while index < BAR_COUNT:
        register = BAR_FIRST + 4 * index
        request = _probe(function, register, index == BAR_COUNT - 1)
        if request is not None:
            found.append(request)
        index += 2 if request is not None and request.wide else 1
    rom = _size(function, ROM_BAR, 4, ROM_MASK)
    if rom:
        found.append(Request(function, ROM_BAR, rom, Space.MEMORY))
    return found


def _probe(function: Function, register: int, last: bool) -> Request | None:
    flags = function.config_read(register, 4)
    if flags & BAR_IO:
        size = _size(function, register, 4, IO_MASK)
        return Request(function, register, size, Space.IO) if size else None
    wide = flags & BAR_TYPE_MASK == BAR_TYPE_64 and not last
    size = _size(function, register, 8 if wide else 4, MEMORY_MASK)
    space = Space.PREFETCHABLE if flags & BAR_PREFETCHABLE else Space.MEMORY
    return Request(function, register, size, space, wide) if size else None


def _size(function: Function, register: int, width: int, mask: int) -> int:
    """Return what a BAR decodes: the lowest address bit that can be set; 0 where there is no BAR."""
    value = 0
    for offset in range(0, width, 4):
        old = function.config_read(register + offset, 4)
        function.config_write(register + offset, 4, 0xFFFFFFFE if register == ROM_BAR else 0xFFFFFFFF)
        value |= function.config_read(register + offset, 4) << (8 * offset)
        function.config_write(register + offset, 4, old)
    value &= mask if width == 4 else mask | 0xFFFFFFFF << 32
    return value & -value


def _assign(requests: list[Request], info: MachineInfo) -> None:
    ports = _sorted(requests, Space.IO)
    _place([request for request in ports if request.size <= IO_END - IO_START], IO_START, IO_END)
    memory, prefetchable = _sorted(requests, Space.MEMORY), _sorted(requests, Space.PREFETCHABLE)
    floor = info.low_ram_end
    if _blocks(memory, prefetchable, floor) is None:
        wide = [request for request in memory + prefetchable if request.wide]
        _place(sorted(wide, key=_by_size), *info.pci_hole64)
        memory = [request for request in memory if not request.wide]
        prefetchable = [request for request in prefetchable if not request.wide]
    while (starts := _blocks(memory, prefetchable, floor)) is None:
        largest = memory if not prefetchable or (memory and memory[0].size > prefetchable[0].size) else prefetchable
        del largest[0]  # there is no place for it: it stays without an address
    _place(memory, starts[0], PCI_HOLE_END)
    _place(prefetchable, starts[1], starts[0])


def _by_size(request: Request) -> int:
    return -request.size


def _sorted(requests: list[Request], space: Space) -> list[Request]:
    """Return the requests for one space, largest first, so that each falls on a multiple of its size."""
    return sorted((request for request in requests if request.space is space), key=_by_size)


def _blocks(memory: list[Request], prefetchable: list[Request], floor: int) -> tuple[int, int] | None:
    """Return where the two blocks below the I/O APIC start, or None where they would reach below `floor`."""
    start = _block_below(PCI_HOLE_END, memory)
    lower = _block_below(start, prefetchable)
    return (start, lower) if lower >= floor else None


def _block_below(end: int, requests: list[Request]) -> int:
    if not requests:
        return end
    return (end - sum(request.size for request in requests)) & -requests[0].size


def _place(requests: list[Request], start: int, end: int) -> None:
    """Hand out `start`..`end` in the order of `requests`; those that do not fit stay without an address."""
    address = start
    for request in requests:
        aligned = (address + request.size - 1) & -request.size
        if aligned + request.size <= end:
            request.assign(aligned)
            address = aligned + request.size


def _route_interrupt(slots: tuple[int, ...], function: Function) -> None:
    """Say which interrupt a function has; each bridge on the way turns the pins by the slot behind it."""
    pin = function.config_read(INTERRUPT_PIN, 1)
    if 1 <= pin <= 4:
        turned = (pin - 1 + sum(slots[1:])) % 4
        function.config_write(INTERRUPT_LINE, 1, PIRQ_ROUTES[swizzle(slots[0], turned)])


def _setup_chip_set(function: Function, write_port: PortWriter) -> None:
    identity = function.config_read(VENDOR_ID, 4)
    if identity == I440FX:
        function.config_write(PAM0, 1, PAM0_RAM)
        for register in range(PAM0 + 1, PAM0 + PAM_COUNT):
            function.config_write(register, 1, PAM_RAM)
    elif identity == PIIX3_ISA:
        for pirq, irq in enumerate(PIRQ_ROUTES):
            function.config_write(PIRQ_ROUTE_CONTROL + pirq, 1, irq)
        level = sum(1 << irq for irq in set(PIRQ_ROUTES))
        write_port(ELCR_PORT, 1, level & 0xFF)
        write_port(ELCR_PORT + 1, 1, level >> 8)
    elif identity == PIIX3_IDE:
        for register in IDE_TIMING:
            function.config_write(register, 2, IDE_DECODE_ENABLE)
    elif identity == PIIX4_PM:
        function.config_write(INTERRUPT_LINE, 1, SCI_IRQ)
        function.config_write(PM_BASE_REGISTER, 4, PM_BASE | BAR_IO)
        function.config_write(PM_REGISTERS_ENABLE, 1, 1)
        function.config_write(SMBUS_BASE_REGISTER, 4, SMBUS_BASE | BAR_IO)
        function.config_write(SMBUS_HOST_CONFIG, 1, SMBUS_ENABLE | SMBUS_VIA_IRQ9)
