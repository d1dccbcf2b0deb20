"""CD drives: packet protocol by PIO and DMA, media, resets."""

from __future__ import annotations

import struct

import pytest

from pyvm.devices.scsi import constants as scsi
from tests.unit.ide_rig import (
    BASE,
    BM,
    BSY,
    CONTROL,
    DRDY,
    DRQ,
    DSC,
    ERR,
    Board,
    MemoryNode,
    SteppedContext,
    cd,
    disk,
    node_of,
    pattern,
)

READY = DRDY | DSC
ATAPI = BASE[1]
DATA = 0x10000
INQUIRY = bytes((scsi.INQUIRY, 0, 0, 0, 36, 0))


def read10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIxHx", scsi.READ_10, 0, lba, count)


def board_with(blocks: int = 40, **options: object) -> Board:
    return Board(d2=cd(blocks, **options))


def sense(board: Board) -> tuple[int, int]:
    """Key and additional code by REQUEST SENSE."""
    data = board.packet_data(bytes((scsi.REQUEST_SENSE, 0, 0, 0, 18)))
    return data[2] & 0xF, data[12]


def test_signature_and_identify() -> None:
    board = board_with()
    assert board.registers(ATAPI) == (0, 1, 1, 0x14, 0xEB, 0xA0)
    assert board.command(0xEC, device=0xA0, base=ATAPI) == DRDY | ERR
    assert board.registers(ATAPI) == (4, 1, 1, 0x14, 0xEB, 0xA0)
    assert board.command(0xA1, device=0xA0, base=ATAPI) == READY | DRQ
    words = struct.unpack("<256H", board.read_data(512, base=ATAPI))
    assert words[0] == 0x85C0
    assert struct.pack(">20H", *words[27:47]).decode().strip() == "QEMU DVD-ROM"
    assert struct.pack(">10H", *words[10:20]).decode().strip() == "QM00003"
    assert board.inp(ATAPI + 7) == READY


def test_packet_phases() -> None:
    board = board_with()
    board.command(0xA0, lba=0xFFFE00, device=0xA0, base=ATAPI)
    assert board.inp(CONTROL[1]) == READY | DRQ
    assert board.inp(ATAPI + 2) == 1  # command, to the drive
    assert board.edges[1] == 0
    board.write_data(INQUIRY.ljust(12, b"\0"), base=ATAPI)
    assert board.edges[1] == 1
    assert board.inp(ATAPI + 7) == READY | DRQ
    assert board.inp(ATAPI + 2) == 2  # data, to the host
    assert board.inp(ATAPI + 4) | board.inp(ATAPI + 5) << 8 == 36
    data = board.read_data(36, base=ATAPI)
    assert data[0] == 5
    assert data[8:16] == b"QEMU    "
    assert board.edges[1] == 2
    assert board.inp(ATAPI + 2) == 3  # status
    assert board.inp(ATAPI + 7) == READY


def test_error_by_sense_key() -> None:
    board = board_with()
    assert board.packet(b"\xff") == DRDY | ERR
    assert board.inp(ATAPI + 1) == 0x50
    assert board.inp(ATAPI + 2) == 3
    assert sense(board) == (5, 0x20)


@pytest.mark.parametrize("limit", [0xFFFF, 0xFFFE, 2048, 2047, 700, 1])
def test_read_in_blocks_of_the_limit(limit: int) -> None:
    board = board_with()
    assert board.packet_data(read10(3, 2), limit=limit) == pattern(5, 2048)[3 * 2048 :]
    count = max(min(limit, 0xFFFE) & ~1, 2)
    assert board.edges[1] == -(-4096 // count) + 1


@pytest.mark.parametrize("size", [2, 4])
def test_odd_length(size: int) -> None:
    board = board_with()
    data = board.packet_data(bytes((scsi.INQUIRY, 0, 0, 0, 5)), size=size)
    assert len(data) == 5


@pytest.mark.parametrize(
    "cdb",
    [
        read10(1, 90),
        struct.pack(">BBII2x", scsi.READ_12, 0, 1, 90),
        bytes((scsi.READ_6, 0, 0, 1, 90, 0)),
        bytes((scsi.READ_CD, 8, 0, 0, 0, 1, 0, 0, 90, 0x10, 0, 0)),
        bytes((scsi.READ_CD_MSF, 0, 0, 0, 2, 1, 0, 3, 16, 0x10, 0, 0)),
    ],
)
def test_long_reads_go_through_a_bounded_buffer(cdb: bytes) -> None:
    drive = cd(100)
    board = Board(d2=drive)
    assert board.packet_data(cdb) == pattern(91, 2048)[2048:]
    assert [call[2] for call in node_of(drive).calls] == [128, 128, 104]


def test_raw_sectors() -> None:
    board = board_with(100)
    data = board.packet_data(bytes((scsi.READ_CD, 0, 0, 0, 0, 0, 0, 0, 60, 0xF8, 0, 0)))
    assert len(data) == 60 * 2352
    assert all(data[n * 2352 + 16 : n * 2352 + 2064] == pattern(60, 2048)[n * 2048 : (n + 1) * 2048] for n in range(60))


def test_long_read_beyond_the_medium_gives_no_data() -> None:
    drive = cd(100)
    board = Board(d2=drive)
    assert board.packet(read10(20, 81)) == DRDY | ERR
    assert node_of(drive).calls == []
    assert sense(board) == (5, 0x21)
    assert board.packet(struct.pack(">BBII2x", scsi.READ_12, 0, 0, 0xFFFFFFFF)) == DRDY | ERR


def test_without_a_byte_count_there_is_no_data() -> None:
    board = board_with()
    assert board.packet(INQUIRY, limit=0) == DRDY | ERR
    assert board.inp(ATAPI + 1) == 4
    assert board.packet(bytes(6), limit=0) == READY


def test_dma() -> None:
    board = board_with()
    board.table([(DATA, 2048), (DATA + 0x2000, 2048)])
    board.command(0xA0, features=1, device=0xA0, base=ATAPI)
    board.write_data(read10(4, 2).ljust(12, b"\0"), base=ATAPI)
    assert board.edges[1] == 0
    board.start(bm=BM + 8)
    assert board.inp(BM + 10) & 7 == 4
    assert board.inp(ATAPI + 2) == 3
    assert board.inp(ATAPI + 7) == READY
    got = board.memory.read(DATA, 2048) + board.memory.read(DATA + 0x2000, 2048)
    assert got == pattern(6, 2048)[4 * 2048 :]
    assert (DATA, 2048) in board.written


def test_dma_of_less_than_was_asked_for() -> None:
    board = board_with()
    board.table([(DATA, 200)])
    board.command(0xA0, features=1, device=0xA0, base=ATAPI)
    board.write_data(bytes((scsi.INQUIRY, 0, 0, 0, 200)).ljust(12, b"\0"), base=ATAPI)
    board.start(bm=BM + 8)
    assert board.inp(BM + 10) & 7 == 5  # the table holds more
    assert board.memory.read(DATA + 8, 4) == b"QEMU"


def test_dma_error_and_bad_table() -> None:
    board = board_with(0)
    board.table([(DATA, 2048)])
    board.command(0xA0, features=1, device=0xA0, base=ATAPI)
    board.write_data(read10(0, 1).ljust(12, b"\0"), base=ATAPI)
    board.start(bm=BM + 8)
    assert board.inp(ATAPI + 7) == DRDY | ERR
    assert board.inp(ATAPI + 1) == 0x20
    board.table([(0xFFFF0000, 2048)])
    board.command(0xA0, features=1, device=0xA0, base=ATAPI)
    board.write_data(read10(0, 1).ljust(12, b"\0"), base=ATAPI)
    board.start(bm=BM + 8)
    assert board.inp(ATAPI + 7) == DRDY | ERR
    assert board.inp(BM + 10) & 3 == 2


def test_mode_select_by_pio_and_dma() -> None:
    board = board_with()
    pages = board.packet_data(bytes((scsi.MODE_SENSE_10, 8, 1, 0, 0, 0, 0, 1, 0)))
    parameters = bytes(8) + pages[8:]
    select = bytes((scsi.MODE_SELECT_10, 0x10, 0, 0, 0, 0, 0, 0, len(parameters), 0))
    assert board.packet(select, limit=6) == READY | DRQ
    sent = 0
    while board.inp(ATAPI + 7) & DRQ:
        assert board.inp(ATAPI + 2) == 0
        count = board.inp(ATAPI + 4)
        board.write_data(parameters[sent : sent + count], base=ATAPI)
        sent += count
    assert sent == len(parameters)
    assert board.inp(CONTROL[1]) == READY
    board.memory.write(DATA, parameters)
    board.table([(DATA, len(parameters))])
    board.command(0xA0, features=1, device=0xA0, base=ATAPI)
    board.write_data(select.ljust(12, b"\0"), base=ATAPI)
    board.start(to_memory=False, bm=BM + 8)
    assert board.inp(ATAPI + 7) == READY


def test_medium_change_is_noticed() -> None:
    drive = cd(40)
    board = Board(d2=drive)
    ready = bytes(6)
    assert board.packet(ready) == READY
    assert board.packet(bytes((scsi.PREVENT_ALLOW, 0, 0, 0, 1))) == READY
    assert not drive.backend.open_tray()
    event = board.packet_data(bytes((scsi.GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8)))
    assert event[4] == 1  # eject request
    assert board.packet(bytes((scsi.PREVENT_ALLOW,))) == READY
    assert drive.backend.open_tray()
    assert board.packet(ready) == DRDY | ERR
    assert sense(board)[0] == 2
    drive.backend.remove_medium()
    drive.backend.insert_medium(MemoryNode(pattern(50, 2048), read_only=True))
    drive.backend.close_tray()
    keys = []
    while board.packet(ready) != READY and len(keys) < 5:
        keys.append(sense(board))
    assert keys[-1] == (6, 0x28)
    event = board.packet_data(bytes((scsi.GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8)))
    assert event[4] == 2  # new medium
    assert board.packet_data(bytes((scsi.READ_CAPACITY_10,)))[:4] == struct.pack(">I", 49)


def test_guest_ejects() -> None:
    drive = cd(40)
    board = Board(d2=drive)
    assert board.packet(bytes((scsi.START_STOP, 0, 0, 0, 2))) == READY
    assert drive.unit.tray_open
    assert board.packet(bytes(6)) == DRDY | ERR
    board.ide.reset()
    assert not drive.unit.tray_open


def test_device_reset_interrupts_a_command() -> None:
    context = SteppedContext()
    board = board_with(context=context)
    assert board.packet(read10(0, 1)) & BSY
    board.out(ATAPI + 7, 0xA1)
    assert board.inp(ATAPI + 7) & BSY
    board.out(ATAPI + 7, 0x08)
    assert board.inp(ATAPI + 7) == 0
    assert board.registers(ATAPI) == (1, 1, 1, 0x14, 0xEB, 0xA0)
    assert not context.queue
    assert board.edges[1] == 0
    assert board.packet_data(bytes((scsi.REQUEST_SENSE, 0, 0, 0, 18)))


def test_device_reset_of_a_slave() -> None:
    board = Board(d2=disk(), d3=cd())
    board.out(ATAPI + 6, 0xB0)
    board.out(ATAPI + 7, 0x08)
    assert board.registers(ATAPI)[3:] == (0x14, 0xEB, 0xB0)
    board.out(CONTROL[1], 4)
    board.out(CONTROL[1], 0)
    assert board.inp(ATAPI + 7) == READY
    board.out(ATAPI + 6, 0xB0)
    assert board.inp(ATAPI + 7) == 0


def test_overlap_is_refused_and_power_modes() -> None:
    board = board_with()
    assert board.command(0xA0, features=2, device=0xA0, base=ATAPI) == DRDY | ERR
    assert board.command(0xE0, device=0xA0, base=ATAPI) == READY
    board.command(0xE5, device=0xA0, base=ATAPI)
    assert board.inp(ATAPI + 2) == 0
    assert board.command(0xE1, device=0xA0, base=ATAPI) == READY
    board.command(0xE5, device=0xA0, base=ATAPI)
    assert board.inp(ATAPI + 2) == 0xFF
    assert board.command(0xE6, device=0xA0, base=ATAPI) == READY
    assert board.command(0xA1, device=0xA0, base=ATAPI) == READY
    board.out(ATAPI + 7, 0x08)
    assert board.command(0xA1, device=0xA0, base=ATAPI) == READY | DRQ
    board.ide.reset()
    assert board.command(0xEF, features=3, count=0x42, device=0xA0, base=ATAPI) == READY
    board.command(0xA1, device=0xA0, base=ATAPI)
    assert struct.unpack("<256H", board.read_data(512, base=ATAPI))[88] == 0x043F
    assert board.command(0xEF, features=3, count=0x4F, device=0xA0, base=ATAPI) == DRDY | ERR


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("length", [*range(5, 13), 35, 36])
def test_data_that_is_told_ahead_ends_like_that_which_is_not(size: int, length: int) -> None:
    """A block need not be whole items of what the processor reads: its end is left for a read of its own."""
    board = Board(d2=cd())
    inquiry = bytes([0x12, 0, 0, 0, length, 0])
    expected = board.packet_data(inquiry, size=2)
    assert len(expected) == length
    channel = board.ide.channels[1]
    board.packet(inquiry)
    data = b""
    while board.inp(BASE[1] + 7) & DRQ:
        ahead = channel.peek(size)
        if ahead is not None:
            assert len(ahead)
            assert len(ahead) % size == 0
            data += bytes(ahead)
            channel.consume(len(ahead))
        data += board.inp(BASE[1], size).to_bytes(size, "little")
        assert len(data) <= length + size
    assert data[:length] == expected
