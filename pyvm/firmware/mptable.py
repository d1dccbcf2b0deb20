"""The MP table, for systems that do without ACPI.

Intel MultiProcessor Specification 1.4, chapter 4.  It tells the same as the MADT and the DSDT's routing table: the
processors, the IOAPIC, and which of its pins each interrupt reaches after firmware has set the PIRQ routing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pyvm.devices.pci.piix3 import swizzle
from pyvm.firmware.acpi import checksum
from pyvm.firmware.machine_info import (
    IOAPIC_BASE,
    IOAPIC_ID,
    LAPIC_BASE,
    PCI_IRQS,
    PIRQ_ROUTES,
    PM_SLOT,
    SCI_IRQ,
    MachineInfo,
)

FLOATING_POINTER_SIZE = 16
FLOATING_POINTER_ALIGN = 16
_SPECIFICATION_1_4 = 4

PROCESSOR, BUS, IOAPIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)
_INT, _NMI, _EXTINT = 0, 1, 3

_LAPIC_VERSION = 0x14
_IOAPIC_VERSION = 0x20
_ENABLED = 1 << 0
_BOOT_PROCESSOR = 1 << 1
_BUS_PCI, _BUS_ISA = 0, 1
_ACTIVE_HIGH, _LEVEL = 0x1, 0xC
_CONFORMING = 0
_ALL_LAPICS = 0xFF
_PIT_PIN = 2
_PCI_SLOTS = 32
_XAPIC_LIMIT = 0xFF


def floating_pointer(address: int) -> bytes:
    """Return the structure that leads to a table at physical address `address`."""
    data = bytearray(struct.pack("<4sIBBB5x", b"_MP_", address, 1, _SPECIFICATION_1_4, 0))
    data[10] = checksum(data)
    return bytes(data)


def build(info: MachineInfo) -> bytes:
    """Return the configuration table.  Processors that are absent or need more than 8 bits of APIC ID are left out."""
    entries = [*_processors(info), *_buses(), _ioapic(), *_isa_interrupts(), *_pci_interrupts(), *_local_interrupts()]
    body = b"".join(entries)
    header = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBB",
            b"PCMP",
            44 + len(body),
            _SPECIFICATION_1_4,
            0,
            b"BOCHSCPU",
            b"0.1".ljust(12),
            0,
            0,
            len(entries),
            LAPIC_BASE,
            0,
            0,
            0,
        )
    )
    header[7] = checksum(header + body)
    return bytes(header) + body


def _processors(info: MachineInfo) -> Iterable[bytes]:
    for number, unit in enumerate(info.processors):
        if unit.present and unit.apic_id < _XAPIC_LIMIT:
            flags = _ENABLED | (0 if number else _BOOT_PROCESSOR)
            numbers = (info.cpu_signature, info.cpu_features)
            yield struct.pack("<BBBBII8x", PROCESSOR, unit.apic_id, _LAPIC_VERSION, flags, *numbers)


def _buses() -> Iterable[bytes]:
    yield struct.pack("<BB6s", BUS, _BUS_PCI, b"PCI   ")
    yield struct.pack("<BB6s", BUS, _BUS_ISA, b"ISA   ")


def _ioapic() -> bytes:
    return struct.pack("<BBBBI", IOAPIC, IOAPIC_ID, _IOAPIC_VERSION, _ENABLED, IOAPIC_BASE)


def _interrupt(bus: int, source: int, pin: int, flags: int = _CONFORMING) -> bytes:
    return struct.pack("<BBHBBBB", IO_INTERRUPT, _INT, flags, bus, source, IOAPIC_ID, pin)


def _isa_interrupts() -> Iterable[bytes]:
    """The edge-triggered ones, and the SCI.  IRQ 2 is the cascade; its pin belongs to the PIT."""
    yield _interrupt(_BUS_ISA, 0, _PIT_PIN)
    for irq in range(1, 16):
        if irq == SCI_IRQ:
            yield _interrupt(_BUS_ISA, irq, irq, _ACTIVE_HIGH | _LEVEL)
        elif irq != _PIT_PIN and irq not in PCI_IRQS:
            yield _interrupt(_BUS_ISA, irq, irq)


def _pci_interrupts() -> Iterable[bytes]:
    for slot in range(1, _PCI_SLOTS):
        for pin in range(4):
            irq = SCI_IRQ if slot == PM_SLOT and pin == 0 else PIRQ_ROUTES[swizzle(slot, pin)]
            yield _interrupt(_BUS_PCI, slot << 2 | pin, irq, _ACTIVE_HIGH | _LEVEL)


def _local_interrupts() -> Iterable[bytes]:
    yield struct.pack("<BBHBBBB", LOCAL_INTERRUPT, _EXTINT, _CONFORMING, _BUS_ISA, 0, 0, 0)
    yield struct.pack("<BBHBBBB", LOCAL_INTERRUPT, _NMI, _CONFORMING, _BUS_ISA, 0, _ALL_LAPICS, 1)
