"""The vectors of a local APIC: against a model of a few lines, and as the vCPU thread takes and ends interrupts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.apic_bus import ApicBus, DeliveryMode
from pyvm.devices.lapic import Lapic
from pyvm.native import LapicVectors
from tests.unit.test_vcpu import DONE, SECONDS, Machine

_VECTORS = st.integers(0, 255)
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), _VECTORS, st.booleans()),
        st.tuples(st.sampled_from(["acknowledge", "end"])),
        st.tuples(st.just("tpr"), _VECTORS),
        st.tuples(st.just("extint"), st.booleans()),
    ),
    max_size=40,
)


class _Model:
    """The rules of the manual, with sets (SDM volume 3, 11.8)."""

    def __init__(self) -> None:
        self.irr: set[int] = set()
        self.isr: set[int] = set()
        self.tmr: set[int] = set()
        self.tpr = 0
        self.extint = False

    @property
    def ppr(self) -> int:
        in_service = max(self.isr, default=0) & 0xF0
        return self.tpr if self.tpr >> 4 >= in_service >> 4 else in_service

    @property
    def pending(self) -> bool:
        return self.extint or max(self.irr, default=0) >> 4 > self.ppr >> 4

    def accept(self, vector: int, level: bool) -> None:
        self.irr.add(vector)
        self.tmr.discard(vector)
        if level:
            self.tmr.add(vector)

    def acknowledge(self) -> int | None:
        vector = max(self.irr, default=0)
        if vector >> 4 <= self.ppr >> 4:
            return None
        self.irr.remove(vector)
        self.isr.add(vector)
        return vector

    def end(self) -> int | None:
        if not self.isr:
            return None
        vector = max(self.isr)
        self.isr.remove(vector)
        return vector if vector in self.tmr else None


def _bank(vectors: set[int]) -> bytes:
    return sum(1 << vector for vector in vectors).to_bytes(32, "little")


@settings(max_examples=60)
@given(_OPERATIONS)
def test_as_the_manual_has_it(operations: list[tuple[object, ...]]) -> None:
    heard: list[bool] = []
    vectors, model = LapicVectors(heard.append), _Model()
    for name, *arguments in operations:
        if name in ("tpr", "extint"):
            for each in (vectors, model):
                setattr(each, str(name), arguments[0])
            vectors.update()
        else:
            assert getattr(vectors, str(name))(*arguments) == getattr(model, str(name))(*arguments)
        assert (vectors.irr, vectors.isr, vectors.tmr) == (_bank(model.irr), _bank(model.isr), _bank(model.tmr))
        assert (vectors.tpr, vectors.ppr, vectors.extint) == (model.tpr, model.ppr, model.extint)
        assert (heard[-1] if heard else False) == model.pending
    assert all(before is not after for before, after in pairwise(heard)), "told of no change"
    again = LapicVectors(heard.append)
    again.load(vectors.irr, vectors.isr, vectors.tmr, vectors.tpr, vectors.extint)
    assert (again.ppr, heard[-1]) == (vectors.ppr, model.pending)


def test_values_that_cannot_be() -> None:
    vectors = LapicVectors(lambda pending: None)
    with pytest.raises(ValueError, match="256"):
        vectors.accept(256, False)
    with pytest.raises(ValueError, match="256"):
        vectors.tpr = 256
    with pytest.raises(ValueError, match="3"):
        vectors.eoi = 3
    with pytest.raises(ValueError, match="32"):
        vectors.load(bytes(32), bytes(31), bytes(32), 0, False)


class _Asked(Lapic):
    """A local APIC that counts how often guest code ends an interrupt by it."""

    ended = 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.ended += offset == 0xB0
        super().write(offset, size, value)

    def msr_write(self, index: int, value: int) -> bool:
        self.ended += index == 0x80B
        return super().msr_write(index, value)


@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("x2apic", [False, True])
def test_a_guest_takes_and_ends_interrupts(x2apic: bool, level: bool) -> None:
    machine = Machine()
    try:
        bus, ended = ApicBus(), list[int]()
        bus.on_eoi = ended.append
        lapic = _Asked(0, ManualClock(), bus, machine.cpus.port(0), lambda: 0)
        lapic.write(0xF0, 4, 0x1FF)
        if x2apic:
            assert lapic.write_apic_base(lapic.apic_base | 0x400)
        machine.cpus.attach_lapics({0: lapic})
        # mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr, or mov dword [0xfee000b0], 0
        end = "b90b080000 31c0 31d2 0f30" if x2apic else "c705b000e0fe00000000"
        # The handler of 0x31 ends it; then comes 0x30, of the same priority, whose handler says that it is done.
        machine.memory.write(0x500, bytes(8) + 0x00CF9B000000FFFF.to_bytes(8, "little"))
        machine.memory.write(0x9000, bytes.fromhex(end + "cf"))
        machine.memory.write(0x9100, bytes.fromhex(end + DONE))
        for vector, handler in ((0x31, 0x9000), (0x30, 0x9100)):
            machine.memory.write(0x1000 + 8 * vector, (handler | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
        gpr = (0x7000).to_bytes(8, "little").rjust(5 * 8, b"\0").ljust(16 * 8, b"\0")
        machine.load("fb f4 ebfe", gpr=gpr, rflags=2, gdt=(0, 0x500, 15, 0), idt=(0, 0x1000, 0x7FF, 0))
        for vector in (0x30, 0x31):
            assert bus.deliver(0, False, DeliveryMode.FIXED, vector, level)
        with machine.lock:
            machine.cpus.start(0)
        assert machine.happened.wait(SECONDS)
        assert ended == ([0x31, 0x30] if level else [])
        assert lapic.ended == len(ended), "the interpreter is needed for level-triggered interrupts only"
        assert (lapic.save().isr, lapic.save().irr) == (0, 0)
    finally:
        machine.close()


def test_messages_follow_a_local_apic_that_changes_its_logical_destination() -> None:
    class Cpu:
        def __init__(self) -> None:
            self.vectors = LapicVectors(lambda pending: None)

        def nmi(self) -> None: ...

        def init(self) -> None: ...

        def startup(self, vector: int) -> None: ...

    bus = ApicBus()
    lapics = [Lapic(index, ManualClock(), bus, Cpu(), lambda: 0) for index in range(2)]
    for lapic in lapics:
        lapic.write(0xF0, 4, 0x1FF)

    def receivers() -> list[int]:
        bus.msi(0xFEE02004, 0x40)  # logical destination 2
        found = [index for index, lapic in enumerate(lapics) if lapic.acknowledge() == 0x40]
        for index in found:
            lapics[index].write(0xB0, 4, 0)
        return found

    assert receivers() == []
    lapics[1].write(0xD0, 4, 2 << 24)
    assert receivers() == receivers() == [1]
    lapics[0].write(0xD0, 4, 2 << 24)
    assert receivers() == receivers() == [0, 1]
    lapics[1].init_reset()
    lapics[1].write(0xF0, 4, 0x1FF)
    assert receivers() == receivers() == [0]
    bus.detach(lapics[0])
    assert receivers() == []
    with pytest.raises(ValueError, match="in use"):
        bus.attach(lapics[1])
