"""ACPI fixed hardware: PM1 event and control registers, PM timer, GPE0, and the SMI command port.

Advanced Configuration and Power Interface Specification 6.4, section 4.8 (fixed hardware) and 4.8.4.1 (general-purpose
events); the command port is the APM pair of the Intel 82371AB (PIIX4).  There is no system management mode: the two
commands that hand ACPI over and back are carried out here.  What a sleep type or a power button means for the machine
is the machine's policy.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from pyvm.clock import NANOSECONDS, Clock, muldiv
from pyvm.irq import IrqLine
from pyvm.state import State, uint

# PM block, offsets from the PM base address
PM1_STATUS: Final = 0x00  # 16 bits, cleared by writing ones
PM1_ENABLE: Final = 0x02  # 16 bits
PM1_CONTROL: Final = 0x04  # 16 bits
PM_TIMER: Final = 0x08  # 32 bits, read-only
PM_BLOCK_SIZE: Final = 0x40

PM1_TIMER: Final = 1 << 0
PM1_GLOBAL: Final = 1 << 5
PM1_POWER_BUTTON: Final = 1 << 8
PM1_SLEEP_BUTTON: Final = 1 << 9
PM1_RTC: Final = 1 << 10
PM1_WAKE: Final = 1 << 15  # status only
PM1_EVENTS: Final = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC

CONTROL_SCI_ENABLE: Final = 1 << 0
CONTROL_BUS_MASTER_RELOAD: Final = 1 << 1
CONTROL_SLEEP_TYPE_SHIFT: Final = 10
CONTROL_SLEEP_TYPE: Final = 7 << CONTROL_SLEEP_TYPE_SHIFT
CONTROL_SLEEP_ENABLE: Final = 1 << 13  # write-only
CONTROL_KEPT: Final = CONTROL_SCI_ENABLE | CONTROL_BUS_MASTER_RELOAD | CONTROL_SLEEP_TYPE

TIMER_HZ: Final = 3_579_545
TIMER_BITS: Final = 24
TIMER_HALF: Final = 1 << (TIMER_BITS - 1)  # the status bit is set whenever the counter's top bit changes

GPE_STATUS: Final = 0  # 16 bits, cleared by writing ones
GPE_ENABLE: Final = 2  # 16 bits
GPE_BLOCK_SIZE: Final = 4
GPE_COUNT: Final = 16

APM_COMMAND: Final = 0
APM_STATUS: Final = 1
APM_BLOCK_SIZE: Final = 2
ACPI_ENABLE: Final = 0xF1
ACPI_DISABLE: Final = 0xF0


class SleepKind(enum.Enum):
    """The sleeping states that the guest can ask for; the values are the sleep types of the `_Sx` objects."""

    SUSPEND_TO_RAM = 1
    SUSPEND_TO_DISK = 2
    SOFT_OFF = 0


class WakeReason(enum.Enum):
    """What ended a sleep, as the guest reads it afterwards."""

    RTC = PM1_RTC
    TIMER = PM1_TIMER
    OTHER = PM1_POWER_BUTTON


class AcpiPmState(State):
    """All registers; `overflow` is the PM timer tick, counted from guest clock 0, that sets the status bit next."""

    status: int = uint(16)
    enable: int = uint(16)
    control: int = uint(16)
    overflow: int = uint(64)
    gpe_status: int = uint(16)
    gpe_enable: int = uint(16)
    apm_command: int = uint(8)
    apm_status: int = uint(8)


class AcpiPm:
    """Power management.  `sci` is the system control interrupt, a level; `on_sleep` hears what the guest asks for."""

    def __init__(self, clock: Clock, sci: IrqLine, on_sleep: Callable[[SleepKind], None]) -> None:
        self._clock = clock
        self._sci = sci
        self._on_sleep = on_sleep
        self._timer = clock.timer(self._update)
        self._state = AcpiPmState()
        self.reset()

    # -- PM timer ---------------------------------------------------------------------------------------------------

    def _ticks(self) -> int:
        return muldiv(self._clock.now(), TIMER_HZ, NANOSECONDS)

    def _note_overflow(self) -> None:
        if self._ticks() >= self._state.overflow:
            self._state.status |= PM1_TIMER

    def _rearm(self) -> None:
        """Count to the next change of the counter's top bit."""
        self._state.overflow = (self._ticks() // TIMER_HALF + 1) * TIMER_HALF

    # -- events -----------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Drive the SCI; wake up for the PM timer only while it could raise it."""
        state = self._state
        self._note_overflow()
        pending = state.status & state.enable & PM1_EVENTS or state.gpe_status & state.gpe_enable
        self._sci.set(bool(pending and state.control & CONTROL_SCI_ENABLE))
        if state.enable & PM1_TIMER and not state.status & PM1_TIMER:
            self._timer.arm(-(-state.overflow * NANOSECONDS // TIMER_HZ))
        else:
            self._timer.cancel()

    def press_power_button(self) -> None:
        """The person at the machine presses the power button."""
        self._state.status |= PM1_POWER_BUTTON
        self._update()

    def rtc_alarm(self) -> None:
        """The RTC raised its alarm, which is a fixed event too."""
        self._state.status |= PM1_RTC
        self._update()

    def raise_gpe(self, number: int) -> None:
        """Set the status of general-purpose event `number`."""
        if not 0 <= number < GPE_COUNT:
            raise ValueError(f"there is no general-purpose event {number}")
        self._state.gpe_status |= 1 << number
        self._update()

    def wake_enabled(self, reason: WakeReason) -> bool:
        """Whether the guest wants to be woken for `reason`."""
        return reason is WakeReason.OTHER or bool(self._state.enable & reason.value)

    def wake(self, reason: WakeReason) -> None:
        """The machine leaves a sleeping state: note why."""
        self._state.status |= PM1_WAKE | reason.value
        self._update()

    # -- registers --------------------------------------------------------------------------------------------------

    def _pm_dword(self, offset: int) -> int:
        state = self._state
        if offset == PM1_STATUS:
            self._note_overflow()
            return state.status | state.enable << 16
        if offset == PM1_CONTROL:
            return state.control | 0xFFFF << 16
        if offset == PM_TIMER:
            return self._ticks() & ((1 << TIMER_BITS) - 1)
        return 0xFFFF_FFFF

    def pm_read(self, offset: int, size: int) -> int:
        """Read the PM block, 64 ports at the PM base address; accesses of 1 to 4 bytes."""
        base = offset & ~3
        value = self._pm_dword(base)
        if offset + size > base + 4:
            value |= self._pm_dword(base + 4) << 32
        return value >> (8 * (offset - base)) & ((1 << (8 * size)) - 1)

    def pm_write(self, offset: int, size: int, value: int) -> None:
        """Write the PM block."""
        for place in range(offset, offset + size):
            self._pm_write_byte(place, value & 0xFF)
            value >>= 8
        self._update()

    def _pm_write_byte(self, place: int, byte: int) -> None:
        state = self._state
        shift = 8 * (place & 1)
        register = place & ~1
        if register == PM1_STATUS:
            self._note_overflow()
            if byte << shift & state.status & PM1_TIMER:
                self._rearm()
            state.status &= ~(byte << shift)
        elif register == PM1_ENABLE:
            state.enable = state.enable & ~(0xFF << shift) | byte << shift
        elif register == PM1_CONTROL:
            state.control = (state.control & ~(0xFF << shift) | byte << shift) & CONTROL_KEPT
            if byte << shift & CONTROL_SLEEP_ENABLE:
                self._sleep()

    def _sleep(self) -> None:
        kind = (self._state.control & CONTROL_SLEEP_TYPE) >> CONTROL_SLEEP_TYPE_SHIFT
        if kind in (known.value for known in SleepKind):
            self._on_sleep(SleepKind(kind))

    def gpe_read(self, offset: int, size: int) -> int:
        """Read the GPE0 block of 4 ports."""
        value = self._state.gpe_status | self._state.gpe_enable << 16
        return value >> (8 * offset) & ((1 << (8 * size)) - 1)

    def gpe_write(self, offset: int, size: int, value: int) -> None:
        """Write the GPE0 block: status bits are cleared by ones, enable bits are stored."""
        lanes = ((1 << (8 * size)) - 1) << (8 * offset)
        value = value << (8 * offset) & lanes
        state = self._state
        state.gpe_status &= ~value & 0xFFFF
        state.gpe_enable = (state.gpe_enable & ~(lanes >> 16) | value >> 16) & 0xFFFF
        self._update()

    def apm_read(self, offset: int, size: int) -> int:
        """Read the two ports at 0xb2: the last command, and the status byte that firmware and software share."""
        value = self._state.apm_command | self._state.apm_status << 8
        return value >> (8 * offset) & ((1 << (8 * size)) - 1)

    def apm_write(self, offset: int, size: int, value: int) -> None:
        """Write the two ports at 0xb2; the commands switch ACPI on and off."""
        if offset + size > APM_STATUS:
            self._state.apm_status = value >> (8 * (APM_STATUS - offset)) & 0xFF
        if offset != APM_COMMAND:
            return
        command = self._state.apm_command = value & 0xFF
        if command == ACPI_ENABLE:
            self._state.control |= CONTROL_SCI_ENABLE
        elif command == ACPI_DISABLE:
            self._state.control &= ~CONTROL_SCI_ENABLE
        self._update()

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on; the PM timer runs on."""
        self._state = AcpiPmState()
        self._rearm()
        self._update()

    def save(self) -> AcpiPmState:
        """Return all registers."""
        self._note_overflow()
        return self._state.copy()

    def load(self, state: AcpiPmState) -> None:
        """Take over all registers, drive the SCI and arm the timer again."""
        state.check()
        self._state = state.copy()
        self._state.control &= CONTROL_KEPT
        if self._state.overflow > self._ticks() + 2 * TIMER_HALF:
            self._rearm()
        self._update()
