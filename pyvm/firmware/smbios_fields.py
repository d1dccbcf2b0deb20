"""What a user wants to read in the SMBIOS tables: fields of structures, more structures, and whole ones from files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pyvm.records import field, record

FieldKind = Literal["text", "texts", "number", "boolean", "release", "uuid", "device"]

BIOS, SYSTEM, BOARD, CHASSIS, PROCESSOR, PORT, OEM_STRINGS = 0, 1, 2, 3, 4, 8, 11
MEMORY_ARRAY, MEMORY_DEVICE, ARRAY_ADDRESS, BOOT_STATUS, ONBOARD_DEVICE, END = 16, 17, 19, 32, 41, 127

ONBOARD_KINDS: Final = "other unknown video scsi ethernet tokenring sound pata sata sas".split()
"""What devices on the board are; each stands for its place in this list, from 1 on (section 7.42.1)."""

_TEXTS = "manufacturer version serial asset"


def _fields(texts: str, **others: FieldKind) -> dict[str, FieldKind]:
    return {**dict.fromkeys(texts.split(), "text"), **others}


FIELDS: Final[dict[int, dict[str, FieldKind]]] = {
    BIOS: _fields("vendor version date", release="release", uefi="boolean"),
    SYSTEM: _fields("manufacturer product version serial sku family", uuid="uuid"),
    BOARD: _fields(f"product location {_TEXTS}"),
    CHASSIS: _fields(f"sku {_TEXTS}"),
    PROCESSOR: {
        **_fields(f"sock_pfx part {_TEXTS}"),
        **dict.fromkeys(("max-speed", "current-speed", "processor-id"), "number"),
    },
    PORT: _fields("internal_reference external_reference", connector_type="number", port_type="number"),
    OEM_STRINGS: {"value": "texts", "path": "texts"},
    MEMORY_DEVICE: _fields("loc_pfx bank manufacturer serial asset part", speed="number"),
    ONBOARD_DEVICE: _fields("designation", kind="device", instance="number"),
}
"""The fields that can be given, by the type of the structure."""

Fields = Mapping[str, str | int]


@record(frozen=True)
class SmbiosFields:
    """What was asked for, checked."""

    fields: dict[int, Fields] = field(default_factory=dict)
    """Of the types of which there is one set of fields."""
    ports: list[Fields] = field(default_factory=list)
    oem_strings: list[bytes] = field(default_factory=list)
    devices: list[Fields] = field(default_factory=list)
    structures: list[bytes] = field(default_factory=list)
    """Whole structures with their strings, which take the place of what the machine says of those types."""

    def of(self, kind: int) -> Fields:
        """Return the fields of the structures of a type."""
        return self.fields.get(kind, {})
