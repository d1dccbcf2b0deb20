"""The models scsi-hd and scsi-cd: QEMU's properties as data, and devices made of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.devices.properties import Properties, Property
from pyvm.devices.scsi.bus import AUTOMATIC
from pyvm.devices.scsi.cdrom import ScsiCd
from pyvm.devices.scsi.disk import DiskLimits, ScsiDisk
from pyvm.devices.scsi.target import Identity

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_GRANULARITY_DEFAULT = 0xFFFFFFFF

_COMMON: Properties = {
    "drive": Property("drive", None, "node name or ID of the block device to use as a backend"),
    "channel": Property("uint32", 0, "always 0"),
    "scsi-id": Property("uint32", AUTOMATIC, "number of the target; 4294967295: the next that is free"),
    "lun": Property("uint32", AUTOMATIC, "number of the unit; 4294967295: the next that is free"),
    "vendor": Property("str", None, "vendor in INQUIRY data"),
    "product": Property("str", None, "product in INQUIRY data"),
    "ver": Property("str", None, "revision in INQUIRY data"),
    "serial": Property("str", None, "serial number"),
    "device_id": Property("str", None, "vendor-specific designator; the serial number, or else the ID of the drive"),
    "wwn": Property("uint64", 0, "NAA designator of the unit"),
    "port_wwn": Property("uint64", 0, "NAA designator of the target port"),
    "port_index": Property("uint16", 0, "relative number of the target port"),
    "scsi_version": Property("int32", 5, "version in INQUIRY data; 5: SPC-3"),
    "bootindex": Property("int32", None, "place in the order in which the firmware tries to boot"),
    "write-cache": Property("OnOffAuto", "auto", "whether there is a write cache at first; auto: as the drive says"),
    "logical_block_size": Property("size", 0, "smallest unit that can be addressed; 0: 512, of a CD 2048"),
    "physical_block_size": Property("size", 0, "unit in which the disk works best; 0: 512"),
    "min_io_size": Property("size", 0, "smallest transfer that is not slow, in bytes"),
    "opt_io_size": Property("size", 0, "best transfer, in bytes"),
    "discard_granularity": Property("size", _GRANULARITY_DEFAULT, "unit of UNMAP in bytes; 0: no UNMAP"),
    "max_io_size": Property("uint64", 0x7FFFFFFF, "longest transfer, in bytes"),
    "share-rw": Property("bool", False, "let others write to the same image"),
    "rerror": Property("BlockdevOnError", "auto", "on read errors: report, ignore, enospc, stop or auto"),
    "werror": Property("BlockdevOnError", "auto", "on write errors: report, ignore, enospc, stop or auto"),
}

DISK_PROPERTIES: Properties = {
    **_COMMON,
    "removable": Property("bool", False, "the medium can be changed"),
    "dpofua": Property("bool", False, "tell that DPO and FUA bits are understood"),
    "max_unmap_size": Property("uint64", 1 << 30, "longest UNMAP, in bytes"),
    "rotation_rate": Property("uint16", 0, "turns per minute; 1: does not turn; 0: not told"),
    "cyls": Property("uint32", 0, "geometry: cylinders"),
    "heads": Property("uint32", 0, "geometry: heads"),
    "secs": Property("uint32", 0, "geometry: sectors per track"),
}

CD_PROPERTIES: Properties = {name: item for name, item in _COMMON.items() if name != "werror"}


def _identity(backend: BlockBackend, values: Mapping[str, Any]) -> Identity:
    serial = values["serial"] if values["serial"] is not None else backend.serial
    device_id = values["device_id"]
    if device_id is None:
        device_id = serial[:20] if serial else backend.name
    identity = Identity(serial=serial, device_id=device_id)
    identity.vendor = values["vendor"] or identity.vendor
    identity.product = values["product"] or ""
    identity.version = values["ver"] or identity.version
    identity.wwn = values["wwn"]
    identity.port_wwn = values["port_wwn"]
    identity.port_index = values["port_index"]
    identity.scsi_version = values["scsi_version"] & 0xFF
    return identity


def make_disk(backend: BlockBackend, values: Mapping[str, Any]) -> ScsiDisk:
    """Return a disk with the property values of scsi-hd; raises ValueError for impossible ones."""
    _set_cache(backend, values)
    granularity = values["discard_granularity"]
    logical = values["logical_block_size"] or 512
    limits = DiskLimits(
        logical_block_size=logical,
        physical_block_size=values["physical_block_size"] or logical,
        min_io_size=values["min_io_size"],
        opt_io_size=values["opt_io_size"],
        max_io_size=values["max_io_size"],
        max_unmap_size=values["max_unmap_size"],
        discard_granularity=None if granularity == _GRANULARITY_DEFAULT else granularity,
        rotation_rate=values["rotation_rate"],
    )
    geometry = (values["cyls"], values["heads"], values["secs"])
    return ScsiDisk(
        backend,
        identity=_identity(backend, values),
        limits=limits,
        removable=values["removable"],
        dpofua=values["dpofua"],
        geometry=geometry if all(geometry) else None,
    )


def make_cd(backend: BlockBackend, values: Mapping[str, Any]) -> ScsiCd:
    """Return a drive with the property values of scsi-cd; raises ValueError for impossible ones."""
    _set_cache(backend, values)
    return ScsiCd(backend, identity=_identity(backend, values))


def _set_cache(backend: BlockBackend, values: Mapping[str, Any]) -> None:
    if values["write-cache"] != "auto":
        backend.write_cache = values["write-cache"] == "on"
