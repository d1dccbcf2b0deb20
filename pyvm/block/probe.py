"""Finding out the format of an image from its first bytes.

Only what the guest cannot have written may be believed: see :class:`pyvm.block.drivers.raw.RawNode` for what follows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from pyvm.block.errors import BlockError

PROBE_SIZE = 512
"""How much of an image is looked at."""

_FIRST_BYTES = (
    (b"COWD", "vmdk"),
    (b"KDMV", "vmdk"),
    (b"QED\0", "qed"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"LUKS\xba\xbe", "luks"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"Bochs Virtual HD Image", "bochs"),
    (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
)
_VMDK_TEXT = rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n"
"""How the description of a disk begins: comments, empty lines, and its version."""
_QCOW = struct.Struct(">4sI")
_QCOW_MAGIC = b"QFI\xfb"
_VDI = struct.Struct("<I")
_VDI_OFFSET = 64
_VDI_SIGNATURE = 0xBEDA107F
_CDROM_DRIVE_STATUS = 0x5326
_CDSL_CURRENT = 0x7FFFFFFF


def probe_format(head: bytes, path: str = "") -> str:
    """Return the format of an image that begins with `head`; ``raw`` where it looks like no other."""
    if len(head) >= _QCOW.size:
        magic, version = _QCOW.unpack_from(head)
        if magic == _QCOW_MAGIC and version >= 1:
            return "qcow" if version == 1 else "qcow2"
    for first, name in _FIRST_BYTES:
        if head.startswith(first):
            return name
    if b"version=" in head:
        import re

        if re.match(_VMDK_TEXT, head):
            return "vmdk"
    if len(head) >= _VDI_OFFSET + _VDI.size and _VDI.unpack_from(head, _VDI_OFFSET)[0] == _VDI_SIGNATURE:
        return "vdi"
    return "dmg" if path.endswith(".dmg") else "raw"


def find_format(path: str, open_file: Callable[[str, int], int]) -> str:
    """Return the format of a file, which `open_file` opens; raises BlockError."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            descriptor = open_file(path, flags | os.O_RDONLY)
        except PermissionError:
            descriptor = open_file(path, flags | os.O_RDWR)  # a descriptor may be there for this alone
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BlockError(f"Could not open '{path}': {reason}") from None
    try:
        return probe_format(os.pread(descriptor, PROBE_SIZE, 0), path)
    except OSError:
        # A directory or a pipe; opening it as a file says so.
        return "raw"
    finally:
        os.close(descriptor)


def is_cdrom(path: str) -> bool:
    """Whether the device answers as a CD-ROM drive."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(descriptor, _CDROM_DRIVE_STATUS, _CDSL_CURRENT)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
