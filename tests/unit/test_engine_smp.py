"""Several processors on one engine."""

from __future__ import annotations

import time

import pytest

from pyvm.cpu.engine import open_engine
from tests.unit.engine_rig import CLI_HLT, DONE, DONE_HLT, HLT, JUMP_TO_SELF, Devices, Rig, code


def test_init_and_startup_between_two_processors() -> None:
    with Rig(2) as rig:
        rig.memory.write(0x8000, code("b0 77 e6 85", "8c c8 e7 86", HLT))  # what CS is
        rig.devices.on_port = lambda port, size, value: {
            0x80: lambda: rig.engine.init(1),
            0x81: lambda: rig.engine.startup(1, 0x08),
            0x86: rig.engine.stop,
        }.get(port, lambda: None)()
        rig.real(code("e6 80", "e6 81", JUMP_TO_SELF))
        assert rig.get("activity", 1) == "wait-for-sipi"
        assert rig.start().join() == "stopped"
        assert (0x85, 0x77) in rig.devices.written()
        assert (0x86, 0x800) in rig.devices.written()
        assert rig.engine.counters()["switch"] >= 2


def test_startup_is_ignored_by_a_processor_that_runs() -> None:
    with Rig(2) as rig:
        rig.real(JUMP_TO_SELF)
        rig.real(code("b3 05", JUMP_TO_SELF), at=0x8000, vcpu=1)
        run = rig.start()
        rig.engine.startup(1, 0x20)
        assert not run.ended(0.05)
        run.stop()
        assert rig.get("rip", 1) == 0x8002
        assert rig.get("sipi_vector", 1) == -1


def test_init_resets_a_running_processor_and_keeps_its_sse_registers() -> None:
    with Rig(2) as rig:
        rig.real(JUMP_TO_SELF)
        rig.long(JUMP_TO_SELF, vcpu=1, xmm=bytes(range(1, 255)) + b"ab", rbx=7)
        run = rig.start()
        rig.engine.init(1)
        assert not run.ended(0.05)
        run.stop()
        state = rig.engine.get_state(1)
        assert (state["activity"], state["cr0"], state["efer"], state["rip"]) == (
            "wait-for-sipi",
            0x60000010,
            0,
            0xFFF0,
        )
        assert state["xmm"] == bytes(range(1, 255)) + b"ab"
        assert rig.get("rbx", 1) == 0


def test_pause_hands_the_engine_over() -> None:
    """Two processors count in turn; each waits with PAUSE.  10,000 turns take seconds if a turn lasts a time slice."""
    with Rig(2) as rig:
        # loop: mov ax, [0x9000]; and al, 1; cmp al, ID; je go; pause; jmp loop
        # go: inc word [0x9000]; cmp word [0x9000], 10000; jb loop
        def player(identity: int) -> bytes:
            head = code("a1 0090", "24 01", bytes([0x3C, identity]), "74 04", "f3 90", "eb f3")
            return head + code("ff 06 0090", "81 3e 0090 1027", "72 e7", DONE, CLI_HLT)

        rig.real(player(0))
        rig.real(player(1), at=0x8000, vcpu=1)
        start = time.process_time()
        rig.run_until_port()
        assert time.process_time() - start < 5
        assert rig.memory.read_u16(0x9000) >= 10000


def test_busy_processors_take_turns_without_pause() -> None:
    with Rig(2) as rig:
        # Waits for the other one's byte without PAUSE.
        rig.real(code("c6 06 0090 01", "80 3e 0190 01", "75 f9", DONE_HLT))
        rig.real(code("80 3e 0090 01", "75 f9", "c6 06 0190 01", JUMP_TO_SELF), at=0x8000, vcpu=1)
        assert rig.run_until_port().result == "stopped"


def test_locked_increments_of_four_processors_are_all_counted() -> None:
    with Rig(4) as rig:
        # mov ecx, 20000; loop: lock inc dword [0x9000]; dec ecx; jnz loop; lock inc dword [0x9004]; hlt
        program = code("66 b9 204e0000", "f0 66 ff 06 0090", "66 49", "75 f6", "f0 66 ff 06 0490", CLI_HLT)
        for index in range(4):
            rig.real(program, at=0x7000 + 0x400 * index, vcpu=index)
        run = rig.start()
        end = time.monotonic() + 60
        while rig.memory.read_u32(0x9004) < 4 and time.monotonic() < end:
            time.sleep(0.005)
        run.stop()
        assert rig.memory.read_u32(0x9000) == 80000


def test_64_processors() -> None:
    with Rig(64) as rig:
        program = code("f0 ff 06 0090", CLI_HLT)
        rig.memory.write(0x8000, program)
        rig.real(code(JUMP_TO_SELF))
        run = rig.start()
        for index in range(1, 64):
            rig.engine.startup(index, 8)
        end = time.monotonic() + 60
        while rig.memory.read_u16(0x9000) < 63 and time.monotonic() < end:
            time.sleep(0.005)
        run.stop()
        assert rig.memory.read_u16(0x9000) == 63
        assert [rig.get("activity", index) for index in range(1, 64)] == ["halted"] * 63
        with pytest.raises(IndexError, match="no vCPU 64"):
            rig.engine.nmi(64)


@pytest.mark.parametrize("count", [0, -1, 256, 1 << 30])
def test_engines_with_too_few_or_too_many_processors(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        open_engine(count, Devices(), 10**9)
