"""What disks chose where their properties left it open: geometry, names, places and sizes, as clients see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.devices.ide.geometry import Geometry, by_size

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice

_SECTOR = 512
_UNSET = 0xFFFFFFFF
_DISCARD = {"IDE": 512, "SCSI": 4096}
"""What discards are aligned to unless one said it, by the kind of bus."""

Getters = dict[str, Callable[[], Any]]


def disk_values(pc: Pc, device: PluggedDevice) -> Getters:
    """Return how to fetch what a disk or a drive on this bus chose; empty for any other device."""
    values, made = device.values, device.made
    found: dict[str, Any] = {}
    if device.model.bus == "IDE":
        found = _ide(pc, made)
    elif device.model.bus == "SCSI":
        found = _scsi(pc, made)
    elif device.model.name == "floppy":
        found = {"unit": pc.plugger.disks.floppy_unit(made)}
    elif not device.model.name.startswith("virtio-blk"):
        return {}
    if "cyls" in values:
        geometry = getattr(made, "geometry", None) or _guess(made)
        found |= {"cyls": geometry.cylinders, "heads": geometry.heads, "secs": geometry.sectors}
        if values.get("bios-chs-trans") == "auto":
            found["bios-chs-trans"] = geometry.translation
    for name in ("logical_block_size", "physical_block_size"):
        found[name] = _SECTOR
    if device.model.bus in _DISCARD and values.get("discard_granularity") in (None, _UNSET):
        found["discard_granularity"] = _DISCARD[device.model.bus]
    return {name: _constant(value) for name, value in found.items() if _is_open(values, name)}


def _is_open(values: Mapping[str, Any], name: str) -> bool:
    """Whether nobody said what a property is to be."""
    return values.get(name) in (None, "", 0, -1, _UNSET, "auto")


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _guess(made: Any) -> Geometry:
    backend = getattr(made, "backend", None) or made.device.backend
    return by_size(backend.size // _SECTOR)


def _ide(pc: Pc, made: Any) -> dict[str, Any]:
    names = made.names
    places = (list(channel.drives) for channel in pc.board.ide.channels)
    unit = next((drives.index(made) for drives in places if made in drives), _UNSET)
    return {"serial": names.serial, "ver": names.version, "unit": unit}


def _scsi(pc: Pc, made: Any) -> dict[str, Any]:
    identity = made.identity
    found = {"ver": identity.version, "vendor": identity.vendor, "product": identity.product}
    if identity.device_id:
        found["device_id"] = identity.device_id
    for bus in pc.plugger.disks.scsi_buses.values():
        for place, unit in bus.units.items():
            if unit is made:
                found |= {"channel": place.channel, "scsi-id": place.target, "lun": place.lun}
    return found
