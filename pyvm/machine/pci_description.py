"""The PCI bus as `query-pci` shows it.

Class codes: PCI Code and ID Assignment Specification 1.11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import Bar, BarKind, PciFunction

_UNMAPPED = -1
_CLASSES = {
    0x0001: "VGA controller",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0102: "Floppy controller",
    0x0106: "SATA controller",
    0x0200: "Ethernet controller",
    0x0280: "Network controller",
    0x0300: "VGA controller",
    0x0301: "XGA controller",
    0x0302: "3D controller",
    0x0401: "Audio controller",
    0x0500: "RAM controller",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0680: "Bridge",
    0x0C03: "USB controller",
    0x0C05: "SMBus",
}


def describe_bus(bus: PciBus, identifier: Callable[[PciFunction], str]) -> dict[str, Any]:
    """Return the PciInfo of bus 0; `identifier` returns the ID that the user gave a function, or nothing."""
    return _bus(bus, 0, identifier)


def _bus(bus: PciBus, number: int, identifier: Callable[[PciFunction], str]) -> dict[str, Any]:
    devices = []
    for function in bus.functions():
        info = {**_function(function, identifier(function)), "bus": number}
        if hasattr(function, "secondary_bus"):
            info["pci_bridge"] = _bridge(function, identifier)
        devices.append(info)
    return {"bus": number, "devices": devices}


def _bridge(bridge: Any, identifier: Callable[[PciFunction], str]) -> dict[str, Any]:
    """Return a PciBridgeInfo; what is behind is listed once software has numbered the bus."""
    primary, secondary, last = bridge.numbers
    ranges = {"io": bridge.io_range(), "memory": bridge.memory_range(), "prefetchable": bridge.prefetchable_range()}
    info: dict[str, Any] = {
        "bus": {
            "number": primary,
            "secondary": secondary,
            "subordinate": last,
            **{f"{name}_range": {"base": base, "limit": limit} for name, (base, limit) in ranges.items()},
        }
    }
    if secondary:
        info["devices"] = _bus(bridge.secondary_bus, secondary, identifier)["devices"]
    return info


def _word(function: PciFunction, offset: int) -> int:
    return int.from_bytes(function.config[offset : offset + 2], "little")


def _function(function: PciFunction, identifier: str) -> dict[str, Any]:
    code = _word(function, c.CLASS_CODE + 1)
    kind: dict[str, Any] = {"class": code}
    if code in _CLASSES:
        kind["desc"] = _CLASSES[code]
    info: dict[str, Any] = {
        "bus": 0,
        "slot": function.slot,
        "function": function.fn,
        "class_info": kind,
        "id": {
            "vendor": _word(function, c.VENDOR_ID),
            "device": _word(function, c.DEVICE_ID),
            "subsystem-vendor": _word(function, c.SUBSYSTEM_VENDOR_ID),
            "subsystem": _word(function, c.SUBSYSTEM_ID),
        },
        "irq_pin": function.config[c.INTERRUPT_PIN],
        "qdev_id": identifier,
        "regions": [_region(function, bar) for _, bar in sorted(function.bars.items())],
    }
    if function.rom_size:
        info["regions"].append(_rom(function))
    if function.config[c.INTERRUPT_PIN]:
        info["irq"] = function.config[c.INTERRUPT_LINE]
    return info


def _rom(function: PciFunction) -> dict[str, Any]:
    address = function.rom_address()
    return {
        "bar": c.BAR_COUNT,
        "type": "memory",
        "address": _UNMAPPED if address is None else address,
        "size": function.rom_size,
        "prefetch": False,
        "mem_type_64": False,
    }


def _region(function: PciFunction, bar: Bar) -> dict[str, Any]:
    address = function.bar_address(bar.index)
    region: dict[str, Any] = {
        "bar": bar.index,
        "type": "io" if bar.kind is BarKind.IO else "memory",
        "address": _UNMAPPED if address is None else address,
        "size": bar.size,
    }
    if bar.kind is not BarKind.IO:
        region["prefetch"] = bool(function.config[bar.offset] & c.BAR_PREFETCH)
        region["mem_type_64"] = bar.kind is BarKind.MEMORY64
    return region
