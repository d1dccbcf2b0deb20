"""ACPI tables about NUMA: what is near to what (SRAT), and how far nodes are apart (SLIT).

ACPI specification 6.5, sections 5.2.16 "System Resource Affinity Table" and 5.2.17 "System Locality Information Table".
"""

from __future__ import annotations

import struct

from pyvm.records import record

_CPU, _MEMORY, _X2APIC_CPU = 0, 1, 2
_ENABLED, _HOT_PLUGGABLE = 1, 2
_XAPIC_LIMIT = 0xFF
_HEADER = struct.Struct("<IQ")  # table revision 1, and reserved
_CPU_ENTRY = struct.Struct("<BBBBIBBHI")  # low domain byte, APIC ID, flags, SAPIC EID, rest of the domain, clock domain
_MEMORY_ENTRY = struct.Struct("<BBIHQQIIQ")  # domain, reserved, base, length, reserved, flags, reserved
_X2APIC_ENTRY = struct.Struct("<BBHIIIII")  # reserved, domain, APIC ID, flags, clock domain, reserved


@record(frozen=True)
class Affinity:
    """The NUMA nodes of a machine; empty where it has none."""

    cpus: tuple[tuple[int, int], ...] = ()
    """APIC ID and node of each processor."""
    memory: tuple[tuple[int, int, int], ...] = ()
    """GPA, length in bytes, and node of each range of RAM."""
    distances: tuple[tuple[int, ...], ...] = ()
    """How far each node is from each; empty where that was not said."""
    pluggable: tuple[tuple[int, int, int], ...] = ()
    """GPA, length in bytes, and node of each range where memory may be plugged in later."""


def srat(affinity: Affinity) -> bytes:
    """Return the SRAT's body."""
    entries = [_HEADER.pack(1, 0)]
    for apic_id, node in affinity.cpus:
        if apic_id < _XAPIC_LIMIT:
            low, middle, high = node & 0xFF, node >> 8 & 0xFF, node >> 16
            entries.append(_CPU_ENTRY.pack(_CPU, _CPU_ENTRY.size, low, apic_id, _ENABLED, 0, middle, high, 0))
        else:
            entries.append(_X2APIC_ENTRY.pack(_X2APIC_CPU, _X2APIC_ENTRY.size, 0, node, apic_id, _ENABLED, 0, 0))
    for gpa, length, node in affinity.memory:
        entries.append(_MEMORY_ENTRY.pack(_MEMORY, _MEMORY_ENTRY.size, node, 0, gpa, length, 0, _ENABLED, 0))
    for gpa, length, node in affinity.pluggable:
        flags = _ENABLED | _HOT_PLUGGABLE
        entries.append(_MEMORY_ENTRY.pack(_MEMORY, _MEMORY_ENTRY.size, node, 0, gpa, length, 0, flags, 0))
    return b"".join(entries)


def slit(affinity: Affinity) -> bytes:
    """Return the SLIT's body."""
    rows = affinity.distances
    return struct.pack("<Q", len(rows)) + b"".join(bytes(row) for row in rows)
