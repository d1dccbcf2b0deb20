"""What guest code does with RAM and device registers, and what devices do to code."""

from __future__ import annotations

import time

import pytest

from tests.unit.engine_rig import CODE, DONE, DONE_HLT, HOLE, HOLE_END, JUMP_TO_SELF, PAGE_TABLES, RAM, Rig, code

FOREVER = 1 << 64


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


def test_registers_of_devices_with_accesses_of_each_size(rig: Rig) -> None:
    """Those of eight bytes come as two of four, the lower half first."""
    # mov [0xa0000], al / ax / eax / rax and back
    program = code("48 b8 8877665544332211", "bb 00000a00", "88 03", "66 89 43 02", "89 43 04", "48 89 43 08")
    program += code("48 31 c0", "8a 03", "66 8b 4b 02", "8b 53 04", "48 8b 73 08", DONE_HLT)
    rig.devices.mmio_value = lambda gpa, size: 0x1112131415161718 + gpa
    rig.long(program)
    rig.run_until_port()
    assert rig.devices.log[:10] == [
        ("write", HOLE, 1, 0x88),
        ("write", HOLE + 2, 2, 0x7788),
        ("write", HOLE + 4, 4, 0x55667788),
        ("write", HOLE + 8, 4, 0x55667788),
        ("write", HOLE + 12, 4, 0x11223344),
        ("read", HOLE, 1, 0),
        ("read", HOLE + 2, 2, 0),
        ("read", HOLE + 4, 4, 0),
        ("read", HOLE + 8, 4, 0),
        ("read", HOLE + 12, 4, 0),
    ]
    assert rig.get("rax") & 0xFF == 0x18
    assert rig.get("rcx") & 0xFFFF == 0x171A
    assert rig.get("rdx") == 0x1520171C
    assert rig.get("rsi") == 0x1520172415201720


@pytest.mark.parametrize(
    ("size", "before"), [(size, before) for size in (2, 4, 8) for before in (1, 2, 3, 5, 7) if before < size]
)
def test_accesses_across_the_border_between_ram_and_registers(rig: Rig, size: int, before: int) -> None:
    """The bytes of each side arrive there, and nothing else is touched."""
    registers = bytearray(b"\xcc" * 16)

    def store(kind: str, address: int, width: int, value: int) -> None:
        if kind == "write":
            registers[address - HOLE : address - HOLE + width] = value.to_bytes(width, "little")

    rig.devices._note = store  # type: ignore[method-assign]
    rig.devices.mmio_value = lambda gpa, width: int.from_bytes(registers[gpa - HOLE : gpa - HOLE + width], "little")
    rig.memory.write(HOLE - 16, b"\xbb" * 16)
    prefix = {2: "66", 4: "", 8: "48"}[size]
    program = code("48 b8 8877665544332211", prefix, "89 03", "31 c9", prefix, "8b 0b", DONE_HLT)
    rig.long(program, rbx=HOLE - before)
    rig.run_until_port()
    wanted = bytes.fromhex("8877665544332211")[:size]
    assert rig.memory.read(HOLE - 16, 16) == (b"\xbb" * 16)[: 16 - before] + wanted[:before]
    assert bytes(registers[: size - before]) == wanted[before:]
    assert registers[size - before :] == b"\xcc" * (16 - size + before)
    assert rig.get("rcx") & (1 << 8 * size) - 1 == int.from_bytes(wanted, "little")


@pytest.mark.parametrize("target", [HOLE, HOLE_END - 1, RAM, 0xFEE00000, (1 << 39), HOLE - 1])
@pytest.mark.parametrize("value", [0xFFFFFFFFFFFFFFFF, 0, 0x9090909090909090, 0xFEEBFEEBFEEBFEEB])
def test_code_is_fetched_from_registers(rig: Rig, target: int, value: int) -> None:
    """Whatever they read as, guest code can be stopped: FF FF is an invalid instruction, EB FE a loop."""
    rig.devices.noting = False
    rig.devices.mmio_value = lambda gpa, size: value
    rig.long(code("ff e3"), {6: JUMP_TO_SELF}, rbx=target)
    rig.memory.write_u64(PAGE_TABLES + 0x1000 + 8 * 3, 0xC0000000 | 0x87)  # 1 GiB pages
    rig.memory.write_u64(PAGE_TABLES + 8, PAGE_TABLES + 0x4000 | 7)
    rig.memory.write_u64(PAGE_TABLES + 0x4000, (1 << 39) | 0x87)
    run = rig.start()
    run.ended(0.03)
    assert run.stop() in ("stopped", "triple-fault")
    assert run.error is None


def test_a_program_in_registers_runs(rig: Rig) -> None:
    """As from a ROM that is not RAM: mov al, 0x5a; out 0x80, al; out 0xf4, al; jmp $."""
    program = code("b0 5a e6 80", DONE, JUMP_TO_SELF).ljust(64, b"\x90")
    rig.devices.mmio_value = lambda gpa, size: int.from_bytes(program[gpa - HOLE : gpa - HOLE + size], "little")
    rig.real(code("ea 0000 00a0"))
    rig.run_until_port()
    assert (0x80, 0x5A) in rig.devices.written()


@pytest.mark.parametrize("where", [HOLE, 1 << 39, (1 << 40) - 4096, 1 << 40, (1 << 52) - 4096])
def test_tables_and_stack_outside_of_ram(rig: Rig, where: int) -> None:
    """Page tables, descriptor tables, task state and stack in registers or nowhere: faults, perhaps three, no harm."""
    rig.devices.noting = False
    ended = []
    for values in (
        {"cr3": where},
        {"gdt": (0, where, 0xFFFF, 0)},
        {"idt": (0, where, 0xFFFF, 0)},
        {"tr": (0x28, where, 0x67, 0x8B00)},
        {"ldt": (8, where, 0xFFFF, 0x8200)},
        {"rsp": where},
    ):
        for content in (0, FOREVER - 1, 0x00CF9B000000FFFF):
            rig.devices.mmio_value = lambda gpa, size, content=content: content
            # push; pop; mov ds, 8; mov fs, 0xc; int 0x30; lock inc [rsp]
            program = code("50 58", "b8 08000000 8e d8", "b8 0c000000 8e e0", "f0 ff 04 24", "cd 30", JUMP_TO_SELF)
            rig.long(program, {13: JUMP_TO_SELF, 14: JUMP_TO_SELF}, **values)
            run = rig.start()
            run.ended(0.005)
            ended.append(run.stop())
            assert run.error is None
    assert set(ended) <= {"stopped", "triple-fault"}


@pytest.mark.parametrize(
    "program",
    [
        "f0 ff 03",
        "f0 48 0f c7 0b",
        "f0 0f b1 0b",
        "87 0b",
        "0f ae 03",
        "0f ae 0b",
        "0f ae 23",
        "0f ae 2b",
        "f3 0f 7f 03",
        "48 0f c3 03",
        "66 0f e7 03",
        "0f c7 0b",
        "d9 33",
        "dd 33",
        "dd 23",
        "db 3b",
        "f3 48 0f b8 03",
        "0f 01 13",
        "62 03",
    ],
)
@pytest.mark.parametrize("place", [HOLE, HOLE - 4, HOLE_END - 8, RAM - 1])
def test_odd_instructions_on_registers(rig: Rig, program: str, place: int) -> None:
    rig.devices.noting = False
    skip = code("48 83 c4 08", DONE_HLT)
    rig.long(code(program, DONE_HLT), {13: skip, 6: DONE_HLT, 19: DONE_HLT}, rbx=place, rax=7, xcr0=3)
    rig.run_until_port()


def test_a_device_write_replaces_code_that_has_run(rig: Rig) -> None:
    """The guest calls a function again after a device has written another over it."""
    rig.devices.on_port = lambda port, size, value: rig.memory.write(0x9000, code("b3 02 c3")) if port == 0x80 else None
    rig.memory.write(0x9000, code("b3 01 c3"))
    rig.real(code("bf 0090", "ff d7", "88 d9", "e6 80", "ff d7", DONE_HLT))
    rig.run_until_port()
    assert (rig.get("rcx") & 0xFF, rig.get("rbx") & 0xFF) == (1, 2)


def test_many_device_writes_at_once(rig: Rig) -> None:
    """More than the list of ranges holds: everything translated is dropped."""

    def replace(port: int, size: int, value: int) -> None:
        if port == 0x80:
            for page in range(0x10, 0x90):
                rig.memory.write(page << 12, code("b3 02 c3"))

    rig.devices.on_port = replace
    calls = b""
    for page in range(0x10, 0x90):
        rig.memory.write(page << 12, code("b3 01 c3"))
        calls += b"\xbf" + (page << 12).to_bytes(4, "little") + code("ff d7", "00 d9")  # add cl, bl
    # The page tables of the rig are where this code is: protected mode without paging needs none.
    rig.protected(code("31 c9", calls, "88 cd", "e6 80", "b1 00", calls, DONE_HLT))
    rig.run_until_port()
    assert rig.get("rcx") & 0xFFFF == 128 << 8 | 0


def test_a_device_write_from_another_thread_ends_a_loop(rig: Rig) -> None:
    rig.real(JUMP_TO_SELF)
    run = rig.start()
    assert not run.ended(0.05)
    rig.memory.write(CODE, code("90 90", DONE_HLT))
    end = time.monotonic() + 60
    while not rig.devices.written() and time.monotonic() < end:
        time.sleep(0.001)
    run.stop()
    assert rig.devices.written() == [(0xF4, 0)]


def test_a_guest_can_overwrite_the_code_it_runs(rig: Rig) -> None:
    # mov byte [next + 1], 7; next: mov bl, 1
    rig.real(code("c6 06 067c 07", "b3 01", DONE_HLT))
    rig.run_until_port()
    assert rig.get("rbx") & 0xFF == 7


def test_read_only_memory_keeps_its_content(rig: Rig) -> None:
    rig.engine.unmap(HOLE_END, RAM - HOLE_END)
    rig.engine.map_ram(HOLE_END, rig.memory.mapping, HOLE_END, 0x10000, False)
    rig.engine.map_io(HOLE_END + 0x10000, RAM - HOLE_END - 0x10000)
    rig.memory.write(HOLE_END, b"firmware")
    rig.protected(code("c6 05 00000c00 58", "a1 00000c00", DONE_HLT))
    rig.run_until_port()
    assert rig.memory.read(HOLE_END, 8) == b"firmware"
    assert rig.get("rax") == int.from_bytes(b"firm", "little")


def test_mapping_errors(rig: Rig) -> None:
    engine, mapping = rig.engine, rig.memory.mapping
    with pytest.raises(ValueError, match="not in the buffer"):
        engine.map_ram(1 << 39, mapping, 0, RAM + 4096, True)
    with pytest.raises(ValueError, match="not in the buffer"):
        engine.map_ram(1 << 39, mapping, FOREVER - 4096, 8192, True)
    with pytest.raises(RuntimeError, match="cannot map"):
        engine.map_ram(0x800, mapping, 0, 4096, True)
    with pytest.raises(RuntimeError, match="cannot map"):
        engine.map_io(0, 4096)
    with pytest.raises(ValueError, match="nothing is mapped"):
        engine.unmap(0x1000, 0x1000)
    with pytest.raises(TypeError):
        engine.map_ram(1 << 39, b"read-only", 0, 4, True)


def test_a20(rig: Rig) -> None:
    """With the gate closed, addresses with bit 20 set are those without it."""
    rig.memory.write(0x8000, b"\x11")
    rig.memory.write(0x108000, b"\x22")
    rig.devices.on_port = lambda port, size, value: rig.engine.set_a20(bool(value)) if port == 0x92 else None
    read = "a0 00801000"
    program = code(
        "b0 00 e6 92", read, "88 c3", "b0 01 e6 92", read, "88 c7", "b0 00 e6 92", "c6 05 01801000 33", DONE_HLT
    )
    rig.protected(program)
    rig.run_until_port()
    assert rig.get("rbx") & 0xFFFF == 0x2211
    assert rig.memory.read(0x8001, 1) == b"\x33"
    assert rig.get("a20_mask") == 0xFFEFFFFF
    rig.engine.reset_vcpu(0)
    assert rig.get("a20_mask") == 0xFFFFFFFF


def test_code_that_is_written_run_and_written_again_without_paging(rig: Rig) -> None:
    """Stores to the page are plain at first, and must not be any more once there is code."""
    # mov edi, 0x20000; mov byte [edi + 8], 1 (twice); then: mov eax, 1; ret, is stored there, called, changed, called
    program = code("bf 00000200", "c6 47 08 01", "c6 47 08 02", "c7 07 b8010000", "c7 47 04 00c39090")
    program += code("ff d7", "89 c1", "c6 47 01 02", "ff d7", "89 c2", "c6 47 01 03", "ff d7", "89 c3")
    # the same from a page that is next to it, across the border of both: the store of four bytes changes the first one
    program += code("8d b7 fe0f0000", "c7 46 00 9090b805", "c7 46 04 000000c3", "ff d6", "89 c5")
    program += code("c7 46 02 b8060000", "ff d6", DONE_HLT)
    rig.protected(program)
    rig.run_until_port()
    assert [rig.get(name) for name in ("rcx", "rdx", "rbx", "rbp", "rax")] == [1, 2, 3, 5, 6]


NX = 1 << 63


@pytest.mark.parametrize("plain_first", [False, True])
@pytest.mark.parametrize("rounds", [1, 40])
def test_stores_by_another_address_change_code(rig: Rig, plain_first: bool, rounds: int) -> None:
    """A kernel fills pages of code through addresses that it does not execute."""
    first, second, third = 0x60000, 0x61000, 0x62000  # addresses of the page at 0x20000, not to be executed
    store = code("fe 46 01", "fe 82 81000000", "fe 85 01010000")  # one to the number in each of three functions
    call = code("ff d7", "41 01 c0", "48 8d 9f 80000000 ff d3", "41 01 c1", "48 8d 9f 00010000 ff d3", "41 01 c2")
    program = code("48 c7 c1", rounds.to_bytes(4, "little"))
    loop = call + store
    loop += code("ff c9", "0f 85", (-len(loop) - 8).to_bytes(4, "little", signed=True))
    rig.long((store if plain_first else b"") + program + loop + call + DONE_HLT)
    for place in range(3):
        rig.memory.write(0x20000 + 0x80 * place, code("b8 00000000 c3"))
        rig.memory.write_u64(PAGE_TABLES + 0x3000 + 8 * (0x60 + place), 0x20000 | 7 | NX)
    rig.set(rdi=0x20000, rsi=first, rdx=second, rbp=third, r8=0, r9=0, r10=0)
    rig.run_until_port()
    total = sum(range(plain_first, rounds + 1 + plain_first))
    assert [rig.get(name) for name in ("r8", "r9", "r10")] == [total] * 3


def test_a_device_says_ahead_what_its_port_reads_as(rig: Rig) -> None:
    """Words of a buffer are read without a call each; the device hears how many before anything else."""
    rig.devices.port_value = bytes(range(1, 9))
    # mov dx, 0x1f0; mov edi, 0x2000; mov ecx, 3; cld; rep insw; in ax, dx; out 0x80, al; in ax, dx; in eax, dx
    program = code("66 ba f001", "bf 00200000", "b9 03000000", "fc", "f3 66 6d", "66 ed", "e6 80", "66 ed", "ed")
    rig.protected(program + DONE_HLT)
    rig.run_until_port()
    assert rig.memory.read(0x2000, 6) == bytes(range(1, 7))
    assert rig.devices.log == [
        ("in", 0x1F0, 2, 0),
        ("consume", 0x1F0, 8, 0),
        ("out", 0x80, 1, 7),
        ("in", 0x1F0, 2, 0),
        ("consume", 0x1F0, 2, 0),
        ("in", 0x1F0, 4, 0),
        ("consume", 0x1F0, 4, 0),
        ("out", 0xF4, 1, 1),
    ]
    assert rig.get("rax") == 0x04030201


def test_what_was_read_ahead_is_settled_when_the_machine_stops(rig: Rig) -> None:
    """The device is where the guest is."""
    rig.devices.port_value = bytes(64)
    rig.protected(code("66 ba f001", "66 ed", "66 ed", "c6 05 00900000 01", JUMP_TO_SELF))  # mov byte [0x9000], 1
    run = rig.start()
    while not rig.memory.read(0x9000, 1)[0]:
        time.sleep(0.001)
    run.stop()
    assert rig.devices.log == [("in", 0x1F0, 2, 0), ("consume", 0x1F0, 4, 0)]


@pytest.mark.parametrize(("told", "found"), [(0, [1, 2]), (1, [5, 2]), (2, [5, 6]), (1000, [5, 6])])
def test_segments_of_one_request_are_told_together(rig: Rig, told: int, found: list[int]) -> None:
    """Only of the bytes that were written."""
    rig.memory.write(0x20000, code("b8 01000000", "c3"))
    rig.memory.write(0x21000, code("b8 02000000", "c3"))

    def change(port: int, size: int, value: int) -> None:
        if port == 0x80:
            for gpa in (0x20001, 0x21001):
                rig.memory.view(gpa, 1)[0] += 4
            rig.engine.invalidate_vector(rig.memory.vector([(0x20001, 1), (0x21000, 0x100)]), told)

    rig.devices.on_port = change
    calls = code("bf 00000200", "ff d7", "89 c1", "be 00100200", "ff d6", "89 c2")
    rig.protected(calls + code("e6 80", "ff d7", "89 c3", "ff d6", DONE_HLT))
    rig.run_until_port()
    assert [rig.get(name) for name in ("rcx", "rdx", "rbx", "rax")] == [1, 2, *found]
    segments = rig.memory.vector([(0x20001, 1)])
    for wrong in (((1,), 1), (segments, -1), (segments,), (segments, 1, 2)):
        with pytest.raises((TypeError, OverflowError)):
            rig.engine.invalidate_vector(*wrong)
