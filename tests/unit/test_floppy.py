"""The floppy controller with its drives: registers, commands, media, state."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.backend import BlockBackend
from pyvm.clock import ManualClock
from pyvm.devices.dma8237 import DmaPair
from pyvm.devices.floppy import FloppyController
from pyvm.devices.floppy_media import FORMATS, DriveType, format_of, type_of
from pyvm.devices.floppy_registers import FloppyState
from pyvm.irq import IrqLine
from pyvm.memory import RamBlock
from pyvm.state import StateError
from tests.unit.ide_rig import MemoryNode, SteppedContext, pattern
from tests.unit.scratch_ram import scratch_ram

DATA = 0x10000
SIZE_144 = 2880
TO_MEMORY, FROM_MEMORY = 0x46, 0x4A
READ, WRITE, READ_DELETED, READ_TRACK, VERIFY, FORMAT = 0xE6, 0xC5, 0xCC, 0x42, 0xF6, 0x4D


class Board:
    """A controller with drive A, and drive B where it is given."""

    def __init__(self, sectors: int | None = SIZE_144, **options: Any) -> None:
        self.memory = scratch_ram(1 << 18, [RamBlock(0, 1 << 18, 0)])
        self.dma = DmaPair(self.memory)
        self.clock = ManualClock()
        self.edges = 0
        self.irq = IrqLine(self._edge)
        read_only = options.pop("read_only", False)
        context = options.pop("context", None)
        self.node = MemoryNode(pattern(sectors or 0), read_only=read_only)
        self.a = BlockBackend(self.node if sectors else None, context)
        self.b = options.pop("b", None)
        self.fdc = FloppyController(self.irq, self.dma, self.clock, (self.a, self.b), **options)

    def _edge(self, level: bool) -> None:
        self.edges += level

    def send(self, *values: int) -> None:
        for value in values:
            assert self.fdc.read(4, 1) & 0xC0 == 0x80
            self.fdc.write(5, 1, value)

    def result(self) -> list[int]:
        out = []
        while self.fdc.read(4, 1) & 0xC0 == 0xC0 and len(out) < 20:
            out.append(self.fdc.read(5, 1))
        return out

    def command(self, *values: int) -> list[int]:
        self.send(*values)
        return self.result()

    def channel(self, mode: int, length: int) -> None:
        """Program DMA channel 2."""
        low = self.dma.low
        low.write(0xA, 1, 6)
        low.write(0xC, 1, 0)
        low.write(0xB, 1, mode)
        for port, value in ((4, DATA & 0xFFFF), (5, length - 1)):
            low.write(port, 1, value & 0xFF)
            low.write(port, 1, value >> 8)
        self.dma.page_write(1, 1, DATA >> 16)
        low.write(0xA, 1, 2)

    def transfer(
        self,
        code: int,
        c: int,
        h: int,
        r: int,
        length: int,
        *,
        end: int = 18,
        drive: int = 0,
        n: int = 2,
        last: int = 0xFF,
    ) -> list[int]:
        self.channel(TO_MEMORY if code & 0xF in (6, 2, 0xC) else FROM_MEMORY, length)
        return self.command(code, h << 2 | drive, c, h, r, n, end, 0x1B, last)

    def seek(self, track: int, drive: int = 0) -> list[int]:
        self.send(0x0F, drive, track)
        return self.command(0x08)


@pytest.fixture
def board() -> Board:
    return Board()


def sectors(first: int, count: int) -> bytes:
    return pattern(SIZE_144)[first * 512 : (first + count) * 512]


def test_power_on_registers(board: Board) -> None:
    assert [board.fdc.read(port, 1) for port in range(6)] == [0xFF, 0xC0, 0x0C, 0, 0x80, 0]
    assert board.fdc.dir_read(0, 1) == 0x80
    board.fdc.write(2, 1, 0x1D)
    assert board.fdc.read(1, 1) == 0xE1
    board.fdc.write(3, 1, 0xFF)
    assert board.fdc.read(3, 1) == 3


@pytest.mark.parametrize("by_dsr", [False, True])
def test_reset_polls_four_drives(board: Board, by_dsr: bool) -> None:
    board.seek(9)
    if by_dsr:
        board.fdc.write(4, 1, 0x80)
    else:
        board.fdc.write(2, 1, 0x08)
        assert board.fdc.read(4, 1) == 0
        board.fdc.write(5, 1, 0x10)
        board.fdc.write(2, 1, 0x0C)
    assert board.irq.level
    assert [board.command(0x08) for _ in range(4)] == [[0xC0, 9], [0xC1, 0], [0xC2, 0], [0xC3, 0]]
    assert not board.irq.level
    assert board.command(0x08) == [0x80]


def test_no_polling_and_no_gate(board: Board) -> None:
    board.send(0x13, 0, 0x10, 0)
    board.send(0x94)
    assert board.result() == [0x10]
    board.fdc.write(2, 1, 0)
    board.fdc.write(2, 1, 0x0C)
    assert board.edges == 0
    board.fdc.write(2, 1, 0x04)
    board.send(7, 0)
    assert not board.irq.level
    board.fdc.write(2, 1, 0x0C)
    assert board.irq.level


def test_identification(board: Board) -> None:
    assert board.command(0x10) == [0x90]
    for code in (0x18, 0x1F, 0x00, 0xFF):
        assert board.command(code) == [0x80]
    board.send(0x03, 0xAF, 0x02)
    board.send(0x13, 0, 0x57, 3)
    board.send(0x12, 0x84)
    board.send(0x12, 0x03)
    board.seek(5)
    assert board.command(0x0E) == [5, 0, 0, 0, 0xAF, 2, 0, 0x07, 0x57, 3]
    board.fdc.write(4, 1, 0x80)
    assert board.command(0x0E) == [5, 0, 0, 0, 0xAF, 2, 0, 0x04, 0x20, 0]
    assert board.command(0x94) == [0x10]
    board.send(0x13, 0, 0x57, 3)
    board.fdc.write(4, 1, 0x80)
    assert board.command(0x0E)[7:] == [0x84, 0x57, 3]
    assert board.command(0x14) == [0]


def test_seek_recalibrate_and_disk_change(board: Board) -> None:
    board.send(7, 0)
    assert board.irq.level
    assert board.command(8) == [0x20, 0]
    assert not board.irq.level
    assert board.fdc.dir_read(0, 1) == 0x80
    assert board.seek(10) == [0x20, 10]
    assert board.fdc.dir_read(0, 1) == 0
    assert board.command(4, 0) == [0x28]
    board.send(0xCF, 0, 3)
    assert board.command(8) == [0x20, 13]
    board.send(0x8F, 4, 13)
    assert board.command(8) == [0x24, 0]
    assert board.command(4, 4) == [0x3C]
    board.send(7, 1)
    assert board.command(8) == [0x71, 0]
    assert board.command(4, 1) == [0x29]
    board.fdc.write(2, 1, 0x0D)
    assert board.fdc.dir_read(0, 1) == 0


@pytest.mark.parametrize(
    ("first", "length", "expected"),
    [
        ((0, 0, 1), 512, [0, 0, 0, 0, 0, 2, 2]),
        ((0, 0, 1), 1024, [0, 0, 0, 0, 0, 3, 2]),
        ((0, 0, 17), 2048, [4, 0, 0, 0, 1, 3, 2]),
        ((0, 0, 18), 512, [0, 0, 0, 0, 1, 1, 2]),
        ((0, 1, 18), 512, [4, 0, 0, 1, 0, 1, 2]),
        ((0, 1, 18), 513, [0x44, 0x80, 0, 1, 0, 1, 2]),
        ((0, 0, 1), 300, [0, 0, 0, 0, 0, 2, 2]),
        ((0, 0, 1), 36 * 512, [4, 0, 0, 1, 0, 1, 2]),
        ((0, 0, 19), 512, [0x40, 4, 0, 0, 1, 1, 2]),
        ((0, 0, 0), 512, [0x40, 4, 0, 0, 0, 0, 2]),
        ((1, 0, 1), 512, [0x40, 4, 0x10, 1, 0, 1, 2]),
    ],
)
def test_read_by_dma(board: Board, first: tuple[int, int, int], length: int, expected: list[int]) -> None:
    assert board.transfer(READ, *first, length) == expected
    assert board.edges == 1
    assert not board.irq.level
    if not expected[1]:
        at = first[1] * 18 + first[2] - 1
        assert board.memory.read(DATA, length) == sectors(at, -(-length // 512))[:length]


def test_read_of_one_side(board: Board) -> None:
    assert board.transfer(READ & 0x7F, 0, 0, 18, 1024) == [0x40, 0x80, 0, 1, 0, 1, 2]
    assert board.transfer(READ & 0x7F, 0, 0, 18, 512) == [0, 0, 0, 1, 0, 1, 2]


def test_implied_seek(board: Board) -> None:
    board.send(0x13, 0, 0x40, 0)
    assert board.transfer(READ, 40, 1, 2, 512) == [4, 0, 0, 40, 1, 3, 2]
    assert board.memory.read(DATA, 512) == sectors((40 * 2 + 1) * 18 + 1, 1)


def test_write_and_read_back(board: Board) -> None:
    board.seek(79)
    board.memory.write(DATA, b"w" * 1024)
    assert board.transfer(WRITE, 79, 0, 18, 1024) == [4, 0, 0, 79, 1, 2, 2]
    at = 79 * 36 + 17
    assert board.node.data[at * 512 : (at + 2) * 512] == b"w" * 1024
    assert board.transfer(0xC9, 79, 1, 18, 100) == [4, 0, 0, 80, 0, 1, 2]
    assert board.node.data[-512:] == b"w" * 100 + bytes(412)


def test_write_protect() -> None:
    board = Board(read_only=True)
    assert board.command(4, 0) == [0x78]
    assert board.transfer(WRITE, 0, 0, 1, 512)[:3] == [0x40, 2, 0]
    board.channel(FROM_MEMORY, 72)
    assert board.command(FORMAT, 0, 2, 18, 0x1B, 0xF6)[:3] == [0x40, 2, 0]


def test_format(board: Board) -> None:
    board.seek(3)
    board.memory.write(DATA, b"".join(bytes((3, 1, sector, 2)) for sector in range(1, 19)))
    board.channel(FROM_MEMORY, 72)
    assert board.command(FORMAT, 4, 2, 18, 0x1B, 0xF6)[:3] == [4, 0, 0]
    at = (3 * 2 + 1) * 18 * 512
    assert board.node.data[at : at + 18 * 512] == b"\xf6" * 18 * 512
    assert board.node.data[at - 512 : at] == sectors(at // 512 - 1, 1)
    board.channel(FROM_MEMORY, 72)
    board.memory.write(DATA, bytes((3, 1, 30, 2)))
    assert board.command(FORMAT, 4, 2, 18, 0x1B, 0xF6)[:3] == [0x44, 4, 0]


def test_read_id_follows_the_rotation(board: Board) -> None:
    board.seek(7)
    assert board.command(0x4A, 4) == [4, 0, 0, 7, 1, 1, 2]
    board.clock.advance(100_000_000)
    assert board.command(0x4A, 0) == [0, 0, 0, 7, 0, 10, 2]
    board.fdc.ccr_write(0, 1, 2)
    assert board.command(0x4A, 0)[:3] == [0x40, 1, 0]
    board.fdc.ccr_write(0, 1, 0)
    assert board.command(0x4A, 1)[:3] == [0x41, 1, 0]
    board.seek(82)
    assert board.command(0x4A, 0)[:3] == [0x40, 1, 0]


def test_deleted_data_track_and_verify(board: Board) -> None:
    assert board.transfer(READ_DELETED, 0, 0, 3, 2048) == [0, 0, 0x40, 0, 0, 3, 2]
    assert board.memory.read(DATA, 512) == sectors(2, 1)
    assert board.transfer(READ_DELETED | 0x20, 0, 0, 3, 512)[:3] == [0x40, 4, 0]
    assert board.transfer(READ_TRACK, 0, 1, 5, 0x4000, end=4)[:3] == [4, 0, 0]
    assert board.memory.read(DATA, 2048) == sectors(18, 4)
    assert board.transfer(VERIFY, 0, 0, 1, 512)[:3] == [4, 0, 0]
    assert board.transfer(VERIFY & 0x7F, 0, 0, 18, 512, drive=0x80, last=3)[:3] == [0x40, 0x80, 0]
    board.node.bad = {20}
    assert board.transfer(VERIFY, 0, 0, 1, 512)[:3] == [0x44, 0x20, 0x20]


def test_scans(board: Board) -> None:
    board.memory.write(DATA, bytes(512) + sectors(1, 1) + bytes(1024))
    assert board.transfer(0x51, 0, 0, 1, 2048, last=1) == [0, 0, 8, 0, 0, 2, 2]
    board.memory.write(DATA, b"\xff" * 512)
    assert board.transfer(0x51, 0, 0, 5, 512, last=1)[2] == 8
    board.memory.write(DATA, bytes(512))
    assert board.transfer(0x51, 0, 0, 5, 512, last=1)[2] == 4
    assert board.transfer(0x5D, 0, 0, 5, 512, last=1)[2] == 0
    assert board.transfer(0x59, 0, 0, 17, 2048, last=1)[:3] == [0, 0, 4]
    assert board.transfer(0x59, 0, 0, 15, 0x2000, last=2)[:3] == [0, 0, 4]


def test_without_dma(board: Board) -> None:
    board.send(3, 0xAF, 3)
    board.send(READ, 0, 0, 0, 17, 2, 18, 0x1B, 0xFF)
    assert board.fdc.read(4, 1) == 0xF0
    assert board.irq.level
    got = bytes(board.fdc.read(5, 1) for _ in range(512))
    assert board.irq.level
    got += bytes(board.fdc.read(5, 1) for _ in range(512))
    got += bytes(board.fdc.read(5, 1) for _ in range(18 * 512))
    assert got == sectors(16, 20)
    assert board.result() == [0x44, 0x80, 0, 1, 0, 1, 2]
    board.send(WRITE & 0x7F, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF)
    assert board.fdc.read(4, 1) == 0xB0
    board.send(*bytes(512))
    assert board.result() == [0x40, 0x80, 0, 1, 0, 1, 2]
    assert board.node.data[17 * 512 : 18 * 512] == bytes(512)


def test_closed_dma_channel_is_an_overrun(board: Board) -> None:
    board.dma.reset()
    assert board.command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x10, 0]
    assert board.command(WRITE, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x10, 0]


def test_bad_sector_and_other_drives(board: Board) -> None:
    board.node.bad = {1}
    assert board.transfer(READ, 0, 0, 1, 1024)[:3] == [0x40, 0x20, 0x20]
    assert board.transfer(WRITE, 0, 0, 2, 512)[:3] == [0x40, 0x20, 0x20]
    for drive in (1, 2, 3):
        assert board.transfer(READ, 0, 0, 1, 512, drive=drive)[:3] == [0x40 | drive, 1, 0]
    assert board.transfer(READ, 0, 0, 1, 512, n=3)[:3] == [0x40, 4, 0]


def test_no_disk_and_a_new_one() -> None:
    board = Board(None)
    assert board.fdc.drives[0] is not None
    assert board.fdc.drives[0].kind is DriveType.D288
    board.seek(5)
    assert board.fdc.dir_read(0, 1) == 0x80
    assert board.transfer(READ, 5, 0, 1, 512)[:3] == [0x40, 1, 0]
    board.a.insert_medium(MemoryNode(pattern(1440)))
    assert board.fdc.dir_read(0, 1) == 0x80
    board.seek(1)
    assert board.fdc.dir_read(0, 1) == 0
    board.fdc.ccr_write(0, 1, 2)
    assert board.transfer(READ, 1, 0, 1, 512, end=9) == [0, 0, 0, 1, 0, 2, 2]
    assert board.memory.read(DATA, 512) == pattern(1440)[18 * 512 : 19 * 512]
    board.a.remove_medium()
    assert board.fdc.dir_read(0, 1) == 0x80


def test_two_drives() -> None:
    second = BlockBackend(MemoryNode(pattern(2400)))
    board = Board(b=second)
    assert [drive and drive.kind for drive in board.fdc.drives] == [DriveType.D144, DriveType.D120]
    board.send(0x0F, 0, 2)
    board.send(0x0F, 1, 3)
    assert [board.command(8), board.command(8)] == [[0x20, 2], [0x21, 3]]
    assert board.transfer(READ, 3, 1, 1, 512, drive=1, end=15)[:3] == [5, 0, 0]
    assert board.memory.read(DATA, 512) == pattern(2400)[(3 * 30 + 15) * 512 : (3 * 30 + 16) * 512]


def test_formats() -> None:
    for size, kind in ((360, DriveType.D120), (1200, DriveType.D120), (720, DriveType.D144), (1440, DriveType.D144)):
        assert type_of(size << 10) is kind
    assert type_of(2880 << 10) is DriveType.D288
    assert type_of(12345) is DriveType.D288
    assert format_of(1440 << 10, DriveType.D288).sectors == 18
    assert format_of(2880 << 10, DriveType.D144).sectors == 18
    assert format_of(0, DriveType.D120).sectors == 15
    assert all(item.sectors <= 48 and item.tracks <= 84 for item in FORMATS)
    none = Board(types=(DriveType.NONE, None))
    assert none.fdc.drives == [None, None]


def test_reset_of_the_machine(board: Board) -> None:
    board.seek(9)
    board.send(READ, 0, 0)
    board.fdc.reset()
    assert board.fdc.read(4, 1) == 0x80
    assert board.command(4, 0) == [0x38]


# -- state ----------------------------------------------------------------------------------------------------------


def moved(board: Board, context: SteppedContext | None = None) -> Board:
    other = Board(context=context)
    other.node.data[:] = board.node.data
    other.memory.write(0, board.memory.read(0, board.memory.size))
    other.dma.load(board.dma.save())
    other.fdc.load(FloppyState.from_dict(board.fdc.save().to_dict()))
    assert other.irq.level == board.irq.level
    return other


def test_move_in_every_phase() -> None:
    context = SteppedContext()
    board = Board(context=context)
    board.send(0x0F, 0)
    board = moved(board, context)
    board.send(2)
    board = moved(board, context)
    assert board.command(8) == [0x20, 2]
    board.channel(TO_MEMORY, 1024)
    board.send(READ, 0, 2, 0, 18, 2, 18, 0x1B, 0xFF)
    assert board.fdc.read(4, 1) == 0x10
    context.queue.clear()
    board = moved(board, context)
    context.step()
    context.queue.clear()
    board = moved(board, context)
    context.run()
    board = moved(board, context)
    assert board.fdc.read(5, 1) == 4
    board = moved(board, context)
    assert board.result() == [0, 0, 2, 1, 2, 2]
    assert board.memory.read(DATA, 1024) == sectors(2 * 36 + 17, 2)


@pytest.mark.parametrize("code", [WRITE, FORMAT, VERIFY, 0x51])
def test_move_while_the_back_end_works(code: int) -> None:
    context = SteppedContext()
    board = Board(context=context)
    board.channel(FROM_MEMORY, 512 if code != FORMAT else 4)
    board.memory.write(DATA, bytes((0, 0, 1, 2)) + b"\xff" * 508)
    if code == FORMAT:
        board.send(code, 0, 2, 1, 0x1B, 0xF6)
    else:
        board.send(code, 0, 0, 0, 1, 2, 1, 0x1B, 1)
    assert context.queue
    context.queue.clear()
    board = moved(board, context)
    context.run()
    assert board.result()[:2] in ([0, 0], [4, 0])


def test_move_without_dma() -> None:
    board = Board()
    board.send(3, 0xAF, 3)
    board.send(WRITE & 0x7F, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF)
    board.send(*b"a" * 100)
    board = moved(board)
    board.send(*b"b" * 412)
    assert board.node.data[17 * 512 : 18 * 512] == b"a" * 100 + b"b" * 412


def test_reset_while_the_back_end_works() -> None:
    context = SteppedContext()
    board = Board(context=context)
    board.channel(TO_MEMORY, 1024)
    board.send(READ, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF)
    board.fdc.write(4, 1, 0x80)
    assert not context.queue
    assert board.memory.read(DATA, 512) == bytes(512)
    assert board.command(8) == [0xC0, 0]


def test_states_that_cannot_be() -> None:
    board = Board()
    board.send(3, 0xAF, 3)
    board.send(READ, 0, 0, 0, 17, 2, 18, 0x1B, 0xFF)
    good = board.fdc.save().to_dict()
    changes: list[tuple[str, dict[str, Any]]] = [
        ("on its way", {"phase": 0}),
        ("behind the result", {"phase": 2, "fifo": b"", "transfer": None}),
        ("fifo", {"phase": 0, "fifo": b"\x10", "transfer": None}),
        ("position", {"phase": 2, "fifo": b"1", "position": 1, "transfer": None}),
        ("drives", {"drives": [None, None]}),
        ("drive", {"transfer": good["transfer"] | {"drive": 1}}),
        ("sector", {"transfer": good["transfer"] | {"sector": 18}}),
        ("data", {"transfer": good["transfer"] | {"data": b"123"}}),
        ("position", {"transfer": good["transfer"] | {"position": 1024}}),
        ("side", {"drives": [{"track": 84, "changed": True}, None]}),
    ]
    for word, change in changes:
        with pytest.raises(StateError, match=word):
            Board().fdc.load(FloppyState.from_dict(good | change))


# -- programs that mean no good -------------------------------------------------------------------------------------

_BYTES = st.one_of(
    st.integers(0, 255), st.sampled_from((0, 1, 2, 3, 4, 18, 0x46, 0x4D, 0x51, 0x66, 0xC5, 0xE6, 0x0F, 7, 8))
)
_STEPS = st.one_of(
    st.tuples(st.sampled_from((2, 3, 4, 5, 5, 5, 5, 5)), _BYTES),
    st.tuples(st.just(-1), st.integers(1, 3000)),
    st.tuples(st.just(-2), _BYTES),
    st.tuples(st.just(-3), st.integers(0, 5)),
    st.tuples(st.just(-4), st.integers(0, 255)),
    st.tuples(st.just(-5), st.lists(_BYTES, min_size=8, max_size=8)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEPS, max_size=60), st.sampled_from((720, 2880, 5760)))
def test_any_program_is_borne(program: list[tuple[int, Any]], size: int) -> None:
    context = SteppedContext()
    board = Board(size, context=context)
    for port, value in program:
        if port >= 0:
            board.fdc.write(port, 1, value)
        elif port == -1:
            board.channel(TO_MEMORY if value & 1 else FROM_MEMORY, value)
        elif port == -2:
            board.fdc.ccr_write(0, 1, value)
        elif port == -3:
            assert 0 <= board.fdc.read(value, 1) <= 0xFF
        elif port == -4:
            for _ in range(value % 4):
                if context.queue:
                    context.step()
        else:
            board.fdc.write(5, 1, (0x46, 0xC5, 0x51, 0x4D, 0xE6, 0x42, 0x56, 0x4C)[value[0] & 7])
            for byte in value:
                board.fdc.write(5, 1, byte)
    other = Board(size)
    other.dma.load(board.dma.save())
    other.fdc.load(FloppyState.from_dict(board.fdc.save().to_dict()))
    board.fdc.write(2, 1, 0)
    board.fdc.write(2, 1, 0x0C)
    assert board.fdc.read(4, 1) == 0x80
    assert not context.queue
