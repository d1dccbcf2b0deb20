"""i440FX, PIIX3 and PIIX4-PM: reset values, shadowing, interrupt routing, reset control and base addresses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.acpi.pm import AcpiPm
from pyvm.devices.pci import constants as c
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import PciFunction
from pyvm.devices.pci.i440fx import PAM0, SMRAM, I440fx
from pyvm.devices.pci.piix3 import PIRQRC, Piix3, ResetControl, ResetControlState, swizzle
from pyvm.devices.pci.piix4_pm import Piix4Pm
from pyvm.devices.pci.piix4_smbus import SmbusHost, SmbusState
from pyvm.irq import IrqLine, SharedIrq, unconnected
from pyvm.memory import IoSpace
from pyvm.state import StateError


class Board:
    """The chip set on a bus, with all that it drives recorded."""

    def __init__(self) -> None:
        self.ports = IoSpace("ports")
        self.irqs: list[tuple[int, bool]] = []
        self.resets = 0
        self.pam_changes = 0
        lines = [IrqLine(lambda level, irq=irq: self.irqs.append((irq, level))) for irq in range(16)]
        self.host = I440fx(1 << 30)
        self.host.on_pam_change = self._pam
        self.isa = Piix3(lines)
        self.acpi = AcpiPm(ManualClock(), unconnected(), lambda kind: None)
        self.smbus = SmbusHost()
        self.pm = Piix4Pm(self.acpi, self.smbus)
        self.bus = PciBus(self.ports, IoSpace("mmio"), self.isa.route_intx, lambda address, data: None)
        self.bus.attach(self.host, 0)
        self.bus.attach(self.isa, 1)
        self.bus.attach(self.pm, 1, 3)
        self.reset_control = ResetControl(self._reset)
        self.bus.reset_control = self.reset_control
        self.ports.add(0xCF8, 4, self.bus.address_read, self.bus.address_write, "pci address")

    def _pam(self) -> None:
        self.pam_changes += 1

    def _reset(self) -> None:
        self.resets += 1


@pytest.fixture
def board() -> Board:
    return Board()


# Dwords that differ from 0 after power-on; taken from a running machine of the same chip set.
RESET_VALUES = {
    "host": {0x00: 0x12378086, 0x08: 0x06000002, 0x2C: 0x11001AF4, 0x54: 0x80000000, 0x70: 0x00020000},
    "isa": {
        0x00: 0x70008086, 0x04: 0x02000000, 0x08: 0x06010000, 0x0C: 0x00800000, 0x2C: 0x11001AF4, 0x4C: 0x0003004D,
        0x60: 0x80808080, 0x68: 0x00000200, 0x70: 0x00000080, 0x74: 0x0C0C0000, 0x78: 0x00000002, 0xA0: 0x00000008,
        0xA8: 0x0000000F,
    },
    "pm": {
        0x00: 0x71138086, 0x04: 0x02800000, 0x08: 0x06800003, 0x2C: 0x11001AF4, 0x3C: 0x00000100, 0x40: 0x00000001,
        0x58: 0x02000000, 0x5C: 0x10000000, 0x60: 0x60000000, 0x90: 0x0000B101, 0xD0: 0x00090000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(RESET_VALUES))
def test_reset_values(board: Board, name: str) -> None:
    function: PciFunction = getattr(board, name)
    expected = dict.fromkeys(range(0, 256, 4), 0) | RESET_VALUES[name]
    assert {offset: function.config_read(offset, 4) for offset in expected} == expected
    for offset in range(0, 256, 4):
        function.config_write(offset, 4, 0xFFFF_FFFF)
    function.config_write(0x04, 4, 0)
    board.bus.reset()
    assert {offset: function.config_read(offset, 4) for offset in expected} == expected


def test_pam(board: Board) -> None:
    assert not any(segment.readable or segment.writable for segment in board.host.pam_segments())
    board.host.config_write(PAM0, 1, 0x30)
    board.host.config_write(PAM0 + 1, 1, 0x21)
    assert board.pam_changes == 2
    segments = {segment.base: segment for segment in board.host.pam_segments()}
    assert len(segments) == 13
    assert sum(segment.size for segment in segments.values()) == 0x40000
    assert (segments[0xF0000].readable, segments[0xF0000].writable) == (True, True)
    assert (segments[0xC0000].readable, segments[0xC0000].writable) == (True, False)
    assert (segments[0xC4000].readable, segments[0xC4000].writable) == (False, True)
    board.host.config_write(0x50, 2, 7)
    assert board.pam_changes == 2
    board.bus.reset()
    assert board.pam_changes == 3
    assert not board.host.pam_segments()[12].readable


def test_smram_lock(board: Board) -> None:
    board.host.config_write(SMRAM, 1, 0x48)
    assert board.host.smram_open
    board.host.config_write(SMRAM, 1, 0x58)
    assert not board.host.smram_open
    board.host.config_write(SMRAM, 1, 0x48)
    assert board.host.config_read(SMRAM, 1) == 0x1A
    other = Board()
    other.host.load(board.host.save())
    other.host.config_write(SMRAM, 1, 0x48)
    assert other.host.config_read(SMRAM, 1) == 0x1A
    board.bus.reset()
    board.host.config_write(SMRAM, 1, 0x48)
    assert board.host.smram_open


def test_host_bridge_refuses_a_foreign_state(board: Board) -> None:
    with pytest.raises(StateError):
        board.host.load(board.isa.save())


@pytest.mark.parametrize(("slot", "pin", "pirq"), [(1, 0, 0), (3, 0, 2), (4, 0, 3), (5, 0, 0), (3, 2, 0), (0, 0, 3)])
def test_swizzle(slot: int, pin: int, pirq: int) -> None:
    assert swizzle(slot, pin) == pirq


def test_routing(board: Board) -> None:
    card = PciFunction("card", vendor=1, device=2, class_code=0, interrupt_pin=1)
    board.bus.attach(card, 3)  # INTA of slot 3 is PIRQC
    card.intx.set(True)
    assert board.irqs == []
    assert board.isa.irq_of(2) is None
    board.isa.config_write(PIRQRC + 2, 1, 11)
    assert board.irqs == [(11, True)]
    board.isa.config_write(PIRQRC + 2, 1, 10)
    assert sorted(board.irqs[1:]) == [(10, True), (11, False)]
    board.isa.config_write(PIRQRC + 2, 1, 8)  # not an IRQ that PCI can have
    assert board.irqs[-1] == (10, False)
    assert board.isa.irq_of(2) is None


def test_shared_levels_are_ored(board: Board) -> None:
    cards = [PciFunction(f"card{n}", vendor=1, device=2, class_code=0, interrupt_pin=1) for n in range(3)]
    for slot, card in zip((3, 7, 4), cards, strict=True):  # the first two share PIRQC
        board.bus.attach(card, slot)
    board.isa.config_write(PIRQRC, 4, 0x0B0B8080)
    for card in cards:
        card.intx.set(True)
    assert board.irqs == [(11, True)]
    cards[0].intx.set(False)
    cards[2].intx.set(False)
    assert board.irqs == [(11, True)]
    cards[1].intx.set(False)
    assert board.irqs[-1] == (11, False)


def test_routing_after_load(board: Board) -> None:
    card = PciFunction("card", vendor=1, device=2, class_code=0, interrupt_pin=1)
    board.bus.attach(card, 3)
    board.isa.config_write(PIRQRC + 2, 1, 11)
    card.intx.set(True)
    other = Board()
    twin = PciFunction("card", vendor=1, device=2, class_code=0, interrupt_pin=1)
    other.bus.attach(twin, 3)
    twin.load(card.save())
    other.isa.load(board.isa.save())
    assert other.irqs == [(11, True)]
    other.bus.reset()
    assert other.irqs[-1] == (11, False)


def test_line_into_a_shared_irq() -> None:
    levels: list[bool] = []
    shared = SharedIrq(levels.append)
    isa = Piix3([shared.driver() for _ in range(16)])
    isa.config_write(PIRQRC, 1, 9)
    isa.route_intx(1, 0, True)
    isa.route_intx(1, 0, False)
    assert levels == [True, False]


def test_reset_control(board: Board) -> None:
    board.ports.write(0xCF9, 1, 0x02)
    assert board.ports.read(0xCF9, 1) == 2
    assert board.resets == 0
    board.ports.write(0xCF9, 1, 0x06)
    assert board.resets == 1
    assert board.ports.read(0xCF9, 1) == 2
    state = board.reset_control.save()
    board.reset_control.reset()
    assert board.reset_control.read(0, 1) == 0
    board.reset_control.load(state)
    assert board.reset_control.read(0, 1) == 2
    with pytest.raises(StateError):
        board.reset_control.load(ResetControlState(4))


def test_pm_base(board: Board) -> None:
    board.pm.config_write(0x40, 4, 0x0601)
    assert board.ports.find(0x600) is None
    board.pm.config_write(0x80, 1, 1)
    assert board.pm.config_read(0x40, 4) == 0x601
    board.ports.write(0x602, 2, 0x100)
    assert board.acpi.pm_read(2, 2) == 0x100
    board.pm.config_write(0x40, 4, 0xFFFF_FFFF)
    assert board.pm.config_read(0x40, 4) == 0xFFC1
    assert board.ports.read(0xFFC2, 2) == 0x100
    board.pm.config_write(0x40, 4, 0xCC1)  # over the configuration ports: left out
    assert board.ports.read(0xCC2, 2) == 0xFFFF
    assert board.ports.read(0xCF8, 4) == 0
    board.pm.config_write(0x40, 4, 0)
    assert board.pm.pm_address() is None


def test_smbus_has_no_slaves(board: Board) -> None:
    board.pm.config_write(0x90, 4, 0x701)
    board.pm.config_write(c.COMMAND, 2, c.COMMAND_IO)
    ports = board.ports
    ports.write(0x700, 1, 0x1E)
    ports.write(0x704, 1, 0xA1)
    ports.write(0x702, 1, 0x48)
    assert ports.read(0x700, 1) == 0x04
    assert ports.read(0x702, 1) == 0x08
    ports.write(0x700, 1, 0x04)
    assert ports.read(0x700, 1) == 0
    ports.write(0x702, 1, 0x02)
    assert ports.read(0x700, 1) == 0x10
    for value in range(40):
        ports.write(0x707, 1, value)
    ports.read(0x702, 1)
    assert [ports.read(0x707, 1) for _ in range(9)] == [32, 33, 34, 35, 36, 37, 38, 39, 8]
    state = board.smbus.save()
    board.smbus.reset()
    assert ports.read(0x704, 1) == 0
    board.smbus.load(SmbusState.from_dict(state.to_dict()))
    assert ports.read(0x704, 1) == 0xA1
    with pytest.raises(StateError):
        board.smbus.load(SmbusState(status=0xFF))
    board.pm.config_write(0xD2, 1, 0)
    assert board.pm.smbus_address() is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["host", "isa", "pm"]), st.integers(0, 252), st.integers(0, 0xFFFF_FFFF)),
        max_size=40,
    )
)
def test_hostile_configuration(steps: list[tuple[str, int, int]]) -> None:
    board = Board()
    for name, offset, value in steps:
        function: PciFunction = getattr(board, name)
        function.config_write(offset, 4, value)
        board.isa.route_intx(value & 31, value >> 5 & 3, bool(value & 128))
        board.ports.read(value & 0xFFFF, 4)
    for function in (board.host, board.isa, board.pm):
        function.load(function.save())
