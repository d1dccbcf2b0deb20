"""Int 14h, 17h, 05h and 1Ah, IRQ 0 and 8, stray interrupts, and the PCI BIOS."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.bios_rig import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestSerial:
    def test_initialise(self, rig: Rig) -> None:
        registers = rig.call(0x14, eax=0x00E3)
        assert registers.ah & 0x60 == 0x60
        assert rig.line.registers[3] == 0x03
        rig.call(0x14, eax=0x0400, ebx=0x0201, ecx=0x0308)
        assert rig.line.registers[3] == 0x1F

    def test_send_and_receive(self, rig: Rig) -> None:
        rig.line.type(b"R")
        assert rig.call(0x14, eax=0x0153).ah & 0x80 == 0
        assert rig.line.output == b"S"
        assert rig.call(0x14, eax=0x0300).ah & 1
        assert rig.call(0x14, eax=0x0200).al == ord("R")

    def test_waiting(self, rig: Rig) -> None:
        registers = rig.call(0x14, eax=0x0200)
        assert registers.goto == "serial_wait"
        rig.line.type(b"!")
        assert rig.resume(registers).goto is None
        assert (registers.al, registers.esp) == (ord("!"), 0x6F00)

    def test_timeout(self, rig: Rig) -> None:
        rig.line.ready = False
        registers = rig.call(0x14, eax=0x0141)
        assert registers.goto == "serial_wait"
        rig.clock.advance(10_000_000_000)
        rig.resume(registers)
        assert (registers.ah & 0x80, registers.esp) == (0x80, 0x6F00)

    @pytest.mark.parametrize("port", [1, 4, 0xFFFF])
    def test_no_port(self, rig: Rig, port: int) -> None:
        assert rig.call(0x14, eax=0x0300, edx=port).ah == 0x80

    def test_modem_lines(self, rig: Rig) -> None:
        rig.call(0x14, eax=0x0501, ebx=0x0B)
        assert rig.call(0x14, eax=0x0500).bl == 0x0B


class TestPrinter:
    class Port:
        def __init__(self) -> None:
            self.paper, self.data, self.control, self.busy = bytearray(), 0, 0, False

        def read(self, offset: int, size: int) -> int:
            return (self.data, 0x58 if self.busy else 0xD8, self.control)[offset]

        def write(self, offset: int, size: int, value: int) -> None:
            if offset == 0:
                self.data = value
            elif offset == 2:
                if value & ~self.control & 1:
                    self.paper.append(self.data)
                self.control = value

    def with_printer(self) -> tuple[Rig, Port]:
        rig, port = Rig(start=False), self.Port()
        rig.ports.add(0x378, 3, port.read, port.write, "lpt")
        rig.trap("post", esp=0)
        return rig, port

    def test_printing(self) -> None:
        rig, port = self.with_printer()
        assert rig.call(0x11).ax >> 14 == 1
        assert rig.call(0x17, eax=0x0100).ah == 0x90
        assert rig.call(0x17, eax=0x0041).ah == 0x90
        assert rig.call(0x17, eax=0x0200).ah == 0x90
        assert port.paper == b"A"
        port.busy = True
        assert rig.call(0x17, eax=0x0041).ah & 0x81 == 0x01

    def test_screen(self) -> None:
        rig, port = self.with_printer()
        rig.call(0x10, eax=0x0003)
        for value in b"text":
            rig.call(0x10, eax=0x0E00 | value)
        rig.trap("int05")
        assert port.paper.startswith(b"text" + b" " * 76 + b"\r\n")
        assert port.paper.count(b"\r\n") == 25
        assert rig.memory.read(0x500, 1) == b"\0"

    def test_no_port(self, rig: Rig) -> None:
        assert rig.call(0x17, eax=0x0041).ah == 1
        rig.trap("int05")
        assert rig.memory.read(0x500, 1) == b"\xff"


class TestClock:
    def test_ticks(self, rig: Rig) -> None:
        registers = rig.call(0x1A, eax=0)
        seconds = 22 * 3600 + 13 * 60 + 20
        assert registers.cx << 16 | registers.dx == seconds * 1193182 // 65536
        rig.call(0x1A, eax=0x0100, ecx=0x0018, edx=0x00AE)
        rig.trap("int08")
        assert rig.call(0x1A, eax=0).al == 0
        rig.trap("int08")
        registers = rig.call(0x1A, eax=0)
        assert (registers.al, registers.cx, registers.dx) == (1, 0, 0)
        assert rig.call(0x1A, eax=0).al == 0

    def test_motor(self, rig: Rig) -> None:
        written: list[int] = []
        rig.ports.add(0x3F2, 1, lambda offset, size: 0, lambda offset, size, value: written.append(value), "fdc")
        rig.memory.write(0x43F, b"\x01\x02")
        rig.trap("int08")
        assert written == []
        rig.trap("int08")
        assert written == [0x0C]
        assert rig.bda(0x3F) == 0

    def test_time_and_date(self, rig: Rig) -> None:
        registers = rig.call(0x1A, eax=0x0200)
        assert (registers.ch, registers.cl, registers.dh) == (0x22, 0x13, 0x20)
        registers = rig.call(0x1A, eax=0x0400)
        assert (registers.cx, registers.dx) == (0x2023, 0x1114)
        rig.call(0x1A, eax=0x0300, ecx=0x0607, edx=0x0800)
        rig.call(0x1A, eax=0x0500, ecx=0x1999, edx=0x0228)
        registers = rig.call(0x1A, eax=0x0200)
        assert (registers.cx, registers.dh) == (0x0607, 0x08)
        registers = rig.call(0x1A, eax=0x0400)
        assert (registers.cx, registers.dx) == (0x1999, 0x0228)

    def test_alarm(self, rig: Rig) -> None:
        rig.call(0x1A, eax=0x0600, ecx=0x2213, edx=0x2200)
        assert not rig.carry
        rig.call(0x1A, eax=0x0600, ecx=0x2213, edx=0x2200)
        assert rig.carry
        assert rig.trap("int70").goto is None
        rig.clock.advance(2_000_000_000)
        assert rig.trap("int70").goto == "clock_alarm"
        rig.call(0x1A, eax=0x0700)
        rig.call(0x1A, eax=0x0600, ecx=0x2213, edx=0x2200)
        assert not rig.carry

    def test_unknown(self, rig: Rig) -> None:
        assert rig.call(0x1A, eax=0x5500).ah == 0x86


def test_stray_interrupts(rig: Rig) -> None:
    rig.pic.set_irq(5, True)
    rig.ports.write(0x21, 1, 0)
    assert rig.pic.acknowledge() == 0x0D
    rig.trap("irq_master")
    rig.ports.write(0x20, 1, 0x0B)
    assert rig.ports.read(0x20, 1) == 0
    rig.ports.write(0xA1, 1, 0)
    rig.pic.set_irq(11, True)
    assert rig.pic.acknowledge() == 0x73
    rig.trap("irq_slave")
    for base in (0x20, 0xA0):
        rig.ports.write(base, 1, 0x0B)
        assert rig.ports.read(base, 1) == 0
    # A spurious one is not in service: another that is must not be ended.
    rig.pic.set_irq(3, True)
    rig.pic.acknowledge()
    rig.trap("irq_slave")
    assert rig.ports.read(0x20, 1) == 0x08


class TestPci:
    def test_installation_check(self, rig: Rig) -> None:
        registers = rig.call(0x1A, eax=0xB101)
        assert (registers.ah, registers.bx, registers.cl, registers.edx) == (0, 0x0210, 0, 0x20494350)

    def test_find(self) -> None:
        rig = Rig(vga=True)
        assert rig.call(0x1A, eax=0xB102, ecx=0x1111, edx=0x1234).bx == 0x10
        assert rig.call(0x1A, eax=0xB102, ecx=0x1111, edx=0x1234, esi=1).ah == 0x86
        assert rig.call(0x1A, eax=0xB103, ecx=0x030000).bx == 0x10
        assert rig.call(0x1A, eax=0xB103, ecx=0x0C0300).ah == 0x86
        assert rig.call(0x1A, eax=0xB102, ecx=1, edx=0xFFFF).ah == 0x83

    def test_configuration(self, rig: Rig) -> None:
        assert rig.call(0x1A, eax=0xB108, edi=0).cl == 0x86
        assert rig.call(0x1A, eax=0xB109, edi=2).cx == 0x1237
        assert rig.call(0x1A, eax=0xB10A, edi=0).ecx == 0x12378086
        rig.call(0x1A, eax=0xB10B, edi=0x5A, ecx=0x31)
        assert rig.call(0x1A, eax=0xB108, edi=0x5A).cl == 0x31
        assert rig.call(0x1A, eax=0xB109, edi=1).ah == 0x87
        assert rig.call(0x1A, eax=0xB108, edi=0x100).ah == 0x87
        assert rig.call(0x1A, eax=0xB10E).ah == 0x81


RIG_FOR_FUZZ = Rig(vga=True)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_registers(data: st.DataObject) -> None:
    rig = RIG_FOR_FUZZ
    values = {name: data.draw(st.integers(0, 0xFFFFFFFF)) for name in ("ebx", "ecx", "edx", "esi", "edi", "ebp")}
    vector = data.draw(st.sampled_from((0x05, 0x11, 0x12, 0x14, 0x17, 0x1A)))
    functions = (*range(8), 0xB1)
    rig.memory.write(0x400, data.draw(st.binary(min_size=16, max_size=16)))
    rig.call(
        vector,
        eax=data.draw(st.sampled_from(functions)) << 8 | data.draw(st.integers(0, 0x0F)),
        es=data.draw(st.integers(0, 0xFFFF)),
        **values,
    )
    rig.bios.install()
