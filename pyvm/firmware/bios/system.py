"""Int 15h: memory, time, power and configuration.

Ralf Brown's Interrupt List, INTERRUP.D; Personal System/2 and Personal Computer BIOS Interface Technical Reference.
Unknown functions return with carry and AH=86h, by which programs know that they are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.apm import Apm
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.hardware import Hardware
from pyvm.firmware.bios.memory import Memory
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.rom import CONFIGURATION, SEGMENT
from pyvm.firmware.bios.rtc import set_periodic

UNSUPPORTED: Final = 0x86
WAIT_BUSY: Final = 0x83
A20_PORT: Final = 0x92
A20_OPEN: Final = 0x02
A20_BY_KEYBOARD_AND_PORT: Final = 0x03
_MICROSECOND: Final = 1000
_SPIN_BELOW: Final = 60_000_000
"""Nanoseconds; a wait that ends sooner than a timer tick would cannot sleep until the next interrupt."""


class System:
    """The service."""

    def __init__(self, core: Core, hardware: Hardware) -> None:
        self._core = core
        self._memory = Memory(core)
        self._apm = Apm(core)
        self._functions: dict[int, Callable[[Registers], None]] = {
            0x24: self._a20,
            0x41: self._unsupported,
            0x4F: self._intercept,
            0x52: self._eject,
            0x53: self._apm.call,
            0x83: self._set_event_wait,
            0x85: self._nothing,
            0x86: self._wait,
            0x87: self._memory.move,
            0x88: self._memory.extended_size,
            0x89: self._unsupported,
            0x90: self._nothing,
            0x91: self._nothing,
            0xC0: self._configuration,
            0xC1: self._ebda,
            0xC2: hardware.pointer_call,
            0xE8: self._big_memory,
        }

    def call(self, registers: Registers) -> None:
        """Serve int 15h."""
        self._functions.get(registers.ah, self._unsupported)(registers)

    def _unsupported(self, registers: Registers) -> None:
        registers.fail(UNSUPPORTED)

    def _nothing(self, registers: Registers) -> None:
        """AH=85, 90, 91: hooks for a system that shares the machine; nobody hooked them."""
        registers.succeed()

    def _intercept(self, registers: Registers) -> None:
        """AH=4F: nobody wants to see the scan code in AL first; carry says that it is to be used."""
        registers.carry = True

    def _eject(self, registers: Registers) -> None:
        """AH=52: nobody minds that a medium is ejected."""
        registers.succeed()

    # -- A20 --------------------------------------------------------------------------------------------------------

    def _a20(self, registers: Registers) -> None:
        core = self._core
        function = registers.al
        if function in (0, 1):
            value = core.inb(A20_PORT) & ~A20_OPEN
            core.outb(A20_PORT, value | A20_OPEN * function)
        elif function == 2:
            registers.al = bool(core.inb(A20_PORT) & A20_OPEN)
        elif function == 3:
            registers.bx = A20_BY_KEYBOARD_AND_PORT
        else:
            registers.fail(UNSUPPORTED)
            return
        registers.succeed()

    # -- time -------------------------------------------------------------------------------------------------------

    def _set_event_wait(self, registers: Registers) -> None:
        """AH=83: set bit 7 of a byte after some microseconds (AL=00), or cancel that (AL=01)."""
        bda = self._core.bda
        if registers.al == 1:
            set_periodic(self._core, False)
            bda.set_byte(area.WAIT_ACTIVE, 0)
            registers.succeed()
        elif registers.al != 0:
            registers.fail(UNSUPPORTED)
        elif bda.byte(area.WAIT_ACTIVE) & area.WAIT_PENDING:
            registers.fail(WAIT_BUSY)
        else:
            bda.set_far(area.WAIT_FLAG_POINTER, registers.es, registers.bx)
            bda.set_dword(area.WAIT_TIME, registers.cx << 16 | registers.dx)
            bda.set_byte(area.WAIT_ACTIVE, area.WAIT_PENDING)
            set_periodic(self._core, True)
            registers.succeed()

    def _wait(self, registers: Registers) -> None:
        """AH=86: return after CX:DX microseconds."""
        self._core.push_deadline(registers, (registers.cx << 16 | registers.dx) * _MICROSECOND)
        self.delay_again(registers)

    def delay_again(self, registers: Registers) -> None:
        """Look whether the wait on the stack is over; sleep until the next interrupt where it is not."""
        left = self._core.time_left(registers)
        if left == 0:
            registers.succeed()
        else:
            registers.goto = "delay_spin" if left < _SPIN_BELOW else "delay_wait"

    # -- what there is ----------------------------------------------------------------------------------------------

    def _configuration(self, registers: Registers) -> None:
        registers.es, registers.bx = SEGMENT, CONFIGURATION
        registers.succeed()

    def _ebda(self, registers: Registers) -> None:
        registers.es = self._core.bda.word(area.EBDA_POINTER)
        registers.carry = False

    def _big_memory(self, registers: Registers) -> None:
        if registers.al == 0x01:
            self._memory.sizes(registers)
        elif registers.al == 0x20:
            self._memory.map(registers)
        else:
            registers.fail(UNSUPPORTED)
