"""PCI configuration space, BAR mapping, INTx and the configuration ports."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.bus import PciBus, PciBusState
from pyvm.devices.pci.function import BarKind, PciFunction, Window
from pyvm.memory import IoSpace
from pyvm.state import StateError


class Board:
    """A bus between two empty spaces, recording interrupts."""

    def __init__(self) -> None:
        self.ports = IoSpace("ports")
        self.mmio = IoSpace("mmio")
        self.intx: list[tuple[int, int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.bus = PciBus(
            self.ports,
            self.mmio,
            lambda slot, pin, level: self.intx.append((slot, pin, level)),
            lambda address, data: self.messages.append((address, data)),
        )
        self.ports.add(0xCF8, 4, self.bus.address_read, self.bus.address_write, "pci address")
        self.ports.add(0xCFC, 4, self.bus.data_read, self.bus.data_write, "pci data")

    def select(self, slot: int, fn: int, offset: int) -> None:
        self.ports.write(0xCF8, 4, c.CONFIG_ENABLE | slot << 11 | fn << 8 | offset & 0xFC)

    def read(self, slot: int, offset: int, size: int = 4, fn: int = 0) -> int:
        self.select(slot, fn, offset)
        return self.ports.read(0xCFC + (offset & 3), size)

    def write(self, slot: int, offset: int, value: int, size: int = 4, fn: int = 0) -> None:
        self.select(slot, fn, offset)
        self.ports.write(0xCFC + (offset & 3), size, value)


class Card(PciFunction):
    """A function with one BAR of each kind over plain memory."""

    def __init__(self, name: str = "card") -> None:
        super().__init__(name, vendor=0x1234, device=0x5678, class_code=0x078000, revision=3, interrupt_pin=1)
        self.memory = {0: bytearray(64), 1: bytearray(4096), 4: bytearray(0x4000)}
        for index, kind in ((0, BarKind.IO), (1, BarKind.MEMORY), (4, BarKind.MEMORY64)):
            self._add(index, kind)

    def _add(self, index: int, kind: BarKind) -> None:
        memory = self.memory[index]

        def read(offset: int, size: int) -> int:
            return int.from_bytes(memory[offset : offset + size], "little")

        def write(offset: int, size: int, value: int) -> None:
            memory[offset : offset + size] = value.to_bytes(size, "little")

        prefetch = kind is BarKind.MEMORY64
        self.add_bar(index, len(memory), kind, read=read, write=write, name=f"bar{index}", prefetchable=prefetch)


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def card(board: Board) -> Card:
    card = Card()
    board.bus.attach(card, 3)
    return card


def test_header(board: Board, card: Card) -> None:
    assert board.read(3, c.VENDOR_ID) == 0x56781234
    assert board.read(3, c.REVISION_ID) == 0x07800003
    assert board.read(3, c.SUBSYSTEM_VENDOR_ID) == 0x11001AF4
    assert board.read(3, c.INTERRUPT_LINE, 2) == 0x0100
    assert board.read(3, c.CLASS_CODE + 2, 1) == 0x07
    board.write(3, c.VENDOR_ID, 0)
    assert board.read(3, c.VENDOR_ID, 2) == 0x1234
    board.write(3, c.COMMAND, 0xFFFF_FFFF)
    assert board.read(3, c.COMMAND, 2) == 0x0507


def test_nobody_answers(board: Board, card: Card) -> None:
    assert board.read(4, 0) == 0xFFFF_FFFF
    assert board.read(3, 0, fn=1) == 0xFFFF_FFFF
    board.write(4, 4, 7)
    board.ports.write(0xCF8, 4, 3 << 11)  # not enabled
    assert board.ports.read(0xCFC, 2) == 0xFFFF
    board.ports.write(0xCF8, 4, c.CONFIG_ENABLE | 1 << 16 | 3 << 11)  # another bus
    assert board.ports.read(0xCFC, 4) == 0xFFFF_FFFF


def test_address_register_takes_dwords_only(board: Board) -> None:
    board.ports.write(0xCF8, 4, 0xFFFF_FFFF)
    assert board.ports.read(0xCF8, 4) == 0x80FF_FFFC
    board.ports.write(0xCF8, 2, 0)
    board.ports.write(0xCF9, 1, 0)
    assert board.ports.read(0xCF8, 4) == 0x80FF_FFFC
    assert board.ports.read(0xCF8, 2) == 0xFFFF


@pytest.mark.parametrize(
    ("offset", "probe"), [(0x10, 0xFFFFFFC1), (0x14, 0xFFFFF000), (0x20, 0xFFFFC00C), (0x24, 0xFFFFFFFF)]
)
def test_sizing(board: Board, card: Card, offset: int, probe: int) -> None:
    board.write(3, c.COMMAND, 3, 2)  # even with decoding on, nothing harmful is mapped
    board.write(3, offset, 0xFFFF_FFFF)
    assert board.read(3, offset) == probe
    assert [region.name for region in board.mmio.regions()] == []
    assert card.bar_address(0) is None


def test_decoding_follows_the_command_register(board: Board, card: Card) -> None:
    board.write(3, 0x10, 0xC000)
    board.write(3, 0x14, 0xFEB0_0000)
    assert board.ports.read(0xC000, 1) == 0xFF
    board.write(3, c.COMMAND, c.COMMAND_IO, 1)
    board.ports.write(0xC004, 4, 0xCAFE)
    assert card.memory[0][4:6] == b"\xfe\xca"
    assert card.bar_address(0) == 0xC000
    assert board.mmio.find(0xFEB0_0000) is None
    board.write(3, c.COMMAND, c.COMMAND_MEMORY, 1)
    assert board.ports.read(0xC004, 4) == 0xFFFF_FFFF
    board.mmio.write(0xFEB0_0010, 8, 0x1122334455667788)
    assert card.memory[1][0x10:0x18] == bytes.fromhex("8877665544332211")
    board.write(3, 0x14, 0xFEC0_0000)
    assert board.mmio.find(0xFEB0_0010) is None
    assert board.mmio.read(0xFEC0_0010, 2) == 0x7788


def test_wide_bar_above_four_gib(board: Board, card: Card) -> None:
    board.write(3, c.COMMAND, c.COMMAND_MEMORY, 1)
    board.write(3, 0x20, 0x8000_4000)
    assert card.bar_address(4) == 0x8000_4000
    board.write(3, 0x24, 0x12)
    assert card.bar_address(4) == 0x12_8000_4000
    board.mmio.write(0x12_8000_4008, 4, 5)
    assert card.memory[4][8] == 5
    board.write(3, 0x24, 0xFFFF_FFFF)  # beyond what page tables can name
    assert card.bar_address(4) is None


def test_overlap_is_left_out_until_the_place_is_free(board: Board, card: Card) -> None:
    other = Card("other")
    board.bus.attach(other, 4)
    board.mmio.add(0xFEC0_0000, 0x1000, lambda o, s: 0x55, lambda o, s, v: None, "ioapic")
    for slot in (3, 4):
        board.write(slot, c.COMMAND, c.COMMAND_MEMORY, 1)
    board.write(3, 0x14, 0xFEC0_0000)
    assert board.mmio.read(0xFEC0_0000, 1) == 0x55
    board.write(3, 0x14, 0xFEB0_0000)
    board.write(4, 0x14, 0xFEB0_0000)
    card.memory[1][0], other.memory[1][0] = 1, 2
    assert board.mmio.read(0xFEB0_0000, 1) == 1
    board.write(3, c.COMMAND, 0, 1)
    assert board.mmio.read(0xFEB0_0000, 1) == 2
    board.write(3, c.COMMAND, c.COMMAND_MEMORY, 1)
    board.bus.detach(other)
    assert board.mmio.read(0xFEB0_0000, 1) == 1
    board.bus.detach(card)
    assert [region.name for region in board.mmio.regions()] == ["ioapic"]
    with pytest.raises(ValueError, match="not plugged in"):
        board.bus.detach(card)


def test_intx(board: Board, card: Card) -> None:
    card.intx.set(True)
    assert board.intx == [(3, 0, True)]
    assert board.read(3, c.STATUS, 2) & c.STATUS_INTERRUPT
    board.write(3, c.COMMAND, c.COMMAND_INTX_DISABLE, 2)
    assert board.intx.pop() == (3, 0, False)
    assert board.read(3, c.STATUS, 2) & c.STATUS_INTERRUPT  # still shown
    board.write(3, c.COMMAND, 0, 2)
    assert board.intx.pop() == (3, 0, True)
    card.intx.set(False)
    assert board.intx.pop() == (3, 0, False)
    assert not board.read(3, c.STATUS, 2) & c.STATUS_INTERRUPT


def test_unplugging_ends_the_interrupt(board: Board, card: Card) -> None:
    card.intx.set(True)
    board.bus.detach(card)
    assert board.intx == [(3, 0, True), (3, 0, False)]
    board.bus.attach(card, 5)
    assert board.intx[2:] == [(5, 0, True)]


def test_error_bits_clear_on_ones(board: Board, card: Card) -> None:
    card.config[c.STATUS + 1] |= 0x30
    board.write(3, c.STATUS, 0x1000, 2)
    assert board.read(3, c.STATUS, 2) == 0x2000


def test_capability_list(board: Board, card: Card) -> None:
    first = card.add_capability(c.CAP_VENDOR, bytes(range(18)), bytes(14) + b"\xff" * 4)
    second = card.add_capability(c.CAP_VENDOR, bytes(4))
    assert (first, second) == (0x40, 0x54)
    assert board.read(3, c.STATUS, 2) & c.STATUS_CAPABILITIES
    assert board.read(3, c.CAPABILITIES, 1) == second
    assert board.read(3, second, 2) == c.CAP_VENDOR | first << 8
    assert board.read(3, first, 2) == c.CAP_VENDOR
    board.write(3, first, 0xFFFF_FFFF)
    board.write(3, first + 16, 0x11223344)
    assert board.read(3, first) == 0x01000009
    assert board.read(3, first + 16) == 0x11223344
    card.reset()
    assert board.read(3, first + 16) == 0x11100F0E
    with pytest.raises(ValueError, match="differ in length"):
        card.add_capability(9, b"12", b"1")
    with pytest.raises(ValueError, match="no room"):
        card.add_capability(9, bytes(0xB0))


def test_config_hooks(board: Board) -> None:
    class Windowed(PciFunction):
        writes: list[tuple[int, int]] = []  # noqa: RUF012

        def on_config_read(self, offset: int, size: int) -> None:
            if offset == 0x50:
                self.config[0x50] += 1

        def on_config_write(self, offset: int, size: int) -> None:
            self.writes.append((offset, size))

    windowed = Windowed("windowed", vendor=1, device=2, class_code=0)
    board.bus.attach(windowed, 6)
    assert [board.read(6, 0x50, 1), board.read(6, 0x50, 1)] == [1, 2]
    board.write(6, 0x52, 0, 2)
    assert windowed.writes == [(0x52, 2)]


def test_chip_set_window_is_mapped_where_it_says(board: Board, card: Card) -> None:
    place: list[int | None] = [None]
    card.add_window(Window("pm", 64, True, lambda: place[0], lambda o, s: o, lambda o, s, v: None))
    place[0] = 0x600
    board.write(3, 0x40, 0)
    assert board.ports.read(0x607, 1) == 7
    place[0] = 0xCE0  # over the configuration ports
    board.write(3, 0x40, 0)
    assert board.ports.find(0x600) is None
    assert board.ports.read(0xCF8, 1) == 0xFF


def test_expansion_rom(board: Board, card: Card) -> None:
    assert board.read(3, c.ROM_BAR) == 0
    card.add_rom(b"\x55\xaa" + bytes(range(256)) * 9)
    board.write(3, c.ROM_BAR, 0xFFFFFFFE)
    assert board.read(3, c.ROM_BAR) == -4096 & 0xFFFFFFFF
    assert card.rom_address() is None
    board.write(3, c.COMMAND, c.COMMAND_MEMORY, 2)
    board.write(3, c.ROM_BAR, 0xFEB00000)
    assert card.rom_address() is None
    board.write(3, c.ROM_BAR, 0xFEB00000 | c.ROM_ENABLE)
    assert card.rom_address() == 0xFEB00000
    assert board.mmio.read(0xFEB00000, 4) == 0x0100AA55
    assert board.mmio.read(0xFEB00000 + 2306, 2) == 0xFFFF
    board.mmio.write(0xFEB00000, 4, 0)
    assert board.mmio.read(0xFEB00000, 2) == 0xAA55
    board.write(3, c.COMMAND, 0, 2)
    assert board.mmio.find(0xFEB00000) is None


def test_places(board: Board, card: Card) -> None:
    with pytest.raises(ValueError, match="slot 3 function 0 not available for other, in use by card"):
        board.bus.attach(Card("other"), 3)
    with pytest.raises(ValueError, match="slot 32 function 0 does not exist"):
        board.bus.attach(Card(), 32)
    second = Card("second")
    board.bus.attach(second, 3, 2)
    assert board.read(3, c.HEADER_TYPE, 1) == c.HEADER_MULTIFUNCTION
    assert board.read(3, c.HEADER_TYPE, 1, fn=2) == 0
    assert board.bus.function_at(3, 2) is second
    automatic = Card("automatic")
    board.bus.attach(automatic, None)
    assert automatic.slot == 0
    assert board.bus.functions() == [automatic, card, second]
    for slot in range(31):
        board.bus.attach(Card(), None) if slot < 30 else None
    with pytest.raises(ValueError, match="no slot/function available for late"):
        board.bus.attach(Card("late"), None)


@pytest.mark.parametrize(
    ("index", "size", "kind"),
    [(0, 64, BarKind.IO), (5, 32, BarKind.MEMORY64), (2, 24, BarKind.MEMORY), (2, 8, BarKind.MEMORY),
     (6, 64, BarKind.IO), (5, 64, BarKind.IO)],
)  # fmt: skip
def test_impossible_bars(card: Card, index: int, size: int, kind: BarKind) -> None:
    with pytest.raises(ValueError, match="not possible"):
        card.add_bar(index, size, kind, read=lambda o, s: 0, write=lambda o, s, v: None, name="bad")


def test_reset(board: Board, card: Card) -> None:
    board.write(3, 0x14, 0xFEB0_0000)
    board.write(3, c.INTERRUPT_LINE, 11, 1)
    board.write(3, c.COMMAND, 0x107, 2)
    card.intx.set(True)
    board.bus.reset()
    assert board.mmio.regions() == []
    assert board.intx[-1] == (3, 0, False)
    assert board.ports.read(0xCF8, 4) == 0
    assert board.read(3, 0x14) == 0
    assert board.read(3, 0x20) == 0xC
    assert board.read(3, c.INTERRUPT_LINE, 2) == 0x100
    assert board.read(3, c.COMMAND) == 0


def test_save_and_load(board: Board, card: Card) -> None:
    board.write(3, 0x14, 0xFEB0_0000)
    board.write(3, c.COMMAND, 7, 2)
    card.intx.set(True)
    state, bus_state = card.save(), board.bus.save()
    second_board, second = Board(), Card()
    second_board.bus.attach(second, 3)
    second_board.bus.load(PciBusState.from_dict(bus_state.to_dict()))
    second.load(type(state).from_dict(state.to_dict()))
    assert second.bar_address(1) == 0xFEB0_0000
    assert second_board.mmio.find(0xFEB0_0000) is not None
    assert second_board.intx == [(3, 0, True)]
    assert second.save() == state
    assert second_board.bus.save() == bus_state


def test_foreign_states_are_refused(card: Card, board: Board) -> None:
    state = card.save()
    state.config = b"\0" + state.config[1:]
    with pytest.raises(StateError, match="differs at 0x0"):
        card.load(state)
    state = card.save()
    state.msix = PciFunction("x", vendor=1, device=1, class_code=0).add_msix(2, 0).save()
    with pytest.raises(StateError, match="MSI-X"):
        card.load(state)
    with pytest.raises(StateError, match="reserved"):
        board.bus.load(PciBusState(3))


accesses = st.lists(
    st.tuples(
        st.sampled_from([0xCF8, 0xCF9, 0xCFA, 0xCFC, 0xCFD, 0xCFE, 0xCFF]),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 0xFFFF_FFFF) | st.integers(0, 255).map(lambda o: 0x80001800 | o) | st.sampled_from([0xFEC00000]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(accesses)
def test_hostile_configuration(steps: list[tuple[int, int, int]]) -> None:
    board, card = Board(), Card()
    card.add_msix(3, 2)
    board.bus.attach(card, 3)
    board.mmio.add(0xFEC0_0000, 0x1000, lambda o, s: 0, lambda o, s, v: None, "ioapic")
    for port, size, value in steps:
        board.ports.write(port, size, value)
        assert 0 <= board.ports.read(port, size) < 1 << (8 * size)
    assert (card.config[0], card.config[1], card.config[c.SUBSYSTEM_ID]) == (0x34, 0x12, 0)
    board.bus.reset()
    assert [region.name for region in board.mmio.regions()] == ["ioapic"]
    assert len(board.ports.regions()) == 2
