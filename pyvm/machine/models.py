"""The device models that `-device` can name, as data: properties, bus and heading."""

from __future__ import annotations

from pyvm.devices.floppy import FloppyController
from pyvm.devices.ide.atapi import AtapiCd
from pyvm.devices.ide.disk import IdeDisk
from pyvm.devices.properties import PCI_PROPERTIES, DeviceModel, Properties, Property
from pyvm.devices.scsi.properties import CD_PROPERTIES, DISK_PROPERTIES
from pyvm.devices.virtio.balloon import VirtioBalloon
from pyvm.devices.virtio.blk import VirtioBlk
from pyvm.devices.virtio.console import VirtioConsole
from pyvm.devices.virtio.console_port import ConsolePort
from pyvm.devices.virtio.pci import AnyVirtioDevice, properties
from pyvm.devices.virtio.rng import VirtioRng
from pyvm.devices.virtio.scsi import VirtioScsi

VIRTIO_PCI: dict[str, type[AnyVirtioDevice]] = {
    "virtio-serial-pci": VirtioConsole,
    "virtio-balloon-pci": VirtioBalloon,
    "virtio-rng-pci": VirtioRng,
    "virtio-blk-pci": VirtioBlk,
    "virtio-scsi-pci": VirtioScsi,
}
_VARIANTS = ("", "-transitional", "-non-transitional")
"""QEMU's names for models with both interfaces, or with the modern one only."""

_CATEGORIES = {"virtio-serial-pci": "Input", "virtio-blk-pci": "Storage", "virtio-scsi-pci": "Storage"}
_ALIASES = {"virtio-serial-pci": "virtio-serial", "virtio-balloon-pci": "virtio-balloon"}
_ALIASES |= {"virtio-rng-pci": "virtio-rng", "virtio-blk-pci": "virtio-blk"}
_ALIASES |= {"virtio-scsi-pci": "virtio-scsi"}

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


def variant(driver: str) -> tuple[str, str]:
    """Return the plain model of a virtio driver name, and its suffix."""
    for suffix in _VARIANTS[1:]:
        if driver.endswith(suffix) and driver[: -len(suffix)] in VIRTIO_PCI:
            return driver[: -len(suffix)], suffix
    return driver, ""


def _virtio_models() -> list[DeviceModel]:
    models = []
    for name, device in VIRTIO_PCI.items():
        table: Properties = {**PCI_PROPERTIES, **properties(device)}
        for suffix in _VARIANTS:
            aliases = (_ALIASES[name],) if not suffix else ()
            models.append(DeviceModel(name + suffix, "PCI", _CATEGORIES.get(name, "Misc"), table, "", aliases))
    return models


def _other_models() -> list[DeviceModel]:
    return [
        DeviceModel("ide-hd", "IDE", "Storage", IdeDisk.PROPERTIES, "virtual IDE disk"),
        DeviceModel("ide-cd", "IDE", "Storage", AtapiCd.PROPERTIES, "virtual IDE CD-ROM"),
        DeviceModel("scsi-hd", "SCSI", "Storage", DISK_PROPERTIES, "virtual SCSI disk"),
        DeviceModel("scsi-cd", "SCSI", "Storage", CD_PROPERTIES, "virtual SCSI CD-ROM"),
        DeviceModel("floppy", "floppy-bus", "Storage", FloppyController.DRIVE_PROPERTIES, "virtual floppy drive"),
        DeviceModel("VGA", "PCI", "Display", PCI_PROPERTIES, "", ()),
        DeviceModel("virtserialport", "virtio-serial-bus", "Input", ConsolePort.SERIAL_PROPERTIES),
        DeviceModel("virtconsole", "virtio-serial-bus", "Input", ConsolePort.CONSOLE_PROPERTIES),
        DeviceModel("isa-debug-exit", "ISA", "Misc", _EXIT_PROPERTIES),
        DeviceModel("isa-debugcon", "ISA", "Misc", _DEBUG_PROPERTIES),
        DeviceModel("isa-serial", "ISA", "Input", _SERIAL_PROPERTIES),
    ]


DEVICE_MODELS: dict[str, DeviceModel] = {model.name: model for model in [*_virtio_models(), *_other_models()]}
