"""The text that describes a VMDK disk: what kind it is, which extents it is made of, and what it lies on.

Source: VMware's "Virtual Disk Format 5.0", chapter "The Descriptor File".  It comes from outside, and names files: only
names without a directory are taken, so that an image can lead to nothing that is not beside it.
"""

from __future__ import annotations

import re

from pyvm.block.drivers.foreign.mapped import SECTOR
from pyvm.block.errors import BlockError
from pyvm.records import record

MAX_TEXT = 1 << 20
MAX_EXTENTS = 1024
NO_PARENT = 0xFFFFFFFF
FLAT, SPARSE, ZERO = ("FLAT", "VMFS"), ("SPARSE", "VMFSSPARSE"), ("ZERO",)

_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS) (\d{1,15}) ([A-Z]+)(?: "([^"\n]*)")?(?: (\d{1,15}))?')
_SETTING = re.compile(r'^[ \t]*(\w+)[ \t]*=[ \t]*"?([^"\r\n]*)', re.MULTILINE)


@record(frozen=True)
class ExtentLine:
    """One line of the extent description; sizes in bytes."""

    size: int
    kind: str
    filename: str = ""
    offset: int = 0


@record
class Descriptor:
    """What the text says."""

    create_type: str
    cid: int
    parent_cid: int
    parent: str | None
    """The name of the image below, if there is one."""
    extents: tuple[ExtentLine, ...]


def parse_descriptor(text: str) -> Descriptor:
    """Return what a descriptor says; raises BlockError."""
    settings = {name: value.strip() for name, value in reversed(_SETTING.findall(text))}
    if "createType" not in settings:
        raise BlockError("invalid VMDK image descriptor")
    parent_cid = _identifier(settings.get("parentCID", "ffffffff"))
    parent = settings.get("parentFileNameHint") or None
    if parent_cid != NO_PARENT and parent is None:
        raise BlockError("invalid VMDK image descriptor: it names no parent")
    return Descriptor(
        settings["createType"],
        _identifier(settings.get("CID", "0")),
        parent_cid,
        parent if parent_cid != NO_PARENT else None,
        tuple(_parse_extents(text)),
    )


def _identifier(text: str) -> int:
    try:
        return int(text, 16) & 0xFFFFFFFF
    except ValueError:
        raise BlockError("invalid VMDK image descriptor") from None


def _parse_extents(text: str) -> list[ExtentLine]:
    extents = []
    for line in text.splitlines():
        words = line.strip()
        if not words.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            continue
        found = _EXTENT.fullmatch(words)
        if found is None:
            raise BlockError(f"Invalid extent line: {words[:80]}")
        access, sectors, kind, filename, offset = found.groups()
        if kind not in FLAT + SPARSE + ZERO:
            raise BlockError(f"Unsupported extent type '{kind[:20]}'")
        if access == "NOACCESS" or (kind not in ZERO and not filename) or (kind in FLAT[:1] and offset is None):
            raise BlockError(f"Invalid extent line: {words[:80]}")
        extents.append(ExtentLine(int(sectors) * SECTOR, kind, filename or "", int(offset or 0) * SECTOR))
        if len(extents) > MAX_EXTENTS:
            raise BlockError(f"VMDK image has more than {MAX_EXTENTS} extents")
    return extents


def extent_names(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the files that have the data, each beside the image.  Raises BlockError for any other."""
    names = [extent.filename for extent in descriptor.extents if extent.filename]
    for name in names:
        if name in (".", "..") or any(character in name for character in "/:\0"):
            raise BlockError(f"VMDK extent '{name[:80]}' is not beside the image: pyvm does not open it")
    return tuple(names)
