"""The 8259A pair: initialisation, priorities, EOI, rotation, masks, poll, ELCR, cascade and spurious interrupts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pic import PicPair, PicPairState
from pyvm.irq import IrqLine
from pyvm.state import StateError


class Rig:
    """A pair whose INTR is watched, set up with vectors 0x20 and 0x28 as a PC's system does."""

    def __init__(self, icw4: int = 0x01) -> None:
        self.changes: list[bool] = []
        self.intr = IrqLine(self.changes.append)
        self.pair = PicPair(self.intr)
        self.initialise(icw4)

    def initialise(self, icw4: int = 0x01) -> None:
        for chip, base, wiring in ((self.pair.master, 0x20, 4), (self.pair.slave, 0x28, 2)):
            chip.write(0, 1, 0x11)
            chip.write(1, 1, base)
            chip.write(1, 1, wiring)
            chip.write(1, 1, icw4)

    def pulse(self, irq: int) -> None:
        self.pair.set_irq(irq, True)
        self.pair.set_irq(irq, False)

    def eoi(self, irq: int) -> None:
        if irq >= 8:
            self.pair.slave.write(0, 1, 0x20)
        self.pair.master.write(0, 1, 0x20)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("irq", [irq for irq in range(16) if irq != 2])
def test_each_input_gives_its_vector_once(rig: Rig, irq: int) -> None:
    rig.pulse(irq)
    assert rig.intr.level
    assert rig.pair.acknowledge() == 0x20 + irq
    assert not rig.intr.level
    rig.eoi(irq)
    assert not rig.intr.level
    rig.pulse(irq)
    assert rig.pair.acknowledge() == 0x20 + irq


def test_input_2_is_the_cascade_and_not_connected(rig: Rig) -> None:
    rig.pair.set_irq(2, True)
    assert not rig.intr.level


def test_held_edge_interrupts_only_once(rig: Rig) -> None:
    rig.pair.set_irq(3, True)
    rig.pair.acknowledge()
    rig.eoi(3)
    rig.pair.set_irq(3, True)
    assert not rig.intr.level


def test_lower_input_number_is_served_first_and_blocks_the_others(rig: Rig) -> None:
    rig.pulse(5)
    rig.pulse(1)
    assert rig.pair.acknowledge() == 0x21
    assert not rig.intr.level, "5 waits for the EOI of 1"
    rig.pulse(0)
    assert rig.pair.acknowledge() == 0x20, "0 interrupts the service of 1"
    rig.eoi(0)
    assert not rig.intr.level
    rig.eoi(1)
    assert rig.pair.acknowledge() == 0x25


def test_slave_requests_follow_each_other_through_the_cascade(rig: Rig) -> None:
    rig.pulse(9)
    rig.pulse(14)
    assert rig.pair.acknowledge() == 0x29
    rig.eoi(9)
    assert rig.pair.acknowledge() == 0x2E
    rig.eoi(14)
    assert not rig.intr.level


def test_higher_slave_request_waits_unless_specially_fully_nested() -> None:
    plain, nested = Rig(), Rig(icw4=0x11)
    for rig in (plain, nested):
        rig.pulse(14)
        assert rig.pair.acknowledge() == 0x2E
        rig.pulse(8)
    assert not plain.intr.level
    assert nested.pair.acknowledge() == 0x28


def test_masks_hold_requests_back(rig: Rig) -> None:
    rig.pair.master.write(1, 1, 0x10)
    assert rig.pair.master.read(1, 1) == 0x10
    rig.pulse(4)
    assert not rig.intr.level
    assert rig.pair.master.read(0, 1) == 0x10, "IRR shows it nevertheless"
    rig.pair.master.write(1, 1, 0)
    assert rig.pair.acknowledge() == 0x24


def test_irr_and_isr_are_read_by_choice_of_ocw3(rig: Rig) -> None:
    rig.pulse(6)
    rig.pulse(7)
    rig.pair.acknowledge()
    rig.pair.master.write(0, 1, 0x0B)
    assert rig.pair.master.read(0, 1) == 0x40
    rig.pair.master.write(0, 1, 0x0A)
    assert rig.pair.master.read(0, 1) == 0x80


def test_request_masked_too_late_is_spurious_7(rig: Rig) -> None:
    rig.pulse(3)
    rig.pair.master.write(1, 1, 0xFF)
    assert rig.pair.acknowledge() == 0x27
    rig.pair.master.write(0, 1, 0x0B)
    assert rig.pair.master.read(0, 1) == 0, "a spurious interrupt needs no EOI"


def test_level_input_that_went_away_is_spurious_15(rig: Rig) -> None:
    rig.pair.elcr_write(1, 1, 0x02)
    rig.pair.set_irq(9, True)
    rig.pair.set_irq(9, False)
    assert rig.pair.acknowledge() == 0x2F
    rig.pair.slave.write(0, 1, 0x0B)
    assert rig.pair.slave.read(0, 1) == 0
    rig.pair.master.write(0, 1, 0x0B)
    assert rig.pair.master.read(0, 1) == 0x04, "but the master did serve its input 2"


def test_level_input_interrupts_again_until_it_falls(rig: Rig) -> None:
    rig.pair.elcr_write(1, 1, 0x08)
    rig.pair.set_irq(11, True)
    for _ in range(3):
        assert rig.pair.acknowledge() == 0x2B
        assert not rig.intr.level
        rig.eoi(11)
        assert rig.intr.level
    rig.pair.acknowledge()
    rig.pair.set_irq(11, False)
    rig.eoi(11)
    assert not rig.intr.level


def test_elcr_has_no_bits_for_the_inputs_that_are_always_edge_triggered(rig: Rig) -> None:
    rig.pair.elcr_write(0, 1, 0xFF)
    rig.pair.elcr_write(1, 1, 0xFF)
    assert (rig.pair.elcr_read(0, 1), rig.pair.elcr_read(1, 1)) == (0xF8, 0xDE)


def test_elcr_write_looks_at_the_line(rig: Rig) -> None:
    rig.pair.set_irq(5, True)
    rig.pair.acknowledge()
    rig.eoi(5)
    rig.pair.elcr_write(0, 1, 0x20)
    assert rig.pair.acknowledge() == 0x25


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    rig = Rig(icw4=0x03)
    rig.pair.elcr_write(1, 1, 0x06)
    for irq in (9, 10):
        rig.pair.set_irq(irq, True)
    assert [rig.pair.acknowledge() for _ in range(3)] == [0x29] * 3, "level inputs come again at once"
    rig.pair.set_irq(9, False)
    assert rig.pair.acknowledge() == 0x2A
    rig.pair.set_irq(10, False)
    assert rig.pair.acknowledge() == 0x2F, "the master had latched its next request"
    assert not rig.intr.level


def test_automatic_eoi_with_rotation_takes_turns() -> None:
    rig = Rig(icw4=0x03)
    rig.pair.master.write(0, 1, 0x80)
    rig.pair.elcr_write(0, 1, 0x38)
    for irq in (3, 4, 5):
        rig.pair.set_irq(irq, True)
    assert [rig.pair.acknowledge() for _ in range(4)] == [0x23, 0x24, 0x25, 0x23]
    rig.pair.master.write(0, 1, 0x00)
    assert [rig.pair.acknowledge() for _ in range(2)] == [0x24, 0x24], "rotation off"


def test_rotating_eoi_makes_the_served_input_the_last(rig: Rig) -> None:
    rig.pulse(1)
    rig.pair.acknowledge()
    rig.pair.master.write(0, 1, 0xA0)
    rig.pulse(0)
    rig.pulse(1)
    rig.pulse(3)
    assert rig.pair.acknowledge() == 0x23


def test_specific_eoi_rotation_and_set_priority(rig: Rig) -> None:
    rig.pulse(6)
    rig.pair.acknowledge()
    rig.pair.master.write(0, 1, 0xC4)  # 4 is the lowest, 5 the highest
    rig.pulse(5)
    rig.pulse(0)
    assert rig.pair.acknowledge() == 0x25
    rig.pair.master.write(0, 1, 0x65)
    assert not rig.intr.level, "6 is in service still and before 0"
    rig.pair.master.write(0, 1, 0xE6)  # end 6 and make it the lowest
    assert rig.pair.acknowledge() == 0x20


def test_no_operation_and_eoi_without_service_do_nothing(rig: Rig) -> None:
    rig.pulse(4)
    rig.pair.master.write(0, 1, 0x40)
    rig.pair.master.write(0, 1, 0x20)
    assert rig.pair.acknowledge() == 0x24


def test_special_mask_mode_lets_lower_priorities_through(rig: Rig) -> None:
    rig.pulse(1)
    rig.pair.acknowledge()
    rig.pulse(6)
    rig.pair.master.write(1, 1, 0x02)
    assert not rig.intr.level
    rig.pair.master.write(0, 1, 0x68)
    assert rig.pair.acknowledge() == 0x26
    rig.pair.master.write(0, 1, 0x20)
    rig.pair.master.write(0, 1, 0x20)
    rig.pair.master.write(0, 1, 0x0B)
    assert rig.pair.master.read(0, 1) == 0x02, "the EOI does not end what is masked"
    rig.pair.master.write(0, 1, 0x48)
    rig.pulse(6)
    assert not rig.intr.level


def test_poll_acknowledges_without_the_processor(rig: Rig) -> None:
    rig.pair.master.write(0, 1, 0x0C)
    assert rig.pair.master.read(0, 1) == 0
    rig.pulse(4)
    rig.pair.master.write(0, 1, 0x0C)
    assert rig.pair.master.read(0, 1) == 0x84
    assert not rig.intr.level
    assert rig.pair.master.read(0, 1) == 0, "the second read shows IRR again"


def test_icw1_forgets_edges_and_masks_but_not_elcr(rig: Rig) -> None:
    rig.pair.elcr_write(0, 1, 0x20)
    rig.pair.set_irq(3, True)
    rig.pair.set_irq(5, True)
    rig.pair.master.write(1, 1, 0xFF)
    rig.initialise()
    assert rig.pair.master.read(1, 1) == 0
    assert rig.pair.acknowledge() == 0x25, "the level is still there"
    rig.eoi(5)
    rig.pair.set_irq(5, False)
    assert not rig.intr.level, "the edge of 3 is gone"
    rig.pulse(3)
    assert not rig.intr.level, "3 fell only now"
    rig.pulse(3)
    assert rig.intr.level


@pytest.mark.parametrize(("icw1", "words"), [(0x10, 2), (0x11, 3), (0x12, 1), (0x13, 2)])
def test_initialisation_takes_the_announced_number_of_words(rig: Rig, icw1: int, words: int) -> None:
    rig.pair.master.write(0, 1, icw1)
    for _ in range(words):
        rig.pair.master.write(1, 1, 0x40)
    rig.pair.master.write(1, 1, 0xA5)
    assert rig.pair.master.read(1, 1) == 0xA5
    rig.pulse(1)
    assert rig.pair.acknowledge() == 0x41


def test_state_survives_a_round_trip(rig: Rig) -> None:
    rig.pair.elcr_write(1, 1, 0x02)
    rig.pair.set_irq(9, True)
    rig.pair.acknowledge()
    rig.pulse(1)
    state = PicPairState.from_dict(rig.pair.save().to_dict())
    other = Rig()
    other.pair.load(state)
    assert other.intr.level
    assert other.pair.acknowledge() == 0x21
    other.eoi(1)
    other.eoi(9)
    assert other.pair.acknowledge() == 0x29, "the level line came along"


def test_reset_masks_nothing_and_forgets_requests(rig: Rig) -> None:
    rig.pair.set_irq(4, True)
    rig.pair.reset()
    assert not rig.intr.level
    assert rig.pair.master.read(1, 1) == 0
    rig.pair.set_irq(4, False)
    rig.pair.set_irq(4, True)
    assert rig.pair.acknowledge() == 4


@pytest.mark.parametrize(
    ("field", "value"), [("elcr", 0x01), ("base", 0x21), ("step", 4), ("lowest", 8), ("irr", 256), ("poll", 1)]
)
def test_impossible_state_is_refused(rig: Rig, field: str, value: int) -> None:
    state = rig.pair.save()
    setattr(state.master, field, value)
    before = rig.pair.save()
    with pytest.raises(StateError):
        rig.pair.load(state)
    assert rig.pair.save() == before


def test_state_with_a_cascade_that_does_not_fit_is_mended(rig: Rig) -> None:
    state = PicPairState()
    state.slave.irr = 0x02
    rig.pair.load(state)
    assert rig.pair.acknowledge() == 1


ACTIONS = st.one_of(
    st.tuples(st.just("irq"), st.integers(0, 15), st.booleans()),
    st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 255)),
    st.tuples(st.just("read"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("elcr"), st.integers(0, 1), st.integers(0, 255)),
    st.tuples(st.just("ack"), st.just(0), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_no_sequence_of_accesses_breaks_the_pair(actions: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for kind, where, value in actions:
        chip = rig.pair.slave if where & 2 else rig.pair.master
        if kind == "irq":
            rig.pair.set_irq(where, bool(value))
        elif kind == "write":
            chip.write(where & 1, 1, value)
        elif kind == "read":
            assert 0 <= chip.read(where & 1, 1) <= 255
        elif kind == "elcr":
            rig.pair.elcr_write(where, 1, value)
        else:
            waiting = rig.intr.level
            vector = rig.pair.acknowledge()
            assert 0 <= vector <= 255
            if not waiting:
                assert vector & 7 == 7
        assert rig.intr.level == (rig.pair.master.pending() >= 0)
        state = rig.pair.save()
        state.check()
        other = Rig()
        other.pair.load(state)
        assert other.pair.save() == state
