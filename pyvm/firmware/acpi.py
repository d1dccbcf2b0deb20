"""ACPI's static tables, laid out in one block that can be placed anywhere.

ACPI specification 6.5, section 5.2 "ACPI System Description Tables"; IA-PC HPET specification 1.0a, section 3.2.4;
Windows ACPI Emulated Devices Table (WAET) specification 1.0.

The block is built at address 0.  It carries a list of the pointers in it and of its checksums, so it can be placed by
:meth:`TableBlock.at` or by firmware in the guest that follows QEMU's table-loader script (docs/specs/fw_cfg).
"""

from __future__ import annotations

import struct

from pyvm.firmware import dsdt
from pyvm.firmware.affinity import slit, srat
from pyvm.firmware.machine_info import (
    GPE0_BASE,
    GPE0_SIZE,
    HPET_BASE,
    IOAPIC_BASE,
    IOAPIC_ID,
    LAPIC_BASE,
    PCI_IRQS,
    PM_BASE,
    RESET_PORT,
    SCI_IRQ,
    SMI_PORT,
    MachineInfo,
)
from pyvm.records import field, record

HEADER = struct.Struct("<4sIBB6s8sI4sI")  # signature, length, revision, checksum, OEM and compiler identification
_CHECKSUM_OFFSET = 9
_OEM_REVISION = 1
_COMPILER_ID = b"PYVM"

# FACS.
FACS_SIZE = 64
FACS_ALIGN = 64
FACS_WAKING_VECTOR = 12
_FACS_VERSION = 1

GENERATION_ID = "vmgenid"

# FADT: register blocks as offsets from the PM base, commands to the SMI port, feature flags.
_PM1_EVENT, _PM1_CONTROL, _PM_TIMER = 0, 4, 8
ACPI_ENABLE = 0xF1
ACPI_DISABLE = 0xF0
_RESET_VALUE = 0x06  # PIIX3 reset control: hard reset of the CPU
_NO_C2, _NO_C3 = 0xFFF, 0xFFF  # latencies that say a C-state is not there
_CENTURY_REGISTER = 0x32
_WBINVD = 1 << 0
_PROC_C1 = 1 << 2
_SLEEP_BUTTON_NOT_FIXED = 1 << 5
_S4_RTC_WAKE = 1 << 7
_RESET_REGISTER = 1 << 10
_USE_PLATFORM_CLOCK = 1 << 15
_FORCE_CLUSTER_MODEL = 1 << 18
_FLAT_MODEL_LIMIT = 8  # local APICs that flat logical destinations can tell apart
_BOOT_LEGACY_DEVICES = 1 << 0
_BOOT_8042 = 1 << 1
_BOOT_NO_VGA = 1 << 2
_FADT_REVISION = 3
_FADT_SIZE = 244
_SPACE_MEMORY, _SPACE_IO = 0, 1
_FACS_FIELD, _DSDT_FIELD, _X_DSDT_FIELD = 36, 40, 140

# MADT.
_PCAT_COMPAT = 1
_MADT_LAPIC, _MADT_IOAPIC, _MADT_OVERRIDE, _MADT_LAPIC_NMI, _MADT_X2APIC = 0, 1, 2, 4, 9
_ACTIVE_HIGH_LEVEL = 0xD
_ALL_PROCESSORS = 0xFF
_NMI_LINT = 1
_XAPIC_LIMIT = 0xFF
_X2APIC_NMI = 10

_HPET_ID = 0x8086A201  # vendor Intel, legacy replacement, 64-bit counter, three comparators, revision 1
_WAET_PM_TIMER_GOOD = 1 << 1

# RSDP.
RSDP_SIZE = 36
_RSDP_V1_SIZE = 20
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_RSDP_CHECKSUM, _RSDP_RSDT, _RSDP_XSDT, _RSDP_EXTENDED_CHECKSUM = 8, 16, 24, 32


_NAMED_BY_SLIC = frozenset({"FACP", "RSDT", "XSDT"})


def checksum(data: bytes | bytearray) -> int:
    """Return the byte that makes the sum of `data` and itself 0 modulo 256."""
    return -sum(data) & 0xFF


@record(frozen=True)
class Pointer:
    """A field that holds an address within the block of tables: until placed, an offset."""

    offset: int
    size: int


@record(frozen=True)
class Checksum:
    """A checksum byte at `offset` over `length` bytes from `start`."""

    offset: int
    start: int
    length: int


@record
class TableBlock:
    """Bytes with pointers into the block of tables, and checksums.  `pointers` may lead out of another block."""

    data: bytearray = field(default_factory=bytearray)
    pointers: list[Pointer] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)

    def at(self, tables: int) -> bytes:
        """Return the bytes for the case that the block of tables is at address `tables`."""
        placed = bytearray(self.data)
        for pointer in self.pointers:
            end = pointer.offset + pointer.size
            value = int.from_bytes(placed[pointer.offset : end], "little") + tables
            placed[pointer.offset : end] = value.to_bytes(pointer.size, "little")
        for item in self.checksums:
            placed[item.offset] = 0
            placed[item.offset] = checksum(placed[item.start : item.start + item.length])
        return bytes(placed)


@record(frozen=True)
class AcpiTables:
    """All ACPI tables: the root pointer, which belongs below 1 MiB, and the block it points to."""

    rsdp: TableBlock
    tables: TableBlock
    offsets: dict[str, int]
    """Where each table starts in the block, by signature, and the identifier under :data:`GENERATION_ID`."""


def _oem(table: bytes) -> tuple[bytes, bytes]:
    """Return the OEM ID and the table ID in the header of a table."""
    fields = HEADER.unpack_from(table)
    return fields[4], fields[5]


class _Builder:
    def __init__(self, info: MachineInfo) -> None:
        self.block = TableBlock()
        self.offsets: dict[str, int] = {}
        self._oem = info.oem_id.encode("ascii").ljust(6), info.oem_table_id.encode("ascii").ljust(8)
        # Windows takes a SLIC only where the tables that it looks at have the same maker.
        self._named_by_user = next((_oem(table) for table in info.acpi_tables if table[:4] == b"SLIC"), self._oem)

    def facs(self, table: bytes) -> None:
        """Add the FACS, which has no checksum and must be aligned."""
        self.block.data.extend(bytes(-len(self.block.data) % FACS_ALIGN))
        self.offsets["FACS"] = len(self.block.data)
        self.block.data += table

    def generation_id(self) -> None:
        """Make room for the identifier that changes when the machine goes on from a saved state."""
        self.block.data.extend(bytes(-len(self.block.data) % FACS_ALIGN))
        self.offsets[GENERATION_ID] = len(self.block.data)
        self.block.data.extend(bytes(FACS_ALIGN))

    def add(self, signature: str, revision: int, body: bytes, pointers: list[tuple[int, int]] | None = None) -> None:
        """Add a table; `pointers` are (offset in the table, size) of address fields, which hold block offsets."""
        start = len(self.block.data)
        length = HEADER.size + len(body)
        header = HEADER.pack(
            signature.encode("ascii"),
            length,
            revision,
            0,
            *(self._named_by_user if signature in _NAMED_BY_SLIC else self._oem),
            _OEM_REVISION,
            _COMPILER_ID,
            1,
        )
        self.offsets[signature] = start
        self.block.data += header + body
        self.block.pointers += [Pointer(start + offset, size) for offset, size in pointers or []]
        self.block.checksums.append(Checksum(start + _CHECKSUM_OFFSET, start, length))

    def add_finished(self, name: str, table: bytes) -> None:
        """Add a table that has all that belongs to it, under a name that is its own."""
        self.offsets[name] = len(self.block.data)
        self.block.data += table

    def root(self, signature: str, members: list[str], size: int) -> None:
        """Add the RSDT or XSDT, whose entries have `size` bytes."""
        entries = b"".join(self.offsets[member].to_bytes(size, "little") for member in members)
        fields = [(HEADER.size + size * number, size) for number in range(len(members))]
        self.add(signature, 1, entries, fields)


def build(info: MachineInfo) -> AcpiTables:
    """Build the tables of the machine `info` describes."""
    builder = _Builder(info)
    builder.facs(_facs())
    if info.generation_id:
        builder.generation_id()
    builder.add("DSDT", 2, dsdt.build(info))
    fadt = _fadt(info, builder.offsets["FACS"], builder.offsets["DSDT"])
    builder.add("FACP", _FADT_REVISION, fadt, [(_FACS_FIELD, 4), (_DSDT_FIELD, 4), (_X_DSDT_FIELD, 8)])
    builder.add("APIC", 3 if _needs_x2apic(info) else 1, _madt(info))
    members = ["FACP", "APIC"]
    if info.hpet:
        builder.add("HPET", 1, struct.pack("<IBBHQBHB", _HPET_ID, _SPACE_MEMORY, 0, 0, HPET_BASE, 0, 0, 0))
        members.append("HPET")
    builder.add("WAET", 1, struct.pack("<I", _WAET_PM_TIMER_GOOD))
    members.append("WAET")
    if info.generation_id:
        from pyvm.firmware import generation_id

        code, pointer = generation_id.build(builder.offsets[GENERATION_ID])
        builder.add("SSDT", 1, code, [(HEADER.size + pointer, generation_id.POINTER_SIZE)])
        members.append("SSDT")
    if info.affinity.memory:
        builder.add("SRAT", 3, srat(info.affinity))
        members.append("SRAT")
        if info.affinity.distances:
            builder.add("SLIT", 1, slit(info.affinity))
            members.append("SLIT")
    for number, table in enumerate(info.acpi_tables):
        builder.add_finished(f"user {number}", table)
        members.append(f"user {number}")
    builder.root("RSDT", members, 4)
    builder.root("XSDT", members, 8)
    return AcpiTables(_rsdp(info, builder.offsets), builder.block, builder.offsets)


def _facs() -> bytes:
    """The FACS: its hardware signature is constant, so a guest that hibernated finds the machine unchanged."""
    table = bytearray(FACS_SIZE)
    struct.pack_into("<4sI", table, 0, b"FACS", FACS_SIZE)
    table[32] = _FACS_VERSION
    return bytes(table)


def _register(address: int, size: int, access: int) -> bytes:
    """A Generic Address Structure for `size` bytes of ports; all zero where there are none."""
    return struct.pack("<BBBBQ", _SPACE_IO, 8 * size, 0, access, address) if size else bytes(12)


def _fadt(info: MachineInfo, facs: int, table: int) -> bytes:
    """The FADT's body.  X_FIRMWARE_CTRL stays 0: the 32-bit field tells where the FACS is."""
    flags = _WBINVD | _PROC_C1 | _SLEEP_BUTTON_NOT_FIXED | _S4_RTC_WAKE | _RESET_REGISTER | _USE_PLATFORM_CLOCK
    if len(info.processors) > _FLAT_MODEL_LIMIT:
        flags |= _FORCE_CLUSTER_MODEL
    boot = _BOOT_LEGACY_DEVICES | (_BOOT_8042 if info.i8042 else 0) | (0 if info.vga else _BOOT_NO_VGA)
    event, control, timer = PM_BASE + _PM1_EVENT, PM_BASE + _PM1_CONTROL, PM_BASE + _PM_TIMER
    body = struct.pack("<IIBBHIBBBB", facs, table, 0, 0, SCI_IRQ, SMI_PORT, ACPI_ENABLE, ACPI_DISABLE, 0, 0)
    body += struct.pack("<IIIIIIII", event, 0, control, 0, 0, timer, GPE0_BASE, 0)
    body += struct.pack("<BBBBBBBB", 4, 2, 0, 4, GPE0_SIZE, 0, 0, 0)
    body += struct.pack("<HHHHBBBBBHBI", _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, _CENTURY_REGISTER, boot, 0, flags)
    body += _register(RESET_PORT, 1, 1) + struct.pack("<B3x", _RESET_VALUE)
    body += struct.pack("<QQ", 0, table)
    body += _register(event, 4, 0) + _register(0, 0, 0) + _register(control, 2, 0) + _register(0, 0, 0)
    body += _register(0, 0, 0) + _register(timer, 4, 0) + _register(GPE0_BASE, GPE0_SIZE, 0) + _register(0, 0, 0)
    assert HEADER.size + len(body) == _FADT_SIZE
    return body


def _needs_x2apic(info: MachineInfo) -> bool:
    return any(unit.apic_id >= _XAPIC_LIMIT for unit in info.processors)


def _madt(info: MachineInfo) -> bytes:
    entries = [struct.pack("<II", LAPIC_BASE, _PCAT_COMPAT)]
    for number, unit in enumerate(info.processors):
        if unit.apic_id < _XAPIC_LIMIT:
            entries.append(struct.pack("<BBBBI", _MADT_LAPIC, 8, number, unit.apic_id, unit.present))
        else:
            entries.append(struct.pack("<BBHIII", _MADT_X2APIC, 16, 0, unit.apic_id, unit.present, number))
    entries.append(struct.pack("<BBBBII", _MADT_IOAPIC, 12, IOAPIC_ID, 0, IOAPIC_BASE, 0))
    entries.append(struct.pack("<BBBBIH", _MADT_OVERRIDE, 10, 0, 0, 2, 0))  # the PIT arrives at pin 2
    for irq in PCI_IRQS:
        entries.append(struct.pack("<BBBBIH", _MADT_OVERRIDE, 10, 0, irq, irq, _ACTIVE_HIGH_LEVEL))
    entries.append(struct.pack("<BBBHB", _MADT_LAPIC_NMI, 6, _ALL_PROCESSORS, 0, _NMI_LINT))
    if _needs_x2apic(info):
        entries.append(struct.pack("<BBHIB3x", _X2APIC_NMI, 12, 0, 0xFFFFFFFF, _NMI_LINT))
    return b"".join(entries)


def _rsdp(info: MachineInfo, offsets: dict[str, int]) -> TableBlock:
    oem = info.oem_id.encode("ascii").ljust(6)
    data = _RSDP.pack(b"RSD PTR ", 0, oem, 2, offsets["RSDT"], RSDP_SIZE, offsets["XSDT"], 0)
    return TableBlock(
        bytearray(data),
        [Pointer(_RSDP_RSDT, 4), Pointer(_RSDP_XSDT, 8)],
        [Checksum(_RSDP_CHECKSUM, 0, _RSDP_V1_SIZE), Checksum(_RSDP_EXTENDED_CHECKSUM, 0, RSDP_SIZE)],
    )
