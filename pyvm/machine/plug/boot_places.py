"""What the user says of booting at devices: their places in the order, and the ROMs of PCI devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import OptionRomConfig
    from pyvm.devices.pci.bus import PciBus
    from pyvm.devices.pci.function import PciFunction
    from pyvm.machine.plug.plugging import PluggedDevice

_LARGEST_ROM = 2 << 30
_ANY_SIZE = 0xFFFFFFFF


def boot_index(values: dict[str, Any]) -> int | None:
    """Return a device's place in the order of booting, None where it has none."""
    index: int | None = values.get("bootindex")
    return None if index is None or index < 0 else index


def check_boot_index(values: dict[str, Any], devices: Iterable[PluggedDevice], roms: Iterable[OptionRomConfig]) -> None:
    """Raise ConfigError where a new device's place in the order of booting is another's already."""
    index = boot_index(values)
    used = [boot_index(device.values) for device in devices] + [rom.bootindex for rom in roms]
    if index is not None and index in used:
        raise ConfigError(f"The bootindex {index} has already been used")


def cards(bus: PciBus, devices: Iterable[PluggedDevice]) -> Iterator[tuple[int, PciFunction]]:
    """Yield the network cards on `bus` that have a place in the order of booting, with that."""
    for device in devices:
        function: Any = device.made
        index = boot_index(device.values)
        if index is not None and device.model.category == "Network" and function.bus is bus:
            yield index, function


def place_of(function: PciFunction) -> str:
    """Return where a PCI function is, as Open Firmware paths say it."""
    return f"{function.slot:x}" + (f",{function.fn:x}" if function.fn else "")


def card_path(function: PciFunction) -> str:
    """Return the Open Firmware path by which firmware in the guest knows a network card."""
    return f"/pci@i0cf8/ethernet@{place_of(function)}/ethernet-phy@0"


def read_rom(values: dict[str, Any]) -> tuple[bytes, int | None] | None:
    """Return the ROM that the user gave a PCI device, and the size of its BAR where he said one; None without one.

    Raises ConfigError.
    """
    path, size = values.get("romfile"), values.get("romsize", _ANY_SIZE)
    if size != _ANY_SIZE and (size == 0 or size & (size - 1)):
        raise ConfigError(f"ROM size {size} is not a power of two")
    if not path:
        return None
    if not values["rombar"]:
        raise ConfigError("romfile needs the ROM to have a BAR (rombar=1)")
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_ROM + 1)
    except IsADirectoryError:
        raise ConfigError(f'romfile "{path}" too large (size cannot exceed 2 GiB)') from None
    except (OSError, ValueError):
        raise ConfigError(f'failed to find romfile "{path}"') from None
    if not content:
        raise ConfigError(f'romfile "{path}" is empty')
    if len(content) > _LARGEST_ROM:
        raise ConfigError(f'romfile "{path}" too large (size cannot exceed 2 GiB)')
    if size != _ANY_SIZE and len(content) > size:
        raise ConfigError(f'romfile "{path}" ({len(content)} bytes) is too large for ROM size {size}')
    return content, None if size == _ANY_SIZE else size
