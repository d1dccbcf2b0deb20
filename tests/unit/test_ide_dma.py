"""The bus-master engines: descriptors, both directions, ends and errors."""

from __future__ import annotations

import struct

import pytest

from pyvm.devices.pci import constants as pci
from tests.unit.ide_rig import (
    BASE,
    BM,
    BSY,
    CONTROL,
    DRDY,
    DRQ,
    DSC,
    ERR,
    RAM,
    TABLE,
    Board,
    SteppedContext,
    disk,
    node_of,
    pattern,
)

READY = DRDY | DSC
ATA = BASE[0]
DATA = 0x10000
ACTIVE, ERROR, INTERRUPT, CAPABLE = 1, 2, 4, 0x60


def status(board: Board) -> int:
    return board.inp(BM + 2) & ~CAPABLE


def test_configuration_space() -> None:
    board = Board()
    assert board.ide.config_read(0, 4) == 0x70108086
    assert board.ide.config_read(8, 4) == 0x01018000
    assert board.ide.config_read(pci.STATUS, 2) == 0x0280
    board.ide.config_write(0x20, 4, 0xFFFFFFFF)
    assert board.ide.config_read(0x20, 4) == 0xFFFFFFF1
    board.ide.config_write(0x40, 4, 0x80008000)
    assert board.ide.config_read(0x40, 4) == 0x80008000
    board.ide.reset()
    assert board.ide.config_read(0x40, 4) == 0


def test_registers() -> None:
    board = Board()
    assert [board.inp(BM + offset) for offset in range(16)] == [0, 255, 0, 255, 0, 0, 0, 0] * 2
    board.out(BM + 4, 0xFFFFFFFF, 4)
    assert board.inp(BM + 4, 4) == 0xFFFFFFFC
    board.out(BM + 5, 0)
    assert board.inp(BM + 4, 4) == 0xFFFF00FC
    board.out(BM + 2, 0xFF)
    assert board.inp(BM + 2) == CAPABLE
    board.out(BM, 0xFF)
    assert board.inp(BM) == 9
    assert board.inp(BM + 2) == CAPABLE | ACTIVE
    board.out(BM, 0)
    assert board.inp(BM + 2) == CAPABLE
    assert board.inp(BM + 12, 4) == 0


@pytest.mark.parametrize("start_first", [False, True])
def test_read_in_regions(start_first: bool) -> None:
    drive = disk(64)
    board = Board(d0=drive)
    board.table([(DATA, 1024), (DATA + 1024, 512), (DATA + 0x3000, 512)])
    if start_first:
        board.start()
    board.command(0xC8, lba=3, count=4)
    if not start_first:
        assert board.inp(ATA + 7) == READY | DRQ
        assert status(board) == 0
        board.start()
    assert status(board) == INTERRUPT
    assert board.inp(CONTROL[0]) == READY
    expected = pattern(64)[3 * 512 : 7 * 512]
    assert board.memory.read(DATA, 1536) + board.memory.read(DATA + 0x3000, 512) == expected
    assert (DATA, 1536) in board.written
    assert (DATA + 0x3000, 512) in board.written
    assert node_of(drive).calls[-1] == ("read", 3, 4)


def test_write() -> None:
    drive = disk(64)
    board = Board(d0=drive)
    data = bytes(range(256)) * 8
    board.memory.write(DATA, data)
    board.written.clear()
    board.table([(DATA, 2048)])
    board.written.clear()
    board.command(0xCA, lba=60, count=4)
    board.start(to_memory=False)
    assert status(board) == INTERRUPT
    assert node_of(drive).data[60 * 512 :] == data
    assert board.written == []
    board.command(0x3D, lba=0, count=4, extended=True)
    board.start(to_memory=False)
    assert node_of(drive).calls[-2:] == [("write", 0, 4), ("flush", 0, 0)]


def test_region_of_64_kib() -> None:
    board = Board(d0=disk(128))
    board.table([(DATA, 0)])
    board.command(0x25, count=128, extended=True)
    board.start()
    assert status(board) == INTERRUPT
    assert board.memory.read(DATA, 0x10000) == pattern(128)


def test_table_longer_than_the_transfer_stays_active() -> None:
    board = Board(d0=disk())
    board.table([(DATA, 512), (DATA + 512, 512)])
    board.command(0xC8, count=1)
    board.start()
    assert status(board) == ACTIVE | INTERRUPT
    board.out(BM, 0)
    assert status(board) == INTERRUPT
    board.out(BM + 2, INTERRUPT)
    assert status(board) == 0


def test_table_shorter_than_the_transfer() -> None:
    drive = disk()
    board = Board(d0=drive)
    board.table([(DATA, 512)])
    board.command(0xC8, count=2)
    board.inp(ATA + 7)
    calls = len(node_of(drive).calls)
    board.start()
    assert status(board) == 0
    assert board.inp(CONTROL[0]) == READY
    assert len(node_of(drive).calls) == calls


@pytest.mark.parametrize(
    ("table", "region"), [(TABLE, RAM - 512), (TABLE, 0xFFFFFFFE), (RAM + 0x1000, DATA), (0xFFFFFFFC, DATA)]
)
def test_memory_that_is_not_there(table: int, region: int) -> None:
    board = Board(d0=disk())
    board.table([(region, 1024)])
    board.command(0xC8, count=2)
    board.start(table)
    assert status(board) == ERROR | INTERRUPT
    assert board.inp(ATA + 7) == DRDY | ERR
    assert board.inp(ATA + 1) == 4
    board.out(BM + 2, ERROR | INTERRUPT)
    assert status(board) == 0


def test_table_ends_at_64_kib() -> None:
    board = Board(d0=disk())
    at = 0x20000 - 16
    board.table([(DATA, 512), (DATA, 512), (DATA, 512)], address=at, end=False)
    board.command(0xC8, count=3)
    board.start(at)
    assert status(board) == 0


def test_not_a_bus_master() -> None:
    board = Board(d0=disk())
    board.ide.config_write(pci.COMMAND, 2, pci.COMMAND_IO)
    board.table([(DATA, 512)])
    board.command(0xC8, count=1)
    board.start()
    assert status(board) == ACTIVE
    board.ide.config_write(pci.COMMAND, 2, pci.COMMAND_IO | pci.COMMAND_MASTER)
    assert status(board) == INTERRUPT


def test_error_of_the_disk() -> None:
    drive = disk()
    node_of(drive).bad = {2}
    board = Board(d0=drive)
    board.table([(DATA, 2048)])
    board.command(0xC8, count=4)
    board.start()
    assert status(board) == INTERRUPT
    assert board.inp(ATA + 7) == DRDY | ERR
    assert board.inp(ATA + 1) == 0x40


def test_stopping_the_engine_ends_what_has_begun() -> None:
    context = SteppedContext()
    board = Board(d0=disk(context=context))
    board.table([(DATA, 512)])
    board.command(0xC8, lba=1, count=1)
    board.start()
    assert board.inp(CONTROL[0]) & BSY
    assert status(board) == ACTIVE
    board.out(BM, 0)
    assert status(board) == INTERRUPT
    assert board.memory.read(DATA, 512) == pattern(2)[512:]


def test_reset_in_the_midst() -> None:
    context = SteppedContext()
    board = Board(d0=disk(context=context))
    board.table([(DATA, 512)])
    board.command(0xC8, count=1)
    board.start()
    board.out(CONTROL[0], 4)
    board.out(CONTROL[0], 0)
    assert not context.queue
    assert board.edges[0] == 0
    assert status(board) == ACTIVE
    assert board.inp(ATA + 7) == READY
    board.ide.reset()
    assert board.inp(BM + 2) == 0


def test_trim() -> None:
    drive = disk(256)
    board = Board(d0=drive)
    ranges = [(8, 8), (16, 8), (100, 1), (0, 0)]
    payload = b"".join(struct.pack("<Q", first | count << 48) for first, count in ranges)
    board.memory.write(DATA, payload.ljust(512, b"\0"))
    board.table([(DATA, 512)])
    board.command(0x06, features=1, count=1, extended=True)
    board.start(to_memory=False)
    assert status(board) == INTERRUPT
    assert board.inp(ATA + 7) == READY
    assert node_of(drive).calls[1:] == [("discard", 8, 16), ("discard", 100, 1)]
    board.memory.write(DATA, struct.pack("<Q", 250 | 7 << 48))
    board.command(0x06, features=1, count=1, extended=True)
    board.start(to_memory=False)
    board.out(BM, 0)
    assert board.inp(ATA + 7) == DRDY | ERR
    for features, count in ((0, 1), (1, 0), (1, 65)):
        assert board.command(0x06, features=features, count=count, extended=True) == DRDY | ERR


def test_trim_not_offered() -> None:
    board = Board(d0=disk(trim=False))
    assert board.command(0x06, features=1, count=1, extended=True) == DRDY | ERR
    board.command(0xEC)
    assert struct.unpack("<256H", board.read_data(512))[169] == 0
