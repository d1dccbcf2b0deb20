"""Processors in the DSDT, which may come and go while the system runs.

ACPI specification 6.5, sections 8.4 "Declaring Processors" and 6.3 "Device Insertion, Removal, and Status Objects"; the
registers are :mod:`pyvm.devices.acpi.cpu_hotplug`.  Each processor is named by its index, which the MADT uses as well.
"""

from __future__ import annotations

import struct

from pyvm.devices.acpi import cpu_hotplug as registers
from pyvm.firmware import aml
from pyvm.firmware import aml_resources as res
from pyvm.firmware.aml import Access, Space, Update
from pyvm.firmware.machine_info import CPU_HOTPLUG_BASE, Processor

CHECK = 1
EJECT_REQUEST = 3
"""Values of Notify: look for a new processor; let the processor go."""

_WORKING = 0x0F
_HIDDEN = 0x0B
_OBJECT_LIMIT = 0xFF
"""Processors from this index on are devices: a Processor object has a byte for it."""
_XAPIC_LIMIT = 0xFF
_LAPIC, _X2APIC = 0, 9
_LOCK = "\\_SB.PCI0.PRES.CPLK"
_SELECTOR, _COMMAND, _DATA = (f"\\_SB.PCI0.PRES.{name}" for name in ("CSEL", "CCMD", "CDAT"))
_ENABLED, _INSERTED, _REMOVING, _EJECT = (f"\\_SB.PCI0.PRES.{name}" for name in ("CENA", "CINS", "CRMV", "CEJE"))


def register_device() -> bytes:
    """Return the device that owns the registers, for the scope of the host bridge."""
    flags = [("", 8 * registers.FLAGS), ("CENA", 1), ("CINS", 1), ("CRMV", 1), ("CEJE", 1), ("", 4), ("CCMD", 8)]
    between = 8 * (registers.COMMAND_DATA - registers.SELECTOR) - 32
    return aml.device(
        "PRES",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("CPU Hotplug resources")),
        aml.name("_STA", aml.integer(_HIDDEN)),
        aml.name("_CRS", res.template(res.io(CPU_HOTPLUG_BASE, registers.BLOCK_SIZE))),
        aml.mutex("CPLK"),
        aml.operation_region("CPRG", Space.SYSTEM_IO, CPU_HOTPLUG_BASE, registers.BLOCK_SIZE),
        aml.field("CPRG", flags, Access.BYTE, Update.ZEROS),
        aml.field("CPRG", [("CSEL", 32), ("", between), ("CDAT", 32)], Access.DWORD),
        # The older interface ends with the first write to the selector.
        aml.method("_INI", 0, aml.store(aml.ZERO, aml.path("CSEL"))),
    )


def processors(units: tuple[Processor, ...]) -> bytes:
    """Return the container of all processors, for the scope of the system bus."""
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        _status(),
        _eject(),
        _report(),
        _notifier(len(units)),
        _scan(),
        *(_processor(number, unit) for number, unit in enumerate(units)),
    )


def event() -> bytes:
    """Return the handler of the general-purpose event, for the scope of these."""
    return aml.method(f"_E{registers.GPE:02X}", 0, aml.call("\\_SB.CPUS.CPSC"))


def _name(number: int) -> str:
    return f"C{number:03X}"


def _processor(number: int, unit: Processor) -> bytes:
    index = aml.integer(number)
    terms = [
        aml.method("_STA", 0, aml.return_(aml.call("CPST", index)), serialized=True),
        aml.name("_MAT", aml.buffer(_local_apic(number, unit.apic_id))),
        aml.method("_OST", 3, aml.call("CPOS", index, aml.arg(0), aml.arg(1)), serialized=True),
    ]
    if number:
        terms.append(aml.method("_EJ0", 1, aml.call("CPEJ", index)))
    if number < _OBJECT_LIMIT:
        return aml.processor(_name(number), number, *terms)
    identity = (aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", index))
    return aml.device(_name(number), *identity, *terms)


def _local_apic(number: int, apic_id: int) -> bytes:
    """Return the MADT's entry for a processor that is there: who reads it has seen by _STA that it is."""
    if apic_id < _XAPIC_LIMIT:
        return struct.pack("<BBBBI", _LAPIC, 8, number, apic_id, 1)
    return struct.pack("<BBHIII", _X2APIC, 16, 0, apic_id, 1, number)


def _locked(*terms: bytes) -> tuple[bytes, ...]:
    return aml.acquire(_LOCK), *terms, aml.release(_LOCK)


def _select() -> bytes:
    return aml.store(aml.arg(0), aml.path(_SELECTOR))


def _status() -> bytes:
    """CPST (index): _STA of a processor."""
    present = aml.if_(aml.path(_ENABLED), aml.store(aml.integer(_WORKING), aml.local(0)))
    look = _locked(_select(), aml.store(aml.ZERO, aml.local(0)), present)
    return aml.method("CPST", 1, *look, aml.return_(aml.local(0)), serialized=True)


def _eject() -> bytes:
    """CPEJ (index): let a processor go."""
    return aml.method("CPEJ", 1, *_locked(_select(), aml.store(aml.ONE, aml.path(_EJECT))), serialized=True)


def _report() -> bytes:
    """CPOS (index, event, status): pass on what the system says of a request."""
    words = []
    for command, argument in ((registers.OST_EVENT, 1), (registers.OST_STATUS, 2)):
        words.append(aml.store(aml.integer(command), aml.path(_COMMAND)))
        words.append(aml.store(aml.arg(argument), aml.path(_DATA)))
    return aml.method("CPOS", 3, *_locked(_select(), *words), serialized=True)


def _notifier(count: int) -> bytes:
    """CPNT (index, value): notify a processor."""
    tests = [
        aml.if_(aml.equal(aml.arg(0), aml.integer(number)), aml.notify(aml.path(_name(number)), aml.arg(1)))
        for number in range(count)
    ]
    return aml.method("CPNT", 2, *tests)


def _scan() -> bytes:
    """CPSC: tell the system what the registers say, one processor after the other until nothing is left."""
    index, more = aml.local(0), aml.local(1)
    found = (
        aml.store(aml.integer(registers.NEXT_WITH_EVENT), aml.path(_COMMAND)),
        aml.store(aml.path(_DATA), index),
        aml.store(aml.ZERO, more),
        aml.if_(
            aml.path(_INSERTED),
            aml.call("CPNT", index, aml.integer(CHECK)),
            aml.store(aml.ONE, aml.path(_INSERTED)),
            aml.store(aml.ONE, more),
        ),
        aml.else_(
            aml.if_(
                aml.path(_REMOVING),
                aml.call("CPNT", index, aml.integer(EJECT_REQUEST)),
                aml.store(aml.ONE, aml.path(_REMOVING)),
                aml.store(aml.ONE, more),
            )
        ),
    )
    rounds = (aml.store(aml.ZERO, aml.path(_SELECTOR)), aml.store(aml.ONE, more), aml.while_(more, *found))
    return aml.method("CPSC", 0, *_locked(*rounds), serialized=True)
