"""Int 13h on floppy drives and hard disks."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bios.drives import Geometry, drive_geometry, floppy_format, translate
from pyvm.firmware.bios.machine import BiosDisk
from tests.unit.bios_rig import BUFFER, MemoryDisk, Rig, hard_disk

SECTOR = 512


def numbered(sectors: int) -> MemoryDisk:
    return MemoryDisk(b"".join(number.to_bytes(4, "little") * 128 for number in range(sectors)))


def rig_with(sectors: int = 16 * 63 * 10, **values: object) -> tuple[Rig, MemoryDisk]:
    disk = numbered(sectors)
    return Rig([hard_disk(disk, **values)]), disk


def packet(rig: Rig, count: int, lba: int, *, size: int = 16, segment: int = 0, offset: int = BUFFER) -> int:
    rig.memory.write(0x8000, struct.pack("<BBHHHQ", size, 0, count, offset, segment, lba))
    return 0x8000


def test_read_by_cylinder_head_and_sector() -> None:
    rig, _ = rig_with()
    registers = rig.call(0x13, eax=0x0202, ebx=BUFFER, ecx=0x0205, edx=0x0380)
    assert (registers.ax, rig.carry) == (0x0002, False)
    first = (2 * 16 + 3) * 63 + 4
    assert rig.memory.read_u32(BUFFER) == first
    assert rig.memory.read_u32(BUFFER + SECTOR) == first + 1


def test_write_and_verify() -> None:
    rig, disk = rig_with()
    rig.memory.write(BUFFER, b"new!" * 128)
    assert rig.call(0x13, eax=0x0301, ebx=BUFFER, ecx=0x0002, edx=0x80).ax == 1
    assert disk.data[SECTOR : 2 * SECTOR] == b"new!" * 128
    assert rig.call(0x13, eax=0x0401, ecx=0x0002, edx=0x80).ah == 0


@pytest.mark.parametrize(
    ("eax", "ecx", "edx"),
    [
        (0x0200, 0x0001, 0x0080),  # nothing
        (0x0281, 0x0001, 0x0080),  # more than a DMA channel moves
        (0x0201, 0x0000, 0x0080),  # sectors count from 1
        (0x0201, 0x0001, 0x1080),  # heads 0-15
        (0x0201, 0x0A01, 0x0080),  # cylinders 0-9
        (0x0201, 0x0001, 0x0081),  # no such drive
        (0x0201, 0x0001, 0x0000),
        (0x0202, 0x093F, 0x0F80),  # the last sector and one more
        (0x7700, 0x0001, 0x0080),  # no such function
    ],
)
def test_bad_parameters(eax: int, ecx: int, edx: int) -> None:
    rig, _ = rig_with()
    registers = rig.call(0x13, eax=eax, ebx=BUFFER, ecx=ecx, edx=edx)
    assert (registers.ah, rig.carry) == (0x01, True)
    # The status is kept for AH=01.
    status = rig.call(0x13, eax=0x0100, edx=edx)
    assert (status.ah, rig.carry) == (0x01, True)


def test_memory_that_is_not_there() -> None:
    rig, _ = rig_with()
    registers = rig.call(0x13, eax=0x0240, ebx=0xF000, es=0x9000, ecx=1, edx=0x80)
    assert (registers.ah, registers.al, rig.carry) == (0x09, 0, True)


def test_reads_may_go_to_the_screen() -> None:
    disk = numbered(10080)
    rig = Rig([hard_disk(disk)], vga=True)
    registers = rig.call(0x13, eax=0x0201, ebx=0, es=0xB800, ecx=2, edx=0x80)
    assert registers.ah == 0
    assert rig.mmio.read(0xB8000, 4) == 1


def test_errors_of_the_medium() -> None:
    rig, disk = rig_with()
    disk.broken = True
    assert rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=0x80).ah == 0x20
    disk.broken = False
    disk.read_only = True
    assert rig.call(0x13, eax=0x0301, ebx=BUFFER, ecx=1, edx=0x80).ah == 0x03
    disk.data.clear()
    assert rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=0x80).ah == 0xAA
    assert rig.call(0x13, eax=0x1000, edx=0x80).ah == 0xAA


def test_parameters_keep_back_a_cylinder() -> None:
    rig, _ = rig_with(16 * 63 * 100)
    registers = rig.call(0x13, eax=0x0800, edx=0x80)
    assert (registers.ch, registers.cl, registers.dh, registers.dl) == (98, 63, 15, 1)
    registers = rig.call(0x13, eax=0x1500, edx=0x80)
    assert registers.ah == 3
    assert registers.cx << 16 | registers.dx == 99 * 16 * 63
    assert rig.bda(0x75) == 1


class TestEdd:
    def test_check(self) -> None:
        rig, _ = rig_with()
        registers = rig.call(0x13, eax=0x4100, ebx=0x55AA, edx=0x80)
        assert (registers.ah, registers.bx, registers.cx, rig.carry) == (0x30, 0xAA55, 7, False)
        rig.call(0x13, eax=0x4100, ebx=0x1111, edx=0x80)
        assert rig.carry

    def test_read_and_write(self) -> None:
        rig, disk = rig_with()
        assert rig.call(0x13, eax=0x4200, esi=packet(rig, 127, 9000), edx=0x80).ah == 0
        assert rig.memory.read_u32(BUFFER + 126 * SECTOR) == 9126
        assert rig.call(0x13, eax=0x4300, esi=packet(rig, 3, 5), edx=0x80).ah == 0
        assert disk.data[5 * SECTOR : 5 * SECTOR + 4] == (9000).to_bytes(4, "little")
        assert rig.call(0x13, eax=0x4400, esi=packet(rig, 3, 5), edx=0x80).ah == 0
        assert rig.call(0x13, eax=0x4700, esi=packet(rig, 3, 5), edx=0x80).ah == 0

    def test_flat_address(self) -> None:
        rig, _ = rig_with()
        place = packet(rig, 1, 7, size=0x18, segment=0xFFFF, offset=0xFFFF)
        rig.memory.write_u64(place + 0x10, 0x200000)
        assert rig.call(0x13, eax=0x4200, esi=place, edx=0x80).ah == 0
        assert rig.memory.read_u32(0x200000) == 7

    @pytest.mark.parametrize("lba", [10080, 10079, 1 << 63, (1 << 64) - 1])
    def test_beyond_the_end(self, lba: int) -> None:
        rig, _ = rig_with()
        place = packet(rig, 2, lba)
        assert rig.call(0x13, eax=0x4200, esi=place, edx=0x80).ah == 1
        assert rig.memory.read_u16(place + 2) == 0  # nothing was moved

    def test_packets_must_be_whole(self) -> None:
        rig, _ = rig_with()
        assert rig.call(0x13, eax=0x4200, esi=packet(rig, 1, 0, size=15), edx=0x80).ah == 1

    @pytest.mark.parametrize(("room", "size"), [(26, 26), (29, 26), (30, 30), (66, 30), (200, 30)])
    def test_parameters(self, room: int, size: int) -> None:
        rig, _ = rig_with()
        rig.memory.write(BUFFER, struct.pack("<H", room) + b"\xee" * 80)
        assert rig.call(0x13, eax=0x4800, esi=BUFFER, edx=0x80).ah == 0
        values = struct.unpack("<HHIIIQH", rig.memory.read(BUFFER, 26))
        assert values == (size, 2, 10, 16, 63, 10080, 512)
        assert rig.memory.read(BUFFER + size, 1) == b"\xee"

    def test_path_and_register_table_of_an_ide_drive(self) -> None:
        rig, _ = rig_with(interface="ide", pci_address=0x0009, channel=1, unit=1)
        rig.memory.write(BUFFER, struct.pack("<H", 66))
        rig.call(0x13, eax=0x4800, esi=BUFFER, edx=0x80)
        data = rig.memory.read(BUFFER, 66)
        assert struct.unpack_from("<H", data)[0] == 66
        offset, segment = struct.unpack_from("<HH", data, 26)
        table = rig.memory.read(segment * 16 + offset, 16)
        assert struct.unpack_from("<HHB", table) == (0x170, 0x376, 0xF0)
        assert sum(table) & 0xFF == 0
        path = data[30:66]
        assert path[:3] == b"\xdd\xbe\x24"
        assert path[6:18] == b"PCI ATA     "
        assert path[18:21] == bytes((0, 1, 1))
        assert path[26] == 1
        assert sum(path) & 0xFF == 0

    def test_too_little_room_for_parameters(self) -> None:
        rig, _ = rig_with()
        rig.memory.write_u16(BUFFER, 25)
        assert rig.call(0x13, eax=0x4800, esi=BUFFER, edx=0x80).ah == 1

    def test_hard_disks_are_not_removable(self) -> None:
        rig, _ = rig_with()
        assert [rig.call(0x13, eax=function << 8, edx=0x80).ah for function in (0x45, 0x46, 0x49)] == [0, 0xB2, 0]


class TestFloppy:
    def rig(self) -> tuple[Rig, MemoryDisk]:
        disk = numbered(2880)
        return Rig([BiosDisk("floppy", disk, "floppy", interface="floppy")]), disk

    def test_parameters(self) -> None:
        rig, _ = self.rig()
        registers = rig.call(0x13, eax=0x0800)
        assert (registers.bl, registers.ch, registers.cl, registers.dh, registers.dl) == (4, 79, 18, 1, 1)
        assert (registers.es, registers.di) == (0xF000, 0xEFC7)
        assert rig.call(0x11).ax & 0xC1 == 0x01

    def test_read(self) -> None:
        rig, _ = self.rig()
        assert rig.call(0x13, eax=0x0212, ebx=BUFFER, ecx=0x4F01, edx=0x0100).ax == 0x12
        assert rig.memory.read_u32(BUFFER) == 79 * 36 + 18

    def test_another_diskette_has_its_own_geometry(self) -> None:
        rig, disk = self.rig()
        disk.data[:] = bytes(1440 * SECTOR)
        assert rig.call(0x13, eax=0x0800).cl == 9

    def test_format(self) -> None:
        rig, disk = self.rig()
        rig.memory.write(BUFFER, b"".join(bytes((3, 1, sector, 2)) for sector in range(1, 19)))
        assert rig.call(0x13, eax=0x0512, ebx=BUFFER, ecx=0x0301, edx=0x0100).ah == 0
        assert disk.data[7 * 18 * SECTOR : 8 * 18 * SECTOR] == b"\xf6" * 18 * SECTOR
        assert disk.data[8 * 18 * SECTOR] == 8 * 18 & 0xFF
        rig.memory.write(BUFFER, b"\3\1\x13\2")
        assert rig.call(0x13, eax=0x0512, ebx=BUFFER, ecx=0x0301, edx=0x0100).ah == 0x02

    def test_enhanced_functions_are_for_disks(self) -> None:
        rig, _ = self.rig()
        rig.call(0x13, eax=0x4100, ebx=0x55AA)
        assert rig.carry

    def test_media_types(self) -> None:
        rig, _ = self.rig()
        assert rig.call(0x13, eax=0x1800, ecx=0x4F12).ah == 0
        assert rig.call(0x13, eax=0x1800, ecx=0x4F09).ah == 0x0C
        assert rig.call(0x13, eax=0x1600).ah == 0x06

    def test_formats_by_size(self) -> None:
        assert floppy_format(360 * 1024).geometry == Geometry(40, 2, 9)
        assert floppy_format(2880 * 1024).drive_type == 5
        assert floppy_format(12345).geometry == Geometry(80, 2, 18)


class TestGeometry:
    """The results of SeaBIOS on QEMU's virtio-blk and IDE for the same sizes."""

    @pytest.mark.parametrize(
        ("mebibytes", "shown"),
        [
            (8, Geometry(16, 16, 63)),
            (600, Geometry(609, 32, 63)),
            (3000, Geometry(761, 128, 63)),
            (10240, Geometry(1024, 255, 63)),
        ],
    )
    def test_translation(self, mebibytes: int, shown: Geometry) -> None:
        sectors = mebibytes << 11
        assert translate(drive_geometry(sectors, bytes(512)), sectors) == shown

    def test_partitions_tell(self) -> None:
        mbr = bytearray(512)
        mbr[510:] = b"\x55\xaa"
        mbr[0x1BE : 0x1BE + 16] = struct.pack("<BBBBBBBBII", 0, 1, 1, 0, 6, 7, 32, 9, 32, 1000)
        assert drive_geometry(8 * 32 * 100, mbr) == Geometry(100, 8, 32)

    @given(st.integers(0, 1 << 40), st.binary(min_size=66, max_size=66))
    @settings(max_examples=200, deadline=None)
    def test_any_partition_table(self, sectors: int, table: bytes) -> None:
        boot_sector = bytes(446) + table[:-2] + b"\x55\xaa"
        shown = translate(drive_geometry(sectors, boot_sector), sectors)
        assert 1 <= shown.cylinders <= 1024
        assert 1 <= shown.heads <= 255
        assert 1 <= shown.sectors <= 63


def test_disks_are_numbered_as_they_boot() -> None:
    def disk(tag: int) -> MemoryDisk:
        return MemoryDisk(bytes((tag,)) * (1 << 20))

    rig = Rig(
        [
            hard_disk(disk(1)),
            hard_disk(disk(2), interface="ide"),
            hard_disk(disk(3), bootindex=5),
            hard_disk(disk(4), bootindex=0),
        ]
    )
    found = []
    for number in range(0x80, 0x84):
        rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=number)
        found.append(rig.memory.read(BUFFER, 1)[0])
    assert found == [4, 3, 2, 1]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_registers(data: st.DataObject) -> None:
    word = st.integers(0, 0xFFFF)
    rig = RIG_FOR_FUZZ
    rig.memory.write(BUFFER, data.draw(st.binary(min_size=64, max_size=64)))
    function = data.draw(st.sampled_from((2, 3, 4, 5, 8, 0x15, 0x18, 0x41, 0x42, 0x43, 0x44, 0x47, 0x48, 0x4B)))
    registers = rig.call(
        0x13,
        eax=function << 8 | data.draw(st.integers(0, 255)),
        ebx=data.draw(word),
        ecx=data.draw(word),
        edx=data.draw(word) & 0xFF00 | data.draw(st.sampled_from((0, 1, 0x80, 0x81, 0xE0))),
        esi=data.draw(st.sampled_from((BUFFER, 0xFFFF, 0))),
        ds=data.draw(st.sampled_from((0, 0xFFFF, 0xA000))),
        es=data.draw(word),
    )
    assert rig.carry == bool(registers.ah) or function in (0x15, 0x41)
    assert [disk.backend.size for disk in rig.bios.core.machine.disks] == [4096 * SECTOR, 2880 * SECTOR]


RIG_FOR_FUZZ = Rig([hard_disk(numbered(4096)), BiosDisk("floppy", numbered(2880), "floppy", interface="floppy")])
