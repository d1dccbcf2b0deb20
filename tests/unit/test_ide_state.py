"""IDE: saving in the midst of everything, and programs that mean no good."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.ide.disk import IdeDisk
from pyvm.devices.ide.piix3 import Piix3IdeState
from pyvm.devices.pci.function import PciFunctionState
from pyvm.state import StateError
from tests.unit.ide_rig import (
    BASE,
    BM,
    BSY,
    CONTROL,
    DRDY,
    DRQ,
    DSC,
    TABLE,
    Board,
    SteppedContext,
    cd,
    disk,
    node_of,
    pattern,
)

READY = DRDY | DSC
DATA = 0x10000


class Pair:
    """A board whose back ends stand still, and what it is moved to."""

    def __init__(self) -> None:
        self.context = SteppedContext()
        self.disk = disk(300, context=self.context)
        self.cd = cd(200, context=self.context)
        self.board = Board(d0=self.disk, d2=self.cd)

    def moved(self) -> Pair:
        """Return another machine in the state of this one, its RAM included."""
        state = Piix3IdeState.from_dict(self.board.ide.save().to_dict())
        other = Pair()
        other.board.memory.write(0, self.board.memory.read(0, self.board.memory.size))
        node_of(other.disk).data[:] = node_of(self.disk).data
        other.board.ide.load(state)
        assert other.board.edges == [int(line.level) for line in self.board.irqs]
        return other


def test_move_while_reading() -> None:
    pair = Pair()
    pair.board.command(0x20, lba=2, count=200)
    pair = pair.moved()
    assert pair.board.inp(BASE[0] + 7) & BSY
    pair.context.run()
    pair = pair.moved()
    assert pair.board.irqs[0].level
    got = b""
    for index in range(200):
        if index in (1, 70, 128, 150):
            got += pair.board.read_data(100)
            pair = pair.moved()
            got += pair.board.read_data(412)
        else:
            got += pair.board.read_data(512, 4)
        pair.context.run()
    assert got == pattern(300)[2 * 512 : 202 * 512]
    assert pair.board.inp(BASE[0] + 7) == READY


def test_move_while_writing() -> None:
    pair = Pair()
    pair.board.command(0x30, lba=2, count=2)
    pair.board.write_data(b"a" * 100)
    pair = pair.moved()
    pair.board.write_data(b"b" * 412)
    assert pair.board.inp(BASE[0] + 7) & BSY
    pair = pair.moved()
    pair.context.run()
    pair.board.write_data(b"c" * 512)
    pair.context.run()
    assert node_of(pair.disk).data[1024:2048] == b"a" * 100 + b"b" * 412 + b"c" * 512
    assert pair.board.inp(BASE[0] + 7) == READY


def test_move_while_data_moves_by_dma() -> None:
    pair = Pair()
    pair.board.table([(DATA, 512), (DATA + 0x1000, 512)])
    pair.board.command(0xC8, lba=5, count=2)
    pair = pair.moved()
    pair.board.start()
    pair = pair.moved()
    assert pair.board.inp(BM + 2) & 7 == 1
    pair.context.run()
    assert pair.board.inp(BM + 2) & 7 == 4
    data = pair.board.memory.read(DATA, 512) + pair.board.memory.read(DATA + 0x1000, 512)
    assert data == pattern(300)[5 * 512 : 7 * 512]
    pair = pair.moved()
    assert pair.board.inp(BM + 2) & 7 == 4


@pytest.mark.parametrize("command", [0xE7, 0x40])
def test_move_while_busy(command: int) -> None:
    pair = Pair()
    pair.board.command(command, count=200)
    pair = pair.moved()
    pair.context.run()
    assert pair.board.inp(BASE[0] + 7) == READY


def test_move_while_trimming() -> None:
    pair = Pair()
    pair.board.memory.write(DATA, (8 | 8 << 48).to_bytes(8, "little").ljust(512, b"\0"))
    pair.board.table([(DATA, 512)])
    pair.board.command(6, features=1, count=1, extended=True)
    pair.board.start(to_memory=False)
    pair = pair.moved()
    pair.context.run()
    assert node_of(pair.disk).calls[-1] == ("discard", 8, 8)


def test_move_a_packet() -> None:
    pair = Pair()
    cdb = bytes((0x28, 0, 0, 0, 0, 1, 0, 0, 100, 0, 0, 0))
    pair.board.command(0xA0, lba=2048 << 8, device=0xA0, base=BASE[1])
    pair.board.write_data(cdb[:6], base=BASE[1])
    pair = pair.moved()
    pair.board.write_data(cdb[6:], base=BASE[1])
    pair = pair.moved()
    got = b""
    for index in range(100):
        pair.context.run()
        got += pair.board.read_data(2048, 4, base=BASE[1])
        if index in (31, 50, 63, 99):
            pair = pair.moved()
    assert got == pattern(101, 2048)[2048:]
    pair.board.table([(DATA, 4096)])
    pair.board.command(0xA0, features=1, device=0xA0, base=BASE[1])
    pair.board.write_data(bytes((0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0)), base=BASE[1])
    pair = pair.moved()
    pair.board.start(bm=BM + 8)
    pair = pair.moved()
    pair.context.run()
    assert pair.board.memory.read(DATA, 4096) == pattern(3, 2048)[2048:]


def test_move_data_to_the_drive() -> None:
    pair = Pair()
    pair.board.packet(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 8)), limit=4)
    pair.board.write_data(bytes(2), base=BASE[1])
    pair = pair.moved()
    pair.board.write_data(bytes(6), base=BASE[1])
    assert pair.board.inp(BASE[1] + 7) == READY


def test_state_of_other_hardware() -> None:
    state = Pair().board.ide.save()
    with pytest.raises(StateError, match="drives are others"):
        Board(d0=disk()).ide.load(state)
    with pytest.raises(StateError, match="another kind"):
        Board().ide.load(PciFunctionState())
    empty = Board().ide.save()
    empty.channels[0].files[0].status = BSY
    with pytest.raises(StateError, match="no drive"):
        Board().ide.load(empty)


def _change(values: dict[str, Any], path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


_DISK = ["channels", 0, "disks", 0]
_CD = ["channels", 1, "cds", 0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["bus_masters", 0, "status"], 0x80),
        (["bus_masters", 0, "status"], 1),
        (["bus_masters", 0, "command"], 2),
        (["bus_masters", 0, "rest"], 0x10002),
        (["channels", 0, "control"], 1),
        ([*_DISK, "multiple"], 3),
        ([*_DISK, "mode"], 0x4F),
        ([*_DISK, "activity"], 4),
        ([*_DISK, "activity"], 99),
        ([*_DISK, "lba"], (1 << 48) - 1),
        ([*_DISK, "remaining"], 1),
        ([*_DISK, "transfer", "position"], 512),
        ([*_DISK, "transfer", "in_end"], 1024),
        ([*_DISK, "transfer", "out_end"], 512),
        ([*_CD, "packet"], bytes(12)),
        ([*_CD, "transfer", "in_end"], 60000),
        ([*_CD, "length"], 9000),
        ([*_CD, "fetched"], 5),
    ],
)
def test_states_that_cannot_be(path: list[Any], value: Any) -> None:
    pair = Pair()
    pair.board.command(0x20, lba=2, count=4)
    pair.board.packet(bytes((0x28, 0, 0, 0, 0, 1, 0, 0, 4)))
    pair.context.run()
    values = pair.board.ide.save().to_dict()
    Pair().board.ide.load(Piix3IdeState.from_dict(values))
    _change(values, path, value)
    with pytest.raises(StateError):
        Pair().board.ide.load(Piix3IdeState.from_dict(values))


# -- programs that mean no good -------------------------------------------------------------------------------------

_PORTS = [*range(0x1F0, 0x1F8), *range(0x170, 0x178), *CONTROL, *range(BM, BM + 16)]
_COMMANDS = sorted({*IdeDisk.commands, 0xA0, 0xA1, 0x08, 0x90})
_WRITE = st.tuples(st.just("out"), st.sampled_from(_PORTS), st.integers(0, 255), st.just(1))
_READ = st.tuples(st.just("in"), st.sampled_from(_PORTS), st.just(0), st.sampled_from((1, 2, 4)))
_DATA = st.tuples(st.just("data"), st.sampled_from(BASE), st.integers(0, 0xFFFFFFFF), st.integers(1, 300))
_TAKE = st.tuples(st.just("take"), st.sampled_from(BASE), st.just(0), st.integers(1, 600))
_ISSUE = st.tuples(st.just("out"), st.sampled_from((0x1F7, 0x177)), st.sampled_from(_COMMANDS), st.just(1))
_GO = st.tuples(
    st.just("go"),
    st.sampled_from((BM, BM + 8)),
    st.sampled_from((1, 9, 0)),
    st.sampled_from((0, TABLE, 0xFFF8, 0xFFFFFFFC)),
)
_STEP = st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0))
_PACKET = st.tuples(st.just("packet"), st.binary(min_size=12, max_size=12), st.integers(0, 1), st.integers(0, 0xFFFF))
_PROGRAM = st.lists(st.one_of(_WRITE, _READ, _DATA, _TAKE, _ISSUE, _GO, _STEP, _PACKET), max_size=40)


def _perform(board: Board, context: SteppedContext, step: tuple[Any, ...]) -> None:
    kind, port, value, size = step
    if kind == "out":
        board.out(port, value, size)
    elif kind == "in":
        assert 0 <= board.inp(port, size) < 1 << (8 * size)
    elif kind == "data":
        for _ in range(size):
            board.out(port, value & 0xFFFF, 2)
        board.out(port, value, 4)
    elif kind == "take":
        for _ in range(size):
            assert 0 <= board.inp(port, 4) < 1 << 32
        board.inp(port, 2)
    elif kind == "go":
        board.out(port + 4, size, 4)
        board.out(port, 0)
        board.out(port, value)
    elif kind == "packet":
        board.packet(port, features=value, limit=size)
    elif context.queue:
        context.step()


@settings(max_examples=150, deadline=None)
@given(_PROGRAM, st.binary(max_size=64))
def test_any_program_is_borne(program: list[tuple[Any, ...]], table: bytes) -> None:
    context = SteppedContext()
    board = Board(d0=disk(300, context=context), d1=cd(50, context=context), d2=cd(40, context=context), d3=disk(9))
    board.memory.write(TABLE, table)
    board.memory.write(0, table)
    for step in program:
        _perform(board, context, step)
    state = board.ide.save()
    again = Board(d0=disk(300), d1=cd(50), d2=cd(40), d3=disk(9))
    again.ide.load(Piix3IdeState.from_dict(state.to_dict()))
    context.run()
    board.ide.reset()
    assert board.inp(BASE[0] + 7) == READY
    assert not any(line.level for line in board.irqs)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_state_is_refused_or_borne(data: st.DataObject) -> None:
    pair = Pair()
    pair.board.command(data.draw(st.sampled_from((0x20, 0x30, 0xC8, 0xEC, 0x40, 0xC4))), lba=2, count=20)
    pair.board.packet(bytes((data.draw(st.sampled_from((0x28, 0x12, 0x55, 0xBE))), 0, 0, 0, 20, 0, 0, 0, 80, 0xF8)))
    values = pair.board.ide.save().to_dict()
    disk_state, cd_state = values["channels"][0]["disks"][0], values["channels"][1]["cds"][0]
    places = [[*_DISK, name] for name in disk_state if name not in ("transfer", "smart")]
    places += [[*_CD, name] for name in cd_state if name not in ("transfer", "unit")]
    places += [
        [*place, name]
        for place in ([*_DISK, "transfer"], [*_CD, "transfer"])
        for name in ("position", "in_end", "out_end", "data")
    ]
    places += [["channels", index, "files", 0, "status"] for index in range(2)]
    numbers = st.one_of(
        st.integers(0, 20), st.sampled_from((512, 1024, 0x88, 0xD0, 0x58, 0xFFFF, 65536)), st.binary(max_size=12)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        _change(values, data.draw(st.sampled_from(places)), data.draw(numbers))
    other = Pair()
    try:
        other.board.ide.load(Piix3IdeState.from_dict(values))
    except StateError:
        return
    for _ in range(8):
        other.context.run()
        for base in BASE:
            if other.board.inp(base + 7) & DRQ:
                other.board.read_data(1024, 4, base=base)
                other.board.write_data(bytes(1024), base=base)
    other.board.ide.save()
