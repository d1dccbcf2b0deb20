"""Memory slots in the DSDT: the methods by which the system hears of modules that come, and lets modules go.

ACPI specification 6.5, sections 9.11 "Memory Devices" and 6.3 "Device Insertion, Removal, and Status Objects"; the
registers are :mod:`pyvm.devices.acpi.memory_hotplug`.
"""

from __future__ import annotations

from pyvm.devices.acpi import memory_hotplug as registers
from pyvm.firmware import aml
from pyvm.firmware import aml_resources as res
from pyvm.firmware.aml import Access, Space, Update
from pyvm.firmware.machine_info import MEMORY_HOTPLUG_BASE

CHECK = 1
EJECT_REQUEST = 3
"""Values of Notify: look for a new module; let the module go."""

_WORKING = 0x0F
_HIDDEN = 0x0B
# Offsets in a QWordMemory descriptor, the first thing in its template.
_MINIMUM, _MAXIMUM, _LENGTH = 14, 22, 38
_LAST = (1 << 64) - 2
_LOCK = "MHLK"


def register_device() -> bytes:
    """Return the device that owns the registers, for the scope of the host bridge."""
    return aml.device(
        "MHPD",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("Memory hotplug resources")),
        aml.name("_STA", aml.integer(_HIDDEN)),
        aml.name("_CRS", res.template(res.io(MEMORY_HOTPLUG_BASE, registers.BLOCK_SIZE))),
    )


def memory_slots(count: int) -> bytes:
    """Return the container of all slots, for the scope of the system bus."""
    flags = [("", 8 * registers.FLAGS), ("MENA", 1), ("MINS", 1), ("MRMV", 1), ("MEJE", 1)]
    words = [("MBAL", 32), ("MBAH", 32), ("MSZL", 32), ("MSZH", 32), ("MPXD", 32)]
    return aml.device(
        "MHPC",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", aml.string("DIMM devices")),
        aml.name("_STA", aml.integer(_HIDDEN)),
        aml.mutex(_LOCK),
        aml.operation_region("MHRG", Space.SYSTEM_IO, MEMORY_HOTPLUG_BASE, registers.BLOCK_SIZE),
        aml.field("MHRG", words, Access.DWORD),
        aml.field("MHRG", flags, Access.BYTE, Update.ZEROS),
        aml.field("MHRG", [("MSEL", 32), ("MOEV", 32), ("MOST", 32)], Access.DWORD),
        _status(),
        _resources(),
        _proximity(),
        _report(),
        _eject(),
        _notifier(count),
        _scan(count),
        *(_slot(number) for number in range(count)),
    )


def event() -> bytes:
    """Return the handler of the general-purpose event, for the scope of these."""
    return aml.method(f"_E{registers.GPE:02X}", 0, aml.call("\\_SB.MHPC.MHSC"))


def _name(number: int) -> str:
    return f"MP{number:02X}"


def _slot(number: int) -> bytes:
    index = aml.integer(number)
    return aml.device(
        _name(number),
        aml.name("_UID", aml.string(f"0x{number:02X}")),
        aml.name("_HID", aml.eisa_id("PNP0C80")),
        aml.method("_CRS", 0, aml.return_(aml.call("MHCR", index))),
        aml.method("_STA", 0, aml.return_(aml.call("MHST", index))),
        aml.method("_PXM", 0, aml.return_(aml.call("MHPX", index))),
        aml.method("_OST", 3, aml.call("MHOS", index, aml.arg(0), aml.arg(1))),
        aml.method("_EJ0", 1, aml.call("MHEJ", index)),
    )


def _locked(*terms: bytes) -> tuple[bytes, ...]:
    return aml.acquire(_LOCK), *terms, aml.release(_LOCK)


def _select() -> bytes:
    return aml.store(aml.arg(0), aml.path("MSEL"))


def _status() -> bytes:
    """MHST (slot): _STA of a slot."""
    enabled = aml.if_(aml.path("MENA"), aml.store(aml.integer(_WORKING), aml.local(0)))
    look = _locked(_select(), aml.store(aml.ZERO, aml.local(0)), enabled)
    return aml.method("MHST", 1, *look, aml.return_(aml.local(0)))


def _wide(low: str, high: str, target: bytes) -> bytes:
    """Put a register pair together."""
    return aml.or_(aml.shift_left(aml.path(high), aml.integer(32)), aml.path(low), target)


def _resources() -> bytes:
    """MHCR (slot): _CRS of a slot."""
    start, size = aml.local(0), aml.local(1)
    return aml.method(
        "MHCR",
        1,
        aml.name("MBUF", res.template(res.memory_window64(0, _LAST))),
        aml.create_field(aml.path("MBUF"), _MINIMUM, 64, "MMIN"),
        aml.create_field(aml.path("MBUF"), _MAXIMUM, 64, "MMAX"),
        aml.create_field(aml.path("MBUF"), _LENGTH, 64, "MLEN"),
        *_locked(_select(), _wide("MBAL", "MBAH", start), _wide("MSZL", "MSZH", size)),
        aml.store(start, aml.path("MMIN")),
        aml.subtract(aml.add(start, size), aml.ONE, aml.path("MMAX")),
        aml.store(size, aml.path("MLEN")),
        aml.return_(aml.path("MBUF")),
        serialized=True,
    )


def _proximity() -> bytes:
    """MHPX (slot): _PXM of a slot, the NUMA node of its module."""
    look = _locked(_select(), aml.store(aml.path("MPXD"), aml.local(0)))
    return aml.method("MHPX", 1, *look, aml.return_(aml.local(0)))


def _report() -> bytes:
    """MHOS (slot, event, status): pass on what the system says of a request."""
    words = (aml.store(aml.arg(1), aml.path("MOEV")), aml.store(aml.arg(2), aml.path("MOST")))
    return aml.method("MHOS", 3, *_locked(_select(), *words))


def _eject() -> bytes:
    """MHEJ (slot): let a module go."""
    return aml.method("MHEJ", 1, *_locked(_select(), aml.store(aml.ONE, aml.path("MEJE"))))


def _notifier(count: int) -> bytes:
    """MHNT (slot, value): notify a slot."""
    tests = [
        aml.if_(aml.equal(aml.arg(0), aml.integer(number)), aml.notify(aml.path(_name(number)), aml.arg(1)))
        for number in range(count)
    ]
    return aml.method("MHNT", 2, *tests)


def _scan(count: int) -> bytes:
    """MHSC: tell the system what the registers say of each slot."""
    slot = aml.local(0)
    look = (
        aml.store(slot, aml.path("MSEL")),
        aml.if_(
            aml.path("MINS"),
            aml.call("MHNT", slot, aml.integer(CHECK)),
            aml.store(aml.ONE, aml.path("MINS")),
        ),
        aml.else_(
            aml.if_(
                aml.path("MRMV"),
                aml.call("MHNT", slot, aml.integer(EJECT_REQUEST)),
                aml.store(aml.ONE, aml.path("MRMV")),
            )
        ),
        aml.increment(slot),
    )
    rounds = (aml.store(aml.ZERO, slot), aml.while_(aml.less(slot, aml.integer(count)), *look))
    return aml.method("MHSC", 0, *_locked(*rounds))
