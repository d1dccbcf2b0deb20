"""The local APIC: priorities, EOI, IPIs and destinations, LVT, errors, MSRs and modes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.apic_bus import BROADCAST, DeliveryMode
from pyvm.devices.lapic import Lapic
from pyvm.devices.lapic_regs import LapicState
from pyvm.state import StateError
from tests.unit.lapic_rig import ENABLE, LVT_TIMER, MASKED, Cpu, Rig, vectors

LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x350, 0x360, 0x370
INIT_ASSERT, INIT_DEASSERT = 0xC500, 0x8500


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_reset() -> None:
    rig = Rig(2, enable=False)
    expected = {0x30: 0x50014, 0x80: 0, 0xA0: 0, 0xD0: 0, 0xE0: 0xFFFFFFFF, 0xF0: 0xFF, 0x280: 0, 0x300: 0}
    expected |= {0x310: 0, 0x320: MASKED, 0x330: MASKED, 0x340: MASKED, 0x360: MASKED, 0x370: MASKED}
    expected |= {0x380: 0, 0x390: 0, 0x3E0: 0}
    for index, lapic in enumerate(rig.lapics):
        assert {offset: lapic.read(offset, 4) for offset in expected} == expected
        assert lapic.read(0x20, 4) == index << 24
    assert rig.lapics[0].read(LVT_LINT0, 4) == 0x700, "virtual wire on the bootstrap processor"
    assert rig.lapics[1].read(LVT_LINT0, 4) == MASKED
    assert [lapic.apic_base for lapic in rig.lapics] == [0xFEE00900, 0xFEE00800]


def test_interrupt_goes_from_irr_to_isr_and_ends(rig: Rig) -> None:
    assert rig.send(0x41)
    assert rig.cpu.changes == [True]
    assert vectors(rig.lapic, 0x200) == [0x41]
    assert rig.lapic.acknowledge() == 0x41
    assert (vectors(rig.lapic, 0x200), vectors(rig.lapic, 0x100)) == ([], [0x41])
    assert rig.lapic.read(0xA0, 4) == 0x40
    rig.lapic.write(0xB0, 4, 0)
    assert vectors(rig.lapic, 0x100) == []
    assert rig.lapic.read(0xA0, 4) == 0
    assert rig.cpu.changes == [True, False]
    assert rig.lapic.acknowledge() is None


def test_priority_classes_decide_what_may_interrupt(rig: Rig) -> None:
    rig.send(0x45)
    assert rig.lapic.acknowledge() == 0x45
    rig.send(0x4F)
    assert not rig.cpu.pending, "the same class waits"
    rig.send(0x51)
    assert rig.lapic.acknowledge() == 0x51
    rig.lapic.write(0xB0, 4, 0)
    assert not rig.cpu.pending
    rig.lapic.write(0xB0, 4, 0)
    assert rig.lapic.acknowledge() == 0x4F


def test_same_vector_requested_in_service_comes_once_more(rig: Rig) -> None:
    rig.send(0x41)
    rig.lapic.acknowledge()
    rig.send(0x41)
    rig.send(0x41)
    rig.lapic.write(0xB0, 4, 0)
    assert rig.lapic.acknowledge() == 0x41
    rig.lapic.write(0xB0, 4, 0)
    assert not rig.cpu.pending


def test_task_priority_and_cr8(rig: Rig) -> None:
    rig.lapic.write(0x80, 4, 0x45)
    rig.send(0x4F)
    assert not rig.cpu.pending
    assert rig.lapic.read_cr8() == 4
    assert rig.lapic.read(0xA0, 4) == 0x45
    rig.lapic.write_cr8(3)
    assert rig.cpu.pending
    assert rig.lapic.read(0x80, 4) == 0x30


def test_interrupt_masked_after_it_was_announced_is_spurious(rig: Rig) -> None:
    rig.lapic.write(0xF0, 4, ENABLE | 0x7F)
    rig.send(0x41)
    rig.lapic.write_cr8(15)
    assert not rig.cpu.pending
    assert rig.lapic.acknowledge() == 0x7F
    assert vectors(rig.lapic, 0x100) == []


def test_processor_hears_of_changes_only(rig: Rig) -> None:
    for vector in (0x31, 0x41, 0x51):
        rig.send(vector)
    for _ in range(3):
        rig.lapic.acknowledge()
        rig.lapic.write(0xB0, 4, 0)
    assert all(first != second for first, second in pairwise(rig.cpu.changes))


def test_level_triggered_eoi_is_broadcast(rig: Rig) -> None:
    rig.send(0x41, level=True)
    rig.send(0x61)
    assert vectors(rig.lapic, 0x180) == [0x41]
    for _ in range(2):
        rig.lapic.acknowledge()
        rig.lapic.write(0xB0, 4, 0)
    assert rig.ended == [0x41]
    rig.send(0x41)
    assert vectors(rig.lapic, 0x180) == [], "TMR follows the latest message"


def test_eoi_with_nothing_in_service_does_nothing(rig: Rig) -> None:
    rig.lapic.write(0xB0, 4, 0)
    assert rig.ended == []


def test_disabled_by_software_takes_no_fixed_interrupts_but_nmi_init_and_sipi() -> None:
    rig = Rig(enable=False)
    assert not rig.send(0x41)
    for mode in (DeliveryMode.NMI, DeliveryMode.INIT, DeliveryMode.STARTUP):
        assert rig.bus.deliver(0, False, mode, 0x9A)
    assert not rig.bus.deliver(0, False, DeliveryMode.SMI, 0)
    assert rig.cpu.events == ["nmi", "init", 0x9A]


def test_disabling_masks_the_lvt_and_keeps_what_was_requested(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.send(0x41)
    rig.lapic.write(0xF0, 4, 0xFF)
    assert rig.lapic.read(LVT_TIMER, 4) == 0x20030 | MASKED
    rig.lapic.write(LVT_TIMER, 4, 0x30)
    assert rig.lapic.read(LVT_TIMER, 4) == 0x30 | MASKED
    assert rig.lapic.acknowledge() == 0x41


@pytest.mark.parametrize(
    ("low", "destination", "expected"),
    [
        (0x41, 1, [0, 1, 0]),
        (0x41, 0xFF, [1, 1, 1]),
        (0x41, 9, [0, 0, 0]),
        (0x841, 0b110, [0, 1, 1]),
        (0x841, 0xFF, [1, 1, 1]),
        (0x40041, 0, [1, 0, 0]),
        (0x80041, 0, [1, 1, 1]),
        (0xC0041, 0, [0, 1, 1]),
        (0x941, 0b110, [0, 1, 0]),
        (0x341, 0xFF, [0, 0, 0]),
        (0x741, 0xFF, [0, 0, 0]),
    ],
)
def test_ipi_destinations_and_shorthands(low: int, destination: int, expected: list[int]) -> None:
    rig = Rig(3)
    rig.ipi(low, destination)
    assert [len(requested) for requested in rig.requested()] == expected
    assert rig.lapic.read(0x300, 4) == low, "delivery status is idle again"
    assert rig.lapic.read(0x310, 4) == destination << 24


def test_cluster_model() -> None:
    rig = Rig(3)
    for lapic, logical in zip(rig.lapics, (0x11, 0x12, 0x21), strict=True):
        lapic.write(0xE0, 4, 0x0FFFFFFF)
        lapic.write(0xD0, 4, logical << 24)
    for destination, expected in ((0x13, [1, 1, 0]), (0x21, [0, 0, 1]), (0x31, [0, 0, 0]), (0xFF, [1, 1, 1])):
        rig.ipi(0x841, destination)
        assert [len(requested) for requested in rig.requested()] == expected
        for lapic in rig.lapics:
            lapic.acknowledge()
            lapic.write(0xB0, 4, 0)


def test_lowest_priority_goes_to_the_idlest() -> None:
    rig = Rig(3)
    rig.lapics[0].write(0x80, 4, 0x50)
    rig.lapics[1].write(0x80, 4, 0x30)
    rig.lapics[2].write(0x80, 4, 0x40)
    rig.bus.deliver(7, True, DeliveryMode.LOWEST_PRIORITY, 0x61)
    assert rig.requested() == [[], [0x61], []]
    rig.bus.deliver(7, True, DeliveryMode.LOWEST_PRIORITY, 0x62)
    assert rig.requested() == [[], [0x61], [0x62]], "a waiting request counts"


def test_arbitration_priority_register(rig: Rig) -> None:
    rig.send(0x61)
    rig.lapic.acknowledge()
    rig.lapic.write(0x80, 4, 0x35)
    assert rig.lapic.read(0x90, 4) == 0x20
    rig.lapic.write(0x80, 4, 0x75)
    assert rig.lapic.read(0x90, 4) == 0x75
    rig.send(0x91)
    assert rig.lapic.read(0x90, 4) == 0x90


def test_application_processor_is_started() -> None:
    rig = Rig(2)
    rig.lapics[1].write(0x80, 4, 0x20)
    rig.ipi(INIT_ASSERT, 1)
    rig.ipi(INIT_DEASSERT, 1)
    rig.ipi(0x69A, 1)
    rig.ipi(0x69A, 1)
    assert rig.cpus[1].events == ["init", 0x9A, 0x9A]
    assert rig.cpu.events == []
    assert rig.lapics[1].read(0x80, 4) == 0, "INIT resets the local APIC"
    assert rig.lapics[1].read(0x20, 4) == 1 << 24


def test_nmi_ipi() -> None:
    rig = Rig(3)
    rig.ipi(0xC0400)
    assert [cpu.events for cpu in rig.cpus] == [[], ["nmi"], ["nmi"]]


def test_illegal_vectors_and_registers_are_errors(rig: Rig) -> None:
    rig.lapic.write(LVT_ERROR, 4, 0xFE)
    rig.ipi(0x0F)
    assert rig.lapic.acknowledge() == 0xFE
    rig.lapic.write(0xB0, 4, 0)
    assert not rig.send(0x0F)
    assert rig.lapic.read(0x40, 4) == 0
    rig.lapic.write(0x40, 4, 1)
    assert rig.lapic.read(0x280, 4) == 0, "errors show after a write of ESR"
    rig.lapic.write(0x280, 4, 0)
    assert rig.lapic.read(0x280, 4) == 0xE0
    rig.lapic.write(0x280, 4, 0)
    assert rig.lapic.read(0x280, 4) == 0


def test_illegal_error_vector_ends(rig: Rig) -> None:
    rig.lapic.write(LVT_ERROR, 4, 0x05)
    rig.ipi(0x00)
    rig.lapic.write(0x280, 4, 0)
    assert rig.lapic.read(0x280, 4) == 0x60


def test_virtual_wire_serves_the_8259(rig: Rig) -> None:
    rig = Rig(enable=False)
    rig.pic = [0x08, 0x70]
    rig.lapic.set_lint0(True)
    assert rig.cpu.pending
    assert rig.lapic.acknowledge() == 0x08
    assert rig.lapic.acknowledge() == 0x70
    assert not rig.cpu.pending
    assert rig.lapic.acknowledge() is None


def test_extint_has_no_priority_but_comes_after_waiting_vectors(rig: Rig) -> None:
    rig.lapic.write(LVT_LINT0, 4, 0x700)
    rig.pic = [0x20]
    rig.lapic.write_cr8(15)
    rig.lapic.set_lint0(True)
    assert rig.cpu.pending
    rig.lapic.write_cr8(0)
    rig.send(0x41)
    assert rig.lapic.acknowledge() == 0x41
    assert rig.lapic.acknowledge() == 0x20
    assert vectors(rig.lapic, 0x100) == [0x41]


def test_masked_lint0_withdraws_the_request(rig: Rig) -> None:
    rig.lapic.write(LVT_LINT0, 4, 0x700)
    rig.lapic.set_lint0(True)
    rig.lapic.write(LVT_LINT0, 4, 0x700 | MASKED)
    assert rig.cpu.changes == [True, False]


def test_extint_message_from_the_ioapic(rig: Rig) -> None:
    rig.pic = [0x21]
    assert rig.bus.deliver(0, False, DeliveryMode.EXTINT, 0)
    assert rig.lapic.acknowledge() == 0x21
    assert not rig.cpu.pending


def test_lint0_as_fixed_edge_and_as_nmi(rig: Rig) -> None:
    rig.lapic.write(LVT_LINT0, 4, 0x52)
    for level in (True, True, False, True):
        rig.lapic.set_lint0(level)
    assert rig.lapic.acknowledge() == 0x52
    rig.lapic.write(0xB0, 4, 0)
    assert not rig.cpu.pending, "the second edge came before the first was taken"
    rig.lapic.set_lint0(False)
    rig.lapic.write(LVT_LINT0, 4, 0x400)
    rig.lapic.set_lint0(True)
    assert rig.cpu.events == ["nmi"]


def test_lint0_as_fixed_level_repeats_until_it_falls(rig: Rig) -> None:
    rig.lapic.write(LVT_LINT0, 4, 0x8052)
    rig.lapic.set_lint0(True)
    assert rig.lapic.read(LVT_LINT0, 4) == 0xC052
    for _ in range(2):
        assert rig.lapic.acknowledge() == 0x52
        rig.lapic.write(0xB0, 4, 0)
    rig.lapic.acknowledge()
    rig.lapic.set_lint0(False)
    rig.lapic.write(0xB0, 4, 0)
    assert not rig.cpu.pending
    assert rig.lapic.read(LVT_LINT0, 4) == 0x8052


def test_lint1_obeys_its_entry(rig: Rig) -> None:
    rig.lapic.lint1_nmi()
    assert rig.cpu.events == []
    rig.lapic.write(LVT_LINT1, 4, 0x400)
    rig.lapic.lint1_nmi()
    assert rig.cpu.events == ["nmi"]
    rig.lapic.write(LVT_LINT1, 4, 0x61)
    rig.lapic.lint1_nmi()
    assert rig.lapic.acknowledge() == 0x61


def test_x2apic_registers() -> None:
    rig = Rig(2, first_id=0x25)
    lapic = rig.lapics[1]
    assert lapic.msr_read(0x802) is None
    assert not lapic.msr_write(0x808, 0)
    assert lapic.write_apic_base(lapic.apic_base | 0x400)
    assert lapic.msr_read(0x802) == 0x26
    assert lapic.msr_read(0x80D) == 2 << 16 | 1 << 6
    assert lapic.msr_read(0x803) == 0x50014
    assert lapic.read(0x30, 4) == 0xFFFFFFFF, "the page is gone"
    lapic.write(0x80, 4, 0x20)
    assert lapic.msr_read(0x808) == 0
    for index in (0x809, 0x80B, 0x80C, 0x80E, 0x831, 0x83F, 0x800, 0x804, 0x8FF, 0x900):
        assert lapic.msr_read(index) is None
    for index in (0x802, 0x803, 0x80A, 0x80D, 0x80E, 0x810, 0x831, 0x839, 0x8FF):
        assert not lapic.msr_write(index, 0)
    for index, value in ((0x808, 0x100), (0x80B, 1), (0x80F, 0x200), (0x828, 1), (0x83E, 4), (0x832, 1 << 19)):
        assert not lapic.msr_write(index, value)
    assert lapic.msr_write(0x83F, 0x44)
    assert lapic.acknowledge() == 0x44
    assert lapic.msr_read(0x812) == 1 << 4
    assert lapic.msr_write(0x80B, 0)


def test_x2apic_ipis() -> None:
    rig = Rig(3)
    for lapic in rig.lapics:
        assert lapic.write_apic_base(lapic.apic_base | 0x400)
    cases = [(1 << 32 | 0x41, [0, 1, 0]), (BROADCAST << 32 | 0x41, [1, 1, 1]), (0b110 << 32 | 0x841, [0, 1, 1])]
    cases += [(0xFF << 32 | 0x41, [0, 0, 0]), (0xC0041, [0, 1, 1]), (0x10001 << 32 | 0x841, [0, 0, 0])]
    for icr, expected in cases:
        assert rig.lapic.msr_write(0x830, icr)
        assert rig.lapic.msr_read(0x830) == icr
        assert [cpu.pending for cpu in rig.cpus] == [bool(each) for each in expected]
        for lapic, cpu in zip(rig.lapics, rig.cpus, strict=True):
            if cpu.pending:
                lapic.acknowledge()
                lapic.msr_write(0x80B, 0)
    assert not rig.lapic.msr_write(0x830, 1 << 20)


def test_mode_changes() -> None:
    rig = Rig()
    base = rig.lapic.apic_base
    for refused in (base & ~0x800 | 0x400, base | 1, base | 1 << 40):
        assert not rig.lapic.write_apic_base(refused)
    assert rig.lapic.apic_base == base
    assert rig.lapic.write_apic_base(base | 0x400)
    assert not rig.lapic.write_apic_base(base), "x2APIC leads to off only"
    assert rig.lapic.write_apic_base(base & ~0xC00)
    assert not rig.lapic.write_apic_base(base | 0x400), "off leads to xAPIC only"
    assert rig.lapic.write_apic_base(base)
    plain = Lapic(9, rig.clock, rig.bus, Cpu(), rig.inta, x2apic=False)
    assert not plain.write_apic_base(plain.apic_base | 0x400)


def test_globally_disabled_lapic_is_not_there(rig: Rig) -> None:
    rig.send(0x41)
    assert rig.lapic.write_apic_base(rig.lapic.apic_base & ~0x800)
    assert not rig.cpu.pending
    assert not rig.send(0x41)
    assert not rig.bus.deliver(0, False, DeliveryMode.NMI, 0)
    assert rig.lapic.read(0x30, 4) == 0xFFFFFFFF
    rig.pic = [0x08]
    rig.lapic.set_lint0(True)
    assert rig.lapic.acknowledge() == 0x08, "LINT0 is INTR then"
    rig.lapic.lint1_nmi()
    assert rig.cpu.events == ["nmi"]


@pytest.mark.parametrize("size", [1, 2])
def test_narrow_writes_are_ignored(rig: Rig, size: int) -> None:
    rig.lapic.write(0x80, size, 0x20)
    assert rig.lapic.read(0x80, 4) == 0
    assert rig.lapic.read(0x84, 4) == 0


def test_init_keeps_id_and_mode_and_masks_lint0() -> None:
    rig = Rig(first_id=5)
    rig.lapic.write_apic_base(rig.lapic.apic_base | 0x400)
    rig.send(0x41, to=5)
    base = rig.lapic.apic_base
    rig.lapic.init_reset()
    assert (rig.lapic.apic_base, rig.lapic.msr_read(0x802)) == (base, 5)
    assert rig.lapic.msr_read(0x835) == MASKED
    assert not rig.cpu.pending
    rig.lapic.reset()
    assert rig.lapic.apic_base == base & ~0x400


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.lapic.write(LVT_TIMER, 4, 0x20030)
    rig.lapic.write(0x380, 4, 50_000)
    rig.send(0x41, level=True)
    rig.send(0x61)
    rig.lapic.acknowledge()
    rig.clock.advance(30_000)
    state = LapicState.from_dict(rig.lapic.save().to_dict())
    other = Rig(enable=False)
    other.clock.advance(30_000)
    other.lapic.load(state)
    assert other.cpu.changes == [False]
    assert other.lapic.read(0x390, 4) == rig.lapic.read(0x390, 4) == 35_000
    other.lapic.write(0xB0, 4, 0)
    assert other.lapic.acknowledge() == 0x41
    other.lapic.write(0xB0, 4, 0)
    assert other.ended == [0x41]
    other.clock.advance(70_000)
    assert other.lapic.acknowledge() == 0x30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("apic_base", 0xFEE00400),
        ("apic_base", 0xFEE00801),
        ("irr", 1),
        ("isr", 1 << 256),
        ("svr", 0x200),
        ("lvt", [0] * 5),
        ("lvt", [0x30, *[MASKED] * 5]),
        ("lvt", [MASKED, 1 << 17, *[MASKED] * 4]),
    ],
)
def test_impossible_state_is_refused(rig: Rig, field: str, value: object) -> None:
    state = rig.lapic.save()
    setattr(state, field, value)
    with pytest.raises(StateError):
        rig.lapic.load(state)


WORDS = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0x20030, 0x40030, 0x30, 0x700, 0x8052, 0x1FF, 0xFF]))
REGISTERS = st.one_of(st.integers(0, 0xFFF), st.sampled_from([0x80, 0xB0, 0xF0, 0x300, 0x320, 0x350, 0x380, 0x3E0]))
ACTIONS = st.one_of(
    st.tuples(st.just("write"), REGISTERS, WORDS),
    st.tuples(st.just("read"), REGISTERS, st.just(0)),
    st.tuples(st.just("wrmsr"), st.integers(0x7FF, 0x900), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("wrmsr"), st.sampled_from([0x808, 0x80B, 0x80F, 0x830, 0x832, 0x838, 0x83F]), WORDS),
    st.tuples(st.just("base"), st.just(0), st.sampled_from([0xFEE00800, 0xFEE00C00, 0xFEE00000, 0xFEE00400])),
    st.tuples(st.just("deadline"), st.just(0), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("message"), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("lint0"), st.just(0), st.booleans()),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
    st.tuples(st.just("advance"), st.just(0), st.integers(0, 1_000_000)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ACTIONS, max_size=50))
def test_no_sequence_of_accesses_breaks_it(actions: list[tuple[str, int, int]]) -> None:
    rig = Rig(2)
    lapic = rig.lapic
    for kind, where, value in actions:
        if kind == "write":
            lapic.write(where, 4, value)
        elif kind == "read":
            assert 0 <= lapic.read(where, 4) <= 0xFFFFFFFF
        elif kind == "wrmsr":
            lapic.msr_write(where, value)
            lapic.msr_read(where)
        elif kind == "base":
            lapic.write_apic_base(value)
        elif kind == "deadline":
            lapic.write_tsc_deadline(value)
            assert lapic.read_tsc_deadline() in (0, value)
        elif kind == "message":
            rig.bus.deliver(where & 1, False, list(DeliveryMode)[where], value, bool(where & 2))
        elif kind == "lint0":
            rig.pic = [0x20] * value
            lapic.set_lint0(bool(value))
        elif kind == "advance":
            rig.clock.advance(value)
        else:
            rig.pic = rig.pic or [0x20]
            pending = rig.cpu.pending
            vector = lapic.acknowledge()
            assert not (pending and vector is None)
        assert all(first != second for first, second in pairwise(rig.cpu.changes))
        state = lapic.save()
        state.check()
    other = Rig(2)
    other.clock.stall(rig.clock.now())
    other.lapic.load(lapic.save())
    assert other.lapic.save() == lapic.save()
    assert other.cpu.pending == rig.cpu.pending


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "take", "end", "tpr"]), st.integers(16, 255)), max_size=60))
def test_priority_logic_agrees_with_the_manual(actions: list[tuple[str, int]]) -> None:
    """Compare with the rules of the manual, written down with sets."""
    rig = Rig()
    requested: set[int] = set()
    in_service: set[int] = set()
    tpr = 0
    for kind, value in actions:
        ppr = max(tpr, max(in_service, default=0) & 0xF0) if in_service else tpr
        deliverable = {vector for vector in requested if vector >> 4 > ppr >> 4}
        if kind == "send":
            rig.send(value)
            requested.add(value)
        elif kind == "take" and deliverable:
            best = max(deliverable)
            assert rig.lapic.acknowledge() == best
            requested.remove(best)
            in_service.add(best)
        elif kind == "end":
            rig.lapic.write(0xB0, 4, 0)
            in_service.discard(max(in_service, default=0))
        elif kind == "tpr":
            tpr = value & 0x7F
            rig.lapic.write(0x80, 4, tpr)
        ppr = tpr if tpr >> 4 >= max(in_service, default=0) >> 4 else max(in_service) & 0xF0
        assert rig.lapic.read(0xA0, 4) == ppr
        assert rig.cpu.pending == any(vector >> 4 > ppr >> 4 for vector in requested)
        assert set(vectors(rig.lapic, 0x200)) == requested
        assert set(vectors(rig.lapic, 0x100)) == in_service
