"""The DSDT: the devices of the i440FX machine that no bus can discover, and how its interrupts are wired.

ACPI specification 6.5, chapters 5 (namespace), 6 (device configuration), 7 (sleep states); Intel 82371SB (PIIX3)
datasheet, section "PIRQRC: PIRQ route control registers"; PNP IDs by the Plug and Play specifications.
"""

from __future__ import annotations

from pyvm.devices.pci.piix3 import swizzle
from pyvm.firmware import aml, dsdt_memory_slots, dsdt_pci_slots, dsdt_processors
from pyvm.firmware import aml_resources as res
from pyvm.firmware.aml import Access, Space
from pyvm.firmware.machine_info import (
    GPE0_BASE,
    GPE0_SIZE,
    HPET_BASE,
    PCI_HOLE_END,
    PM_BASE,
    PM_SIZE,
    PM_SLOT,
    SCI_IRQ,
    SMBUS_BASE,
    SMBUS_SIZE,
    SMI_PORT,
    MachineInfo,
    SerialPort,
)

PIRQ_ROUTE_CONTROL = 0x60  # four bytes in the PIIX3's configuration space, one per PIRQ
PIRQ_DISABLED = 0x80
PIRQ_CHOICES = (5, 10, 11)

_STA_PRESENT = 0x01
_STA_ENABLED = 0x02
_STA_SHOWN = 0x04
_STA_WORKING = 0x08
_STA_ALL = _STA_PRESENT | _STA_ENABLED | _STA_SHOWN | _STA_WORKING
_STA_HIDDEN = _STA_ALL & ~_STA_SHOWN

_LINKS = ("LNKA", "LNKB", "LNKC", "LNKD")
_ROUTES = ("PRQA", "PRQB", "PRQC", "PRQD")
_PCI_SLOTS = 32
_EXTENDED_IRQ_NUMBER = 5  # offset of the first interrupt number in an extended interrupt descriptor

FW_CFG_PORT = 0x510
FW_CFG_SIZE = 12  # selector, data and DMA address


def build(info: MachineInfo) -> bytes:
    """Return the DSDT's byte code, without the table header."""
    return b"".join(
        (
            _interrupt_model(),
            aml.scope("\\_SB", *_interrupt_links()),  # before _PRT, which names them
            aml.scope("\\_SB", _pci_root(info)),
            aml.scope("\\_SB.PCI0", _isa_bridge(info), *_platform_devices(info)),
            aml.scope("\\_SB.PCI0", dsdt_pci_slots.root_terms(info.pci_bus), dsdt_processors.register_device()),
            aml.scope("\\_SB", *_hpet(info), dsdt_processors.processors(info.processors)),
            *_memory_slots(info),
            _general_purpose_events(info),
            *_sleep_states(info),
        )
    )


def _interrupt_model() -> bytes:
    """The system tells by _PIC whether it uses the PICs (0) or the IOAPIC (1); both see the same numbers here."""
    return aml.name("\\PICF", aml.ZERO) + aml.method("\\_PIC", 1, aml.store(aml.arg(0), aml.path("\\PICF")))


def _pci_root(info: MachineInfo) -> bytes:
    windows = [
        res.bus_range(0, 0xFF),
        res.io(0xCF8, 8),
        res.io_window(0, 0xCF7),
        res.io_window(0xD00, 0xFFFF),
        res.memory_window32(0xA0000, 0xBFFFF, res.Caching.CACHEABLE),
        res.memory_window32(info.low_ram_end, PCI_HOLE_END - 1),
    ]
    start, end = info.pci_hole64
    if end > start:
        windows.append(res.memory_window64(start, end - 1))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_CRS", res.template(*windows)),
        aml.name("_PRT", _routing_table()),
    )


def _routing_table() -> bytes:
    """Which interrupt link each INTx pin of each slot goes to.  The PM function's INTA is the SCI."""
    entries = []
    for slot in range(1, _PCI_SLOTS):
        for pin in range(4):
            link = "LNKS" if slot == PM_SLOT and pin == 0 else _LINKS[swizzle(slot, pin)]
            address = aml.integer(slot << 16 | 0xFFFF)
            entries.append(aml.package(address, aml.integer(pin), aml.path(link), aml.ZERO))
    return aml.package(*entries)


def _isa_bridge(info: MachineInfo) -> bytes:
    """The PIIX3 with the devices behind it."""
    return aml.device(
        f"S{8 * PM_SLOT:02X}",
        aml.name("_ADR", aml.integer(PM_SLOT << 16)),
        aml.operation_region("PIRQ", Space.PCI_CONFIG, PIRQ_ROUTE_CONTROL, len(_ROUTES)),
        aml.field("PIRQ", [(route, 8) for route in _ROUTES], Access.BYTE),
        *(_keyboard_and_mouse() if info.i8042 else ()),
        *(_serial(port) for port in info.serial_ports),
        _isa_device("RTC", "PNP0B00", res.io(0x70, 8), res.irq(8)),
        *_panic(info),
    )


def _isa_device(target: str, hid: str, *resources: bytes, uid: int | None = None) -> bytes:
    terms = [aml.name("_HID", aml.eisa_id(hid))]
    if uid is not None:
        terms.append(aml.name("_UID", aml.integer(uid)))
    terms.append(aml.name("_STA", aml.integer(_STA_ALL)))
    terms.append(aml.name("_CRS", res.template(*resources)))
    return aml.device(target, *terms)


def _keyboard_and_mouse() -> tuple[bytes, ...]:
    return (
        _isa_device("KBD", "PNP0303", res.io(0x60, 1), res.io(0x64, 1), res.irq(1)),
        _isa_device("MOU", "PNP0F13", res.irq(12)),
    )


def _serial(port: SerialPort) -> bytes:
    resources = (res.io(port.base, 8), res.irq(port.irq))
    return _isa_device(f"COM{port.number}", "PNP0501", *resources, uid=port.number)


def _panic(info: MachineInfo) -> list[bytes]:
    """The panic device; its methods are for systems that have no driver for its port."""
    if not info.panic_port:
        return []
    return [
        aml.device(
            "PEVT",
            aml.name("_HID", aml.string("QEMU0001")),
            aml.name("_CRS", res.template(res.io(info.panic_port, 1))),
            aml.operation_region("PEOR", Space.SYSTEM_IO, info.panic_port, 1),
            aml.field("PEOR", [("PEPT", 8)], Access.BYTE),
            aml.name("_STA", aml.integer(_STA_ALL)),
            aml.method("RDPT", 0, aml.return_(aml.path("PEPT"))),
            aml.method("WRPT", 1, aml.store(aml.arg(0), aml.path("PEPT"))),
        )
    ]


def _platform_devices(info: MachineInfo) -> list[bytes]:
    """Register blocks that belong to no discoverable device."""
    devices = [
        aml.device(
            "MBRD",
            aml.name("_HID", aml.eisa_id("PNP0C02")),
            aml.name("_UID", aml.ZERO),
            aml.name(
                "_CRS",
                res.template(
                    res.io(0x92, 1),
                    res.io(SMI_PORT, 2),
                    res.io(0x4D0, 2),
                    res.io(PM_BASE, PM_SIZE),
                    res.io(SMBUS_BASE, SMBUS_SIZE),
                    res.io(GPE0_BASE, GPE0_SIZE),
                ),
            ),
        )
    ]
    if info.fw_cfg:
        devices.append(
            aml.device(
                "FWCF",
                aml.name("_HID", aml.string("QEMU0002")),
                aml.name("_STA", aml.integer(_STA_HIDDEN)),
                aml.name("_CRS", res.template(res.io(FW_CFG_PORT, FW_CFG_SIZE))),
            )
        )
    return devices


def _interrupt_links() -> list[bytes]:
    """Link devices: four whose interrupt is chosen in the PIIX3's routing registers, and the SCI's fixed one."""
    possible = res.template(res.interrupt(*PIRQ_CHOICES))
    links = [_status_method(), _current_method()]
    for number, (link, route) in enumerate(zip(_LINKS, _ROUTES, strict=True)):
        register = aml.path(f"\\_SB.PCI0.S{8 * PM_SLOT:02X}.{route}")
        links.append(
            aml.device(
                link,
                aml.name("_HID", aml.eisa_id("PNP0C0F")),
                aml.name("_UID", aml.integer(number)),
                aml.name("_PRS", possible),
                aml.method("_STA", 0, aml.return_(aml.call("IQST", register))),
                aml.method("_DIS", 0, aml.or_(register, aml.integer(PIRQ_DISABLED), register)),
                aml.method("_CRS", 0, aml.return_(aml.call("IQCR", register))),
                aml.method(
                    "_SRS",
                    1,
                    aml.create_field(aml.arg(0), _EXTENDED_IRQ_NUMBER, 32, "PRRI"),
                    aml.store(aml.path("PRRI"), register),
                    serialized=True,
                ),
            )
        )
    fixed = res.template(res.interrupt(SCI_IRQ))
    links.append(
        aml.device(
            "LNKS",
            aml.name("_HID", aml.eisa_id("PNP0C0F")),
            aml.name("_UID", aml.integer(len(_LINKS))),
            aml.name("_PRS", fixed),
            aml.name("_CRS", fixed),
            aml.name("_STA", aml.integer(_STA_HIDDEN)),
            aml.method("_DIS", 0),
            aml.method("_SRS", 1),
        )
    )
    return links


def _status_method() -> bytes:
    """IQST (register): _STA of a link, present but not enabled where its routing is off."""
    routed_off = aml.and_(aml.integer(PIRQ_DISABLED), aml.arg(0))
    return aml.method(
        "IQST",
        1,
        aml.if_(routed_off, aml.return_(aml.integer(_STA_PRESENT | _STA_WORKING))),
        aml.return_(aml.integer(_STA_HIDDEN)),
    )


def _current_method() -> bytes:
    """IQCR (register): _CRS of a link, interrupt 0 where its routing is off."""
    return aml.method(
        "IQCR",
        1,
        aml.name("PRR0", res.template(res.interrupt(0))),
        aml.create_field(aml.path("PRR0"), _EXTENDED_IRQ_NUMBER, 32, "PRRI"),
        aml.if_(
            aml.less(aml.arg(0), aml.integer(PIRQ_DISABLED)),
            aml.store(aml.arg(0), aml.path("PRRI")),
        ),
        aml.return_(aml.path("PRR0")),
        serialized=True,
    )


def _hpet(info: MachineInfo) -> list[bytes]:
    if not info.hpet:
        return []
    return [
        aml.device(
            "HPET",
            aml.name("_HID", aml.eisa_id("PNP0103")),
            aml.name("_UID", aml.ZERO),
            aml.name("_STA", aml.integer(_STA_ALL)),
            aml.name("_CRS", res.template(res.memory32(HPET_BASE, 0x400))),
        )
    ]


def _memory_slots(info: MachineInfo) -> list[bytes]:
    if not info.memory_slots:
        return []
    return [
        aml.scope("\\_SB.PCI0", dsdt_memory_slots.register_device()),
        aml.scope("\\_SB", dsdt_memory_slots.memory_slots(info.memory_slots)),
    ]


def _general_purpose_events(info: MachineInfo) -> bytes:
    """The handlers of general-purpose events, by which the system hears of what came or is to go."""
    handlers = [dsdt_pci_slots.event(), dsdt_processors.event()]
    if info.memory_slots:
        handlers.append(dsdt_memory_slots.event())
    return aml.scope("\\_GPE", aml.name("_HID", aml.string("ACPI0006")), *handlers)


def _sleep_states(info: MachineInfo) -> list[bytes]:
    """What is to be written to SLP_TYP for each sleep state."""
    states = [("\\_S5", 0)]
    if info.sleep_s4:
        states.insert(0, ("\\_S4", 2))
    if info.sleep_s3:
        states.insert(0, ("\\_S3", 1))
    return [
        aml.name(state, aml.package(aml.integer(value), aml.integer(value), aml.ZERO, aml.ZERO))
        for state, value in states
    ]
