"""System instructions, and the registers of a stopped processor."""

from __future__ import annotations

import time

import pytest

from tests.unit.engine_rig import (
    CODE,
    CODE32,
    DATA32,
    DONE_HLT,
    HLT,
    HOLE,
    JUMP_TO_SELF,
    MIB,
    STACK,
    STI,
    Rig,
    code,
)


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


# ---- System instructions


def test_machine_specific_registers_of_the_local_apic(rig: Rig) -> None:
    program = code("b9 1b000000", "0f 32", "89 c3", "b8 00f0e0fe", "0f 30", "b9 02080000", "0f 32", JUMP_TO_SELF)
    rig.long(program, {13: code("58", DONE_HLT)})
    rig.run_until_port()
    assert rig.get("rbx") == 0xFEE00900
    assert rig.devices.msrs[0x1B] & 0xFFFFFFFF == 0xFEE0F000


def test_time_stamp_counter_follows_the_guest_clock() -> None:
    with Rig(tsc_hz=2 * 10**9) as rig:
        rig.engine.set_clock(10**15 - time.monotonic_ns())
        # rdtsc; then wrmsr 0x10 := 0; rdmsr 0x10; rdtsc
        save = "48 c1 e2 20 48 09 d0"
        program = code(
            "0f 31", save, "48 89 c3", "b9 10000000", "31 c0 31 d2 0f 30", "0f 31", save, "49 89 c0", DONE_HLT
        )
        rig.long(program)
        rig.run_until_port()
        assert 2 * 10**15 <= rig.get("rbx") < 2 * 10**15 + 3 * 10**11
        assert rig.get("r8") < 3 * 10**11


def test_time_stamp_counter_is_adjusted_by_a_difference() -> None:
    with Rig(tsc_hz=10**9) as rig:
        rig.engine.set_clock(-time.monotonic_ns())
        save = "48 c1 e2 20 48 09 d0"
        adjust = "b9 3b000000"
        # rdmsr 0x3b; wrmsr 0x3b := 2^40; rdtsc; wrmsr 0x10 := 2^41; rdmsr 0x3b
        program = code(
            adjust, "0f 32", save, "48 89 c3", "31 c0 ba 00010000 0f 30", "0f 31", save, "49 89 c0",
            "b9 10000000", "31 c0 ba 00020000 0f 30", adjust, "0f 32", save, "49 89 c1", DONE_HLT,
        )  # fmt: skip
        rig.long(program)
        rig.run_until_port()
        assert rig.get("rbx") == 0
        assert 2**40 <= rig.get("r8") < 2**40 + 3 * 10**11
        assert 2**41 - 3 * 10**11 < rig.get("r9") <= 2**41


def test_task_priority_register(rig: Rig) -> None:
    rig.devices.cr8 = 5
    rig.long(code("44 0f 20 c3", "b8 09000000", "44 0f 22 c0", DONE_HLT))
    rig.run_until_port()
    assert (rig.get("rbx"), rig.devices.cr8) == (5, 9)


def test_syscall_and_sysret(rig: Rig) -> None:
    """From ring 3 and back; RCX, R11 and the flag mask."""
    kernel = code("9c 5b", "48 0f 07")  # pushfq; pop rbx; sysretq
    rig.memory.write(0x9000, kernel)
    user = {"cs": (0x33, 0, 0xFFFFFFFF, 0xA0FB00), "ss": (0x2B, 0, 0xFFFFFFFF, 0xC0F300), "rflags": 0x246}
    msrs = {"star": 0x0023_0008 << 32, "lstar": 0x9000, "fmask": 0x200}
    rig.long(code("0f 05", "cc"), {3: DONE_HLT}, **user, **msrs)
    rig.run_until_port()
    assert rig.get("rcx") == CODE + 2
    assert rig.get("r11") == 0x246
    assert rig.get("rbx") == 0x46


def test_sysenter(rig: Rig) -> None:
    rig.memory.write(0x9000, DONE_HLT)
    user = {"cs": (0x1B, 0, 0xFFFFFFFF, 0xC0FB00), "ss": (0x23, 0, 0xFFFFFFFF, 0xC0F300), "rflags": 0x202}
    rig.protected(code("0f 34"), **user, sysenter_cs=8, sysenter_esp=0x6000, sysenter_eip=0x9000)
    rig.run_until_port()
    assert (rig.get("rsp"), rig.get("cs")[0], rig.get("ss")[0], rig.get("rflags") & 0x200) == (0x6000, 8, 0x10, 0)
    rig.protected(code("0f 34"), {13: DONE_HLT}, sysenter_cs=3)
    rig.run_until_port()
    assert rig.get("rip") < 0x4000


def test_cpuid_shows_the_processor_that_asks() -> None:
    with Rig(2) as rig:
        rig.engine.set_apic_id(0, 9)
        rig.engine.set_cpuid([(0, 0xFFFFFFFF, 1, 2, 3, 4), (1, 0xFFFFFFFF, 0x663, 0x0AFFFFFF, 5, 6)])
        rig.long(code("31 c0 0f a2 41 89 d0", "b8 01000000 0f a2", DONE_HLT))
        rig.run_until_port()
        assert (rig.get("rax"), rig.get("rbx"), rig.get("r8")) == (0x663, 0x09FFFFFF, 4)
        assert rig.get("rcx") == 5 | 1 << 27  # OSXSAVE, which the rig has on
        rig.engine.reset_vcpu(0)
        assert rig.get("rdx") == 0x663
        with pytest.raises(ValueError, match="too many"):
            rig.engine.set_cpuid([(index, 0, 0, 0, 0, 0) for index in range(200)])


def test_data_breakpoint(rig: Rig) -> None:
    """#DB comes after the store that DR0 watches, once, with the store done."""
    report = code("5b", "0f 21 f1", DONE_HLT)  # pop rbx; mov rcx, dr6
    program = code("c7 04 25 00900000 05000000", "b8 01000000", JUMP_TO_SELF)
    rig.long(program, {1: report}, dr0=0x9000, dr7=0x000D0401)
    rig.run_until_port()
    assert rig.get("rbx") == CODE + 11
    assert rig.get("rcx") & 0xF == 1
    assert rig.memory.read_u32(0x9000) == 5


def test_single_step(rig: Rig) -> None:
    rig.long(code("90 90 90", JUMP_TO_SELF), {1: code("5b", DONE_HLT)}, rflags=0x102)
    rig.run_until_port()
    assert rig.get("rbx") == CODE + 1


# ---- State


def test_a_program_goes_on_in_another_engine() -> None:
    """A long computation in integer, x87 and SSE registers is stopped anywhere, carried over, and ends the same."""
    # fld1; cvtsi2sd xmm0, ecx ... loop: fadd st0,st0 / imul / addsd / dec / jnz
    program = code(
        "b9 40420f00", "b8 39300000", "d9 e8", "f2 0f 2a c1", "f2 0f 2a c8",
        "69 c0 0d661900", "05 5ff36e3c", "31 04 25 00900000", "d8 c0", "d9 e8", "de c1", "d9 fa",
        "f2 0f 58 c1", "f2 0f 51 c9",
        "ff c9", "75 da", "dd 1c 25 10900000", "f2 0f 11 04 25 18900000", "f2 0f 11 0c 25 20900000", DONE_HLT,
    )  # fmt: skip

    def result(rig: Rig) -> tuple[int, bytes]:
        return rig.get("rax"), rig.memory.read(0x9000, 0x28)

    with Rig() as straight:
        straight.long(program)
        straight.run_until_port()
        wanted = result(straight)
    rig = Rig()
    rig.long(program)
    moves = 0
    for _ in range(12):
        run = rig.start()
        run.ended(0.004)
        assert run.stop() == "stopped"
        if rig.devices.written():
            break
        other = Rig()
        other.memory.write(0, rig.memory.read(0, HOLE))
        other.engine.set_state(0, rig.engine.get_state(0))
        assert other.engine.get_state(0) == rig.engine.get_state(0)
        rig.close()
        rig = other
        moves += 1
    if not rig.devices.written():
        rig.run_until_port()
    assert moves >= 1
    assert result(rig) == wanted
    rig.close()


def test_a_halted_processor_stays_halted_in_another_engine() -> None:
    with Rig() as first, Rig() as second:
        first.real(code(STI, HLT, DONE_HLT))
        run = first.start()
        while not first.engine.counters()["halt"]:
            time.sleep(0.001)
        run.stop()
        state = first.engine.get_state(0)
        assert state["activity"] == "halted"
        second.memory.write(0, first.memory.read(0, HOLE))
        second.vector16(0x21, b"\xcf", 0x700)
        second.engine.set_state(0, state)
        second.devices.vector = lambda vcpu: (second.engine.interrupt(0, False), 0x21)[1]
        run = second.start()
        assert not run.ended(0.05)
        assert not second.devices.written()
        second.engine.interrupt(0, True)
        while not second.devices.written():
            time.sleep(0.001)
        run.stop()


@pytest.mark.parametrize(
    "values",
    [
        {"rip": "seven"},
        {"gpr": b"short"},
        {"gpr": 5},
        {"cs": (1, 2, 3)},
        {"cs": 5},
        {"activity": "asleep"},
        {"activity": 3},
        {"sipi_vector": "x"},
    ],
)
def test_set_state_refuses_values_of_the_wrong_kind(rig: Rig, values: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        rig.engine.set_state(0, values)
    with pytest.raises(TypeError):
        rig.engine.set_state(0, [])
    with pytest.raises(IndexError):
        rig.engine.set_state(1, {})


def test_shared_registers(rig: Rig) -> None:
    rig.engine.set_shared_msr(0x250, 0x0606060606060606)
    rig.long(code("b9 50020000", "0f 32", DONE_HLT))
    rig.run_until_port()
    assert (rig.get("rax"), rig.get("rdx")) == (0x06060606, 0x06060606)
    for index in (0x1FF, 0x300, 0xC0000080):
        with pytest.raises(ValueError, match="no shared MSR"):
            rig.engine.set_shared_msr(index, 0)


def test_vm86_reaches_ports_by_the_bitmap(rig: Rig) -> None:
    segment = (0, 0, 0xFFFF, 0xF300)
    segments = dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss"), segment)
    rig.protected(
        code("e6 08", JUMP_TO_SELF), {13: DONE_HLT}, **segments, rflags=0x23002, tr=(0x28, 0x600, 0x69, 0x8900)
    )
    rig.memory.write_u16(0x600 + 102, 0x68)
    rig.memory.write(0x668, b"\xff\xff")
    rig.run_until_port()
    assert (8, 0) not in rig.devices.written()


def test_task_switch_through_a_gate(rig: Rig) -> None:
    """A task gate in the IDT; then a gate to a task that is busy already."""
    rig.protected(code("cd 40", JUMP_TO_SELF), {10: DONE_HLT, 13: DONE_HLT}, tr=(0x28, 0x600, 0x67, 0x8900))
    tss = 0x9000
    rig.memory.write(tss, bytes(104))
    for offset, value in ((0x20, 0xA000), (0x24, 2), (0x38, 0x6800)):
        rig.memory.write_u32(tss + offset, value)
    for offset, value in ((0x48, 0x10), (0x4C, 8), (0x50, 0x10), (0x54, 0x10), (0x58, 0), (0x5C, 0)):
        rig.memory.write_u32(tss + offset, value)
    rig.memory.write(0xA000, code("b3 44", DONE_HLT))
    rig.memory.write_u64(0x500 + 0x30, 0x67 | tss << 16 | 0x89 << 40)
    rig.memory.write_u64(0x1000 + 8 * 0x40, 0x30 << 16 | 0x8500 << 32)
    rig.run_until_port()
    assert rig.get("rbx") & 0xFF == 0x44
    assert rig.get("rsp") == 0x6800
    assert rig.get("tr")[0] == 0x30
    assert rig.memory.read_u32(0x600 + 0x20) == CODE + 2


def test_segment_limits_are_part_of_protected_mode_flat_code(rig: Rig) -> None:
    """A far jump to 16-bit code and back keeps what was in the upper halves of registers."""
    rig.memory.write_u64(0x500 + 0x30, 0x00009B000000FFFF)
    # mov eax, 0x12345678; jmp 0x30:next; next (16-bit): mov ax, 0xffff; jmp 8:back (66: 32-bit offset)
    program = code("b8 78563412", "ea 0c7c0000 3000", "b8 ffff", "66 ea 177c0000 0800", DONE_HLT)
    rig.protected(program)
    rig.memory.write_u64(0x500 + 0x30, 0x00009B000000FFFF)
    rig.run_until_port()
    assert rig.get("rax") == 0x1234FFFF
    assert rig.get("cs")[3] & 0x400000 == CODE32 & 0x400000
    assert rig.get("ss")[3] == DATA32
    assert rig.get("rsp") == STACK
    assert MIB == 1 << 20
