"""Int 15h: memory, time, A20, power, configuration and the mouse."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.e820 import E820Type
from tests.unit.bios_rig import BUFFER, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestMemory:
    def test_map(self, rig: Rig) -> None:
        entries, index = [], 0
        while True:
            registers = rig.call(0x15, eax=0xE820, ebx=index, ecx=20, edx=0x534D4150, edi=BUFFER)
            assert (registers.eax, registers.ecx, rig.carry) == (0x534D4150, 20, False)
            entries.append(struct.unpack("<QQI", rig.memory.read(BUFFER, 20)))
            index = registers.ebx
            if index == 0:
                break
        assert entries[0] == (0, 0x9FC00, E820Type.RAM)
        assert [entry[0] for entry in entries] == sorted(entry[0] for entry in entries)

    @pytest.mark.parametrize("values", [{"edx": 0}, {"ecx": 19}, {"ebx": 99}])
    def test_bad_calls(self, rig: Rig, values: dict[str, int]) -> None:
        registers = {"ebx": 0, "ecx": 20, "edx": 0x534D4150, **values}
        rig.call(0x15, eax=0xE820, edi=BUFFER, **registers)
        assert rig.carry

    def test_sizes(self) -> None:
        rig = Rig(ram=128 << 20)
        registers = rig.call(0x15, eax=0xE801)
        assert registers.ax == registers.cx == 15 << 10
        assert registers.bx == registers.dx == ((112 << 20) - 0x23000) >> 16
        assert rig.call(0x15, eax=0x8800).ax == 63 << 10
        assert Rig(ram=8 << 20).call(0x15, eax=0x8800).ax == ((7 << 20) - 0x23000) >> 10

    def test_block_move(self, rig: Rig) -> None:
        table = bytearray(0x30)
        for offset, base in ((0x10, 0x9000), (0x18, 0x200000)):
            table[offset : offset + 8] = struct.pack("<HHBBBB", 0xFFFF, base & 0xFFFF, base >> 16, 0x93, 0, base >> 24)
        rig.memory.write(0x8000, table)
        rig.memory.write(BUFFER, b"moved!")
        registers = rig.call(0x15, eax=0x8700, ecx=3, esi=0x8000)
        assert (registers.ah, rig.carry) == (0, False)
        assert rig.memory.read(0x200000, 6) == b"moved!"
        rig.memory.write(0x8000 + 0x1F, b"\xff")  # the destination is no memory
        assert rig.call(0x15, eax=0x8700, ecx=3, esi=0x8000).ah == 2
        assert rig.call(0x15, eax=0x8700, ecx=0xFFFF, esi=0x8000).ah == 2


class TestA20:
    def test_gate(self, rig: Rig) -> None:
        for function, level in ((1, True), (0, False), (1, True)):
            assert rig.call(0x15, eax=0x2400 | function).ah == 0
            assert rig.port92.a20 is level
            assert rig.call(0x15, eax=0x2402).al == level
        assert rig.call(0x15, eax=0x2403).bx == 3
        assert rig.call(0x15, eax=0x2404).ah == 0x86


class TestTime:
    def test_wait(self, rig: Rig) -> None:
        registers = rig.call(0x15, eax=0x8600, ecx=1, edx=0)
        assert registers.goto == "delay_wait"
        rig.clock.advance(20_000_000)
        assert rig.resume(registers).goto == "delay_spin"
        rig.clock.advance(45_536_000)
        assert rig.resume(registers).goto is None
        assert (registers.esp, registers.ah, rig.carry) == (0x6F00, 0, False)

    def test_event_wait(self, rig: Rig) -> None:
        rig.memory.write(BUFFER, b"\x01")
        assert rig.call(0x15, eax=0x8300, ecx=0, edx=3000, ebx=BUFFER).ah == 0
        assert rig.call(0x15, eax=0x8300, edx=1000, ebx=BUFFER).ah == 0x83
        interrupts = 0
        while not rig.memory.read(BUFFER, 1)[0] & 0x80:
            rig.clock.advance(976_563)
            rig.trap("int70")
            interrupts += 1
        assert interrupts == 4
        assert rig.memory.read(BUFFER, 1) == b"\x81"
        rig.ports.write(0x70, 1, 0x0B)
        assert not rig.ports.read(0x71, 1) & 0x40
        assert rig.call(0x15, eax=0x8300, edx=1000, ebx=BUFFER).ah == 0
        assert rig.call(0x15, eax=0x8301).ah == 0
        assert rig.bda(0xA0) == 0


class TestPower:
    def test_installation_check(self, rig: Rig) -> None:
        registers = rig.call(0x15, eax=0x5300)
        assert (registers.ax, registers.bx, registers.cx, rig.carry) == (0x0102, 0x504D, 4, False)
        assert rig.call(0x15, eax=0x5300, ebx=1).ah == 9

    def test_connection(self, rig: Rig) -> None:
        assert [rig.call(0x15, eax=function).ah for function in (0x5304, 0x5301, 0x5301, 0x5304)] == [3, 0, 2, 0]
        assert rig.call(0x15, eax=0x5303).ah == 8
        assert rig.call(0x15, eax=0x5305).ah == 0
        assert rig.call(0x15, eax=0x53FF).ah == 0x0C

    def test_switch_off(self, rig: Rig) -> None:
        written: list[int] = []
        rig.ports.add(0x604, 2, lambda offset, size: 0x0401, lambda offset, size, value: written.append(value), "pm")
        assert rig.call(0x15, eax=0x5307, ebx=1, ecx=3).ah == 0
        assert written == [0x2001]


class TestConfiguration:
    def test_table(self, rig: Rig) -> None:
        registers = rig.call(0x15, eax=0xC000)
        data = rig.memory.read(registers.es * 16 + registers.bx, 10)
        assert data[:3] == b"\x08\x00\xfc"

    def test_extended_data_area(self, rig: Rig) -> None:
        segment = rig.call(0x15, eax=0xC100).es
        assert segment == rig.bda(0x0E, 2) == 0x9FC0
        assert rig.memory.read(segment * 16, 1) == b"\1"

    @pytest.mark.parametrize("ax", [0x0000, 0x4100, 0x8900, 0xE980, 0xEC00, 0xE802, 0x5400, 0xFFFF])
    def test_unknown_functions(self, rig: Rig, ax: int) -> None:
        assert rig.call(0x15, eax=ax).ah == 0x86
        assert rig.carry

    def test_hooks(self, rig: Rig) -> None:
        rig.call(0x15, eax=0x4F1E, flags=0x203)
        assert rig.carry
        assert rig.call(0x15, eax=0x9000).ah == 0
        assert rig.call(0x15, eax=0x9102).ah == 0


class TestMouse:
    def packet(self, rig: Rig) -> list[Registers]:
        calls = []
        while rig.ports.read(0x64, 1) & 0x21 == 0x21:
            calls.append(rig.trap("int74"))
        return calls

    def test_packets_reach_the_handler(self, rig: Rig) -> None:
        assert rig.call(0x15, eax=0xC200, ebx=0x0100).ah == 5  # no handler yet
        assert rig.call(0x15, eax=0xC205, ebx=0x0300).ah == 0
        assert rig.call(0x15, eax=0xC207, es=0x2000, ebx=0x0010).ah == 0
        assert rig.call(0x15, eax=0xC200, ebx=0x0100).ah == 0
        rig.mouse.move(5, 3)
        calls = self.packet(rig)
        assert len(calls) == 3
        last = calls[-1]
        assert (last.cs, last.eip) == (0x2000, 0x0010)
        assert last.sp == 0x6F00 - 12
        frame = struct.unpack("<6H", rig.memory.read(last.sp, 12))
        assert frame[:3] == (rig.bios.core.rom.labels["mouse_return"], 0xF000, 0)
        assert frame[4:] == (5, 0x28)

    def test_functions(self, rig: Rig) -> None:
        registers = rig.call(0x15, eax=0xC201)
        assert (registers.bl, registers.bh) == (0xAA, 0)
        assert rig.call(0x15, eax=0xC204).bh == 0
        assert rig.call(0x15, eax=0xC202, ebx=0x0600).ah == 0
        assert rig.call(0x15, eax=0xC203, ebx=0x0200).ah == 0
        registers = rig.call(0x15, eax=0xC206)
        assert (registers.cl, registers.dl) == (2, 200)
        assert rig.call(0x15, eax=0xC206, ebx=0x0200).ah == 0

    @pytest.mark.parametrize(
        ("al", "bh", "status"), [(0, 2, 2), (2, 7, 2), (3, 4, 2), (5, 0, 2), (5, 9, 2), (6, 3, 2), (8, 0, 1)]
    )
    def test_bad_input(self, rig: Rig, al: int, bh: int, status: int) -> None:
        assert rig.call(0x15, eax=0xC200 | al, ebx=bh << 8).ah == status

    def test_keys_survive_commands(self, rig: Rig) -> None:
        rig.keyboard.key("a", True)
        rig.call(0x15, eax=0xC204)
        rig.press("b")
        assert 0x3062 in rig.typed()


RIG_FOR_FUZZ = Rig()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_registers(data: st.DataObject) -> None:
    rig = RIG_FOR_FUZZ
    word, dword = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
    rig.memory.write(0x8000, data.draw(st.binary(min_size=0x30, max_size=0x30)))
    functions = (0x24, 0x4F, 0x53, 0x83, 0x86, 0x87, 0x88, 0xC0, 0xC1, 0xC2, 0xE8)
    rig.call(
        0x15,
        eax=data.draw(st.sampled_from(functions)) << 8 | data.draw(st.sampled_from((*range(10), 0x20))),
        ebx=data.draw(dword),
        ecx=data.draw(dword),
        edx=data.draw(st.sampled_from((0, 0x534D4150))),
        esi=0x8000,
        edi=data.draw(word),
        es=data.draw(st.sampled_from((0, 0x9FFF, 0xA000, 0xFFFF))),
    )
    rig.bios.install()
