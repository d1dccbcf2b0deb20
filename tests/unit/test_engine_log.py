"""What the CPU engine tells of guest code: blocks translated and entered, and interrupts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.engine_rig import CLI_HLT, CODE, DONE_HLT, Rig, code

TRANSLATIONS, BLOCKS, REGISTERS, INTERRUPTS = 1, 2, 4, 8
LOOP = code("b9 03000000", "90", "ff c9 75 fb", DONE_HLT)  # mov ecx, 3; nop; dec ecx; jnz to the nop


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def told(rig: Rig, kind: str, program: bytes, mask: int, *, single: bool = False, **handlers: bytes) -> list[Any]:
    """Return what is told of a program: values and registers."""
    rig.long(program, {int(name[1:], 16): handler for name, handler in handlers.items()})
    rig.engine.set_log(mask, single)
    rig.devices.told.clear()
    rig.run_until_port().stop()
    assert {what for what, _, _ in rig.devices.told} <= {"translated", "entered", "interrupt"}
    return [(values, registers) for what, values, registers in rig.devices.told if what == kind]


def test_nothing_is_told_at_first(rig: Rig) -> None:
    rig.long(LOOP)
    rig.run_until_port().stop()
    assert rig.devices.told == []


def test_blocks_that_are_translated(rig: Rig) -> None:
    found = [values for values, _ in told(rig, "translated", LOOP, TRANSLATIONS)]
    assert [(address, size) for address, _, _, _, size, _ in found[:2]] == [(CODE, 10), (CODE + 5, 5)]
    assert all(base == 0 and host for _, base, _, _, _, host in found)
    rig.devices.told.clear()
    rig.set(rip=CODE, activity="running")
    rig.run_until_port().stop()
    assert not rig.devices.told  # they are there


def test_blocks_that_are_entered(rig: Rig) -> None:
    found = told(rig, "entered", LOOP, BLOCKS)
    assert [values[0] for values, _ in found[:4]] == [CODE, CODE + 5, CODE + 5, CODE + 10]
    assert all(registers is None for _, registers in found)
    found = told(rig, "entered", LOOP, BLOCKS | REGISTERS)
    counts = [struct.unpack_from("<Q", registers["gpr"], 8)[0] for _, registers in found[:4]]
    assert counts[1:] == [2, 1, 0]
    assert [registers["rip"] for _, registers in found[:4]] == [values[0] for values, _ in found[:4]]
    assert [registers["rflags"] >> 6 & 1 for _, registers in found[1:4]] == [0, 0, 1]


def test_blocks_of_one_instruction(rig: Rig) -> None:
    found = [values[0] - CODE for values, _ in told(rig, "entered", LOOP, BLOCKS, single=True)]
    assert found[:10] == [0, *[5, 6, 8] * 3]
    found = [values[0] - CODE for values, _ in told(rig, "entered", LOOP, BLOCKS)]
    assert found[:4] == [0, 5, 5, 10]


def test_interrupts(rig: Rig) -> None:
    back = code("48 83 04 24 02", "48 cf")  # add qword [rsp], 2; iretq
    program = code("cd 30", "31 c0 f7 f0", DONE_HLT)  # int 30h; xor eax, eax; div eax
    found = told(rig, "interrupt", program, INTERRUPTS, v30=code("48 cf"), v0=back)
    none = 0xFFFFFFFF
    assert [values for values, _ in found] == [(0x30, 0, 1, 0, none), (0, 0, 0, 0, none)]
    assert [registers["rip"] for _, registers in found] == [CODE, CODE + 4]


def test_an_interrupt_from_outside(rig: Rig) -> None:
    rig.devices.vector = lambda vcpu: 0x40
    rig.engine.interrupt(0, True)
    found = told(rig, "interrupt", code("fb 90", CLI_HLT), INTERRUPTS, v40=DONE_HLT)
    assert found[0][0][0] == 0x40
    assert found[0][0][2:4] == (0, 1)


def test_a_listener_that_fails(rig: Rig) -> None:
    rig.devices.block_entered = lambda *arguments: 1 // 0  # type: ignore[method-assign]
    with Rig(devices=rig.devices) as other:
        other.long(LOOP)
        other.engine.set_log(BLOCKS, False)
        run = other.start()
        run.join()
        assert isinstance(run.error, ZeroDivisionError)
