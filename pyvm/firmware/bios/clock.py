"""Int 1Ah: time of day, date and alarm; the timer's interrupt (IRQ 0) and the real-time clock's (IRQ 8).

Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 08h, 1Ah and 70h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import rtc
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.keyboard import Keyboard
from pyvm.firmware.bios.pci import Pci
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.memory import GuestMemoryError

TICKS_A_DAY: Final = 0x1800B0
PIT_HZ: Final = 1_193_182
TICK_DIVISOR: Final = 65536
UNSUPPORTED: Final = 0x86
_FLOPPY_OUTPUT: Final = 0x3F2
_MOTORS_OFF: Final = 0x0C  # controller on, interrupts on, drive 0
_MOTOR_BITS: Final = 0x0F


class Clock:
    """The services."""

    def __init__(self, core: Core, pci: Pci, keyboard: Keyboard) -> None:
        self._core = core
        self._bda = core.bda
        self._keyboard = keyboard
        self._functions: dict[int, Callable[[Registers], None]] = {
            0x00: self._get_ticks,
            0x01: self._set_ticks,
            0x02: self._get_time,
            0x03: self._set_time,
            0x04: self._get_date,
            0x05: self._set_date,
            0x06: self._set_alarm,
            0x07: self._cancel_alarm,
            0xB1: pci.call,
        }

    # -- IRQ 0 ------------------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """Count the ticks since midnight from the real-time clock; at POST."""
        seconds, minutes, hours = self._stable(rtc.SECONDS, rtc.MINUTES, rtc.HOURS)
        passed = (rtc.from_bcd(hours) * 60 + rtc.from_bcd(minutes)) * 60 + rtc.from_bcd(seconds)
        self._bda.set_dword(area.TICKS, passed * PIT_HZ // TICK_DIVISOR % TICKS_A_DAY)
        self._bda.set_byte(area.MIDNIGHT, 0)

    def tick(self, registers: Registers) -> None:
        """IRQ 0: count, switch idle diskette motors off, and look for input from the serial console."""
        bda = self._bda
        ticks = bda.dword(area.TICKS) + 1
        if ticks >= TICKS_A_DAY:
            ticks = 0
            bda.set_byte(area.MIDNIGHT, bda.byte(area.MIDNIGHT) + 1)
        bda.set_dword(area.TICKS, ticks)
        motor = bda.byte(area.FLOPPY_MOTOR_TICKS)
        if motor:
            bda.set_byte(area.FLOPPY_MOTOR_TICKS, motor - 1)
            if motor == 1:
                bda.set_byte(area.FLOPPY_MOTORS, bda.byte(area.FLOPPY_MOTORS) & ~_MOTOR_BITS)
                self._core.outb(_FLOPPY_OUTPUT, _MOTORS_OFF)
        self._keyboard.poll()

    # -- IRQ 8 ------------------------------------------------------------------------------------------------------

    def interrupt(self, registers: Registers) -> None:
        """IRQ 8: count down the wait of int 15h AH=83, and call int 4Ah for an alarm."""
        core = self._core
        enabled, flags = core.cmos(rtc.STATUS_B), core.cmos(rtc.STATUS_C)
        if enabled & flags & rtc.C_PERIODIC:
            self._count_wait()
        if enabled & flags & rtc.C_ALARM:
            registers.goto = "clock_alarm"

    def _count_wait(self) -> None:
        bda = self._bda
        if not bda.byte(area.WAIT_ACTIVE) & area.WAIT_PENDING:
            rtc.set_periodic(self._core, False)
            return
        left = bda.dword(area.WAIT_TIME)
        if left > rtc.PERIOD_US:
            bda.set_dword(area.WAIT_TIME, left - rtc.PERIOD_US)
            return
        rtc.set_periodic(self._core, False)
        bda.set_byte(area.WAIT_ACTIVE, 0)
        pointer = bda.dword(area.WAIT_FLAG_POINTER)
        place = linear(pointer >> 16, pointer & 0xFFFF)
        try:
            self._core.write(place, bytes((self._core.read(place, 1)[0] | area.WAIT_DONE,)))
        except GuestMemoryError:
            pass  # whoever waits named a flag that is nowhere

    # -- int 1Ah ----------------------------------------------------------------------------------------------------

    def call(self, registers: Registers) -> None:
        """Serve int 1Ah."""
        function = self._functions.get(registers.ah)
        if function is None:
            registers.fail(UNSUPPORTED)
        else:
            function(registers)

    def _get_ticks(self, registers: Registers) -> None:
        ticks = self._bda.dword(area.TICKS)
        registers.cx, registers.dx = ticks >> 16, ticks
        registers.al = self._bda.byte(area.MIDNIGHT)
        self._bda.set_byte(area.MIDNIGHT, 0)
        registers.succeed()

    def _set_ticks(self, registers: Registers) -> None:
        self._bda.set_dword(area.TICKS, registers.cx << 16 | registers.dx)
        self._bda.set_byte(area.MIDNIGHT, 0)
        registers.succeed()

    def _stable(self, *indexes: int) -> list[int]:
        """Read registers of the clock until two readings agree: an update came between no two of them."""
        values = [self._core.cmos(index) for index in indexes]
        for _ in range(3):
            before, values = values, [self._core.cmos(index) for index in indexes]
            if before == values:
                break
        return values

    def _set_registers(self, values: dict[int, int]) -> None:
        """Set registers of the clock while it stands still."""
        core = self._core
        status = core.cmos(rtc.STATUS_B)
        core.set_cmos(rtc.STATUS_B, status | rtc.B_SET)
        for index, value in values.items():
            core.set_cmos(index, value)
        core.set_cmos(rtc.STATUS_B, status & ~rtc.B_SET)

    def _get_time(self, registers: Registers) -> None:
        registers.dh, registers.cl, registers.ch = self._stable(rtc.SECONDS, rtc.MINUTES, rtc.HOURS)
        registers.dl = self._core.cmos(rtc.STATUS_B) & rtc.B_DAYLIGHT
        registers.al = registers.ch
        registers.succeed()

    def _set_time(self, registers: Registers) -> None:
        status = self._core.cmos(rtc.STATUS_B) & ~rtc.B_DAYLIGHT
        self._core.set_cmos(rtc.STATUS_B, status | registers.dl & rtc.B_DAYLIGHT)
        self._set_registers({rtc.SECONDS: registers.dh, rtc.MINUTES: registers.cl, rtc.HOURS: registers.ch})
        registers.succeed()

    def _get_date(self, registers: Registers) -> None:
        indexes = (rtc.DAY, rtc.MONTH, rtc.YEAR, rtc.CENTURY)
        registers.dl, registers.dh, registers.cl, registers.ch = self._stable(*indexes)
        registers.al = registers.ch
        registers.succeed()

    def _set_date(self, registers: Registers) -> None:
        values = {rtc.DAY: registers.dl, rtc.MONTH: registers.dh, rtc.YEAR: registers.cl, rtc.CENTURY: registers.ch}
        self._set_registers(values)
        registers.succeed()

    def _set_alarm(self, registers: Registers) -> None:
        """AH=06: an alarm calls int 4Ah; there is one at a time."""
        core = self._core
        status = core.cmos(rtc.STATUS_B)
        if status & rtc.B_ALARM:
            registers.carry = True
            return
        core.set_cmos(rtc.SECONDS_ALARM, registers.dh)
        core.set_cmos(rtc.MINUTES_ALARM, registers.cl)
        core.set_cmos(rtc.HOURS_ALARM, registers.ch)
        core.set_cmos(rtc.STATUS_B, status & ~rtc.B_SET | rtc.B_ALARM)
        registers.succeed()

    def _cancel_alarm(self, registers: Registers) -> None:
        self._core.set_cmos(rtc.STATUS_B, self._core.cmos(rtc.STATUS_B) & ~rtc.B_ALARM)
        registers.succeed()
