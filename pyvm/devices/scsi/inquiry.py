"""INQUIRY data (SPC-4, sections 6.6 and 7.8; SBC-3, section 6.5): what a unit is, and its vital product data pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.devices.scsi import constants as c
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.devices.scsi.target import Identity

STANDARD_LENGTH = 36
_FORMAT_HISUP = 0x12
"""Response data format 2, hierarchical LUNs."""
_SYNC_CMDQUE = 0x12
_ATAPI_FORMAT = 0x21
_VPD_HEADER = 4
_SERIAL_LIMIT = 36
_ID_LIMIT = 255 - 8
_BLOCK_PAGE_LENGTH = 0x3C

# Designators (SPC-4, 7.8.6): code set, association and type
_ASCII_VENDOR = (2, 0)
_BINARY_NAA = (1, 3)
_SAS_TARGET_PORT_NAA = (0x61, 0x93)
_SAS_RELATIVE_PORT = (0x61, 0x94)

_WSNZ = 0x01
_UNMAP_DESCRIPTORS = 255
_LBPU_LBPWS_LBPWS10 = 0xE0
_PROVISIONING_FULL = 1
_PROVISIONING_THIN = 2


@record(frozen=True)
class BlockLimits:
    """What a disk does well, in logical blocks."""

    granularity: int
    """Smallest transfer that is not slow."""
    best: int
    """Best transfer."""
    largest: int
    """Largest transfer."""
    largest_unmap: int
    unmap_granularity: int
    """0: the disk is not thinly provisioned."""
    rotation_rate: int
    """Turns per minute; 1: it does not turn; 0: not told."""


def _padded(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length].ljust(length)


def standard(device_type: int, identity: Identity, *, removable: bool, atapi: bool) -> bytes:
    """Return standard INQUIRY data, 36 bytes."""
    data = bytearray(STANDARD_LENGTH)
    data[0] = device_type
    data[1] = 0x80 if removable else 0
    # ATAPI devices say version 0, and ATAPI-2 in the upper half of the format (INF-8090, 10.8.1).
    data[2] = 0 if atapi else identity.scsi_version
    data[3] = _ATAPI_FORMAT if atapi else _FORMAT_HISUP
    data[4] = STANDARD_LENGTH - 5
    data[7] = 0 if atapi else _SYNC_CMDQUE
    data[8:16] = _padded(identity.vendor, 8)
    data[16:32] = _padded(identity.product, 16)
    data[32:36] = _padded(identity.version, 4)
    return bytes(data)


def no_unit(*, first: bool) -> bytes:
    """Return standard INQUIRY data of a logical unit that is not there; `first` says that it is number 0."""
    data = bytearray(STANDARD_LENGTH)
    data[0] = c.NOT_CONNECTED if first else c.NO_LUN
    data[2] = 5
    data[3] = _FORMAT_HISUP
    data[4] = STANDARD_LENGTH - 5
    data[7] = _SYNC_CMDQUE
    data[8:32] = _padded("QEMU", 8) + _padded("QEMU TARGET", 16)
    data[32:36] = b"2.5+"
    return bytes(data)


def page(device_type: int, code: int, identity: Identity, limits: BlockLimits | None) -> bytes | None:
    """Return vital product data page `code`; None where the unit has no such page.  Disks have `limits`."""
    pages = supported(identity, limits)
    if code not in pages:
        return None
    if code == c.VPD_SUPPORTED:
        body = bytes(pages)
    elif code == c.VPD_SERIAL:
        body = identity.serial.encode("ascii", "replace")[:_SERIAL_LIMIT]
    elif code == c.VPD_IDENTIFICATION:
        body = _designators(identity)
    elif limits is None:
        return None
    elif code == c.VPD_BLOCK_LIMITS:
        body = _block_limits(limits)
    elif code == c.VPD_CHARACTERISTICS:
        body = limits.rotation_rate.to_bytes(2, "big").ljust(_BLOCK_PAGE_LENGTH, b"\0")
    else:
        kind = _PROVISIONING_THIN if limits.unmap_granularity else _PROVISIONING_FULL
        body = bytes((0, _LBPU_LBPWS_LBPWS10, kind, 0))
    return bytes((device_type, code)) + len(body).to_bytes(2, "big") + body


def supported(identity: Identity, limits: BlockLimits | None) -> list[int]:
    """Return the codes of all vital product data pages."""
    pages = [c.VPD_SUPPORTED]
    if identity.serial:
        pages.append(c.VPD_SERIAL)
    pages.append(c.VPD_IDENTIFICATION)
    if limits is not None:
        pages += [c.VPD_BLOCK_LIMITS, c.VPD_CHARACTERISTICS, c.VPD_PROVISIONING]
    return pages


def _designators(identity: Identity) -> bytes:
    body = b""
    if identity.device_id:
        body += _designator(_ASCII_VENDOR, identity.device_id.encode("ascii", "replace")[:_ID_LIMIT])
    if identity.wwn:
        body += _designator(_BINARY_NAA, identity.wwn.to_bytes(8, "big"))
    if identity.port_wwn:
        body += _designator(_SAS_TARGET_PORT_NAA, identity.port_wwn.to_bytes(8, "big"))
    if identity.port_index:
        body += _designator(_SAS_RELATIVE_PORT, bytes(2) + identity.port_index.to_bytes(2, "big"))
    return body


def _designator(kind: tuple[int, int], value: bytes) -> bytes:
    return bytes((*kind, 0, len(value))) + value


def _block_limits(limits: BlockLimits) -> bytes:
    body = bytearray(_BLOCK_PAGE_LENGTH)
    body[0] = _WSNZ
    body[2:4] = min(limits.granularity, 0xFFFF).to_bytes(2, "big")
    body[4:8] = min(limits.largest, 0xFFFFFFFF).to_bytes(4, "big")
    body[8:12] = min(limits.best, 0xFFFFFFFF).to_bytes(4, "big")
    body[16:20] = min(limits.largest_unmap, 0xFFFFFFFF).to_bytes(4, "big")
    body[20:24] = _UNMAP_DESCRIPTORS.to_bytes(4, "big")
    body[24:28] = min(limits.unmap_granularity, 0xFFFFFFFF).to_bytes(4, "big")
    body[32:40] = limits.largest.to_bytes(8, "big")
    return bytes(body)
