"""The device models that `-device` can name, as data: properties, bus and heading.

A model's code is loaded when somebody asks for the model: a machine without SCSI does not wait for SCSI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pyvm.devices.properties import PCI_PROPERTIES, DeviceModel, Property

if TYPE_CHECKING:
    from pyvm.devices.virtio.pci import AnyVirtioDevice

_VARIANTS = ("", "-transitional", "-non-transitional")
"""QEMU's names for models with both interfaces, or with the modern one only."""

_BRIDGE_PROPERTIES = {
    "chassis_nr": Property("uint8", 0, "number that the slots behind the bridge are known by, 1 to 255"),
}
_EXIT_PROPERTIES = {
    "iobase": Property("uint32", 0x501, "first port"),
    "iosize": Property("uint32", 0x02, "number of ports"),
}
_DEBUG_PROPERTIES = {
    "iobase": Property("uint32", 0xE9, "port"),
    "readback": Property("uint32", 0xE9, "what the port reads as"),
    "chardev": Property("chardev", None, "ID of a chardev to use as a backend"),
}
_SERIAL_PROPERTIES = {
    "index": Property("uint32", 0xFFFFFFFF, "0 for COM1 up to 3; the next free one where not set"),
    "chardev": Property("chardev", None, "ID of a chardev to use as a backend"),
}


def _serial() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.console import VirtioConsole

    return VirtioConsole


def _balloon() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.balloon import VirtioBalloon

    return VirtioBalloon


def _rng() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.rng import VirtioRng

    return VirtioRng


def _blk() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.blk import VirtioBlk

    return VirtioBlk


def _scsi() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.scsi import VirtioScsi

    return VirtioScsi


def _net() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.net import VirtioNet

    return VirtioNet


def _vsock() -> type[AnyVirtioDevice]:
    from pyvm.devices.virtio.vsock import VirtioVsock

    return VirtioVsock


_NEVER = (("virtio-vsock-pci", "-transitional"),)
VIRTIO_PCI: dict[str, tuple[str, str, Callable[[], type[AnyVirtioDevice]]]] = {
    "virtio-serial-pci": ("virtio-serial", "Input", _serial),
    "virtio-balloon-pci": ("virtio-balloon", "Misc", _balloon),
    "virtio-rng-pci": ("virtio-rng", "Misc", _rng),
    "virtio-blk-pci": ("virtio-blk", "Storage", _blk),
    "virtio-scsi-pci": ("virtio-scsi", "Storage", _scsi),
    "virtio-net-pci": ("virtio-net", "Network", _net),
    "virtio-vsock-pci": ("virtio-vsock", "Misc", _vsock),
}
"""Virtio devices on PCI: alias, heading, and what loads their code."""


def variant(driver: str) -> tuple[str, str]:
    """Return the plain model of a virtio driver name, and its suffix."""
    for suffix in _VARIANTS[1:]:
        if driver.endswith(suffix) and driver[: -len(suffix)] in VIRTIO_PCI:
            return driver[: -len(suffix)], suffix
    return driver, ""


def _virtio(name: str) -> DeviceModel:
    from pyvm.devices.virtio.pci import properties

    plain, suffix = variant(name)
    alias, category, load = VIRTIO_PCI[plain]
    return DeviceModel(name, "PCI", category, {**PCI_PROPERTIES, **properties(load())}, "", () if suffix else (alias,))


def _ide(name: str) -> DeviceModel:
    if name == "ide-cd":
        from pyvm.devices.ide.atapi import AtapiCd

        return DeviceModel(name, "IDE", "Storage", AtapiCd.PROPERTIES, "virtual IDE CD-ROM")
    from pyvm.devices.ide.disk import IdeDisk

    return DeviceModel(name, "IDE", "Storage", IdeDisk.PROPERTIES, "virtual IDE disk")


def _scsi_unit(name: str) -> DeviceModel:
    from pyvm.devices.scsi.properties import CD_PROPERTIES, DISK_PROPERTIES

    if name == "scsi-cd":
        return DeviceModel(name, "SCSI", "Storage", CD_PROPERTIES, "virtual SCSI CD-ROM")
    return DeviceModel(name, "SCSI", "Storage", DISK_PROPERTIES, "virtual SCSI disk")


def _floppy(name: str) -> DeviceModel:
    from pyvm.devices.floppy import FloppyController

    return DeviceModel(name, "floppy-bus", "Storage", FloppyController.DRIVE_PROPERTIES, "virtual floppy drive")


def _port(name: str) -> DeviceModel:
    from pyvm.devices.virtio.console_port import ConsolePort

    table = ConsolePort.CONSOLE_PROPERTIES if name == "virtconsole" else ConsolePort.SERIAL_PROPERTIES
    return DeviceModel(name, "virtio-serial-bus", "Input", table)


GUARDS = ("i6300esb", "ib700", "pvpanic", "pvpanic-pci", "vmgenid")
"""Devices that watch over the guest, or over what becomes of it."""


def _guard(name: str) -> DeviceModel:
    from pyvm.machine.plug.guards import device_model

    return device_model(name)


PCI_CARDS = {"e1000": ("e1000-82540em",), "e1000-82544gc": (), "e1000-82545em": ()}
"""Network cards on PCI other than virtio's, and their aliases."""


def _card(name: str) -> DeviceModel:
    from pyvm.devices.e1000.function import PROPERTIES

    table = {**PCI_PROPERTIES, **PROPERTIES}
    return DeviceModel(name, "PCI", "Network", table, "Intel Gigabit Ethernet", PCI_CARDS[name])


_MODULE_PROPERTIES = {
    "memdev": Property("link<memory-backend>", None),
    "node": Property("uint32", 0),
    "addr": Property("uint64", 0),
    "slot": Property("int32", -1),
}
_CPU_PROPERTIES = {
    "apic-id": Property("uint32", 0xFFFFFFFF),
    **{name: Property("int32", -1) for name in ("socket-id", "die-id", "core-id", "thread-id", "node-id")},
}


def _cpu(name: str) -> DeviceModel | None:
    """Return the model of a CPU, None where that is no name of one."""
    from pyvm.qom.types import CPU_SUFFIX, load

    kind = load().get(name) if name.endswith(CPU_SUFFIX) else None
    return None if kind is None or kind.abstract else DeviceModel(name, None, "CPU", _CPU_PROPERTIES)


_LOADERS: dict[str, Callable[[str], DeviceModel]] = {
    **{name + suffix: _virtio for name in VIRTIO_PCI for suffix in _VARIANTS if (name, suffix) not in _NEVER},
    "ide-hd": _ide,
    "ide-cd": _ide,
    "scsi-hd": _scsi_unit,
    "scsi-cd": _scsi_unit,
    "floppy": _floppy,
    "pci-bridge": lambda name: DeviceModel(
        name, "PCI", "Bridge", {**PCI_PROPERTIES, **_BRIDGE_PROPERTIES}, "Standard PCI Bridge"
    ),
    "VGA": lambda name: DeviceModel(name, "PCI", "Display", PCI_PROPERTIES),
    **dict.fromkeys(GUARDS, _guard),
    **dict.fromkeys(PCI_CARDS, _card),
    "pc-dimm": lambda name: DeviceModel(name, None, "Misc", _MODULE_PROPERTIES, "DIMM memory module"),
    "virtserialport": _port,
    "virtconsole": _port,
    "isa-debug-exit": lambda name: DeviceModel(name, "ISA", "Misc", _EXIT_PROPERTIES),
    "isa-debugcon": lambda name: DeviceModel(name, "ISA", "Misc", _DEBUG_PROPERTIES),
    "isa-serial": lambda name: DeviceModel(name, "ISA", "Input", _SERIAL_PROPERTIES),
}
_NAMES = {alias: name for name, (alias, _, _) in VIRTIO_PCI.items()}
_NAMES |= {alias: name for name, aliases in PCI_CARDS.items() for alias in aliases}
"""The models behind aliases."""


class DeviceModels(Mapping[str, DeviceModel]):
    """All models by name; aliases and CPUs are found as well, but not listed."""

    def __init__(self) -> None:
        self._loaded: dict[str, DeviceModel] = {}

    def __getitem__(self, name: str) -> DeviceModel:
        name = _NAMES.get(name, name)
        if name not in self._loaded:
            made = _LOADERS[name](name) if name in _LOADERS else _cpu(name)
            if made is None:
                raise KeyError(name)
            self._loaded[name] = made
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_LOADERS)

    def __len__(self) -> int:
        return len(_LOADERS)


DEVICE_MODELS = DeviceModels()
