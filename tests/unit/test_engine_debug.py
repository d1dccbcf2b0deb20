"""Breakpoints, watchpoints and single steps of the engine, as a debugger outside of the machine uses them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine_rig import CODE, DONE_HLT, HLT, JUMP_TO_SELF, STACK, STI, Rig, code

FREE, ONE_STEP, HELD = range(3)
READ, WRITE = 1, 2
COUNT = code("40 43 41 90 eb fa")
"""inc ax; inc bx; inc cx; nop; jump to the start."""


def run(rig: Rig) -> tuple[int, str, int]:
    """Run until the debugger is told; return what it is told."""
    assert rig.start().join() == "debug"
    told: tuple[int, str, int] = rig.engine.debugged
    return told


def step(rig: Rig, vcpu: int = 0, *, interrupts: bool = False) -> int:
    """Make one step; return where that led to."""
    rig.engine.set_pace(vcpu, ONE_STEP, interrupts)
    assert run(rig)[:2] == (vcpu, "step")
    rig.engine.set_pace(vcpu, FREE, False)
    return int(rig.get("rip", vcpu))


def test_a_step_is_one_instruction() -> None:
    with Rig() as rig:
        rig.real(COUNT)
        assert [step(rig) - CODE for _ in range(7)] == [1, 2, 3, 4, 0, 1, 2]
        assert [rig.get(name) for name in ("rax", "rbx", "rcx")] == [2, 2, 1]


def test_guest_code_stops_in_front_of_a_breakpoint_each_time() -> None:
    with Rig() as rig:
        rig.real(COUNT)
        rig.engine.set_breakpoints([CODE + 1, CODE + 3])
        places = []
        for _ in range(4):
            assert run(rig)[1] == "breakpoint"
            places.append((rig.get("rip") - CODE, rig.get("rax"), rig.get("rcx")))
            step(rig)  # leaves it behind
        assert places == [(1, 1, 0), (3, 1, 1), (1, 2, 1), (3, 2, 2)]


def test_a_breakpoint_that_is_taken_away_is_gone_and_one_that_comes_is_met_in_code_that_has_run() -> None:
    with Rig() as rig:
        rig.real(COUNT)
        rig.engine.set_breakpoints([CODE + 1])
        run(rig)
        rig.engine.set_breakpoints([CODE + 2])
        run(rig)
        assert rig.get("rip") == CODE + 2
        rig.engine.set_breakpoints([])
        guest = rig.start()
        assert not guest.ended(0.02)
        assert guest.stop() == "stopped"


def test_breakpoints_taken_away_for_a_step_and_put_back_cost_no_translation() -> None:
    with Rig() as rig:
        rig.real(COUNT)
        rig.engine.set_breakpoints([CODE + 1])
        for count in range(1, 4):
            run(rig)
            assert (rig.get("rip"), rig.get("rax")) == (CODE + 1, count)
            rig.engine.set_breakpoints([])
            assert step(rig) == CODE + 2
            rig.engine.set_breakpoints([CODE + 1])


@pytest.mark.parametrize("name", ["real", "protected", "long"])
def test_breakpoints_work_in_every_mode(name: str) -> None:
    with Rig() as rig:
        getattr(rig, name)(code("90 90 90", DONE_HLT))
        rig.engine.set_breakpoints([CODE + 2])
        assert run(rig) == (0, "breakpoint", 0)
        assert rig.get("rip") == CODE + 2
        assert step(rig) == CODE + 3


def test_a_step_over_an_interrupt_ends_in_its_handler() -> None:
    with Rig() as rig:
        rig.vector16(0x21, code("90 cf"), 0x3000)
        rig.real(code("cd 21 90"))
        assert step(rig) == 0x3000
        assert step(rig) == 0x3001
        assert step(rig) == CODE + 2


def test_a_step_into_a_fault_ends_in_its_handler() -> None:
    with Rig() as rig:
        rig.vector16(6, JUMP_TO_SELF, 0x3000)
        rig.real(code("0f 0b"))  # ud2
        assert step(rig) == 0x3000


def test_a_step_where_no_code_can_be_fetched_ends_in_the_handler() -> None:
    with Rig() as rig:
        rig.long(code("ff e0"), {14: JUMP_TO_SELF}, rax=0x40000000)  # jmp rax, to where nothing is mapped
        # The jump's own step may have got as far as the fetch.
        assert 0x3000 in (step(rig), step(rig))
        assert rig.get("cr2") == 0x40000000


def test_a_repeated_instruction_takes_a_step_for_each_time() -> None:
    with Rig() as rig:
        rig.real(code("f3 a4 90"), rcx=3, rsi=0x2000, rdi=0x2100)
        places = [step(rig) for _ in range(4)]
        assert rig.get("rcx") == 0
        assert CODE + 2 in places
        assert sorted(places) == places


def test_a_step_over_hlt_ends_and_the_next_waits_for_an_interrupt_that_it_does_not_take() -> None:
    with Rig() as rig:
        rig.devices.vector = lambda vcpu: 0x20
        rig.real(code(STI, HLT, "40 90"))
        step(rig)
        assert step(rig) == CODE + 2
        assert rig.get("activity") == "halted"
        rig.engine.set_pace(0, ONE_STEP, False)
        guest = rig.start()
        assert not guest.ended(0.02)
        rig.engine.interrupt(0, True)
        assert guest.join() == "debug"
        assert (rig.get("rip"), rig.get("rax")) == (CODE + 3, 1)


def test_a_step_enters_a_waiting_interrupt_only_where_that_is_asked_for() -> None:
    with Rig() as rig:
        rig.vector16(0x20, code("90 cf"), 0x3000)
        rig.devices.vector = lambda vcpu: rig.engine.interrupt(vcpu, False) or 0x20
        rig.real(code("90 90 90 90"), rflags=0x202)
        rig.engine.interrupt(0, True)
        assert step(rig) == CODE + 1
        assert step(rig, interrupts=True) == 0x3000
        assert step(rig) == 0x3001


def test_an_nmi_waits_for_the_end_of_steps() -> None:
    with Rig() as rig:
        rig.vector16(2, JUMP_TO_SELF, 0x3000)
        rig.real(code("90 90 90"))
        rig.engine.nmi(0)
        assert step(rig) == CODE + 1
        assert rig.get("nmi_pending")
        assert step(rig, interrupts=True) == 0x3000


@pytest.mark.parametrize(
    ("watched", "instruction", "stops"),
    [
        ((0x2000, 4, WRITE), "a3 00 20", True),  # mov [0x2000], ax
        ((0x2001, 1, WRITE), "a3 00 20", True),
        ((0x2002, 2, WRITE), "a3 00 20", False),
        ((0x1FFF, 1, WRITE), "a3 00 20", False),
        ((0x2000, 4, READ), "a3 00 20", False),
        ((0x2000, 4, READ), "a1 02 20", True),  # mov ax, [0x2002]
        ((0x2000, 4, WRITE), "a1 02 20", False),
        ((0x2000, 4, READ | WRITE), "a1 00 20", True),
        ((0x2000, 1, READ | WRITE), "ff 06 00 20", True),  # inc word [0x2000]
    ],
)
def test_guest_code_stops_behind_an_access_that_is_watched(
    watched: tuple[int, int, int], instruction: str, stops: bool
) -> None:
    with Rig() as rig:
        body = code(instruction)
        rig.real(code(body, "90", DONE_HLT))
        rig.engine.set_watchpoints([(0x5000, 1, WRITE), watched])
        if not stops:
            rig.run_until_port()
            return
        assert run(rig) == (0, "watchpoint", 1)
        assert rig.get("rip") == CODE + len(body)


def test_a_watched_instruction_is_executed_once() -> None:
    with Rig() as rig:
        rig.real(code("ff 06 00 20 eb fa"))  # inc word [0x2000], for ever
        rig.engine.set_watchpoints([(0x2000, 2, WRITE)])
        for count in range(1, 6):
            assert run(rig)[1] == "watchpoint"
            assert rig.memory.read_u16(0x2000) == count
        rig.engine.set_pace(0, ONE_STEP, False)
        assert run(rig)[1] == "step"  # the jump
        assert run(rig)[1] == "watchpoint"
        assert rig.memory.read_u16(0x2000) == 6


def test_the_guests_own_data_breakpoint_still_works_beside_a_watchpoint() -> None:
    with Rig() as rig:
        rig.vector16(1, code("42 cf"), 0x3000)  # inc dx
        # mov eax, 0x2000; mov dr0, eax; mov eax, 0x10001 | GE; mov dr7, eax; inc word [0x2000]; nop; done
        setup = code("66 b8 00 20 00 00 0f 23 c0", "66 b8 02 02 01 00 0f 23 f8")
        rig.real(code(setup, "ff 06 00 20", "90", DONE_HLT))
        rig.engine.set_watchpoints([(0x2000, 2, WRITE)])
        assert run(rig) == (0, "watchpoint", 0)
        before = rig.get("rdx")
        rig.run_until_port()
        assert rig.get("rdx") == before + 1
        assert rig.memory.read_u16(0x2000) == 1


def test_a_held_vcpu_does_not_run_and_a_stepping_one_goes_first() -> None:
    with Rig(2) as rig:
        rig.real(COUNT)
        rig.real(COUNT, at=0x9000, vcpu=1)
        rig.engine.set_pace(0, HELD, False)
        assert step(rig, 1) == 0x9001
        assert (rig.get("rip"), rig.get("rax")) == (CODE, 0)
        rig.engine.set_pace(0, FREE, False)
        rig.engine.set_pace(1, HELD, False)
        guest = rig.start()
        assert not guest.ended(0.02)
        guest.stop()
        assert rig.get("rip", 1) == 0x9001
        assert rig.get("rcx") > 0


def test_a_breakpoint_is_for_all_vcpus() -> None:
    with Rig(2) as rig:
        rig.real(JUMP_TO_SELF)
        rig.real(COUNT, at=0x9000, vcpu=1)
        rig.engine.set_breakpoints([0x9003])
        assert run(rig) == (1, "breakpoint", 0)
        assert rig.get("rip", 1) == 0x9003


def test_breakpoints_and_watchpoints_are_checked() -> None:
    with Rig() as rig:
        for call, wrong in (
            (rig.engine.set_breakpoints, range(1025)),
            (rig.engine.set_breakpoints, ["x"]),
            (rig.engine.set_breakpoints, [-1]),
            (rig.engine.set_breakpoints, 7),
            (rig.engine.set_watchpoints, [(0, 1, 1)] * 29),
            (rig.engine.set_watchpoints, [(0, 1)]),
            (rig.engine.set_watchpoints, 7),
        ):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                call(wrong)
        for pace in ((1, FREE, False), (-1, FREE, False), (0, 3, False), (0, -1, False)):
            with pytest.raises(ValueError, match="no such vCPU, or no such pace"):
                rig.engine.set_pace(*pace)


def test_nothing_of_a_debugger_is_left_when_it_has_gone() -> None:
    with Rig() as rig:
        rig.real(code("ff 06 00 20", DONE_HLT))
        rig.engine.set_breakpoints([CODE])
        rig.engine.set_watchpoints([(0x2000, 2, WRITE)])
        run(rig)
        rig.engine.set_breakpoints([])
        rig.engine.set_watchpoints([])
        rig.run_until_port()
        assert rig.get("rsp") == STACK


def registers_of(rig: Rig, *names: str) -> list[Any]:
    return [rig.get(name) for name in names]


def test_a_step_over_a_call_of_the_firmware_runs_its_service() -> None:
    with Rig() as rig:
        rig.engine.set_firmware(0xE000, 16)
        rig.devices.on_firmware = lambda vcpu: rig.set(vcpu, rbx=0x55)
        rig.real(code("e6 b1 90 90"), at=0xE000)
        step(rig)
        assert registers_of(rig, "rbx", "rip") == [0x55, 0xE002]
