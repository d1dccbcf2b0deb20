"""Memory that comes and goes over other memory, and calls of firmware services, as guest code sees them."""

from __future__ import annotations

import pytest

from pyvm.memory import DeviceRam
from tests.unit.engine_rig import CODE, DONE_HLT, HOLE, RAM, STACK, Rig, code

TRAP = b"\xe6\xb1"  # out 0xb1, al
IRET = b"\xcf"
ROM = 0xF8000


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


@pytest.fixture
def frame():
    frame = DeviceRam(0x4000)
    yield frame
    frame.close()


def test_device_memory_is_read_and_written_without_a_call(rig: Rig, frame: DeviceRam) -> None:
    """Between registers on both sides."""
    rig.engine.overlay(RAM + 0x4000, frame.mapping, 0, frame.size, True)
    frame.view[0:4] = b"abcd"
    # mov eax, [frame]; mov [frame + 4], eax; mov ecx, [frame - 4]; mov edx, [behind frame]
    program = code("a1 00404000", "a3 04404000", "8b 0d fc3f4000", "8b 15 00804000", DONE_HLT)
    rig.devices.mmio_value = lambda gpa, size: gpa
    rig.protected(program)
    rig.run_until_port()
    assert bytes(frame.view[:8]) == b"abcdabcd"
    assert [(kind, address) for kind, address, *_ in rig.devices.log[:2]] == [
        ("read", RAM + 0x3FFC),
        ("read", RAM + 0x8000),
    ]
    assert rig.get("rcx") == RAM + 0x3FFC


def test_writes_to_rom_are_dropped(rig: Rig, frame: DeviceRam) -> None:
    """Plain stores, locked ones and string moves; the RAM below keeps what it had."""
    rig.memory.write(0x10000, b"below")
    frame.view[0:4] = b"ROM!"
    number = rig.engine.overlay(0x10000, frame.mapping, 0, frame.size, False)
    # mov dword [0x10000], 0; lock inc dword [0x10000]; mov edi, 0x10000; mov ecx, 4; rep stosb; mov eax, [0x10000]
    program = code("c705 00000100 00000000", "f0 ff05 00000100", "bf 00000100", "b9 04000000", "f3 aa", "a1 00000100")
    rig.protected(program + DONE_HLT)
    rig.run_until_port()
    assert rig.get("rax") == int.from_bytes(b"ROM!", "little")
    rig.engine.hide_overlay(number)
    rig.protected(code("a1 00000100", DONE_HLT))
    rig.run_until_port()
    assert rig.get("rax") == int.from_bytes(b"belo", "little")


def test_the_guest_moves_an_overlay_with_code_in_it(rig: Rig, frame: DeviceRam) -> None:
    """What was translated at one place is run at the other, and the old place shows what it had."""
    frame.view[0:6] = code("b8 78563412", "c3")  # mov eax, 0x12345678; ret
    rig.memory.write(0x20000, code("b8 01000000", "c3"))  # mov eax, 1; ret
    number = rig.engine.overlay(0x20000, frame.mapping, 0, frame.size, True)
    places = iter((0x30000, RAM + 0x10000))

    def move(port: int, size: int, value: int) -> None:
        if port == 0x80:
            rig.engine.show_overlay(number, next(places))

    rig.devices.on_port = move
    call = "ff d7"  # call edi
    program = code("bf 00000200", call, "89 c1", "e6 80", call, "89 c2", "bf 00000300", call, "89 c3")
    program += code("e6 80", "bf 00004100", call, "89 c5", DONE_HLT)
    rig.protected(program)
    rig.run_until_port()
    assert [rig.get(name) for name in ("rcx", "rdx", "rbx", "rbp")] == [0x12345678, 1, 0x12345678, 0x12345678]


def test_a_device_writes_code_below_and_into_what_an_overlay_shows(rig: Rig) -> None:
    """Read-only RAM over itself, as shadow RAM is: translations of both are dropped."""
    rig.memory.write(0x20000, code("b8 01000000", "c3"))
    number = rig.engine.overlay(0x20000, rig.memory.mapping, 0x20000, 0x4000, False)

    def change(port: int, size: int, value: int) -> None:
        if port == 0x80:
            rig.memory.write(0x20001, b"\x02")
        elif port == 0x81:
            rig.engine.hide_overlay(number)

    rig.devices.on_port = change
    program = code("bf 00000200", "ff d7", "89 c1", "e6 80", "ff d7", "89 c2", "e6 81", "ff d7", "89 c3")
    program += code("c605 01000200 03", "ff d7", DONE_HLT)
    rig.protected(program)
    rig.run_until_port()
    assert [rig.get(name) for name in ("rcx", "rdx", "rbx", "rax")] == [1, 2, 2, 3]


def test_registers_over_ram(rig: Rig) -> None:
    """An overlay without memory: each access is a call."""
    rig.engine.overlay(0x20000, None, 0, 0x4000, True)
    rig.devices.mmio_value = lambda gpa, size: 0x5A
    rig.protected(code("a0 00000200", "a2 01000200", DONE_HLT))
    rig.run_until_port()
    assert rig.devices.log[:2] == [("read", 0x20000, 1, 0), ("write", 0x20001, 1, 0x5A)]


def _services(rig: Rig, service) -> list[int]:
    calls: list[int] = []
    rig.engine.set_firmware(ROM, 0x8000)
    rig.memory.write(ROM, TRAP + IRET)
    rig.memory.write(4 * 0x13, b"\x00\x80\x00\xf0")

    def called(vcpu: int) -> None:
        state = rig.engine.get_state(vcpu)
        calls.append(state["cs"][1] + state["rip"])
        service(vcpu, state)

    rig.devices.on_firmware = called
    return calls


def test_a_service_reads_and_changes_registers_and_the_flags_of_its_caller(rig: Rig) -> None:
    """In the middle of a block with flags that were not computed yet."""

    def service(vcpu: int, state: dict) -> None:
        assert rig.get("rax") & 0xFFFF == 0x0201
        assert rig.get("rbx") & 0xFFFF == 0x7C00
        stack = state["ss"][1] + rig.get("rsp")
        rig.memory.write_u16(stack + 4, rig.memory.read_u16(stack + 4) | 1)
        rig.set(vcpu, rax=0x1234, rdx=rig.get("rdx") + 1, es=(0x2000, 0x20000, 0xFFFF, 0x9300))

    calls = _services(rig, service)
    # mov ax, 0x0201; mov bx, 0x7c00; mov dx, 5; add dx, 3; int 0x13; jnc $; mov cx, ax; mov bp, es
    program = code("b8 0102", "bb 007c", "ba 0500", "83 c2 03", "cd 13", "73 fe", "89 c1", "8c c5", DONE_HLT)
    rig.real(program)
    rig.run_until_port()
    assert calls == [ROM + 2]
    assert [rig.get(name) & 0xFFFF for name in ("rcx", "rdx", "rbp", "rsp")] == [0x1234, 9, 0x2000, STACK]


def test_a_service_that_jumps(rig: Rig) -> None:
    """It leaves the vCPU where it likes."""
    rig.memory.write(0x9000, DONE_HLT)
    calls = _services(rig, lambda vcpu, state: rig.set(vcpu, rip=0x9000 - 0x500, cs=(0x50, 0x500, 0xFFFF, 0x9B00)))
    rig.real(code("cd 13", "eb fe"))
    rig.run_until_port()
    assert len(calls) == 1


def test_the_port_is_a_port_like_any_other_elsewhere(rig: Rig) -> None:
    """Outside of the services' range, and in protected mode."""
    calls = _services(rig, lambda vcpu, state: None)
    rig.real(TRAP + DONE_HLT)
    rig.run_until_port()
    rig.memory.write(ROM, TRAP + b"\xc3")
    rig.protected(code("b8 00800f00", "ff d0", DONE_HLT))
    rig.run_until_port()
    assert calls == []
    assert [address for kind, address, *_ in rig.devices.log if kind == "out"] == [0xB1, 0xF4, 0xB1, 0xF4]


def test_a_service_that_fails_ends_the_run_with_its_error(rig: Rig) -> None:
    """And the vCPU is behind the call."""

    def service(vcpu: int, state: dict) -> None:
        raise LookupError("no such service")

    _services(rig, service)
    rig.real(code("cd 13", "eb fe"))
    run = rig.start()
    run.join()
    assert isinstance(run.error, LookupError)
    assert rig.get("rip") == 0x8002


def test_state_can_be_read_in_a_service_only(rig: Rig) -> None:
    """Another device handler runs in the middle of a block, where registers are not in their places."""
    errors: list[str] = []

    def on_port(port: int, size: int, value: int) -> None:
        if port == 0x80:
            with pytest.raises(RuntimeError) as caught:
                rig.engine.get_state(0)
            errors.append(str(caught.value))

    rig.devices.on_port = on_port
    rig.real(code("e6 80", DONE_HLT), at=CODE)
    rig.run_until_port()
    assert errors == ["the engine is running"]


def test_overlays_are_made_and_moved_by_the_vcpu_thread_or_a_stopped_machine(rig: Rig, frame: DeviceRam) -> None:
    """And only with memory that is there."""
    with pytest.raises(ValueError, match="not in the buffer"):
        rig.engine.overlay(HOLE, frame.mapping, 0x1000, frame.size, True)
    number = rig.engine.overlay(HOLE, frame.mapping, 0, frame.size, True)
    with pytest.raises(IndexError):
        rig.engine.show_overlay(number + 1, HOLE)
    rig.real(code("eb fe"))
    run = rig.start()
    with pytest.raises(RuntimeError, match="running"):
        rig.engine.hide_overlay(number)
    run.stop()
