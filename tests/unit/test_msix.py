"""MSI-X: table, masks and pending bits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import BarKind, PciFunction
from pyvm.devices.pci.msix import Msix, MsixState
from pyvm.memory import IoSpace
from pyvm.state import StateError

BAR = 0xFEB0_0000
ENABLE, FUNCTION_MASK = 0x80, 0x40  # in the upper byte of the control word


class Board:
    """One function with two vectors, its table mapped and bus mastering on."""

    def __init__(self, vectors: int = 2) -> None:
        self.messages: list[tuple[int, int]] = []
        self.intx: list[bool] = []
        self.mmio = IoSpace("mmio")
        self.bus = PciBus(
            IoSpace("ports"),
            self.mmio,
            lambda slot, pin, level: self.intx.append(level),
            lambda address, data: self.messages.append((address, data)),
        )
        self.function = PciFunction("card", vendor=1, device=2, class_code=0, interrupt_pin=1)
        self.msix = self.function.add_msix(vectors, 1)
        self.capability = self.function.config[c.CAPABILITIES]
        self.bus.attach(self.function, 2)
        self.function.config_write(0x14, 4, BAR)
        self.function.config_write(c.COMMAND, 2, c.COMMAND_MEMORY | c.COMMAND_MASTER)

    def control(self, bits: int) -> None:
        self.function.config_write(self.capability + 3, 1, bits)

    def entry(self, vector: int, address: int, data: int, masked: bool = False) -> None:
        base = BAR + 16 * vector
        self.mmio.write(base, 8, address)
        self.mmio.write(base + 8, 4, data)
        self.mmio.write(base + 12, 4, int(masked))

    def pending(self) -> int:
        return self.mmio.read(BAR + 0x800, 8)


@pytest.fixture
def board() -> Board:
    return Board()


def test_capability(board: Board) -> None:
    read = board.function.config_read
    assert read(board.capability, 4) == 0x0001_0011
    assert read(board.capability + 4, 4) == 1
    assert read(board.capability + 8, 4) == 0x801
    board.function.config_write(board.capability, 4, 0xFFFF_FFFF)
    assert read(board.capability, 4) == 0xC001_0011


def test_message(board: Board) -> None:
    board.entry(1, 0x1_FEE0_1000, 0x4041)
    board.msix.notify(1)
    assert board.messages == []
    board.control(ENABLE)
    assert board.msix.enabled
    board.msix.notify(1)
    assert board.messages == [(0x1_FEE0_1000, 0x4041)]
    board.msix.notify(2)
    board.msix.notify(-1)
    assert len(board.messages) == 1


def test_masked_vector_stays_pending_until_unmasked(board: Board) -> None:
    board.entry(0, 0xFEE0_0000, 0x30, masked=True)
    board.control(ENABLE)
    board.msix.notify(0)
    board.msix.notify(0)
    assert board.pending() == 1
    assert board.messages == []
    board.mmio.write(BAR + 12, 4, 0)
    assert board.messages == [(0xFEE0_0000, 0x30)]
    assert board.pending() == 0


def test_function_mask(board: Board) -> None:
    board.entry(0, 0xFEE0_0000, 0x30)
    board.entry(1, 0xFEE0_0000, 0x31)
    board.control(ENABLE | FUNCTION_MASK)
    board.msix.notify(1)
    board.msix.notify(0)
    assert board.msix.is_masked(0)
    assert board.pending() == 3
    board.msix.clear_pending(0)
    board.control(ENABLE)
    assert board.messages == [(0xFEE0_0000, 0x31)]
    assert not board.msix.is_masked(0)


def test_vectors_are_masked_after_reset(board: Board) -> None:
    board.entry(0, 0xFEE0_0000, 0x30)
    board.control(ENABLE)
    board.bus.reset()
    assert not board.msix.enabled
    assert board.mmio.regions() == []
    assert board.msix.read(12, 4) == 1
    assert board.msix.read(0, 8) == 0


def test_pending_bits_are_read_only_and_messages_dwords(board: Board) -> None:
    board.mmio.write(BAR + 0x800, 8, 0xFF)
    assert board.pending() == 0
    board.mmio.write(BAR, 4, 0xFEE0_0003)
    assert board.mmio.read(BAR, 4) == 0xFEE0_0000
    board.mmio.write(BAR + 12, 4, 0xFFFF_FFFE)
    assert board.mmio.read(BAR + 12, 4) == 0
    assert board.mmio.read(BAR + 0x400, 4) == 0


def test_no_message_without_bus_mastering(board: Board) -> None:
    board.entry(0, 0xFEE0_0000, 0x30)
    board.control(ENABLE)
    board.function.config_write(c.COMMAND, 2, c.COMMAND_MEMORY)
    board.msix.notify(0)
    assert board.messages == []


def test_intx_is_silent_while_msix_is_on(board: Board) -> None:
    board.function.intx.set(True)
    board.control(ENABLE)
    assert board.intx == [True, False]
    board.control(0)
    assert board.intx == [True, False, True]


def test_table_in_an_existing_bar() -> None:
    function = PciFunction("card", vendor=1, device=2, class_code=0)
    function.add_bar(0, 0x2000, BarKind.MEMORY, read=lambda o, s: 0, write=lambda o, s, v: None, name="registers")
    msix = function.add_msix(4, 0, 0x1000, 0x1800)
    assert len(function.bars) == 1
    msix.write(0x1008, 4, 7)
    assert msix.read(0x1008, 4) == 7
    assert msix.read(8, 4) == 0


def test_large_table() -> None:
    board = Board(2048)
    assert board.function.bars[1].size == 65536
    board.control(ENABLE)
    board.msix.notify(2047)
    assert board.mmio.read(BAR + 2048 * 16 + 2040 // 8, 1) == 0x80
    with pytest.raises(ValueError, match="2049 vectors"):
        Msix(2049, 0, 0, lambda: 0, lambda a, d: None)


def test_save_and_load(board: Board) -> None:
    board.entry(0, 0xFEE0_0000, 0x30, masked=True)
    board.control(ENABLE)
    board.msix.notify(0)
    second = Board()
    second.function.load(type(board.function.save()).from_dict(board.function.save().to_dict()))
    assert second.msix.enabled
    assert second.pending() == 1
    second.mmio.write(BAR + 12, 4, 0)
    assert second.messages == [(0xFEE0_0000, 0x30)]
    with pytest.raises(StateError, match="2 vectors"):
        second.msix.load(MsixState(bytes(16), bytes(8)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("wrnc"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)
        ),
        max_size=60,
    )
)
def test_hostile_table(steps: list[tuple[str, int, int, int]]) -> None:
    board = Board(5)
    board.control(ENABLE)
    for action, offset, size, value in steps:
        if action == "w":
            board.mmio.write(BAR + offset, size, value & ((1 << (8 * size)) - 1))
        elif action == "r":
            board.mmio.read(BAR + offset, size)
        elif action == "n":
            board.msix.notify(offset & 7)
        else:
            board.control(value & 0xFF)
    assert all(address & 3 == 0 and 0 <= data < 1 << 32 for address, data in board.messages)
    board.msix.load(board.msix.save())
