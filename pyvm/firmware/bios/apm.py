"""Advanced power management, int 15h AH=53, in real mode.

Intel and Microsoft, "Advanced Power Management (APM) BIOS Interface Specification" 1.2, section 4.  The machine's power
management is ACPI's; this is what old programs need to find out what there is, to idle and to switch off.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.machine_info import PM_BASE

VERSION: Final = 0x0102
SIGNATURE: Final = 0x504D  # "PM"
FLAG_IDLE_SLOWS: Final = 1 << 2

NOT_CONNECTED: Final = 0x03
ALREADY_CONNECTED: Final = 0x02
NO_16_BIT: Final = 0x06
NO_32_BIT: Final = 0x08
UNKNOWN_DEVICE: Final = 0x09
BAD_PARAMETER: Final = 0x0A
NO_EVENT: Final = 0x80
UNSUPPORTED: Final = 0x0C

ALL_DEVICES: Final = 0x0001
BIOS_DEVICE: Final = 0x0000
STATE_OFF: Final = 3
_PM1_CONTROL: Final = PM_BASE + 4
_SLEEP_ENABLE: Final = 1 << 13
_SLEEP_TYPE: Final = 7 << 10  # of which soft off is type 0

_AC_ON_LINE: Final = 0x01
_UNKNOWN: Final = 0xFF
_NO_BATTERY: Final = 0x80


class Apm:
    """The functions, by AL."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def call(self, registers: Registers) -> None:
        """Serve int 15h AH=53."""
        function = registers.al
        if function == 0x00:
            self._installation_check(registers)
        elif function in (0x01, 0x04):
            self._connect(registers, function == 0x01)
        elif function in (0x02, 0x03):
            registers.fail(NO_16_BIT if function == 0x02 else NO_32_BIT)
        elif function in (0x05, 0x06, 0x08, 0x0D, 0x0E, 0x0F, 0x10):
            self._accept(registers)
        elif function == 0x07:
            self._set_state(registers)
        elif function == 0x0A:
            self._power_status(registers)
        elif function == 0x0B:
            registers.fail(NO_EVENT)
        else:
            registers.fail(UNSUPPORTED)

    def _installation_check(self, registers: Registers) -> None:
        if registers.bx != BIOS_DEVICE:
            registers.fail(UNKNOWN_DEVICE)
            return
        registers.ax, registers.bx, registers.cx = VERSION, SIGNATURE, FLAG_IDLE_SLOWS
        registers.carry = False

    def _connect(self, registers: Registers, connect: bool) -> None:
        connected = self._core.ebda.byte(area.APM_CONNECTED) != 0
        if registers.bx != BIOS_DEVICE:
            registers.fail(UNKNOWN_DEVICE)
        elif connected == connect:
            registers.fail(ALREADY_CONNECTED if connect else NOT_CONNECTED)
        else:
            self._core.ebda.set_byte(area.APM_CONNECTED, connect)
            registers.succeed()

    def _accept(self, registers: Registers) -> None:
        """Idle, busy, enable, driver version, engage: nothing has to happen."""
        if registers.al == 0x0E:
            registers.ax = VERSION
            registers.carry = False
        else:
            registers.succeed()

    def _set_state(self, registers: Registers) -> None:
        if registers.bx != ALL_DEVICES:
            registers.fail(UNKNOWN_DEVICE)
        elif registers.cx == STATE_OFF:
            control = self._core.inp(_PM1_CONTROL, 2) & ~_SLEEP_TYPE
            self._core.outp(_PM1_CONTROL, 2, control | _SLEEP_ENABLE)
            registers.succeed()
        else:
            registers.fail(BAD_PARAMETER)

    def _power_status(self, registers: Registers) -> None:
        registers.bh, registers.bl = _AC_ON_LINE, _UNKNOWN
        registers.ch, registers.cl = _NO_BATTERY, _UNKNOWN
        registers.dx = 0xFFFF
        registers.carry = False
