"""Interrupts of the hardware that no other chapter serves, and the PS/2 mouse (int 15h AH=C2, IRQ 12).

Intel 8259A datasheet, "End of interrupt" and "Reading the 8259A status"; Personal System/2 and Personal Computer BIOS
Interface Technical Reference, int 15h AH=C2 (pointing device interface).
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.firmware.pic_setup import MASTER as PIC_MASTER
from pyvm.firmware.pic_setup import SLAVE as PIC_SLAVE

_READ_IN_SERVICE: Final = 0x0B
_END_OF_INTERRUPT: Final = 0x20
_CASCADE: Final = 1 << 2

KEYBOARD_DATA: Final = 0x60
KEYBOARD_STATUS: Final = 0x64
STATUS_OUTPUT_FULL: Final = 1 << 0
STATUS_MOUSE: Final = 1 << 5
READ_COMMAND_BYTE: Final = 0x20
WRITE_COMMAND_BYTE: Final = 0x60
ENABLE_MOUSE_PORT: Final = 0xA8
DISABLE_KEYBOARD: Final = 0xAD
ENABLE_KEYBOARD: Final = 0xAE
SEND_TO_MOUSE: Final = 0xD4
COMMAND_KEYBOARD_IRQ: Final = 1 << 0
COMMAND_MOUSE_IRQ: Final = 1 << 1
COMMAND_KEYBOARD_OFF: Final = 1 << 4
COMMAND_MOUSE_OFF: Final = 1 << 5
ACKNOWLEDGE: Final = 0xFA
_FLUSH_LIMIT: Final = 64

# Mouse commands
MOUSE_SCALING_1: Final = 0xE6
MOUSE_SCALING_2: Final = 0xE7
MOUSE_RESOLUTION: Final = 0xE8
MOUSE_STATUS: Final = 0xE9
MOUSE_IDENTIFY: Final = 0xF2
MOUSE_RATE: Final = 0xF3
MOUSE_ENABLE: Final = 0xF4
MOUSE_DISABLE: Final = 0xF5
MOUSE_RESET: Final = 0xFF
RATES: Final = (10, 20, 40, 60, 80, 100, 200)

# Status of AH=C2
BAD_FUNCTION: Final = 0x01
BAD_INPUT: Final = 0x02
INTERFACE_ERROR: Final = 0x03
NO_HANDLER: Final = 0x05
_HANDLER_SET: Final = 1 << 7
_SIZE: Final = 0x07
_COUNT: Final = 0x07


class Hardware:
    """The services."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- interrupts that nobody waits for ---------------------------------------------------------------------------

    def irq_master(self, registers: Registers) -> None:
        """End an interrupt of IRQ 0-7, unless it is a spurious one, which is not in service."""
        if self._in_service(PIC_MASTER):
            self._core.outb(PIC_MASTER, _END_OF_INTERRUPT)

    def irq_slave(self, registers: Registers) -> None:
        """End an interrupt of IRQ 8-15; of a spurious one only the master knows."""
        if self._in_service(PIC_SLAVE):
            self._core.outb(PIC_SLAVE, _END_OF_INTERRUPT)
        if self._in_service(PIC_MASTER) & _CASCADE:
            self._core.outb(PIC_MASTER, _END_OF_INTERRUPT)

    def _in_service(self, pic: int) -> int:
        self._core.outb(pic, _READ_IN_SERVICE)
        return self._core.inb(pic)

    # -- the mouse's interrupt --------------------------------------------------------------------------------------

    def mouse_interrupt(self, registers: Registers) -> None:
        """IRQ 12: collect a packet, and call the program's handler with it on the stack."""
        core, ebda = self._core, self._core.ebda
        wanted = STATUS_OUTPUT_FULL | STATUS_MOUSE
        if core.inb(KEYBOARD_STATUS) & wanted != wanted:
            return
        value = core.inb(KEYBOARD_DATA)
        flags, size = ebda.byte(area.MOUSE_FLAGS_1), ebda.byte(area.MOUSE_FLAGS_2)
        if not size & _HANDLER_SET:
            return
        count = flags & _COUNT
        ebda.set_byte(area.MOUSE_PACKET + count, value)
        if count < (size & _SIZE):
            ebda.set_byte(area.MOUSE_FLAGS_1, flags & ~_COUNT | count + 1)
            return
        ebda.set_byte(area.MOUSE_FLAGS_1, flags & ~_COUNT)
        packet = ebda.block(area.MOUSE_PACKET, 4)
        words = [packet[0], packet[1], packet[2], packet[3] if size & _SIZE == 3 else 0]
        handler = ebda.dword(area.MOUSE_HANDLER)
        frame = [core.rom.labels["mouse_return"], SEGMENT, *reversed(words)]
        core.push(registers, b"".join(word.to_bytes(2, "little") for word in frame))
        registers.cs, registers.eip = handler >> 16, handler & 0xFFFF

    # -- int 15h AH=C2 ----------------------------------------------------------------------------------------------

    def pointer_call(self, registers: Registers) -> None:
        """Serve the pointing device functions, by AL."""
        functions = {
            0x00: self._enable,
            0x01: self._reset,
            0x02: self._set_rate,
            0x03: self._set_resolution,
            0x04: self._identify,
            0x05: self._initialise,
            0x06: self._extended,
            0x07: self._set_handler,
        }
        function = functions.get(registers.al)
        status = BAD_FUNCTION if function is None else function(registers)
        if status:
            registers.fail(status)
        else:
            registers.succeed()

    def _mouse(self, *values: int, replies: int = 0) -> bytes | None:
        """Send a command to the mouse with interrupts of the controller off; return its replies, or None."""
        core = self._core
        command = self.controller_command(READ_COMMAND_BYTE)
        self.set_command_byte(command & ~(COMMAND_KEYBOARD_IRQ | COMMAND_MOUSE_IRQ) | COMMAND_KEYBOARD_OFF)
        received: bytes | None = b""
        for value in values:
            core.outb(KEYBOARD_STATUS, SEND_TO_MOUSE)
            core.outb(KEYBOARD_DATA, value)
            if self.receive() != ACKNOWLEDGE:
                received = None
                break
        while received is not None and len(received) < replies:
            value = self.receive()
            received = None if value < 0 else received + bytes((value,))
        self.set_command_byte(command & ~COMMAND_MOUSE_OFF | COMMAND_MOUSE_IRQ)
        return received

    def receive(self) -> int:
        """Return the next byte from the keyboard controller, -1 where there is none."""
        if not self._core.inb(KEYBOARD_STATUS) & STATUS_OUTPUT_FULL:
            return -1
        return self._core.inb(KEYBOARD_DATA)

    def controller_command(self, command: int) -> int:
        """Give the keyboard controller a command that has a reply; return that."""
        for _ in range(_FLUSH_LIMIT):
            if not self._core.inb(KEYBOARD_STATUS) & STATUS_OUTPUT_FULL:
                break
            self._core.inb(KEYBOARD_DATA)
        self._core.outb(KEYBOARD_STATUS, command)
        return max(self.receive(), 0)

    def set_command_byte(self, value: int) -> None:
        """Set the controller's command byte."""
        self._core.outb(KEYBOARD_STATUS, WRITE_COMMAND_BYTE)
        self._core.outb(KEYBOARD_DATA, value)

    def _has_handler(self) -> bool:
        return bool(self._core.ebda.byte(area.MOUSE_FLAGS_2) & _HANDLER_SET)

    def _command(self, *values: int) -> int:
        return INTERFACE_ERROR if self._mouse(*values) is None else 0

    def _enable(self, registers: Registers) -> int:
        if registers.bh > 1:
            return BAD_INPUT
        if registers.bh and not self._has_handler():
            return NO_HANDLER
        return self._command(MOUSE_ENABLE if registers.bh else MOUSE_DISABLE)

    def _reset(self, registers: Registers) -> int:
        reply = self._mouse(MOUSE_RESET, replies=2)
        if reply is None:
            return INTERFACE_ERROR
        registers.bl, registers.bh = reply[0], reply[1]
        return 0

    def _set_rate(self, registers: Registers) -> int:
        if registers.bh >= len(RATES):
            return BAD_INPUT
        return self._command(MOUSE_RATE, RATES[registers.bh])

    def _set_resolution(self, registers: Registers) -> int:
        return BAD_INPUT if registers.bh > 3 else self._command(MOUSE_RESOLUTION, registers.bh)

    def _identify(self, registers: Registers) -> int:
        reply = self._mouse(MOUSE_IDENTIFY, replies=1)
        if reply is None:
            return INTERFACE_ERROR
        registers.bh = reply[0]
        return 0

    def _initialise(self, registers: Registers) -> int:
        if not 1 <= registers.bh <= 8:
            return BAD_INPUT
        ebda = self._core.ebda
        ebda.set_byte(area.MOUSE_FLAGS_1, 0)
        ebda.set_byte(area.MOUSE_FLAGS_2, ebda.byte(area.MOUSE_FLAGS_2) & ~_SIZE | registers.bh - 1)
        return self._reset(registers)

    def _extended(self, registers: Registers) -> int:
        if registers.bh == 0:
            reply = self._mouse(MOUSE_STATUS, replies=3)
            if reply is None:
                return INTERFACE_ERROR
            registers.bl, registers.cl, registers.dl = reply
            return 0
        if registers.bh in (1, 2):
            return self._command(MOUSE_SCALING_1 if registers.bh == 1 else MOUSE_SCALING_2)
        return BAD_INPUT

    def _set_handler(self, registers: Registers) -> int:
        ebda = self._core.ebda
        flags = ebda.byte(area.MOUSE_FLAGS_2)
        handled = bool(registers.es or registers.bx)
        ebda.set_far(area.MOUSE_HANDLER, registers.es, registers.bx)
        ebda.set_byte(area.MOUSE_FLAGS_2, flags | _HANDLER_SET if handled else flags & ~_HANDLER_SET)
        return 0
