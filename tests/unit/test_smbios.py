"""SMBIOS tables."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import smbios
from pyvm.firmware.errors import BootError
from pyvm.firmware.machine_info import MachineInfo, Processor, SystemStrings
from pyvm.records import replace

GIB = 1 << 30
TABLES_AT = 0xF1000


def machine_info(cpus: int = 2, low: int = GIB // 2, high: int = 4 * GIB, **system: Any) -> MachineInfo:
    strings = replace(SystemStrings(), **system)
    units = tuple(Processor(number) for number in range(cpus))
    return MachineInfo(processors=units, low_ram_end=low, high_ram_end=high, system=strings)


def parse(data: bytes) -> list[tuple[int, int, bytes, list[str]]]:
    """Return (type, handle, formatted area, strings) of each structure, as a system reads them."""
    found, position = [], 0
    while position < len(data):
        kind, length, handle = struct.unpack_from("<BBH", data, position)
        area = data[position : position + length]
        end = data.index(b"\0\0", position + length)
        text = data[position + length : end]
        found.append((kind, handle, area, [part.decode() for part in text.split(b"\0")] if text else []))
        position = end + 2
    return found


def of_type(info: MachineInfo, kind: int) -> list[tuple[bytes, list[str]]]:
    return [(area, strings) for found, _, area, strings in parse(smbios.build(info).structures) if found == kind]


@settings(max_examples=60, deadline=None)
@given(
    cpus=st.integers(1, 300),
    per_socket=st.integers(1, 300),
    high=st.integers(4096, 1 << 20),
    manufacturer=st.text(max_size=25),
    serial=st.text(max_size=40),
)
def test_any_machine_gives_a_table_that_can_be_read(
    cpus: int, per_socket: int, high: int, manufacturer: str, serial: str
) -> None:
    info = machine_info(cpus, high=high << 20, manufacturer=manufacturer, serial=serial)
    tables = smbios.build(replace(info, cores_per_socket=per_socket))
    found = parse(tables.structures)
    assert len(found) == tables.count
    assert found[-1][:2] == (127, 0x7F00)
    assert len({handle for _, handle, _, _ in found}) == len(found)
    entry = tables.entry_point(TABLES_AT)
    assert len(entry) == entry[5] == 31
    assert sum(entry) & 0xFF == sum(entry[16:]) & 0xFF == 0
    assert struct.unpack_from("<HIH", entry, 22) == (len(tables.structures), TABLES_AT, tables.count)
    assert struct.unpack_from("<H", entry, 8)[0] == tables.largest


def test_tables_too_long_for_the_entry_point() -> None:
    with pytest.raises(BootError, match="SMBIOS tables take"):
        smbios.build(machine_info(1000))


def test_structure_lengths_are_those_of_2_8() -> None:
    lengths = {kind: len(area) for kind, _, area, _ in parse(smbios.build(machine_info()).structures)}
    assert lengths == {0: 24, 1: 27, 3: 22, 4: 42, 16: 23, 17: 40, 19: 31, 32: 11, 127: 4}
    assert smbios.build(machine_info()).entry_point(0)[6:8] == b"\2\x08"


def test_system() -> None:
    name = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    ((area, strings),) = of_type(machine_info(uuid=name.bytes, serial="S1"), 1)
    assert strings == ["QEMU", "Standard PC (i440FX + PIIX, 1996)", "pc-i440fx-7.2", "S1"]
    assert area[8:24] == name.bytes_le
    assert area[24:] == b"\x06\0\0"


def test_one_processor_structure_a_socket() -> None:
    info = replace(machine_info(6), cores_per_socket=2, threads_per_core=2, cpu_signature=0x663, cpu_features=0x78BFBFD)
    found = of_type(info, 4)
    assert [strings[0] for _, strings in found] == ["CPU 0", "CPU 1"]
    area = found[0][0]
    assert struct.unpack_from("<II", area, 8) == (0x663, 0x78BFBFD)
    assert (area[0x23], area[0x25]) == (2, 4)


def test_memory_of_a_small_machine() -> None:
    ((area, strings),) = of_type(machine_info(), 17)
    assert struct.unpack_from("<H", area, 12)[0] == 512
    assert strings[0] == "DIMM 0"
    ((array, _),) = of_type(machine_info(), 16)
    assert struct.unpack_from("<I", array, 7)[0] == 512 * 1024
    ((mapped, _),) = of_type(machine_info(), 19)
    assert struct.unpack_from("<II", mapped, 4) == (0, 512 * 1024 - 1)


def test_memory_of_a_large_machine() -> None:
    info = machine_info(low=3 * GIB, high=4 * GIB + 37 * GIB)
    sizes = [struct.unpack_from("<H", area, 12)[0] for area, _ in of_type(info, 17)]
    assert sizes == [16384, 16384, 8192]
    mapped = [struct.unpack_from("<II", area, 4) for area, _ in of_type(info, 19)]
    assert mapped == [(0, 3 * GIB // 1024 - 1), (4 * GIB // 1024, 41 * GIB // 1024 - 1)]


def test_memory_beyond_the_32_bit_fields() -> None:
    info = machine_info(low=3 * GIB, high=6000 * GIB)
    ((array, _),) = of_type(info, 16)
    assert struct.unpack_from("<I", array, 7)[0] == 0x80000000
    assert struct.unpack_from("<Q", array, 15)[0] == info.ram_size
    mapped = of_type(info, 19)[1][0]
    assert struct.unpack_from("<II", mapped, 4) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert struct.unpack_from("<QQ", mapped, 15) == (4 * GIB, 6000 * GIB - 1)


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="dmidecode is not installed")
def test_dmidecode_reads_it(tmp_path: Path) -> None:
    tables = smbios.build(machine_info())
    image = tables.entry_point(32).ljust(32, b"\0") + tables.structures  # dmidecode's dump format
    (tmp_path / "dump").write_bytes(image)
    command = ["dmidecode", "--from-dump", "dump"]
    report = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "SMBIOS 2.8 present." in report
    assert "Product Name: Standard PC (i440FX + PIIX, 1996)" in report
    assert "Size: 512 MB" in report
    assert "<BAD" not in report
