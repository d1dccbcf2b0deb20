"""SMBIOS tables: what the machine is called and made of.

DMTF DSP0134, System Management BIOS Reference Specification 2.8, section 5.2.1 (entry point) and chapter 7
(structures).  The set is that of the PC machine: BIOS, system, chassis, processors, memory, boot status, end; with what
a user wants to be read in them, and the structures that are there only then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from pyvm.firmware.acpi import checksum
from pyvm.firmware.errors import BootError
from pyvm.firmware.machine_info import MachineInfo
from pyvm.firmware.smbios_fields import (
    ARRAY_ADDRESS,
    BIOS,
    BOARD,
    BOOT_STATUS,
    CHASSIS,
    END,
    MEMORY_ARRAY,
    MEMORY_DEVICE,
    OEM_STRINGS,
    ONBOARD_DEVICE,
    ONBOARD_KINDS,
    PORT,
    PROCESSOR,
    SYSTEM,
    Fields,
)
from pyvm.memory import FOUR_GIB
from pyvm.records import record

VERSION = (2, 8)
ENTRY_POINT_SIZE = 31
_BCD_REVISION = 0x28

_HANDLE_BIOS = 0x0000
_HANDLE_SYSTEM = 0x0100
_HANDLE_BOARD = 0x0200
_HANDLE_CHASSIS = 0x0300
_HANDLE_PROCESSOR = 0x0400
_HANDLE_PORT = 0x0800
_HANDLE_OEM = 0x0E00
_HANDLE_ARRAY = 0x1000
_HANDLE_DEVICE = 0x1100
_HANDLE_ADDRESS = 0x1300
_HANDLE_BOOT = 0x2000
_HANDLE_ONBOARD = 0x2900
_HANDLE_END = 0x7F00

_NO_HANDLE = 0xFFFF  # cache not there
_NO_ERROR_INFORMATION = 0xFFFE
_OTHER, _UNKNOWN, _SAFE = 1, 2, 3
_CENTRAL_PROCESSOR = 3
_CHARACTERISTICS_UNKNOWN = 1 << 1
_SOCKET_ENABLED = 0x41
_SPEED_MHZ = 2000
_WAKE_BY_POWER_SWITCH = 6
_SYSTEM_MEMORY = 3
_MULTI_BIT_ECC = 6
_FORM_DIMM, _TYPE_RAM, _DETAIL_OTHER = 9, 7, 1 << 1
_BIOS_CHARACTERISTICS_UNSUPPORTED = 1 << 3
_BIOS_IS_UEFI, _BIOS_IS_VIRTUAL = 0x08, 0x10
_HOSTING_BOARD, _MOTHERBOARD = 1 << 0, 0x0A
_DEVICE_ENABLED = 1 << 7
_BIOS_SEGMENT = 0xE800
_BIOS_ROM_64K = 0
_DIMM_SIZE = 16 << 30
_LARGEST_SMALL_DEVICE = 0x7FFF  # MiB; more goes to the extended size
_LARGEST_SMALL_ARRAY = 0x80000000  # KiB
_LARGEST_COUNT = 0xFF
_LARGEST_TABLE = 0xFFFF


@record(frozen=True)
class SmbiosTables:
    """The structures, and what the entry point says of them."""

    structures: bytes
    count: int
    largest: int

    def entry_point(self, address: int) -> bytes:
        """Return the 32-bit entry point for structures at physical address `address`."""
        intermediate = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(self.structures), address, self.count, 0))
        intermediate[-1] = _BCD_REVISION
        intermediate[5] = checksum(intermediate)
        head = bytearray(struct.pack("<4sBBBBHB5x", b"_SM_", 0, ENTRY_POINT_SIZE, *VERSION, self.largest, 0))
        head[4] = checksum(head + intermediate)
        return bytes(head + intermediate)


class _Structure:
    """One structure in the making: fixed fields, then its strings."""

    def __init__(self, kind: int, handle: int) -> None:
        self._kind = kind
        self._handle = handle
        self._fields = bytearray()
        self._strings: list[bytes] = []

    def pack(self, layout: str, *values: int | bytes) -> None:
        """Append fields."""
        self._fields += struct.pack("<" + layout, *values)

    def text(self, text: object) -> None:
        """Append a string field: the number of the string, 0 for an empty one."""
        data = str(text).encode("utf-8", "surrogateescape").replace(b"\0", b"")
        if not data:
            self._fields.append(0)
            return
        if data not in self._strings:
            self._strings.append(data)
        self._fields.append(self._strings.index(data) + 1)

    def append_strings(self, strings: Sequence[bytes]) -> None:
        """Append strings that no field refers to: they are counted."""
        self._fields.append(len(strings))
        self._strings += strings

    def finish(self) -> bytes:
        """Return the structure with its string set."""
        head = struct.pack("<BBH", self._kind, 4 + len(self._fields), self._handle)
        strings = b"".join(text + b"\0" for text in self._strings) or b"\0"
        return head + bytes(self._fields) + strings + b"\0"


def build(info: MachineInfo) -> SmbiosTables:
    """Build the tables of the machine `info` describes; raises :class:`BootError` where they grow too long."""
    given = info.smbios.structures
    replaced = {structure[0] for structure in given}
    structures = [*given, *(structure for structure in _structures(info) if structure[0] not in replaced)]
    data = b"".join(structures)
    if len(data) > _LARGEST_TABLE:
        raise BootError(f"the SMBIOS tables take {len(data)} bytes, {_LARGEST_TABLE} at most are possible")
    return SmbiosTables(data, len(structures), max(map(len, structures)))


def _structures(info: MachineInfo) -> Iterator[bytes]:
    """Yield what the machine says of itself."""
    asked = info.smbios
    yield _bios(info)
    yield _system(info)
    if asked.of(BOARD):
        yield _board(info)
    yield _chassis(info)
    yield from (_processor(info, number) for number in range(info.sockets))
    yield from (_port(number, port) for number, port in enumerate(asked.ports))
    if asked.oem_strings:
        yield _oem_strings(asked.oem_strings)
    devices = max(1, -(-info.ram_size // _DIMM_SIZE))
    yield _memory_array(info, devices)
    yield from (_memory_device(info, number) for number in range(devices))
    yield _array_address(0, 0, info.low_ram_end, devices)
    if info.high_ram_end > FOUR_GIB:
        yield _array_address(1, FOUR_GIB, info.high_ram_end, devices)
    boot = _Structure(BOOT_STATUS, _HANDLE_BOOT)
    boot.pack("6xB", 0)
    yield boot.finish()
    yield from (_onboard_device(number, device) for number, device in enumerate(asked.devices))
    yield _Structure(END, _HANDLE_END).finish()


def _bios(info: MachineInfo) -> bytes:
    asked = info.smbios.of(BIOS)
    table = _Structure(BIOS, _HANDLE_BIOS)
    table.text(asked.get("vendor", info.system.bios_vendor))
    table.text(asked.get("version", info.system.bios_version))
    table.pack("H", _BIOS_SEGMENT)
    table.text(asked.get("date", info.system.bios_date))
    table.pack("BQ", _BIOS_ROM_64K, _BIOS_CHARACTERISTICS_UNSUPPORTED)
    kind = _BIOS_IS_VIRTUAL | (_BIOS_IS_UEFI if asked.get("uefi") else 0)
    table.pack("BBHBB", 0, kind, _number(asked, "release"), 0xFF, 0xFF)
    return table.finish()


def _number(asked: Fields, name: str, default: int = 0) -> int:
    return int(asked.get(name, default))


def _system(info: MachineInfo) -> bytes:
    asked = info.smbios.of(SYSTEM)
    table = _Structure(SYSTEM, _HANDLE_SYSTEM)
    table.text(asked.get("manufacturer", info.system.manufacturer))
    table.text(asked.get("product", info.system.product))
    table.text(asked.get("version", info.system.version))
    table.text(asked.get("serial", info.system.serial))
    table.pack("16sB", _little_endian_uuid(info.system.uuid), _WAKE_BY_POWER_SWITCH)
    table.text(asked.get("sku", info.system.sku))
    table.text(asked.get("family", info.system.family))
    return table.finish()


def _board(info: MachineInfo) -> bytes:
    asked = info.smbios.of(BOARD)
    table = _Structure(BOARD, _HANDLE_BOARD)
    table.text(asked.get("manufacturer", info.system.manufacturer))
    table.text(asked.get("product", info.system.product))
    table.text(asked.get("version", info.system.version))
    table.text(asked.get("serial", ""))
    table.text(asked.get("asset", ""))
    table.pack("B", _HOSTING_BOARD)
    table.text(asked.get("location", ""))
    table.pack("HBB", _HANDLE_CHASSIS, _MOTHERBOARD, 0)
    return table.finish()


def _little_endian_uuid(uuid: bytes) -> bytes:
    """Return the UUID with its first three fields little-endian, as SMBIOS 2.6 and later have it."""
    return uuid[3::-1] + uuid[5:3:-1] + uuid[7:5:-1] + uuid[8:]


def _chassis(info: MachineInfo) -> bytes:
    asked = info.smbios.of(CHASSIS)
    table = _Structure(CHASSIS, _HANDLE_CHASSIS)
    table.text(asked.get("manufacturer", info.system.manufacturer))
    table.pack("B", _OTHER)
    table.text(asked.get("version", info.system.version))
    table.text(asked.get("serial", ""))
    table.text(asked.get("asset", ""))
    table.pack("BBBBIBBBB", _SAFE, _SAFE, _SAFE, _UNKNOWN, 0, 0, 0, 0, 0)
    table.text(asked.get("sku", ""))
    return table.finish()


def _processor(info: MachineInfo, number: int) -> bytes:
    asked = info.smbios.of(PROCESSOR)
    table = _Structure(PROCESSOR, _HANDLE_PROCESSOR + number)
    cores = min(info.cores_per_socket, _LARGEST_COUNT)
    threads = min(info.cores_per_socket * info.threads_per_core, _LARGEST_COUNT)
    table.text(f"{asked.get('sock_pfx', 'CPU')} {number}")
    table.pack("BB", _CENTRAL_PROCESSOR, _OTHER)
    table.text(asked.get("manufacturer", info.system.manufacturer))
    table.pack("Q", _number(asked, "processor-id", info.cpu_signature | info.cpu_features << 32))
    table.text(asked.get("version", info.system.version))
    speeds = _number(asked, "max-speed", _SPEED_MHZ), _number(asked, "current-speed", _SPEED_MHZ)
    table.pack("BHHHBB", 0, 0, *speeds, _SOCKET_ENABLED, _OTHER)
    table.pack("HHH", _NO_HANDLE, _NO_HANDLE, _NO_HANDLE)
    for name in ("serial", "asset", "part"):
        table.text(asked.get(name, ""))
    table.pack("BBBHH", cores, cores, threads, _CHARACTERISTICS_UNKNOWN, _OTHER)
    return table.finish()


def _port(number: int, asked: Fields) -> bytes:
    table = _Structure(PORT, _HANDLE_PORT + number)
    table.text(asked.get("internal_reference", ""))
    table.pack("B", 0)
    table.text(asked.get("external_reference", ""))
    table.pack("BB", _number(asked, "connector_type"), _number(asked, "port_type"))
    return table.finish()


def _oem_strings(strings: Sequence[bytes]) -> bytes:
    table = _Structure(OEM_STRINGS, _HANDLE_OEM)
    table.append_strings(strings)
    return table.finish()


def _onboard_device(number: int, asked: Fields) -> bytes:
    table = _Structure(ONBOARD_DEVICE, _HANDLE_ONBOARD + number)
    table.text(asked.get("designation", ""))
    kind = ONBOARD_KINDS.index(str(asked.get("kind", ONBOARD_KINDS[0]))) + 1
    table.pack("BBHBB", _DEVICE_ENABLED | kind, _number(asked, "instance"), 0, 0, 0)
    return table.finish()


def _memory_array(info: MachineInfo, devices: int) -> bytes:
    table = _Structure(MEMORY_ARRAY, _HANDLE_ARRAY)
    kib = info.ram_size >> 10
    small, extended = (kib, 0) if kib < _LARGEST_SMALL_ARRAY else (_LARGEST_SMALL_ARRAY, info.ram_size)
    table.pack("BBBI", _OTHER, _SYSTEM_MEMORY, _MULTI_BIT_ECC, small)
    table.pack("HHQ", _NO_ERROR_INFORMATION, devices, extended)
    return table.finish()


def _memory_device(info: MachineInfo, number: int) -> bytes:
    asked = info.smbios.of(MEMORY_DEVICE)
    table = _Structure(MEMORY_DEVICE, _HANDLE_DEVICE + number)
    mib = min(_DIMM_SIZE, info.ram_size - number * _DIMM_SIZE) >> 20
    small, extended = (mib, 0) if mib < _LARGEST_SMALL_DEVICE else (_LARGEST_SMALL_DEVICE, mib)
    table.pack("HHHHHBB", _HANDLE_ARRAY, _NO_ERROR_INFORMATION, 0xFFFF, 0xFFFF, small, _FORM_DIMM, 0)
    table.text(f"{asked.get('loc_pfx', 'DIMM')} {number}")
    table.text(asked.get("bank", ""))
    speed = _number(asked, "speed")
    table.pack("BHH", _TYPE_RAM, _DETAIL_OTHER, speed)
    table.text(asked.get("manufacturer", info.system.manufacturer))
    for name in ("serial", "asset", "part"):
        table.text(asked.get(name, ""))
    table.pack("BIHHHH", 0, extended, speed, 0, 0, 0)
    return table.finish()


def _array_address(number: int, start: int, end: int, devices: int) -> bytes:
    """Where a run of RAM is, in KiB, or in bytes where that does not fit."""
    table = _Structure(ARRAY_ADDRESS, _HANDLE_ADDRESS + number)
    first, last = start >> 10, (end >> 10) - 1
    partition_width = min(devices, _LARGEST_COUNT)
    if last < 0xFFFFFFFF:
        table.pack("IIHBQQ", first, last, _HANDLE_ARRAY, partition_width, 0, 0)
    else:
        table.pack("IIHBQQ", 0xFFFFFFFF, 0xFFFFFFFF, _HANDLE_ARRAY, partition_width, start, end - 1)
    return table.finish()
