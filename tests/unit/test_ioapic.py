"""The I/O APIC: registers, edge and level inputs, remote IRR, EOI, destinations, and the message bus behind it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.apic_bus import BROADCAST, ApicBus, DeliveryMode
from pyvm.devices.ioapic import IoApic, IoApicState
from pyvm.state import StateError

MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
LOGICAL = 1 << 11


@dataclass
class Receiver:
    """A local APIC that notes its messages."""

    apic_id: int
    accepts_fixed: bool = True
    logical: int = 0
    priority: int = 0
    messages: list[tuple[DeliveryMode, int, bool]] = field(default_factory=list)

    def matches_logical(self, destination: int) -> bool:
        """Match by bits, as in the flat model."""
        return destination & self.logical != 0

    def arbitration_priority(self) -> int:
        """Return what the test set."""
        return self.priority

    def receive(self, mode: DeliveryMode, vector: int, level_triggered: bool) -> bool:
        """Note the message."""
        if mode <= DeliveryMode.LOWEST_PRIORITY and not self.accepts_fixed:
            return False
        self.messages.append((mode, vector, level_triggered))
        return True


class Rig:
    """An I/O APIC with two receivers."""

    def __init__(self) -> None:
        self.bus = ApicBus()
        self.cpus = [Receiver(0, logical=1), Receiver(1, logical=2)]
        for cpu in self.cpus:
            self.bus.attach(cpu)
        self.ioapic = IoApic(self.bus)

    def register(self, index: int) -> int:
        """Read a register behind the window."""
        self.ioapic.write(0, 4, index)
        return self.ioapic.read(0x10, 4)

    def set_register(self, index: int, value: int) -> None:
        """Write a register behind the window."""
        self.ioapic.write(0, 4, index)
        self.ioapic.write(0x10, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        """Program a redirection entry as Linux does: the high half first."""
        self.set_register(0x11 + 2 * pin, destination << 24)
        self.set_register(0x10 + 2 * pin, low)

    def vectors(self, cpu: int = 0) -> list[int]:
        """Return and forget the vectors that a receiver got."""
        messages = self.cpus[cpu].messages
        vectors = [vector for _, vector, _ in messages]
        messages.clear()
        return vectors


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_reset(rig: Rig) -> None:
    assert [rig.register(index) for index in (0, 1, 2, 3, 0x10, 0x11, 0x3E, 0x3F, 0x40, 0xFF)] == [
        *(0, 0x170020, 0, 0, 0x10000, 0, 0x10000, 0, 0, 0)
    ]


def test_id_is_shown_as_arbitration_id_too(rig: Rig) -> None:
    rig.set_register(0, 0xFFFFFFFF)
    assert (rig.register(0), rig.register(2)) == (0x0F000000, 0x0F000000)


def test_read_only_and_reserved_bits(rig: Rig) -> None:
    rig.set_register(1, 0)
    rig.set_register(0x10, 0xFFFFFFFF)
    rig.set_register(0x11, 0xFFFFFFFF)
    assert (rig.register(1), rig.register(0x10), rig.register(0x11)) == (0x170020, 0x1AFFF, 0xFF000000)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_window_takes_only_accesses_of_four_bytes(rig: Rig, size: int) -> None:
    rig.ioapic.write(0, 1, 0x10)
    assert rig.ioapic.read(0, size) == 0x10
    rig.ioapic.write(0x10, size, 0x31)
    assert rig.ioapic.read(0x10, size) == 0
    assert rig.ioapic.read(0x10, 4) == 0x10000


def test_masked_edge_is_lost(rig: Rig) -> None:
    rig.route(4, MASKED | 0x34)
    rig.ioapic.set_irq(4, True)
    rig.route(4, 0x34)
    assert rig.vectors() == []
    rig.ioapic.set_irq(4, False)
    rig.ioapic.set_irq(4, True)
    rig.ioapic.set_irq(4, True)
    assert rig.vectors() == [0x34]


def test_level_waits_for_the_eoi_and_comes_again(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59)
    rig.ioapic.set_irq(9, True)
    assert rig.register(0x22) == LEVEL | REMOTE_IRR | 0x59
    rig.ioapic.set_irq(9, False)
    rig.ioapic.set_irq(9, True)
    assert rig.vectors() == [0x59]
    rig.ioapic.eoi(0x58)
    assert rig.vectors() == []
    rig.ioapic.eoi(0x59)
    assert rig.vectors() == [0x59]
    rig.ioapic.set_irq(9, False)
    rig.ioapic.eoi(0x59)
    assert rig.vectors() == []
    assert rig.register(0x22) == LEVEL | 0x59


def test_eoi_register_and_two_pins_with_one_vector(rig: Rig) -> None:
    for pin in (10, 11):
        rig.route(pin, LEVEL | 0x5A)
        rig.ioapic.set_irq(pin, True)
    assert rig.vectors() == [0x5A, 0x5A]
    rig.ioapic.set_irq(10, False)
    rig.ioapic.write(0x40, 4, 0x5A)
    assert rig.vectors() == [0x5A]


def test_masked_level_is_delivered_when_unmasked(rig: Rig) -> None:
    rig.route(9, MASKED | LEVEL | 0x59)
    rig.ioapic.set_irq(9, True)
    assert rig.vectors() == []
    rig.route(9, LEVEL | 0x59)
    assert rig.vectors() == [0x59]


def test_change_to_edge_and_back_clears_remote_irr(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59)
    rig.ioapic.set_irq(9, True)
    rig.set_register(0x22, MASKED | 0x59)
    rig.set_register(0x22, MASKED | LEVEL | 0x59)
    assert rig.register(0x22) == MASKED | LEVEL | 0x59
    rig.set_register(0x22, LEVEL | 0x59)
    assert rig.vectors() == [0x59, 0x59]


def test_remote_irr_stays_clear_where_nobody_accepts(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59, destination=7)
    rig.ioapic.set_irq(9, True)
    assert rig.register(0x22) == LEVEL | 0x59
    rig.route(9, LEVEL | 0x59, destination=1)
    assert rig.vectors(1) == [0x59]


def test_eoi_within_the_delivery_is_honoured(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59)

    class Eager(Receiver):
        def receive(self, mode: DeliveryMode, vector: int, level_triggered: bool) -> bool:
            rig.ioapic.set_irq(9, False)
            rig.ioapic.eoi(vector)
            return super().receive(mode, vector, level_triggered)

    rig.bus.detach(rig.cpus[0])
    rig.bus.attach(Eager(0))
    rig.ioapic.set_irq(9, True)
    assert rig.register(0x22) == LEVEL | 0x59


@pytest.mark.parametrize(
    ("low", "destination", "expected"),
    [
        (0x31, 0, [1, 0]),
        (0x31, 1, [0, 1]),
        (0x31, 9, [0, 0]),
        (0x31, 0xFF, [1, 1]),
        (0x31 | LOGICAL, 2, [0, 1]),
        (0x31 | LOGICAL, 3, [1, 1]),
        (0x31 | LOGICAL, 0xFF, [1, 1]),
        (0x31 | LOGICAL | 0x100, 3, [0, 1]),
    ],
)
def test_destinations(rig: Rig, low: int, destination: int, expected: list[int]) -> None:
    rig.cpus[0].priority = 0x20
    rig.route(1, low, destination)
    rig.ioapic.set_irq(1, True)
    assert [len(cpu.messages) for cpu in rig.cpus] == expected


@pytest.mark.parametrize("mode", list(DeliveryMode))
def test_delivery_modes(rig: Rig, mode: DeliveryMode) -> None:
    rig.route(1, LEVEL | mode << 8 | 0x31)
    rig.ioapic.set_irq(1, True)
    has_eoi = mode <= DeliveryMode.LOWEST_PRIORITY
    assert rig.cpus[0].messages == [(mode, 0x31, has_eoi)]
    assert bool(rig.register(0x12) & REMOTE_IRR) == has_eoi


def test_lowest_priority_passes_over_disabled_apics_and_prefers_low_ids(rig: Rig) -> None:
    rig.bus.deliver(BROADCAST, False, DeliveryMode.LOWEST_PRIORITY, 0x40)
    assert (rig.vectors(0), rig.vectors(1)) == ([0x40], [])
    rig.cpus[0].accepts_fixed = False
    rig.bus.deliver(BROADCAST, False, DeliveryMode.LOWEST_PRIORITY, 0x40)
    assert (rig.vectors(0), rig.vectors(1)) == ([], [0x40])
    rig.cpus[1].accepts_fixed = False
    assert not rig.bus.deliver(BROADCAST, False, DeliveryMode.LOWEST_PRIORITY, 0x40)


@pytest.mark.parametrize(
    ("address", "data", "expected"),
    [
        (0xFEE00000, 0x41, [[0x41], []]),
        (0xFEE01000, 0x41, [[], [0x41]]),
        (0xFEEFF000, 0x41, [[0x41], [0x41]]),
        (0xFEE02004, 0x41, [[], [0x41]]),
        (0xFEE02004, 0x8041, [[], []]),
        (0xFEE02004, 0xC041, [[], [0x41]]),
        (0xFED00000, 0x41, [[], []]),
        (0x1_FEE0_0000, 0x41, [[], []]),
    ],
)
def test_msi(rig: Rig, address: int, data: int, expected: list[list[int]]) -> None:
    rig.bus.msi(address, data)
    assert [rig.vectors(0), rig.vectors(1)] == expected


def test_apic_ids_are_unique(rig: Rig) -> None:
    with pytest.raises(ValueError, match="APIC ID 1 is in use"):
        rig.bus.attach(Receiver(1))


def test_reset_masks_everything_and_keeps_the_lines(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59)
    rig.ioapic.set_irq(9, True)
    rig.ioapic.reset()
    assert rig.register(0x22) == MASKED
    rig.vectors()
    rig.route(9, LEVEL | 0x59)
    assert rig.vectors() == [0x59]


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.route(9, LEVEL | 0x59)
    rig.ioapic.set_irq(9, True)
    other = Rig()
    other.ioapic.load(IoApicState.from_dict(rig.ioapic.save().to_dict()))
    assert other.vectors() == []
    other.ioapic.eoi(0x59)
    assert other.vectors() == [0x59]


@pytest.mark.parametrize("entry", [1 << 12, REMOTE_IRR, 1 << 17, 1 << 40, 1 << 64])
def test_impossible_state_is_refused(rig: Rig, entry: int) -> None:
    state = rig.ioapic.save()
    state.entries[3] = entry
    with pytest.raises(StateError):
        rig.ioapic.load(state)


ACTIONS = st.one_of(
    st.tuples(st.just("irq"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("register"), st.integers(0, 255), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("write"), st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("eoi"), st.just(0), st.integers(0, 255)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([1, 2, 4, 8]))
def test_no_sequence_of_accesses_breaks_it(actions: list[tuple[str, int, int]], size: int) -> None:
    rig = Rig()
    for kind, where, value in actions:
        if kind == "irq":
            rig.ioapic.set_irq(where, bool(value))
        elif kind == "register":
            rig.set_register(where, value)
        elif kind == "write":
            rig.ioapic.write(where, size, value & (1 << 8 * size) - 1)
            rig.ioapic.read(where, size)
        else:
            rig.ioapic.eoi(value)
    state = rig.ioapic.save()
    other = Rig()
    other.ioapic.load(state)
    assert other.ioapic.save() == state
