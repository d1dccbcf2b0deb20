"""Regions of memory and of I/O ports as objects of the tree: those of the machine as a whole, and those of PCI devices.

Clients see where a device's registers are, and what they lie in.  Names and nesting are QEMU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.devices.pci.constants import MSIX_ENTRY_SIZE
from pyvm.devices.pci.function import BarKind
from pyvm.devices.virtio import pci_registers as r
from pyvm.qom.tree import Property, QomObject
from pyvm.qom.types import SYSTEM_MEMORY

if TYPE_CHECKING:
    from pyvm.devices.pci.function import PciFunction
    from pyvm.devices.pci.msix import Msix

_IO_PORTS, _PCI_MEMORY = "/machine/unattached/io[0]", "/machine/unattached/pci[0]"
_EVERYTHING = (1 << 64) - 1
_PORTS = 1 << 16
_BELOW_4G = 1 << 32
_SMRAM, _SMRAM_SIZE = 0xA0000, 0x20000
_MSIX_BAR = 1
_NOTIFY_PIO_SIZE = 4
_NAMED_BARS = {
    "e1000": ("e1000-mmio", "e1000-io"),
    "i6300esb": ("i6300esb",),
    "pvpanic-pci": ("pvpanic",),
}
"""What the BARs of other devices are called, by the device's model."""


def region(
    size: int, *, addr: Callable[[], int] = int, container: Callable[[], str] = str, priority: int = 0
) -> QomObject:
    """Return the object of a region; `container` returns the path of the one that it lies in, if any."""
    return QomObject(
        "memory-region",
        (
            Property("container", "link<memory-region>", container),
            Property("addr", "uint64", addr),
            Property("size", "uint64", lambda: size),
            Property("priority", "uint32", lambda: priority),
        ),
    )


def machine_regions() -> dict[str, QomObject]:
    """Return what the machine's other regions lie in, by name."""
    return {
        "system[0]": region(_EVERYTHING),
        "io[0]": region(_PORTS),
        "pci[0]": region(_EVERYTHING, container=lambda: SYSTEM_MEMORY, priority=-1),
    }


def device_memory(start: int, size: int) -> QomObject:
    """Return where memory modules can be."""
    return region(size, addr=lambda: start, container=lambda: SYSTEM_MEMORY)


def add_smram_regions(bridge: QomObject) -> None:
    """Add to the host bridge the memory of system management mode: what it sees, and what hides it otherwise."""
    outer = bridge.add("smram[0]", region(_BELOW_4G))
    bridge.add("smram-low[0]", _inside(outer, _SMRAM, _SMRAM_SIZE))
    bridge.add("smram-region[0]", region(_SMRAM_SIZE, addr=lambda: _SMRAM, container=lambda: SYSTEM_MEMORY, priority=1))


def add_pci_regions(parent: QomObject, function: PciFunction, model: str) -> None:
    """Add the regions of a PCI function of this model to its object."""
    whole = parent.add("bus master container[0]", region(_EVERYTHING))
    parent.add("bus master[0]", region(_EVERYTHING, container=lambda: whole.path))
    if function.rom_size:
        parent.add(f"{model}.rom[0]", region(function.rom_size, addr=lambda: function.rom_address() or 0))
    for name, index in zip(_NAMED_BARS.get(model, ()), sorted(function.bars), strict=False):
        parent.add(f"{name}[0]", _bar(function, index))


def _bar(function: PciFunction, index: int) -> QomObject:
    """Return the region of a BAR: it lies nowhere until the guest has mapped it."""
    bar = function.bars[index]
    place = _IO_PORTS if bar.kind is BarKind.IO else _PCI_MEMORY
    return region(
        bar.size,
        addr=lambda: function.bar_address(index) or 0,
        container=lambda: "" if function.bar_address(index) is None else place,
    )


def _inside(outer: QomObject, addr: int, size: int) -> QomObject:
    return region(size, addr=lambda: addr, container=lambda: outer.path)


def _add_msix(parent: QomObject, msix: Msix, function: PciFunction, model: str) -> None:
    outer = parent.add(f"{model}-msix[0]", _bar(function, _MSIX_BAR))
    parent.add("msix-table[0]", _inside(outer, msix.table_offset, msix.vectors * MSIX_ENTRY_SIZE))
    parent.add("msix-pba[0]", _inside(outer, msix.pba_offset, -(-msix.vectors // 64) * 8))


def add_virtio_regions(parent: QomObject, function: PciFunction, model: str, backend: str) -> None:
    """Add the registers of a virtio function to its object; `backend` is the type of the device behind it."""
    if function.msix is not None:
        _add_msix(parent, function.msix, function, model)
    name = backend.removesuffix("-device")
    number = 0
    if r.MODERN_BAR in function.bars:
        outer = parent.add("virtio-pci[0]", _bar(function, r.MODERN_BAR))
        number = 1
        for part, offset in (("common", r.COMMON), ("isr", r.ISR), ("device", r.DEVICE), ("notify", r.NOTIFY)):
            parent.add(f"virtio-pci-{part}-{name}[0]", _inside(outer, offset, r.STRUCTURE_SIZE))
        parent.add(f"virtio-pci-notify-pio-{name}[0]", region(_NOTIFY_PIO_SIZE))
    if 0 in function.bars:
        parent.add(f"virtio-pci[{number}]", _bar(function, 0))
