"""What all services share: guest memory by address, ports, the data areas, the ROM, and how a service waits."""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import rom
from pyvm.firmware.bios.data_area import BDA, BDA_SIZE, EBDA, EBDA_SIZE, DataArea
from pyvm.firmware.bios.machine import BiosMachine
from pyvm.firmware.bios.registers import Registers, linear

VGA_WINDOW: Final = range(0xA0000, 0xC0000)
_DEADLINE_SIZE: Final = 8
_CMOS_INDEX: Final = 0x70
_CMOS_DATA: Final = 0x71
_RESET_CONTROL: Final = 0xCF9
_HARD_RESET: Final = (0x02, 0x06)
_KEYBOARD_COMMAND: Final = 0x64
_PULSE_RESET: Final = 0xFE


class Core:
    """The machine as services use it."""

    def __init__(self, machine: BiosMachine) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.clock = machine.clock
        self.bda = DataArea(machine.memory, BDA, BDA_SIZE)
        self.ebda = DataArea(machine.memory, EBDA, EBDA_SIZE)
        self.rom = rom.build()
        self.inp = machine.ports.read
        self.outp = machine.ports.write

    # -- ports ------------------------------------------------------------------------------------------------------

    def inb(self, port: int) -> int:
        """Read a byte from a port."""
        return self.inp(port, 1)

    def outb(self, port: int, value: int) -> None:
        """Write a byte to a port."""
        self.outp(port, 1, value & 0xFF)

    def cmos(self, index: int) -> int:
        """Return a byte of the CMOS memory."""
        self.outb(_CMOS_INDEX, index)
        return self.inb(_CMOS_DATA)

    def set_cmos(self, index: int, value: int) -> None:
        """Store a byte in the CMOS memory."""
        self.outb(_CMOS_INDEX, index)
        self.outb(_CMOS_DATA, value)

    def reset_machine(self) -> None:
        """Reset everything, through the chip set or, failing that, the keyboard controller."""
        for value in _HARD_RESET:
            self.outb(_RESET_CONTROL, value)
        self.outb(_KEYBOARD_COMMAND, _PULSE_RESET)

    # -- memory -----------------------------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Return guest memory, RAM or what the display shows in its window; raises GuestMemoryError."""
        if not self._in_window(address, length):
            return self.memory.read(address, length)
        load = self.machine.mmio.read
        whole = length & ~7
        data = bytearray()
        for index in range(0, whole, 8):
            data += load(address + index, 8).to_bytes(8, "little")
        data += bytes(load(address + index, 1) for index in range(whole, length))
        return bytes(data)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store into guest memory, RAM or the display's window; raises GuestMemoryError."""
        if not self._in_window(address, len(data)):
            self.memory.write(address, data)
            return
        store = self.machine.mmio.write
        whole = len(data) & ~7
        for index in range(0, whole, 8):
            store(address + index, 8, int.from_bytes(data[index : index + 8], "little"))
        for index in range(whole, len(data)):
            store(address + index, 1, data[index])

    @staticmethod
    def _in_window(address: int, length: int) -> bool:
        return address in VGA_WINDOW and address + length <= VGA_WINDOW.stop

    def read_at(self, segment: int, offset: int, length: int) -> bytes:
        """Return what is at segment:offset."""
        return self.read(linear(segment, offset), length)

    def write_at(self, segment: int, offset: int, data: bytes) -> None:
        """Store at segment:offset."""
        self.write(linear(segment, offset), data)

    # -- stack and time ---------------------------------------------------------------------------------------------

    def push(self, registers: Registers, data: bytes) -> None:
        """Put `data`, whole words, on the caller's stack."""
        top = (registers.sp - len(data)) & 0xFFFF
        self.memory.write(linear(registers.ss, top), data)
        registers.sp = top

    def pop(self, registers: Registers, length: int) -> bytes:
        """Take `length` bytes off the caller's stack."""
        data = self.memory.read(linear(registers.ss, registers.sp), length)
        registers.sp += length
        return data

    def push_deadline(self, registers: Registers, nanoseconds: int) -> None:
        """Note on the stack that something is over `nanoseconds` from now; see :meth:`time_left`."""
        deadline = (self.clock.now() + nanoseconds) & (1 << 64) - 1
        self.push(registers, deadline.to_bytes(_DEADLINE_SIZE, "little"))

    def time_left(self, registers: Registers) -> int:
        """Return the nanoseconds to the deadline on the stack; when it is reached it is taken off, and 0 returned."""
        deadline = self.memory.read_u64(linear(registers.ss, registers.sp))
        left = deadline - self.clock.now()
        if left > 0:
            return left
        self.drop_deadline(registers)
        return 0

    def drop_deadline(self, registers: Registers) -> None:
        """Take the deadline off the stack before it is reached."""
        registers.sp += _DEADLINE_SIZE

    # -- flags ------------------------------------------------------------------------------------------------------

    def change_caller_flags(self, registers: Registers, mask: int, value: int) -> None:
        """Change some bits of the FLAGS that `iret` gives back to the caller; raises GuestMemoryError."""
        address = linear(registers.ss, registers.sp + 4)
        self.memory.write_u16(address, self.memory.read_u16(address) & ~mask | value & mask)
