"""The register state of a vCPU as a record, and what the engine makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.cpu.registers import ACTIVITIES, RegisterState, SegmentState
from pyvm.state import StateError
from tests.unit.engine_rig import Rig

CR0_PE, CR0_PG = 1, 1 << 31
LME, LMA = 1 << 8, 1 << 10
BUSY = 1 << 9
UINTS = {
    "rip": 64, "rflags": 64, "cr2": 64, "cr3": 64, "cr4": 32,
    "fpu_status": 16, "fpu_control": 16, "fpu_opcode": 16, "fpu_ip": 64, "fpu_dp": 64, "mxcsr": 16, "sysenter_cs": 32,
    "sysenter_esp": 64, "sysenter_eip": 64, "star": 64, "lstar": 64, "cstar": 64, "fmask": 64, "kernel_gs_base": 64,
    "tsc_aux": 64, "tsc_offset": 64, "xcr0": 64, "misc_enable": 64, "pat": 64, "pkru": 32, "dr0": 64, "dr1": 64,
    "dr2": 64, "dr3": 64, "dr6": 64, "dr7": 64,
}  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt")


@pytest.fixture(scope="module")
def rig():
    with Rig(2) as rig:
        yield rig


def uint(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1) | st.sampled_from([0, 1, (1 << bits) - 1, 1 << (bits - 1)])


SEGMENT = st.fixed_dictionaries({"selector": uint(32), "base": uint(64), "limit": uint(32), "flags": uint(32)})


@st.composite
def records(draw: st.DrawFn) -> RegisterState:
    """Draw any record that passes its own checks."""
    values: dict[str, Any] = {name: draw(uint(bits)) for name, bits in UINTS.items()}
    values |= {name: draw(SEGMENT) for name in SEGMENTS}
    values["gpr"] = draw(st.binary(min_size=128, max_size=128))
    values["xmm"] = draw(st.binary(min_size=256, max_size=256))
    values["fpu_registers"] = draw(st.binary(min_size=128, max_size=128))
    values["fpu_tags"] = bytes(draw(st.lists(st.integers(0, 1), min_size=8, max_size=8)))
    values["fpu_top"] = draw(st.integers(0, 7))
    values["a20_mask"] = draw(st.sampled_from([0xFFFFFFFF, 0xFFEFFFFF]))
    for name in ("nmi_masked", "interrupt_shadow", "nmi_pending", "init_pending"):
        values[name] = draw(st.booleans())
    values["activity"] = draw(st.sampled_from(ACTIVITIES))
    values["sipi_vector"] = draw(st.integers(-1, 255))
    mode = draw(st.sampled_from(["real", "protected", "paging", "long"]))
    rest = draw(uint(32)) & ~(CR0_PE | CR0_PG)
    values["cr0"] = rest | {"real": 0, "protected": CR0_PE}.get(mode, CR0_PE | CR0_PG)
    efer = draw(uint(64)) & ~(LME | LMA)
    values["efer"] = efer | (
        LME | LMA if mode == "long" else draw(st.sampled_from([0, LME])) if mode != "paging" else 0
    )
    record = RegisterState.from_dict(values)
    record.check()
    return record


def test_power_on_state_is_a_good_record(rig: Rig) -> None:
    for index in range(2):
        rig.engine.reset_vcpu(index)
        record = RegisterState.from_engine(rig.engine.get_state(index))
        record.check()
        assert record.activity == ("running", "wait-for-sipi")[index]
        assert (record.cs.selector, record.cs.base, record.rip) == (0xF000, 0xFFFF0000, 0xFFF0)
        assert (record.cr0, record.rflags, record.dr6, record.dr7, record.mxcsr) == (
            0x60000010,
            2,
            0xFFFF0FF0,
            0x400,
            0x1F80,
        )
        assert record.fpu_tags == b"\1" * 8
        assert record.fpu_control == 0x37F


def test_names_of_the_record_are_those_of_the_engine(rig: Rig) -> None:
    assert set(RegisterState().to_engine()) == set(rig.engine.get_state(0))


@settings(max_examples=100, deadline=None)
@given(record=records())
def test_the_engine_keeps_every_valid_record(rig: Rig, record: RegisterState) -> None:
    rig.engine.set_state(1, record.to_engine())
    assert RegisterState.from_engine(rig.engine.get_state(1)) == record
    rig.engine.set_state(1, rig.engine.get_state(1))
    assert RegisterState.from_engine(rig.engine.get_state(1)) == record
    assert RegisterState.from_dict(record.to_dict()) == record


@settings(max_examples=60, deadline=None)
@given(record=records())
def test_any_valid_record_runs_without_harm(rig: Rig, record: RegisterState) -> None:
    rig.devices.noting = False
    rig.engine.reset_vcpu(1)
    rig.engine.set_state(0, record.to_engine())
    run = rig.start()
    run.ended(0.001)
    assert run.stop() in ("stopped", "triple-fault")
    assert run.error is None
    RegisterState.from_engine(rig.engine.get_state(0)).check()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"activity": "asleep"}, "activity"),
        ({"cr0": CR0_PG}, "cr0"),
        ({"cr0": CR0_PE | CR0_PG, "efer": LME}, "efer"),
        ({"cr0": CR0_PE, "efer": LME | LMA}, "efer"),
        ({"cr0": CR0_PE | CR0_PG, "efer": LMA}, "efer"),
        ({"a20_mask": 0}, "a20_mask"),
        ({"sipi_vector": 256}, "sipi_vector"),
        ({"fpu_top": 8}, "fpu_top"),
        ({"gpr": bytes(127)}, "gpr"),
        ({"cr4": 1 << 32}, "cr4"),
        ({"mxcsr": 0x10000}, "mxcsr"),
        ({"nmi_masked": 1}, "nmi_masked"),
        ({"cs": {"selector": 1 << 32}}, "cs.selector"),
        ({"cs": (1, 2, 3, 4)}, "cs"),
        ({"rax": 5}, "rax"),
    ],
)
def test_refusals(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(StateError, match=field):
        RegisterState.from_dict(changes).check("cpu0")


HOSTILE_NAMES = [*UINTS, *SEGMENTS, "gpr", "activity", "efer", "cr0", "nmi_masked", "sipi_vector"]
HOSTILE_VALUES = (
    st.integers(-(1 << 65), 1 << 65)
    | st.binary(max_size=130)
    | st.booleans()
    | st.none()
    | SEGMENT
    | st.text("abc", max_size=5)
)


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.sampled_from(HOSTILE_NAMES), HOSTILE_VALUES, max_size=5))
def test_hostile_records_are_refused_or_run(rig: Rig, values: dict[str, Any]) -> None:
    try:
        record = RegisterState.from_dict(values)
        record.check()
    except StateError:
        return
    rig.engine.set_state(1, record.to_engine())
    assert RegisterState.from_engine(rig.engine.get_state(1)) == record


def test_segments_become_tuples_and_back() -> None:
    record = RegisterState(cs=SegmentState(8, 1, 2, 3))
    assert record.to_engine()["cs"] == (8, 1, 2, 3)
    assert RegisterState.from_engine(record.to_engine()) == record


def test_flags_that_follow_from_registers_do_not_stick(rig: Rig) -> None:
    """The trap flag of a loaded state goes with the first interrupt, like any other."""
    # mov eax, 1; mov eax, 2 with TF; the handler of #DB executes several instructions, each without a trap
    rig.long(bytes.fromhex("b801000000 b802000000"), {1: bytes.fromhex("90 90 5b e6f4 faf4")}, rflags=0x102)
    rig.run_until_port()
    assert rig.get("rbx") == 0x7C05
