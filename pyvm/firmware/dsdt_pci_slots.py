"""PCI slots in the DSDT: the methods by which the system hears of devices that come, and lets devices go.

ACPI specification 6.5, sections 6.3 "Device Insertion, Removal, and Status Objects" and 9.1.1 "_DSM"; PCI Firmware
specification 3.2, section 4.6.7 (names of devices); the registers are :mod:`pyvm.devices.acpi.pci_hotplug`.

Each bus has its number (BSEL), a device with _EJ0 for each slot from which something can be taken, a method that
notifies slots (PHNT), and one that looks at its registers and goes on to the buses behind it (PHSC).  Buses behind
bridges that are plugged in later have none of that: for them the system is told to look at all of the host bridge.
"""

from __future__ import annotations

from pyvm.devices.acpi import pci_hotplug as registers
from pyvm.firmware import aml
from pyvm.firmware import aml_resources as res
from pyvm.firmware.aml import Access, Space, Update
from pyvm.firmware.machine_info import PCI_HOTPLUG_BASE, HotplugBus

BUS_CHECK = 0
CHECK = 1
EJECT_REQUEST = 3
"""Values of Notify: look at everything behind; look for a new device; let the device go."""

_HIDDEN = 0x0B
_SLOTS = 32
_NAMING = bytes.fromhex("d037c9e5 5335 7a4d 9117 ea4d19c3434d")
"""The UUID e5c937d0-3553-4d7a-9117-ea4d19c3434d, as ACPI stores it."""
_NAMING_REVISION = 2
_FUNCTIONS, _DEVICE_NAME = 0, 7
_SUPPORTED = bytes([1 << _FUNCTIONS | 1 << _DEVICE_NAME])
_REGISTERS = ("PHUP", "PHDN", "PHEJ", "PHRM", "PHBS", "PHIX", "PHRS")


def slot_name(slot: int, fn: int = 0) -> str:
    """Return the name of the device object of a PCI function."""
    return f"S{8 * slot + fn:02X}"


def root_terms(bus: HotplugBus) -> bytes:
    """Return what belongs into the scope of the host bridge."""
    return b"".join((_register_block(), _eject(), _index(), _specific(), *_bus_terms(bus)))


def event() -> bytes:
    """Return the handler of the general-purpose event, for the scope of these."""
    return aml.method(
        f"_E{registers.GPE:02X}",
        0,
        aml.acquire("\\_SB.PCI0.PHLK"),
        aml.call("\\_SB.PCI0.PHSC"),
        aml.if_(aml.path("\\_SB.PCI0.PHRS"), aml.notify(aml.path("\\_SB.PCI0"), BUS_CHECK)),
        aml.release("\\_SB.PCI0.PHLK"),
    )


def _register_block() -> bytes:
    return b"".join(
        (
            aml.device(
                "PHPR",
                aml.name("_HID", aml.eisa_id("PNP0A06")),
                aml.name("_UID", aml.string("PCI Hotplug resources")),
                aml.name("_STA", aml.integer(_HIDDEN)),
                aml.name("_CRS", res.template(res.io(PCI_HOTPLUG_BASE, registers.BLOCK_SIZE))),
            ),
            aml.operation_region("PHRG", Space.SYSTEM_IO, PCI_HOTPLUG_BASE, registers.BLOCK_SIZE),
            aml.field("PHRG", [(name, 32) for name in _REGISTERS], Access.DWORD, Update.ZEROS),
            aml.mutex("PHLK"),
        )
    )


def _eject() -> bytes:
    """PHEX (bus, slot): let the device in a slot go."""
    return aml.method(
        "PHEX",
        2,
        aml.acquire("PHLK"),
        aml.store(aml.arg(0), aml.path("PHBS")),
        aml.shift_left(aml.ONE, aml.arg(1), aml.path("PHEJ")),
        aml.release("PHLK"),
    )


def _index() -> bytes:
    """PHIN (bus, slot): the number by which the user knows the device in a slot, 0 for none."""
    return aml.method(
        "PHIN",
        2,
        aml.acquire("PHLK"),
        aml.store(aml.arg(0), aml.path("PHBS")),
        aml.shift_left(aml.ONE, aml.arg(1), aml.path("PHIX")),
        aml.store(aml.path("PHIX"), aml.local(0)),
        aml.release("PHLK"),
        aml.return_(aml.local(0)),
    )


def _specific() -> bytes:
    """PHDM (UUID, revision, function, bus, slot): _DSM of each slot, of which there is the naming of devices."""
    nothing = aml.return_(aml.buffer(b"\0"))
    return aml.method(
        "PHDM",
        5,
        aml.if_(aml.logical_not(aml.equal(aml.arg(0), aml.buffer(_NAMING))), nothing),
        aml.if_(aml.less(aml.arg(1), aml.integer(_NAMING_REVISION)), nothing),
        aml.store(aml.call("PHIN", aml.arg(3), aml.arg(4)), aml.local(0)),
        aml.if_(aml.equal(aml.local(0), aml.ZERO), nothing),
        aml.if_(aml.equal(aml.arg(2), aml.ZERO), aml.return_(aml.buffer(_SUPPORTED))),
        aml.if_(
            aml.equal(aml.arg(2), aml.integer(_DEVICE_NAME)),
            aml.store(aml.package(aml.ZERO, aml.string("")), aml.local(1)),
            aml.store(aml.local(0), aml.index(aml.local(1), aml.ZERO)),
            aml.return_(aml.local(1)),
        ),
        nothing,
        serialized=True,
    )


def _bus_terms(bus: HotplugBus) -> list[bytes]:
    """What each bus has; `bus.fixed` slots hold what cannot be taken out."""
    bridges = {slot for slot, _ in bus.bridges}
    slots = [slot for slot in range(_SLOTS) if slot not in bus.fixed and slot not in bridges]
    terms = [aml.name("BSEL", aml.integer(bus.number))]
    terms += [_slot(slot) for slot in slots]
    for slot, behind in bus.bridges:
        address = aml.name("_ADR", aml.integer(slot << 16))
        terms.append(aml.device(slot_name(slot), address, *_bus_terms(behind)))
    terms.append(_notifier(slots))
    terms.append(_scan(bus))
    return terms


def _slot(slot: int) -> bytes:
    number = aml.integer(slot)
    arguments = (aml.arg(0), aml.arg(1), aml.arg(2), aml.path("BSEL"), number)
    return aml.device(
        slot_name(slot),
        aml.name("_ADR", aml.integer(slot << 16)),
        aml.name("_SUN", number),
        aml.method("_EJ0", 1, aml.call("PHEX", aml.path("BSEL"), number)),
        aml.method("_DSM", 4, aml.return_(aml.call("PHDM", *arguments)), serialized=True),
    )


def _notifier(slots: list[int]) -> bytes:
    """PHNT (slots, value): notify the devices of some slots."""
    tests = [
        aml.if_(aml.and_(aml.arg(0), aml.integer(1 << slot)), aml.notify(aml.path(slot_name(slot)), aml.arg(1)))
        for slot in slots
    ]
    return aml.method("PHNT", 2, *tests)


def _scan(bus: HotplugBus) -> bytes:
    """PHSC: tell the system what the registers say of this bus, and of those behind it; with the lock held."""
    return aml.method(
        "PHSC",
        0,
        aml.store(aml.path("BSEL"), aml.path("PHBS")),
        aml.call("PHNT", aml.path("PHUP"), aml.integer(CHECK)),
        aml.call("PHNT", aml.path("PHDN"), aml.integer(EJECT_REQUEST)),
        *(aml.call(f"^{slot_name(slot)}.PHSC") for slot, _ in bus.bridges),
    )
