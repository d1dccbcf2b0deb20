"""Jumps to addresses that were jumped to before: where they lead after pages, code or segments have changed."""

from __future__ import annotations

import pytest

from tests.unit.engine_rig import CODE, DONE_HLT, HOLE, PAGE_TABLES, Rig, code

ROUNDS = 5000
"""More than there are generations of remembered jumps."""
TARGET = 0x60000
FIRST, SECOND = 0x20000, 0x21000
MAKE_ONE, MAKE_TWO = code("b8 01000000 c3"), code("b8 02000000 c3")
LEVEL1 = PAGE_TABLES + 0x3000
INVLPG, LOAD_CR3, LOAD_CR4 = "0f 01 3f", "0f 20 d8 0f 22 d8", "0f 20 e0 48 35 80000000 0f 22 e0"


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


def _loop(body: bytes) -> bytes:
    """Return code that runs `body` as often as RCX says, and then ends."""
    back = (-len(body) - 8).to_bytes(4, "little", signed=True)
    return body + code("ff c9", "0f 85", back) + DONE_HLT


@pytest.mark.parametrize("flush", [INVLPG, LOAD_CR3, LOAD_CR4])
def test_a_page_that_is_mapped_to_another_place(rig: Rig, flush: str) -> None:
    # xor qword [rbx], 0x1000; (flush); call rdi; add r8, rax
    rig.long(_loop(code("48 81 33 00100000", flush, "ff d7", "49 01 c0")))
    rig.memory.write(FIRST, MAKE_ONE)
    rig.memory.write(SECOND, MAKE_TWO)
    rig.memory.write_u64(LEVEL1 + 8 * (TARGET >> 12), FIRST | 7)
    rig.set(rdi=TARGET, rbx=LEVEL1 + 8 * (TARGET >> 12), rcx=ROUNDS, r8=0)
    rig.run_until_port()
    assert rig.get("r8") == ROUNDS // 2 * 3


def test_a_page_that_is_gone(rig: Rig) -> None:
    """The last call faults, though it is to the same place as the others."""
    program = code("ff d7", "ff d7", "ff d7", "48 c7 03 00000000", INVLPG, "ff d7", DONE_HLT)
    rig.long(program, {14: code("48 0f 20 d2", DONE_HLT)})  # mov rdx, cr2
    rig.memory.write(FIRST, MAKE_ONE)
    rig.memory.write_u64(LEVEL1 + 8 * (TARGET >> 12), FIRST | 7)
    rig.set(rdi=TARGET, rbx=LEVEL1 + 8 * (TARGET >> 12))
    rig.run_until_port()
    assert rig.get("rdx") == TARGET


@pytest.mark.parametrize("place", [FIRST, 0x20FFE], ids=["one page", "two pages"])
def test_code_that_changes_before_each_call(rig: Rig, place: int) -> None:
    # inc byte [rdi + 1]; call rdi (again, as the first call has it translated); add r8, rax
    rig.long(_loop(code("fe 47 01", "ff d7 ff d7 ff d7", "49 01 c0")))
    rig.memory.write(place, code("b8 00000000 c3"))
    rig.set(rdi=place, rcx=ROUNDS, r8=0)
    rig.run_until_port()
    assert rig.get("r8") == sum(number & 0xFF for number in range(1, ROUNDS + 1))


def test_a_device_that_changes_code_between_calls_and_runs(rig: Rig) -> None:
    functions = [MAKE_TWO, MAKE_ONE]
    rig.devices.on_port = lambda port, size, value: rig.memory.write(FIRST, functions.pop()) if port == 0x80 else None
    calls = "ff d7 ff d7 ff d7"
    program = code(calls, "49 89 c0", "e6 80", calls, "49 89 c1", "e6 80", calls, "49 89 c2", DONE_HLT)
    for first in (7, 9):
        functions[:] = [MAKE_TWO, MAKE_ONE]
        rig.memory.write(FIRST, code("b8", first.to_bytes(4, "little"), "c3"))
        rig.long(program, rip=CODE)
        rig.set(rdi=FIRST)
        rig.run_until_port()
        assert [rig.get(name) for name in ("r8", "r9", "r10")] == [first, 1, 2]


def test_memory_that_is_taken_away_and_given_back_between_runs(rig: Rig) -> None:
    """The second run finds other memory where the first one had its function."""
    for offset, number in ((0, 1), (0x30000, 2), (0, 1)):
        rig.engine.unmap(0, HOLE)
        rig.engine.map_ram(0, rig.memory.mapping, 0, 0x50000, True)
        rig.engine.map_ram(0x50000, rig.memory.mapping, 0x50000 + offset, 0x10000, True)
        rig.engine.map_io(0x60000, HOLE - 0x60000)
        rig.long(code("ff d7", "ff d7", DONE_HLT))
        rig.memory.write(0x50000, MAKE_ONE)
        rig.memory.write(0x80000, MAKE_TWO)
        rig.set(rdi=0x50000)
        rig.run_until_port()
        assert rig.get("rax") == number
        rig.engine.unmap(0, 0x50000)
        rig.engine.unmap(0x50000, 0x10000)
        rig.engine.unmap(0x60000, HOLE - 0x60000)
        rig.engine.map_ram(0, rig.memory.mapping, 0, HOLE, True)


def test_the_same_offset_in_several_segments(rig: Rig) -> None:
    """Real mode: a near call of DI leads to another place in each segment."""
    near = 0x5200
    for segment, number in ((0, 1), (0x100, 4), (0x200, 16)):
        # add bx, number; ret; and 16 bytes on: call di; retf
        rig.memory.write(segment * 16 + near, code("83 c3", bytes([number]), "c3"))
        rig.memory.write(segment * 16 + near + 0x10, code("ff d7", "cb"))
    far = [code("9a", (near + 0x10).to_bytes(2, "little"), segment.to_bytes(2, "little")) for segment in (0x100, 0x200)]
    body = code("ff d7") + far[0] + code("ff d7") + far[1]
    rig.real(code("bf 0052", "31 db", "b9 6400", body, "49", "75", bytes([256 - len(body) - 3])) + DONE_HLT)
    rig.run_until_port()
    assert rig.get("rbx") & 0xFFFF == 100 * (1 + 4 + 1 + 16)
