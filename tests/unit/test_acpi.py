"""ACPI tables: layout, checksums, pointers, and the DSDT as Intel's tools see it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import acpi, aml, dsdt
from pyvm.firmware.machine_info import MachineInfo, Processor, SerialPort
from pyvm.firmware.tables import Tables, waking_vector
from pyvm.memory import GuestMemory
from pyvm.records import replace
from tests.unit.firmware_images import MIB, machine

IASL = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (package acpica-tools) is not installed")


def machine_info(cpus: int = 2, mib: int = 64) -> MachineInfo:
    return MachineInfo(
        processors=tuple(Processor(number) for number in range(cpus)),
        low_ram_end=mib * MIB,
        serial_ports=(SerialPort(1, 0x3F8, 4), SerialPort(2, 0x2F8, 3)),
    )


def table(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, memory.read_u32(address + 4))


def installed(info: MachineInfo) -> tuple[GuestMemory, int, dict[str, tuple[int, bytes]]]:
    """Follow the pointers as a system does; return RAM, the RSDP's address, and the tables by signature."""
    memory, _ = machine(info.low_ram_end // MIB)
    rsdp = Tables(info).install(memory).rsdp
    root = memory.read(rsdp, 36)
    found: dict[str, tuple[int, bytes]] = {}
    for pointer, size in ((struct.unpack_from("<I", root, 16)[0], 4), (struct.unpack_from("<Q", root, 24)[0], 8)):
        data = table(memory, pointer)
        found[data[:4].decode()] = (pointer, data)
        for offset in range(36, len(data), size):
            address = int.from_bytes(data[offset : offset + size], "little")
            entry = table(memory, address)
            found[entry[:4].decode()] = (address, entry)
    fadt = found["FACP"][1]
    for name, offset in (("FACS", 36), ("DSDT", 40)):
        address = struct.unpack_from("<I", fadt, offset)[0]
        found[name] = (address, table(memory, address))
    return memory, rsdp, found


def test_root_pointer() -> None:
    memory, rsdp, _ = installed(machine_info())
    root = memory.read(rsdp, 36)
    assert root[:8] == b"RSD PTR "
    assert rsdp % 16 == 0
    assert 0xF0000 <= rsdp < 0x100000
    assert (root[15], struct.unpack_from("<I", root, 20)[0]) == (2, 36)
    assert sum(root[:20]) & 0xFF == 0
    assert sum(root) & 0xFF == 0


@settings(max_examples=15, deadline=None)
@given(cpus=st.integers(1, 300), hpet=st.booleans(), serial=st.booleans(), s3=st.booleans())
def test_checksums_and_pointers_of_any_machine(cpus: int, hpet: bool, serial: bool, s3: bool) -> None:
    info = replace(machine_info(cpus), hpet=hpet, sleep_s3=s3)
    memory, _, found = installed(info if serial else replace(info, serial_ports=()))
    assert set(found) == {"RSDT", "XSDT", "FACP", "APIC", "WAET", "FACS", "DSDT"} | ({"HPET"} if hpet else set())
    reserved = Tables(info).memory_map(memory)
    for name, (address, data) in found.items():
        assert any(entry.start <= address and address + len(data) <= entry.end for entry in reserved if entry.type == 2)
        if name != "FACS":
            assert sum(data) & 0xFF == 0
            assert data[10:24] == b"BOCHS BXPC    "
    facs, data = found["FACS"]
    assert facs % 64 == 0
    assert len(data) == 64


def test_rsdt_and_xsdt_name_the_same_tables() -> None:
    _, _, found = installed(machine_info())
    narrow, wide = found["RSDT"][1][36:], found["XSDT"][1][36:]
    count = len(narrow) // 4
    assert struct.unpack(f"<{count}I", narrow) == struct.unpack(f"<{count}Q", wide)
    assert count == 4


def test_fadt() -> None:
    _, _, found = installed(machine_info())
    data = found["FACP"][1]
    assert (len(data), data[8]) == (244, 3)
    assert struct.unpack_from("<HIBB", data, 46) == (9, 0xB2, 0xF1, 0xF0)
    assert struct.unpack_from("<8I", data, 56) == (0x600, 0, 0x604, 0, 0, 0x608, 0xAFE0, 0)
    assert struct.unpack_from("<6B", data, 88) == (4, 2, 0, 4, 4, 0)
    assert data[108] == 0x32
    boot, flags = struct.unpack_from("<HxI", data, 109)
    assert boot == 0b111
    assert flags == 0x84A5
    assert struct.unpack_from("<BBBBQB", data, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert struct.unpack_from("<Q", data, 140)[0] == found["DSDT"][0]
    registers = [struct.unpack_from("<BBBBQ", data, 148 + 12 * index) for index in range(8)]
    assert [(bits, address) for _, bits, _, _, address in registers] == [
        (32, 0x600),
        (0, 0),
        (16, 0x604),
        (0, 0),
        (0, 0),
        (32, 0x608),
        (32, 0xAFE0),
        (0, 0),
    ]


def test_fadt_options() -> None:
    _, _, found = installed(replace(machine_info(9), vga=True, i8042=False))
    boot, flags = struct.unpack_from("<HxI", found["FACP"][1], 109)
    assert boot == 0b001
    assert flags & 1 << 18  # more processors than flat logical destinations can name


def madt_entries(data: bytes) -> list[bytes]:
    entries, offset = [], 44
    while offset < len(data):
        entries.append(data[offset : offset + data[offset + 1]])
        offset += data[offset + 1]
    return entries


def test_madt_tells_what_linux_prints_on_this_machine() -> None:
    _, _, found = installed(machine_info())
    data = found["APIC"][1]
    assert struct.unpack_from("<II", data, 36) == (0xFEE00000, 1)
    assert len(data) == 128
    assert madt_entries(data) == [
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),
        struct.pack("<BBBBI", 0, 8, 1, 1, 1),
        struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),
        *(struct.pack("<BBBBIH", 2, 10, 0, irq, irq, 0xD) for irq in (5, 9, 10, 11)),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    ]


def test_madt_with_absent_and_many_processors() -> None:
    units = tuple(Processor(number, present=number != 1) for number in range(257))
    _, _, found = installed(replace(machine_info(), processors=units))
    entries = madt_entries(found["APIC"][1])
    assert entries[1] == struct.pack("<BBBBI", 0, 8, 1, 1, 0)
    assert entries[254] == struct.pack("<BBBBI", 0, 8, 254, 254, 1)
    assert entries[255] == struct.pack("<BBHIII", 9, 16, 0, 255, 1, 255)
    assert entries[-1] == struct.pack("<BBHIB3x", 10, 12, 0, 0xFFFFFFFF, 1)


def test_hpet_and_waet() -> None:
    _, _, found = installed(machine_info())
    assert struct.unpack_from("<IBBBBQBHB", found["HPET"][1], 36) == (0x8086A201, 0, 0, 0, 0, 0xFED00000, 0, 0, 0)
    assert struct.unpack_from("<I", found["WAET"][1], 36) == (2,)


def test_waking_vector() -> None:
    memory, _, found = installed(machine_info())
    facs = found["FACS"][0]
    assert waking_vector(memory, facs) == 0
    memory.write_u32(facs + 12, 0x9A000)
    assert waking_vector(memory, facs) == 0x9A000


def test_sleep_states() -> None:
    full = dsdt.build(machine_info())
    assert aml.name("\\_S3", aml.package(aml.ONE, aml.ONE, aml.ZERO, aml.ZERO)) in full
    assert aml.name("\\_S4", aml.package(aml.integer(2), aml.integer(2), aml.ZERO, aml.ZERO)) in full
    assert aml.name("\\_S5", aml.package(aml.ZERO, aml.ZERO, aml.ZERO, aml.ZERO)) in full
    less = dsdt.build(replace(machine_info(), sleep_s3=False, sleep_s4=False))
    assert b"_S3_" not in less
    assert b"_S4_" not in less
    assert b"_S5_" in less


def test_devices_that_are_not_there_are_not_described() -> None:
    bare = replace(machine_info(1), serial_ports=(), i8042=False, hpet=False, fw_cfg=False)
    for hid in (aml.eisa_id("PNP0501"), aml.eisa_id("PNP0303"), aml.eisa_id("PNP0103"), b"QEMU0002"):
        assert hid in dsdt.build(machine_info())
        assert hid not in dsdt.build(bare)


def disassembled(directory: Path, info: MachineInfo) -> str:
    tables = acpi.build(info)
    start = tables.offsets["DSDT"]
    (directory / "dsdt.aml").write_bytes(tables.tables.at(0)[start : tables.offsets["FACP"]])
    command = ["iasl", "-d", "dsdt.aml"]
    result = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=60)
    report = result.stdout + result.stderr
    assert "Error" not in report
    assert "Warning" not in report
    return (directory / "dsdt.dsl").read_text()


@IASL
def test_dsdt_compiles_again_without_errors(tmp_path: Path) -> None:
    disassembled(tmp_path, machine_info(4))
    command = ["iasl", "-vw", "3168", "-tc", "dsdt.dsl"]  # 3168: Processor () is deprecated, and older systems need it
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert "0 Errors, 0 Warnings" in result.stdout + result.stderr


@IASL
def test_dsdt_routes_interrupts_as_the_board_does(tmp_path: Path) -> None:
    source = " ".join(disassembled(tmp_path, machine_info()).split())
    for slot, pin, link in ((1, "Zero", "LNKS"), (1, "0x03", "LNKD"), (2, "Zero", "LNKB"), (3, "Zero", "LNKC")):
        assert f"Package (0x04) {{ 0x{slot:04X}FFFF, {pin}, {link}, Zero }}" in source
    assert "Package (0x04) { 0x001FFFFF, 0x03, LNKB, Zero }" in source
    assert source.count("Package (0x04) { 0x00") == 31 * 4


@IASL
def test_dsdt_devices(tmp_path: Path) -> None:
    source = disassembled(tmp_path, replace(machine_info(256), high_ram_end=5 << 30))
    for part in ("Device (COM1)", "Device (COM2)", "Device (KBD)", "Device (MOU)", "Device (RTC)", "Device (HPET)"):
        assert part in source
    assert "Processor (C000, 0x00, 0x00000000, 0x00)" in source
    assert "Processor (C0FE, 0xFE, 0x00000000, 0x00)" in source
    assert "Device (C0FF)" in source
    assert "0x0000000140000000, // Range Minimum" in source  # 64-bit window behind high RAM
    assert "0x04000000,         // Range Minimum" in source  # PCI hole behind low RAM


def test_checksum() -> None:
    assert acpi.checksum(b"\1\2\3") == 250
    assert acpi.checksum(b"") == 0
