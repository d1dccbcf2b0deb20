"""ATA disks on their channel: registers, PIO, settings and errors."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.backend import BlockBackend
from pyvm.devices.ide.disk import IdeDisk
from pyvm.devices.ide.geometry import Geometry, by_size, guess
from tests.unit.ide_rig import (
    BASE,
    BSY,
    CONTROL,
    DRDY,
    DRQ,
    DSC,
    ERR,
    Board,
    MemoryNode,
    SteppedContext,
    disk,
    node_of,
    pattern,
)

READY = DRDY | DSC
ATA = BASE[0]


def words(board: Board, base: int = ATA) -> list[int]:
    return list(struct.unpack("<256H", board.read_data(512, base=base)))


def text(values: list[int]) -> str:
    return struct.pack(f">{len(values)}H", *values).decode().rstrip()


def test_power_on_signature() -> None:
    board = Board(d0=disk())
    assert board.registers() == (0, 1, 1, 0, 0, 0xA0)
    assert board.inp(ATA + 7) == READY
    board.out(ATA + 6, 0xB0)
    assert board.inp(ATA + 7) == 0
    assert board.inp(CONTROL[0]) == 0


def test_channel_without_drives_reads_zero() -> None:
    board = Board(d0=disk())
    for unit in (0xA0, 0xB0):
        board.out(BASE[1] + 6, unit)
        board.out(BASE[1] + 2, 0x55)
        assert [board.inp(BASE[1] + offset) for offset in range(1, 8)] == [0] * 7
        board.out(BASE[1] + 7, 0xEC)
        assert board.inp(BASE[1] + 7) == 0
        assert board.edges == [0, 0]


def test_registers_are_written_in_both_drives() -> None:
    board = Board(d0=disk(), d1=disk())
    board.out(ATA + 2, 0x55)
    board.out(ATA + 6, 0xB0)
    assert board.inp(ATA + 2) == 0x55
    assert board.inp(ATA + 6) == 0xB0


def test_register_accesses_of_other_sizes() -> None:
    board = Board(d0=disk())
    board.out(ATA + 2, 0x1234, 2)
    assert board.inp(ATA + 2) == 0x34
    assert board.inp(ATA + 3) == 0x12
    assert board.inp(ATA + 2, 4) == 0x00001234
    assert board.inp(ATA, 1) == 0xFF


def test_identify() -> None:
    board = Board(d0=disk(1008 * 4, wwn=0x5000_1122_3344_5566, physical_block_size=4096, rotation_rate=1))
    assert board.command(0xEC, device=0xA0) == READY | DRQ
    assert board.edges[0] == 1
    data = words(board)
    assert board.inp(ATA + 7) == READY
    assert board.edges[0] == 1
    assert text(data[10:20]) == "QM00001"
    assert text(data[23:27]) == "2.5+"
    assert text(data[27:47]) == "QEMU HARDDISK"
    assert (data[1], data[3], data[6]) == (4, 16, 63)
    assert data[47] & 0xFF == 16
    assert data[49] == 0x0B00
    assert data[60] | data[61] << 16 == 1008 * 4
    assert data[100] | data[101] << 16 == 1008 * 4
    assert data[83] & 0x0400
    assert data[88] == 0x203F
    assert data[106] == 0x6003
    assert data[108:112] == [0x5000, 0x1122, 0x3344, 0x5566]
    assert data[217] == 1
    assert data[169] == 1
    assert board.inp(ATA, 2) == 0


def test_serial_by_place_and_by_property() -> None:
    board = Board(d1=disk(serial="S-1", model="M", version="9"), d2=disk())
    board.command(0xEC, device=0xB0)
    data = words(board)
    assert (text(data[10:20]), text(data[27:47]), text(data[23:27])) == ("S-1", "M", "9")
    board.command(0xEC, device=0xA0, base=BASE[1])
    assert text(words(board, BASE[1])[10:20]) == "QM00003"
    assert board.edges == [1, 1]


@pytest.mark.parametrize("size", [2, 4])
def test_read_by_pio(size: int) -> None:
    drive = disk(300)
    board = Board(d0=drive)
    assert board.command(0x20, lba=7, count=3) == READY | DRQ
    got = b""
    for _ in range(3):
        got += board.read_data(512, size)
        board.inp(ATA + 7)
    assert got == pattern(300)[7 * 512 : 10 * 512]
    assert board.inp(ATA + 7) == READY
    assert board.edges[0] == 3
    assert node_of(drive).calls[1:] == [("read", 7, 3)]


def test_read_256_sectors_in_multiple_blocks() -> None:
    board = Board(d0=disk(300))
    assert board.command(0xC6, count=16) == READY
    assert board.command(0xC4, lba=1, count=0) == READY | DRQ
    got = b""
    while board.inp(ATA + 7) & DRQ:
        got += board.read_data(16 * 512, 4)
    assert got == pattern(300)[512 : 257 * 512]
    assert board.edges[0] == 17


def test_multiple_with_a_short_last_block() -> None:
    drive = disk(300)
    board = Board(d0=drive)
    board.command(0xC6, count=4)
    assert board.command(0xC5, lba=2, count=6) == READY | DRQ
    assert board.edges[0] == 1
    board.write_data(b"a" * 2048)
    assert board.inp(ATA + 7) == READY | DRQ
    board.write_data(b"b" * 1024)
    assert board.inp(ATA + 7) == READY
    assert board.edges[0] == 3
    assert node_of(drive).data[1024 : 1024 + 3072] == b"a" * 2048 + b"b" * 1024


def test_write_by_pio() -> None:
    drive = disk()
    board = Board(d0=drive)
    assert board.command(0x30, lba=5, count=2) == READY | DRQ
    assert board.edges[0] == 0
    board.write_data(b"x" * 512)
    assert board.edges[0] == 1
    assert board.inp(ATA + 7) == READY | DRQ
    board.write_data(b"y" * 512, 4)
    assert board.inp(ATA + 7) == READY
    assert node_of(drive).data[5 * 512 : 7 * 512] == b"x" * 512 + b"y" * 512


def test_lba48_and_high_order_bytes() -> None:
    board = Board(d0=disk(100))
    assert board.command(0x24, lba=3, count=1, extended=True) == READY | DRQ
    board.read_data(512)
    assert board.command(0x24, lba=1 << 40, count=1, extended=True) == DRDY | ERR
    assert board.inp(ATA + 1) == 0x10
    board.out(ATA + 4, 0x12)
    board.out(ATA + 4, 0x34)
    board.out(CONTROL[0], 0x80)
    assert board.inp(ATA + 4) == 0x12
    board.out(ATA + 2, 0)
    assert board.inp(ATA + 4) == 0x34


def test_chs() -> None:
    board = Board(d0=disk(1008 * 3))
    # cylinder 1, head 2, sector 3
    assert board.command(0x20, lba=0x000103, count=1, device=0xA2) == READY | DRQ
    at = 1008 + 2 * 63 + 2
    assert board.read_data(512) == pattern(1008 * 3)[at * 512 : (at + 1) * 512]
    assert board.command(0x20, lba=0x000100, count=1, device=0xA0) == DRDY | ERR
    board.command(0x91, count=9, device=0xA1)
    assert board.command(0x20, lba=0x000103, count=1, device=0xA1) == READY | DRQ
    at = (1 * 2 + 1) * 9 + 2
    assert board.read_data(512) == pattern(1008 * 3)[at * 512 : (at + 1) * 512]
    assert board.command(0x20, lba=0x000101, count=1, device=0xA2) == DRDY | ERR


def test_error_tells_the_bad_sector() -> None:
    drive = disk()
    node_of(drive).bad = {9}
    board = Board(d0=drive)
    board.command(0x20, lba=7, count=6)
    assert board.read_data(512) == pattern(64)[7 * 512 : 8 * 512]
    assert board.inp(ATA + 7) == READY | DRQ
    board.read_data(512)
    assert board.inp(ATA + 7) == DRDY | ERR
    assert board.registers() == (0x40, 4, 9, 0, 0, 0xE0)
    board.command(0x30, lba=9, count=1)
    board.write_data(bytes(512))
    assert board.inp(ATA + 7) == DRDY | ERR
    assert board.inp(ATA + 1) == 0x04


def test_unknown_commands_and_those_of_others_abort() -> None:
    board = Board(d0=disk())
    for command in (0x00, 0x08, 0x87, 0xA0, 0xA1, 0xC0, 0xF1, 0xFF):
        assert board.command(command) == DRDY | ERR
        assert board.inp(ATA + 1) == 0x04
    assert board.edges[0] == 8


def test_interrupt_waits_for_nien_and_selection() -> None:
    board = Board(d0=disk(), d1=disk())
    board.out(CONTROL[0], 0x02)
    board.out(ATA + 6, 0xA0)
    board.out(ATA + 7, 0xE7)
    assert board.edges[0] == 0
    board.out(CONTROL[0], 0x00)
    assert board.irqs[0].level
    board.out(ATA + 6, 0xB0)
    assert not board.irqs[0].level
    board.out(ATA + 6, 0xA0)
    assert board.irqs[0].level
    board.inp(CONTROL[0])
    assert board.irqs[0].level
    board.inp(ATA + 7)
    assert not board.irqs[0].level


def test_software_reset() -> None:
    context = SteppedContext()
    drive = disk(context=context)
    board = Board(d0=drive)
    board.out(ATA + 6, 0xE0)
    board.out(ATA + 2, 1)
    board.out(ATA + 7, 0x20)
    assert board.inp(ATA + 7) & BSY
    board.out(CONTROL[0], 0x04)
    assert board.inp(CONTROL[0]) == BSY
    board.out(ATA + 7, 0xEC)
    board.out(CONTROL[0], 0x00)
    assert board.registers() == (1, 1, 1, 0, 0, 0xA0)
    assert board.inp(CONTROL[0]) == READY
    assert board.edges[0] == 0
    assert not context.queue


def test_diagnostic_answers_for_both() -> None:
    board = Board(d0=disk(), d1=disk())
    board.out(ATA + 6, 0xB0)
    board.out(ATA + 7, 0x90)
    assert board.irqs[0].level
    assert board.registers() == (1, 1, 1, 0, 0, 0xA0)
    assert board.inp(ATA + 7) == READY


def test_busy_until_the_back_end_is_done() -> None:
    context = SteppedContext()
    board = Board(d0=disk(context=context))
    assert board.command(0xE7) & BSY
    board.out(ATA + 2, 0x77)  # not while busy
    board.out(ATA + 7, 0xEC)
    context.run()
    assert board.inp(ATA + 7) == READY
    assert board.inp(ATA + 2) == 0


def test_power_modes() -> None:
    board = Board(d0=disk())

    def mode() -> int:
        board.command(0xE5)
        return board.inp(ATA + 2)

    assert mode() == 0xFF
    board.command(0xE0)
    assert mode() == 0
    board.command(0x20, count=1)
    board.read_data(512)
    assert mode() == 0xFF
    board.command(0xE6)
    assert board.command(0xEC) == READY  # asleep
    board.out(CONTROL[0], 4)
    board.out(CONTROL[0], 0)
    assert board.command(0xEC) == READY | DRQ


def test_set_features() -> None:
    drive = disk()
    board = Board(d0=drive)
    assert board.command(0xEF, features=0x03, count=0x45) == READY
    board.command(0xEC)
    assert words(board)[88] == 0x203F
    assert board.command(0xEF, features=0x03, count=0x22) == READY
    board.command(0xEC)
    data = words(board)
    assert (data[63], data[88]) == (0x0407, 0x003F)
    assert board.command(0xEF, features=0x03, count=0x47) == DRDY | ERR
    assert board.command(0xEF, features=0x77) == DRDY | ERR
    assert board.command(0xEF, features=0x82) == READY
    assert not drive.backend.write_cache
    assert node_of(drive).calls[-1][0] == "flush"
    board.command(0xEC)
    assert not words(board)[85] & 0x20
    board.ide.reset()
    assert drive.backend.write_cache


def test_set_multiple_refuses() -> None:
    board = Board(d0=disk())
    for count in (3, 32, 255):
        assert board.command(0xC6, count=count) == DRDY | ERR
    assert board.command(0xC6, count=0) == READY
    assert board.command(0xC4, count=1) == DRDY | ERR


def test_native_max_seek_and_verify() -> None:
    drive = disk(300)
    board = Board(d0=drive)
    board.command(0xF8)
    assert board.registers()[2:5] == (299 & 0xFF, 1, 0)
    board.command(0x27, extended=True)
    assert board.registers()[2:5] == (299 & 0xFF, 1, 0)
    assert board.command(0x70, lba=299) == READY
    assert board.command(0x70, lba=300) == DRDY | ERR
    assert board.command(0x40, lba=0, count=0) == READY
    assert [call for call in node_of(drive).calls[1:] if call[0] == "read"] == [("read", 0, 128), ("read", 128, 128)]
    node_of(drive).bad = {200}
    assert board.command(0x42, count=300, extended=True) == DRDY | ERR
    assert board.inp(ATA + 1) == 0x40


def test_smart() -> None:
    board = Board(d0=disk())
    key = 0xC24F00

    def smart(features: int, count: int = 0, low: int = 0) -> int:
        return board.command(0xB0, features=features, count=count, lba=key | low)

    assert board.command(0xB0, features=0xDA) == DRDY | ERR
    assert smart(0xDA) == READY
    assert board.registers()[3:5] == (0x4F, 0xC2)
    for function, count, low in ((0xD0, 0, 0), (0xD1, 0, 0), (0xD5, 1, 1), (0xD5, 1, 6)):
        assert smart(function, count, low) == READY | DRQ
        assert sum(board.read_data(512)) & 0xFF == 0
    assert smart(0xD4, 0, 2) == READY
    smart(0xD5, 1, 6)
    log = board.read_data(512)
    assert (log[2], log[508]) == (2, 1)
    assert smart(0xD4, 0, 9) == DRDY | ERR
    assert smart(0xD5, 2, 1) == DRDY | ERR
    assert smart(0xD2, 0xF1) == READY
    assert smart(0xD9) == READY
    assert smart(0xD0) == DRDY | ERR
    assert smart(0xD8) == READY


def test_resized_disk() -> None:
    drive = disk(64)
    board = Board(d0=drive)
    assert board.command(0x20, lba=70, count=1) == DRDY | ERR
    node_of(drive).data += bytes(64 * 512)
    drive.resized()
    assert board.command(0x20, lba=70, count=1) == READY | DRQ


def test_properties_that_cannot_be() -> None:
    for options in (
        {"logical_block_size": 4096},
        {"physical_block_size": 1000},
        {"serial": "s" * 21},
        {"model": "m" * 41},
        {"version": "\N{EURO SIGN}"},
        {"geometry": Geometry(1, 17, 63)},
    ):
        with pytest.raises(ValueError, match=r"."):
            disk(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        IdeDisk(BlockBackend(MemoryNode(bytes(512)), read_only=True))
    board = Board(d0=disk())
    with pytest.raises(ValueError, match="in use"):
        board.ide.channels[0].attach(0, disk())
    with pytest.raises(ValueError, match="supports only 2"):
        board.ide.channels[0].attach(2, disk())


def test_geometry() -> None:
    assert by_size(0) == Geometry(2, 16, 63)
    assert by_size(1 << 40) == Geometry(16383, 16, 63, "lba")

    def table(head: int, sector: int) -> bytes:
        return (bytes(446) + struct.pack("<8BII", 0, 0, 1, 0, 0x83, head, sector, 9, 63, 1000)).ljust(
            510, b"\0"
        ) + b"\x55\xaa"

    assert guess(table(7, 32), 8 * 32 * 100) == Geometry(100, 8, 32)
    assert guess(table(254, 63), 1 << 21) == Geometry(2080, 16, 63, "large")
    assert guess(table(254, 63), 1 << 24) == Geometry(16383, 16, 63, "lba")
    assert guess(table(0, 0), 1 << 16) == by_size(1 << 16)
    assert guess(bytes(512), 1 << 16) == by_size(1 << 16)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=512), st.integers(0, 1 << 50))
def test_any_boot_sector_gives_a_geometry(sector: bytes, size: int) -> None:
    found = guess(sector, size)
    assert 1 <= found.cylinders <= 16383
    assert 1 <= found.heads <= 16
    assert 1 <= found.sectors <= 63


def test_io_status_is_shown() -> None:
    assert disk().backend.io_status_enabled
