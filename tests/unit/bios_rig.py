"""A machine of real chips around the built-in BIOS, called without a processor."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyvm.clock import ManualClock
from pyvm.devices.display import registers as r
from pyvm.devices.display.vga import Vga
from pyvm.devices.i8042 import I8042
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import PciFunction
from pyvm.devices.pci.i440fx import I440fx
from pyvm.devices.pic import PicPair
from pyvm.devices.port92 import Port92
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.devices.rtc import Rtc
from pyvm.firmware.bios.bios import Bios
from pyvm.firmware.bios.machine import BiosDisk, BiosMachine, BootConfig, OptionRom
from pyvm.firmware.bios.registers import FLAG_CARRY, FLAG_ZERO, Registers, linear
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.firmware.e820 import pc_memory_map
from pyvm.irq import IrqLine
from pyvm.memory import IoSpace, pc_ram_blocks
from tests.unit.scratch_ram import scratch_ram

COM1 = 0x3F8
STACK = 0x6F00
CALLER = (0x1234, 0x5678)
BUFFER = 0x9000
FRAME_BUFFER = 0xE0000000
ROM_MEMORY = 0xF0000000
EPOCH = 1_700_000_000  # 2023-11-14 22:13:20 UTC


class MemoryDisk:
    """A medium in memory; reads and writes fail while `broken`."""

    def __init__(self, data: bytes | bytearray, *, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.read_only = read_only
        self.broken = False

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def inserted(self) -> bool:
        return bool(self.data)

    def _check(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self.broken or offset < 0 or offset + sum(map(len, buffers)) > len(self.data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check(offset, buffers)
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def pwritev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        assert not self.read_only
        self._check(offset, buffers)
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)


class Line:
    """A serial port with a person at its other end."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.input: deque[int] = deque()
        self.registers = bytearray(8)
        self.ready = True

    def type(self, data: bytes) -> None:
        self.input.extend(data)

    def read(self, offset: int, size: int) -> int:
        if offset == 0 and not self.registers[3] & 0x80:
            return self.input.popleft() if self.input else 0
        if offset == 5:
            return (0x60 if self.ready else 0) | bool(self.input)
        return self.registers[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and not self.registers[3] & 0x80:
            self.output.append(value & 0xFF)
        else:
            self.registers[offset] = value & 0xFF


class Rig:
    """The machine.  `call` enters an interrupt's stub as `int` would, and returns the registers it leaves."""

    def __init__(
        self,
        disks: Sequence[BiosDisk] = (),
        *,
        vga: bool = False,
        console: bool = True,
        boot: BootConfig | None = None,
        ram: int = 16 << 20,
        start: bool = True,
        option_roms: Sequence[OptionRom] = (),
        cards: Sequence[PciFunction] = (),
        card_places: Mapping[int, int] | None = None,
        kernel: Callable[[], None] | None = None,
    ) -> None:
        self.clock = ManualClock()
        blocks = pc_ram_blocks(ram)
        self.memory = scratch_ram(ram, blocks)
        self.ports, self.mmio = IoSpace("I/O"), IoSpace("memory")
        self.resets = 0
        self.line = Line()
        self._wire(ram)
        self.vga = self._add_vga() if vga else None
        machine = BiosMachine(
            memory=self.memory,
            ports=self.ports,
            mmio=self.mmio,
            clock=self.clock,
            disks=disks,
            e820=pc_memory_map(blocks),
            serial_ports=[COM1],
            boot=boot or BootConfig(),
            console_on_serial=console,
            option_roms=option_roms,
            card_places=card_places or {},
            kernel=kernel,
        )
        for slot, card in enumerate(cards, 3):
            self.pci.attach(card, slot)
            card.config_write(0x30, 4, ROM_MEMORY + (slot << 20))
        self.bios = Bios(machine)
        self.bios.install()
        if start:
            self.post = self.trap("post", esp=0)
            self.line.output.clear()

    def _wire(self, ram: int) -> None:
        ports = self.ports
        self.pic = PicPair(IrqLine(lambda level: None))
        for base, chip in ((0x20, self.pic.master), (0xA0, self.pic.slave)):
            ports.add(base, 2, chip.read, chip.write, "pic", max_access=1)

        def irq(number: int) -> IrqLine:
            return IrqLine(lambda level: self.pic.set_irq(number, level))

        self.rtc = Rtc(self.clock, irq(8), lambda: EPOCH)
        ports.add(0x70, 2, self.rtc.read, self.rtc.write, "rtc", max_access=1)
        self.keyboard, self.mouse = Ps2Keyboard(), Ps2Mouse()
        controller = I8042(irq(1), irq(12), self.keyboard, self.mouse, on_reset=self._reset)
        ports.add(0x60, 1, controller.data_read, controller.data_write, "data", max_access=1)
        ports.add(0x64, 1, controller.status_read, controller.command_write, "command", max_access=1)
        self.port92 = Port92(on_a20=lambda level: None, on_reset=self._reset)
        ports.add(0x92, 1, self.port92.read, self.port92.write, "port92", max_access=1)
        ports.add(COM1, 8, self.line.read, self.line.write, "com1", max_access=1)
        self.pci = PciBus(ports, self.mmio, lambda slot, pin, level: None, lambda address, data: None)
        self.pci.attach(I440fx(ram), 0)
        ports.add(0xCF8, 4, self.pci.address_read, self.pci.address_write, "pci", max_access=4)
        ports.add(0xCFC, 4, self.pci.data_read, self.pci.data_write, "pci", max_access=4)

    def _reset(self) -> None:
        self.resets += 1

    def _add_vga(self) -> Vga:
        vga = Vga(self.clock)
        self.ports.add(r.PORT_BASE, r.PORT_COUNT, vga.port_read, vga.port_write, "vga", max_access=1)
        self.ports.add(r.DISPI_INDEX_PORT, r.DISPI_PORT_COUNT, vga.dispi_read, vga.dispi_write, "dispi", max_access=2)
        self.mmio.add(r.WINDOW_BASE, r.WINDOW_SIZE, vga.window_read, vga.window_write, "window")
        self.pci.attach(vga, 2)
        vga.config_write(0x10, 4, FRAME_BUFFER)
        vga.config_write(0x18, 4, FRAME_BUFFER + (32 << 20))
        vga.config_write(0x04, 2, 3)
        return vga

    # -- calls ------------------------------------------------------------------------------------------------------

    def trap(self, label: str, **values: Any) -> Registers:
        """Have the BIOS serve the first trap behind a label of the ROM."""
        start = self.bios.core.rom.labels[label]
        address = next(a for a in sorted(self.bios.core.rom.services) if a > linear(SEGMENT, start))
        values.setdefault("esp", STACK)
        registers = Registers(**values, cs=SEGMENT, eip=address - linear(SEGMENT, 0))
        self.bios.call(registers)
        return registers

    def call(self, vector: int, flags: int = 0x202, **values: Any) -> Registers:
        """Execute `int vector` with the registers given, which must point to this BIOS; and the `iret`."""
        segment, offset = CALLER
        for index, word in enumerate((offset, segment, flags)):
            self.memory.write_u16(STACK + 2 * index, word)
        return self.trap(f"int{vector:02x}", **values)

    def resume(self, registers: Registers) -> Registers:
        """Let the processor go on where a service has sent it, to the next trap."""
        assert registers.cs == SEGMENT
        address = next(a for a in sorted(self.bios.core.rom.services) if a > linear(SEGMENT, registers.eip))
        registers.eip = address - linear(SEGMENT, 0)
        self.bios.call(registers)
        return registers

    @property
    def flags(self) -> int:
        """The FLAGS that the last call's `iret` gives back."""
        return self.memory.read_u16(STACK + 4)

    @property
    def carry(self) -> bool:
        return bool(self.flags & FLAG_CARRY)

    @property
    def zero(self) -> bool:
        return bool(self.flags & FLAG_ZERO)

    def bda(self, offset: int, size: int = 1) -> int:
        """Return a value in the BIOS data area."""
        return int.from_bytes(self.memory.read(0x400 + offset, size), "little")

    def press(self, *names: str) -> list[Registers]:
        """Press and release keys on the PS/2 keyboard, and run IRQ 1 for each byte; return how each ended."""
        ends = []
        for name, down in [(name, True) for name in names] + [(name, False) for name in reversed(names)]:
            self.keyboard.key(name, down)
            ends += self.keyboard_interrupts()
        return ends

    def keyboard_interrupts(self) -> list[Registers]:
        """Run IRQ 1 until the controller has nothing left."""
        ends = []
        while self.ports.read(0x64, 1) & 0x21 == 1:
            fetched = self.trap("int09", esp=STACK)
            assert not fetched.eflags & FLAG_CARRY
            ends.append(self.resume(fetched))
        return ends

    def typed(self) -> list[int]:
        """Return all codes that int 16h AH=10 gives."""
        found = []
        while True:
            registers = self.call(0x16, eax=0x1000)
            if registers.goto:
                return found
            found.append(registers.ax)

    def text(self, row: int) -> str:
        """Return a row of the VGA's screen."""
        codes = (self.mmio.read(0xB8000 + 160 * row + 2 * column, 1) for column in range(80))
        return bytes(codes).decode("cp437").rstrip()


def boot_disk(size: int = 1 << 20, code: bytes = b"\xeb\xfe") -> MemoryDisk:
    """Return a disk with a boot sector."""
    data = bytearray(size)
    data[: len(code)] = code
    data[510:512] = b"\x55\xaa"
    return MemoryDisk(data)


def hard_disk(backend: MemoryDisk, **values: Any) -> BiosDisk:
    """Return a hard disk for the rig."""
    return BiosDisk("disk", backend, values.pop("name", "disk"), **values)
