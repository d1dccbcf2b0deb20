"""The real-time clock's registers as the BIOS uses them.

Motorola MC146818A datasheet; IBM AT: the interrupt is IRQ 8, the century is byte 32h of the CMOS memory.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios.core import Core

SECONDS: Final = 0x00
SECONDS_ALARM: Final = 0x01
MINUTES: Final = 0x02
MINUTES_ALARM: Final = 0x03
HOURS: Final = 0x04
HOURS_ALARM: Final = 0x05
DAY: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
STATUS_A: Final = 0x0A
STATUS_B: Final = 0x0B
STATUS_C: Final = 0x0C
STATUS_D: Final = 0x0D
CENTURY: Final = 0x32

A_UPDATING: Final = 1 << 7
B_SET: Final = 1 << 7
B_PERIODIC: Final = 1 << 6
B_ALARM: Final = 1 << 5
B_24_HOURS: Final = 1 << 1
B_DAYLIGHT: Final = 1 << 0
C_PERIODIC: Final = 1 << 6
C_ALARM: Final = 1 << 5

PERIOD_US: Final = 976
"""Microseconds between periodic interrupts at the rate that the BIOS leaves set, 1024 a second."""


def set_periodic(core: Core, enabled: bool) -> None:
    """Switch the periodic interrupt on or off."""
    value = core.cmos(STATUS_B)
    core.set_cmos(STATUS_B, value | B_PERIODIC if enabled else value & ~B_PERIODIC)


def from_bcd(value: int) -> int:
    """Return what a byte of two decimal digits means; digits that are none count as they are."""
    return (value >> 4) * 10 + (value & 0x0F)
