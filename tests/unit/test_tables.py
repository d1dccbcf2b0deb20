"""Installation of all tables, and the forms of them that fw_cfg offers."""

from __future__ import annotations

import struct

import pytest

from pyvm.firmware.errors import BootError
from pyvm.firmware.machine_info import MachineInfo, Processor, SerialPort
from pyvm.firmware.tables import Tables
from tests.unit.firmware_images import MIB, machine


def machine_info(cpus: int = 2, mib: int = 32) -> MachineInfo:
    return MachineInfo(
        processors=tuple(Processor(number) for number in range(cpus)),
        low_ram_end=mib * MIB,
        serial_ports=(SerialPort(1, 0x3F8, 4), SerialPort(3, 0x3E8, 4)),
    )


def run_loader_script(files: dict[str, bytes], places: dict[str, int]) -> dict[str, bytes]:
    """Do what firmware does with `etc/table-loader`; `places` are the addresses it gives out."""
    contents = {name: bytearray(data) for name, data in files.items()}
    allocated: set[str] = set()
    script = files["etc/table-loader"]
    assert len(script) % 128 == 0
    for start in range(0, len(script), 128):
        command = script[start : start + 128]
        (kind,) = struct.unpack_from("<I", command)
        name = command[4:60].rstrip(b"\0").decode()
        if kind == 1:
            align, zone = struct.unpack_from("<IB", command, 60)
            assert places[name] % align == 0
            assert zone == (2 if "rsdp" in name else 1)
            allocated.add(name)
        elif kind == 2:
            source = command[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", command, 116)
            assert {name, source} <= allocated
            field = contents[name][offset : offset + size]
            value = int.from_bytes(field, "little") + places[source]
            contents[name][offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert kind == 3
            where, first, length = struct.unpack_from("<III", command, 60)
            contents[name][where] = 0
            contents[name][where] = -sum(contents[name][first : first + length]) & 0xFF
    return {name: bytes(data) for name, data in contents.items()}


def test_the_loader_script_makes_what_install_makes() -> None:
    memory, _ = machine(32)
    tables = Tables(machine_info())
    where = tables.install(memory)
    files = tables.fw_cfg_files()
    made = run_loader_script(files, {"etc/acpi/tables": where.facs, "etc/acpi/rsdp": where.rsdp})
    assert made["etc/acpi/tables"] == memory.read(where.facs, len(files["etc/acpi/tables"]))
    assert made["etc/acpi/rsdp"] == memory.read(where.rsdp, 36)


def test_smbios_files() -> None:
    files = Tables(machine_info()).fw_cfg_files()
    anchor = files["etc/smbios/smbios-anchor"]
    assert anchor[:4] == b"_SM_"
    assert struct.unpack_from("<H", anchor, 22)[0] == len(files["etc/smbios/smbios-tables"])


def test_the_pointers_lead_where_they_say() -> None:
    memory, _ = machine(32)
    where = Tables(machine_info()).install(memory)
    assert memory.read(where.smbios, 4) == b"_SM_"
    assert memory.read(where.mp_pointer, 4) == b"_MP_"
    assert memory.read(memory.read_u32(where.mp_pointer + 4), 4) == b"PCMP"
    assert all(address % 16 == 0 for address in (where.rsdp, where.smbios, where.mp_pointer))


def test_bios_data_area() -> None:
    memory, _ = machine(32)
    Tables(machine_info()).install(memory)
    assert struct.unpack("<4H", memory.read(0x400, 8)) == (0x3F8, 0x3E8, 0, 0)
    assert memory.read_u16(0x40E) == 0x9FC0
    assert memory.read_u16(0x413) == 639
    assert memory.read_u16(0x410) == 2 << 9 | 0b110


@pytest.mark.parametrize("cpus", [1, 64, 255, 300])
def test_any_number_of_processors_fits(cpus: int) -> None:
    memory, _ = machine(32)
    where = Tables(machine_info(cpus)).install(memory)
    reserved = next(entry for entry in where.e820 if entry.end == 32 * MIB)
    assert reserved.start <= where.facs
    assert where.smbios < 0xF8000


def test_too_little_memory() -> None:
    memory, _ = machine(1)
    with pytest.raises(BootError, match="1024 KiB of memory are too little"):
        Tables(machine_info(mib=1)).install(memory)


def test_the_tables_of_another_machine() -> None:
    memory, _ = machine(16)
    with pytest.raises(ValueError, match="other memory"):
        Tables(machine_info()).install(memory)
