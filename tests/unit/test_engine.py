"""The CPU engine, driven by programs of a few instructions: modes, ports, interrupts, stopping and failing."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest

from tests.unit.engine_rig import (
    CLI_HLT,
    CODE,
    DONE,
    DONE_HLT,
    HLT,
    HOLE,
    JUMP_TO_SELF,
    PAGE_TABLES,
    STI,
    Devices,
    Rig,
    code,
)


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


# ---- Modes and ports


def test_each_mode_reaches_ports_of_each_size(rig: Rig) -> None:
    program16 = code("b0 41 e6 80", "b8 4342 e7 82", "66 b8 47464544 66 e7 84", DONE_HLT)
    program32 = code("b0 41 e6 80", "66 b8 4342 66 e7 82", "b8 47464544 e7 84", DONE_HLT)
    wanted = [(0x80, 1, 0x41), (0x82, 2, 0x4243), (0x84, 4, 0x44454647)]
    for prepare, program in ((rig.real, program16), (rig.protected, program32), (rig.long, program32)):
        rig.devices.log.clear()
        prepare(program)
        rig.run_until_port()
        assert [entry[1:] for entry in rig.devices.log[:3]] == wanted


def test_ports_read_no_more_than_asked(rig: Rig) -> None:
    rig.long(code("48 c7 c0 ffffffff", "e4 10", "48 89 c3", "66 e5 12", "48 89 c1", "e5 14", "48 89 c2", DONE_HLT))
    rig.run_until_port()
    assert rig.get("rbx") == 0xFFFFFFFFFFFFFFD4
    assert rig.get("rcx") == 0xFFFFFFFFFFFFC3D4
    assert rig.get("rdx") == 0xA1B2C3D4
    assert rig.devices.log[:3] == [("in", 0x10, 1, 0), ("in", 0x12, 2, 0), ("in", 0x14, 4, 0)]


def test_string_input_and_output(rig: Rig) -> None:
    rig.memory.write(0x8000, b"abcdef")
    # mov ecx, 6; mov esi, 0x8000; mov edx, 0x3f8; rep outsb; mov ecx, 2; mov edi, 0x9000; rep insd
    program = code(
        "b9 06000000", "be 00800000", "ba f8030000", "f3 6e", "b9 02000000", "bf 00900000", "f3 6d", DONE_HLT
    )
    rig.long(program)
    rig.run_until_port()
    assert bytes(value for port, value in rig.devices.written() if port == 0x3F8) == b"abcdef"
    assert rig.memory.read(0x9000, 8) == bytes.fromhex("d4c3b2a1") * 2


@pytest.mark.parametrize(
    ("io_level", "bitmap", "reached"),
    [(3, None, True), (0, None, False), (0, b"\xff\xfe", True), (0, b"\xff\xfd", False), (0, b"\xff", False)],
)
def test_ring_3_needs_permission_for_a_port(rig: Rig, io_level: int, bitmap: bytes | None, reached: bool) -> None:
    """Port 8 is the first of byte 1 of the bitmap; a bitmap that ends inside the two bytes looked at forbids."""
    fault = code("59 5a", DONE_HLT)  # pop rcx (error code); pop rdx (where)
    limit = 0x67 if bitmap is None else 0x68 + len(bitmap)
    registers = {
        "cs": (0x23, 0, 0xFFFFFFFF, 0xA0FB00),
        "ss": (0x1B, 0, 0xFFFFFFFF, 0xC0F300),
        "rflags": 2 | io_level << 12,
        "tr": (0x28, 0x600, limit, 0x8B00),
    }
    rig.long(code("e6 08", "cc"), {13: fault, 3: DONE_HLT}, **registers)
    rig.memory.write_u16(0x600 + 102, 0x68)
    rig.memory.write(0x668, (bitmap or b"") + b"\xff")
    rig.run_until_port()
    assert ((8, 0) in rig.devices.written()) is reached
    if not reached:
        assert (rig.get("rcx"), rig.get("rdx")) == (0, CODE)


# ---- Interrupts


def test_real_mode_interrupts_of_both_kinds(rig: Rig) -> None:
    """INT 0x22 by the program, then vector 0x21 from the controller, which wakes the processor from HLT."""
    rig.vector16(0x22, code("b0 22 e6 81 cf"), 0x700)
    rig.vector16(0x21, code("b0 21 e6 81 cf"), 0x740)
    rig.devices.vector = lambda vcpu: (rig.engine.interrupt(0, False), 0x21)[1]
    rig.devices.on_port = lambda port, size, value: rig.engine.interrupt(0, True) if port == 0x82 else None
    rig.real(code("cd 22", "fa", "e6 82", STI, HLT, "b0 99 e6 81", DONE_HLT))
    rig.run_until_port()
    assert [value for port, value in rig.devices.written() if port == 0x81] == [0x22, 0x21, 0x99]
    assert rig.engine.counters()["interrupt"] == 1


def test_an_interrupt_from_another_thread_wakes_the_processor(rig: Rig) -> None:
    rig.devices.vector = lambda vcpu: (rig.engine.interrupt(0, False), 0x21)[1]
    rig.vector16(0x21, code(DONE, "cf"), 0x700)
    rig.real(code(STI, HLT, JUMP_TO_SELF))
    reached = threading.Event()
    rig.devices.on_port = lambda port, size, value: reached.set()
    run = rig.start()
    while not rig.engine.counters()["halt"]:
        time.sleep(0.001)
    assert not run.ended(0.01)
    rig.engine.interrupt(0, True)
    assert reached.wait(60)
    assert run.stop() == "stopped"


def test_a_masked_interrupt_waits_and_can_be_withdrawn(rig: Rig) -> None:
    asked: list[int] = []
    rig.devices.vector = lambda vcpu: asked.append(vcpu)
    rig.devices.on_port = lambda port, size, value: rig.engine.interrupt(0, port == 0x82) if port < 0xF0 else None
    rig.real(code("fa", "e6 82", "90 90", "e6 83", STI, "90 90", DONE_HLT))
    rig.run_until_port()
    assert asked == []
    rig.devices.on_port = lambda port, size, value: rig.engine.interrupt(0, True) if port == 0x82 else None
    rig.real(code("e6 82", STI, "90 90 90 eb00 eb00 eb00", DONE_HLT))
    rig.run_until_port()
    assert set(asked) == {0}  # nothing was left to acknowledge; the program went on


def test_sti_shadow_covers_one_instruction(rig: Rig) -> None:
    """An interrupt that is pending when IF is set comes after the instruction behind STI."""
    rig.devices.vector = lambda vcpu: (rig.engine.interrupt(0, False), 0x21)[1]
    rig.vector16(0x21, code("89 c3", DONE_HLT), 0x700)  # mov bx, ax
    rig.devices.on_port = lambda port, size, value: rig.engine.interrupt(0, True) if port == 0x82 else None
    rig.real(code("b8 0100", "fa", "e6 82", "eb 00", STI, "b8 0200", "b8 0300", JUMP_TO_SELF))
    rig.run_until_port()
    assert rig.get("rbx") & 0xFFFF == 2


def test_nmi_is_taken_with_interrupts_off_and_masks_itself_until_iret(rig: Rig) -> None:
    rig.vector16(2, code("43", "e6 82", "eb 00", "cf"), 0x700)  # inc bx
    nested: list[int] = []

    def on_port(port: int, size: int, value: int) -> None:
        if port == 0x80:
            rig.engine.nmi(0)
        elif port == 0x82 and len(nested) < 3:
            nested.append(1)
            rig.engine.nmi(0)

    rig.devices.on_port = on_port
    rig.real(code("fa", "31 db", "e6 80", "eb 00 90 eb 00 eb 00", DONE_HLT))
    rig.run_until_port()
    assert rig.get("rbx") == 4
    assert [port for port, _ in rig.devices.written()] == [0x80, 0x82, 0x82, 0x82, 0x82, 0xF4]


def test_nmi_wakes_a_halted_processor_with_interrupts_off(rig: Rig) -> None:
    rig.vector16(2, DONE_HLT, 0x700)
    rig.real(CLI_HLT)
    run = rig.start()
    assert not run.ended(0.05)
    rig.engine.nmi(0)
    while not rig.devices.written():
        time.sleep(0.001)
    assert run.stop() == "stopped"


def test_exceptions_with_and_without_error_code(rig: Rig) -> None:
    """Divide error, invalid opcode, page fault, general protection: what is on the stack, and CR2."""
    report = code("58 5b", DONE_HLT)  # pop rax; pop rbx
    for vector, program, where, wanted in (
        (0, "31 c9 f7 f1", CODE + 2, None),
        (6, "90 0f 0b", CODE + 1, None),
        (14, "48 8b 04 25 00000010", CODE, 0),
        (14, "48 89 04 25 00000010", CODE, 2),
        (13, "66 b8 fbff 8e d8", CODE + 4, 0xFFF8),
    ):
        rig.long(code(program), {vector: report})
        rig.run_until_port()
        if wanted is None:
            assert rig.get("rax") == where
        else:
            assert (rig.get("rax"), rig.get("rbx")) == (wanted, where)
        if vector == 14:
            assert rig.get("cr2") == 0x10000000


def test_a_software_interrupt_whose_delivery_faults_points_at_the_instruction(rig: Rig) -> None:
    rig.long(code("90 cd 30"), {13: code("58 5b", DONE_HLT)})
    rig.run_until_port()
    assert rig.get("rax") & 7 == 2  # an entry of the IDT
    assert rig.get("rbx") == CODE + 1


@pytest.mark.parametrize("handlers", [{}, {14: HLT}])
def test_triple_fault(rig: Rig, handlers: dict[int, bytes]) -> None:
    """No handlers, or a stack on which nothing can be pushed."""
    rig.long(code("48 8b 04 25 00000010"), handlers, rsp=0x20000000)
    assert rig.start().join() == "triple-fault"
    rig.real(DONE_HLT)
    assert rig.run_until_port().result == "stopped"


def test_an_interrupt_from_ring_3_without_a_task_state_segment(rig: Rig) -> None:
    """Unicorn would end the process."""
    user = {"cs": (0x1B, 0, 0xFFFFFFFF, 0xC0FB00), "ss": (0x23, 0, 0xFFFFFFFF, 0xC0F300)}
    for task in ((0, 0, 0, 0), (0x28, 0x600, 0x67, 0x8200), (0x28, 0x600, 3, 0x8900)):
        rig.protected(code("0f 0b"), {6: DONE_HLT, 10: DONE_HLT}, **user, tr=task)
        assert rig.start().join() == "triple-fault"
    user["cs"] = (0x23, 0, 0xFFFFFFFF, 0xA0FB00)
    for task in ((0, 0, 0, 0), (0x28, 0x600, 3, 0x8900)):
        rig.long(code("cc"), {3: DONE_HLT}, **user, tr=task)
        assert rig.start().join() == "triple-fault"


# ---- What the translator must not fall over


@pytest.mark.parametrize("program", ["f0 0f ab d1", "f0 0f b3 c8", "f0 0f bb c8", "f0 0f ba e8 01"])
def test_an_instruction_that_cannot_be_translated_is_invalid(rig: Rig, program: str) -> None:
    """LOCK with a register operand: Unicorn's translator calls abort()."""
    before = code("b8 01000000", "bb 02000000")
    rig.long(code(before, program, "b8 09000000"), {6: code("59", DONE_HLT)})
    rig.run_until_port()
    assert (rig.get("rcx"), rig.get("rax"), rig.get("rbx")) == (CODE + 10, 1, 2)


@pytest.mark.parametrize(
    "program", ["65 f7 1c", "0f ba 20 01", "66 0f c7 30", "d9 e8", "f0 0f b1 0b", "8e d8", "0f 35", "0f 37"]
)
def test_blocks_of_one_instruction_repeated(rig: Rig, program: str) -> None:
    """Whatever the translator loses with each of them, 500 are translated; most of them fault, some do not."""
    skip = {6: code("83 04 24 04 cf"), 13: code("83 c4 04 83 04 24 04 cf")}
    rig.protected(code(program) * 500 + DONE_HLT, skip, rbx=0x8000, rsi=0x8000, rax=0x10)
    run = rig.start()
    run.ended(0.2)
    assert run.stop() in ("stopped", "triple-fault")


# ---- Stopping and failing


@pytest.mark.parametrize("program", [JUMP_TO_SELF, CLI_HLT, b"\xf3\x90\xeb\xfc", b"\xeb\x00\xeb\xfc"])
def test_stop_from_another_thread(rig: Rig, program: bytes) -> None:
    rig.real(program)
    for _ in range(20):
        run = rig.start()
        assert run.stop() == "stopped"


def test_a_stop_before_the_start_is_not_lost(rig: Rig) -> None:
    rig.real(JUMP_TO_SELF)
    rig.engine.stop()
    assert rig.start().join() == "stopped"


def test_stop_ends_a_very_long_string_instruction(rig: Rig) -> None:
    """REP STOSB over 4 GiB of device registers, and REP MOVSB of RAM over itself."""
    for program in ("f3 aa", "f3 a4", "f3 6e", "f3 ae", "f3 a6"):
        rig.devices.noting = False
        rig.long(code(program, JUMP_TO_SELF), rcx=1 << 40, rdi=HOLE, rsi=HOLE)
        level1 = PAGE_TABLES + 0x3000
        for page in range(512):  # all of it is the same page of registers
            rig.memory.write_u64(level1 + 8 * page, HOLE | 7 if page >= 0xA0 else page << 12 | 7)
        run = rig.start()
        assert not run.ended(0.02)
        start = time.process_time()
        run.stop()
        assert time.process_time() - start < 1


class DeviceError(Exception):
    """What a device raises."""


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("port_read", "e4 10"),
        ("port_write", "e6 10"),
        ("mmio_read", "a0 0000 0a00 0000 0000"),
        ("mmio_write", "a2 0000 0a00 0000 0000"),
        ("msr_read", "b9 1b000000 0f 32"),
        ("msr_write", "b9 1b000000 0f 30"),
        ("cr8_read", "44 0f 20 c0"),
        ("cr8_write", "44 0f 22 c0"),
        ("acknowledge", "fb 90 eb fd"),
    ],
)
def test_an_exception_of_a_device_comes_out_of_run(name: str, program: str) -> None:
    devices = Devices()

    def fail(*arguments: int) -> int:
        raise DeviceError(name)

    setattr(devices, name, fail)
    with Rig(devices=devices) as rig:
        rig.long(code(program, "90", JUMP_TO_SELF), {13: JUMP_TO_SELF})
        rig.engine.interrupt(0, name == "acknowledge")
        run = rig.start()
        run.join()
        assert isinstance(run.error, DeviceError)
        assert run.error.args == (name,)
        assert run.error.__traceback__ is not None
        rig.engine.interrupt(0, False)
        rig.real(JUMP_TO_SELF)
        assert rig.start().stop() == "stopped"


def test_a_device_that_returns_no_number(rig: Rig) -> None:
    rig.devices.port_value = "seven"  # type: ignore[assignment]
    rig.real(code("e4 10", JUMP_TO_SELF))
    run = rig.start()
    run.join()
    assert isinstance(run.error, TypeError)


def test_only_one_thread_runs_guest_code(rig: Rig) -> None:
    rig.real(JUMP_TO_SELF)
    run = rig.start()
    while not run.ended(0.001):
        try:
            rig.engine.get_state(0)
        except RuntimeError:
            break
    for call in (
        rig.engine.run,
        rig.engine.close,
        lambda: rig.engine.set_state(0, {}),
        lambda: rig.engine.reset_vcpu(0),
    ):
        with pytest.raises(RuntimeError, match="is running"):
            call()
    with pytest.raises(RuntimeError, match="is running"):
        rig.engine.map_io(1 << 39, 4096)
    run.stop()


def test_a_closed_engine_does_nothing() -> None:
    rig = Rig()
    rig.real(JUMP_TO_SELF)
    rig.close()
    rig.close_again = rig.engine.close()  # type: ignore[attr-defined]
    engine = rig.engine
    with pytest.raises(RuntimeError):
        engine.run()
    for call in (lambda: engine.get_state(0), lambda: engine.map_io(0, 4096), lambda: engine.reset_vcpu(0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    engine.stop()
    engine.interrupt(0, True)
    engine.nmi(0)
    engine.invalidate(0, 4096)
    engine.set_a20(False)
    engine.set_clock(5)
    with pytest.raises(IndexError):
        engine.set_features(0, 0)
    assert engine.counters()["port"] == 0


def test_engines_that_never_run_are_given_back() -> None:
    rigs = [Rig(2) for _ in range(3)]
    del rigs
    gc.collect()


def test_two_engines_in_two_threads() -> None:
    """Each counts to a number of its own; neither sees the other's."""
    with Rig() as first, Rig() as second:
        # mov ecx, n; loop: inc eax; out 0x80, al; dec ecx; jnz loop
        for rig, rounds in ((first, 20000), (second, 30000)):
            rig.devices.noting = False
            rig.long(
                code("31 c0", b"\xb9" + rounds.to_bytes(4, "little"), "ff c0", "e6 80", "ff c9", "75 f8", DONE_HLT)
            )
            rig.devices.on_port = lambda port, size, value, rig=rig: rig.engine.stop() if port == 0xF4 else None
        runs = [first.start(), second.start()]
        assert [run.join() for run in runs] == ["stopped", "stopped"]
        assert (first.get("rax"), second.get("rax")) == (20000, 30000)


def test_loading_after_unicorn_is_refused() -> None:
    program = "import unicorn\nfrom pyvm.cpu.engine import open_engine, EngineError\n"
    program += "try: open_engine(1, None, 1)\nexcept EngineError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "before" in done.stdout, done.stderr
    assert "libunicorn" in done.stdout
