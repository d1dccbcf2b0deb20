"""Int 14h: serial ports.

Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 14h; National Semiconductor PC16550D
datasheet for the registers.
"""

from __future__ import annotations

from typing import Final

from pyvm.clock import NANOSECONDS
from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.tables import SERIAL_CLOCK, SERIAL_RATES

DATA: Final = 0
INTERRUPTS: Final = 1
LINE_CONTROL: Final = 3
MODEM_CONTROL: Final = 4
LINE_STATUS: Final = 5
MODEM_STATUS: Final = 6
DIVISOR_LATCH: Final = 0x80
LINE_FORMAT: Final = 0x1F
DATA_READY: Final = 1 << 0
TRANSMITTER_EMPTY: Final = 1 << 5
STATUS_TIMEOUT: Final = 1 << 7

INITIALISE, SEND, RECEIVE, STATUS, EXTENDED_INITIALISE, MODEM = range(6)
_EXTENDED_RATES: Final = (*SERIAL_RATES, 19200)
_PARITY: Final = (0x00, 0x08, 0x18, 0x28, 0x38)
_MAX_PORTS: Final = 4


class Serial:
    """The service."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def call(self, registers: Registers) -> None:
        """Serve int 14h; of a port that is not there the line status is a timeout."""
        port = self._port(registers)
        function = registers.ah
        registers.carry = port == 0
        if port == 0:
            registers.ah = STATUS_TIMEOUT
        elif function == INITIALISE:
            self._set_line(port, SERIAL_RATES[registers.al >> 5], registers.al & LINE_FORMAT)
            self._status(registers, port)
        elif function in (SEND, RECEIVE):
            seconds = self._core.bda.byte(area.COM_TIMEOUTS + registers.dx)
            self._core.push_deadline(registers, seconds * NANOSECONDS)
            self.again(registers)
        elif function == STATUS:
            self._status(registers, port)
        elif function == EXTENDED_INITIALISE:
            self._extended(registers, port)
        elif function == MODEM:
            self._modem(registers, port)

    def _port(self, registers: Registers) -> int:
        return self._core.bda.word(area.COM_PORTS + 2 * registers.dx) if registers.dx < _MAX_PORTS else 0

    def _set_line(self, port: int, rate: int, line: int) -> None:
        outb = self._core.outb
        divisor = SERIAL_CLOCK // rate
        outb(port + LINE_CONTROL, line | DIVISOR_LATCH)
        outb(port + DATA, divisor & 0xFF)
        outb(port + INTERRUPTS, divisor >> 8)
        outb(port + LINE_CONTROL, line)
        outb(port + INTERRUPTS, 0)

    def _status(self, registers: Registers, port: int) -> None:
        registers.ah = self._core.inb(port + LINE_STATUS) & ~STATUS_TIMEOUT
        registers.al = self._core.inb(port + MODEM_STATUS)

    def again(self, registers: Registers) -> None:
        """Send or receive if the line is ready; wait where it is not, until the deadline on the stack."""
        core, port = self._core, self._port(registers)
        wanted = TRANSMITTER_EMPTY if registers.ah == SEND else DATA_READY
        status = core.inb(port + LINE_STATUS) if port else 0
        if not status & wanted:
            if core.time_left(registers):
                registers.goto = "serial_wait"
            else:
                registers.ah = status | STATUS_TIMEOUT
            return
        core.drop_deadline(registers)
        if wanted == TRANSMITTER_EMPTY:
            core.outb(port + DATA, registers.al)
        else:
            registers.al = core.inb(port + DATA)
        registers.ah = status & ~STATUS_TIMEOUT

    def _extended(self, registers: Registers, port: int) -> None:
        """AH=04: break (AL), parity (BH), stop bits (BL), word length (CH) and rate (CL)."""
        if registers.cl >= len(_EXTENDED_RATES) or registers.bh >= len(_PARITY) or registers.ch > 3:
            return
        line = _PARITY[registers.bh] | (registers.bl & 1) << 2 | registers.ch | (registers.al & 1) << 6
        self._set_line(port, _EXTENDED_RATES[registers.cl], line)
        self._status(registers, port)

    def _modem(self, registers: Registers, port: int) -> None:
        """AH=05: read (AL=0) or write (AL=1) the modem control register in BL."""
        if registers.al == 0:
            registers.bl = self._core.inb(port + MODEM_CONTROL)
        elif registers.al == 1:
            self._core.outb(port + MODEM_CONTROL, registers.bl)
        self._status(registers, port)
